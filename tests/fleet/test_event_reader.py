"""Reading the events of a fleet: slowly, from long ago, and after some are not kept any more."""

from __future__ import annotations

import asyncio
import time
from itertools import pairwise

import msgspec
import pytest
from core_fakes import PATIENCE, eventually

import astore
import astore_fleet.mirror as mirror_module
from astore_fleet import Fleet, FleetEvent, FleetEvents
from astore_fleet.client import event_reader
from astore_fleet.engine import Message
from astore_fleet.mirror import Mirror
from beds.nats import NatsBed

WAITING = 20
"""How many events wait in the reader, in these tests."""

KEPT = 600


async def tell(fleet: Fleet, first: int, last: int, size: int = 10) -> None:
    """Have events kept. :param size: how many bytes each has, at least."""
    engine = fleet.store.engine

    async def publish(number: int) -> None:
        event = astore.PoolStartFailed(pool=f"p{number}", uuid="u", time=time.time(), reason="x" * size)
        subject = engine.names.event("one", "u", "PoolStartFailed")
        await engine.publish(engine.names.events, subject, msgspec.json.encode(event))

    for number in range(first, last, 50):
        await asyncio.gather(*(publish(one) for one in range(number, min(number + 50, last))))


async def read(events: FleetEvents, count: int) -> list[FleetEvent]:
    """Read events; take a break after each tenth."""
    found: list[FleetEvent] = []
    async with asyncio.timeout(60):
        while len(found) < count:
            found.append(await anext(events))
            if len(found) % 10 == 0:
                await asyncio.sleep(0.001)
    return found


@pytest.fixture(autouse=True)
def _few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_reader, "MOST_WAITING", WAITING)


async def test_a_slow_reader_misses_nothing(fleet: Fleet) -> None:
    """More events than wait in the reader are read in order, without a gap; meanwhile the engine holds the others."""
    await tell(fleet, 0, KEPT, size=100_000)  # more than a window of the engine
    async with fleet.events(since=0) as events:
        await eventually(lambda: len(vars(events)["_waiting"]) == WAITING, "the reader is full")
        await asyncio.sleep(0.5)
        assert len(vars(events)["_waiting"]) == WAITING
        found = await read(events, KEPT)
        await tell(fleet, KEPT, KEPT + 3 * WAITING)
        found += await read(events, 3 * WAITING)
    assert [one.seq for one in found] == list(range(1, KEPT + 3 * WAITING + 1))
    assert len({one.event.pool for one in found if isinstance(one.event, astore.PoolEvent)}) == len(found)


async def test_events_that_are_not_kept_any_more(fleet: Fleet) -> None:
    """A reader that begins before the first event that is kept, or is overtaken, is told how many it has missed, in order."""
    await tell(fleet, 0, 100)
    engine = fleet.store.engine
    await engine.api(f"STREAM.PURGE.{engine.names.events}", seq=41)
    async with fleet.events(since=10) as events:
        found = await read(events, 61)
        lagged = found[0].event
        assert isinstance(lagged, astore.Lagged)
        assert (lagged.missed, lagged.seq, found[0].seq) == (30, 40, 40)
        assert [one.seq for one in found[1:]] == list(range(41, 101))
    async with fleet.events(since=0) as events:
        assert [one.seq for one in await read(events, 60)] == list(range(41, 101))


async def test_a_reader_that_is_overtaken(one_server: NatsBed, fleet_name: str) -> None:
    """What is removed while the engine holds it back is counted between what came before and what follows."""
    async with await Fleet.connect(one_server.url, fleet_name, host="client") as fleet:
        await tell(fleet, 0, KEPT, size=200_000)
        async with fleet.events(since=0) as events:
            first = await read(events, 1)
            await fleet.store.engine.api(f"STREAM.PURGE.{fleet.store.engine.names.events}", seq=KEPT - 9)
            found = first
            while found[-1].seq < KEPT:
                found += await read(events, 1)
    missed = [one for one in found if isinstance(one.event, astore.Lagged)]
    assert len(missed) == 1
    for before, after in pairwise(found):
        gap = after.event.missed if isinstance(after.event, astore.Lagged) else 1
        assert after.seq == before.seq + gap


async def test_a_message_that_cannot_be_taken(fleet: Fleet) -> None:
    """A mirror passes over messages that its taker fails on, with one consumer however many there are."""
    engine, taken = fleet.store.engine, list[int]()
    for _ in range(300):
        await engine.publish(engine.names.events, engine.names.event("one", "u", "x"), b"2")

    def take(message: Message) -> None:
        if message.data == b"2":
            raise ZeroDivisionError
        taken.append(int(message.data))

    mirror = Mirror(engine, engine.names.events, take)
    await mirror.open()
    try:
        for number in (1, 2, 3):
            await engine.publish(engine.names.events, engine.names.event("one", "u", "x"), str(number).encode())
        await eventually(lambda: taken == [1, 3], "the others")
    finally:
        await mirror.aclose()


async def test_a_long_stream(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    """To read what is kept may take long, as long as it goes on."""
    monkeypatch.setattr(mirror_module, "PATIENCE", 4.0)
    engine, taken = fleet.store.engine, list[int]()
    await tell(fleet, 0, 25)
    began = time.monotonic()
    mirror = Mirror(
        engine, engine.names.events, lambda message: taken.append(message.seq), hold=lambda: asyncio.sleep(0.2)
    )
    await mirror.open()
    try:
        assert taken == list(range(1, 26))
        assert time.monotonic() - began > mirror_module.PATIENCE
    finally:
        await mirror.aclose()


async def test_keys_that_are_written_as_fast_as_they_are_read(fleet: Fleet) -> None:
    """What was kept has arrived, whatever is written meanwhile, also a key that was overwritten before it arrived."""
    engine, taken = fleet.store.engine, list[str]()
    keys = [engine.names.owner(f"key{number}") for number in range(60)]

    async def write(key: str) -> None:
        await engine.publish(engine.names.state, key, bytes(900_000))

    for key in keys:
        await write(key)

    async def hold() -> None:  # the engine holds most messages back meanwhile
        await write(taken[-1])
        if taken == keys[:1]:
            await write(keys[-1])

    mirror = Mirror(engine, engine.names.state, lambda message: taken.append(message.subject), hold=hold)
    try:
        async with asyncio.timeout(PATIENCE):
            await mirror.open()
        assert {*taken} == {*keys}
    finally:
        await mirror.aclose()


async def test_a_hold_that_fails(fleet: Fleet) -> None:
    """What ends the reading of a stream unforeseen does not end the mirror."""
    engine, taken, holds = fleet.store.engine, list[int](), list[int]()

    async def hold() -> None:
        holds.append(len(taken))
        if len(holds) == 1:
            raise ZeroDivisionError

    mirror = Mirror(engine, engine.names.events, lambda message: taken.append(message.seq), hold=hold)
    await mirror.open()
    try:
        for _ in range(3):
            await engine.publish(engine.names.events, engine.names.event("one", "u", "x"), b"")
        await eventually(lambda: taken == [1, 2, 3], "all")
    finally:
        await mirror.aclose()
