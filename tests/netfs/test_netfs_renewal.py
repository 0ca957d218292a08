"""A Gluster volume that is deleted and made again under its name while a netfs pool has it mounted."""

from __future__ import annotations

import asyncio
import errno
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from core_fakes import eventually
from netfs.looking import Open, clients, ids, target

from astore.backend import Context
from astore.errors import StorageError
from astore.model import PoolDef, Snapshot
from astore_netfs.mounting import renewal
from astore_netfs.mounting.session import NetfsSession
from beds.gluster import GlusterBed

pytestmark = [pytest.mark.root, pytest.mark.gluster, pytest.mark.fuse]


@pytest.fixture(autouse=True)
def _trials_leave_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trial mounts have their folders in the test's own one."""
    (tmp_path / "trials").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "trials"))


def make_again(gluster: GlusterBed, volume: str) -> None:
    """Make a deleted volume again, with one file."""
    gluster.create_volume(volume)
    (gluster.mount(volume) / "new.img").write_bytes(b"x")


async def test_a_refresh_follows(
    definition: PoolDef, start: Open, gluster: GlusterBed, new_volume: str, tmp_path: Path
) -> None:
    """The next refresh mounts the new volume; nothing of the old mount stays, nor of the attempt."""
    session = await start()
    (target(definition) / "old.img").write_bytes(b"x")
    before = await session.refresh(Snapshot.EMPTY)
    await asyncio.to_thread(gluster.delete_volume, new_volume)
    await asyncio.to_thread(make_again, gluster, new_volume)
    after = await session.refresh(before)
    assert list(after.by_name) == ["new.img"]
    assert len(ids(definition)) == 1
    assert os.listdir(tmp_path / "trials") == []
    await eventually(lambda: clients() == 1, "the end of the old client")
    assert await session.refresh_volume("new.img") is not None


async def test_a_start_follows(
    definition: PoolDef, start: Open, gluster: GlusterBed, new_volume: str, make_context: Callable[..., Context]
) -> None:
    """So does a start, of a process that finds the old mount."""
    await start()
    await asyncio.to_thread(gluster.delete_volume, new_volume)
    await asyncio.to_thread(make_again, gluster, new_volume)
    session = await start(make_context())
    assert list((await session.refresh(Snapshot.EMPTY)).by_name) == ["new.img"]
    assert len(ids(definition)) == 1


async def test_nothing_to_follow(
    definition: PoolDef,
    start: Open,
    gluster: GlusterBed,
    new_volume: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """While there is no volume the mount stays, the error names it, and one attempt in ten seconds is made."""
    session = await start()
    mounted = ids(definition)
    await asyncio.to_thread(gluster.delete_volume, new_volume)
    await refused(session, new_volume)
    assert (ids(definition), os.listdir(tmp_path / "trials")) == (mounted, [])
    assert renewal.PAUSE == 10
    monkeypatch.setattr(renewal, "PAUSE", 600)  # what follows may take longer than ten seconds
    await asyncio.to_thread(make_again, gluster, new_volume)
    await refused(session, new_volume)
    assert ids(definition) == mounted, "it has just tried"
    monkeypatch.setattr(renewal, "PAUSE", 0)
    assert list((await session.refresh(Snapshot.EMPTY)).by_name) == ["new.img"]


async def test_bricks_that_come_back(definition: PoolDef, start: Open, gluster: GlusterBed, new_volume: str) -> None:
    """A client whose bricks were only restarted is given the time to see it, and its mount stays."""
    session = await start()
    (target(definition) / "kept").write_bytes(b"")
    mounted = ids(definition)
    await asyncio.to_thread(gluster.kill_brick, new_volume)
    await asyncio.to_thread(lambda: gluster.start_volume(new_volume, force=True))
    assert list((await session.refresh(Snapshot.EMPTY)).by_name) == ["kept"]
    assert ids(definition) == mounted


async def refused(session: NetfsSession, volume: str) -> None:
    """Refresh a pool whose volume is not there."""
    with pytest.raises(StorageError, match=rf"no server of .*{volume} answers: Transport endpoint") as caught:
        await session.refresh(Snapshot.EMPTY)
    assert caught.value.errno == errno.ENOTCONN
