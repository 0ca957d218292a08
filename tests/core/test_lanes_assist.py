"""Assistants: more threads for one call, which never wait, never deadlock, and never take the last thread."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from core_fakes import eventually

from astore.errors import LaneStuckError, LaneTimeoutError
from astore.lanes import Lanes
from astore.lanes.lane import PoolLane
from astore.testing.faults import Gate

pytestmark = pytest.mark.usefixtures("no_leaks")


@pytest.fixture
def lanes() -> Iterator[Lanes]:
    """Lanes with eight threads; closed afterwards."""
    lanes = Lanes(8)
    yield lanes
    lanes.close()


def assisted(
    lane: PoolLane, gate: Gate, helper: Callable[[], None], count: int = 1, **options: Any
) -> asyncio.Task[None]:
    """A call that waits at the gate, and that so many helpers assist."""

    def principal() -> None:
        lane.assist(helper, count)
        gate()

    return asyncio.create_task(lane.run(principal, **options))


def share(lane: PoolLane, items: int, helpers: int) -> set[str]:
    """Take items off a queue, with helpers; say which threads took one. For a lane thread."""
    queue = deque(range(items))
    took: set[str] = set()
    there = threading.Barrier(2)

    def work() -> None:
        while True:
            try:
                queue.popleft()
            except IndexError:
                return
            if len(took) < 2:
                took.add(str(threading.get_ident()))
                if helpers:
                    try:
                        there.wait(60)  # until two have come
                    except threading.BrokenBarrierError:
                        return

    lane.assist(work, helpers)
    work()
    return took


async def test_it_helps(lanes: Lanes) -> None:
    """Two threads take from one queue, while the call lasts."""
    lane = lanes.lane("a", limit=4)
    assert len(await lane.run(share, lane, 10, 2)) == 2


@pytest.mark.parametrize("limit", [1, 2])
async def test_without_threads_to_spare_the_call_does_it_alone(lanes: Lanes, limit: int) -> None:
    """On a lane of one or two threads no assistant starts, and nobody waits for it."""
    lane = lanes.lane("a", limit=limit)
    ran: list[int] = []

    def principal() -> int:
        lane.assist(lambda: ran.append(1), 5)
        return 7

    assert await lane.run(principal) == 7
    assert await lane.run(int, "8") == 8
    assert ran == []
    assert lanes.statistics().queued == 0, "assistants of a call that is done leave the queue"


async def test_the_last_thread_is_not_for_assistants(lanes: Lanes, gate: Gate) -> None:
    """A call with assistants leaves its lane a thread for a short call, queued after them."""
    lane = lanes.lane("a", limit=4)
    helpers = Gate()

    task = assisted(lane, gate, helpers, 10)
    await eventually(lambda: helpers.inside == 2)
    assert await lane.run(int, "5") == 5, "although eight assistants stand before it"
    assert helpers.entered == 2
    helpers.open()
    await eventually(lambda: helpers.entered == 10)
    assert helpers.most == 2
    gate.open()
    await task


async def test_calls_go_before_assistants_that_may_not_start(lanes: Lanes, gate: Gate) -> None:
    """Assistants at the head of the queue do not hold up the calls behind them."""
    lane = lanes.lane("a", limit=2)

    task = assisted(lane, gate, gate, 3)
    await eventually(lambda: gate.inside == 1)
    assert [await lane.run(int, str(n)) for n in range(5)] == list(range(5))
    gate.open()
    await task


async def test_assistants_share_the_deadline(lanes: Lanes, gate: Gate) -> None:
    """When the call is overdue, its assistants are stuck with it, and come back each by itself."""
    lane = lanes.lane("a", limit=4)
    helpers = Gate()

    task = assisted(lane, gate, helpers, 2, timeout=1.0)
    await eventually(lambda: helpers.inside == 2 and gate.inside == 1)
    with pytest.raises(LaneTimeoutError):
        await task
    assert lane.stuck == 3
    assert await lane.run(int, "1") == 1
    helpers.open()
    await eventually(lambda: lane.stuck == 1)
    gate.open()
    await eventually(lambda: lane.stuck == 0)
    assert lanes.statistics().stuck == 0


@pytest.mark.parametrize("helped", [True, False])
async def test_all_stuck_with_assistants(lanes: Lanes, gate: Gate, helped: bool) -> None:
    """A call that asks for help, and others, hang: the lane has no thread left, and says so, whether help came or not."""
    lane = lanes.lane("a", limit=3)
    helpers = Gate()

    def principal() -> None:
        lane.assist(helpers)
        gate()

    calls: list[Callable[[], None]] = [principal, gate] if helped else [gate, principal, gate]
    tasks: list[asyncio.Task[None]] = []
    for call in calls:  # the last thread is not for assistants
        tasks.append(asyncio.create_task(lane.run(call, timeout=1.0)))
        await eventually(lambda: gate.inside == len(tasks) and helpers.inside == helped)
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(result, LaneTimeoutError) for result in results)
    assert (lane.stuck, helpers.entered) == (3, helped)
    with pytest.raises(LaneStuckError):
        await lane.run(int)
    helpers.open()
    gate.open()
    await eventually(lambda: lane.stuck == 0)


async def test_assistants_of_a_cancelled_call(lanes: Lanes, gate: Gate) -> None:
    """They are stuck with it at its deadline."""
    lane = lanes.lane("a", limit=4, timeout=1.0)

    task = assisted(lane, gate, gate, 2)
    await eventually(lambda: gate.inside == 3)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await eventually(lambda: lane.stuck == 3)
    gate.open()
    await eventually(lambda: lane.stuck == 0)


async def test_an_assistant_s_assistant(lanes: Lanes, gate: Gate) -> None:
    """An assistant may ask for more: they belong to the call, not to it."""
    lane = lanes.lane("a", limit=5)

    def helper() -> None:
        lane.assist(gate)

    task = assisted(lane, gate, helper, timeout=1.0)
    await eventually(lambda: gate.inside == 2 and lane.statistics().running == 2)
    with pytest.raises(LaneTimeoutError):
        await task
    assert lane.stuck == 2
    gate.open()
    await eventually(lambda: lane.stuck == 0)


async def test_an_assistant_that_outlives_its_call(lanes: Lanes, gate: Gate) -> None:
    """It counts against its lane while it runs."""
    lane = lanes.lane("a", limit=3)
    inside = threading.Event()

    def helper() -> None:
        inside.set()
        gate()

    def principal() -> None:
        lane.assist(helper)
        inside.wait(120)

    await lane.run(principal)
    assert lanes.statistics().lanes[0].running == 1
    gate.open()
    await eventually(lambda: lanes.statistics().lanes[0].running == 0)


async def test_an_assistant_s_error_is_nobody_s(lanes: Lanes) -> None:
    """An assistant that raises takes nothing along."""
    lane = lanes.lane("a")
    failed = threading.Event()

    def helper() -> None:
        failed.set()
        raise OSError(5, "no")

    def principal() -> bool:
        lane.assist(helper)
        return failed.wait(120)

    assert await lane.run(principal)
    assert await lane.run(int, "1") == 1


async def test_only_from_its_own_lane(lanes: Lanes) -> None:
    """Asking for help from elsewhere is a mistake, and said to be one."""
    lane, other = lanes.lane("a"), lanes.lane("b")
    with pytest.raises(RuntimeError, match="run on this lane"):
        lane.assist(int)  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="run on this lane"):
        await other.run(lane.assist, int)


async def test_busy_lanes_with_assistants_do_not_deadlock() -> None:
    """Calls that ask for more than there is end all the same, under a cap of two threads."""
    with contextlib.closing(Lanes(2)) as lanes:
        own = [lanes.lane(f"lane {n}", limit=4) for n in range(6)]

        def principal(lane: PoolLane) -> int:
            queue = deque(range(200))
            done: list[int] = []

            def work() -> None:
                while queue:
                    try:
                        done.append(queue.popleft())
                    except IndexError:
                        return

            lane.assist(work, 3)
            work()
            return len(done)

        results = await asyncio.gather(*(lane.run(principal, lane) for lane in own for _ in range(20)))
        assert len(results) == 120
        await eventually(lambda: lanes.statistics().queued == 0, "an end of assistants whose principals are done")
