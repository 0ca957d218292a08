"""Sessions of pools that break their contract, that are interrupted, or that others change at the same time."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable
from typing import Any

import pytest
from core_fakes import eventually
from memory_blocks import less, memory

from astore import logs
from astore.backend import Context
from astore.blocks import Block, BlockVolume, block_session
from astore.blocks.calls import Calls
from astore.blocks.creating import MakingSession
from astore.commands import LaneCommandRunner
from astore.errors import StorageError
from astore.lanes import Lanes
from astore.logs import get_logger
from astore.model import Snapshot, VolumeDef, VolumeInfo
from astore.testing.faults import Gate
from astore.volume_io.copying import Count
from astore.volume_io.downloads import downloading

MIB = 1 << 20
LEFT = ".astore-1.tmp"

BOTH = pytest.mark.parametrize("on_the_loop", [False, True])


def pool_of(storage: Any, on_the_loop: bool) -> Any:
    """A pool with blocking calls, or one with coroutines."""
    pool = memory.MemoryPool(storage)
    return memory.PoolOnTheLoop(pool) if on_the_loop else pool


async def listed(session: Any, name: str) -> VolumeInfo:
    """The record of a volume."""
    return (await session.refresh(Snapshot.EMPTY)).by_name[name]


async def downloaded(file: Any) -> bytes:
    """The first MiB of an open volume."""
    async with downloading(file, 0, MIB, False, Count(None, None)) as blocks:
        return b"".join([bytes(one) async for one in blocks])


def hasty(context: Context, seconds: float) -> Context:
    """The context, with another deadline for calls."""
    return Context("p", "", context.lane, LaneCommandRunner(context.lane), get_logger(), seconds)


# ---------------------------------------------------------------------------------------------------- listing volumes


async def test_a_refresh_that_nobody_took(storage: Any, context: Context) -> None:
    """A record is kept only if it was made of the block that is listed again."""
    session = block_session(memory.MemoryPool(storage), context)
    storage.create("a", 512)
    first = await session.refresh(Snapshot.EMPTY)
    storage.images["a"].resize(1024)
    await session.refresh(first)
    third = await session.refresh(first)
    assert third.by_name["a"].capacity == 1024


async def test_lazy_list(storage: Any, context: Context) -> None:
    """A list that would be made on the event loop is refused before any of it is made."""
    begun: list[int] = []

    def lazy(known: object) -> Any:
        begun.append(1)
        yield from ()

    pool = memory.MemoryPool(storage)
    pool.list = lazy
    with pytest.raises(TypeError, match="returned no list"):
        await block_session(pool, context).refresh(Snapshot.EMPTY)
    assert begun == []


async def test_look_finds_another_name(storage: Any, context: Context) -> None:
    """A block with another name than the one looked for is not the volume."""
    pool = memory.MemoryPool(storage)
    storage.create("A", 512)
    real = pool.look
    pool.look = lambda name: real(name.upper())
    session = block_session(pool, context)
    assert await session.refresh_volume("a") is None
    with pytest.raises(FileNotFoundError):
        await session.find("a")
    assert (await session.find("A")).name == "A"


async def test_a_kind_that_makes(storage: Any, context: Context) -> None:
    """A kind of session may have parts already."""
    session: Any = block_session(memory.MemoryPool(storage), context, MakingSession)
    made = await session.create_volume(VolumeDef("a", capacity=512))
    assert (await session.resize_volume(made, 1024)).capacity == 1024


# ------------------------------------------------------------------------------------------------ names that move on


@BOTH
async def test_growing_under_another_name(storage: Any, context: Context, on_the_loop: bool) -> None:
    """A write beyond the end makes the open volume larger, not the one that has its name by then."""
    session: Any = block_session(pool_of(storage, on_the_loop), context)
    storage.create("v", 4096)
    info = await listed(session, "v")
    async with session.open_volume(info, write=True) as file:
        storage.images["w"] = storage.images.pop("v")
        storage.create("v", 1)
        await file.pwrite(b"x" * 100, 8192)
        await file.truncate(10000)
    assert {name: image.size for name, image in storage.images.items()} == {"w": 10000, "v": 1}


async def test_size_from_before(storage: Any, context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    """A size that was asked for before the volume grew is not taken for its size afterwards."""
    session: Any = block_session(pool_of(storage, True), context)
    storage.create("a", 4096)
    info = await listed(session, "a")
    asked, going = asyncio.Event(), asyncio.Event()
    real = memory.VolumeOnTheLoop.size

    async def size(volume: Any) -> int:
        found: int = await real(volume)
        if not asked.is_set():
            asked.set()
            await going.wait()
        return found

    monkeypatch.setattr(memory.VolumeOnTheLoop, "size", size)
    async with session.open_volume(info, write=True) as file:
        asking = asyncio.ensure_future(file.stat())
        await asked.wait()
        await file.pwrite(b"x" * 4096, 4096)
        going.set()
        assert (await asking).size == 4096
        await file.punch(4096, 4096)
        assert await file.pread(4096, 4096) == bytes(4096)


@BOTH
async def test_resized_under_another_name(storage: Any, context: Context, on_the_loop: bool) -> None:
    """A volume that loses its name while it is resized is resized, and its record is not another's."""
    session: Any = block_session(pool_of(storage, on_the_loop), context)
    storage.create("v", 4096)
    info = await listed(session, "v")
    real = memory.Image.resize

    def resize(image: Any, size: int) -> None:
        storage.images["w"] = storage.images.pop("v")
        storage.create("v", 1)
        real(image, size)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory.Image, "resize", resize)
        with pytest.raises(StorageError, match="another volume") as caught:
            await session.resize_volume(info, 8192)
    assert caught.value.errno == errno.EAGAIN
    assert {name: image.size for name, image in storage.images.items()} == {"w": 8192, "v": 1}


