"""Leftovers: hidden volumes of work that ended without removing them are looked for again, and others are left alone."""

from __future__ import annotations

import asyncio
import errno
import threading
from typing import Any

import msgspec
import pytest
from core_fakes import eventually
from memory_blocks import memory

from astore.backend import Context
from astore.blocks import block_session
from astore.blocks.leftovers import PAUSE
from astore.commands import LaneCommandRunner
from astore.errors import StorageError
from astore.logs import get_logger
from astore.model import Snapshot, VolumeDef
from astore.volume_io.leftovers import EVERY
from astore.volume_io.volume_names import IN_PROGRESS, new_hidden_name

LEFT = ".astore-1.tmp"


class Clock:
    """A time that the test sets."""

    def __init__(self, session: Any) -> None:
        self.now = 1000.0
        session.leftovers.suspects.clock = lambda: self.now


async def refresh(session: Any) -> None:
    """Refresh once more."""
    await session.refresh(Snapshot.EMPTY)


async def fail(session: Any, storage: Any) -> None:
    """A refresh that fails."""
    storage.broken = True
    with pytest.raises(OSError):
        await refresh(session)
    storage.broken = False


async def test_of_this_process(storage: Any, context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    """A volume that could not be removed while the storage failed is removed by the refresh after that."""
    session: Any = block_session(memory.MemoryPool(storage), context)
    await refresh(session)
    real = memory.MemoryPool.open

    def broken(pool: Any, name: str, write: bool) -> Any:
        storage.broken = True
        return real(pool, name, write)

    with monkeypatch.context() as patch:
        patch.setattr(memory.MemoryPool, "open", broken)
        with pytest.raises(StorageError):
            await session.create_volume(VolumeDef("a", capacity=512))
    assert len(storage.images) == 1
    assert not IN_PROGRESS & set(storage.images)
    storage.broken = False
    await refresh(session)
    assert storage.images == {}


async def test_of_others(storage: Any, context: Context) -> None:
    """A later volume of another process is removed when it has not changed for an hour, as this pool has seen."""
    session: Any = block_session(memory.MemoryPool(storage), context)
    clock = Clock(session)
    await refresh(session)
    image = storage.create(LEFT, 512)
    await fail(session, storage)
    await refresh(session)
    assert list(storage.images) == [LEFT], "its maker may have lost its lock while the storage did not answer"
    clock.now += EVERY - 1
    image.changed()
    await fail(session, storage)
    await refresh(session)
    clock.now += 2
    await refresh(session)
    assert list(storage.images) == [LEFT], "it has changed"
    clock.now += EVERY - 3
    await refresh(session)
    assert list(storage.images) == [LEFT]
    clock.now += EVERY
    await refresh(session)
    assert storage.images == {}


async def test_seen_at_first(storage: Any, context: Context) -> None:
    """A volume that was locked at the first look is removed an hour later, if its lock is gone then."""
    session: Any = block_session(memory.MemoryPool(storage), context)
    clock = Clock(session)
    storage.create(LEFT, 512).owner = "somebody"
    await refresh(session)
    storage.images[LEFT].owner = None
    await refresh(session)
    assert list(storage.images) == [LEFT]
    clock.now += EVERY
    await refresh(session)
    assert storage.images == {}


async def test_removal_that_was_cut_off(storage: Any, context: Context) -> None:
    """What is left of a volume whose removal failed half-way goes with the next refresh; what others have left stays."""

    half, tried = {"theirs"}, []

    class Cut(memory.MemoryPool):
        def list(self, known: Any) -> Any:
            return [msgspec.structs.replace(one, unfinished=one.name in half) for one in super().list(known)]

        def remove(self, name: str, id: int | None = None) -> Any:
            tried.append((name, id))
            if name not in half:
                half.add(name)
                raise OSError(errno.ETIMEDOUT, "no answer")
            return super().remove(name, id)

    session: Any = block_session(Cut(storage), context)
    for name in ("mine", "theirs"):
        storage.create(name, 512)
    (mine,) = (await session.refresh(Snapshot.EMPTY)).volumes
    with pytest.raises(OSError, match="no answer"):
        await session.delete_volume(mine)
    assert (await session.refresh(Snapshot.EMPTY)).volumes == ()
    assert list(storage.images) == ["theirs"]
    assert tried == [("mine", mine.inode)] * 2


async def test_removal_that_goes_on_or_was_refused(storage: Any, context: Context) -> None:
    """A refresh leaves alone what a removal that goes on has left so far, and what is left of one that was refused before."""
    half, refuse, tried = set[str](), True, []

    class Slow(memory.MemoryPool):
        def list(self, known: Any) -> Any:
            return [msgspec.structs.replace(one, unfinished=one.name in half) for one in super().list(known)]

        async def remove(self, name: str, id: int | None = None) -> None:
            tried.append(name)
            if refuse:
                raise OSError(errno.EBUSY, "it has clones")
            half.add(name)
            begun.set()
            await go_on.wait()
            super().remove(name, id)

    session: Any = block_session(Slow(storage), context)
    storage.create("a", 512)
    (disk,) = (await session.refresh(Snapshot.EMPTY)).volumes
    with pytest.raises(OSError, match="it has clones"):
        await session.delete_volume(disk)
    await refresh(session)
    half.add("a")  # by another client, later
    await refresh(session)
    assert tried == ["a"]
    half.clear()
    refuse, begun, go_on = False, asyncio.Event(), asyncio.Event()
    removal = asyncio.ensure_future(session.delete_volume(disk))
    await begun.wait()
    await refresh(session)
    assert tried == ["a", "a"]
    go_on.set()
    await removal
    assert storage.images == {}


async def test_never_made(storage: Any, context: Context) -> None:
    """What has a name alone has no lock: a hidden name of this process goes at once, another's an hour later.

    What this process is making stays.
    """

    class Names(memory.MemoryPool):
        def list(self, known: Any) -> Any:
            return [msgspec.structs.replace(one, unfinished=True) for one in super().list(known)]

        def look(self, name: str) -> Any:
            return msgspec.structs.replace(super().look(name), unfinished=True)

        def open(self, name: str, write: bool) -> Any:
            raise FileNotFoundError(errno.ENOENT, "it has no header")

    session: Any = block_session(Names(storage), context)
    clock = Clock(session)
    making = new_hidden_name()
    for name in (new_hidden_name(), making, LEFT, "half"):
        storage.create(name, 512)
    IN_PROGRESS.add(making)
    try:
        assert (await session.refresh(Snapshot.EMPTY)).volumes == ()
    finally:
        IN_PROGRESS.discard(making)
    assert await session.refresh_volume("half") is None
    assert list(storage.images) == [making, LEFT, "half"]
    clock.now += EVERY - 1
    await fail(session, storage)
    await refresh(session)
    assert list(storage.images) == [LEFT, "half"]
    clock.now += EVERY
    await refresh(session)
    assert list(storage.images) == ["half"], "it is somebody else's"


async def test_in_progress(storage: Any, context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    """A volume that this process is making stays, even if the storage has forgotten its lock."""
    session: Any = block_session(memory.PoolOnTheLoop(memory.MemoryPool(storage)), context)
    clock = Clock(session)
    begun, going = asyncio.Event(), asyncio.Event()
    real = memory.PoolOnTheLoop.rename

    async def rename(pool: Any, old: str, new: str) -> None:
        begun.set()
        await going.wait()
        await real(pool, old, new)

    monkeypatch.setattr(memory.PoolOnTheLoop, "rename", rename)
    creating = asyncio.ensure_future(session.create_volume(VolumeDef("a", capacity=512)))
    await begun.wait()
    for _ in range(3):
        for image in storage.images.values():
            image.owner = None
        await refresh(session)
        clock.now += 2 * EVERY
    going.set()
    assert (await creating).name == "a"
    assert list(storage.images) == ["a"]
    assert not IN_PROGRESS


@pytest.mark.parametrize("failed", [False, True])
async def test_a_look_that_took_too_long(
    storage: Any, context: Context, monkeypatch: pytest.MonkeyPatch, failed: bool
) -> None:
    """After a look that took too long the next one comes after a while, or once the storage failed and answers again."""
    hasty = Context("p", "", context.lane, LaneCommandRunner(context.lane), get_logger(), 0.05)
    session: Any = block_session(memory.PoolOnTheLoop(memory.MemoryPool(storage)), hasty)
    clock = Clock(session)

    async def hang(pool: Any, name: str, write: bool) -> None:
        await asyncio.Event().wait()

    with monkeypatch.context() as patch:
        patch.setattr("astore.volume_io.leftovers.made_here", lambda name: True)
        storage.create(LEFT, 512)
        with monkeypatch.context() as hanging:
            hanging.setattr(memory.PoolOnTheLoop, "open", hang)
            await refresh(session)
        await refresh(session)
        assert list(storage.images) == [LEFT]
        if failed:
            await fail(session, storage)
        else:
            clock.now += PAUSE
        await refresh(session)
    assert storage.images == {}


async def test_a_look_that_fails(storage: Any, context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    """A volume of this process that cannot be removed yet is removed by a later refresh."""
    session: Any = block_session(memory.MemoryPool(storage), context)
    monkeypatch.setattr("astore.volume_io.leftovers.made_here", lambda name: True)
    storage.create(LEFT, 512)

    def busy(pool: Any, name: str, id: int | None = None) -> None:
        raise OSError(errno.EBUSY, "no")

    with monkeypatch.context() as patch:
        patch.setattr(memory.MemoryPool, "remove", busy)
        await refresh(session)
    assert list(storage.images) == [LEFT]
    await refresh(session)
    assert storage.images == {}


async def test_a_write_that_never_returns(storage: Any, context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    """A volume whose making hangs for ever, and was given up, is a leftover as any other: this process may remove it."""
    session: Any = block_session(memory.MemoryPool(storage), context)
    begun, going = threading.Event(), threading.Event()
    real = memory.MemoryVolume.write

    def hang(volume: Any, data: Any, offset: int) -> None:
        begun.set()
        going.wait(60)
        real(volume, data, offset)

    monkeypatch.setattr(memory.MemoryVolume, "write", hang)
    monkeypatch.setattr("astore.blocks.open_blocks.CLOSE_SECONDS", 0.05)
    making = session._new(VolumeDef("a", capacity=512), 512)
    new = await making.__aenter__()
    writing = asyncio.ensure_future(new.pwrite(b"x" * 512, 0))
    await eventually(begun.is_set, "the write")
    assert IN_PROGRESS
    await new.aclose()
    assert not IN_PROGRESS
    going.set()
    await asyncio.wait([writing])
    writing.exception()
    assert not await making.__aexit__(RuntimeError, RuntimeError("given up"), None)


async def test_taken_for_a_leftover_at_birth(storage: Any, context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new image that somebody else's first look holds is not removed just then, and another one is made."""
    session: Any = block_session(memory.MemoryPool(storage), context)
    lock, remove = memory.MemoryVolume.lock, memory.MemoryPool.remove
    tries = []

    def locked(volume: Any) -> bool:
        tries.append(volume)
        return len(tries) > 1 and bool(lock(volume))

    def busy_once(pool: Any, name: str, id: int | None = None) -> None:
        if len(tries) == 1:
            raise OSError(errno.EBUSY, "it is open elsewhere")
        remove(pool, name, id)

    monkeypatch.setattr(memory.MemoryVolume, "lock", locked)
    monkeypatch.setattr(memory.MemoryPool, "remove", busy_once)
    assert (await session.create_volume(VolumeDef("a", capacity=512))).name == "a"
    assert len(tries) == 2
