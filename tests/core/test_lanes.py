"""Lanes: limits, fairness, deadlines, stuck threads, and what becomes of results that nobody takes."""

from __future__ import annotations

import _thread
import asyncio
import contextlib
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from core_fakes import cancel_after, cancelling, eventually, run_python, steps
from leaks import threads

from astore.errors import LaneStuckError, LaneTimeoutError
from astore.lanes import Lanes
from astore.lanes import threads as lanes_module
from astore.lanes.job import PATIENCE, Patience, patient
from astore.lanes.lane import PoolLane
from astore.lanes.thread_setup import NAME
from astore.testing.faults import Gate

pytestmark = pytest.mark.usefixtures("no_leaks")


@pytest.fixture
def lanes() -> Iterator[Lanes]:
    """Lanes with four threads; closed afterwards."""
    lanes = Lanes(4)
    yield lanes
    lanes.close()


def numbers(lane: PoolLane) -> tuple[int, int, int]:
    """The lane's calls that run in time, are stuck, and wait."""
    found = lane.statistics()
    return found.running, found.stuck, found.queued


def start(lane: PoolLane, func: Any, *args: Any, **options: Any) -> asyncio.Task[Any]:
    """A call on the lane, in a task of its own."""
    return asyncio.create_task(lane.run(func, *args, **options))


DEADLINES = (0.05, 0.5, 5.0, 50.0)


async def overdue(lane: PoolLane, func: Any, *args: Any, **options: Any) -> LaneTimeoutError:
    """What a call that hangs ends with; one that found no thread in time, and never ran, is made again with more time."""
    for timeout in DEADLINES:
        with pytest.raises(LaneTimeoutError) as caught:
            await lane.run(func, *args, timeout=timeout, **options)
        if lane.stuck:
            break
    return caught.value


# ------------------------------------------------------------------------------------------------ results and errors


async def test_result_and_arguments(lanes: Lanes) -> None:
    """A call gets its arguments and its caller the result, from another thread than the loop's."""
    lane = lanes.lane("a")
    assert await lane.run(divmod, 17, 5) == (3, 2)
    assert await lane.run(threading.get_ident) != threading.get_ident()


@pytest.mark.parametrize("error", [OSError(5, "no"), ValueError("v"), TimeoutError("slow"), AssertionError("a")])
async def test_exceptions_reach_the_caller(lanes: Lanes, error: Exception) -> None:
    """An exception of the call is the caller's, the same object."""

    def fail() -> None:
        raise error

    with pytest.raises(type(error)) as caught:
        await lanes.lane("a").run(fail)
    assert caught.value is error


@pytest.mark.parametrize("error", [StopIteration("s"), SystemExit(3), KeyboardInterrupt(), GeneratorExit()])
async def test_exceptions_that_would_end_a_loop(lanes: Lanes, error: BaseException) -> None:
    """What a future cannot carry, or what would end the program, arrives as a RuntimeError that names it."""

    def fail() -> None:
        raise error

    lane = lanes.lane("a")
    with pytest.raises(RuntimeError, match=type(error).__name__):
        await lane.run(fail)
    assert await lane.run(int, "7") == 7, "the thread serves on"


async def test_cancelled_error_from_a_call_is_not_a_cancellation(lanes: Lanes) -> None:
    """A call that raises CancelledError does not make its caller look cancelled."""

    def fail() -> None:
        raise asyncio.CancelledError

    with pytest.raises(RuntimeError, match="CancelledError"):
        await lanes.lane("a").run(fail)


def test_bad_numbers() -> None:
    """Lanes without threads are refused."""
    with pytest.raises(ValueError, match="max_threads"):
        Lanes(0)
    with pytest.raises(ValueError, match="limit"):
        Lanes(1).lane("a", limit=0)


# ------------------------------------------------------------------------------------------------------------- limits


async def test_a_lane_keeps_to_its_limit(lanes: Lanes, gate: Gate) -> None:
    """Of ten calls on a lane of two, two run and eight wait; all are done in the end."""
    lane = lanes.lane("a", limit=2)
    calls = [start(lane, gate, n) for n in range(10)]
    await eventually(lambda: gate.inside == 2)
    assert numbers(lane) == (2, 0, 8)
    gate.open()
    assert await asyncio.gather(*calls) == list(range(10))
    assert gate.most == 2
    assert numbers(lane) == (0, 0, 0)


