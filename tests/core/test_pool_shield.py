"""Clean-up that no cancellation cuts short."""

from __future__ import annotations

import asyncio

import anyio
import pytest
from core_fakes import Hold, steps

from astore.cancellation import shielded


async def test_what_it_returns_and_raises() -> None:
    """Not cancelled, it is the call itself."""

    async def call(error: Exception | None) -> int:
        await asyncio.sleep(0)
        if error is not None:
            raise error
        return 42

    assert await shielded(call(None)) == 42
    with pytest.raises(KeyError):
        await shielded(call(KeyError("x")))


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("times", [1, 5])
async def test_cancelled(fails: bool, times: int, caplog: pytest.LogCaptureFixture) -> None:
    """However often it is cancelled: the call ends first, then the cancellation comes; an error of the call is dropped."""
    hold, ended = Hold(), []

    async def call() -> None:
        await hold.wait()
        ended.append(True)
        if fails:
            raise OSError(5, "broken")

    task = asyncio.ensure_future(shielded(call()))
    await hold.reached()
    for _ in range(times):
        task.cancel()
        await steps(2)
    assert not task.done()
    hold.release()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended == [True]
    del task
    assert not caplog.records


async def test_inside_deadlines() -> None:
    """asyncio's and anyio's deadlines come after it, and are what they were."""
    ended = []

    async def call() -> None:
        await asyncio.sleep(0.05)
        ended.append(True)

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await shielded(call())
    with anyio.move_on_after(0.01) as scope:
        await shielded(call())
        await asyncio.sleep(1)
    assert scope.cancelled_caught
    assert ended == [True, True]


async def test_a_call_that_is_cancelled_itself() -> None:
    """A call that ends as cancelled, as when a loop shuts down, is a cancellation."""

    async def call() -> None:
        raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        await shielded(call())
    hold = Hold()

    async def waits() -> None:
        await hold.wait()
        raise asyncio.CancelledError

    task = asyncio.ensure_future(shielded(waits()))
    await hold.reached()
    task.cancel()
    hold.release()
    with pytest.raises(asyncio.CancelledError):
        await task
