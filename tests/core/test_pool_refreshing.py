"""Refreshes: shared, incremental, beside each other, beside stops, and with deadlines. On a fake backend."""

from __future__ import annotations

import asyncio
import logging
import threading
import time

import anyio
import pytest
from core_fakes import FakeBackend, FakeSession, fake, names, started, steps, volume

import astore
from astore.backend import PoolSession
from astore.model import EntryError, PoolState
from astore.model.snapshot import MOST_LATE
from astore.pools import record


async def test_callers_share_one_refresh(pool: astore.Pool, backend: FakeBackend) -> None:
    """Who comes while a refresh runs shares it and its outcome; who comes after it gets another."""
    hold = backend.hold("refresh")
    callers = [asyncio.ensure_future(pool.refresh()) for _ in range(10)]
    await hold.reached()
    backend.show("a", "b")
    late = asyncio.ensure_future(pool.refresh())
    await steps(5)
    assert not any(caller.done() for caller in callers)
    hold.release()
    outcomes = await asyncio.gather(*callers, late)
    assert all(outcome is outcomes[0] for outcome in outcomes)
    assert outcomes[0].unchanged == 3
    assert backend.count("refresh") == 2
    assert (await pool.refresh()).removed == ("c",)


async def test_reads_never_wait(pool: astore.Pool, backend: FakeBackend) -> None:
    """What a pool shows is there while a refresh hangs, and it is the last snapshot, whole."""
    hold = backend.hold("refresh")
    before = pool.snapshot
    refresh = asyncio.ensure_future(pool.refresh())
    await hold.reached()
    assert pool.snapshot is before
    assert pool.volumes is pool.volumes
    assert (pool.info.volumes, pool.info.capacity, pool.info.allocation, pool.info.available) == (3, 100, 40, 60)
    assert (pool.state, pool.error, pool.volume("a").info.name) == (PoolState.RUNNING, None, "a")
    hold.release()
    await refresh
    assert pool.snapshot is not before
    assert (pool.snapshot.generation, before.generation) == (2, 1)


async def test_what_says_nothing_about_storage(pool: astore.Pool, backend: FakeBackend) -> None:
    """A refresh that fails because the Manager is being closed leaves the pool's state as it is."""
    backend.fail("refresh", astore.ManagerClosedError("the Manager is not open"))
    with pytest.raises(astore.ManagerClosedError):
        await pool.refresh()
    assert pool.state is PoolState.RUNNING


