"""Events: one order for all, replay, exact counts of what was lost, and a bus that never waits."""

from __future__ import annotations

import asyncio
import threading
import tracemalloc
from collections.abc import Callable

import msgspec
import pytest
from core_fakes import eventually, steps, volume
from hypothesis import given
from hypothesis import strategies as st

from astore.events import (
    BackendRegistered,
    Event,
    EventBus,
    Lagged,
    PoolDefined,
    PoolEvent,
    PoolStarted,
    PoolStateChanged,
    PoolStopped,
    Subscription,
    VolumeAdded,
    VolumeEvent,
    VolumeRemoved,
)
from astore.model import PoolState

pytestmark = pytest.mark.usefixtures("no_leaks")


def added(pool: str = "p") -> Callable[[int], Event]:
    """What builds the events of a batch of added volumes."""
    return lambda index: VolumeAdded(pool=pool, uuid="u", name=f"v{index}", volume=volume(f"v{index}"))


def publish(bus: EventBus, count: int, pool: str = "p") -> None:
    """Publish single events."""
    for _ in range(count):
        bus.publish(PoolStarted, pool=pool, uuid="u")


def drain(subscription: Subscription) -> list[Event]:
    """All that there is now."""
    found: list[Event] = []
    while (event := subscription.receive_nowait()) is not None:
        found.append(event)
    return found


# -------------------------------------------------------------------------------------------------- order and replay


async def test_order_and_numbers() -> None:
    """Events come in the order they were published, numbered without a gap, single ones and batches alike."""
    bus = EventBus()
    async with bus.subscribe() as events:
        bus.publish(PoolDefined, pool="p", uuid="u")
        bus.publish_batch(3, added())
        bus.publish_batch(0, added())
        bus.publish(BackendRegistered, type="t")
        found = drain(events)
    assert [event.seq for event in found] == [1, 2, 3, 4, 5]
    assert [type(event) for event in found] == [PoolDefined, *[VolumeAdded] * 3, BackendRegistered]
    assert [event.name for event in found if isinstance(event, VolumeEvent)] == ["v0", "v1", "v2"]
    assert all(event.time > 0 for event in found)
    assert bus.last_seq == 5


async def test_since_replays() -> None:
    """``since=n`` begins with n + 1, 0 with the first there was, None with what comes."""
    bus = EventBus()
    publish(bus, 5)
    for since, seqs in ((0, [1, 2, 3, 4, 5]), (3, [4, 5]), (5, []), (None, [])):
        async with bus.subscribe(since) as events:
            assert [event.seq for event in drain(events)] == seqs
            bus_before = bus.last_seq
        assert bus.last_seq == bus_before


async def test_since_into_the_middle_of_a_batch() -> None:
    """A batch is many events to whoever reads."""
    bus = EventBus()
    publish(bus, 2)
    bus.publish_batch(10, added())
    publish(bus, 2)
    async with bus.subscribe(7) as events:
        found = drain(events)
    assert [event.seq for event in found] == list(range(8, 15))
    assert [event.name for event in found if isinstance(event, VolumeEvent)] == ["v5", "v6", "v7", "v8", "v9"]


@pytest.mark.parametrize("since", [-1, 3, 10**9])
def test_since_a_number_not_given_out(since: int) -> None:
    """Asking for what never was is an error that tells the last number."""
    bus = EventBus()
    publish(bus, 2)
    with pytest.raises(ValueError, match="the last event has number 2"):
        bus.subscribe(since)


async def test_subscribing_counts_from_the_subscription() -> None:
    """What is published between subscribe() and ``async with`` is not lost."""
    bus = EventBus()
    subscription = bus.subscribe()
    publish(bus, 2)
    async with subscription as events:
        assert [event.seq for event in drain(events)] == [1, 2]


def test_a_bus_keeps_something() -> None:
    """A bus without room is refused."""
    with pytest.raises(ValueError, match="capacity"):
        EventBus(0)


# -------------------------------------------------------------------------------------------------------- slow readers


