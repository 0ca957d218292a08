"""The core's part of work on volumes: claims, sessions that change, errors' names, and refreshes beside."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from core_fakes import FakeBackend, FakeSession, cancel_after, eventually, fake, names, volume

from astore.errors import (
    InvalidStateError,
    ManagerClosedError,
    StorageError,
    UnsupportedOperationError,
    VolumeBusyError,
    VolumeExistsError,
    VolumeInUseError,
)
from astore.manager import Manager
from astore.model import BackingStore, VolumeDef, VolumeInfo
from astore.pools.pool import Pool
from astore.testing.conformance.source import qcow2
from astore.testing.faults import Faults, Gate
from astore.volume_io.blocking_file import TreeFile
from astore.volume_io.local_file import LocalFile
from astore.volume_io.uploads import LaneExecutor, chunks_of

MIB = 1 << 20


async def test_seen_for_a_moment(pool: Pool, folder: Path, faults: Faults, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a refresh saw in its place, and was taken back in the same moment, is not shown."""
    monkeypatch.setattr("astore.cancellation.CLEANUP_SECONDS", 60.0)
    monkeypatch.setattr("astore.cancellation.HELD_SECONDS", 60.0)
    gate = faults.hang("tree.sync_folder")
    task = asyncio.ensure_future(pool.create_volume(VolumeDef("a", capacity=1)))
    await eventually(lambda: gate.inside)
    await pool.refresh()
    assert names(pool) == ["a"]
    asyncio.get_running_loop().call_later(0.1, gate.open)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (names(pool), os.listdir(folder)) == ([], [])


class OddSession(FakeSession):
    """A session that opens volumes, receives them, and says whatever comes to its mind."""

    error: Exception | None = None
    deleted: tuple[str, ...] = ()

    @contextlib.asynccontextmanager
    async def open_volume(self, info: VolumeInfo, *, write: bool = False) -> AsyncIterator[Any]:
        if self.error is not None:
            raise self.error
        yield OddFile()

    async def receive_volume(self, source: Any, size: int, definition: VolumeDef, **_: Any) -> VolumeInfo:
        assert size == 5
        return volume(definition.name)

    async def delete_volume(self, info: VolumeInfo) -> None:
        OddSession.deleted += (info.name,)


class OddFile:
    """A file that has no calls but one."""

    in_flight = 1
    error: Exception | None = None

    async def stat(self) -> Any:
        if self.error is not None:
            raise self.error

        class Stat:
            size = 5

        return Stat()


@pytest.fixture
async def odd(manager: Manager) -> Pool:
    """A started pool with an odd session, and a volume ``x``."""
    backend = FakeBackend()
    backend.session_class = OddSession
    backend.show("x")
    manager.registry.register(backend)
    pool = await manager.define(fake("odd"))
    await pool.start()
    return pool


