"""The fixtures of the conformance suite, and what its tests hold in their hands."""

from __future__ import annotations

import abc
import asyncio
import contextlib
import os
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import ClassVar

import msgspec
import pytest
import pytest_asyncio

from astore.backend import Backend, Context, PoolSession
from astore.commands import LaneCommandRunner
from astore.errors import AstoreError, PoolInaccessibleError
from astore.lanes import Lanes
from astore.logs import get_logger
from astore.manager import Manager
from astore.model import PoolDef, RefreshOutcome, Snapshot, VolumeInfo
from astore.pools.pool import Pool
from astore.registry import BackendRegistry
from astore.testing.conformance.source import SourceUnderTest

PATIENCE = 30.0
"""Seconds that a test waits for what has to come; far more than it ever takes."""

UNSETTLED = 1.1
"""Seconds after which an entry that was changed is no more taken for one that may be changing."""

FALSE_CAPACITY = 4_242_424_242
"""In bytes; no volume of the suite has it."""

STEPS = (0, 1, 2, 3, 5, 8, 13, 21, 34)
"""After how many rounds of the loop things are cancelled, at their beginning."""

FRACTIONS = tuple(n / 8 for n in range(1, 9))
"""And after which part of the time that they take."""

NewSource = Callable[[], Awaitable[SourceUnderTest]]


class ConformanceBase(abc.ABC):
    """What the subclass of a backend's authors says about it, and the fixtures made from that."""

    pytestmark = pytest.mark.asyncio

    source_class: ClassVar[type[SourceUnderTest]]
    """What :meth:`make_source` makes; its ``can`` decides which tests are collected."""

    many: ClassVar[int] = 3000
    """How many entries are many."""

    @abc.abstractmethod
    def make_source(self, folder: Path) -> SourceUnderTest:
        """A fresh, empty source, different from all others of the test. Called in a worker thread: it may block.

        :param folder: an empty folder for whatever it needs; its name will do for the pool's.
        """

    def make_registry(self) -> BackendRegistry:
        """The registry in which the backend is found; by default, that of all installed distributions."""
        return BackendRegistry()

    # ------------------------------------------------------------------------------------------------- fixtures

    @pytest_asyncio.fixture
    async def new_source(self, tmp_path: Path) -> AsyncIterator[NewSource]:
        """Makes sources, and closes them after the test."""
        async with contextlib.AsyncExitStack() as made:
            count = 0

            async def new_source() -> SourceUnderTest:
                nonlocal count
                count += 1
                folder = tmp_path / f"source{count}"
                await asyncio.to_thread(folder.mkdir)
                source = await asyncio.to_thread(self.make_source, folder)
                assert isinstance(source, self.source_class), "make_source() makes something else than source_class"
                made.push_async_callback(source.aclose)
                return source

            yield new_source

    @pytest_asyncio.fixture
    async def source(self, new_source: NewSource) -> SourceUnderTest:
        """The source of the test's pool."""
        return await new_source()

    @pytest_asyncio.fixture
    async def manager(self, tmp_path: Path, new_source: NewSource) -> AsyncIterator[Manager]:
        """An open Manager; its pools are stopped after the test."""
        async with Manager(tmp_path / "state", registry=self.make_registry()) as manager:
            yield manager
            for pool in manager.pools(active=True):
                await pool.stop()

    @pytest_asyncio.fixture
    async def pool(self, manager: Manager, source: SourceUnderTest) -> Pool:
        """A pool on an empty source: defined, and not started."""
        return await manager.define(source.definition)

    @pytest_asyncio.fixture
    async def backend(self, manager: Manager, source: SourceUnderTest) -> Backend:
        """The backend under test."""
        return await manager.registry.get(source.definition.type)

    @pytest_asyncio.fixture
    async def context(self, backend: Backend) -> AsyncIterator[Context]:
        """What the core lends a backend, for tests that call it without a Manager."""
        lanes = Lanes()
        lane = lanes.lane("conformance", limit=backend.lane_threads)
        yield Context("conformance", "", lane, LaneCommandRunner(lane), get_logger(), PATIENCE)
        lanes.close()


# ---------------------------------------------------------------------------------------------------------- steps


async def start_with(pool: Pool, source: SourceUnderTest, files: dict[str, bytes]) -> None:
    """Put files, and start the pool on them."""
    await source.put_all(files)
    await source.settle()
    await pool.start()


async def start_able(pool: Pool, *operations: str) -> None:
    """Start the pool; the test is not for backends whose pools cannot do this."""
    await pool.start()
    lacking = sorted(set(operations) - set(pool.abilities()))
    if lacking:
        pytest.skip(f"pools of type {pool.type} have no {', '.join(lacking)}")


async def refresh_settled(pool: Pool) -> None:
    """Refresh until nothing is taken for changing any more, and no time of access moves."""
    await asyncio.sleep(UNSETTLED)
    deadline = time.monotonic() + PATIENCE
    while True:
        before = pool.volumes
        await pool.refresh()
        if not pool.snapshot.unsettled and _same_objects(before, pool.volumes):
            return
        assert time.monotonic() < deadline, "refreshes of what nobody changes keep finding changes"
        await asyncio.sleep(0.1)


