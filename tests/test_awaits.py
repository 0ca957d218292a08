"""The suite's cancellation at each await: of the call, and of the tasks that it begins."""

from __future__ import annotations

import asyncio

from astore.testing.conformance.awaits import cancelled_at
from astore.testing.conformance.base import cancel_everywhere


async def test_each_await_once() -> None:
    """A call is cancelled at its own awaits and at those of its tasks, in their order; then it ends by itself."""
    reached: list[str] = []

    async def step(name: str) -> None:
        reached.append(name)
        await asyncio.sleep(0)

    async def child() -> None:
        await step("child 1")
        await step("child 2")

    async def call() -> None:
        await step("call")
        await asyncio.create_task(child())
        await step("end")

    seen = []
    for number in range(1, 10):
        reached.clear()
        task, told = await cancelled_at(call, number)
        seen.append((told, task.cancelled(), list(reached)))
        if not told:
            break
    steps = ["call", "child 1", "child 2", "end"]
    assert seen == [
        (True, True, ["call"]),
        (True, True, ["call"]),  # it waits for its task, which never began
        (True, True, ["call", "child 1"]),
        (True, True, ["call", "child 1", "child 2"]),
        (True, True, steps),
        (False, False, steps),
    ]
    assert asyncio.get_running_loop().get_task_factory() is None


async def test_everywhere() -> None:
    """What goes wrong after one await only is found."""
    held = [False]

    async def careless() -> None:
        await asyncio.sleep(0)
        held[0] = True
        await asyncio.create_task(asyncio.sleep(0))
        held[0] = False
        await asyncio.sleep(0)

    left = []

    async def between(cancelled: bool) -> None:
        left.append((cancelled, held[0]))
        held[0] = False

    await cancel_everywhere(careless, between)
    assert (True, True) in left
    assert left[0] == left[-9] == (False, False), "at first, and when there are no more awaits"
