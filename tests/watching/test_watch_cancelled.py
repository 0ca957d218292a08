"""The watch is cancelled at each await of its tasks: nothing is left, and the pools work."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from core_fakes import FakeBackend, eventually, fake, fake_registry
from leaks import LeakCheck
from watching_support import dir_pool, watched

import astore
from astore.cancellation import bounded
from astore.manager import pool_watch
from astore.manager.watching import Watch
from astore.notices import FolderNotices
from astore.testing.conformance.awaits import Counted


class Canceller:
    """Cancels a task when the watch's own tasks wait for the so-many-eth time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.left = 0
        self.task: asyncio.Task[None] | None = None
        spawn = Watch._spawn

        def counted(watch: Watch, call: Coroutine[None, None, None], name: str) -> asyncio.Task[None]:
            return spawn(watch, Counted(call, self._waits), name)

        monkeypatch.setattr(Watch, "_spawn", counted)

    def _waits(self) -> None:
        self.left -= 1
        if not self.left and self.task is not None:
            self.task.cancel()

    async def at_each(self, call: Callable[[], Awaitable[None]], after: Callable[[], Awaitable[None]]) -> int:
        """Cancel ``call()`` at its first await, then its second, and so on until it ends before; return how many there are."""
        count = 0
        while True:
            count += 1
            self.left = count

            async def body() -> None:
                await call()

            self.task = asyncio.ensure_future(body())
            (ended,) = (await asyncio.wait([self.task]))[0]
            await after()
            if not ended.cancelled():
                ended.result()
                return count


@pytest.fixture
def canceller(monkeypatch: pytest.MonkeyPatch) -> Canceller:
    """Cancels at each await."""
    return Canceller(monkeypatch)


async def test_of_a_folder(no_leaks: LeakCheck, canceller: Canceller, tmp_path: Path) -> None:
    """While it begins, is told of a file that is made and written to, of a folder that goes and comes, and ends."""
    folder = tmp_path / "images"
    folder.mkdir()
    async with astore.Manager(tmp_path / "state") as manager:
        pool = await dir_pool(manager, folder)
        before = asyncio.all_tasks()

        async def watch() -> None:
            async with manager.watch():
                await watched(pool)
                with (folder / "x").open("wb", buffering=0) as file:
                    await eventually(lambda: pool.volumes, "x")
                    file.write(b"x")
                    await eventually(lambda: pool.volumes[0].physical == 1, "the byte")
                folder.rename(tmp_path / "away")
                await eventually(lambda: pool.state is astore.PoolState.INACCESSIBLE, "the folder is gone")
                (tmp_path / "away").rename(folder)
                await eventually(lambda: pool.state is astore.PoolState.RUNNING, "the folder is back")

        async def after() -> None:
            assert asyncio.all_tasks() == before
            # a call that was about to add a watch removes it
            await eventually(lambda: not FolderNotices._of_loops, "the end of the kernel's side")
            assert pool.info.freshness is None
            if (tmp_path / "away").exists():
                (tmp_path / "away").rename(folder)
            (folder / "x").unlink(missing_ok=True)
            await pool.refresh()
            assert not pool.volumes

        assert await canceller.at_each(watch, after) > 10


async def test_of_pools_that_are_not_ready(
    no_leaks: LeakCheck, canceller: Canceller, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While it tries pools again that cannot be started, or do not answer."""
    for name, seconds in (("LEAST", 0.02), ("MOST", 0.05), ("FIRST_RETRY", 0.02), ("LAST_RETRY", 0.1)):
        monkeypatch.setattr(pool_watch, name, seconds)
    backend = FakeBackend()
    backend.show("a")
    async with astore.Manager(tmp_path / "state", registry=fake_registry(backend)) as manager:
        pool = await manager.define(fake("pool"))
        before = asyncio.all_tasks()

        async def watch() -> None:
            async with manager.watch(), manager.events(kinds={astore.PoolRetry}) as retries:
                backend.fail("open", ConnectionRefusedError(111, "no network yet"))
                await manager.start_all(autostart_only=False)
                await anext(retries)
                backend.fail("open", None)
                await eventually(lambda: pool.active, "the start")
                backend.fail("refresh", ConnectionResetError(104, "gone"))
                await eventually(lambda: pool.state is astore.PoolState.INACCESSIBLE, "the failure")
                backend.fail("refresh", None)
                await eventually(lambda: pool.state is astore.PoolState.RUNNING, "the recovery")

        async def after() -> None:
            assert asyncio.all_tasks() == before
            assert pool.info.freshness is None
            backend.fail("open", None)
            backend.fail("refresh", None)
            if not pool.active:
                await pool.start()
            await pool.refresh()
            await pool.stop()

        assert await canceller.at_each(watch, after) > 8


async def test_given_up_while_closing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A session whose work does not end in time closes its folder all the same."""
    (tmp_path / "images").mkdir()
    async with astore.Manager(tmp_path / "state") as manager:
        pool = await dir_pool(manager, tmp_path / "images")
        async with manager.watch():
            await watched(pool)
            life = pool.parts.record.life
            assert life is not None
            session: Any = await life.attached()
            monkeypatch.setattr(session, "end_work", asyncio.Event().wait)
            await bounded(session.aclose(), 0.01)
            with pytest.raises(OSError, match="closed"):
                await asyncio.to_thread(session.tree.statvfs)