@pytest.mark.parametrize("read", [0, 4, 40])
@pytest.mark.parametrize("more", [9, 10, 11, 35])
async def test_lagged_counts_exactly(read: int, more: int) -> None:
    """A reader that is too slow loses the oldest first, and is told how many, with the number of the last lost."""
    bus = EventBus(capacity=10)
    async with bus.subscribe() as events:
        for _ in range(read):
            publish(bus, 1)
            assert events.receive_nowait() is not None
        bus.publish_batch(more, added())
        found = drain(events)
    missed = max(more - 10, 0)
    if missed:
        first = found.pop(0)
        assert isinstance(first, Lagged)
        assert (first.missed, first.seq) == (missed, read + missed)
    assert [event.seq for event in found] == list(range(read + missed + 1, read + more + 1))


async def test_a_batch_larger_than_the_bus() -> None:
    """Of a batch that is too large its last events are kept."""
    bus = EventBus(capacity=10)
    async with bus.subscribe() as events:
        bus.publish_batch(1000, added())
        found = drain(events)
    assert isinstance(found[0], Lagged)
    assert (found[0].missed, found[0].seq) == (990, 990)
    assert [event.name for event in found[1:] if isinstance(event, VolumeEvent)] == [f"v{n}" for n in range(990, 1000)]
    assert bus.statistics().kept == 10


async def test_lagged_while_reading_a_batch() -> None:
    """Falling behind in the middle of a batch is noticed at the next event."""
    bus = EventBus(capacity=10)
    async with bus.subscribe() as events:
        bus.publish_batch(10, added())
        assert events.receive_nowait() is not None
        publish(bus, 4)
        lagged = events.receive_nowait()
        assert isinstance(lagged, Lagged)
        assert (lagged.missed, lagged.seq) == (3, 4)
        assert [event.seq for event in drain(events)] == list(range(5, 15))


async def test_lagged_passes_every_filter() -> None:
    """Whoever reads only some events learns that events were lost all the same."""
    bus = EventBus(capacity=2)
    async with bus.subscribe(pools=["other"], kinds=[PoolStopped]) as events:
        publish(bus, 5)
        assert [type(event) for event in drain(events)] == [Lagged]


@given(
    capacity=st.integers(1, 12),
    steps_=st.lists(st.one_of(st.integers(1, 30), st.integers(-8, -1)), max_size=30),
)
def test_nothing_is_lost_unsaid(capacity: int, steps_: list[int]) -> None:
    """Whatever is published and read in whatever order: numbers read and numbers reported lost are all there are."""
    bus = EventBus(capacity)
    subscription = bus.subscribe()
    expected = 1

    def read() -> bool:
        nonlocal expected
        event = subscription.receive_nowait()
        if event is None:
            assert expected == bus.last_seq + 1
            return False
        if isinstance(event, Lagged):
            assert event.seq == expected + event.missed - 1
        else:
            assert event.seq == expected
            assert event.seq > bus.last_seq - capacity
        expected = event.seq + 1
        return True

    for step in steps_:
        if step > 0:
            bus.publish_batch(step, added())
        else:
            for _ in range(-step):
                read()
    while read():
        pass
    assert sum(batch.size for batch in bus._batches) < capacity + 30


# ------------------------------------------------------------------------------------------------------------- filters


async def test_filters() -> None:
    """By pool, by class with its subclasses, and by both; numbers stay those of all events."""
    bus = EventBus()
    publish(bus, 2, "a")
    bus.publish_batch(2, added("b"), pool="b")
    bus.publish(BackendRegistered, type="t")
    bus.publish(PoolStopped, pool="b", uuid="u")

    async def seqs(pools: list[str] | None = None, kinds: list[type[Event]] | None = None) -> list[int]:
        async with bus.subscribe(0, pools=pools, kinds=kinds) as events:
            return [event.seq for event in drain(events)]

    assert await seqs() == [1, 2, 3, 4, 5, 6]
    assert await seqs(pools=["b"]) == [3, 4, 6]
    assert await seqs(pools=["a", "b"]) == [1, 2, 3, 4, 6]
    assert await seqs(pools=[]) == []
    assert await seqs(kinds=[VolumeEvent]) == [3, 4]
    assert await seqs(kinds=[PoolEvent]) == [1, 2, 3, 4, 6]
    assert await seqs(kinds=[PoolStopped, BackendRegistered]) == [5, 6]
    assert await seqs(kinds=[VolumeRemoved]) == []
    assert await seqs(pools=["b"], kinds=[PoolStopped]) == [6]


