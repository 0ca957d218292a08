"""Entering and leaving a Manager: in whatever framework, beside whatever runs, once or again."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import anyio
import pytest
from core_fakes import FakeBackend, eventually, fake, fake_registry, in_use, names, run_python, started, steps
from leaks import LeakCheck

import astore
from astore.model import PoolState


@pytest.fixture
def backend(no_leaks: LeakCheck) -> FakeBackend:
    backend = FakeBackend()
    backend.show("a", "b", "c")
    return backend


@pytest.fixture
def manager(tmp_path: Path, backend: FakeBackend) -> astore.Manager:
    """A Manager that is not entered."""
    return astore.Manager(tmp_path / "state", registry=fake_registry(backend))


async def test_nothing_works_outside(manager: astore.Manager) -> None:
    """Before it is entered, and after it is left, every operation says what to do; what is known can be read."""
    async with manager:
        pool = await started(manager, fake("p"))
    for call in (
        lambda: manager.define(fake("q")),
        lambda: manager.create(fake("q")),
        manager.reload,
        manager.refresh_all,
        manager.start_all,
        lambda: manager.discover("fake"),
        manager.capabilities,
        pool.start,
        pool.stop,
        pool.refresh,
        lambda: pool.refresh("a"),
        pool.build,
        pool.delete,
        pool.undefine,
        lambda: pool.set_autostart(True),
    ):
        with pytest.raises(astore.ManagerClosedError, match="async with"):
            await call()
    with pytest.raises(astore.ManagerClosedError):
        manager.statistics()
    assert manager.pool("p") is pool
    assert (pool.active, names(pool)) == (True, ["a", "b", "c"])
    fresh = astore.Manager(manager.state_dir)
    with pytest.raises(astore.ManagerClosedError):
        await fresh.define(fake("q"))
    assert fresh.pools() == []


async def test_leaving_detaches(manager: astore.Manager, backend: FakeBackend, tmp_path: Path) -> None:
    """Sessions are closed and not stopped; the next Manager, and this one entered again, find the pools active."""
    async with manager:
        pool = await started(manager, fake("p"))
        await manager.create(fake("transient"))
    assert backend.open_sessions == []
    assert in_use(manager) == {}
    assert backend.count("stop") == 0
    async with manager:
        assert manager.pool("p") is pool
        assert (await pool.refresh()).unchanged == 3
    async with astore.Manager(tmp_path / "state", registry=fake_registry(backend)) as other:
        assert {known.name: known.persistent for known in other.pools(active=True)} == {"p": True, "transient": False}
        assert names(other.pool("p")) == ["a", "b", "c"]
        assert other.pool("p").snapshot.generation == pool.snapshot.generation
        assert other.events(since=0).receive_nowait() is None  # what is found on entering did not change
        for known in other.pools():
            await known.stop()
    assert backend.count("stop") == 2


async def test_entered_twice(manager: astore.Manager) -> None:
    """A Manager that is open cannot be entered; one that is closed can be closed again."""
    async with manager:
        with pytest.raises(astore.InvalidStateError, match="open already"):
            await manager.__aenter__()
        await manager.define(fake("p"))
    await manager.aclose()
    await manager.aclose()


async def test_entered_and_left_in_different_tasks(manager: astore.Manager, backend: FakeBackend) -> None:
    """As fixtures and frameworks do it: nothing is bound to the task that entered."""
    await asyncio.create_task(manager.__aenter__())
    pool = await asyncio.create_task(manager.define(fake("p")))
    await asyncio.create_task(pool.start())
    refresh = asyncio.create_task(pool.refresh())
    await steps(1)
    await asyncio.create_task(manager.aclose())
    await asyncio.wait([refresh])
    assert backend.open_sessions == []


async def test_inside_an_exit_stack_and_a_task_group(manager: astore.Manager, backend: FakeBackend) -> None:
    """Entered inside a task group that is cancelled, by a stack that is closed outside of it: closed in order."""
    async with contextlib.AsyncExitStack() as stack:
        async with anyio.create_task_group() as group:
            await stack.enter_async_context(manager)
            pool = await started(manager, fake("p"))
            backend.hold("refresh")
            group.start_soon(pool.refresh)
            await steps(5)
            group.cancel_scope.cancel()
        backend.unhold()
        assert (await pool.refresh()).unchanged == 3
    assert backend.open_sessions == []


async def test_left_by_a_cancellation(manager: astore.Manager, backend: FakeBackend) -> None:
    """A task that is cancelled inside detaches from its pools on its way out."""

    async def body() -> None:
        async with manager:
            await (await manager.define(fake("p"))).start()
            await asyncio.sleep(60)

    with anyio.move_on_after(0.1) as scope:
        await body()
    assert scope.cancelled_caught
    assert backend.open_sessions == []
    task = asyncio.ensure_future(body())
    await steps(200)
    task.cancel()
    await asyncio.wait([task])
    assert backend.open_sessions == []


async def test_left_beside_everything(manager: astore.Manager, backend: FakeBackend) -> None:
    """Starts, refreshes, stops and definitions under way end, one way or the other, and nothing is left open."""
    for rounds in range(0, 30, 2):
        backend.unhold()
        async with manager:
            for name in ("p0", "p1", "p2", "p3"):
                pool = await manager.define(fake(name))
                if pool.active:
                    await pool.stop()
            await manager.pool("p0").start()
            await manager.pool("p1").start()
            tasks = [
                asyncio.ensure_future(call)
                for call in (
                    manager.pool("p0").refresh(),
                    manager.pool("p0").refresh("a"),
                    manager.pool("p1").stop(),
                    manager.pool("p2").start(build=True),
                    manager.define(fake("p4")),
                    manager.create(fake(f"transient{rounds}")),
                    manager.refresh_all(full=True),
                )
            ]
            await steps(rounds)
        done, pending = await asyncio.wait(tasks, timeout=100)
        assert not pending
        for task in done:
            if not task.cancelled() and (error := task.exception()) is not None:
                assert isinstance(error, astore.AstoreError), repr(error)
        await eventually(lambda: backend.open_sessions == [], "the end of all sessions")
        assert in_use(manager) == {}
        async with manager:
            for pool in manager.pools(active=True):
                assert (await pool.refresh()).error is None
                await pool.stop()


async def test_nothing_begins_while_it_is_left(manager: astore.Manager, backend: FakeBackend) -> None:
    """While one pool's session is slow to close, no other pool attaches anew: nobody would close that."""
    async with manager:
        slow, other = [await manager.define(fake(name)) for name in ("slow", "other")]
        await slow.start()
        await other.start()
    async with manager:
        await slow.refresh()
        hold = backend.hold("aclose", "slow")
        leaving = asyncio.ensure_future(manager.aclose())
        await hold.reached()
        with pytest.raises(astore.ManagerClosedError):
            await other.refresh()
        hold.release()
        await leaving
    assert backend.open_sessions == []
    assert in_use(manager) == {}


