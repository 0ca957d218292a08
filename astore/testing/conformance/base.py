"""The fixtures and helpers of the conformance suite."""

from __future__ import annotations

import abc
import asyncio
import contextlib
import itertools
import os
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import msgspec
import pytest
import pytest_asyncio

from astore.backend import Backend, Context, PoolSession, Secrets
from astore.cancellation import cleanups_left_behind
from astore.commands import LaneCommandRunner
from astore.errors import AstoreError, PoolInaccessibleError
from astore.lanes import Lanes
from astore.logs import get_logger
from astore.manager import Manager
from astore.model import PoolDef, RefreshOutcome, Snapshot, VolumeInfo
from astore.pools.pool import Pool
from astore.registry import BackendRegistry
from astore.testing.conformance.awaits import cancelled_at
from astore.testing.conformance.source import SourceUnderTest

PATIENCE = 30.0
"""Seconds that a test waits for an event; far more than any takes."""

UNSETTLED = 1.1
"""Seconds after which a changed entry counts as settled."""

FALSE_CAPACITY = 4_242_424_242
"""A capacity in bytes that no volume of the suite has."""

FRACTIONS = tuple(n / 8 for n in range(1, 9))
"""The fractions of its duration after which a call is cancelled."""

NewSource = Callable[[], Awaitable[SourceUnderTest]]


class ConformanceBase(abc.ABC):
    """The suite's fixtures, and the methods by which a subclass describes its backend."""

    pytestmark: pytest.MarkDecorator = pytest.mark.asyncio

    source_class: ClassVar[type[SourceUnderTest]]
    """The class of :meth:`make_source`'s result; its ``can`` decides which tests are collected."""

    many: ClassVar[int] = 3000
    """How many entries a large pool has."""

    secrets: Secrets | None = None
    """Has the values of the secrets that the sources' definitions name; see :mod:`astore.testing.secrets`."""

    @abc.abstractmethod
    def make_source(self, folder: Path) -> SourceUnderTest:
        """Make an empty source, different from all others of the test. Called in a worker thread: it may block.

        :param folder: an empty folder for the source's data; its name can serve as the pool's.
        """

    def make_registry(self) -> BackendRegistry:
        """The registry with the backend; by default, that of all installed distributions."""
        return BackendRegistry()

    def make_manager(self, folder: Path, **settings: Any) -> Manager:
        """A Manager with the backend and the secrets. :param settings: more parameters of :class:`astore.Manager`."""
        return Manager(folder, registry=self.make_registry(), secrets=self.secrets, **settings)

    # ------------------------------------------------------------------------------------------------- fixtures

    @pytest_asyncio.fixture
    async def new_source(self, tmp_path: Path) -> AsyncIterator[NewSource]:
        """A function that makes sources; they are closed after the test."""
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
        async with self.make_manager(tmp_path / "state", call_timeout=150.0) as manager:
            yield manager
            for pool in manager.pools(active=True):
                await pool.stop()

    @pytest_asyncio.fixture
    async def pool(self, manager: Manager, source: SourceUnderTest) -> Pool:
        """A pool on an empty source, defined and not started."""
        return await manager.define(source.definition)

    @pytest_asyncio.fixture
    async def backend(self, manager: Manager, source: SourceUnderTest) -> Backend:
        """The backend under test."""
        return await manager.registry.get(source.definition.type)

    @pytest_asyncio.fixture
    async def context(self, backend: Backend) -> AsyncIterator[Context]:
        """A context as the core makes it, for tests that call a backend without a Manager."""
        lanes = Lanes()
        lane = lanes.lane("conformance", limit=backend.lane_threads)
        yield Context("conformance", "", lane, LaneCommandRunner(lane), get_logger(), PATIENCE, self.secrets)
        lanes.close()


# ---------------------------------------------------------------------------------------------------------- steps


async def start_with(pool: Pool, source: SourceUnderTest, files: dict[str, bytes]) -> None:
    """Put files into the source, and start the pool."""
    await source.put_all(files)
    await source.settle()
    await pool.start()


async def another(manager: Manager, new_source: NewSource) -> tuple[Pool, SourceUnderTest]:
    """Start another pool on a source of its own."""
    source = await new_source()
    pool = await manager.define(source.definition)
    await pool.start()
    return pool, source


