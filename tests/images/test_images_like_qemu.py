"""Headers that QEMU reads in its own way: names far away, two formats in one file, footers, and odd sizes."""

from __future__ import annotations

import asyncio
import json
import struct
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from image_heads import VALID
from images.more_heads import MORE, probed, vhdx
from images.qemu_images import MIB, make, make_backed, qemu_info

from astore.errors import VolumeInUseError
from astore.images import FIRST_PAGE, HEADER_SIZE, ImageError, needs_full_header, probe
from astore.manager import Manager
from astore.model import ImageInfo, PoolDef, Reference, ReferenceKind, Target, VolumeDef

if TYPE_CHECKING:
    from beds.libvirt import LibvirtBed

pytestmark = pytest.mark.qemu


def read_file(path: Path) -> ImageInfo | None:
    """What astore says of a file that it reads as a refresh does, through a reader."""
    data = path.read_bytes()

    def read(offset: int, length: int) -> bytes:
        assert 0 <= offset <= (1 << 63) - 1 - length
        assert 0 < length <= 2 * MIB
        return data[offset : offset + length]

    first = data[:FIRST_PAGE]
    return probe(data[:HEADER_SIZE] if needs_full_header(first) else first, read, len(data))


def told(path: Path) -> dict[str, Any] | None:
    """What qemu-img says of a file; None if it refuses it."""
    done = subprocess.run(["qemu-img", "info", "--output=json", str(path)], check=False, capture_output=True)
    found: dict[str, Any] | None = json.loads(done.stdout) if done.returncode == 0 else None
    return found


def changed(path: Path, *changes: tuple[int, bytes]) -> Path:
    with path.open("r+b") as file:
        for offset, data in changes:
            file.seek(offset)
            file.write(data)
    return path


# --------------------------------------------------------------------------------------------------- names far away


def far(folder: Path, kind: str, offset: int, length: int, at: int | None = None) -> Path:
    """An empty image with a backing file's name at an offset; the name itself, 9 bytes, at ``at``."""
    name = [] if at is None else [(at, b"base1.raw")]
    if kind == "qed":
        fields = (16, struct.pack("<Q", 5)), (56, struct.pack("<II", offset, length))
    else:
        fields = ((8, struct.pack(">QI", offset, length)),) * 2
    return changed(make(folder / "image", kind, size="1M"), *fields, *name)


@pytest.mark.parametrize(
    ("kind", "offset", "length"),
    [
        *(("qcow", 40_000, 9), ("qcow", 40_000, 1023), ("qcow", 33_275, 9), ("qcow", 33_280, 9), ("qcow", 3 * MIB, 9)),
        *(("qed", 40_000, 9), ("qed", 40_000, 4095), ("qed", 33_275, 9), ("qed", 65_527, 9)),
        *(("qcow2", 40_000, 9), ("qcow2", 40_000, 1023)),
    ],
)
def test_far_names(tmp_path: Path, kind: str, offset: int, length: int) -> None:
    """A backing file is found wherever its name stands; a name that the file's end cuts off ends there."""
    path = far(tmp_path, kind, offset, length, at=offset)
    if kind != "qed":
        with path.open("r+b") as file:
            file.truncate(offset + 9)
    theirs, ours = qemu_info(path), read_file(path)
    assert ours is not None
    assert ours.backing == theirs["backing-filename"] == "base1.raw"
    assert (ours.format, ours.capacity) == (theirs["format"], theirs["virtual-size"]) == (kind, MIB)
    assert ours.backing_format == theirs.get("backing-filename-format") == ("raw" if kind == "qed" else None)
    with pytest.raises(ImageError, match="lies beyond the header"):
        probe(path.read_bytes()[:HEADER_SIZE])


@pytest.mark.parametrize(("kind", "offset"), [("qcow", 1 << 40), ("qcow", 1 << 62), ("qed", 60_000), ("qcow2", 60_000)])
def test_names_that_are_empty(tmp_path: Path, kind: str, offset: int) -> None:
    """Where the file has only NULs, or has ended, there is no name, and no backing file."""
    path = far(tmp_path, kind, offset, 9)
    assert "backing-filename" not in qemu_info(path)
    ours = read_file(path)
    assert ours is not None
    assert (ours.format, ours.references) == (kind, ())


