"""Images that are read by opening them, or cannot be cloned: of the old format 1, in a migration, without layering."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import pytest

import astore
from astore.model import VolumeDef
from astore_rbd.images import headers, listing
from tests.rbd.clients import OtherClient, definition_of

if TYPE_CHECKING:
    from beds.ceph import CephBed

pytestmark = pytest.mark.ceph

MIB = 1 << 20
DATA = os.urandom(2 * MIB)


async def read(volume: astore.Volume) -> bytes:
    """All bytes of a volume."""
    async with volume.download() as blocks:
        return b"".join([block async for block in blocks])


async def test_old_format(manager: astore.Manager, ceph: CephBed, monkeypatch: pytest.MonkeyPatch) -> None:
    """An image of format 1, which no namespace can have, is listed, written, read, resized and removed like others."""
    monkeypatch.setenv("RBD_FORCE_ALLOW_V1", "1")
    ceph.create_pool("old")
    ceph.rbd("create", "--image-format", "1", "--size", "3M", "old/old")
    ceph.rbd("create", "--size", "3M", "old/new")
    pool = await manager.define(definition_of(ceph, "old"))
    await pool.start()
    assert (pool.info.errors, [(one.name, one.capacity) for one in pool.volumes]) == (
        0,
        [("new", 3 * MIB), ("old", 3 * MIB)],
    )
    assert not (await pool.refresh()).changed
    old = pool.volume("old")
    await old.upload(DATA)
    assert await read(old) == DATA + bytes(MIB)
    await old.resize(4 * MIB)
    assert json.loads(ceph.rbd("info", "--format=json", "old/old"))["size"] == 4 * MIB
    copy = await pool.copy_volume(old, VolumeDef("copy"))
    assert await read(copy) == DATA + bytes(2 * MIB)
    for volume in (old, copy, pool.volume("new")):
        await volume.delete()
    assert json.loads(ceph.rbd("ls", "--format=json", "old")) == []


async def test_migration(pool: astore.Pool, ceph: CephBed, where: str, other: OtherClient) -> None:
    """An image that is being moved by Ceph is under its new name only, with its bytes, before and after it has moved."""
    other.put("before", DATA)
    await pool.refresh()
    ceph.rbd("migration", "prepare", f"{where}/before", f"{where}/after")
    outcome = await pool.refresh()
    assert (outcome.added, outcome.removed, outcome.errors) == (("after",), ("before",), ())
    assert "migrating" in pool.volume("after").info.features
    assert await read(pool.volume("after")) == DATA
    ceph.rbd("migration", "execute", "--no-progress", f"{where}/after")
    ceph.rbd("migration", "commit", "--no-progress", f"{where}/after")
    assert (await pool.refresh()).errors == ()
    assert "migrating" not in pool.volume("after").info.features
    assert await read(pool.volume("after")) == DATA
    await pool.volume("after").delete()
    assert other.names() == set()


async def test_what_cannot_be_cloned_is_copied(pool: astore.Pool, ceph: CephBed, where: str) -> None:
    """A copy of an image without layering has the same bytes and no parent, and leaves no snapshot."""
    ceph.rbd("create", "--size", "4M", "--image-feature", "exclusive-lock", f"{where}/alone")
    await pool.refresh()
    source = pool.volume("alone")
    await source.upload(DATA)
    copy = await pool.copy_volume(source, VolumeDef("copy", capacity=5 * MIB))
    assert await read(copy) == DATA + bytes(3 * MIB)
    assert copy.info.references == ()
    assert json.loads(ceph.rbd("snap", "ls", "--format=json", f"{where}/alone")) == []
    await source.delete()


def test_trash_with_long_names(ceph: CephBed, where: str, other: OtherClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """Images in the trash are found one by one where there is no room for many at once."""
    other.put_all({f"{'x' * 60}{number}": b"" for number in range(5)})
    for name in other.names():
        ceph.rbd("trash", "mv", f"{where}/{name}")
    listed = {one["id"] for one in json.loads(ceph.rbd("trash", "ls", "--format=json", where))}
    assert len(listed) == 5
    assert listing._in_trash(other.cluster) == listed
    monkeypatch.setattr(headers, "_TRASHED", 200)
    assert listing._in_trash(other.cluster) == listed