async def test_errors_get_the_pools_name(odd: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a backend says of a volume, the pool's name is in it, once; what is no storage error stays as it is."""
    for owner in (OddSession, OddFile):
        for error, kind in (
            (OSError(5, "Input/output error"), StorageError),
            (StorageError("it is broken", errno=5), StorageError),
            (StorageError("pool 'odd': it is broken", errno=5, pool="odd"), StorageError),
            (TimeoutError("late"), TimeoutError),
            (KeyError("a bug"), KeyError),
        ):
            monkeypatch.setattr(owner, "error", error)
            with pytest.raises(kind) as caught:
                async with odd.volume("x").open() as file:
                    await file.stat()
            if kind is StorageError:
                assert (caught.value.errno, caught.value.pool) == (5, "odd")  # type: ignore[attr-defined]
                assert str(caught.value).count("pool 'odd'") == 1
            else:
                assert caught.value is error
        monkeypatch.setattr(owner, "error", None)
    monkeypatch.setattr(OddSession, "error", VolumeBusyError("it is being written", operation="write"))
    with pytest.raises(VolumeBusyError, match="'odd'") as busy:
        async with odd.volume("x").open():
            raise AssertionError("it is busy")
    assert busy.value.pool == "odd"
    assert "NamedFile" not in str(busy.value)


async def test_received_in_the_last_moment(manager: Manager, odd: Pool, pool: Pool) -> None:
    """A copy that was cancelled when it was there already, while its source was being closed, is removed again."""
    other = await manager.define(fake("other"))
    await other.start()
    for steps in range(12):
        OddSession.deleted = ()
        was_cancelled, copy = await cancel_after(steps, lambda: other.copy_volume(odd.volume("x"), VolumeDef("new")))
        if was_cancelled:
            assert "new" not in names(other)
        else:
            assert copy is not None
            other.parts.refresher.apply({"new": None})

    closing = asyncio.Event()

    class SlowToClose(OddSession):
        @contextlib.asynccontextmanager
        async def open_volume(self, info: VolumeInfo, *, write: bool = False) -> AsyncIterator[Any]:
            yield OddFile()
            closing.set()
            await asyncio.sleep(600)

    odd.parts.record.life.session.__class__ = SlowToClose
    task = asyncio.ensure_future(other.copy_volume(odd.volume("x"), VolumeDef("new")))
    await closing.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert OddSession.deleted == ("new",)
    assert names(other) == ["x"]


async def test_no_conversion(odd: Pool, pool: Pool) -> None:
    """Where one of the pools has nothing that qemu-img could read or write, there is no conversion."""
    disk = await pool.create_volume(VolumeDef("a", capacity=1))
    lacking = {"convert-volume": (odd, disk), "serve-volume": (pool, odd.volume("x"))}
    for operation, (taker, source) in lacking.items():
        with pytest.raises(UnsupportedOperationError) as caught:
            await taker.copy_volume(source, VolumeDef("new", format="qcow2"))
        assert (caught.value.pool, caught.value.operation) == ("odd", operation)
    with pytest.raises(ValueError):
        async with disk.download(offset=-1):
            raise AssertionError("there is no such place")


async def test_pool_being_stopped(manager: Manager, pool: Pool, odd: Pool) -> None:
    """While a pool is being stopped, and in a Manager that was left, no work begins."""
    hold = odd.parts.record.life.backend.hold("stop")  # type: ignore[union-attr]
    stopping = asyncio.ensure_future(odd.stop())
    await hold.reached()
    with pytest.raises(InvalidStateError, match="being stopped"):
        await odd.create_volume(VolumeDef("a", capacity=1))
    hold.release()
    await stopping
    with pytest.raises(InvalidStateError):
        await odd.create_volume(VolumeDef("a", capacity=1))
    await manager.aclose()
    with pytest.raises(ManagerClosedError):
        await pool.create_volume(VolumeDef("a", capacity=1))


async def test_pool_that_cannot_be_attached(manager: Manager, pool: Pool, folder: Path) -> None:
    """Where the pool's storage cannot be opened again, work says so."""
    await manager.aclose()
    folder.rename(folder.with_name("away"))
    async with manager:
        with pytest.raises(StorageError) as caught:
            await pool.create_volume(VolumeDef("a", capacity=1))
        assert caught.value.pool == "p"
        folder.with_name("away").rename(folder)
        await pool.create_volume(VolumeDef("a", capacity=1))
        await pool.stop()


async def test_many_dependents(manager: Manager, pool: Pool, folder: Path) -> None:
    """The error names some, and has all."""
    (folder / "base").write_bytes(bytes(MIB))
    for number in range(5):
        (folder / f"over{number}").write_bytes(qcow2(MIB, "base", "raw"))
    await pool.refresh()
    with pytest.raises(VolumeInUseError, match="'over2' …") as caught:
        await pool.volume("base").delete()
    assert len(caught.value.dependents) == 5


async def test_what_is_being_backed_by(pool: Pool, folder: Path, faults: Faults) -> None:
    """While an image is made on a volume nobody changes that; while that is being changed none is made on it."""
    (folder / "base").write_bytes(bytes(MIB))
    await pool.refresh()
    base = pool.volume("base")
    wanted = VolumeDef("over", format="qcow2", backing=BackingStore("base", "raw"))
    with base.pool.parts.claims.relied_on(base.name):
        for call in (base.delete, lambda: base.upload(b"x"), lambda: base.resize(2 * MIB), lambda: base.rename("x")):
            with pytest.raises(VolumeBusyError, match="'base' of pool 'p' is being made the backing file of another"):
                await call()
        with base.pool.parts.claims.relied_on(base.name):
            pass
    with pytest.raises(VolumeExistsError):
        await pool.create_volume(VolumeDef("base", format="qcow2", backing=BackingStore("base", "raw")))
    with (
        pool.parts.claims.claim("base", "deleted"),
        pytest.raises(VolumeBusyError, match="'base' of pool 'p' is being deleted"),
    ):
        await pool.create_volume(wanted)
    await base.delete()


async def test_backing_without_a_name(pool: Pool, folder: Path) -> None:
    """A backing file whose name means nothing is no volume of any pool's."""
    (folder / "there").write_bytes(b"x")
    await pool.refresh()
    for path in ("x\0y", "json:{", "json:{}"):
        wanted = VolumeDef("a", format="qcow2", backing=BackingStore(path, "raw"))
        with pytest.raises(Exception, match="no active pool has"):
            await pool.create_volume(wanted)


async def test_reflink(pool: Pool, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where blocks can be shared, a copy is one call, and is told as done at once."""
    old = await pool.create_volume(VolumeDef("old", capacity=MIB))
    await old.upload(b"x" * MIB)

    def clone(self: TreeFile, target: TreeFile) -> None:
        target.pwrite(self.pread(MIB, 0), 0)

    monkeypatch.setattr(LocalFile, "clone", clone)
    told: list[tuple[int, int | None]] = []
    await pool.copy_volume(old, VolumeDef("new"), on_progress=lambda *done: told.append(done))
    assert told == [(MIB, MIB)]
    assert (folder / "new").read_bytes() == b"x" * MIB


async def test_file_that_is_cut_while_it_is_read(pool: Pool, tmp_path: Path) -> None:
    """A file to upload that somebody cuts ends there."""
    path = tmp_path / "file"
    with path.open("wb") as file:
        file.truncate(8 * MIB)
        file.seek(MIB)
        file.write(b"x" * 6 * MIB)
    pieces = 0
    async with chunks_of(path, pool.parts.record.life.lane, sparse=True) as (chunks, size):
        assert size == 8 * MIB
        async for _ in chunks:
            pieces += 1
            if pieces == 2:
                os.truncate(path, MIB)
    assert pieces == 2


async def test_executor_whose_task_is_ended(pool: Pool) -> None:
    """Where the loop ends its tasks, who waits for a call is told."""
    assert pool.parts.record.life.lane is not None
    executor = LaneExecutor(pool.parts.record.life.lane)
    gate = Gate()
    waiting = asyncio.wrap_future(executor.submit(gate))
    await eventually(lambda: gate.inside)
    for task in list(executor._tasks):
        task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    gate.open()
