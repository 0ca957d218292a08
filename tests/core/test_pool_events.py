"""What a pool tells: deadlines that pass, states, and events that cost what they say and no more."""

from __future__ import annotations

import asyncio
import gc
import tracemalloc
from pathlib import Path

import msgspec
import pytest
from core_fakes import FakeBackend, eventually, fake, started, steps, volume

import astore
from astore.event_bus import Subscription
from astore.events import PoolRefreshed, PoolStateChanged, VolumeAdded, VolumeChanged, VolumeRemoved
from astore.model import PoolState


def drained(events: Subscription) -> list[astore.Event]:
    found = []
    while (event := events.receive_nowait()) is not None:
        found.append(event)
    return found


async def test_a_refresh_that_is_late(pool: astore.Pool, backend: FakeBackend) -> None:
    """A caller's deadline says nothing about the pool; the refresh goes on for the next caller."""
    before = pool.snapshot
    hold = backend.hold("refresh")
    with pytest.raises(
        astore.LaneTimeoutError, match=r"the refresh did not end within 0.01 s \(the last one took"
    ) as caught:
        await pool.refresh(timeout=0.01)
    assert caught.value.timeout == 0.01
    assert (pool.state, pool.error, pool.snapshot) == (PoolState.RUNNING, None, before)
    again = asyncio.ensure_future(pool.refresh())
    await steps(5)
    hold.release()
    assert (await again).unchanged == 3
    assert hold.arrived == 1, "one refresh for both"


