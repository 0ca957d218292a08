"""A cluster that has IPv6 addresses only."""

from __future__ import annotations

from pathlib import Path

import pytest

import astore
from astore.model import VolumeDef
from beds.ceph import CephBed
from tests.rbd.clients import definition_of, secrets_of

pytestmark = pytest.mark.ceph


async def test_ipv6_monitor(tmp_path: Path) -> None:
    """A pool starts at a monitor's IPv6 address, and all its documents have it as libvirt and QEMU write it."""
    with CephBed(tmp_path / "ceph", manager=False, host="::1") as bed:
        bed.create_pool("six")
        async with astore.Manager(tmp_path / "state", secrets=secrets_of(bed)) as manager:
            pool = await manager.define(definition_of(bed, "six"))
            await pool.start()
            disk = await pool.create_volume(VolumeDef("disk", capacity=1 << 20))
            await disk.upload(b"over IPv6")
            async with disk.download() as pieces:
                assert b"".join([bytes(piece) async for piece in pieces]).startswith(b"over IPv6")
            assert f"<host name='::1' port='{bed.port}'/>" in pool.to_xml().replace('"', "'")
            assert f"<host name='::1' port='{bed.port}'/>" in disk.disk_xml().replace('"', "'")
            assert disk.qemu_blockdev()["file"]["server"] == [{"host": "::1", "port": str(bed.port)}]
            await pool.stop()
