"""Events that wait, or cannot be told: each is told once, and no snapshot is kept that has what was not told."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest
from core_fakes import eventually
from fleet_support import folder, host, local, shared, until

import astore
from astore_fleet import Agent, Fleet, FleetEvent
from astore_fleet.engine import Refused
from astore_fleet.hosts import event_stream
from astore_fleet.hosts.event_stream import Forwarder
from beds.nats import NatsBed


def told(seen: list[FleetEvent], kind: type[astore.events.VolumeEvent] = astore.VolumeAdded) -> list[str]:
    """The names of volumes in events of a kind."""
    return [one.event.name for one in seen if isinstance(one.event, kind)]


async def started(fleet: Fleet, definition: str, *hosts: str) -> Any:
    """Define a pool, and wait until it runs, and its snapshot is kept."""
    pool = await fleet.define(definition, hosts=hosts)
    await eventually(lambda: (pool.info.state, pool.info.volumes) == ("running", 1), "its snapshot is kept")
    return pool


async def last(events: Any, pool: Any, images: Path) -> list[FleetEvent]:
    """Make one more volume, and return all events up to that one's."""
    (images / "last.img").touch()
    await pool.refresh(timeout=60)
    return await until(events, astore.VolumeAdded, "last.img")


async def test_an_agent_that_ends_keeps_nothing_untold(
    fleet: Fleet, one_server: NatsBed, fleet_name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What an agent could not tell before it ended is told by the next one, which finds it anew."""
    images = folder(tmp_path, "images", "x.img")
    async with fleet.events(since=0) as events:
        async with host(one_server, fleet_name, "a") as a:
            pool = await started(fleet, local("images", images), "a")
            real = a.store.engine.publish

            async def full(stream: str, *arguments: Any, **options: Any) -> int:
                if stream == a.store.engine.names.events:
                    raise Refused("the stream is full", errno=errno.ENOSPC)
                return await real(stream, *arguments, **options)

            monkeypatch.setattr(a.store.engine, "publish", full)
            (images / "y.img").touch()
            await a.manager.pool("images").refresh()
        async with host(one_server, fleet_name, "a") as a:
            await eventually(lambda: a._ready("images"), "it has begun again")
            await pool.refresh(timeout=60)
            assert told(await last(events, pool, images)) == ["x.img", "y.img", "last.img"]


async def _hold(agent: Agent, images: Path, count: int, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Let an agent's lease be over while so many volumes are made. Returns what renews it."""
    over, real = True, agent._take_lease

    async def take_lease() -> None:
        if over:
            raise astore.StoreError("no answer")
        await real()

    def renew() -> None:
        nonlocal over
        over = False

    monkeypatch.setattr(agent, "_take_lease", take_lease)
    agent._until = 0.0
    for number in range(count):
        (images / f"v{number:03}.img").touch()
    await agent.manager.pool("images").refresh()
    await eventually(lambda: agent._forwarder._seq >= agent.manager.statistics().events.last_seq, "all are held")
    return renew


async def test_many_that_were_held_are_told_in_turn(
    fleet: Fleet, one_server: NatsBed, fleet_name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No more are on the way at once than otherwise."""
    images = folder(tmp_path, "images", "x.img")
    under_way, most, real = 0, 0, Forwarder._tell

    async def tell(self: Forwarder, event: astore.Event) -> None:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        try:
            await real(self, event)
        finally:
            under_way -= 1

    monkeypatch.setattr(event_stream, "WINDOW", 16)
    monkeypatch.setattr(Forwarder, "_tell", tell)
    async with fleet.events(since=0) as events, host(one_server, fleet_name, "a") as a:
        pool = await started(fleet, local("images", images), "a")
        renew = await _hold(a, images, 100, monkeypatch)
        renew()
        await eventually(lambda: a.valid, "the lease is renewed")
        seen = await last(events, pool, images)
        assert told(seen) == ["x.img", *(f"v{number:03}.img" for number in range(100)), "last.img"]
        assert most <= 16


async def test_too_many_that_are_held(
    fleet: Fleet, one_server: NatsBed, fleet_name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A Lagged takes the place of those that are not told, and counts them."""
    monkeypatch.setattr(event_stream, "MOST_HELD", 10)
    images = folder(tmp_path, "images", "x.img")
    async with fleet.events(since=0) as events, host(one_server, fleet_name, "a") as a:
        pool = await started(fleet, local("images", images), "a")
        renew = await _hold(a, images, 25, monkeypatch)
        renew()
        await eventually(lambda: a.valid and not a._forwarder._held, "they are told")
        seen = await last(events, pool, images)
        missed = sum(one.event.missed for one in seen if isinstance(one.event, astore.Lagged))
        assert missed > 0
        assert len([name for name in told(seen) if name.startswith("v")]) + missed >= 25


async def test_what_is_decided_is_told_before_a_pool_is_handed_over(
    fleet: Fleet, one_server: NatsBed, fleet_name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Settling waits for events that were held, and are this host's by now."""
    images = folder(tmp_path, "images", "x.img")

    async def nothing(name: str) -> None:
        pass

    async with host(one_server, fleet_name, "a") as a, host(one_server, fleet_name, "b") as b:
        pool = await started(fleet, shared("images", images), "a")
        monkeypatch.setattr(a._handover, "_leave", nothing)
        monkeypatch.setattr(b._handover, "_begin", nothing)
        await pool.place(hosts=("b",))
        await eventually(lambda: a._handover.outdated("images") and pool.info.owner == "b", "b has it")
        (images / "y.img").touch()
        await a.manager.pool("images").refresh()
        await eventually(lambda: a._forwarder._held, "its events wait")
        await pool.place(hosts=("a",))
        await eventually(lambda: a._ready("images"), "a has it again")
        await a._forwarder.settle()
        assert not a._forwarder._held


async def test_a_pool_that_is_started_anew_tells_all(
    fleet: Fleet, one_server: NatsBed, fleet_name: str, tmp_path: Path
) -> None:
    """Whoever reads the events knows the volumes of each run: what was told of the one before does not count."""
    images = folder(tmp_path, "images", "x.img")
    async with fleet.events(since=0) as events, host(one_server, fleet_name, "a"):
        pool = await started(fleet, local("images", images), "a")
        await pool.stop()
        await pool.start()
        assert told(await last(events, pool, images)) == ["x.img", "x.img", "last.img"]


async def test_a_pool_that_cannot_begin_anew_yet(
    fleet: Fleet, one_server: NatsBed, fleet_name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While work keeps an old run from ending, nothing of it is told again that the other host has told."""
    images = folder(tmp_path, "images", "x.img")
    async with (
        fleet.events(since=0) as events,
        host(one_server, fleet_name, "a") as a,
        host(one_server, fleet_name, "b") as b,
    ):
        pool = await started(fleet, shared("images", images), "a")
        busy, tried, real, ids = True, 0, astore.Pool.stop, event_stream.EventIds.of

        async def stop(self: astore.Pool, **options: Any) -> None:
            nonlocal tried
            if busy and self is a.manager.pool("images"):
                tried += 1
                raise astore.VolumeBusyError("x.img works", pool="images")
            await real(self, **options)

        def own(self: event_stream.EventIds, event: astore.Event, *arguments: Any) -> str:
            return (
                f"{id(self)}:{ids(self, event, *arguments)}"  # as after the time in which the engine knows them again
            )

        monkeypatch.setattr(astore.Pool, "stop", stop)
        monkeypatch.setattr(event_stream.EventIds, "of", own)
        await pool.place(hosts=("b",))
        await eventually(lambda: b.manager.pools(active=True) and b._ready("images"), "b has it")
        await eventually(lambda: "images" in a._handover._seen, "a has seen it")
        (images / "y.img").touch()
        await a.manager.pool("images").refresh()
        await b.manager.pool("images").refresh()
        seen = await until(events, astore.VolumeAdded, "y.img")
        tried = 0
        await pool.place(hosts=("a",))
        await eventually(lambda: tried > 1, "a tries to begin anew")
        busy = False
        await eventually(lambda: a._ready("images"), "it has begun on a")
        seen += await last(events, pool, images)
        assert told(seen) == ["x.img", "y.img", "last.img"]