async def test_all_lanes_keep_to_the_cap(lanes: Lanes, gate: Gate) -> None:
    """Ten lanes of four threads share the four threads there are."""
    calls = [start(lanes.lane(f"lane {n}"), gate) for n in range(10) for _ in range(4)]
    await eventually(lambda: gate.inside == 4)
    found = lanes.statistics()
    assert (found.threads, found.stuck, found.queued) == (4, 0, 36)
    gate.open()
    await asyncio.gather(*calls)
    assert gate.most == 4
    assert lanes.statistics().threads <= 4


async def test_a_busy_lane_does_not_starve_another(gate: Gate) -> None:
    """A call waits for a turn, not for the thousand that another lane had queued before it."""
    done = 0

    def work() -> None:
        nonlocal done
        done += 1

    with contextlib.closing(
        Lanes(1)
    ) as lanes:  # of several threads, one that was to run the call might be made to wait
        busy, other = lanes.lane("busy"), lanes.lane("other")
        held = start(busy, gate)
        await eventually(lambda: gate.inside == 1)
        queued = [start(busy, work) for _ in range(1000)]
        await eventually(lambda: numbers(busy)[2] == 1000)
        late = start(other, lambda: done)
        await eventually(lambda: numbers(other)[2] == 1)
        gate.open()
        assert await late < 50
        await asyncio.gather(held, *queued)
        assert done == 1000


async def test_calls_of_a_lane_run_in_order(lanes: Lanes) -> None:
    """A lane of one thread is a queue."""
    lane = lanes.lane("a", limit=1)
    order: list[int] = []
    await asyncio.gather(*(lane.run(order.append, n) for n in range(100)))
    assert order == list(range(100))


# ---------------------------------------------------------------------------------------------------------- deadlines


async def test_a_running_call_past_its_deadline(lanes: Lanes, gate: Gate) -> None:
    """Its caller gets a timeout; its thread counts as stuck until it returns."""
    lane = lanes.lane("a", limit=2)
    error = await overdue(lane, gate)
    assert str(error) == f"a: the call did not return within {error.timeout:g} s"
    assert error.lane == "a"
    assert error.timeout in DEADLINES
    assert isinstance(error, TimeoutError)
    assert (numbers(lane), lane.stuck, lanes.statistics().stuck) == ((0, 1, 0), 1, 1)
    assert await lane.run(int, "1") == 1, "the lane has another thread"
    gate.open()
    await eventually(lambda: lane.stuck == 0)
    assert lanes.statistics().stuck == 0


async def test_the_lane_s_own_deadline(lanes: Lanes, gate: Gate) -> None:
    """A call that names no deadline gets the lane's."""
    with pytest.raises(LaneTimeoutError):
        await lanes.lane("a", timeout=0.02).run(gate)


async def test_a_queued_call_past_its_deadline(lanes: Lanes, gate: Gate) -> None:
    """A call that found no thread in time is never run, and counts for nothing."""
    lane = lanes.lane("a", limit=1)
    first = start(lane, gate)
    await eventually(lambda: gate.inside == 1)
    ran: list[int] = []
    with pytest.raises(LaneTimeoutError, match="found no free thread"):
        await lane.run(ran.append, 1, timeout=0.02)
    assert numbers(lane) == (1, 0, 0)
    gate.open()
    await first
    assert await lane.run(len, ran) == 0


async def test_no_deadline(lanes: Lanes) -> None:
    """An infinite deadline sets no timer."""
    assert await lanes.lane("a").run(int, "3", timeout=float("inf")) == 3


async def test_a_late_result_is_discarded(lanes: Lanes, gate: Gate) -> None:
    """What a call returns after its deadline goes to ``discard``, once, on the lane's thread."""
    lane = lanes.lane("a")
    discarded: list[tuple[str, int]] = []
    await overdue(lane, gate, "it", discard=lambda it: discarded.append((it, threading.get_ident())))
    gate.open()
    await eventually(lambda: discarded and not lanes.busy)
    assert discarded == [("it", await lane.run(threading.get_ident))], "it has one thread"


async def test_a_late_error_is_not_discarded(lanes: Lanes, gate: Gate) -> None:
    """A call that failed has no result to discard, and its error is nobody's."""
    lane = lanes.lane("a")
    discarded: list[object] = []

    def fail() -> None:
        gate()
        raise OSError(5, "no")

    await overdue(lane, fail, discard=discarded.append)
    gate.open()
    await eventually(lambda: lane.stuck == 0)
    await lane.run(int)
    assert not discarded


# -------------------------------------------------------------------------------------------------------------- stuck