async def test_volumes_that_come_and_go_leave_nothing(
    pool: astore.Pool, backend: FakeBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many volumes are made and deleted between two refreshes of the whole pool, little is kept of them."""
    monkeypatch.setattr(record, "MOST_RECENT", 100)
    for number in range(300):
        name = f"passing{number}"
        backend.show("a", name)
        await pool.refresh(name)
        backend.show("a")
        await pool.refresh(name)
    assert pool.parts.record.snapshot.get("passing299") is None
    assert len(pool.parts.record.last_seen.recent) <= 100
    assert sum(len(layer) for layer in pool.snapshot.layers[1:]) <= MOST_LATE


async def test_a_clock_that_is_set_back(
    pool: astore.Pool, backend: FakeBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was seen before the clock was set back does not count as newer than the refresh after that."""
    now = time.time()
    backend.show("a", "b", "gone")
    await pool.refresh("gone")
    backend.show("a", "b")
    monkeypatch.setattr(time, "time", lambda: now - 3600)
    await pool.refresh()
    assert pool.parts.record.last_seen.recent == {}


async def test_one_callers_cancellation_is_that_callers(pool: astore.Pool, backend: FakeBackend) -> None:
    """Whoever leaves, first, last or most of them: those who stay have their outcome."""
    for leaving in ([0], [1], [2], [0, 1], [1, 2], [0, 2]):
        hold = backend.hold("refresh")
        callers = [asyncio.ensure_future(pool.refresh()) for _ in range(3)]
        await hold.reached()
        for index in leaving:
            callers[index].cancel()
        await steps(5)
        hold.release()
        outcomes = await asyncio.gather(*callers, return_exceptions=True)
        for index, outcome in enumerate(outcomes):
            assert isinstance(outcome, asyncio.CancelledError if index in leaving else astore.RefreshOutcome)
        backend.unhold()


async def test_the_last_to_leave_takes_it_along(pool: astore.Pool, backend: FakeBackend) -> None:
    """A refresh that nobody waits for any more ends, and the pool stays as it was."""
    hold = backend.hold("refresh")
    before = pool.snapshot
    callers = [asyncio.ensure_future(pool.refresh()) for _ in range(3)]
    await hold.reached()
    for caller in callers:
        caller.cancel()
    await asyncio.wait(callers)
    assert [task for task in asyncio.all_tasks() if "refresh" in task.get_name()] == []
    assert (pool.snapshot, pool.state) == (before, PoolState.RUNNING)
    hold.release()
    assert (await pool.refresh()).unchanged == 3


@pytest.mark.parametrize("kind", ["asyncio.timeout", "anyio", "wait_for", "task group"])
async def test_inside_others_deadlines(pool: astore.Pool, backend: FakeBackend, kind: str) -> None:
    """Deadlines and groups of asyncio's and anyio's around a refresh end it, as what they are."""
    backend.hold("refresh")
    if kind == "asyncio.timeout":
        with pytest.raises(TimeoutError) as caught:
            async with asyncio.timeout(0.02):
                await pool.refresh()
        assert not isinstance(caught.value, astore.AstoreError)
    elif kind == "anyio":
        with anyio.move_on_after(0.02) as scope:
            await pool.refresh()
        assert scope.cancelled_caught
    elif kind == "wait_for":
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(pool.refresh(), 0.02)
    else:
        caught_in_group = []
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(pool.refresh())
                await asyncio.sleep(0.02)
                raise ValueError("mine")
        except* ValueError as group:
            caught_in_group = [type(error) for error in group.exceptions]
        assert caught_in_group == [ValueError]
    assert pool.state is PoolState.RUNNING
    backend.unhold()
    assert (await pool.refresh()).unchanged == 3
    assert asyncio.current_task().cancelling() == 0  # type: ignore[union-attr]


async def test_full_does_not_share_a_plain_one(pool: astore.Pool, backend: FakeBackend) -> None:
    """Those who want everything read anew wait for a plain refresh to end, and share one of their own."""
    hold = backend.hold("refresh")
    plain = asyncio.ensure_future(pool.refresh())
    await hold.reached()
    fulls = [asyncio.ensure_future(pool.refresh(full=True)) for _ in range(3)]
    await steps(5)
    plain.cancel()  # those who wait keep it going
    await steps(5)
    assert backend.count("refresh") == 2
    hold.release()
    outcomes = await asyncio.gather(*fulls)
    assert all(outcome is outcomes[0] for outcome in outcomes)
    assert backend.count("refresh") == 3
    assert plain.cancelled()


async def test_full_after_a_plain_one_that_failed(pool: astore.Pool, backend: FakeBackend) -> None:
    """The failure of the plain refresh is not theirs who waited to have a full one."""
    hold = backend.hold("refresh")
    plain = asyncio.ensure_future(pool.refresh())
    await hold.reached()
    full = asyncio.ensure_future(pool.refresh(full=True))
    await steps(3)
    backend.fail("refresh", OSError(5, "once"))
    hold.release()
    with pytest.raises(astore.PoolInaccessibleError):
        await plain
    backend.fail("refresh", None)
    assert (await full).unchanged == 3
    assert pool.state is PoolState.RUNNING


async def test_thousands_are_compared_in_a_thread(pool: astore.Pool, backend: FakeBackend) -> None:
    """A large pool's changes are found off the loop, and are right though a single volume changes meanwhile."""
    backend.show(*(f"{n:05d}" for n in range(5000)))
    assert len((await pool.refresh()).added) == 5000
    backend.shows[""] = {name: record for name, record in backend.shows[""].items() if name != "00007"}
    backend.put("00001", volume("00001", capacity=5))
    outcome = await pool.refresh()
    assert (outcome.removed, outcome.changed, outcome.unchanged) == (("00007",), ("00001",), 4998)
    backend.put("00002", volume("00002", capacity=5))
    whole, one = await asyncio.gather(pool.refresh(), pool.refresh("00002"))
    assert sorted((*whole.changed, *one.changed)) == ["00002"]
    assert pool.volume("00002").info.capacity == 5


async def test_one_of_many_changes(pool: astore.Pool, backend: FakeBackend) -> None:
    """What a large pool's refresh compares, it compares off the loop, and single changes that come meanwhile stay told once."""
    names = [f"{n:05d}" for n in range(5000)]
    backend.show(*names)
    await pool.refresh()
    here, loops = threading.get_ident(), []
    compared = astore.Snapshot.changes_since

    def changes_since(self: astore.Snapshot, previous: astore.Snapshot) -> astore.Changes:
        loops.append(threading.get_ident() == here)
        asyncio.run_coroutine_threadsafe(single(), loop).result(10)
        return compared(self, previous)

    async def single() -> None:
        backend.put("00003", volume("00003", capacity=5))
        await pool.refresh("00003")

    loop = asyncio.get_running_loop()
    backend.put("00002", volume("00002", capacity=5))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(astore.Snapshot, "changes_since", changes_since)
        outcome = await pool.refresh()
    assert loops == [False]
    assert (outcome.changed, outcome.unchanged) == (("00002",), 4999)
    assert [pool.volume(name).info.capacity for name in ("00002", "00003")] == [5, 5]
    assert (await pool.refresh()).unchanged == 5000


async def test_failures(pool: astore.Pool, backend: FakeBackend, caplog: pytest.LogCaptureFixture) -> None:
    """A source that does not answer: why and since when, the last snapshot, one warning; and back by a refresh."""
    before = pool.snapshot
    backend.fail("refresh", OSError(113, "No route to host"))
    for _ in range(3):
        with pytest.raises(astore.PoolInaccessibleError) as caught:
            await pool.refresh()
        assert caught.value.errno == 113
        assert str(caught.value) == "pool 'pool': refresh: No route to host"
    assert (pool.state, pool.snapshot, pool.error) == (PoolState.INACCESSIBLE, before, caught.value)
    assert pool.info.error == str(caught.value)
    assert pool.info.since >= before.taken_at
    assert len([record for record in caplog.records if record.levelno == logging.WARNING]) == 1
    backend.fail("refresh", None)
    await pool.refresh()
    assert (pool.state, pool.error, pool.info.error) == (PoolState.RUNNING, None, None)


async def test_what_a_backend_may_raise(pool: astore.Pool, backend: FakeBackend) -> None:
    """Whatever comes out of a backend becomes one of astore's errors with the pool's name in it."""
    command = astore.CommandError("mount failed", argv=["mount"], returncode=32, stderr="")
    for raised, expected, words in (
        (OSError(5, "broken"), astore.PoolInaccessibleError, "pool 'pool': refresh: broken"),
        (astore.StorageError("no such volume", errno=2), astore.PoolInaccessibleError, "refresh: no such volume"),
        (astore.StorageError("mine", errno=2, pool="pool"), astore.StorageError, "^mine$"),
        (TimeoutError(), astore.LaneTimeoutError, "pool 'pool': refresh: not in time"),
        (TimeoutError("the host is slow"), astore.LaneTimeoutError, "refresh: the host is slow"),
        (astore.LaneStuckError("all 4 threads hang", lane="x"), astore.LaneTimeoutError, "all 4 threads hang"),
        (command, astore.PoolInaccessibleError, "pool 'pool': refresh: mount failed"),
        (KeyError("oops"), astore.PoolInaccessibleError, "failed with KeyError: 'oops'"),
        (astore.DefinitionError("bad", element="source"), astore.DefinitionError, "<source>: bad"),
        (astore.UnsupportedOperationError(pool="p", type="t", operation="o"), astore.UnsupportedOperationError, "'o'"),
    ):
        backend.fail("refresh", raised)
        with pytest.raises(expected, match=words):
            await pool.refresh()
        assert pool.state is PoolState.INACCESSIBLE
        backend.fail("refresh", None)
        await pool.refresh()


async def test_a_backend_that_returns_nonsense(
    manager: astore.Manager, pool: astore.Pool, backend: FakeBackend
) -> None:
    """A refresh that gives no snapshot is that pool's failure, in words, and nobody else's."""

    class Odd(FakeSession):
        async def refresh(self, previous: object, *, full: bool = False) -> None:  # type: ignore[override]
            return None

    backend.session_class = Odd
    odd = await manager.define(fake("odd"))
    await odd.start(refresh=False)
    report = await manager.refresh_all()
    assert [outcome.pool for outcome in report.failed] == ["odd"]
    assert isinstance(report.failed[0].error, astore.PoolInaccessibleError)
    assert "TypeError" in str(report.failed[0].error)
    assert (odd.state, pool.state) == (PoolState.INACCESSIBLE, PoolState.RUNNING)


async def test_degraded(pool: astore.Pool, backend: FakeBackend) -> None:
    """Entries that cannot be read degrade the pool and are named; those that are left out do not."""
    backend.put("fifo", EntryError("fifo", "it is a FIFO", skipped=True))
    outcome = await pool.refresh()
    assert (pool.state, pool.info.errors, pool.info.error) == (PoolState.RUNNING, 1, None)
    backend.put("bad", EntryError("bad", "it is truncated", 22))
    outcome = await pool.refresh()
    assert (pool.state, pool.error) == (PoolState.DEGRADED, None)
    assert pool.info.error == "cannot be read: bad: it is truncated"
    assert {error.name for error in outcome.errors} == {"bad", "fifo"}
    assert names(pool) == ["a", "b", "c"]
    backend.put("bad", volume("bad"))
    assert (await pool.refresh("bad")).added == ("bad",)
    assert pool.state is PoolState.RUNNING


# ------------------------------------------------------------------------------------------------- one volume


async def test_one_volume(pool: astore.Pool, backend: FakeBackend) -> None:
    """A refresh of one volume finds it new, changed, gone, bad or as it was, and looks at nothing else."""
    backend.put("n", volume("n"))
    outcome = await pool.refresh("n")
    assert (outcome.added, outcome.changed, outcome.removed, outcome.unchanged) == (("n",), (), (), 0)
    assert names(pool) == ["a", "b", "c", "n"]
    backend.put("n", volume("n", capacity=5))
    assert (await pool.refresh("n")).changed == ("n",)
    assert (await pool.refresh("n")).unchanged == 1
    assert (await pool.volume("n").refresh()).capacity == 5
    backend.put("n", EntryError("n", "it is truncated"))
    outcome = await pool.refresh("n")
    assert (outcome.removed, [error.name for error in outcome.errors]) == (("n",), ["n"])
    assert pool.state is PoolState.DEGRADED
    backend.show("a", "b", "c")
    outcome = await pool.refresh("n")
    assert (outcome.removed, outcome.errors, pool.state) == ((), (), PoolState.RUNNING)
    assert backend.count("refresh") == 1


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/etc/passwd", "nul\0", "lone \ud800 surrogate"])
async def test_names_that_no_volume_can_have(pool: astore.Pool, backend: FakeBackend, name: str) -> None:
    """They are not looked for, and cost the pool nothing."""
    with pytest.raises(astore.VolumeNotFoundError):
        await pool.refresh(name)
    assert backend.count("refresh_volume") == 0
    assert pool.state is PoolState.RUNNING


async def test_a_refresh_that_began_before_does_not_lose_it(pool: astore.Pool, backend: FakeBackend) -> None:
    """What was learned of single volumes beside a whole refresh is kept, though that one saw the storage before."""
    hold = backend.hold("refresh")
    whole = asyncio.ensure_future(pool.refresh())
    await hold.reached()  # it has listed the storage
    backend.put("new", volume("new"))
    backend.put("a", volume("a", capacity=77))
    backend.shows[""].pop("b")
    for name in ("new", "a", "b"):
        await pool.refresh(name)
    hold.release()
    await whole
    assert names(pool) == ["a", "c", "new"]
    assert pool.volume("a").info.capacity == 77


async def test_one_volume_of_a_backend_that_cannot(manager: astore.Manager, backend: FakeBackend) -> None:
    """Where a session cannot look at one entry, the whole pool is looked at."""

    class Plain(PoolSession):
        def __init__(self, *args: object) -> None:
            self.inner = FakeSession(*args)  # type: ignore[arg-type]

        async def refresh(self, previous: astore.Snapshot, *, full: bool = False) -> astore.Snapshot:
            return await self.inner.refresh(previous, full=full)

        async def aclose(self) -> None:
            await self.inner.aclose()

    backend.session_class = Plain  # type: ignore[assignment]
    pool = await started(manager, fake("plain"))
    backend.show("a", "z")
    assert (await pool.refresh("z")).added == ("z",)
    assert names(pool) == ["a", "z"]


async def test_one_volume_fails(pool: astore.Pool, backend: FakeBackend) -> None:
    """A source that does not answer for one volume answers for none; a deadline is a TimeoutError."""
    backend.fail("refresh_volume", OSError(107, "not connected"))
    with pytest.raises(astore.PoolInaccessibleError, match="not connected"):
        await pool.refresh("a")
    assert pool.state is PoolState.INACCESSIBLE
    backend.fail("refresh_volume", None)
    await pool.refresh("a")
    assert pool.state is PoolState.INACCESSIBLE  # one volume proves nothing about the others
    await pool.refresh()
    backend.fail("refresh_volume", astore.LaneTimeoutError("did not return", lane="l", timeout=1))
    with pytest.raises(astore.LaneTimeoutError, match="pool 'pool': refresh: did not return"):
        await pool.refresh("a")
    backend.fail("refresh_volume", TimeoutError("no answer"))
    for timeout in (None, 60):
        with pytest.raises(astore.LaneTimeoutError, match="pool 'pool': refresh: no answer"):
            await pool.refresh("a", timeout=timeout)
    backend.fail("refresh_volume", None)
    backend.hold("refresh_volume")
    with pytest.raises(TimeoutError, match=r"refreshing volume 'a' took longer than 0.01 s"):
        await pool.refresh("a", timeout=0.01)
    assert pool.state is PoolState.RUNNING


async def test_a_single_look_that_outlives_its_pool(pool: astore.Pool, backend: FakeBackend) -> None:
    """A look at one volume that fails after its pool was stopped and started again is no word on the pool."""
    hold = backend.hold("refresh_volume")
    late = asyncio.ensure_future(pool.refresh("a"))
    await hold.reached()
    await pool.stop()
    await pool.start()
    backend.fail("refresh_volume", OSError(9, "closed"))
    hold.release()
    with pytest.raises(astore.PoolInaccessibleError):
        await late
    assert (pool.state, pool.error) == (PoolState.RUNNING, None)


async def test_a_single_look_that_ends_after_a_stop(pool: astore.Pool, backend: FakeBackend) -> None:
    """What it found is not put into a pool that is not active any more."""
    hold = backend.hold("refresh_volume")
    late = asyncio.ensure_future(pool.refresh("a"))
    await hold.reached()
    await pool.stop()
    hold.release()
    with pytest.raises(astore.InvalidStateError):
        await late
    assert (pool.state, pool.volumes) == (PoolState.INACTIVE, ())


async def test_a_volume_that_cannot_be_read(pool: astore.Pool, backend: FakeBackend) -> None:
    """Refreshing it says why, and not that there is none."""
    disk = pool.volume("b")
    backend.put("b", EntryError("b", "its header is truncated", errno=5))
    with pytest.raises(astore.StorageError, match="volume 'b' of pool 'pool': its header is truncated") as caught:
        await disk.refresh()
    assert caught.value.errno == 5
    backend.show("a", "c")
    with pytest.raises(astore.VolumeNotFoundError):
        await disk.refresh()
