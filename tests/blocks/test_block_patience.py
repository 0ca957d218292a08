"""The calls of a block pool have the time that their caller gives, whether they are coroutines or blocking."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from memory_blocks import memory

from astore.backend import Context
from astore.blocks.calls import Calls
from astore.commands import LaneCommandRunner
from astore.errors import LaneTimeoutError
from astore.lanes import Lanes
from astore.lanes.job import PATIENCE, patient
from astore.logs import get_logger
from astore.manager import Manager
from astore.model import PoolDef, Source
from astore.registry import BackendRegistry

LIMIT = 0.4
TAKES = 3 * LIMIT

BOTH = pytest.mark.parametrize("on_the_loop", [False, True])


@pytest.fixture
async def calls() -> AsyncIterator[Calls]:
    """Calls with a deadline of LIMIT."""
    lanes = Lanes()
    lane = lanes.lane("blocks", limit=4, timeout=LIMIT)
    yield Calls(Context("p", "", lane, LaneCommandRunner(lane), get_logger(), LIMIT))
    lanes.close()


def slow(on_the_loop: bool) -> Callable[[], Any]:
    """A call that takes longer than LIMIT."""

    async def wait() -> str:
        await asyncio.sleep(TAKES)
        return "done"

    def block() -> str:
        time.sleep(TAKES)
        return "done"

    return wait if on_the_loop else block


@BOTH
async def test_patience(calls: Calls, on_the_loop: bool) -> None:
    """A call has its caller's time if that is longer than the pool's, and not if it names a deadline of its own."""
    call = slow(on_the_loop)
    with pytest.raises(LaneTimeoutError):
        await calls.run(call)
    with patient(30.0):
        assert await calls.run(call) == "done"
        with pytest.raises(LaneTimeoutError):
            await calls.run(call, timeout=LIMIT)
    with patient(LIMIT / 2), pytest.raises(LaneTimeoutError):
        await calls.run(call)


@BOTH
async def test_patience_that_grows(calls: Calls, on_the_loop: bool) -> None:
    """A caller who joins a call under way, and has more time, gives it that time."""
    with patient(0.0):
        patience = PATIENCE.get()
        assert patience is not None
        calling = asyncio.ensure_future(calls.run(slow(on_the_loop)))
        await asyncio.sleep(0)
        patience.extend(30.0)
        assert await calling == "done"


async def test_an_awaitable_of_a_blocking_call(calls: Calls) -> None:
    """What a blocking call returns is awaited for as long."""
    with patient(30.0):
        assert await calls.run(lambda: slow(True)()) == "done"


@BOTH
async def test_refresh(tmp_path: Path, storage: Any, monkeypatch: pytest.MonkeyPatch, on_the_loop: bool) -> None:
    """A refresh with a long deadline lists a storage that takes longer than ``call_timeout``."""
    kind = memory.PoolOnTheLoop if on_the_loop else memory.MemoryPool
    real, wait = kind.list, slow(on_the_loop)

    async def list_on_the_loop(pool: Any, known: Any) -> Any:
        await wait()
        return await real(pool, known)

    def list_on_the_lane(pool: Any, known: Any) -> Any:
        wait()
        return real(pool, known)

    memory.STORAGES[storage.name] = storage
    registry = BackendRegistry()
    backend = memory.MemoryOnTheLoopBackend if on_the_loop else memory.MemoryBackend
    async with Manager(tmp_path / "state", registry=registry, call_timeout=LIMIT) as manager:
        manager.registry.register(backend())
        pool = await manager.define(PoolDef(type="memory", name="blocks", source=Source(name=storage.name)))
        await pool.start(timeout=30.0)
        storage.create("a", 512)
        monkeypatch.setattr(kind, "list", list_on_the_loop if on_the_loop else list_on_the_lane)
        assert (await pool.refresh(timeout=30.0)).added == ("a",)
