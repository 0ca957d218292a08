"""Probing beside qemu-img: the images that it makes, and what it says of them."""

from __future__ import annotations

import json
import struct
import subprocess
from pathlib import Path

import pytest
from images.more_heads import MORE
from images.qemu_images import MIB, SECRET, astore_info, create, in_two_steps, make, make_backed, qemu_info, where

from astore.images import HEADER_SIZE, ImageError, needs_full_header, probe
from astore.model import ImageInfo, ReferenceKind

pytestmark = pytest.mark.qemu

QCOW2 = [
    ("compat=0.10",),
    ("compat=1.1",),
    ("compat=1.1", "lazy_refcounts=on"),
    ("compat=1.1", "extended_l2=on"),
    ("compat=1.1", "extended_l2=on", "lazy_refcounts=on"),
    *[(f"cluster_size={1 << bits}",) for bits in range(9, 22)],
    ("preallocation=metadata",),
    ("refcount_bits=1",),
    ("compression_type=zstd",),
]


@pytest.mark.parametrize("options", QCOW2, ids=",".join)
def test_qcow2(tmp_path: Path, options: tuple[str, ...]) -> None:
    """Size, version, cluster size and features are those of qemu-img."""
    path = make(tmp_path / "a", "qcow2", *options)
    theirs, ours = qemu_info(path), astore_info(path)
    data = theirs["format-specific"]["data"]
    assert ours.format == theirs["format"] == "qcow2"
    assert ours.capacity == theirs["virtual-size"] == 64 * MIB
    assert ours.cluster_size == theirs["cluster-size"]
    assert ours.compat == data["compat"]
    assert ("lazy_refcounts" in ours.features) == data.get("lazy-refcounts", False)
    assert ("extended_l2" in ours.features) == data.get("extended-l2", False)
    assert ours.backing is ours.backing_format is ours.encryption is ours.data_file is None


@pytest.mark.parametrize("backing", ["base.qcow2", "größe mit leerzeichen", "x" * 200])
@pytest.mark.parametrize("kind", ["raw", "qcow2"])
@pytest.mark.parametrize(
    "options", [("compat=0.10",), ("compat=1.1",), ("compat=1.1", "cluster_size=512")], ids=",".join
)
def test_qcow2_backing(tmp_path: Path, backing: str, kind: str, options: tuple[str, ...]) -> None:
    """The backing file's name and format are those of qemu-img, and its place is where QEMU looks for it."""
    if "cluster_size=512" in options and len(backing) > 100:
        backing = backing[:100]  # it has to fit in the first cluster
    path = make_backed(tmp_path / "a", "qcow2", backing, kind, *options)
    theirs, ours = qemu_info(path), astore_info(path)
    assert ours.backing == theirs["backing-filename"] == backing
    assert ours.backing_format == theirs["backing-filename-format"] == kind
    assert where(backing, str(path)) == theirs["full-backing-filename"] == str(tmp_path / backing)


BACKING_NAMES = [
    "../images/base",
    "/elsewhere/base",
    "sub/base",
    "file:base",
    "file:/elsewhere/base",
    "nbd://localhost:1/export",
    'json:{"driver":"qcow2","file":{"driver":"file","filename":"/elsewhere/base"}}',
    'json:{"driver":"raw","offset":512,"size":512,"file":{"driver":"file","filename":"/elsewhere/base"}}',
]


@pytest.mark.parametrize("backing", BACKING_NAMES)
def test_where_qemu_looks_for_backing_files(tmp_path: Path, backing: str) -> None:
    """What a plain name or a protocol means is what qemu-img makes of it; json: is the file at its bottom."""
    path = make_backed(tmp_path / "a", "qcow2", backing, "raw")
    theirs, ours = qemu_info(path), astore_info(path)
    assert ours.backing == theirs["backing-filename"] == backing
    expected = theirs.get("full-backing-filename", backing)
    if expected.startswith("json:"):
        expected = "/elsewhere/base"
    # qemu-img reports it as it is, and looks for it in its own folder
    wanted = None if backing == "file:base" else expected.removeprefix("file:")
    assert where(backing, str(path)) == wanted


def test_file_prefix_is_beside_the_image(tmp_path: Path) -> None:
    """QEMU, too, takes what follows ``file:`` for a path."""
    base = make(tmp_path / "base", "raw", size="1M")
    path = make_backed(tmp_path / "a", "qcow2", f"file://{base}", "raw")
    chain = subprocess.run(
        ["qemu-img", "info", "--backing-chain", "--output=json", str(path)], check=True, capture_output=True
    )
    assert len(json.loads(chain.stdout)) == 2
    assert where(f"file://{base}", str(path)) == str(base)


@pytest.mark.parametrize(("kind", "length"), [("qcow2", 1023), ("qcow", 1023), ("qed", 4095)])
def test_longest_backing_name(tmp_path: Path, kind: str, length: int) -> None:
    """The longest names that QEMU allows are read."""
    name = ("/" + "d" * 200) * 21
    name = name[:length]
    ours = astore_info(make_backed(tmp_path / "a", kind, name, "raw"))
    assert ours.backing == name