async def test_all_stuck_fails_at_once(lanes: Lanes, gate: Gate) -> None:
    """With all its threads stuck, a lane's calls are not even tried; with one back, they are."""
    lane = lanes.lane("a", limit=2)
    calls = [start(lane, gate, timeout=1.0) for _ in range(2)]
    await eventually(lambda: gate.inside == 2)
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(result) for result in results] == [LaneTimeoutError, LaneTimeoutError]
    with pytest.raises(LaneStuckError, match="a: all 2 threads hang") as caught:
        await lane.run(int)
    assert caught.value.lane == "a"
    assert numbers(lane) == (0, 2, 0)
    gate.open()
    await eventually(lambda: lane.stuck == 0)
    assert await lane.run(int, "5") == 5


async def test_stuck_threads_do_not_count_against_the_cap(gate: Gate) -> None:
    """Hung pools cost the others nothing: all the threads of the cap are still to be had."""
    with contextlib.closing(Lanes(2)) as lanes:
        hung = [lanes.lane(f"hung {n}", limit=3) for n in range(3)]
        calls = [start(lane, gate, timeout=1.0) for lane in hung for _ in range(3)]
        await eventually(lambda: gate.inside == 2)
        results = await asyncio.gather(*calls, return_exceptions=True)
        assert all(isinstance(result, TimeoutError) for result in results)
        stuck = lanes.statistics().stuck
        assert stuck >= 2
        await eventually(lambda: gate.inside == stuck)
        other, well = Gate(), lanes.lane("well")
        running = [start(well, other, n) for n in range(4)]
        await eventually(lambda: other.inside == 2)
        assert numbers(well) == (2, 0, 2)
        assert lanes.statistics().threads == stuck + 2
        gate.open()  # what was stuck comes back while the cap is full: those threads go
        await eventually(lambda: lanes.statistics().stuck == 0)
        assert lanes.statistics().threads == 2
        other.open()
        assert await asyncio.gather(*running) == [0, 1, 2, 3]
        assert other.most == 2