async def test_several_readers_at_their_own_pace() -> None:
    """One reader does not take from another."""
    bus = EventBus()
    async with bus.subscribe() as slow, bus.subscribe() as quick:
        publish(bus, 3)
        assert [event.seq for event in drain(quick)] == [1, 2, 3]
        publish(bus, 2)
        assert [event.seq for event in drain(quick)] == [4, 5]
        assert [event.seq for event in drain(slow)] == [1, 2, 3, 4, 5]
        assert bus.statistics().subscribers == 2
    assert bus.statistics().subscribers == 0


# ------------------------------------------------------------------------------------------------------ waiting, ending


async def test_a_reader_that_waits_is_woken() -> None:
    """An event published on the loop reaches a waiting reader."""
    bus = EventBus()
    async with bus.subscribe() as events:
        task = asyncio.ensure_future(anext(events))
        await steps(3)
        assert not task.done()
        publish(bus, 1)
        assert (await task).seq == 1


async def test_what_a_filter_leaves_out_does_not_end_the_wait() -> None:
    """A reader woken for nothing waits on."""
    bus = EventBus()
    async with bus.subscribe(pools=["b"]) as events:
        task = asyncio.ensure_future(anext(events))
        await steps(3)
        publish(bus, 3, "a")
        await steps(3)
        assert not task.done()
        publish(bus, 1, "b")
        assert (await task).seq == 4


async def test_publishing_from_threads() -> None:
    """Events from many threads reach a reader in one order, each once."""
    bus = EventBus()
    threads = [threading.Thread(target=publish, args=(bus, 200, f"t{n}")) for n in range(5)]
    found: list[PoolEvent] = []
    async with bus.subscribe() as events:
        for thread in threads:
            thread.start()
        async with asyncio.timeout(30):
            async for event in events:
                assert isinstance(event, PoolEvent)
                found.append(event)
                if len(found) == 1000:
                    break
        for thread in threads:
            thread.join()
    assert [event.seq for event in found] == list(range(1, 1001))
    assert all(sum(event.pool == f"t{n}" for event in found) == 200 for n in range(5))


async def test_closing_the_bus_ends_iterations() -> None:
    """Readers get what is there, then come to their end; those who wait at once."""
    bus = EventBus()
    async with bus.subscribe() as waiting, bus.subscribe() as behind:
        task = asyncio.ensure_future(anext(waiting, None))
        await steps(3)
        bus.close()
        assert await task is None
        publish(bus, 1)
        assert [event async for event in behind] == []
    bus = EventBus()
    async with bus.subscribe() as behind:
        publish(bus, 3)
        bus.close()
        assert [event.seq async for event in behind] == [1, 2, 3]
        assert bus.last_seq == 3


async def test_closing_a_reader_that_waits() -> None:
    """aclose() from elsewhere ends a waiting iteration; twice is once."""
    bus = EventBus()
    async with bus.subscribe() as events:
        task = asyncio.create_task(_all(events))
        await steps(3)
        await events.aclose()
        await events.aclose()
        assert await task == []
    assert bus.statistics().subscribers == 0


async def _all(events: Subscription) -> list[Event]:
    return [event async for event in events]


async def test_a_cancelled_wait_loses_nothing() -> None:
    """A reader whose wait was cut short goes on where it was."""
    bus = EventBus()
    async with bus.subscribe() as events:
        for _ in range(20):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0):
                    await anext(events)
        publish(bus, 2)
        assert [(await anext(events)).seq, (await anext(events)).seq] == [1, 2]


async def test_a_reader_lets_others_run() -> None:
    """Reading ten thousand events that are there does not keep the loop to itself."""
    bus = EventBus()
    bus.publish_batch(10_000, added())
    turns = 0
    over = False

    async def other() -> None:
        nonlocal turns
        while not over:
            turns += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(other())
    async with bus.subscribe(0) as events:
        count = 0
        async for _ in events:
            count += 1
            if count == 10_000:
                break
    over = True
    await task
    assert turns >= 100


