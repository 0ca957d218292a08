"""What plugins answer that is none: an error of that pool alone, and all goes on."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from core_fakes import FakeBackend, cancelling, eventually, fake, fake_registry, in_use, names, started, volume

import astore
from astore.backend import PoolSession
from astore.model import PoolState, Snapshot


async def cancelled(*_: Any, **__: Any) -> Any:
    """As by a plugin that awaits a task of its own which was cancelled."""
    raise asyncio.CancelledError


def answers(answer: Any) -> Callable[..., Any]:
    """A coroutine function that returns this."""

    async def call(*_: Any, **__: Any) -> Any:
        return answer

    return call


anything: Any = Snapshot
BAD_SNAPSHOTS = {
    "none": None,
    "errors of text": anything({}, errors=("text",)),
    "no errors": anything({}, errors=None),
    "records of text": anything({"a": "text"}),
}


@pytest.mark.parametrize("what", BAD_SNAPSHOTS)
async def test_snapshots(
    manager: astore.Manager, backend: FakeBackend, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A snapshot that is none makes its pool inaccessible; the last good one stays, and the others are refreshed."""
    pools = [await manager.define(fake(name)) for name in ("bad", "good", "other")]
    for pool in pools:
        await pool.start()
    bad = pools[0]
    before = bad.snapshot
    assert bad.parts.record.life.session is not None
    monkeypatch.setattr(bad.parts.record.life.session, "refresh", answers(BAD_SNAPSHOTS[what]))
    report = await manager.refresh_all()
    assert [(one.pool, one.error is None) for one in report.pools] == [("bad", False), ("good", True), ("other", True)]
    assert (bad.state, bad.snapshot) == (PoolState.INACCESSIBLE, before)
    await manager.aclose()
    assert backend.open_sessions == []


@pytest.mark.parametrize("answer", [answers(None), cancelled], ids=["none", "cancelled"])
async def test_sessions(
    manager: astore.Manager, backend: FakeBackend, monkeypatch: pytest.MonkeyPatch, answer: Callable[..., Any]
) -> None:
    """A session that is none, or was cancelled: told of that pool, and the next ones are started."""
    for name in ("a", "bad", "c", "d"):
        await manager.define(fake(name))
    real = backend.open

    async def open_(definition: Any, context: Any) -> PoolSession:
        session: PoolSession = await (answer if context.name == "bad" else real)(definition, context)
        return session

    monkeypatch.setattr(backend, "open", open_)
    outcomes = await manager.start_all(False, limit=1)
    assert {name: type(error) for name, error in outcomes.items() if error is not None} == {
        "bad": astore.PoolInaccessibleError
    }
    assert [pool.name for pool in manager.pools(active=True)] == ["a", "c", "d"]
    assert in_use(manager) == {"fake": 3}


