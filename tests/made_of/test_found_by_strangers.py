"""Headers by which people who had not written astore got at files that it should have protected, beside qemu-img."""

from __future__ import annotations

import os
import struct
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import unquote

import pytest
from image_heads import VALID
from images.more_heads import probed, sparse_vmdk, split_vmdk
from images.qemu_images import make
from made_of.places import Place, json_name

from astore.errors import AstoreError, VolumeInUseError
from astore.images import HEADER_SIZE, ImageError, probe, vmdk
from astore.images.fields import ENCODED
from astore.images.references import are_relative, located
from astore.model import ImageInfo, Reference, ReferenceKind, VolumeDef

MIB = 1 << 20
BACKING, EXTENT, DATA = ReferenceKind.BACKING, ReferenceKind.EXTENT, ReferenceKind.DATA


def read_whole(path: Path) -> ImageInfo | None:
    """What astore says of a file that it can go on reading."""

    def read(offset: int, length: int) -> bytes:
        with path.open("rb") as file:
            file.seek(offset)
            return file.read(length)

    return probe(read(0, HEADER_SIZE), read)


def qemu_img(*arguments: str | bytes | Path, cwd: Path | None = None) -> tuple[int, str]:
    """Run qemu-img; return its exit code and what it says."""
    done = subprocess.run(["qemu-img", *arguments], capture_output=True, check=False, cwd=cwd)
    return done.returncode, (done.stdout + done.stderr).decode(errors="replace")


def overlay(path: Path, name: bytes | str, format: str = "raw") -> int:
    """Have qemu-img make an overlay, and return how it ends when it opens that with all that is below."""
    assert qemu_img("create", "-q", "-u", "-f", "qcow2", "-b", name, "-F", format, path, "1M")[0] == 0
    return qemu_img("info", "--backing-chain", path, cwd=path.parent)[0]


def doubts(path: Path) -> list[str | None]:
    info = read_whole(path)
    assert info is not None
    return [one.doubt for one in located(info.references, str(path))]


# ------------------------------------------------------------------------------------------------- long descriptors


async def test_extents_of_a_long_descriptor(place: Place) -> None:
    """A disk of 1,500 GiB in extents of 2 GiB has a descriptor of more than 33,280 bytes; its extents are protected."""
    name = "windows-server-2022-datacenter"
    await place.image("-o", "subformat=twoGbMaxExtentSparse", f"{name}.vmdk", "1500G", format="vmdk")
    assert os.stat(place.folder / f"{name}.vmdk").st_size > HEADER_SIZE
    image = await place.volume(f"{name}.vmdk")
    assert (image.info.capacity, len(image.info.references)) == (1500 << 30, 750)
    for number in (1, 750):
        extent = place.pool.volume(f"{name}-s{number:03}.vmdk")
        for work in (extent.delete, extent.wipe):
            async with place.refused(name, error=VolumeInUseError):
                await work()


