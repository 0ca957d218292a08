"""Cancelled at every step: starts, stops, builds, refreshes and Managers, and then what is left is counted."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import anyio
import pytest
from core_fakes import FakeBackend, cancel_after, cancelling, eventually, fake, fake_registry, in_use, names, steps
from leaks import LeakCheck

import astore
from astore.model import PoolState

STEPS = range(40)


@pytest.fixture
def backend(no_leaks: LeakCheck, backend: FakeBackend) -> FakeBackend:
    """Gone when the leaks are looked for."""
    return backend


@pytest.fixture
async def pool(manager: astore.Manager) -> astore.Pool:
    """A defined pool, not started."""
    return await manager.define(fake("pool"))


async def check_inactive(manager: astore.Manager, pool: astore.Pool, backend: FakeBackend) -> None:
    """The pool is inactive and nothing of it is left."""
    assert pool.state is PoolState.INACTIVE
    assert pool.volumes == ()
    assert backend.open_sessions == []
    assert in_use(manager) == {}
    assert not pool.parts.lifecycle.busy
    assert not manager._keeper.lock.locked()
    assert not list(manager.state_dir.glob("run/*"))


async def check_active(manager: astore.Manager, pool: astore.Pool, backend: FakeBackend) -> None:
    """The pool is active and works."""
    assert pool.state is PoolState.RUNNING
    assert len(backend.open_sessions) == 1
    assert in_use(manager) == {"fake": 1}
    assert (await pool.refresh()).unchanged == 3


@pytest.mark.parametrize("build", [False, True])
async def test_start(manager: astore.Manager, pool: astore.Pool, backend: FakeBackend, build: bool) -> None:
    """A start that is cancelled, after however many steps, did not happen; one that was not, did."""
    happened = set()
    for count in STEPS:
        cancelled, _ = await cancel_after(count, lambda: pool.start(build))
        happened.add(cancelled)
        if cancelled:
            await check_inactive(manager, pool, backend)
        else:
            await check_active(manager, pool, backend)
            await pool.stop()
    assert True in happened


@pytest.mark.parametrize("operation", ["build", "open", "refresh"])
@pytest.mark.parametrize("again", [1, 3])
async def test_start_where_it_waits(
    manager: astore.Manager, pool: astore.Pool, backend: FakeBackend, operation: str, again: int
) -> None:
    """Cancelled once or several times while it waits for the storage, a start undoes what it did."""
    hold = backend.hold(operation)
    task = asyncio.ensure_future(pool.start(build=True))
    await hold.reached()
    for _ in range(again):
        task.cancel()
        await steps(1)
    with pytest.raises(asyncio.CancelledError):
        await task
    await check_inactive(manager, pool, backend)


async def test_the_undoing_of_a_start_is_not_cut_short(
    manager: astore.Manager, pool: astore.Pool, backend: FakeBackend
) -> None:
    """A start that is being undone, and cancelled again meanwhile, is undone all the same."""
    hold = backend.hold("refresh")
    stop, aclose = backend.hold("stop"), backend.hold("aclose")
    task = asyncio.ensure_future(pool.start())
    await hold.reached()
    task.cancel()
    for clean_up in (stop, aclose):
        await clean_up.reached()
        task.cancel()
        await steps(3)
        assert not task.done()
        clean_up.release()
    with pytest.raises(asyncio.CancelledError):
        await task
    await check_inactive(manager, pool, backend)


async def test_stop(manager: astore.Manager, pool: astore.Pool, backend: FakeBackend) -> None:
    """A stop that is cancelled leaves an active pool that works, or an inactive one that can be started."""
    states = set()
    for force in (False, True):
        for count in STEPS:
            await pool.start()
            await cancel_after(count, lambda force=force: pool.stop(force))  # type: ignore[misc]
            states.add(pool.state)
            if pool.active:
                await check_active(manager, pool, backend)
                await pool.stop()
            await check_inactive(manager, pool, backend)
    assert states == {PoolState.RUNNING, PoolState.INACTIVE}


async def test_stop_while_the_storage_is_let_go(
    manager: astore.Manager, pool: astore.Pool, backend: FakeBackend
) -> None:
    """Cancelled while the storage is being let go, the pool stays; cancelled after that, it is stopped to the end."""
    await pool.start()
    hold = backend.hold("stop")
    task = asyncio.ensure_future(pool.stop())
    await hold.reached()
    await cancelling(task)
    backend.unhold()
    await check_active(manager, pool, backend)
    hold = backend.hold("aclose")
    task = asyncio.ensure_future(pool.stop())
    await hold.reached()
    task.cancel()
    await steps(3)
    hold.release()
    with pytest.raises(asyncio.CancelledError):
        await task
    await check_inactive(manager, pool, backend)


async def test_build_and_delete(manager: astore.Manager, pool: astore.Pool, backend: FakeBackend) -> None:
    """Cancelled, they leave an inactive pool and no lane."""
    calls: tuple[Callable[[], Awaitable[object]], ...] = (pool.build, pool.delete)
    for call in calls:
        for count in range(8):
            await cancel_after(count, call)
            await check_inactive(manager, pool, backend)
    assert len(manager.statistics().lanes.lanes) == 1


async def test_refreshes(manager: astore.Manager, pool: astore.Pool, backend: FakeBackend) -> None:
    """Refreshes of all kinds, cancelled at whatever step, leave the pool as it was and no task."""
    await pool.start()
    before = asyncio.all_tasks()
    calls: tuple[Callable[[], Awaitable[object]], ...] = (
        pool.refresh,
        lambda: pool.refresh(full=True, timeout=5),
        lambda: pool.refresh("a"),
        lambda: asyncio.gather(pool.refresh(), pool.refresh(full=True), pool.refresh("b")),
        lambda: manager.refresh_all(timeout=5),
    )
    for call in calls:
        for count in range(12):
            await cancel_after(count, call)
            await eventually(lambda: asyncio.all_tasks() == before, "the end of all tasks")
            assert not pool.parts.refresher.running
            assert (pool.state, names(pool)) == (PoolState.RUNNING, ["a", "b", "c"])
    await check_active(manager, pool, backend)


async def test_attaching(no_leaks: LeakCheck, tmp_path: Path, backend: FakeBackend) -> None:
    """A first use of what an earlier Manager started, cancelled at whatever step, attaches or does not."""
    async with astore.Manager(tmp_path / "state", registry=fake_registry(backend)) as manager:
        await (await manager.define(fake("pool"))).start()
    for count in range(12):
        async with astore.Manager(tmp_path / "state", registry=fake_registry(backend)) as manager:
            pool = manager.pool("pool")
            await cancel_after(count, pool.refresh)
            assert (
                len(backend.open_sessions)
                == (pool.parts.record.life.session is not None)
                == in_use(manager).get("fake", 0)
            )
            await pool.refresh()
            await check_active(manager, pool, backend)
        assert backend.open_sessions == []


async def test_create(manager: astore.Manager, backend: FakeBackend) -> None:
    """A transient pool whose creation was cancelled is not there."""
    for count in STEPS:
        cancelled, pool = await cancel_after(count, lambda: manager.create(fake("transient")))
        if cancelled:
            assert manager.pools() == []
        else:
            assert pool is not None
            await pool.stop()
        assert backend.open_sessions == []
        assert in_use(manager) == {}
        assert not list(manager.state_dir.glob("run/*"))


async def test_entering_and_leaving(no_leaks: LeakCheck, tmp_path: Path, backend: FakeBackend) -> None:
    """A Manager whose entering or leaving is cancelled can be entered again; what it left is detached from."""
    manager = astore.Manager(tmp_path / "state", registry=fake_registry(backend))
    async with manager:
        await (await manager.define(fake("pool"))).start()
    for count in range(12):
        cancelled, _ = await cancel_after(count, manager.__aenter__)
        if not cancelled:
            await manager.aclose()
        async with manager:
            await manager.pool("pool").refresh()
        await manager.__aenter__()
        await manager.pool("pool").refresh()
        await cancel_after(count, manager.aclose)
        await manager.aclose()
        assert backend.open_sessions == []
        assert in_use(manager) == {}
        with pytest.raises(astore.ManagerClosedError):
            await manager.pool("pool").refresh()


@pytest.mark.parametrize("how", ["cancel scope", "task group", "timeout"])
async def test_frameworks_that_cancel(
    manager: astore.Manager, pool: astore.Pool, backend: FakeBackend, how: str
) -> None:
    """anyio's scopes (which cancel again and again) and asyncio's deadlines end a start in order."""
    hold = backend.hold("refresh")
    if how == "cancel scope":
        with anyio.move_on_after(0.02) as scope:
            await pool.start()
        assert scope.cancelled_caught
    elif how == "task group":
        async with anyio.create_task_group() as group:
            group.start_soon(pool.start)
            await hold.reached()
            group.cancel_scope.cancel()
    else:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.02):
                await pool.start()
    await check_inactive(manager, pool, backend)
    backend.unhold()
    await pool.start()
    await check_active(manager, pool, backend)