async def test_rename_that_cannot_be_seen(storage: Any, context: Context) -> None:
    """A renamed volume that cannot be looked at has its old name back."""
    pool = memory.MemoryPool(storage)
    session: Any = block_session(pool, context)
    storage.create("a", 512)
    info = await listed(session, "a")
    real = pool.look

    def look(name: str) -> Block | None:
        if name == "b":
            raise OSError(errno.EIO, "no")
        found: Block | None = real(name)
        return found

    pool.look = look
    with pytest.raises(StorageError):
        await session.rename_volume(info, "b")
    assert list(storage.images) == ["a"]


# ------------------------------------------------------------------------------------------------- reads of nonsense


@BOTH
@pytest.mark.parametrize(
    "wrong",
    [lambda _: None, lambda _: -1, lambda length: length + 1, lambda _: 100],
    ids=["none", "negative", "too large", "short"],
)
async def test_reads_of_nonsense(
    storage: Any, context: Context, monkeypatch: pytest.MonkeyPatch, on_the_loop: bool, wrong: Callable[[int], Any]
) -> None:
    """A read that returns nonsense, or too little, is an error of the storage: nothing hangs, and no zeros are made up."""
    session: Any = block_session(pool_of(storage, on_the_loop), context)
    storage.create("a", MIB).write(memoryview(b"x" * MIB), 0)
    info = await listed(session, "a")
    real = memory.Image.read_into

    def read_into(image: Any, buffer: memoryview, offset: int) -> Any:
        return wrong(real(image, buffer, offset))

    monkeypatch.setattr(memory.Image, "read_into", read_into)
    async with session.open_volume(info) as file:
        with pytest.raises(OSError, match="returned") as caught:
            await file.pread(4096, 0)
        assert caught.value.errno == errno.EIO
        with pytest.raises(OSError, match="returned"):
            await downloaded(file)
    with pytest.raises(StorageError) as failed:
        await session.copy_volume(info, VolumeDef("copy"))
    assert failed.value.errno == errno.EIO
    assert list(storage.images) == ["a"]


