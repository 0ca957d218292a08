"""Volumes that go from one type of pool to another: a folder, Gluster, Ceph, a target of iSCSI. QEMU compares all copies."""

from __future__ import annotations

import asyncio
import itertools
import subprocess
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

import pytest

import astore
from astore.model import Device, Host, PoolDef, Source, Target, VolumeDef

if TYPE_CHECKING:
    from beds.ceph import CephBed
    from beds.gluster import GlusterBed
    from beds.iscsi import IscsiBed

pytestmark = [
    pytest.mark.root,
    pytest.mark.gluster,
    pytest.mark.fuse,
    pytest.mark.ceph,
    pytest.mark.iscsi,
    pytest.mark.qemu,
]

MIB = 1 << 20
SIZE = 12 * MIB


class Side:
    """A pool, and what QEMU calls its volumes."""

    def __init__(self, pool: astore.Pool, prefix: str, suffix: str = "") -> None:
        self.pool = pool
        self._prefix = prefix
        self._suffix = suffix
        self._units = itertools.count(1)

    def url(self, volume: astore.Volume) -> str:
        """The volume, as qemu-img opens it without astore."""
        return f"{self._prefix}{volume.name.rpartition(':')[2]}{self._suffix}"

    async def receive(self, source: astore.Volume, name: str) -> astore.Volume:
        """A copy: a new volume, or a unit of the target, which others have made."""
        if self.pool.type != "iscsi-direct":
            return await self.pool.copy_volume(source, VolumeDef(name, format="raw"))
        unit = self.pool.volume(f"unit:0:0:{next(self._units)}")
        async with source.download(sparse=True) as pieces:
            await unit.upload(pieces, sparse=True)
        return unit


@pytest.mark.timeout(300)
async def test_every_pair(
    ceph: CephBed, ceph_pool: str, gluster: GlusterBed, new_volume: str, iscsi: IscsiBed, tmp_path: Path
) -> None:
    """Each type takes a volume with data and holes from each, itself included; every copy has the same bytes to QEMU."""
    from tests.rbd.clients import definition_of, secrets_of

    where = f"{ceph_pool}/across"
    ceph.rbd("namespace", "create", where)
    mounted = gluster.mount(new_volume)
    target = iscsi.new_target()
    for lun in range(1, 6):
        target.add_lun(lun, SIZE, thin=lun % 2 == 0)
    folder = tmp_path / "folder"
    folder.mkdir()
    volume = Source(hosts=(Host(gluster.host),), name=new_volume, directory="/")
    units = Source(
        hosts=(Host(iscsi.address, iscsi.port),), devices=(Device(target.iqn),), initiator="iqn.2026-01.test:across"
    )
    async with astore.Manager(tmp_path / "state", secrets=secrets_of(ceph)) as manager:
        made = [
            (PoolDef("dir", "dir", target=Target(path=str(folder))), f"{folder}/", ""),
            (PoolDef("gluster", "gluster", source=volume), f"{mounted}/", ""),
            (definition_of(ceph, where, "rbd"), f"rbd:{where}/", f":id=admin:conf={ceph.configuration}"),
            (PoolDef("iscsi-direct", "iscsi", source=units), f"iscsi://{iscsi.address}:{iscsi.port}/{target.iqn}/", ""),
        ]
        sides = [Side(await manager.create(definition), *names) for definition, *names in made]
        random = Random(14)
        content = random.randbytes(3 * MIB) + bytes(5 * MIB) + random.randbytes(SIZE - 8 * MIB)
        original = await sides[0].pool.create_volume(VolumeDef("original", capacity=SIZE))
        await original.upload(content)
        first = {side: await side.receive(original, "first") for side in sides}
        copies = list(first.items())
        for source, side in itertools.product(sides, sides):
            copies.append((side, await side.receive(first[source], f"from-{source.pool.name}")))
        assert len({copy for _, copy in copies}) == len(copies) == 4 + 16
        for side, copy in copies:
            argv = ["qemu-img", "compare", "-f", "raw", "-F", "raw", original.path, side.url(copy)]
            done = await asyncio.to_thread(subprocess.run, argv, capture_output=True, text=True)
            assert done.returncode == 0, f"{side.pool.name}: {copy.name}: {done.stdout}{done.stderr}"
        for pool in manager.pools(active=True):
            await pool.stop()
    target.delete()