@pytest.mark.parametrize(
    ("kind", "offset", "length", "words"),
    [
        ("qcow", 40_000, 1024, "more than 1,023"),
        ("qcow", 1 << 63, 9, "lies beyond the header"),
        ("qcow", (1 << 64) - 1, 9, "lies beyond the header"),
        ("qcow", (1 << 63) - 1024, 1023, "lies beyond the header"),
        ("qcow", (1 << 63) - 512, 9, "lies beyond the header"),
        ("qed", 40_000, 4096, "more than 4,095"),
        ("qed", 65_530, 9, "ends before the backing file name"),
        ("qed", (1 << 32) - 1, 9, "ends before the backing file name"),
    ],
)
def test_names_too_far(tmp_path: Path, kind: str, offset: int, length: int, words: str) -> None:
    """What QEMU refuses is refused in words."""
    path = far(tmp_path, kind, offset, length)
    assert told(path) is None
    with pytest.raises(ImageError, match=words):
        read_file(path)


@pytest.mark.parametrize(("name", "at"), [("qcow", 32), ("qed", 4)])
def test_other_faults_of_headers_with_far_names(name: str, at: int) -> None:
    """A header that is cut off or malformed is so with a reader too."""
    head = VALID[name]
    for bad, words in ((head[:20], "ends after 20 bytes"), (head[:at] + b"\3" + head[at + 1 :], "cluster_")):
        with pytest.raises(ImageError, match=words):
            probe(bad, lambda offset, length: bytes(length))


# ---------------------------------------------------------------------------------------------- two formats in a file


def two(folder: Path, kind: str, *options: str) -> Path:
    """A VDI image of 1 MiB that begins with the header of another, of which only the first 64 bytes are kept."""
    head = VALID[kind] if kind in VALID else MORE[kind]
    return changed(make(folder / "image", "vdi", *options, size="1M"), (0, head[:64]))


TWO = sorted(
    (VALID.keys() | MORE.keys()) - {"vdi", "iso"} - {name for name in MORE if name.startswith(("bochs", "cloop"))}
)
"""Bochs has its version where VDI has its magic, and cloop its script."""


@pytest.mark.parametrize("kind", TWO)
def test_which_format_comes_first(tmp_path: Path, kind: str) -> None:
    """The format is that of QEMU, or the file cannot be read: VDI comes before all others except QED and Parallels."""
    path = two(tmp_path, kind)
    theirs = told(path)
    try:
        ours = read_file(path)
    except ImageError:
        return
    assert ours is not None
    if kind == "qed":  # its table is where VDI's blocks are
        assert (theirs, ours.format) == (None, "qed")
        return
    assert theirs is not None
    assert {"ploop": "parallels"}.get(ours.format, ours.format) == theirs["format"]
    assert ours.format == kind.partition("-")[0] or ours.format == "vdi"
    assert ours.capacity == theirs["virtual-size"]


def test_most_are_read() -> None:
    """Of the formats that QEMU knows, the plain headers are read as VDI, and so is a text that is no header."""
    vdi = VALID["vdi"].ljust(FIRST_PAGE, b"\0")
    read = {kind: probed(((VALID | MORE)[kind][:64]).ljust(64, b"\0") + vdi[64:]) for kind in ("qcow", "ploop", "vhdx")}
    assert {kind: info.format for kind, info in read.items()} == {"qcow": "vdi", "ploop": "ploop", "vhdx": "vdi"}
    text = b"<<< Oracle VM VirtualBox Disk Image >>>\n".ljust(64, b"\0")
    assert probed(text + vdi[64:]) == probed(vdi)


