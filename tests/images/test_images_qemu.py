"""Probing beside qemu-img: the images that it makes, and what it says of them."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from astore.images import HEADER_SIZE, needs_full_header, probe
from astore.model import ImageInfo

pytestmark = pytest.mark.qemu

MIB = 1 << 20
SECRET = ["--object", "secret,id=s0,data=abcdefgh"]


def make(path: Path, kind: str, *options: str, size: str = "64M", extra: tuple[str, ...] = ()) -> Path:
    argv = ["qemu-img", "create", "-q", *extra, "-f", kind]
    for option in options:
        argv += ["-o", option]
    subprocess.run([*argv, str(path), size], check=True, capture_output=True, stdin=subprocess.DEVNULL)
    return path


def qemu_info(path: Path) -> dict[str, Any]:
    said = subprocess.run(["qemu-img", "info", "--output=json", str(path)], check=True, capture_output=True)
    found: dict[str, Any] = json.loads(said.stdout)
    return found


def astore_info(path: Path) -> ImageInfo | None:
    """What astore says; read in two steps, as a refresh does, it must say the same."""
    with path.open("rb") as file:
        head = file.read(HEADER_SIZE)
    info = probe(head)
    first = head[:4096]
    assert probe(head if needs_full_header(first) else first) == info
    return info


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
    assert ours is not None
    assert ours.format == theirs["format"] == "qcow2"
    assert ours.capacity == theirs["virtual-size"] == 64 * MIB
    assert ours.cluster_size == theirs["cluster-size"]
    assert ours.compat == data["compat"]
    assert ("lazy_refcounts" in ours.features) == data.get("lazy-refcounts", False)
    assert ("extended_l2" in ours.features) == data.get("extended-l2", False)
    assert ours.backing is ours.backing_format is ours.encryption is ours.data_file is None


@pytest.mark.parametrize("backing", ["base.qcow2", "größe mit leerzeichen", "x" * 200])
@pytest.mark.parametrize("kind", ["raw", "qcow2"])
@pytest.mark.parametrize("compat", ["0.10", "1.1"])
def test_qcow2_backing(tmp_path: Path, backing: str, kind: str, compat: str) -> None:
    """The backing file's name and format are those of qemu-img."""
    make(tmp_path / backing, kind)
    path = tmp_path / "a"
    argv = ["qemu-img", "create", "-q", "-f", "qcow2", "-o", f"compat={compat}", "-b", backing, "-F", kind, str(path)]
    subprocess.run(argv, check=True, capture_output=True)
    theirs, ours = qemu_info(path), astore_info(path)
    assert ours is not None
    assert ours.backing == theirs["backing-filename"] == backing
    assert ours.backing_format == theirs["backing-filename-format"] == kind


def test_qcow2_longest_backing_name(tmp_path: Path) -> None:
    """A name of 1,023 bytes, the longest, is read."""
    name = "/" + "d" * 200 + ("/" + "e" * 200) * 4 + "/" + "f" * 16
    path = tmp_path / "a"
    argv = ["qemu-img", "create", "-q", "-u", "-f", "qcow2", "-b", name, "-F", "raw", str(path), "1M"]
    subprocess.run(argv, check=True, capture_output=True)
    ours = astore_info(path)
    assert ours is not None
    assert len(name) == 1022
    assert ours.backing == name


def test_qcow2_luks(tmp_path: Path) -> None:
    """LUKS inside qcow2 is told."""
    path = make(
        tmp_path / "a", "qcow2", "encrypt.format=luks,encrypt.key-secret=s0,encrypt.iter-time=300", extra=tuple(SECRET)
    )
    ours = astore_info(path)
    assert ours is not None
    assert (ours.format, ours.encryption, ours.capacity) == ("qcow2", "luks", 64 * MIB)


def test_qcow2_aes(tmp_path: Path) -> None:
    """The old AES encryption is told; qemu-img makes such images still."""
    path = make(tmp_path / "a", "qcow2", "encrypt.format=aes,encrypt.key-secret=s0", extra=tuple(SECRET))
    ours = astore_info(path)
    assert ours is not None
    assert ours.encryption == "aes"


