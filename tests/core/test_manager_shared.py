"""One state folder, several Managers: in this process and in others."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest
from core_fakes import (
    FakeBackend,
    cancelling,
    counted,
    eventually,
    fake,
    fake_registry,
    folder_locked,
    names,
    run_python,
    started,
)

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
            await started(other, fake("a", "/one"))
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


async def test_defined_by_two_at_once(manager: astore.Manager, tmp_path: Path) -> None:
    """Two processes at the same moment: of one name, the later defines the earlier's pool anew; of one source, it is told."""
    async with astore.Manager(tmp_path / "state", registry=fake_registry(FakeBackend())) as other:
        for number in range(10):
            one, two = await asyncio.gather(
                manager.define(fake(f"a{number}", f"/a{number}")), other.define(fake(f"a{number}", f"/b{number}"))
            )
            assert one.uuid == two.uuid
            found = await asyncio.gather(
                manager.define(fake(f"c{number}", f"/c{number}")),
                other.define(fake(f"d{number}", f"/c{number}")),
                return_exceptions=True,
            )
            (pool,) = (one for one in found if isinstance(one, astore.Pool))
            (error,) = (one for one in found if isinstance(one, Exception))
            assert isinstance(error, astore.SourceConflictError)
            assert error.other == pool.name
        await manager.reload()
        await other.reload()
        assert len(manager.pools()) == 20
        assert [pool.definition for pool in manager.pools()] == [pool.definition for pool in other.pools()]


@pytest.mark.parametrize("change", ["define", "redefine", "undefine", "autostart"])
async def test_given_up_while_the_folder_is_locked(manager: astore.Manager, tmp_path: Path, change: str) -> None:
    """Cancelled while another process holds the folder: it is not done later, when nobody expects it."""
    old = await manager.define(fake("old", "/old"))
    before = {path: path.read_bytes() for path in (tmp_path / "state" / "pools").iterdir()}
    with folder_locked(tmp_path / "state"):
        calls = {
            "define": lambda: manager.define(fake("new", "/x")),
            "redefine": lambda: manager.define(fake("old", "/x")),
            "undefine": old.undefine,
            "autostart": lambda: old.set_autostart(True),
        }
        changing = asyncio.ensure_future(calls[change]())
        await asyncio.sleep(0.1)
        await cancelling(changing)
    await manager.define(fake("other", "/x"))
    await manager.reload()
    assert [(pool.name, pool.definition.target.path) for pool in manager.pools()] == [("old", "/old"), ("other", "/x")]
    for path, content in before.items():
        assert path.read_bytes() == content
    assert not old.autostart


async def test_what_others_run(manager: astore.Manager, backend: FakeBackend, tmp_path: Path) -> None:
    """A pool that another process has started since is not started, deleted, undefined or built; stopping it is all right."""
    pool = await manager.define(fake("pool"))
    async with astore.Manager(tmp_path / "state", registry=fake_registry(FakeBackend())) as other:
        theirs = other.pool("pool")
        await theirs.start()
        for call in (pool.start, pool.delete, pool.undefine, pool.build):
            with pytest.raises(astore.InvalidStateError):
                await call()
            assert pool.active
        await pool.stop()
        await other.reload()
        assert not theirs.active
        await theirs.undefine()
        for call in (pool.start, pool.delete, pool.undefine, pool.build):
            with pytest.raises(astore.PoolNotFoundError):
                await call()


async def test_inaccessible_for_the_next_process_too(tmp_path: Path) -> None:
    """Why and since when a pool is inaccessible outlives the process that found it out."""
    backend = FakeBackend()
    backend.show("a")
    async with astore.Manager(tmp_path / "state", registry=fake_registry(backend)) as manager:
        pool = await started(manager, fake("pool"))
        backend.fail("refresh", OSError(113, "No route to host"))
        with pytest.raises(astore.PoolInaccessibleError):
            await pool.refresh()
        before = pool.info
    async with astore.Manager(tmp_path / "state", registry=fake_registry(backend)) as manager:
        pool = manager.pool("pool")
        assert (pool.info.state, pool.info.since, pool.info.error) == (before.state, before.since, before.error)
        assert names(pool) == ["a"]
        backend.fail("refresh", None)
        await pool.refresh()
    async with astore.Manager(tmp_path / "state", registry=fake_registry(backend)) as manager:
        assert (manager.pool("pool").state, manager.pool("pool").error) == (astore.PoolState.RUNNING, None)


async def test_an_editor_at_work(manager: astore.Manager, tmp_path: Path) -> None:
    """A definition that is changed in its place shows at the next reload."""
    pool = await manager.define(fake("pool", "/a/b"))
    path = tmp_path / "state" / "pools" / "pool.xml"
    path.write_text(path.read_text().replace("/a/b", "/c/d"))
    await manager.reload()
    assert pool.definition.target.path == "/c/d"


async def test_hung_pools_that_others_stopped(
    manager: astore.Manager, backend: FakeBackend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many sessions do not close when others have stopped their pools: they are waited for at the same time."""
    pools = [await manager.define(fake(f"p{number}", f"/p{number}")) for number in range(6)]
    for pool in pools:
        await pool.start()
    async with astore.Manager(tmp_path / "state", registry=fake_registry(FakeBackend())) as other:
        for pool in other.pools():
            await pool.stop()
    waiting, most = 0, 0

    async def hang(_: Any) -> None:
        nonlocal waiting, most
        waiting += 1
        most = max(most, waiting)
        try:
            await asyncio.Event().wait()
        finally:
            waiting -= 1

    monkeypatch.setattr(backend.session_class, "aclose", hang)
    async with asyncio.timeout(100):
        await manager.reload()
    assert most == 6
    assert manager.pools(active=True) == []


async def test_a_state_folder_that_cannot_be_written(manager: astore.Manager, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stop that could not be noted is refused before anything is let go."""
    pool = await started(manager, fake("pool"))
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(astore.StoreError, match=r"pool\.run: Permission denied"):
        await pool.stop()
    assert pool.active
    monkeypatch.undo()
    await pool.stop()