async def test_a_late_refresh_that_nobody_asks_for_again(
    pool: astore.Pool, backend: FakeBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ends after as long again."""
    monkeypatch.setattr("astore.pools.refresher.LINGER_SECONDS", 0.02)
    backend.hold("refresh")
    with pytest.raises(astore.LaneTimeoutError):
        await pool.refresh(timeout=0.01)
    await eventually(lambda: not [task for task in asyncio.all_tasks() if "refresh" in task.get_name()])
    assert pool.state is PoolState.RUNNING
    backend.unhold()
    assert (await pool.refresh()).unchanged == 3


async def test_a_late_refresh_and_a_full_one(pool: astore.Pool, backend: FakeBackend) -> None:
    """A full refresh that has to wait for one that hangs has its own deadline."""
    backend.hold("refresh")
    with pytest.raises(astore.LaneTimeoutError):
        await pool.refresh(timeout=0.01)
    with pytest.raises(astore.LaneTimeoutError):
        await pool.refresh(full=True, timeout=0.01)


async def test_a_deadline_that_is_one_callers(pool: astore.Pool, backend: FakeBackend) -> None:
    """While somebody else waits, one caller's deadline says nothing about the pool."""
    hold = backend.hold("refresh")
    patient = asyncio.ensure_future(pool.refresh())
    await hold.reached()
    with pytest.raises(TimeoutError):
        await pool.refresh(timeout=0.01)
    assert pool.state is PoolState.RUNNING
    hold.release()
    assert (await patient).unchanged == 3


async def test_deadlines_of_several(pool: astore.Pool, backend: FakeBackend) -> None:
    """Each caller has a deadline of their own; none of them says anything about the pool."""
    backend.hold("refresh")
    outcomes = await asyncio.gather(
        *(pool.refresh(timeout=0.01 * n) for n in range(1, 5)), pool.refresh("a"), return_exceptions=True
    )
    assert [type(outcome) for outcome in outcomes[:4]] == [astore.LaneTimeoutError] * 4
    assert [f"{outcome.timeout:g}" for outcome in outcomes[:4]] == ["0.01", "0.02", "0.03", "0.04"]  # type: ignore[union-attr]
    assert pool.state is PoolState.RUNNING


async def test_a_call_that_hangs_in_its_thread(manager: astore.Manager, tmp_path: Path) -> None:
    """Threads of a refresh past the lane's deadline are stuck: counted against their pool, and never against others."""
    import threading

    gate = threading.Event()

    class Hanging(FakeBackend):
        type = "hanging"
        lane_threads = 2

        async def at(self, operation: str, pool: str) -> None:
            if operation == "refresh" and self.hang:
                await self.context.lane.run(gate.wait, timeout=0.05)

        hang = False

        async def open(self, definition: astore.PoolDef, context: astore.Context) -> astore.PoolSession:
            self.context = context
            return await super().open(definition, context)

    backend = Hanging()
    manager.registry.register(backend)
    pool = await started(manager, fake("hung", type="hanging"))
    backend.hang = True
    try:
        for stuck in (1, 2):
            while manager.statistics().lanes.stuck < stuck:  # a busy machine gives the call its thread too late
                with pytest.raises(TimeoutError):
                    await pool.refresh()
            assert manager.statistics().lanes.stuck == stuck
        with pytest.raises(TimeoutError, match="all 2 threads hang"):
            await pool.refresh(timeout=20)
        assert pool.state is PoolState.INACCESSIBLE
        other = await started(manager, fake("other"))
        assert (await other.refresh()).unchanged == 3
    finally:
        gate.set()
    await eventually(lambda: manager.statistics().lanes.stuck == 0)
    await pool.refresh()
    assert pool.state is PoolState.RUNNING


async def test_waiting_for_a_state(pool: astore.Pool, backend: FakeBackend) -> None:
    """Who waits is told of the first of the states that comes; who waits for what is does not wait."""
    assert await pool.wait_state("running") is PoolState.RUNNING
    waiting = [asyncio.ensure_future(pool.wait_state("inaccessible", PoolState.INACTIVE)) for _ in range(2)]
    never = asyncio.ensure_future(pool.wait_state("building"))
    await steps(3)
    backend.fail("refresh", OSError(5, "broken"))
    with pytest.raises(OSError):
        await pool.refresh()
    assert await asyncio.gather(*waiting) == [PoolState.INACCESSIBLE] * 2
    with pytest.raises(TimeoutError):
        await pool.wait_state(PoolState.RUNNING, timeout=0.01)
    with pytest.raises(ValueError):
        await pool.wait_state("nosuch")
    assert not never.done()
    never.cancel()
    await asyncio.wait([never])
    assert not pool.parts.record._state_waiters


async def test_events_say_what_changed(manager: astore.Manager, pool: astore.Pool, backend: FakeBackend) -> None:
    """Each volume that came, changed or went is an event with its record, before the refresh's own; no change, none."""
    async with manager.events(pools={"pool"}) as events:
        await pool.refresh()
        (only,) = drained(events)
        assert isinstance(only, PoolRefreshed)
        assert (only.generation, only.unchanged, only.added, only.changed, only.removed) == (2, 3, 0, 0, 0)
        changed, added = volume("b", capacity=9), volume("d")
        backend.show("a")
        backend.put("b", changed)
        backend.put("d", added)
        await pool.refresh()
        one, two, three, four = drained(events)
        assert isinstance(one, VolumeAdded)
        assert (one.name, one.volume) == ("d", added)
        assert isinstance(two, VolumeChanged)
        assert (two.name, two.volume) == ("b", changed)
        assert isinstance(three, VolumeRemoved)
        assert three.name == "c"
        assert isinstance(four, PoolRefreshed)
        assert (four.added, four.changed, four.removed, four.unchanged) == (1, 1, 1, 1)
        assert [event.seq for event in (one, two, three, four)] == list(range(only.seq + 1, only.seq + 5))
        assert {event.uuid for event in (one, two, three, four)} == {pool.uuid}


async def test_a_time_of_access_is_no_change(pool: astore.Pool, backend: FakeBackend) -> None:
    """A volume that was merely read is unchanged, and its new time of access is shown."""
    backend.put("a", volume("a", atime_ns=99))
    assert (await pool.refresh()).unchanged == 3
    assert pool.volume("a").info.atime_ns == 99


async def test_events_come_after_the_fact(manager: astore.Manager, backend: FakeBackend) -> None:
    """Whoever hears of a change finds it made."""
    seen: dict[str, object] = {}
    pool = await manager.define(fake("pool"))
    async with manager.events(pools={"pool"}) as events:

        async def listen() -> None:
            async for event in events:
                if isinstance(event, PoolStateChanged):
                    seen[event.new] = pool.state
                elif isinstance(event, VolumeAdded):
                    seen[event.name] = pool.snapshot.get(event.name)

        listening = asyncio.ensure_future(listen())
        await pool.start()
        await steps(5)
        listening.cancel()
        await asyncio.wait([listening])
    assert seen == {"running": PoolState.RUNNING} | {name: pool.snapshot.get(name) for name in "abc"}


async def test_publishing_keeps_no_snapshots(manager: astore.Manager, backend: FakeBackend) -> None:
    """A thousand volumes of which one changes at each refresh: what is kept for replay is the change, not the thousand."""
    backend.show(*(f"volume{n:05d}" for n in range(1000)))
    pool = await started(manager, fake("pool"))
    volumes = backend.shows[""]
    keys = list(volumes)

    async def refreshes(count: int) -> None:
        for n in range(count):
            record = volumes[keys[n]]
            volumes[keys[n]] = msgspec.structs.replace(record, mtime_ns=record.mtime_ns + 1)
            assert len((await pool.refresh()).changed) == 1

    await refreshes(5)
    gc.collect()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        await refreshes(100)
        gc.collect()
        grown = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert grown / 100 < 8192, f"{grown / 100:.0f} bytes for each refresh; the thousand's dictionary alone has 36,960"
