"""Probing beside libvirt: one folder of every format as a libvirt pool, and what both say of it."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from image_heads import VALID, qcow2, vpc
from images.more_heads import MORE, sparse_vmdk
from images.qemu_images import where as where_backed
from lxml import etree

from astore.images import HEADER_SIZE, probe

if TYPE_CHECKING:
    from beds.libvirt import LibvirtBed

pytestmark = [pytest.mark.libvirt, pytest.mark.qemu]

BY_QEMU: dict[str, tuple[str, ...]] = {
    "qcow2": ("-f", "qcow2"),
    "qcow2-old": ("-f", "qcow2", "-o", "compat=0.10"),
    "qcow2-features": ("-f", "qcow2", "-o", "lazy_refcounts=on,extended_l2=on"),
    "qcow2-small": ("-f", "qcow2", "-o", "cluster_size=512"),
    "qcow2-large": ("-f", "qcow2", "-o", "cluster_size=2M"),
    "qcow2-beside": ("-u", "-f", "qcow2", "-b", "base.raw", "-F", "raw"),
    "qcow2-above": ("-u", "-f", "qcow2", "-b", "../other/base", "-F", "qcow2"),
    "qcow2-absolute": ("-u", "-f", "qcow2", "-b", "/elsewhere/base", "-F", "qed"),
    "qcow2-json": (
        *("-u", "-f", "qcow2", "-F", "qcow2"),
        *("-b", 'json:{"driver":"qcow2","file":{"driver":"file","filename":"/elsewhere/base"}}'),
    ),
    "qcow2-flat-json": (
        *("-u", "-f", "qcow2", "-F", "raw"),
        *("-b", 'json:{"file.driver":"host_device","file.filename":"/dev/sdz"}'),
    ),
    "qcow": ("-f", "qcow"),
    "qed": ("-f", "qed"),
    "qed-beside": ("-u", "-f", "qed", "-b", "base.raw", "-F", "raw"),
    "vdi": ("-f", "vdi"),
    "vpc": ("-f", "vpc"),
    "vpc-fixed": ("-f", "vpc", "-o", "subformat=fixed"),
    "vmdk": ("-f", "vmdk"),
    "vmdk-flat": ("-f", "vmdk", "-o", "subformat=monolithicFlat"),
    "parallels": ("-f", "parallels"),
    "vmdk-stream": ("-f", "vmdk", "-o", "subformat=streamOptimized"),
    "vhdx": ("-f", "vhdx"),
    "raw": ("-f", "raw"),
}

BY_HAND: dict[str, bytes] = {
    "cow": VALID["cow"].ljust(HEADER_SIZE, b"\0"),
    "qcow-beside": VALID["qcow"].ljust(HEADER_SIZE, b"\0"),
    "vmdk-beside": VALID["vmdk"].ljust(HEADER_SIZE, b"\0"),
    "vmdk-no-parent-cid": VALID["vmdk"].replace(b"87654321", b"ffffffff").ljust(HEADER_SIZE, b"\0"),
    "iso": VALID["iso"].ljust(40_960, b"\0"),
    "short-qcow2": VALID["qcow2-3"][:7],
    "short-vpc": VALID["vpc"][:12],
    "text": b"conectix",
    "unknown-qcow2": qcow2(3).replace(b"QFI\xfb\0\0\0\3", b"QFI\xfb\0\0\0\0"),
    "unknown-iso": qcow2(3).replace(b"QFI\xfb\0\0\0\3", b"QFI\xfb\0\0\0\0").ljust(32_769, b"\0") + b"CD001".ljust(999),
    "empty": b"",
    "vmdk-cowd": MORE["vmdk-cowd-parent"],
    "vmdk-version-0": sparse_vmdk(b'parentFileNameHint="base.vmdk"\n'.ljust(2048, b"\0"), version=0),
    "vmdk-no-descriptor-size": sparse_vmdk(b'parentFileNameHint="base.vmdk"\n'.ljust(2048, b"\0")),
    "vmdk-comment": VALID["vmdk"].replace(b"parentFileName", b"#parentFileName").ljust(HEADER_SIZE, b"\0"),
    "ploop": VALID["ploop"].ljust(4096, b"\0"),
    "ploop-old": VALID["ploop-old"].ljust(4096, b"\0"),
    "bochs": MORE["bochs"],
    "cloop": MORE["cloop"].ljust(4096, b"\0"),
    "vpc-qemu": vpc(b"qemu").ljust(4096, b"\0"),
    "vpc-win": vpc(b"win ").ljust(4096, b"\0"),
    "vpc-vbox": vpc(b"vbox").ljust(4096, b"\0"),
    "vpc-parent": MORE["vpc-4"],
    "qcow2-parallels": VALID["qcow2-3"].replace(b"\0\5qcow2\0\0\0", b"\0\5ploop\0\0\0"),
    "qcow2-protocol": qcow2(3, backing=b"ubuntu:22.04.qcow2"),
    "qcow2-file-protocol": qcow2(3, backing=b"file:base"),
}

UNRESOLVED = {"qcow2-json", "qcow2-protocol", "qcow2-file-protocol"}
"""Names that libvirt leaves as they are: a json: that begins with a format's node; a protocol that QEMU does not know; and
``file:`` before a relative name, which QEMU looks up in whatever folder it was started in."""

RAW_TO_LIBVIRT = {"vhdx", "vmdk-flat", "vmdk-cowd", "vmdk-version-0", "ploop-old", "bochs", "cloop"}
"""What QEMU takes for an image, and libvirt for raw: VHDX; VMDK's descriptor files, VMware 3's and version 0; Parallels' first
form; Bochs and cloop."""

OTHER_CAPACITY = {"parallels", "ploop", "vpc-qemu", "vpc-vbox"}
"""Of Parallels' images libvirt tells the file's size, and of VHD the size in the header, where QEMU goes by the geometry."""

NO_FORMAT_TOLD = {
    *("qcow-beside", "cow", "vmdk-beside", "vmdk-no-parent-cid", "vmdk-no-descriptor-size", "vmdk-comment"),
}
"""Where libvirt, which does not look what the backing file is, says raw for what the header does not say."""


@pytest.fixture(scope="module")
def pool(libvirt_bed: LibvirtBed, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder of all of them that libvirt has as a pool."""
    folder = tmp_path_factory.mktemp("images")
    for name, arguments in BY_QEMU.items():
        subprocess.run(
            ["qemu-img", "create", "-q", *arguments, str(folder / name), "64M"], check=True, capture_output=True
        )
    for name, head in BY_HAND.items():
        (folder / name).write_bytes(head)
    libvirt_bed.define(f"<pool type='dir'><name>probe</name><target><path>{folder}</path></target></pool>")
    libvirt_bed.virsh("pool-start", "probe")
    yield folder
    libvirt_bed.virsh("pool-destroy", "probe")
    libvirt_bed.virsh("pool-undefine", "probe")


