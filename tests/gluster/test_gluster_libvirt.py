"""The same pool in astore and in libvirt: the same volumes, keys, types, formats and sizes."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from lxml import etree

from astore.backend import Context
from astore.model import PoolDef, Snapshot
from astore.testing.conformance.source import qcow2
from astore_gluster.backend import GlusterBackend
from astore_gluster.volume.connection import ConnectionCache

if TYPE_CHECKING:
    from beds.gluster import GlusterBed
    from beds.libvirt import LibvirtBed
    from tests.gluster.conftest import Folder

pytestmark = [pytest.mark.root, pytest.mark.gluster, pytest.mark.fuse, pytest.mark.libvirt]

NAMES = [
    "plain.img",
    "two words",
    "100%.img",
    "a+b&c=d?e#f;g:h@i,j",
    "Größe.img",
    "'q'(x)*!~$",
    '"<>[]\\^`{|}',
    ".hidden",
    "-rf",
]


async def test_volumes_are_libvirts(
    gluster: GlusterBed,
    libvirt_bed: LibvirtBed,
    folder: Folder,
    volume: str,
    connections: ConnectionCache,
    context: Context,
) -> None:
    """Whatever the names are: libvirt's keys are astore's, escape by escape, and so is what else is told of a volume."""
    for number, name in enumerate(NAMES):
        (folder.path / name).write_bytes(qcow2((number + 1) << 30) if number % 2 else b"x" * 10_000)
    (folder.path / "sub").mkdir()
    (folder.path / "link").symlink_to(NAMES[0])
    (folder.path / "dangling").symlink_to("nothing")
    (folder.path / "empty").write_bytes(b"")
    xml = (
        f"<pool type='gluster'><name>compared</name><source><host name='{gluster.host}'/>"
        f"<dir path='{folder.name}'/><name>{volume}</name></source></pool>"
    )
    backend = GlusterBackend(connections)
    session = await backend.open(backend.check(PoolDef.from_xml(xml)), context)
    snapshot = await session.refresh(Snapshot.EMPTY)
    ours = {
        name: (record.key, record.path, str(record.type), record.format, record.capacity, record.allocation)
        for name, record in snapshot.by_name.items()
    }
    await session.aclose()

    def ask() -> dict[str, tuple[str | None, str | None, str | None, str | None, int, int]]:
        libvirt_bed.define(xml)
        try:
            libvirt_bed.virsh("pool-start", "compared")
            found = {}
            for name in ours:
                dump = etree.fromstring(libvirt_bed.virsh("vol-dumpxml", "--pool", "compared", "--vol", name).encode())
                form = dump.find("target/format")
                found[name] = (
                    dump.findtext("key"),
                    dump.findtext("target/path"),
                    dump.get("type"),
                    None if form is None else form.get("type"),
                    int(dump.findtext("capacity")),
                    int(dump.findtext("allocation")),
                )
            count = len(libvirt_bed.virsh("vol-list", "compared").strip().splitlines())
            assert count == len(ours)
            libvirt_bed.virsh("pool-destroy", "compared")
        finally:
            libvirt_bed.virsh("pool-undefine", "compared")
        return found

    assert ours == await asyncio.to_thread(ask)