async def test_a_call_queued_behind_a_stuck_one_starts_when_that_returns(
    gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread that comes back wakes another for its lane, even if it is one too many itself."""
    monkeypatch.setattr(lanes_module, "IDLE_SECONDS", 60.0)  # after these a thread looks for work by itself
    monkeypatch.setattr("astore.lanes.lane.LOST_SECONDS", 60.0)
    with contextlib.closing(Lanes(1)) as lanes:
        lane, other = lanes.lane("a", limit=1), lanes.lane("b")
        hung = start(lane, gate, timeout=1.0)
        await eventually(lambda: gate.inside == 1)
        queued = start(lane, int, "4")
        with pytest.raises(LaneTimeoutError):
            await hung
        await other.run(int)  # a second thread, idle now
        gate.open()
        async with asyncio.timeout(lanes_module.IDLE_SECONDS / 2):
            assert await queued == 4


async def test_a_call_that_is_given_up_is_told(lanes: Lanes, gate: Gate) -> None:
    """A call learns that its caller was cancelled, or that its deadline has passed; its assistants too; others do not."""
    lane = lanes.lane("a", limit=3)
    told: list[bool] = []

    def work() -> None:
        lane.assist(lambda: told.append(asked()))
        gate()
        told.append(lane.given_up)

    def asked() -> bool:
        gate()
        return lane.given_up

    cancelled = asyncio.create_task(lane.run(work))
    await eventually(lambda: gate.inside == 2)
    cancelled.cancel()
    await asyncio.gather(cancelled, return_exceptions=True)
    gate.open()
    await eventually(lambda: told == [True, True])
    assert await lane.run(lambda: lane.given_up) is False
    assert lane.given_up is False, "here no call runs"


async def test_a_patient_caller(lanes: Lanes, gate: Gate) -> None:
    """A caller's longer time holds for calls with the lane's own deadline, also if it is given while they run."""
    lane = lanes.lane("a", limit=3, timeout=0.05)
    patience = Patience(0.06)
    PATIENCE.set(patience)
    long, short = start(lane, gate), asyncio.create_task(lane.run(gate, timeout=0.05))
    patience.extend(600)
    with pytest.raises(LaneTimeoutError, match=r"within 0\.05 s"):
        await short
    await asyncio.sleep(0.1)
    assert not long.done()
    gate.open()
    await long
    with patient(None):
        assert PATIENCE.get() is patience
    with patient(1):
        assert PATIENCE.get() is not patience


async def test_a_patient_caller_keeps_its_result(lanes: Lanes, gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    """A call that returns between the lane's deadline and its caller's is not discarded when that has passed, too."""
    lane = lanes.lane("a", timeout=0.05)
    discarded: list[object] = []
    with patient(600):
        task = start(lane, gate, "it", discard=discarded.append)
        await eventually(lambda: gate.inside == 1 and lanes.statistics().stuck == 1, "the lane's deadline")
        gate.open()
        assert await task == "it"
        patience = PATIENCE.get()
        assert patience is not None
    patience.until = 0.0
    loop = asyncio.get_running_loop()
    with monkeypatch.context() as later:
        later.setattr(loop, "time", lambda: time.monotonic() + 1200)
        await steps(5)  # whatever timer there is comes due
    await lane.run(int, timeout=60)
    assert not discarded


async def test_a_patient_caller_keeps_no_result_waiting(lanes: Lanes, gate: Gate) -> None:
    """What a call returned is not kept until its caller's patience would have ended."""
    lane = lanes.lane("a", timeout=0.05)

    class Result:
        """Something that can be referred to weakly."""

    with patient(600):
        task = start(lane, lambda: gate(Result()), discard=lambda _: None)
        await asyncio.sleep(0.1)
        gate.open()
        kept = weakref.ref(await task)
    del task
    await eventually(lambda: kept() is None, "the end of the result")


async def test_a_caller_that_is_closed(lanes: Lanes, gate: Gate) -> None:
    """A coroutine that is closed while it waits takes no result: it is discarded."""
    lane = lanes.lane("a")
    discarded: list[object] = []
    call = lane.run(gate, "it", discard=discarded.append)
    call.send(None)
    await eventually(lambda: gate.inside == 1)
    call.close()
    gate.open()
    await eventually(lambda: discarded == ["it"])


async def test_an_abandoned_call_is_stuck_at_its_deadline(lanes: Lanes, gate: Gate) -> None:
    """Cancelling the caller does not take the deadline off the call."""
    lane = lanes.lane("a")
    task = start(lane, gate, timeout=1.0)
    await eventually(lambda: gate.inside == 1)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await eventually(lambda: lane.stuck == 1)
    gate.open()
    await eventually(lambda: lane.stuck == 0)


# ------------------------------------------------------------------------------------------------------- cancellation


async def test_cancelled_while_queued(lanes: Lanes, gate: Gate) -> None:
    """A call whose caller went before it started never runs, and leaves the queue."""
    lane = lanes.lane("a", limit=1)
    first = start(lane, gate)
    await eventually(lambda: gate.inside == 1)
    ran: list[int] = []
    discarded: list[object] = []
    task = start(lane, ran.append, 1, discard=discarded.append)
    await eventually(lambda: numbers(lane)[2] == 1)
    await cancelling(task)
    assert numbers(lane) == (1, 0, 0)
    gate.open()
    await first
    await lane.run(int)
    assert (ran, discarded) == ([], [])


async def test_cancelled_while_running(lanes: Lanes, gate: Gate) -> None:
    """The caller goes at once; the result is discarded when it comes."""
    lane = lanes.lane("a")
    discarded: list[object] = []
    task = start(lane, gate, "it", discard=discarded.append)
    await eventually(lambda: gate.inside == 1)
    await cancelling(task)
    assert (discarded, numbers(lane)) == ([], (1, 0, 0))
    gate.open()
    await eventually(lambda: discarded == ["it"])
    await eventually(lambda: numbers(lane) == (0, 0, 0))


@pytest.mark.parametrize("rounds", range(6))
async def test_cancelled_with_the_result_on_its_way(lanes: Lanes, rounds: int) -> None:
    """Whenever the cancellation comes, the result is either the caller's or discarded: once, and never neither."""
    lane = lanes.lane("a")
    discarded: list[int] = []
    taken: list[int] = []
    returned = threading.Event()

    def call(number: int) -> int:
        returned.set()
        return number

    for number in range(50):
        returned.clear()

        async def wait(number: int = number) -> int:
            return await lane.run(call, number, discard=discarded.append)

        task = asyncio.create_task(wait())
        await asyncio.sleep(0)
        returned.wait(120)  # the loop stands: the result is now in its queue, or will be in an instant
        _wait_until_delivered(lanes)
        for _ in range(rounds):
            await asyncio.sleep(0)
        task.cancel()
        try:
            taken.append(await task)
        except asyncio.CancelledError:
            pass
    await eventually(lambda: len(discarded) + len(taken) >= 50, "every result in somebody's hands")
    await lane.run(int)
    assert sorted(discarded + taken) == list(range(50))


def _wait_until_delivered(lanes: Lanes) -> None:
    deadline = time.monotonic() + 120
    while any(lane.running for lane in lanes.statistics().lanes) and time.monotonic() < deadline:
        pass


async def test_cancelled_after_any_number_of_rounds(lanes: Lanes) -> None:
    """The same without looking at the stages: after k rounds of the loop, for every k."""
    lane = lanes.lane("a")
    for rounds in range(12):
        discarded: list[int] = []

        async def call(rounds: int = rounds, discarded: list[int] = discarded) -> int:
            return await lane.run(int, str(rounds), discard=discarded.append)

        cancelled, result = await cancel_after(rounds, call)
        await eventually(lambda: numbers(lane) == (0, 0, 0))
        await lane.run(int)
        if cancelled:
            assert discarded in ([], [rounds])
        else:
            assert (result, discarded) == (rounds, [])


async def test_a_failing_discard_hurts_nobody(lanes: Lanes, gate: Gate) -> None:
    """An exception in ``discard`` ends there."""
    lane = lanes.lane("a")

    def discard(_: object) -> None:
        raise OSError(9, "closed")

    task = start(lane, gate, discard=discard)
    await eventually(lambda: gate.inside == 1)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    gate.open()
    await eventually(lambda: numbers(lane) == (0, 0, 0))
    assert await lane.run(int, "2") == 2


def test_a_result_that_comes_to_a_loop_about_to_be_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its caller is cancelled while the result is on its way, and the loop never looks at it: it is discarded, once."""
    lanes, sending, sent = Lanes(2), threading.Event(), threading.Event()
    discarded: list[object] = []
    loop = asyncio.new_event_loop()
    send = loop.call_soon_threadsafe

    def slowly(*args: Any) -> Any:
        sending.set()
        closing.wait()
        found = send(*args)
        sent.set()
        return found

    async def main() -> None:
        task = asyncio.create_task(lanes.lane("a").run(int, "7", discard=discarded.append))
        await eventually(sending.is_set)
        task.cancel()
        await asyncio.wait([task])

    closing = threading.Event()
    monkeypatch.setattr(loop, "call_soon_threadsafe", slowly)
    loop.run_until_complete(main())
    closing.set()
    assert sent.wait(120)
    loop.close()
    assert asyncio.run(lanes.lane("b").run(int, "6")) == 6
    lanes.close()
    deadline = time.monotonic() + 120
    while not discarded and time.monotonic() < deadline:
        time.sleep(0.001)
    assert discarded == [7]


def test_a_result_after_the_loop_is_closed() -> None:
    """A call that outlives its loop has its result discarded, and its thread goes on."""
    lanes, gate = Lanes(2), Gate()
    lane = lanes.lane("a")
    discarded: list[object] = []
    done = threading.Event()

    async def main() -> None:
        task = asyncio.create_task(lane.run(gate, "it", discard=lambda it: (discarded.append(it), done.set())))
        await eventually(lambda: gate.inside == 1)
        loop = asyncio.get_running_loop()
        loop.call_soon(loop.stop)
        task.add_done_callback(lambda _: None)

    loop = asyncio.new_event_loop()
    task = loop.create_task(main())
    loop.run_until_complete(task)
    pending = asyncio.all_tasks(loop)
    loop.close()
    gate.open()
    assert done.wait(120)
    assert discarded == ["it"]
    assert asyncio.run(lane.run(int, "6")) == 6, "another loop may use the lane"
    lanes.close()
    for left in pending:
        left.get_coro().close()
        left._log_destroy_pending = False


# ------------------------------------------------------------------------------------------------ threads come and go


async def test_as_many_threads_as_are_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a rush, calls that come one by one keep one thread, not all in turn."""
    monkeypatch.setattr(lanes_module, "IDLE_SECONDS", 0.1)
    with contextlib.closing(Lanes(8)) as lanes:
        lane = lanes.lane("a", limit=8)
        counts: list[int] = []
        barrier = threading.Barrier(8, action=lambda: counts.append(lanes.statistics().threads))
        await asyncio.gather(*(lane.run(barrier.wait, 50.0) for _ in range(8)))
        assert counts == [8]
        async with asyncio.timeout(60):
            while lanes.statistics().threads > 2:
                await lane.run(int)


async def test_idle_threads_go(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread without work stays a moment and goes."""
    monkeypatch.setattr(lanes_module, "IDLE_SECONDS", 0.05)
    lanes, gate = Lanes(4), Gate()
    calls = [start(lanes.lane("a"), gate) for _ in range(4)]
    await eventually(lambda: gate.inside == 4)
    gate.open()
    await asyncio.gather(*calls)
    await eventually(lambda: lanes.statistics().threads == 0)
    assert await lanes.lane("b").run(int, "1") == 1, "and another comes when it is needed"
    lanes.close()


async def test_closing(lanes: Lanes, gate: Gate) -> None:
    """Closing lets idle threads go now and busy ones later; what is queued still runs; twice is once."""
    lane = lanes.lane("a", limit=1)
    first, second = start(lane, gate, 1), start(lane, gate, 2)
    await eventually(lambda: gate.inside == 1)
    lanes.close()
    lanes.close()
    gate.open()
    assert await asyncio.gather(first, second) == [1, 2]
    await eventually(lambda: lanes.statistics().threads == 0)


async def test_a_closed_lane_leaves_the_statistics(lanes: Lanes, gate: Gate) -> None:
    """A call on a lane that was closed ends as it would have; the lane is not listed any more."""
    lane = lanes.lane("a")
    task = start(lane, gate, 1)
    await eventually(lambda: gate.inside == 1)
    lane.close()
    lane.close()
    assert lanes.statistics().lanes == ()
    assert numbers(lane) == (1, 0, 0), "it still tells its own"
    gate.open()
    assert await task == 1


async def test_no_more_threads_to_be_had(lanes: Lanes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the system gives no more threads, those there are do the work; without any, the caller is told."""
    lane = lanes.lane("a")
    real = _thread.start_new_thread

    def refuse(serve: Callable[[], None], arguments: tuple[()]) -> int:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(_thread, "start_new_thread", refuse)
    ran: list[int] = []
    with pytest.raises(RuntimeError, match="no thread can be started"):
        await lane.run(ran.append, 1)
    assert numbers(lane) == (0, 0, 0)
    monkeypatch.setattr(_thread, "start_new_thread", real)
    await lane.run(int)
    assert ran == [], "a call that was refused does not run later"
    monkeypatch.setattr(_thread, "start_new_thread", refuse)
    assert await asyncio.gather(*(lane.run(int, str(n)) for n in range(8))) == list(range(8))


async def test_an_error_leaves_no_cycle(lanes: Lanes) -> None:
    """What a failed call held is let go without waiting for the garbage collector."""
    import gc
    import weakref

    class Thing:
        pass

    def fail(thing: Thing) -> None:
        raise OSError(5, "no")

    lane = lanes.lane("a")
    thing = Thing()
    gone = weakref.ref(thing)
    gc.disable()
    try:
        try:
            await lane.run(fail, thing)
        except OSError:
            pass
        del thing
        await lane.run(int)
        await eventually(lambda: gone() is None, "the thing's end")
    finally:
        gc.enable()


async def test_the_loop_does_not_wait_for_the_lock(lanes: Lanes) -> None:
    """A call is made a moment later if another thread has the threads' lock. Cancelled meanwhile, it never is."""
    lane = lanes.lane("pool")
    done: list[str] = []
    with vars(lanes)["_threads"]._lock:
        made, cancelled = start(lane, done.append, "made"), start(lane, done.append, "cancelled")
        await steps(2)
        await cancelling(cancelled)
    await made
    await lane.run(int)
    assert done == ["made"]
    assert numbers(lane) == (0, 0, 0)


async def test_threads_have_a_name(lanes: Lanes) -> None:
    """All of them, also those that were started by others of them."""
    lane = lanes.lane("pool")
    await eventually(lambda: not threads()[NAME], "the end of all earlier threads")
    gate = Gate()

    def call() -> None:
        lane.assist(gate, 2)
        gate()

    work = start(lane, call)
    await gate.reached(3)
    try:
        assert threads()[NAME] == 3
    finally:
        gate.open()
    await work


def test_a_process_with_a_hung_thread_exits() -> None:
    """A program whose call hangs does not wait for it when it wants to end."""
    code = """
import asyncio, time
from astore.lanes import Lanes

async def main():
    lanes = Lanes(2)
    lane = lanes.lane("hung")
    while not lane.stuck:  # a busy machine gives the call its thread too late
        try:
            await lane.run(time.sleep, 600, timeout=0.05)
        except TimeoutError:
            pass
    print(time.time())

asyncio.run(main())
"""
    done = run_python(code, timeout=200.0)
    assert done.returncode == 0, done.stderr
    assert time.time() - float(done.stdout) < 60.0