@pytest.mark.parametrize("name", [*BY_QEMU, *BY_HAND])
def test_libvirt_says_the_same(libvirt_bed: LibvirtBed, pool: Path, name: str) -> None:
    """Format, capacity, compat, features, cluster size, and the backing file's place and format."""
    path = pool / name
    volume = etree.fromstring(libvirt_bed.virsh("vol-dumpxml", name, "--pool", "probe"))
    with path.open("rb") as file:
        info = probe(file.read(HEADER_SIZE))
    capacity = int(volume.findtext("capacity", "-1"))
    theirs = volume.find("target/format")
    assert theirs is not None
    if info is None:
        assert (theirs.get("type"), capacity) == ("raw", path.stat().st_size)
        return
    if name in RAW_TO_LIBVIRT:
        assert (theirs.get("type"), capacity) == ("raw", path.stat().st_size)
        return
    assert info.format == theirs.get("type")
    if name in OTHER_CAPACITY:
        assert capacity == (1 << 20 if info.format == "vpc" else path.stat().st_size) != info.capacity
    else:
        assert capacity == (path.stat().st_size if info.capacity is None else info.capacity)
    assert info.compat == volume.findtext("target/compat", "0.10" if info.format == "qcow2" else None)
    assert info.features == tuple(sorted(feature.tag for feature in volume.iterfind("target/features/*")))
    if info.format == "qcow2":
        assert str(info.cluster_size) == volume.findtext("target/clusterSize")
    if info.backing is None:
        assert volume.find("backingStore") is None
        return
    where = volume.findtext("backingStore/path")
    if name in UNRESOLVED:
        assert where == info.backing
        return
    assert where == where_backed(info.backing, str(path))
    backing_format = volume.find("backingStore/format")
    assert backing_format is not None
    assert backing_format.get("type") == ("raw" if name in NO_FORMAT_TOLD else info.backing_format)


def test_every_format_is_there(pool: Path) -> None:
    """All that astore recognises, but LUKS, whose volumes libvirt lists only with a driver for secrets."""
    found = set()
    for path in pool.iterdir():
        with path.open("rb") as file:
            info = probe(file.read(HEADER_SIZE))
        found.add("raw" if info is None else info.format)
    assert found == {
        "qcow",
        "qcow2",
        "qed",
        "vmdk",
        "vdi",
        "vpc",
        "cow",
        "iso",
        "raw",
        *("ploop", "vhdx", "bochs", "cloop"),
    }