def test_qcow2_data_file(tmp_path: Path) -> None:
    """An external data file's name is told."""
    path = make(tmp_path / "a", "qcow2", f"data_file={tmp_path / 'data.raw'},data_file_raw=on")
    ours = astore_info(path)
    assert ours is not None
    assert ours.data_file == qemu_info(path)["format-specific"]["data"]["data-file"]


VMDK = ["monolithicSparse", "monolithicFlat", "twoGbMaxExtentSparse", "twoGbMaxExtentFlat", "streamOptimized"]


@pytest.mark.parametrize("subformat", VMDK)
def test_vmdk(tmp_path: Path, subformat: str) -> None:
    """Every subformat, whose descriptor may be a file of its own."""
    path = make(tmp_path / "a.vmdk", "vmdk", f"subformat={subformat}")
    theirs, ours = qemu_info(path), astore_info(path)
    assert ours is not None
    assert ours.format == theirs["format"] == "vmdk"
    assert ours.capacity == theirs["virtual-size"] == 64 * MIB
    assert ours.backing is None


def test_vmdk_backing(tmp_path: Path) -> None:
    """The parent's name is in the embedded descriptor."""
    base = make(tmp_path / "base.vmdk", "vmdk")
    path = tmp_path / "a.vmdk"
    subprocess.run(
        ["qemu-img", "create", "-q", "-f", "vmdk", "-b", str(base), "-F", "vmdk", str(path)],
        check=True,
        capture_output=True,
    )
    theirs, ours = qemu_info(path), astore_info(path)
    assert ours is not None
    assert ours.backing == theirs["backing-filename"]
    assert ours.backing_format == "vmdk"


@pytest.mark.parametrize("kind", ["qcow", "qed", "vdi", "vpc"])
@pytest.mark.parametrize("size", ["1M", "64M", "10G"])
def test_other_formats(tmp_path: Path, kind: str, size: str) -> None:
    """Format, size and cluster size are those of qemu-img."""
    path = make(tmp_path / "a", kind, size=size)
    theirs, ours = qemu_info(path), astore_info(path)
    assert ours is not None
    assert ours.format == theirs["format"] == kind
    assert ours.capacity == theirs["virtual-size"]
    if kind in ("qcow", "qed"):
        assert ours.cluster_size == theirs["cluster-size"]


@pytest.mark.parametrize("kind", ["qcow", "qed"])
def test_other_backing(tmp_path: Path, kind: str) -> None:
    """qcow and qed have backing files too."""
    make(tmp_path / "base", "raw")
    path = tmp_path / "a"
    subprocess.run(
        ["qemu-img", "create", "-q", "-f", kind, "-b", "base", "-F", "raw", str(path)], check=True, capture_output=True
    )
    ours = astore_info(path)
    assert ours is not None
    assert ours.backing == "base"
    assert ours.backing_format == ("raw" if kind == "qed" else None)


def test_vpc_by_current_size(tmp_path: Path) -> None:
    """An image made with force_size has the size that it says, not its geometry's."""
    path = make(tmp_path / "a", "vpc", "force_size=on", size="65M")
    ours = astore_info(path)
    assert ours is not None
    assert ours.capacity == qemu_info(path)["virtual-size"] == 65 * MIB


def test_luks(tmp_path: Path) -> None:
    """A LUKS volume is told; its capacity is the file's."""
    path = make(tmp_path / "a", "luks", "key-secret=s0,iter-time=300", size="1M", extra=tuple(SECRET))
    assert astore_info(path) == ImageInfo("luks", encryption="luks")


def test_parallels_is_ploop(tmp_path: Path) -> None:
    """Parallels' images and OpenVZ's ploop are one format, and have libvirt's name for it."""
    path = make(tmp_path / "a", "parallels")
    ours = astore_info(path)
    assert ours is not None
    assert (ours.format, ours.capacity) == ("ploop", qemu_info(path)["virtual-size"])


@pytest.mark.parametrize("kind", ["raw", "vhdx"])
def test_what_is_raw_to_libvirt(tmp_path: Path, kind: str) -> None:
    """Formats that libvirt does not recognise are raw; so is a fixed VHD, whose footer is at its end."""
    assert astore_info(make(tmp_path / "a", kind)) is None
    assert astore_info(make(tmp_path / "b", "vpc", "subformat=fixed")) is None