@pytest.mark.qemu
@pytest.mark.parametrize("begin", [512, 65 * 512, 1 << 40])
def test_long_descriptor_in_a_sparse_file(tmp_path: Path, begin: int) -> None:
    """An embedded descriptor may be as long, and may lie anywhere."""
    make(tmp_path / "extent", "vmdk", size="1M")
    text = b'RW 2048 SPARSE "extent"\n' + b"# x\n" * 30_000 + b'RW 2048 SPARSE "./extent"\n'
    path = tmp_path / "a.vmdk"
    with path.open("wb") as file:
        file.write(sparse_vmdk(b"CID=1\nparentCID=ffffffff\n", capacity=0, offset=begin // 512))  # QEMU looks for it
        file.seek(begin)
        file.write(split_vmdk("twoGbMaxExtentSparse", text))
    info = read_whole(path)
    assert info is not None
    assert info.references == (Reference(EXTENT, "extent", "vmdk"), Reference(EXTENT, "./extent", "vmdk"))
    assert f"({info.capacity} bytes)" in qemu_img("info", path)[1]


@pytest.mark.qemu
@pytest.mark.parametrize("end", [HEADER_SIZE - 1, HEADER_SIZE, HEADER_SIZE + 1, MIB - 1, MIB, 2 * MIB])
def test_descriptors_of_any_length(tmp_path: Path, end: int) -> None:
    """QEMU reads a MiB less a byte, and passes over the rest; so does astore."""
    (tmp_path / "flat").write_bytes(bytes(MIB))
    last = b'\nRW 2048 FLAT "./flat" 0\n\n'
    path = tmp_path / "a.vmdk"
    path.write_bytes(split_vmdk(extents=b'RW 2048 FLAT "flat" 0\n').ljust(end - len(last), b"#") + last)
    info = read_whole(path)
    assert info is not None
    assert f"({info.capacity} bytes)" in qemu_img("info", path)[1]
    assert len(info.references) == (2 if end <= MIB else 1)


def _in_lines(line: bytes) -> bytes:
    return split_vmdk(extents=line * (2 * MIB // len(line)))


def from_bytes(whole: bytes) -> ImageInfo | None:
    """What astore says of a file with these bytes."""
    return probe(whole[:HEADER_SIZE], lambda offset, length: whole[offset : offset + length])


def in_lines(line: bytes) -> bytes:
    return line * (2 * MIB // len(line))


FAST = {"the same extent": in_lines(b'RW 1 VMFS "a"\n'), "blank lines": b'RW 1 VMFS "a"\n' + b"\n" * 2 * MIB}
NO_EXTENTS = {
    "too many": (b"".join(b'RW 1 VMFS "%d"\n' % number for number in range(70_000)), "more than 16,384 extents"),
    "blanks": (in_lines(b" "), "names no extents"),
    "almost extents": (in_lines(b"RW 1 FLAT\n"), "names no extents"),
    "digits": (b"RW " + b"9" * 2 * MIB, "names no extents"),
    "parents": (in_lines(b"parentFileNameHint "), "has no end"),
}


@pytest.mark.parametrize("name", [*FAST, *NO_EXTENTS])
def test_no_descriptor_takes_long(name: str) -> None:
    """A descriptor of 2 MiB made to be slow takes no more than in proportion."""
    began = time.thread_time()
    text, words = NO_EXTENTS.get(name, (b"", ""))
    text = split_vmdk(extents=text or FAST[name])
    for whole in (text, sparse_vmdk(text, capacity=0)):
        if words:
            with pytest.raises(ImageError, match=words):
                from_bytes(whole)
        else:
            info = from_bytes(whole)
            assert info is not None
            assert info.references == (Reference(EXTENT, "a", "raw"),)
    assert time.thread_time() - began < 10


def test_as_many_extents_as_there_may_be() -> None:
    """The most extents are read, and their references are small."""
    lines = b"".join(b'RW 4194304 SPARSE "a-s%05d.vmdk"\n' % number for number in range(vmdk.MOST_EXTENTS))
    whole = split_vmdk(extents=lines)
    assert len(whole) < MIB
    info = from_bytes(whole)
    assert info is not None
    assert (len(info.references), info.capacity) == (vmdk.MOST_EXTENTS, vmdk.MOST_EXTENTS << 31)


# -------------------------------------------------------------------------------------------- names that are not text


@pytest.mark.qemu
@pytest.mark.parametrize("name", [b"d\xe9/b8.raw", b"d\x01/b8.raw", b"d\xef\xbf\xbf/b8.raw", b"./d:\xff%/b8.raw"])
@pytest.mark.parametrize("format", ["qcow2", "qcow", "qed"])
@pytest.mark.parametrize("from_root", [False, True])
def test_names_of_any_bytes(tmp_path: Path, name: bytes, format: str, from_root: bool) -> None:
    """Linux and QEMU take any bytes for a name: the file is found, on record as text, and not read."""
    folder = os.fsencode(tmp_path)
    base = os.path.join(folder, name)
    os.makedirs(os.path.dirname(base))
    Path(os.fsdecode(base)).write_bytes(bytes(MIB))
    path = tmp_path / "a"
    told = base if from_root else name
    assert qemu_img("create", "-q", "-u", "-f", format, "-b", told, "-F", "raw", path, "1M")[0] == 0
    assert qemu_img("info", "--backing-chain", path)[0] == 0
    info = read_whole(path)
    assert info is not None
    (found,) = located(info.references, str(path))
    assert (found.kind, found.doubt, are_relative((found,))) == (BACKING, ENCODED, not from_root)
    assert found.location is not None
    assert f"{found.name}{found.location}".isascii()
    assert os.path.samefile(unquote(found.location.removeprefix("file://"), errors="surrogateescape"), base)


@pytest.mark.parametrize(
    ("kind", "name", "location"),
    [
        (EXTENT, b"d\xe9/e", "file:///pool/d%E9/e"),
        (EXTENT, b"nbd:\xe9", "file:///pool/nbd%3A%E9"),
        (BACKING, b"file:/\xe9", "file:///%E9"),
        (BACKING, b"file:\xe9", None),
        (BACKING, b"nbd://h/\xe9", None),
        (BACKING, b"nope:\xe9", None),
        (BACKING, b'json:{"driver":"raw","file":{"driver":"file","filename":"/\xe9"}}', None),
        (DATA, b"/\xe9", "file:///%E9"),
        (DATA, b"\xe9", None),
    ],
)
def test_other_names_of_any_bytes(kind: ReferenceKind, name: bytes, location: str | None) -> None:
    """So are data files, extents and protocols' names; whatever they mean, they are doubted."""
    if kind is EXTENT:
        info = probed(split_vmdk(extents=b'RW 1 FLAT "%s" 0\n' % name))
    elif kind is DATA:
        head = VALID["qcow2-plain"][:72] + struct.pack(">Q", 1 << 2) + VALID["qcow2-plain"][80:104]
        info = probed(head + struct.pack(">II", 0x44415441, len(name)) + name.ljust(8, b"\0") + bytes(8))
    else:
        head = VALID["qcow2-2"]
        info = probed(head[:8] + struct.pack(">QI", len(head), len(name)) + head[20:] + name)
    (found,) = located(info.references, "/pool/a")
    assert (found.kind, found.location, found.doubt) == (kind, location, ENCODED)


def test_names_of_any_bytes_beside_a_url() -> None:
    """Beside a URL they are URLs."""
    info = probed(split_vmdk(extents=b'RW 1 FLAT "\xe9\x01" 0\n'))
    (found,) = located(info.references, "gluster://h/v/a")
    assert (found.location, found.doubt) == ("gluster://h/v/%E9%01", ENCODED)


# -------------------------------------------------------------------------------------------- sizes that are too large


@pytest.mark.parametrize("size", [b"18446744073709551617", b"9223372036854775807", b"36028797018963968"])
async def test_extents_larger_than_any_file(place: Place, size: bytes) -> None:
    """QEMU opens an extent before it notices that the disk is too large: it is protected."""
    await place.raw("e1")
    (place.folder / "a.vmdk").write_bytes(split_vmdk(extents=b'RW %s FLAT "e1" 0\n' % size))
    image = await place.volume("a.vmdk")
    (found,) = image.info.references
    assert found.doubt == "is an extent of a disk that is said to be larger than any file"
    async with place.refused("a.vmdk", error=VolumeInUseError):
        await place.pool.volume("e1").delete()


# ------------------------------------------------------------------------------------------------------------ versions


def checksummed(footer: bytes) -> bytes:
    """A VHD's footer with the right checksum."""
    bare = footer[:64] + bytes(4) + footer[68:512]
    return bare[:64] + struct.pack(">I", ~sum(bare) & 0xFFFFFFFF) + bare[68:] + footer[512:]


@pytest.mark.qemu
@pytest.mark.parametrize("version", [b"\0\1\0\1", b"\0\2\0\0", bytes(4), b"\xff" * 4])
def test_versions_of_vhd(tmp_path: Path, version: bytes) -> None:
    """QEMU looks at no version of a VHD."""
    path = make(tmp_path / "a.vhd", "vpc", size="4M")
    was, whole = read_whole(path), path.read_bytes()
    path.write_bytes(checksummed(whole[:12] + version + whole[16:]))
    assert "file format: vpc" in qemu_img("info", path)[1]
    assert read_whole(path) == was


VERSIONS: list[tuple[str, int, bytes]] = [
    ("qcow2", 4, b"\0\0\0\4"),
    ("qcow2", 4, b"\xff" * 4),
    ("vdi", 0x44, b"\2\0\1\0"),
    ("vdi", 0x44, b"\1\0\2\0"),
    ("vmdk", 4, b"\4\0\0\0"),
]


@pytest.mark.qemu
@pytest.mark.parametrize(("format", "at", "version"), VERSIONS)
def test_versions_that_qemu_refuses(tmp_path: Path, format: str, at: int, version: bytes) -> None:
    """What QEMU knows by its magic and refuses is no raw disk."""
    path = make(tmp_path / "a", format, size="1M")
    whole = path.read_bytes()
    path.write_bytes(whole[:at] + version + whole[at + len(version) :])
    code, said = qemu_img("info", path)
    assert code != 0
    assert "file format: raw" not in said
    with pytest.raises(ImageError, match=r"^.*: its version .* is one that QEMU does not read") as caught:
        read_whole(path)
    assert caught.value.format == format


async def test_versions_of_what_was_made_raw(place: Place) -> None:
    """A volume that was made raw stays raw, whatever version its guest writes; any other is an error of the listing."""
    head = VALID["qcow2-3"][:7] + b"\4" + VALID["qcow2-3"][8:]
    await place.raw("raw")
    await place.clone(await place.volume("raw"), "made")
    for name in ("made", "given"):
        with (place.folder / name).open("r+b" if name == "made" else "wb") as file:
            file.write(head)
    made = await place.volume("made")
    assert (made.info.format, made.info.made, made.info.header_format) == ("raw", "raw", "qcow2")
    assert place.pool.snapshot.get("given") is None
    assert [one.name for one in place.pool.snapshot.errors] == ["given"]


# ----------------------------------------------------------------------------------------------------- relative names


@pytest.mark.parametrize("folder", ["/elsewhere", "/here", "/there", "/pool"])
def test_relative_names_in_any_folder(folder: str) -> None:
    """No folder's name makes a relative name look absolute."""
    for name, relative in (("base", True), ("./a/base", True), (f"{folder}/base", False), ("nbd://h/x", False)):
        assert are_relative(located((Reference(BACKING, name),), f"{folder}/volume")) == relative
    assert not are_relative(())


# -------------------------------------------------------------------------------------------- what QEMU does not open

NOT_OPENED: dict[str, Callable[[Path], str]] = {
    "slash": lambda _: "base.raw/",
    "slash and dot": lambda _: "base.raw/.",
    "absolute slash": lambda folder: f"{folder}/base.raw//",
    "file: slash": lambda folder: f"file:{folder}/base.raw/",
    "json slash": lambda folder: json_name({"driver": "file", "filename": f"{folder}/base.raw/"}),
    "json slash below": lambda folder: json_name(
        {"driver": "raw", "file": {"driver": "file", "filename": f"{folder}/base.raw/."}}
    ),
    "host_device:": lambda folder: f"host_device:{folder}/base.raw",
    "host_cdrom:": lambda folder: f"host_cdrom:{folder}/base.raw",
    "json host_device": lambda folder: json_name({"driver": "host_device", "filename": f"{folder}/base.raw"}),
}
OPTIONS: list[tuple[str, object]] = [
    *(("node-name", value) for value in ("", "#bad", "n", "n-.9_", "9", "a b", "n" * 31, "n" * 32, 5)),
    *(("read-only", value) for value in (True, False, "on", "off", "yes", "y", "false", "maybe", "On", 1, 1.5)),
    *(("auto-read-only", value) for value in (True, "no", "x", "")),
    *(("discard", value) for value in ("ignore", "off", "unmap", "on", 5, "", "Off")),
]


@pytest.mark.qemu
@pytest.mark.parametrize("name", NOT_OPENED)
def test_what_qemu_does_not_open(tmp_path: Path, name: str) -> None:
    """A file is not opened by a folder's name, nor as a device."""
    (tmp_path / "base.raw").write_bytes(bytes(MIB))
    path = tmp_path / "a.qcow2"
    assert overlay(path, "base.raw") == 0
    assert doubts(path) == [None]
    assert overlay(path, NOT_OPENED[name](tmp_path)) != 0
    assert None not in doubts(path)


@pytest.mark.qemu
@pytest.mark.parametrize(("key", "value"), OPTIONS, ids=str)
def test_values_of_options(tmp_path: Path, key: str, value: object) -> None:
    """Harmless options are so with the values that QEMU accepts."""
    (tmp_path / "base.raw").write_bytes(bytes(MIB))
    path = tmp_path / "a.qcow2"
    file = {"driver": "file", "filename": f"{tmp_path}/base.raw"}
    opened = overlay(path, json_name({"driver": "raw", "file": file, key: value})) == 0
    assert (doubts(path) == [None]) == opened
    if key == "node-name" and opened:
        assert overlay(path, json_name({"driver": "raw", "file": {**file, key: value}, key: value})) != 0
        assert doubts(path) == ["is described with two nodes of the same name"]


async def test_names_in_any_bytes_protect(place: Place) -> None:
    """A base that an overlay names in bytes which are no text is not deleted, and nothing is read by that name."""
    folder = os.fsencode(place.folder)
    os.mkdir(folder + b"/d\xe9")
    os.symlink(b"..", folder + b"/d\xe9/l")
    (place.folder / "base.raw").write_bytes(bytes(MIB))
    assert overlay(place.folder / "over.qcow2", folder + b"/d\xe9/l/base.raw") == 0
    await place.pool.refresh()
    with pytest.raises(VolumeInUseError):
        await place.pool.volume("base.raw").delete()
    with pytest.raises(AstoreError):
        await place.pool.copy_volume(place.pool.volume("over.qcow2"), VolumeDef("copy", format="raw"))