@pytest.mark.parametrize(("format", "options"), [("qcow", ()), ("qcow2", ("compat=0.10",))])
def test_bytes_of_two_formats(tmp_path: Path, format: str, options: tuple[str, ...]) -> None:
    """qemu-img converts the VDI's disk: the format that astore gives to QEMU makes the same bytes."""
    path = make(tmp_path / "image", "vdi", size="1M")
    subprocess.run(["qemu-io", "-f", "vdi", "-c", "write -P 7 0 64k", str(path)], check=True, capture_output=True)
    changed(path, (0, make(tmp_path / "other", format, *options, size="64k").read_bytes()[:64]))
    ours = read_file(path)
    assert ours is not None
    disks = []
    for number, more in enumerate(((), ("-f", ours.format))):
        target = tmp_path / f"disk{number}"
        subprocess.run(["qemu-img", "convert", *more, "-O", "raw", str(path), str(target)], check=True)
        disks.append(target.read_bytes())
    assert disks[0] == disks[1]
    assert disks[0] == (b"\7" * 65_536).ljust(MIB, b"\0")


def test_references_of_the_other_header(tmp_path: Path) -> None:
    """The files that the other header names are kept, and doubted; a VDI that is malformed, or a header, is refused."""
    path = make(tmp_path / "image", "vdi", size="1M")
    changed(path, (0, struct.pack(">4sIQIIQBBHIQ", b"QFI\xfb", 1, 300, 4, 0, MIB, 12, 9, 0, 0, 0)), (300, b"base"))
    assert qemu_info(path)["format"] == "vdi"
    ours = read_file(path)
    assert ours is not None
    doubt = "is named by a header of qcow in an image that QEMU takes for VDI"
    assert ours.references == (Reference(ReferenceKind.BACKING, "base", doubt=doubt),)
    assert (ours.format, ours.capacity) == ("vdi", MIB)
    head = path.read_bytes()[:FIRST_PAGE]
    with pytest.raises(ImageError, match="qcow: its cluster_bits 0"):
        probe(head[:32] + b"\0" + head[33:])
    with pytest.raises(ImageError, match=r"vdi: its version 0\.0"):
        probe(head[:68] + bytes(4) + head[72:])
    with pytest.raises(ImageError, match="vdi: the header ends before its version"):
        probe((head[:8] + bytes(12) + head[20:])[:70])


@pytest.mark.libvirt
def test_libvirts_order(libvirt_bed: LibvirtBed, tmp_path: Path) -> None:
    """libvirt prefers VDI to the formats that QEMU prefers it to, except VHD."""
    folder = tmp_path / "pool"
    folder.mkdir()
    expected = {"qcow": "vdi", "qcow2-plain": "vdi", "vmdk": "vdi", "qed": "vdi", "ploop": "vdi", "vpc": "vpc"}
    for kind in expected:
        two(folder, kind).rename(folder / kind)
    libvirt_bed.define(f"<pool type='dir'><name>two</name><target><path>{folder}</path></target></pool>")
    libvirt_bed.virsh("pool-start", "two")
    try:
        for kind, format in expected.items():
            assert f"<format type='{format}'/>" in libvirt_bed.virsh("vol-dumpxml", kind, "--pool", "two"), kind
    finally:
        libvirt_bed.virsh("pool-destroy", "two")
        libvirt_bed.virsh("pool-undefine", "two")


# ------------------------------------------------------------------------------------------------------------- footers