def _same_objects(one: tuple[VolumeInfo, ...], two: tuple[VolumeInfo, ...]) -> bool:
    return len(one) == len(two) and all(a is b for a, b in zip(one, two, strict=True))


def falsified(snapshot: Snapshot) -> Snapshot:
    """The same snapshot, but for a capacity that no volume has (FALSE_CAPACITY): what nobody ever read."""
    return Snapshot(
        {name: msgspec.structs.replace(one, capacity=FALSE_CAPACITY) for name, one in snapshot.by_name.items()},
        generation=snapshot.generation,
        taken_at=snapshot.taken_at,
        capacity=snapshot.capacity,
        allocation=snapshot.allocation,
        available=snapshot.available,
        errors=snapshot.errors,
    )


async def refresh_until_well(pool: Pool) -> RefreshOutcome:
    """Refresh until the source answers again, which a connection may take seconds to notice."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            return await pool.refresh()
        except PoolInaccessibleError:
            if time.monotonic() > deadline:
                raise
        await asyncio.sleep(0.1)


@contextlib.asynccontextmanager
async def broken(source: SourceUnderTest) -> AsyncIterator[None]:
    """The source does not answer, inside."""
    await source.break_()
    try:
        yield
    finally:
        await source.mend()


@contextlib.asynccontextmanager
async def opened(backend: Backend, definition: PoolDef, context: Context) -> AsyncIterator[PoolSession]:
    """A session of a backend, without a pool; stopped and closed on leaving."""
    session = await backend.open(definition, context)
    try:
        yield session
    finally:
        try:
            await session.stop()
        finally:
            await session.aclose()


async def cancel_when(call: Callable[[], Awaitable[object]], *, steps: int = 0, seconds: float = 0.0) -> bool:
    """Begin ``call()``, and cancel it after a number of rounds of the loop and of seconds; say whether it was.

    Errors of astore's that it ends with are as good as its result.
    """

    async def body() -> None:
        await call()

    task = asyncio.ensure_future(body())
    for _ in range(steps):
        await asyncio.sleep(0)
    if seconds:
        await asyncio.sleep(seconds)
    task.cancel()
    try:
        await task
    except asyncio.CancelledError:
        return True
    except AstoreError:
        return False
    return False


async def cancel_everywhere(
    call: Callable[[], Awaitable[object]], between: Callable[[bool], Awaitable[object]]
) -> None:
    """Cancel ``call()`` again and again, at its first steps and at moments spread over the time that it takes.

    :param between: called after each, with whether it was cancelled; brings everything back to where ``call`` can begin.
    """
    began = time.monotonic()
    await call()
    took = time.monotonic() - began
    await between(False)
    for steps in STEPS:
        await between(await cancel_when(call, steps=steps))
    for fraction in FRACTIONS:
        await between(await cancel_when(call, seconds=took * fraction))


# --------------------------------------------------------------------------------------------------------- counts


class Census:
    """How many threads, descriptors and tasks there are. Made by :meth:`taken`; see :func:`assert_no_growth`."""

    def __init__(self, threads: int, files: Counter[str], tasks: int) -> None:
        self.threads = threads
        self.files = files
        self.tasks = tasks

    @classmethod
    async def taken(cls) -> Census:
        """Count now."""
        threads, files = await asyncio.to_thread(_count)
        return cls(threads, files, len(asyncio.all_tasks()))

    def more_than(self, before: Census) -> list[str]:
        """What there is more of than ``before``, in words."""
        found = [f"descriptor: {name}" for name in (self.files - before.files).elements()]
        if self.tasks > before.tasks:
            found.append(f"{self.tasks - before.tasks} tasks: {sorted(str(task) for task in asyncio.all_tasks())}")
        if self.threads > before.threads:
            found.append(f"{self.threads - before.threads} threads: {sorted(t.name for t in threading.enumerate())}")
        return found


def _count() -> tuple[int, Counter[str]]:
    files: Counter[str] = Counter()
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # the descriptor of this very listing
            target = os.readlink(f"/proc/self/fd/{name}")
            files[target if target.startswith("/") else target.partition(":[")[0]] += 1
    # neither threads that wait for work, which astore's lanes keep for a while, nor those of asyncio.to_thread
    names = [thread.name for thread in threading.enumerate()]
    return sum(not name.startswith(("astore-lane", "asyncio_")) for name in names), files


async def assert_no_growth(before: Census, manager: Manager) -> None:
    """Nothing is left of what was done since, and no thread is in a call any more."""
    deadline = time.monotonic() + PATIENCE
    while True:
        lanes = manager.statistics().lanes
        busy = lanes.stuck or lanes.queued or any(lane.running for lane in lanes.lanes)
        problems = (await Census.taken()).more_than(before)
        if not busy and not problems:
            return
        assert time.monotonic() < deadline, f"left behind: {problems or lanes}"
        await asyncio.sleep(0.02)
