"""Lanes under random load: whatever is asked, in whatever order, the counts are right and nothing is lost."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Callable

from hypothesis import given, settings
from hypothesis import strategies as st

from astore.errors import LaneStuckError, LaneTimeoutError
from astore.lanes import Lanes, LanesStatistics
from astore.lanes.job import Job
from astore.lanes.lane import PoolLane


class Load:
    """Random calls, and the books on them."""

    def __init__(self, max_threads: int, limits: list[int]) -> None:
        self.lanes = Lanes(max_threads)
        self.own = [self.lanes.lane(f"lane {n}", limit=limit) for n, limit in enumerate(limits)]
        self.lock = threading.Lock()
        self.made: Counter[int] = Counter()
        self.discarded: Counter[int] = Counter()
        self.taken: Counter[int] = Counter()
        self.inside = 0
        self.outcomes: Counter[str] = Counter()
        self.stuck = 0
        threads = vars(self.lanes)["_threads"]
        submit: Callable[[Job], bool] = threads.submit

        def noting(job: Job) -> bool:
            self.stuck = job.lane.stuck  # there may be fewer at any moment, but not more until the loop goes on
            return submit(job)

        threads.submit = noting

    def work(self, number: int, lane: PoolLane, seconds: float, helpers: int) -> int:
        with self.lock:
            self.inside += 1
        try:
            if helpers:
                lane.assist(lambda: time.sleep(seconds / 2), helpers)
            if seconds:
                time.sleep(seconds)
            if number % 11 == 3:
                raise OSError(5, f"call {number} fails")
            with self.lock:
                self.made[number] += 1
            return number
        finally:
            with self.lock:
                self.inside -= 1

    def discard(self, number: int) -> None:
        with self.lock:
            self.discarded[number] += 1

    async def call(self, number: int, lane: PoolLane, seconds: float, helpers: int, timeout: float) -> None:
        try:
            result = await lane.run(self.work, number, lane, seconds, helpers, timeout=timeout, discard=self.discard)
        except LaneStuckError:
            assert self.stuck == lane.limit
            self.outcomes["stuck"] += 1
        except LaneTimeoutError:
            self.outcomes["late"] += 1
        except OSError:
            self.outcomes["failed"] += 1
        else:
            assert result == number
            self.taken[number] += 1

    def check(self) -> LanesStatistics:
        found = self.lanes.statistics()
        assert found.threads - found.stuck <= found.max_threads
        assert sum(lane.running for lane in found.lanes) <= found.max_threads
        assert sum(lane.stuck for lane in found.lanes) == found.stuck
        assert sum(lane.queued for lane in found.lanes) == found.queued
        for lane in found.lanes:
            assert 0 <= lane.running + lane.stuck <= lane.limit
        return found


CALLS = st.lists(
    st.tuples(
        st.integers(0, 3),  # which lane
        st.sampled_from([0.0, 0.0, 0.001, 0.004, 0.02]),  # seconds it takes
        st.sampled_from([0, 0, 0, 1, 3]),  # helpers it asks for
        st.sampled_from([0.0, 0.002, 0.01, 30.0, 30.0]),  # its deadline
        st.sampled_from([None, None, None, 0, 1, 5, 20]),  # rounds of the loop until it is cancelled
        st.integers(0, 2),  # rounds of the loop until the next
    ),
    min_size=1,
    max_size=60,
)


@settings(max_examples=60)
@given(calls=CALLS, max_threads=st.integers(1, 4), limits=st.lists(st.integers(1, 4), min_size=4, max_size=4))
def test_random_load(
    calls: list[tuple[int, float, int, float, int | None, int]], max_threads: int, limits: list[int]
) -> None:
    """Every result is taken or discarded, once; no limit is ever passed; at the end all counts are zero."""
    load = Load(max_threads, limits)

    async def main() -> None:
        tasks = []
        cancels: list[tuple[int, asyncio.Task[None]]] = []
        for number, (which, seconds, helpers, timeout, cancel, pause) in enumerate(calls):
            lane = load.own[which]
            task = asyncio.create_task(load.call(number, lane, seconds, helpers, timeout))
            tasks.append(task)
            if cancel is not None:
                cancels.append((cancel, task))
            for _ in range(pause):
                await asyncio.sleep(0)
            load.check()
            for left, other in cancels:
                if left == 0:
                    other.cancel()
            cancels = [(left - 1, other) for left, other in cancels if left]
        for _, task in cancels:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        wrong = [r for r in results if isinstance(r, BaseException) and not isinstance(r, asyncio.CancelledError)]
        assert not wrong, wrong
        deadline = time.monotonic() + 120
        while True:
            found = load.check()
            if not load.inside and not found.queued and not any(x.running + x.stuck for x in found.lanes):
                break
            assert time.monotonic() < deadline, found
            await asyncio.sleep(0.001)
        for lane in load.own:  # behind the discards that are on their way
            assert await lane.run(int, "1") == 1

    try:
        asyncio.run(main())
        deadline = time.monotonic() + 120
        while load.taken + load.discarded != load.made and time.monotonic() < deadline:
            time.sleep(0.001)
        assert load.taken + load.discarded == load.made
        assert not load.made or max(load.made.values()) == 1
        found = load.lanes.statistics()
        assert (found.stuck, found.queued) == (0, 0)
    finally:
        load.lanes.close()