def streamed(path: Path, *, first: bytes | None = None, footer: bytes | None = None, tail: int = 1536) -> Path:
    """A streamOptimized image of 2 MiB whose header is in its footer.

    :param first: the capacity in the first header. :param footer: the three sectors at the end.
    """
    header = make(path, "vmdk", "subformat=streamOptimized", size="2M").read_bytes()[:512]
    changed(path, (56, b"\xff" * 8), *([] if first is None else [(12, first)]))
    if footer is None:
        footer = struct.pack("<QII", 1, 0, 3).ljust(512, b"\0") + header + bytes(512)
    with path.open("ab") as file:
        file.truncate(-(-file.tell() // 512) * 512)
        file.write(footer[:tail])
    return path


def sectors(size: int) -> bytes:
    return struct.pack("<Q", size // 512)


@pytest.mark.parametrize("size", [4 * MIB, 0, (1 << 62) - 512])
def test_capacity_from_the_footer(tmp_path: Path, size: int) -> None:
    """The footer's header counts; the first one's does not, whatever it says."""
    path = streamed(tmp_path / "image", first=sectors(size))
    if not size:
        changed(path, (28, bytes(8)))
    ours = read_file(path)
    assert ours is not None
    assert ours.capacity == qemu_info(path)["virtual-size"] == 2 * MIB
    assert probed(path.read_bytes()[:HEADER_SIZE]).capacity == size


def test_footer_in_the_last_sector(tmp_path: Path) -> None:
    """A file that ends within its last sector has its footer where QEMU, which rounds the size up, looks for it."""
    path = streamed(tmp_path / "image", first=sectors(4 * MIB), tail=1100)
    ours = read_file(path)
    assert ours is not None
    assert ours.capacity == qemu_info(path)["virtual-size"] == 2 * MIB


def test_a_header_that_the_footer_mends(tmp_path: Path) -> None:
    """A first header of another version is no error, and the parent behind it is found, if the footer's is sound."""
    path = streamed(tmp_path / "image")
    text = b"CID=1\nparentCID=ffffffff\n".ljust(6000, b"#") + b'\nparentFileNameHint="base.vmdk"\n'
    changed(path, (4, b"\x09"), (512, text))
    ours = read_file(path)
    assert ours is not None
    assert ours.backing == qemu_info(path)["backing-filename"] == "base.vmdk"
    with pytest.raises(ImageError, match="version 9"):
        probe(path.read_bytes()[:HEADER_SIZE])


GOOD = struct.pack("<QII", 1, 0, 3).ljust(512, b"\0")
FOOTERS = {
    "none": b"",
    "another marker": struct.pack("<QII", 1, 0, 2).ljust(512, b"\0") + VALID["vmdk"][:512] + bytes(512),
    "a marker with data": struct.pack("<QII", 1, 9, 3).ljust(512, b"\0") + VALID["vmdk"][:512] + bytes(512),
    "no header": GOOD + bytes(1024),
    "no end": GOOD + VALID["vmdk"][:512] + b"\1".ljust(512, b"\0"),
    "another version": GOOD + VALID["vmdk"][:4] + b"\4" + VALID["vmdk"][5:512] + bytes(512),
}


@pytest.mark.parametrize("name", FOOTERS)
def test_footers_that_are_refused(tmp_path: Path, name: str) -> None:
    """A file without the footer that its header promises is refused, and so is a malformed footer, as in QEMU."""
    path = streamed(tmp_path / "image", footer=FOOTERS[name])
    assert told(path) is None
    with pytest.raises(ImageError, match="version 4" if name == "another version" else "is not there"):
        read_file(path)


def test_short_files_without_a_footer() -> None:
    """A file with less than three sectors has no footer."""
    head = VALID["vmdk"][:56] + b"\xff" * 8 + VALID["vmdk"][64:512]
    with pytest.raises(ImageError, match="is not there"):
        probe(head, lambda offset, length: head[offset : offset + length], len(head))
    with pytest.raises(ImageError, match="ends after 200 bytes"):
        probe(head[:200], lambda offset, length: head[offset : min(offset + length, 200)], 200)
    assert probed(head).capacity == probed(VALID["vmdk"]).capacity


def test_footers_beside_a_descriptor(tmp_path: Path) -> None:
    """A file with an embedded descriptor and no capacity is read by the descriptor, and needs no footer."""
    text = b'RW 2048 FLAT "flat" 0\n'.ljust(1024, b"\0")
    head = struct.pack("<4sIIQQQQ", b"KDMV", 1, 3, 0, 128, 1, 0).ljust(56, b"\0") + b"\xff" * 8
    path = tmp_path / "image"
    path.write_bytes(
        head.ljust(512, b"\0")
        + b"# Disk DescriptorFile\nversion=1\nCID=1\nparentCID=ffffffff\n"
        + b'createType="monolithicFlat"\n'
        + text
    )
    (tmp_path / "flat").write_bytes(bytes(MIB))
    ours = read_file(path)
    assert ours is not None
    assert ours.capacity == qemu_info(path)["virtual-size"] == MIB
    assert [one.name for one in ours.references] == ["flat"]


# ----------------------------------------------------------------------------------------------------------- odd sizes

SIZE_AT = {"qcow2": (24, ">Q"), "qcow": (24, ">Q"), "vdi": (0x170, "<Q")}


@pytest.mark.parametrize("size", [1_048_276, 1_048_064, 513, 511, 2])
@pytest.mark.parametrize("kind", [*SIZE_AT, "vhdx"])
def test_odd_sizes(tmp_path: Path, kind: str, size: int) -> None:
    """A disk ends with a sector: QEMU rounds a header's size down, and VDI's up."""
    path = make(tmp_path / "image", kind, size="1M")
    at, field = SIZE_AT[kind] if kind in SIZE_AT else (path.read_bytes().index(struct.pack("<Q", MIB), 2 * MIB), "<Q")
    changed(path, (at, struct.pack(field, size)))
    ours = read_file(path)
    assert ours is not None
    assert ours.capacity == qemu_info(path)["virtual-size"]


def test_largest_sizes() -> None:
    """The largest sizes are told, or refused in words: rounding leads to none that no file has."""
    largest = (1 << 63) - 1
    for kind in ("qcow", "qcow2-plain"):
        head = VALID[kind][:24] + struct.pack(">Q", largest) + VALID[kind][32:]
        assert probed(head).capacity == largest - 511
    head = VALID["vdi"][:0x170] + struct.pack("<Q", largest) + VALID["vdi"][0x178:]
    with pytest.raises(ImageError, match="more than any file"):
        probe(head)
    pieces = vhdx(size=1001)
    reads = {at: bytes(piece) for at, piece in pieces.items()}

    def read(offset: int, length: int) -> bytes:
        return next((one[offset - at :][:length] for at, one in reads.items() if at <= offset < at + len(one)), b"")

    assert probed(MORE["vhdx"], read).capacity == 512


# ----------------------------------------------------------------------------------------------------------- in a pool


def put_all(folder: Path, scratch: Path) -> None:
    """Put an image of each of these kinds into a pool's folder."""
    folder.mkdir()
    scratch.mkdir()
    (folder / "base1.raw").write_bytes((b"secret" * 100).ljust(MIB, b"\0"))
    for kind in ("qcow", "qed"):
        far(scratch, kind, 40_000, 9, at=40_000).rename(folder / f"far.{kind}")
    for kind, (at, field) in SIZE_AT.items():
        changed(make(folder / f"odd.{kind}", kind, size="1M"), (at, struct.pack(field, 1_048_276)))
    streamed(folder / "footed", first=sectors(4 * MIB))
    path = make(folder / "two", "vdi", size="1M")
    subprocess.run(["qemu-io", "-f", "vdi", "-c", "write -P 7 0 64k", str(path)], check=True, capture_output=True)
    changed(path, (0, make(scratch / "image", "qcow", size="1M").read_bytes()[:64]))
    make_backed(folder / "over", "qcow", "two", "raw")


async def test_copies_have_the_bytes_of_qemus(tmp_path: Path) -> None:
    """A copy of each has the bytes that qemu-img converts it to, and a base named far away is protected."""
    folder, disk = tmp_path / "pool", tmp_path / "disk"
    await asyncio.to_thread(put_all, folder, tmp_path / "scratch")
    async with Manager(tmp_path / "state") as manager:
        pool = await manager.create(PoolDef(type="dir", name="p", target=Target(path=str(folder))))
        names = sorted(path.name for path in folder.iterdir())
        for name in names:
            copy = await pool.copy_volume(pool.volume(name), VolumeDef("copy", format="raw"))
            convert = ["qemu-img", "convert", "-O", "raw", str(folder / name), str(disk)]
            await asyncio.to_thread(subprocess.run, convert, check=True)
            assert (folder / "copy").read_bytes() == disk.read_bytes(), name
            await copy.delete()
        for name in ("base1.raw", "two"):
            with pytest.raises(VolumeInUseError):
                await pool.volume(name).delete()