def test_qcow2_luks(tmp_path: Path) -> None:
    """LUKS inside qcow2 is told."""
    path = make(
        tmp_path / "a", "qcow2", "encrypt.format=luks,encrypt.key-secret=s0,encrypt.iter-time=10", extra=tuple(SECRET)
    )
    ours = astore_info(path)
    assert (ours.format, ours.encryption, ours.capacity) == ("qcow2", "luks", 64 * MIB)


def test_qcow2_aes(tmp_path: Path) -> None:
    """The old AES encryption is told; qemu-img makes such images still."""
    path = make(tmp_path / "a", "qcow2", "encrypt.format=aes,encrypt.key-secret=s0", extra=tuple(SECRET))
    ours = astore_info(path)
    assert (ours.format, ours.encryption) == ("qcow2", "aes")
    ours = astore_info(make(tmp_path / "b", "qcow", "encrypt.format=aes,encrypt.key-secret=s0", extra=tuple(SECRET)))
    assert (ours.format, ours.encryption) == ("qcow", "aes")


def test_qcow2_data_file(tmp_path: Path) -> None:
    """An external data file's name is told."""
    path = make(tmp_path / "a", "qcow2", f"data_file={tmp_path / 'data.raw'},data_file_raw=on")
    ours = astore_info(path)
    assert ours.data_file == qemu_info(path)["format-specific"]["data"]["data-file"]


VMDK = ["monolithicSparse", "monolithicFlat", "twoGbMaxExtentSparse", "twoGbMaxExtentFlat", "streamOptimized"]


@pytest.mark.parametrize("subformat", VMDK)
def test_vmdk(tmp_path: Path, subformat: str) -> None:
    """Every subformat, whose descriptor may be a file of its own."""
    path = make(tmp_path / "a.vmdk", "vmdk", f"subformat={subformat}")
    theirs, ours = qemu_info(path), astore_info(path)
    assert ours.format == theirs["format"] == "vmdk"
    assert ours.capacity == theirs["virtual-size"] == 64 * MIB
    assert ours.backing is None


@pytest.mark.parametrize("subformat", ["monolithicSparse", "twoGbMaxExtentSparse", "streamOptimized"])
def test_vmdk_backing(tmp_path: Path, subformat: str) -> None:
    """The parent's name is in the descriptor, embedded or in a file of its own."""
    base = make(tmp_path / "base.vmdk", "vmdk")
    path = tmp_path / "a.vmdk"
    create(path, "-f", "vmdk", "-o", f"subformat={subformat}", "-b", str(base), "-F", "vmdk", str(path))
    theirs, ours = qemu_info(path), astore_info(path)
    assert ours.backing == theirs["backing-filename"]
    assert ours.backing_format == "vmdk"


def test_vmdk_extents(tmp_path: Path) -> None:
    """A descriptor file's capacity is its extents', which are read one by one where it is an extent."""
    path = make(tmp_path / "a.vmdk", "vmdk", "subformat=twoGbMaxExtentSparse", size="9G")
    ours = astore_info(path)
    assert ours.capacity == qemu_info(path)["virtual-size"] == 9 << 30
    extent = astore_info(tmp_path / "a-s001.vmdk")
    assert extent is not None
    assert extent.capacity == 2 << 30


def test_vmdk_descriptor_beyond_the_header(tmp_path: Path) -> None:
    """A descriptor of more extents than 33,280 bytes hold is an error, not a smaller disk."""
    path = make(tmp_path / "a.vmdk", "vmdk", "subformat=twoGbMaxExtentFlat", size="3T")
    with path.open("rb") as file:
        head = file.read(HEADER_SIZE)
    assert path.stat().st_size > HEADER_SIZE
    with pytest.raises(ImageError, match="33,280 bytes or more"):
        probe(head)


@pytest.mark.parametrize("kind", ["qcow", "qed", "vdi", "vpc"])
@pytest.mark.parametrize("size", ["1M", "64M", "10G"])
def test_other_formats(tmp_path: Path, kind: str, size: str) -> None:
    """Format, size and cluster size are those of qemu-img."""
    path = make(tmp_path / "a", kind, size=size)
    theirs, ours = qemu_info(path), astore_info(path)
    assert ours.format == theirs["format"] == kind
    assert ours.capacity == theirs["virtual-size"]
    if kind in ("qcow", "qed"):
        assert ours.cluster_size == theirs["cluster-size"]


@pytest.mark.parametrize("options", ["cluster_size=4096", "cluster_size=1048576", "table_size=16"])
def test_qed(tmp_path: Path, options: str) -> None:
    """Every cluster size."""
    path = make(tmp_path / "a", "qed", options)
    theirs, ours = qemu_info(path), astore_info(path)
    assert (ours.capacity, ours.cluster_size) == (theirs["virtual-size"], theirs["cluster-size"])


@pytest.mark.parametrize("kind", ["qcow", "qed"])
def test_other_backing(tmp_path: Path, kind: str) -> None:
    """qcow and qed have backing files too; qed says of them whether they are raw, qcow nothing."""
    for backing_format, told in (("raw", "raw"), ("qcow2", None)):
        path = make_backed(tmp_path / backing_format, kind, "base", backing_format)
        ours = astore_info(path)
        assert ours.backing == qemu_info(path)["backing-filename"] == "base"
        assert ours.backing_format == (told if kind == "qed" else None)