async def test_read_while_it_grows(storage: Any, context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    """A read that ends where the volume ended before it grew is no error: it is made again."""
    session: Any = block_session(memory.MemoryPool(storage), context)
    image = storage.create("a", 512)
    info = await listed(session, "a")
    real = memory.MemoryVolume.size

    def size(volume: Any) -> int:
        image.resize(1024)
        found: int = real(volume)
        return found

    monkeypatch.setattr(memory.MemoryVolume, "size", size)
    async with session.open_volume(info) as file:
        assert await file.pread(1024, 0) == bytes(1024)
        assert await file.pread(1024, 512) == bytes(512)


async def test_plain_call_with_an_awaitable(storage: Any, context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    """A volume is not closed while the loop awaits what a plain method returned."""
    session: Any = block_session(memory.MemoryPool(storage), context)
    storage.create("a", MIB).write(memoryview(b"x" * MIB), 0)
    info = await listed(session, "a")
    begun, going = asyncio.Event(), asyncio.Event()
    done: list[str] = []
    real = memory.MemoryVolume.read_into

    def read_into(volume: Any, buffer: Any, offset: int) -> Any:
        async def read() -> Any:
            begun.set()
            await going.wait()
            done.append("read")
            return real(volume, buffer, offset)

        return read()

    monkeypatch.setattr("astore.blocks.open_blocks.CLOSE_SECONDS", 0.01)
    monkeypatch.setattr(memory.MemoryVolume, "read_into", read_into)
    monkeypatch.setattr(memory.MemoryVolume, "close", lambda volume: done.append("closed"))
    for call in (lambda file: file.pread(MIB, 0), downloaded):
        begun.clear()
        going.clear()
        done.clear()
        async with session.open_volume(info) as file:
            reading = asyncio.ensure_future(call(file))
            await begun.wait()
        assert done == []
        going.set()
        assert await reading == b"x" * MIB
        await eventually(lambda: done == ["read", "closed"])


# --------------------------------------------------------------------------------------------------- volumes in the making


@pytest.mark.parametrize("how", ["cancelled", "late"])
async def test_coroutine_create_that_hangs(
    storage: Any, context: Context, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """What a coroutine created before it was cancelled is removed."""
    monkeypatch.setattr("astore.cancellation.CLEANUP_SECONDS", 0.05)
    made = asyncio.Event()

    async def create(self: Any, name: str, size: int, definition: VolumeDef) -> None:
        self.pool.create(name, size, definition)
        made.set()
        try:
            await asyncio.Event().wait()
        finally:
            monkeypatch.setattr("astore.cancellation.CLEANUP_SECONDS", 20.0)  # what comes now does not hang

    monkeypatch.setattr(memory.PoolOnTheLoop, "create", create)
    session: Any = block_session(pool_of(storage, True), hasty(context, 1.0 if how == "late" else 20.0))
    creating = asyncio.ensure_future(session.create_volume(VolumeDef("a", capacity=512)))
    await made.wait()
    if how == "cancelled":
        creating.cancel()
    await asyncio.wait([creating])
    assert creating.cancelled() if how == "cancelled" else isinstance(creating.exception(), TimeoutError)
    assert storage.images == {}


@pytest.mark.parametrize("replaced", [False, True])
async def test_a_new_volume_that_cannot_be_opened(
    storage: Any, context: Context, monkeypatch: pytest.MonkeyPatch, replaced: bool
) -> None:
    """Where volumes cannot be renamed, one that cannot be opened is removed, and no other that has its name by then."""

    def refused(self: Any, name: str, write: bool) -> None:
        if replaced:
            del storage.images[name]
            storage.create(name, 1)
        raise OSError(errno.EIO, "no")

    monkeypatch.setattr(memory.MemoryPool, "open", refused)
    session: Any = block_session(less(memory.MemoryPool(storage), "rename"), context)
    with pytest.raises(StorageError):
        await session.create_volume(VolumeDef("a", capacity=512))
    assert {name: image.size for name, image in storage.images.items()} == ({"a": 1} if replaced else {})


async def test_undone_by_a_coroutine_without_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """A coroutine that undoes a call is awaited, also if the lane has no thread free."""
    monkeypatch.setattr("astore.cancellation.CLEANUP_SECONDS", 0.05)
    lanes = Lanes()
    lane = lanes.lane("small", limit=1, timeout=20.0)
    calls = Calls(Context("p", "", lane, LaneCommandRunner(lane), get_logger(), 20.0))
    made, busy = Gate(), Gate()
    undone: list[object] = []

    async def undo(result: object) -> None:
        await asyncio.sleep(0)
        undone.append(result)

    task = asyncio.ensure_future(calls.to_the_end(made, "made", undo=undo))
    await made.reached()
    after = asyncio.ensure_future(lane.run(busy))
    asyncio.get_running_loop().call_soon(made.open)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await eventually(lambda: undone == ["made"])
    busy.open()
    await after
    lanes.close()


# ----------------------------------------------------------------------------------------------------------- leftovers


async def test_leftovers_without_locks(storage: Any, context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no lock shows that nobody is making a volume, it stays; all else works without locks."""
    monkeypatch.setattr(memory.MemoryVolume, "lock", BlockVolume.lock)
    storage.create(LEFT, 512)
    session: Any = block_session(memory.MemoryPool(storage), context)
    await session.refresh(Snapshot.EMPTY)
    assert list(storage.images) == [LEFT]
    made = await session.create_volume(VolumeDef("a", capacity=512))
    async with session.open_volume(made, write=True) as file:
        await file.pwrite(b"x", 0)
    assert set(storage.images) == {LEFT, "a"}


@pytest.mark.parametrize("busy", [False, True])
async def test_leftovers_are_locked(
    storage: Any, context: Context, monkeypatch: pytest.MonkeyPatch, busy: bool
) -> None:
    """A leftover is removed while it is locked; where no open volume can be removed, after it is closed."""
    image = storage.create(LEFT, 512)
    locked: list[bool] = []
    real = memory.MemoryPool.remove

    def remove(pool: Any, name: str, id: int | None = None) -> None:
        locked.append(image.owner is not None)
        if busy and locked[-1]:
            raise OSError(errno.EBUSY, "it is open")
        real(pool, name, id)

    monkeypatch.setattr(memory.MemoryPool, "remove", remove)
    await block_session(memory.MemoryPool(storage), context).refresh(Snapshot.EMPTY)
    assert locked == ([True, False] if busy else [True])
    assert storage.images == {}


async def test_leftovers_that_hang(storage: Any, context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leftovers that cannot be opened cost a refresh one deadline in all."""
    monkeypatch.setattr("astore.cancellation.CLEANUP_SECONDS", 0.05)
    for number in range(4):
        storage.create(f".astore-{number}.tmp", 1)
    opened: list[str] = []

    async def hanging(self: Any, name: str, write: bool) -> None:
        opened.append(name)
        await asyncio.Event().wait()

    monkeypatch.setattr(memory.PoolOnTheLoop, "open", hanging)
    session = block_session(pool_of(storage, True), hasty(context, 1.0))
    for _ in range(2):
        await session.refresh(Snapshot.EMPTY)
    assert len(opened) == 1


@pytest.mark.parametrize("error", [OSError(errno.EIO, "no"), ValueError("a mistake")])
async def test_leftovers_that_fail(
    storage: Any, context: Context, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """A leftover that cannot be opened, for whatever reason, stays; the others are removed, and the refresh succeeds."""
    for number in range(2):
        storage.create(f".astore-{number}.tmp", 1)
    real = memory.MemoryPool.open

    def open(pool: Any, name: str, write: bool) -> Any:
        if "0" in name:
            raise error
        return real(pool, name, write)

    monkeypatch.setattr(memory.MemoryPool, "open", open)
    await asyncio.to_thread(logs.prepare)  # as a Manager does
    await block_session(memory.MemoryPool(storage), context).refresh(Snapshot.EMPTY)
    assert list(storage.images) == [".astore-0.tmp"]