async def test_cancelled_refresh(pool: astore.Pool, backend: FakeBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    """A refresh that is cancelled inside fails, and is no stop."""
    monkeypatch.setattr(pool.parts.record.life.session, "refresh", cancelled)
    with pytest.raises(astore.PoolInaccessibleError, match="a task of its own was cancelled"):
        await pool.refresh()
    assert pool.state is PoolState.INACCESSIBLE


async def test_definitions(manager: astore.Manager, backend: FakeBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    """A backend that cannot say whether a definition is good, or what its source is."""
    monkeypatch.setattr(backend, "check", lambda _: None)
    with pytest.raises(astore.BackendError, match=r"cannot check pool 'a'.*check\(\) returned None"):
        await manager.define(fake("a"))
    monkeypatch.undo()
    monkeypatch.setattr(backend, "source_key", {}.pop)
    with pytest.raises(astore.BackendError, match="cannot tell the source of pool 'a': KeyError"):
        await manager.define(fake("a"))
    assert manager.pools() == []


async def test_an_old_answer_is_not_the_new_lifes(manager: astore.Manager, backend: FakeBackend) -> None:
    """What a session of an earlier life finds out about a volume is not shown in the next one."""
    pool = await started(manager, fake("pool"))
    backend.put("ghost", volume("ghost"))
    hold = backend.hold("refresh_volume")
    late = asyncio.ensure_future(pool.refresh("ghost"))
    await hold.reached()
    await pool.stop(force=True)
    backend.show("a")
    await pool.start()
    hold.release()
    with pytest.raises(astore.InvalidStateError, match="stopped meanwhile"):
        await late
    assert "ghost" not in names(pool)


async def test_a_timeout_of_an_earlier_life(
    pool: astore.Pool, backend: FakeBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A refresh that timed out before the pool was stopped says nothing of the pool that was started since."""

    async def slow_to_give_up(*_: Any, **__: Any) -> Any:
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0.3)

    monkeypatch.setattr(pool.parts.record.life.session, "refresh", slow_to_give_up)
    late = asyncio.ensure_future(pool.refresh(timeout=0.05))
    await asyncio.sleep(0.15)
    await pool.stop(force=True)
    await pool.start(refresh=False)
    with pytest.raises(TimeoutError):
        await late
    assert pool.state is PoolState.RUNNING


async def test_a_refresh_that_cannot_be_cancelled(
    pool: astore.Pool, backend: FakeBackend, impatient: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever waits for it is told of the stop; that the backend goes on is its own affair."""
    going_on, begun = asyncio.Event(), asyncio.Event()

    async def stubborn(*_: Any, **__: Any) -> Snapshot:
        begun.set()
        while not going_on.is_set():
            try:
                await going_on.wait()
            except asyncio.CancelledError:
                continue
        return Snapshot({})

    monkeypatch.setattr(pool.parts.record.life.session, "refresh", stubborn)
    waiting = asyncio.ensure_future(pool.refresh())
    await begun.wait()
    await pool.stop(force=True)
    with pytest.raises(astore.InvalidStateError, match="given up"):
        await asyncio.wait_for(waiting, 60)
    going_on.set()


@pytest.mark.parametrize("how", ["hangs", "fails"])
async def test_closing_what_came_too_late(tmp_path: Path, backend: FakeBackend, impatient: None, how: str) -> None:
    """A session that nobody takes any more, and that cannot be closed: told as a stop, soon, and counted as let go of."""
    async with astore.Manager(tmp_path / "state", registry=fake_registry(backend)) as manager:
        await (await manager.define(fake("pool"))).start()
    async with astore.Manager(tmp_path / "state", registry=fake_registry(backend)) as manager:
        pool = manager.pool("pool")
        hold = backend.hold("open")
        late = asyncio.ensure_future(pool.refresh())
        await hold.reached()
        await pool.stop(force=True)
        if how == "fails":
            backend.fail("aclose", OSError(5, "no"))
        else:
            backend.hold("aclose")
        hold.release()
        with pytest.raises(astore.InvalidStateError):
            await asyncio.wait_for(late, 60)
        await eventually(lambda: in_use(manager) == {})
        backend.unhold()


@pytest.mark.parametrize("again", [False, True], ids=["closed", "opened again"])
async def test_a_start_beside_the_end_of_the_manager(
    manager: astore.Manager, backend: FakeBackend, monkeypatch: pytest.MonkeyPatch, again: bool
) -> None:
    """A start that comes to its end when the Manager is closed, and perhaps open again, starts nothing."""
    pool = await manager.define(fake("pool"))
    hold = backend.hold("open")
    starting = asyncio.ensure_future(pool.start(refresh=False))
    await hold.reached()
    await manager.aclose()
    if again:
        await manager.__aenter__()
    hold.release()
    with pytest.raises(astore.ManagerClosedError):
        await starting
    assert backend.open_sessions == []
    assert pool.state is PoolState.INACTIVE


async def test_clean_ups_that_are_cancelled(manager: astore.Manager, backend: FakeBackend) -> None:
    """A session whose end is cancelled inside, or fails before it is awaited: the pool is stopped all the same."""
    for operation in ("stop", "aclose"):
        pool = await started(manager, fake("pool"))
        backend.fail(operation, asyncio.CancelledError())
        if operation == "stop":
            with pytest.raises(astore.PoolInaccessibleError, match="a task of its own was cancelled"):
                await pool.stop()
            await pool.stop(force=True)
        else:
            await pool.stop()
        backend.fail(operation, None)
        assert (pool.state, in_use(manager)) == (PoolState.INACTIVE, {})
        await manager.define(fake("other", "/other"))
        assert manager.pools(active=True) == []


async def test_a_start_that_cannot_be_undone(
    manager: astore.Manager, backend: FakeBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A start that fails at its end, and a session whose stop is no coroutine and fails: what is told is the start's error."""
    pool = await manager.define(fake("pool"))
    begin = manager._keeper._store.begin_run

    async def begin_half(*args: Any, **options: Any) -> None:
        await begin(*args, **options)
        raise astore.StoreError("the disk is full", errno=28)

    def stop(_: Any) -> None:
        raise OSError(5, "no")

    with monkeypatch.context() as failing:
        failing.setattr(manager._keeper._store, "begin_run", begin_half)
        failing.setattr(backend.session_class, "stop", stop)
        with pytest.raises(astore.StoreError, match="the disk is full"):
            await pool.start()
    assert (backend.open_sessions, in_use(manager)) == ([], {})
    assert not list(manager.state_dir.glob("run/*"))


@pytest.mark.parametrize("answer", ["text", volume("another")], ids=["no record", "another's"])
async def test_records(pool: astore.Pool, backend: FakeBackend, monkeypatch: pytest.MonkeyPatch, answer: Any) -> None:
    """What is no record of the volume that was asked for is an error, and the volume stays as it was."""
    monkeypatch.setattr(pool.parts.record.life.session, "refresh_volume", answers(answer))
    with pytest.raises(astore.PoolInaccessibleError, match="TypeError: it returned"):
        await pool.refresh("a")
    assert names(pool) == ["a", "b", "c"]


async def test_a_stop_that_is_given_up(pool: astore.Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever waits for a refresh is told of the stop, also if that was cancelled while it waited for the backend."""
    going_on, begun, given_up = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def stubborn(*_: Any, **__: Any) -> Snapshot:
        begun.set()
        while not going_on.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await going_on.wait()
            given_up.set()
        return Snapshot({})

    monkeypatch.setattr(pool.parts.record.life.session, "refresh", stubborn)
    waiting = asyncio.ensure_future(pool.refresh())
    await begun.wait()
    stopping = asyncio.ensure_future(pool.stop())
    await given_up.wait()
    await cancelling(stopping)
    with pytest.raises(astore.InvalidStateError, match="given up"):
        await asyncio.wait_for(waiting, 60)
    going_on.set()
    await pool.stop()