def test_vpc_by_current_size(tmp_path: Path) -> None:
    """An image made with force_size has the size that it says, not its geometry's."""
    path = make(tmp_path / "a", "vpc", "force_size=on", size="65M")
    ours = astore_info(path)
    assert ours.capacity == qemu_info(path)["virtual-size"] == 65 * MIB


def test_luks(tmp_path: Path) -> None:
    """A LUKS volume is told; its capacity is what the file has behind the header."""
    path = make(tmp_path / "a", "luks", "key-secret=s0,iter-time=10", size="1M", extra=tuple(SECRET))
    ours = astore_info(path)
    assert ours == ImageInfo("luks", encryption="luks", before=ours.before)
    assert path.stat().st_size - ours.before == qemu_info(path)["virtual-size"] == MIB


def test_parallels_is_ploop(tmp_path: Path) -> None:
    """Parallels' images and OpenVZ's ploop are one format, and have libvirt's name for it."""
    path = make(tmp_path / "a", "parallels")
    ours = astore_info(path)
    assert (ours.format, ours.capacity) == ("ploop", qemu_info(path)["virtual-size"])


def test_parallels_of_the_first_form(tmp_path: Path) -> None:
    """``WithoutFreeSpace``, which libvirt takes for raw, has a size of 32 bits."""
    path = make(tmp_path / "a", "parallels")
    whole = path.read_bytes()
    path.write_bytes(b"WithoutFreeSpace" + whole[16:40] + b"\1\0\0\0" + whole[44:])
    ours = astore_info(path)
    assert (ours.format, ours.capacity) == ("ploop", qemu_info(path)["virtual-size"])


@pytest.mark.parametrize("options", [("subformat=dynamic",), ("subformat=fixed",), ("block_size=32M",)], ids=",".join)
@pytest.mark.parametrize("size", ["1M", "64M", "10G"])
def test_vhdx(tmp_path: Path, options: tuple[str, ...], size: str) -> None:
    """A VHDX image's size, which is far behind its header, is read by a reader."""
    if size == "10G" and "subformat=fixed" in options:
        return
    path = make(tmp_path / "a", "vhdx", *options, size=size)
    theirs = qemu_info(path)
    with path.open("rb") as file:
        head = file.read(4096)
        assert not needs_full_header(head)

        def read(offset: int, length: int) -> bytes:
            file.seek(offset)
            return file.read(length)

        assert probe(head, read) == ImageInfo("vhdx", theirs["virtual-size"], cluster_size=theirs["cluster-size"])
    assert probe(head) == ImageInfo("vhdx")


CREATORS = [b"qemu", b"vpc ", b"vs  ", b"win ", b"qem2", b"d2v ", b"tap\0", b"CTXS", b"wa\0\0", b"vbox", b"\0\0\0\0"]


@pytest.mark.parametrize("creator", CREATORS)
@pytest.mark.parametrize("geometry", [(963, 4, 17), (65535, 16, 255)])
@pytest.mark.parametrize("kind", [2, 3, 4])
def test_sizes_of_vhd(tmp_path: Path, creator: bytes, geometry: tuple[int, int, int], kind: int) -> None:
    """Creator and geometry tell the size as in QEMU, which reads nothing through a parent."""
    path = make(tmp_path / "a", "vpc", size="64M")
    whole = path.read_bytes()
    footer = (
        whole[:28] + creator + whole[32:48] + struct.pack(">QHBBI", (33 << 20) + 100, *geometry, kind) + whole[64:512]
    )
    footer = footer[:64] + bytes(4) + footer[68:]
    path.write_bytes(footer[:64] + struct.pack(">I", ~sum(footer) & 0xFFFFFFFF) + footer[68:] + whole[512:])
    theirs, ours = qemu_info(path), astore_info(path)
    assert ours.capacity == theirs["virtual-size"]
    assert "backing-filename" not in theirs
    assert [one.kind for one in ours.references] == ([ReferenceKind.PARENT] if kind == 4 else [])


@pytest.mark.parametrize("name", ["bochs", "bochs-1", "cloop"])
def test_what_qemu_only_reads(tmp_path: Path, name: str) -> None:
    """Bochs' and cloop's images are told by their magic."""
    path = tmp_path / "a"
    offsets = b"".join(struct.pack(">Q", 168 + index) for index in range(4))
    path.write_bytes(MORE[name] + (offsets if name == "cloop" else b"\xff" * 512) + bytes(4096))
    theirs, ours = qemu_info(path), astore_info(path)
    assert (ours.format, ours.capacity) == (theirs["format"], theirs["virtual-size"])


def test_what_is_raw_to_libvirt(tmp_path: Path) -> None:
    """Raw is raw; so is a fixed VHD, whose footer is at its end."""
    assert in_two_steps(make(tmp_path / "a", "raw")) is None
    assert in_two_steps(make(tmp_path / "b", "vpc", "subformat=fixed")) is None