def require(source: SourceUnderTest, ability: str) -> None:
    """Skip the test if the source lacks this ability."""
    if ability not in source.can:
        pytest.skip(f"the source lacks this: {ability}")


async def start_able(pool: Pool, *operations: str) -> None:
    """Start the pool; skip the test if its backend lacks this ability."""
    await pool.start()
    lacking = sorted(set(operations) - set(pool.abilities()))
    if lacking:
        pytest.skip(f"pools of type {pool.type} have no {', '.join(lacking)}")


async def refresh_settled(pool: Pool) -> None:
    """Refresh until all entries are settled and no access time changes."""
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
    """Return the snapshot with FALSE_CAPACITY for every volume, which no header says."""
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
    """Break the source inside the block."""
    await source.break_()
    try:
        yield
    finally:
        await source.mend()


@contextlib.asynccontextmanager
async def opened(backend: Backend, definition: PoolDef, context: Context) -> AsyncIterator[PoolSession]:
    """Open a session of a backend without a pool; stop and close it afterwards."""
    session = await backend.open(definition, context)
    try:
        yield session
    finally:
        try:
            await session.stop()
        finally:
            await session.aclose()


async def cancel_after(call: Callable[[], Awaitable[object]], seconds: float | None) -> bool:
    """Start ``call()``, and cancel it after some seconds; return whether it was cancelled. None: before it begins.

    An AstoreError counts as a result. Clean-ups that take longer than the call waits for them, as on slow storage, have ended
    when this returns.
    """

    async def body() -> None:
        await call()

    task = asyncio.ensure_future(body())
    if seconds is not None:
        await asyncio.sleep(seconds)
    task.cancel()
    return await _was_cancelled(task)


async def _was_cancelled(task: asyncio.Task[None]) -> bool:
    """Return how a task ends, and wait for clean-ups that take longer than it waits for them."""
    try:
        await task
    except asyncio.CancelledError:
        deadline = time.monotonic() + PATIENCE
        while cleanups_left_behind():
            assert time.monotonic() < deadline, "a clean-up does not end"
            await asyncio.sleep(0.01)
        return True
    except AstoreError:
        return False
    return False


async def cancel_everywhere(
    call: Callable[[], Awaitable[object]], between: Callable[[bool], Awaitable[object]]
) -> None:
    """Cancel ``call()`` again and again: before it begins, at each await, and at moments spread over the time that it takes.

    The awaits are its own and those of the tasks that it begins.

    :param between: called after each call, with whether it was cancelled; restores the state in which ``call`` can begin.
    """
    began = time.monotonic()
    await call()
    took = time.monotonic() - began
    await between(False)
    await between(await cancel_after(call, None))
    for number in itertools.count(1):
        task, told = await cancelled_at(call, number)
        await between(await _was_cancelled(task))
        if not told:
            break
    for fraction in FRACTIONS:
        await between(await cancel_after(call, took * fraction))


# --------------------------------------------------------------------------------------------------------- counts


class Census(NamedTuple):
    """The number of threads, descriptors and tasks, counted by :meth:`taken`; see :func:`assert_no_growth`."""

    threads: int
    files: Counter[str]
    tasks: int

    @classmethod
    async def taken(cls) -> Census:
        """Count them now."""
        threads, files = await asyncio.to_thread(_count)
        return cls(threads, files, len(asyncio.all_tasks()))

    def more_than(self, before: Census) -> list[str]:
        """Describe what there is more of than ``before``."""
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
    return sum(not name.startswith(("Dummy-", "asyncio_")) for name in names), files


async def assert_no_growth(before: Census, manager: Manager) -> None:
    """Assert that no threads, descriptors or tasks were added, and that no thread is in a call."""
    deadline = time.monotonic() + PATIENCE
    while True:
        lanes = manager.statistics().lanes
        busy = lanes.stuck or lanes.queued or any(lane.running for lane in lanes.lanes)
        problems = (await Census.taken()).more_than(before)
        if not busy and not problems:
            return
        assert time.monotonic() < deadline, f"left behind: {problems or lanes}"
        await asyncio.sleep(0.02)