def test_a_reader_whose_loop_is_gone() -> None:
    """Publishing to a reader that cannot be woken forgets it, and fails nobody."""
    bus = EventBus()
    loop = asyncio.new_event_loop()

    async def main() -> Subscription:
        events = await bus.subscribe().__aenter__()
        assert events.receive_nowait() is None
        return events

    events = loop.run_until_complete(main())
    loop.close()
    assert events.receive_nowait() is None
    assert bus.statistics().subscribers == 1
    publish(bus, 1)
    assert bus.statistics().subscribers == 0


# --------------------------------------------------------------------------------------------------------------- cost


async def test_a_batch_builds_nothing() -> None:
    """Ten thousand events are made when they are read, and only those that are."""
    bus = EventBus()
    built: list[int] = []

    def build(index: int) -> Event:
        built.append(index)
        return PoolStarted(pool="p", uuid="u")

    bus.publish_batch(10_000, build, pool="p")
    assert built == []
    async with bus.subscribe(9_998) as events:
        drain(events)
    assert built == [9_998, 9_999]
    async with bus.subscribe(0, pools=["other"]) as events:
        drain(events)
    assert built == [9_998, 9_999]


async def test_a_batch_of_another_kind_builds_nothing() -> None:
    """Readers of a few kinds pass over ten thousand events of another together; of a base, they read them."""
    bus = EventBus()
    built: list[int] = []

    def build(index: int) -> Event:
        built.append(index)
        return PoolStarted(pool="p", uuid="u")

    bus.publish_batch(10_000, build, pool="p", kind=PoolStarted)
    bus.publish(PoolDefined, pool="p", uuid="u")
    async with bus.subscribe(0, kinds=[VolumeAdded, PoolDefined]) as events:
        assert [event.seq for event in drain(events)] == [10_001]
    assert built == []
    async with bus.subscribe(9_999, kinds=[PoolEvent]) as events:
        assert [event.seq for event in drain(events)] == [10_000, 10_001]
    assert built == [9_999]


async def test_memory_is_bounded() -> None:
    """A bus that nobody reads keeps its capacity and no more."""
    bus = EventBus(capacity=100)
    publish(bus, 200)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for _ in range(50):
            publish(bus, 200)
            bus.publish_batch(1_000_000, added())
        assert tracemalloc.get_traced_memory()[0] - before < 100_000
    finally:
        tracemalloc.stop()
    assert len(bus._batches) <= 100
    assert bus.statistics().kept == 100


def test_events_are_frozen_and_their_own_json() -> None:
    """An event cannot be changed, and says its class in JSON."""
    event = PoolStateChanged(
        seq=3, time=1.5, pool="p", uuid="u", old=PoolState.RUNNING, new=PoolState.INACCESSIBLE, reason="gone"
    )
    with pytest.raises(AttributeError):
        event.seq = 4  # type: ignore[misc]
    assert msgspec.json.decode(msgspec.json.encode(event)) == {
        "event": "PoolStateChanged",
        "seq": 3,
        "time": 1.5,
        "pool": "p",
        "uuid": "u",
        "old": "running",
        "new": "inaccessible",
        "reason": "gone",
    }


async def test_a_reader_must_be_entered() -> None:
    """Iterating over what was not entered by ``async with`` is an error, not silence."""
    bus = EventBus()
    publish(bus, 1)
    with pytest.raises(RuntimeError, match="async with"):
        await anext(bus.subscribe(0))


async def test_reopening() -> None:
    """A bus that was closed can be opened again, and goes on counting."""
    bus = EventBus()
    publish(bus, 2)
    bus.close()
    bus.open()
    async with bus.subscribe() as events:
        publish(bus, 1)
        await eventually(lambda: bus.last_seq == 3)
        assert (await anext(events)).seq == 3


async def test_cancelled_where_others_have_their_turn() -> None:
    """A reader that is cancelled loses no event, however many it had read without waiting."""
    bus = EventBus()
    async with bus.subscribe() as events:
        publish(bus, 3 * Subscription.CHECKPOINT_EVERY)
        read: list[int] = []
        while len(read) < 3 * Subscription.CHECKPOINT_EVERY:
            try:
                async with asyncio.timeout(0):
                    read.append((await anext(events)).seq)
            except TimeoutError:
                pass
        assert read == list(range(1, 3 * Subscription.CHECKPOINT_EVERY + 1))