async def test_closed_by_several(manager: astore.Manager, backend: FakeBackend) -> None:
    """Closing at once, and entering again before the last of them is done, leaves an open Manager that works."""
    await manager.__aenter__()
    pool = await started(manager, fake("p"))
    hold = backend.hold("aclose")
    closing = [asyncio.ensure_future(manager.aclose()) for _ in range(3)]
    await hold.reached()
    hold.release()
    await asyncio.wait(closing, return_when=asyncio.FIRST_COMPLETED)
    if manager._services.lanes is None:
        await manager.__aenter__()
    await asyncio.wait(closing)
    if manager._services.lanes is None:
        await manager.__aenter__()
    assert (await pool.refresh()).unchanged == 3
    await manager.aclose()
    assert backend.open_sessions == []


async def test_a_session_that_never_closes(
    manager: astore.Manager, backend: FakeBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A session whose close hangs holds up nobody for longer than the clean-up may take."""
    monkeypatch.setattr("astore.pools.life.CLEANUP_SECONDS", 0.05)
    async with manager:
        await (await manager.define(fake("p"))).start()
        backend.hold("aclose")
    assert in_use(manager) == {}


async def test_a_state_folder_that_cannot_be(tmp_path: Path, no_leaks: LeakCheck) -> None:
    """A folder that cannot be read is an error of the entering, after which nothing is open."""
    path = tmp_path / "file"
    path.write_text("not a folder")
    manager = astore.Manager(path, registry=fake_registry())
    with pytest.raises(astore.StoreError):
        await manager.__aenter__()
    path.unlink()
    async with manager:
        await manager.define(fake("p"))


async def test_a_broken_snapshot_cache(manager: astore.Manager, tmp_path: Path, backend: FakeBackend) -> None:
    """What was kept of the volumes is a cache: damaged, the pool is active and shows nothing until it is looked at."""
    backend.put("bad", astore.EntryError("bad", "truncated"))
    async with manager:
        await (await manager.define(fake("p"))).start()
    async with astore.Manager(tmp_path / "state", registry=fake_registry(backend)) as other:
        assert other.pool("p").state is PoolState.DEGRADED
    (tmp_path / "state" / "run" / "p.snapshot").write_bytes(b"rubbish")
    async with astore.Manager(tmp_path / "state", registry=fake_registry(backend)) as other:
        pool = other.pool("p")
        assert (pool.state, pool.volumes) == (PoolState.RUNNING, ())
        await pool.refresh()
        assert (pool.state, names(pool)) == (PoolState.DEGRADED, ["a", "b", "c"])


ONE_AFTER_THE_OTHER = """
import asyncio, sys, astore
manager = astore.Manager(sys.argv[1])
async def main(first):
    async with manager:
        if first:
            path = sys.argv[2]
            pool = await manager.define(f"<pool type='dir'><name>p</name><target><path>{path}</path></target></pool>")
            await pool.start()
        print(len((await manager.refresh_all()).pools))
        if not first:
            await manager.pool("p").stop()
asyncio.run(main(True))
asyncio.run(main(False))
"""


def test_in_one_loop_after_another(tmp_path: Path) -> None:
    """One Manager may be entered in several loops, one after the other."""
    done = run_python(ONE_AFTER_THE_OTHER, str(tmp_path / "state"), str(tmp_path))
    assert (done.returncode, done.stdout, done.stderr) == (0, "1\n1\n", "")
