"""One state folder, several Managers: in this process and in others."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from core_fakes import FakeBackend, counted, eventually, fake, fake_registry, names, run_python

import astore
from astore.events import PoolDefined, PoolStarted, PoolUndefined
from astore.model import PoolState


@pytest.fixture
def backend() -> FakeBackend:
    return FakeBackend()


async def test_what_others_define(manager: astore.Manager, tmp_path: Path) -> None:
    """Definitions that another Manager makes, changes and removes are taken over, with events."""
    async with (
        astore.Manager(tmp_path / "state", registry=fake_registry()) as other,
        manager.events(kinds={PoolDefined, PoolUndefined}) as events,
    ):
        theirs = await other.define(fake("a", "/one"))
        await manager.reload()
        mine = manager.pool("a")
        assert (mine.uuid, mine.definition, mine.autostart) == (theirs.uuid, theirs.definition, False)
        await other.define(fake("a", "/two"))
        await theirs.set_autostart(True)
        await manager.reload()
        await manager.reload()
        assert manager.pool("a") is mine
        assert (mine.definition.target.path, mine.autostart) == ("/two", True)
        with pytest.raises(astore.SourceConflictError):
            await manager.define(fake("b", "/two"))
        await theirs.undefine()
        await manager.reload()
        assert manager.pools() == []
        with pytest.raises(astore.PoolNotFoundError):
            await mine.start()
        told = []
        while (event := events.receive_nowait()) is not None:
            told.append(event)
        assert counted(told) == {"PoolDefined": 2, "PoolUndefined": 1}


async def test_another_pool_of_the_same_name(manager: astore.Manager, tmp_path: Path) -> None:
    """A pool that others undefined and another of its name that they defined are two pools, and told as two."""
    mine = await manager.define(fake("a", "/one"))
    async with (
        astore.Manager(tmp_path / "state", registry=fake_registry()) as other,
        manager.events(kinds={PoolDefined, PoolUndefined}) as events,
    ):
        await other.pool("a").undefine()
        theirs = await other.define(fake("a", "/two"))
        await manager.reload()
        assert manager.pool("a") is not mine
        assert manager.pool("a").uuid == theirs.uuid
        with pytest.raises(astore.PoolNotFoundError):
            await mine.start()
        undefined, defined = events.receive_nowait(), events.receive_nowait()
        assert isinstance(undefined, PoolUndefined)
        assert undefined.uuid == mine.uuid
        assert isinstance(defined, PoolDefined)
        assert defined.uuid == theirs.uuid


async def test_what_others_start_and_stop(manager: astore.Manager, backend: FakeBackend, tmp_path: Path) -> None:
    """Pools that another Manager starts are active here with what it saw, and inactive when it stopped them."""
    backend.show("x")
    async with manager.events(kinds={PoolStarted}) as events:
        async with astore.Manager(tmp_path / "state", registry=fake_registry(backend)) as other:
            theirs = await other.define(fake("a", "/one"))
            await theirs.start()
            await other.create(fake("transient"))
        await manager.reload()
        pool, transient = manager.pool("a"), manager.pool("transient")
        assert (pool.active, pool.persistent, names(pool)) == (True, True, ["x"])
        assert (transient.active, transient.persistent) == (True, False)
        assert events.receive_nowait() is not None
        with pytest.raises(astore.InvalidStateError):
            await pool.start()
        assert (await pool.refresh()).unchanged == 1
        async with astore.Manager(tmp_path / "state", registry=fake_registry(backend)) as other:
            await other.pool("a").stop()
            await other.pool("transient").stop()
        await manager.reload()
        assert (pool.state, pool.volumes) == (PoolState.INACTIVE, ())
        assert manager.pools() == [pool]
        await pool.start()
        await eventually(lambda: len(backend.open_sessions) == 1)


ANOTHER = """
import asyncio, sys, astore
async def main():
    state, work, name, pools = sys.argv[1:]
    async with astore.Manager(state) as manager:
        for n in range(int(pools)):
            path = f"{work}/{name}{n}"
            pool = await manager.define(f"<pool type='dir'><name>{name}{n}</name><target><path>{path}</path></target></pool>")
            await pool.set_autostart(True)
            await pool.start(build=True)
asyncio.run(main())
"""


async def test_two_processes(tmp_path: Path) -> None:
    """Processes that define and start pools in one folder at once lose nothing of each other's."""
    state = tmp_path / "state"
    async with astore.Manager(state) as manager:
        done = await asyncio.gather(
            *(asyncio.to_thread(run_python, ANOTHER, str(state), str(tmp_path), name, "15") for name in "ab")
        )
        assert [(process.returncode, process.stderr) for process in done] == [(0, "")] * 2
        await manager.reload()
        assert {pool.name for pool in manager.pools()} == {f"{name}{n}" for name in "ab" for n in range(15)}
        assert all(pool.active and pool.autostart for pool in manager.pools())
        assert not (await manager.refresh_all()).failed
        for pool in manager.pools():
            await pool.stop()
