"""Work on several tasks leaves its caller as it was: a later cancellation of another task is not taken for its own."""

from __future__ import annotations

import asyncio
import errno

import pytest
from core_fakes import steps

from astore.cancellation import TaskGroup
from astore.errors import InvalidStateError
from astore.model import VolumeDef
from astore.pools.pool import Pool
from astore.testing.faults import Faults

MIB = 1 << 20


def left() -> int:
    """How many cancellations the current task has not got over."""
    task = asyncio.current_task()
    assert task is not None
    return task.cancelling()


async def fails(rounds: int) -> None:
    await steps(rounds)
    raise OSError(errno.EIO, "gone")


async def hangs() -> None:
    await asyncio.Event().wait()


@pytest.mark.parametrize("rounds", [0, 1, 5])
@pytest.mark.parametrize("inside", [True, False])
async def test_a_task_fails(rounds: int, inside: bool) -> None:
    """While the block waits, or the last tasks are waited for: the others are cancelled, and nothing is left."""

    async def work() -> None:
        async with TaskGroup() as group:
            group.create_task(hangs())
            group.create_task(fails(rounds))
            if inside:
                await hangs()

    with pytest.raises(ExceptionGroup) as caught:
        await work()
    assert [type(error) for error in caught.value.exceptions] == [OSError]
    assert left() == 0


async def test_the_block_fails() -> None:
    """Its error is among those that are raised, and its tasks are cancelled."""
    tasks = []

    async def work() -> None:
        async with TaskGroup() as group:
            tasks.append(group.create_task(hangs()))
            await steps(2)
            raise ValueError

    with pytest.raises(ExceptionGroup) as caught:
        await work()
    assert [type(error) for error in caught.value.exceptions] == [ValueError]
    assert tasks[0].cancelled()
    assert left() == 0


@pytest.mark.parametrize("inside", [True, False])
async def test_cancelled_from_outside(inside: bool) -> None:
    """A cancellation of the caller's own ends all tasks, and stays the caller's."""
    counts = []

    async def work() -> None:
        try:
            async with TaskGroup() as group:
                group.create_task(hangs())
                if inside:
                    await hangs()
        finally:
            counts.append(left())

    task = asyncio.ensure_future(work())
    await steps(5)
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
    assert counts == [1]


async def test_all_is_well() -> None:
    """Tasks may begin others; the block ends after the last."""
    done = []

    async def work(group: TaskGroup, depth: int) -> None:
        await steps(3)
        if depth:
            group.create_task(work(group, depth - 1))
        done.append(depth)

    async with TaskGroup() as group:
        group.create_task(work(group, 3))
    assert sorted(done) == [0, 1, 2, 3]


@pytest.mark.parametrize("work", ["upload", "copy"])
async def test_work_that_fails(pool: Pool, faults: Faults, work: str) -> None:
    """After an upload or a copy that failed, the same task is told of a pool that is stopped while it waits for its refresh."""
    disk = await pool.create_volume(VolumeDef("a", capacity=8 * MIB))
    await disk.upload(bytes(range(256)) * (8 * MIB // 256))
    faults.fail(("file.pwrite", "file.pread"), errno.ETIMEDOUT)
    with pytest.raises(OSError):
        await (disk.upload(b"x" * 8 * MIB) if work == "upload" else pool.copy_volume(disk, VolumeDef("b")))
    assert left() == 0
    gate = faults.hang("tree.scan")

    async def stop() -> None:
        await gate.reached()
        await pool.stop(force=True)

    stopping = asyncio.ensure_future(stop())
    with pytest.raises(InvalidStateError):
        await pool.refresh()
    gate.open()
    await stopping
