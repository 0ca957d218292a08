"""A pool or a cluster without room: what needs room fails at once, and trimming an image makes room again."""

from __future__ import annotations

import asyncio
import errno
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

import astore
from astore.errors import AstoreError, StorageError, TransferError
from astore.model import VolumeDef
from beds.ceph import CephBed
from beds.processes import wait_until
from tests.rbd.clients import definition_of, secrets_of

pytestmark = pytest.mark.ceph

MIB = 1 << 20


async def test_full_by_quota(manager: astore.Manager, ceph: CephBed) -> None:
    """In a pool without room all work fails at once, and trimming an image makes room for its deletion."""
    ceph.create_pool("full")
    pool = await manager.define(definition_of(ceph, "full"))
    await pool.start()
    disk = await pool.create_volume(VolumeDef("disk", capacity=64 * MIB))
    await disk.upload(os.urandom(8 * MIB))
    ceph.ceph("osd", "pool", "set-quota", "full", "max_bytes", str(MIB))
    await asyncio.to_thread(
        wait_until, lambda: "full_quota" in ceph.ceph("osd", "dump"), 200, "the pool is full", every=0.2
    )
    began = time.monotonic()
    with pytest.raises(AstoreError, match=r"disk.*quota") as caught:
        await disk.upload(os.urandom(64 * MIB))
    assert caught.value.errno in (errno.EDQUOT, errno.ENOSPC)  # type: ignore[attr-defined]
    assert time.monotonic() - began < 20, "and not as late as when no server answers"
    with pytest.raises(AstoreError, match="quota"):
        await pool.create_volume(VolumeDef("new", capacity=MIB))
    with pytest.raises(AstoreError, match="trim"):
        await disk.delete()
    await disk.wipe("trim")
    await asyncio.to_thread(wait_until, lambda: "full_quota" not in ceph.ceph("osd", "dump"), 200, "room", every=0.2)
    await disk.delete()
    await pool.refresh()
    assert pool.volumes == ()


async def test_full_by_storage(tmp_path: Path) -> None:
    """An upload that fills the cluster's only OSD (its memory's limit) ends with ENOSPC; what was written before counts."""
    with CephBed(tmp_path / "ceph", room=192 * MIB) as bed:
        bed.create_pool("tight")

        def said(word: str) -> bool:
            return word in bed.ceph("health", "detail")

        async def data() -> AsyncIterator[bytes]:
            for _ in range(192):
                yield os.urandom(MIB)
            await asyncio.to_thread(wait_until, lambda: said("osd.0 is full"), 200, "the OSD is full", every=0.2)
            while True:
                yield os.urandom(MIB)

        async with astore.Manager(tmp_path / "state", secrets=secrets_of(bed)) as manager:
            pool = await manager.define(definition_of(bed, "tight"))
            await pool.start()
            disk = await pool.create_volume(VolumeDef("disk", capacity=1024 * MIB))
            with pytest.raises(TransferError, match="disk") as caught:
                await disk.upload(data())
            assert caught.value.errno == errno.ENOSPC
            with pytest.raises(StorageError, match="new") as refused:
                await pool.create_volume(VolumeDef("new", capacity=MIB))
            assert refused.value.errno == errno.ENOSPC
            with pytest.raises(StorageError, match="trim"):
                await disk.delete()
            await disk.wipe("trim")
            await asyncio.to_thread(wait_until, lambda: not said("is full"), 200, "room", every=0.2)
            deadline = time.monotonic() + 200
            while True:
                try:
                    await disk.upload(bytes([7]) * MIB)
                    break
                except TransferError:  # the OSD hears later than the monitor tells
                    assert time.monotonic() < deadline
            await disk.delete()
            await pool.refresh()
            assert pool.volumes == ()
            await pool.stop()
