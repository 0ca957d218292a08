"""The same target in astore and in libvirt: the same volumes and bytes, but for what libvirt gets wrong."""

from __future__ import annotations

import asyncio
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from iscsi_support import MIB, NewPool, definition_of
from lxml import etree

from astore.model import PoolDef
from beds.iscsi import Target

if TYPE_CHECKING:
    from collections.abc import Iterator

    from beds.libvirt import LibvirtBed

pytestmark = [pytest.mark.iscsi, pytest.mark.root, pytest.mark.libvirt]

CONTROLLER = "unit:0:0:0"
SIZES = {1: 8 * MIB, 2: 13_631_488, 3: 512, 200: 3 * 512}


@pytest.fixture
def virsh(target: Target, libvirt_bed: LibvirtBed) -> Iterator[LibvirtBed]:
    """libvirt, with a running pool on the target."""
    for lun, size in SIZES.items():
        target.add_lun(lun, size)
    libvirt_bed.define(definition_of(target, "theirs").to_xml())
    libvirt_bed.virsh("pool-start", "theirs")
    yield libvirt_bed
    libvirt_bed.virsh("pool-destroy", "theirs")
    libvirt_bed.virsh("pool-undefine", "theirs")


def theirs(bed: LibvirtBed) -> dict[str, tuple[str | None, str | None, str | None, int]]:
    """libvirt's volumes: key, path, type and capacity by name."""
    found = {}
    for line in bed.virsh("vol-list", "theirs").splitlines():
        if line.strip():
            dump = etree.fromstring(bed.virsh("vol-dumpxml", line.split()[0], "theirs").encode())
            capacity = int(dump.findtext("capacity") or "")
            found[line.split()[0]] = (dump.findtext("key"), dump.findtext("target/path"), dump.get("type"), capacity)
    return found


async def test_volumes_are_libvirts(virsh: LibvirtBed, target: Target, new_pool: NewPool) -> None:
    """Names, keys, paths and types are libvirt's. libvirt's sizes lack the last block, and it lists the controller."""
    pool = await new_pool(target)
    ours = {one.name: (one.key, one.path, str(one.type), one.capacity) for one in pool.volumes}
    found = await asyncio.to_thread(theirs, virsh)
    assert found.pop(CONTROLLER)[3] == 0, "libvirt lists no controller any more: see docs/differences-from-libvirt.md"
    assert {name: (*rest, capacity - 512) for name, (*rest, capacity) in ours.items()} == found
    assert {int(name.rpartition(":")[2]): capacity for name, (*_, capacity) in ours.items()} == SIZES
    document = etree.fromstring((await asyncio.to_thread(virsh.virsh, "pool-dumpxml", "theirs")).encode())
    mine = etree.fromstring(pool.to_xml().encode())
    for path in ("source/device/@path", "source/host/@name", "source/host/@port", "source/initiator/iqn/@name"):
        assert mine.xpath(path) == document.xpath(path)
    assert PoolDef.from_xml(etree.tostring(document)).source == definition_of(target).source


async def test_wiped_by_libvirt(virsh: LibvirtBed, target: Target, new_pool: NewPool) -> None:
    """libvirt wipes what astore wrote; both see the other's bytes at once."""
    pool = await new_pool(target)
    disk = pool.volume("unit:0:0:1")
    await disk.upload(b"x" * 8 * MIB)
    await asyncio.to_thread(virsh.virsh, "vol-wipe", "unit:0:0:1", "theirs")
    async with disk.open() as file:
        assert not (await file.pread(8 * MIB - 512, 0)).strip(b"\0"), "libvirt wipes all but the last block"


@pytest.mark.qemu
async def test_domains_read_it(virsh: LibvirtBed, target: Target, new_pool: NewPool, tmp_path: Path) -> None:
    """libvirt's schema accepts the disk that astore describes, with login and initiator."""
    schema = Path("/usr/share/libvirt/schemas/domain.rng")
    assert schema.exists(), "there is no schema of libvirt's (Debian package libvirt0)"
    pool = await new_pool(target)
    domain = tmp_path / "domain.xml"
    domain.write_text(
        "<domain type='qemu'><name>d</name><memory>1</memory><os><type>hvm</type></os><devices>"
        f"{pool.volume('unit:0:0:1').disk_xml()}</devices></domain>"
    )
    argv = ["xmllint", "--noout", "--relaxng", str(schema), str(domain)]
    done = await asyncio.to_thread(subprocess.run, argv, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
