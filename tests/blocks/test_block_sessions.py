"""Sessions of pools that cannot do everything, that fail, or hang; and volumes that go to folders of files and back."""

from __future__ import annotations

import asyncio
import errno
import subprocess
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from core_fakes import eventually, quiet
from memory_blocks import less, memory

from astore.backend import Context, abilities
from astore.blocks import Block, BlockSession, BlockVolume, block_session
from astore.blocks.open_blocks import OpenBlocks
from astore.cancellation import bounded
from astore.commands import LaneCommandRunner
from astore.errors import (
    DefinitionError,
    LaneTimeoutError,
    StorageError,
    TransferError,
    UnsupportedOperationError,
    VolumeExistsError,
)
from astore.events import VolumeRemoved
from astore.lanes import Lanes
from astore.logs import get_logger
from astore.manager import Manager
from astore.model import (
    BackingStore,
    EntryError,
    PoolDef,
    PoolState,
    Reference,
    ReferenceKind,
    Snapshot,
    Source,
    Target,
    VolumeDef,
)
from astore.pools.pool import Pool
from astore.registry import BackendRegistry
from astore.testing.conformance.source import qcow2
from astore.testing.faults import Gate
from astore.volume_io.blocks import Hole

MIB = 1 << 20
READS = ("open-volume", "refresh-volume", "serve-volume", "wipe-volume")
MAKES = ("convert-volume", "copy-volume", "create-volume", "delete-volume", "receive-volume")

Loop = Callable[[Any], Any]


class Backend(memory.MemoryBackend):  # type: ignore[misc]
    """A backend whose pools are made by a function of a test's."""

    def __init__(self, storage: Any, make: Callable[[Any], Any] = memory.MemoryPool) -> None:
        memory.STORAGES[storage.name] = storage
        self.make = make

    def pool(self, storage: Any) -> Any:
        return self.make(storage)


async def started(
    manager: Manager,
    storage: Any,
    make: Callable[[Any], Any] = memory.MemoryPool,
    name: str = "blocks",
    timeout: float | None = None,
) -> Pool:
    """A started pool of such a backend."""
    manager.registry.register(Backend(storage, make), replace=True)
    pool = await manager.define(PoolDef(type="memory", name=name, source=Source(name=storage.name)))
    await pool.start(timeout=timeout)
    return pool


@pytest.fixture
async def manager(tmp_path: Path) -> AsyncIterator[Manager]:
    """A Manager that knows ``dir`` and what a test registers."""
    async with Manager(tmp_path / "state", registry=BackendRegistry()) as manager:
        yield manager


@pytest.fixture
async def files(manager: Manager, tmp_path: Path) -> Pool:
    """A started pool of type ``dir``."""
    folder = tmp_path / "files"
    folder.mkdir()
    pool = await manager.define(PoolDef(type="dir", name="files", target=Target(path=str(folder))))
    await pool.start()
    return pool


# ------------------------------------------------------------------------------------------------- what pools can do


@pytest.mark.parametrize(
    ("lacks", "able"),
    [
        ((), (*MAKES, *READS, "rename-volume", "resize-volume")),
        (("rename",), (*MAKES, *READS, "resize-volume")),
        (("resize",), (*MAKES, *READS, "rename-volume")),
        (("create",), (*READS, "rename-volume", "resize-volume")),
        (("create", "remove", "resize", "rename"), READS),
    ],
)
async def test_abilities(storage: Any, context: Context, lacks: tuple[str, ...], able: tuple[str, ...]) -> None:
    """A session can do what its pool has calls for."""
    session = block_session(less(memory.MemoryPool(storage), *lacks), context)
    assert abilities(session) == tuple(sorted(able))
    await session.aclose()


async def test_abilities_of_its_own(storage: Any, context: Context) -> None:
    """A backend's own kind of session keeps what it adds, and what it puts in place of something else."""

    class Own(BlockSession):
        async def cut_loose(self) -> None: ...

        async def delete_volume(self, volume: object) -> None:
            raise StorageError("never", errno=errno.EROFS)

    session: Any = block_session(memory.MemoryPool(storage), context, Own)
    assert isinstance(session, Own)
    assert set(abilities(session)) == {*MAKES, *READS, "rename-volume", "resize-volume", "stop-force"}
    made = await session.create_volume(VolumeDef("a", capacity=1))
    with pytest.raises(StorageError, match="never"):
        await session.delete_volume(made)
    await session.aclose()


async def test_who_has_it_open(manager: Manager, storage: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pool that knows says who has a volume open, in words that a terminal can show; others say that they cannot tell."""

    class Telling(memory.MemoryPool):  # type: ignore[misc]
        def users(self, volume: BlockVolume) -> list[str]:
            return [f"volume {volume.id}'s \x1b[31mguest"]

    storage.create("disk", 512)
    pool = await started(manager, storage, Telling)
    disk = pool.volume("disk")
    assert await disk.users() == (f"volume {disk.info.inode}'s \\x1b[31mguest",)
    await pool.stop()
    for wrong in ("client 1", None, [4123], (one for one in "ab")):
        monkeypatch.setattr(Telling, "users", lambda self, volume, wrong=wrong: wrong)
        await pool.start()
        with pytest.raises(TypeError, match="in place of a list of words"):
            await pool.volume("disk").users()
        await pool.stop()

    def refuse(self: object, volume: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(Telling, "users", refuse)
    await pool.start()
    with pytest.raises(StorageError, match="look for users of volume 'disk': Operation not permitted"):
        await pool.volume("disk").users()
    await pool.stop()
    pool = await started(manager, storage)
    with pytest.raises(UnsupportedOperationError) as unable:
        await pool.volume("disk").users()
    assert unable.value.operation == "tell-users"


async def test_given_up_while_closing(storage: Any, context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    """A session whose work does not end in time closes its pool all the same."""
    closed: list[object] = []
    pool = memory.MemoryPool(storage)
    monkeypatch.setattr(pool, "close", lambda: closed.append(pool))
    session = block_session(pool, context)
    monkeypatch.setattr(session.opener.files, "end", asyncio.Event().wait)
    await bounded(session.aclose(), 0.01)
    assert closed == [pool]


async def test_read_only_pool(manager: Manager, storage: Any) -> None:
    """Volumes that cannot be made or changed in size are read and written all the same; the rest is refused by name."""
    storage.create("lun", MIB)
    pool = await started(
        manager, storage, lambda of: less(memory.MemoryPool(of), "create", "remove", "resize", "rename")
    )
    disk = pool.volume("lun")
    await disk.upload(b"x" * 1000, offset=MIB - 1000)
    async with disk.open() as file:
        assert await file.pread(2000, MIB - 1001) == b"\0" + b"x" * 1000
    for call in (
        pool.create_volume(VolumeDef("new", capacity=1)),
        disk.delete(),
        disk.rename("new"),
        disk.resize(2 * MIB),
    ):
        with pytest.raises(UnsupportedOperationError):
            await call
    with pytest.raises(TransferError) as caught:
        await disk.upload(b"x" * 1001, offset=MIB - 1000)
    assert caught.value.errno == errno.ENOSPC
    assert disk.info.capacity == MIB


async def test_without_renaming(manager: Manager, storage: Any, files: Pool) -> None:
    """Where volumes cannot be renamed they are made under their own names, and gone again if that fails."""
    pool = await started(manager, storage, lambda of: less(memory.MemoryPool(of), "rename"))
    original = await files.create_volume(VolumeDef("a", capacity=4 * MIB))
    await original.upload(b"\xee" * 4 * MIB)
    assert (await pool.copy_volume(original, VolumeDef("copy"))).info.capacity == 4 * MIB
    with pytest.raises(VolumeExistsError):
        await pool.copy_volume(original, VolumeDef("copy"))
    real = memory.Image.write

    def full(image: Any, data: memoryview, offset: int) -> None:
        raise OSError(errno.ENOSPC, "full")

    memory.Image.write = full
    try:
        with pytest.raises(TransferError):
            await pool.copy_volume(original, VolumeDef("another"))
    finally:
        memory.Image.write = real
    assert set(storage.images) == {"copy"}
    await pool.volume("copy").delete()
    assert storage.images == {}


async def test_storage_without_holes(manager: Manager, storage: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where holes can be neither told nor made, all is data, zeros are written, and trimming is refused."""
    for name in ("discard", "next_data"):
        monkeypatch.setattr(memory.MemoryVolume, name, getattr(memory.BlockVolume, name))
    pool = await started(manager, storage)
    disk = await pool.create_volume(VolumeDef("a", capacity=4 * MIB))
    await disk.upload(b"\xee" * 4 * MIB)

    async def with_a_hole() -> AsyncIterator[Any]:
        yield b"\xdd" * MIB
        yield Hole(3 * MIB)

    await disk.upload(with_a_hole(), sparse=True)
    async with disk.download(sparse=True) as blocks:
        got = [one async for one in blocks]
    assert b"".join(bytes(one) for one in got if not isinstance(one, Hole)) == b"\xdd" * MIB + bytes(3 * MIB)
    with pytest.raises(StorageError) as caught:
        await disk.wipe("trim")
    assert caught.value.errno == errno.EOPNOTSUPP
    await disk.wipe("zero")


# ------------------------------------------------------------------------------------------------------- refreshes


class Told(memory.MemoryPool):  # type: ignore[misc]
    """A pool that keeps what it was told, and lists what it is told to."""

    def __init__(self, storage: Any) -> None:
        super().__init__(storage)
        self.known: list[dict[str, Block]] = []
        self.more: list[Any] = []
        self.anew = False

    def list(self, known: Any) -> list[Any]:
        self.known.append(dict(known))
        return [*super().list({} if self.anew else known), *self.more]


async def test_incremental(storage: Any, context: Context) -> None:
    """A pool is told what it listed last; unchanged volumes keep their records, whether it returns the same or equal blocks."""
    pool = Told(storage)
    session = block_session(pool, context)
    for name in ("a", "b"):
        storage.create(name, 512)
    first = await session.refresh(Snapshot.EMPTY)
    second = await session.refresh(first)
    assert [sorted(one) for one in pool.known] == [[], ["a", "b"]]
    pool.anew = True
    third = await session.refresh(second)
    storage.images["b"].resize(1024)
    fourth = await session.refresh(third)
    for snapshot in (second, third, fourth):
        assert snapshot.by_name["a"] is first.by_name["a"]
    assert second.by_name["b"] is third.by_name["b"]
    assert (third.by_name["b"].capacity, fourth.by_name["b"].capacity) == (512, 1024)
    await session.refresh(fourth, full=True)
    assert pool.known[-1] == {}
    other = await block_session(Told(storage), context).refresh(fourth)
    assert other.by_name["a"] is first.by_name["a"], "what another session had found is as good"


async def test_entries_that_are_no_volumes(manager: Manager, storage: Any) -> None:
    """One bad entry degrades its pool, by name, and costs no other; a name that no volume can have is one."""
    storage.create("good", 512)
    pool = Told(storage)
    pool.more = [EntryError("broken", "its header cannot be read", errno.EIO), Block(name="a/b", id=77, size=1)]
    found = await started(manager, storage, lambda _: pool)
    assert (found.state, [one.name for one in found.volumes]) == (PoolState.DEGRADED, ["good"])
    assert [one.name for one in found.snapshot.errors] == ["a/b", "broken"]
    pool.more = []
    storage.create("broken", 512)
    await found.refresh()
    pool.more = [EntryError("broken", "its header cannot be read", errno.EIO)]
    storage.images.pop("broken")
    async with manager.events(kinds={VolumeRemoved}) as events:
        outcome = await found.refresh(full=True)
        assert (outcome.removed, found.state) == ((), PoolState.DEGRADED)
        assert "broken" in {one.name for one in found.volumes}, "it is there, and cannot be read"
        pool.more = []
        assert (await found.refresh()).removed == ("broken",)
        removed = events.receive_nowait()
    assert removed is not None
    assert removed.name == "broken"


async def test_clones(manager: Manager, storage: Any) -> None:
    """A volume that others read through, by what the pool says, is protected as a backing file is."""
    pool = Told(storage)
    storage.create("base", MIB)
    storage.create("other", MIB)
    reference = Reference(ReferenceKind.PARENT, "base", "raw", pool.key("base"))
    pool.more = [Block(name="clone", id=99, size=MIB, references=(reference,))]
    found = await started(manager, storage, lambda _: pool)
    assert [one.name for one in manager.dependents(found.volume("base"))] == ["clone"]
    assert manager.dependents(found.volume("other")) == []


# ---------------------------------------------------------------------------------------------- from pool to pool


@pytest.mark.qemu
@pytest.mark.parametrize("make", [memory.MemoryPool, lambda of: memory.PoolOnTheLoop(memory.MemoryPool(of))])
async def test_converted_both_ways(
    tmp_path: Path, manager: Manager, storage: Any, files: Pool, make: Callable[[Any], Any]
) -> None:
    """A disk of blocks becomes a qcow2 image in a folder, and a disk of blocks again, byte by byte, holes kept."""
    pool = await started(manager, storage, make)
    disk = await pool.create_volume(VolumeDef("disk", capacity=8 * MIB))
    await disk.upload(b"\x11" * MIB)
    await disk.upload(b"\x22" * 700, offset=5 * MIB + 3)
    image = await files.copy_volume(disk, VolumeDef("image.qcow2", format="qcow2"))
    assert (image.info.format, image.info.capacity) == ("qcow2", 8 * MIB)
    again = await pool.copy_volume(image, VolumeDef("again", format="raw"))
    assert again.info.allocation < 3 * MIB
    plain = await files.copy_volume(again, VolumeDef("plain.img"))
    compare = ["qemu-img", "compare", "-q", "-f", "qcow2", "-F", "raw", image.path, plain.path]
    await asyncio.to_thread(subprocess.run, compare, check=True)
    wanted = b"\x11" * MIB + bytes(4 * MIB + 3) + b"\x22" * 700
    assert await asyncio.to_thread(Path(plain.path).read_bytes) == wanted.ljust(8 * MIB, b"\0")
    with pytest.raises(DefinitionError, match="raw"):
        await pool.copy_volume(image, VolumeDef("image"))
    over = VolumeDef("over.qcow2", format="qcow2", capacity=8 * MIB, backing=BackingStore(disk.path, "raw"))
    with pytest.raises(DefinitionError):
        await pool.create_volume(over)
    assert set(storage.images) == {"disk", "again"}


async def test_stays_raw(manager: Manager, storage: Any) -> None:
    """A volume of blocks is raw, whatever was written to it."""
    pool = await started(manager, storage)
    disk = await pool.create_volume(VolumeDef("a", capacity=MIB))
    await disk.upload(qcow2(5 << 30, "/etc/passwd", "raw"), allow_references=True)
    await pool.refresh(full=True)
    assert (disk.info.format, disk.info.capacity, disk.info.backing) == ("raw", MIB, None)


# --------------------------------------------------------------------------------------------- calls that hang or fail


async def test_coroutine_that_hangs(tmp_path: Path, storage: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A coroutine has the pool's deadline: past it the pool is inaccessible, and comes back when it answers."""
    held = asyncio.Event()

    async def hanging(self: Any, known: object) -> Any:
        await held.wait()
        return self.pool.list(known)

    async with Manager(tmp_path / "state", registry=BackendRegistry(), call_timeout=0.1) as manager:
        pool = await started(manager, storage, lambda of: memory.PoolOnTheLoop(memory.MemoryPool(of)), timeout=60.0)
        monkeypatch.setattr(memory.PoolOnTheLoop, "list", hanging)
        with pytest.raises(LaneTimeoutError):
            await pool.refresh()
        assert pool.state is PoolState.INACCESSIBLE
        held.set()
        await pool.refresh(timeout=60.0)
        assert pool.state is PoolState.RUNNING


async def test_closed_by_the_last_call(storage: Any, context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    """A volume is closed once, when the call that hangs in it has returned, and not under it."""
    monkeypatch.setattr("astore.blocks.open_blocks.CLOSE_SECONDS", 0.05)
    storage.create("a", MIB)
    session = block_session(memory.MemoryPool(storage), context)
    info = (await session.refresh(Snapshot.EMPTY)).by_name["a"]
    gate = Gate()
    closed: list[int] = []
    monkeypatch.setattr(memory.MemoryVolume, "read_into", lambda self, buffer, offset: gate(1))
    monkeypatch.setattr(memory.MemoryVolume, "close", lambda self: closed.append(gate.inside))
    async with session.open_volume(info) as file:
        reading = asyncio.ensure_future(file.pread(1, 0))
        await eventually(lambda: gate.inside)
        reading.cancel()
        await asyncio.wait([reading])
    assert closed == []
    with pytest.raises(OSError):
        await file.pread(1, 0)
    gate.open()
    await eventually(lambda: closed)
    await file.aclose()
    assert closed == [0]
    await session.aclose()
    with pytest.raises(OSError):
        async with session.open_volume(info):
            raise AssertionError("the session is closed")
    await eventually(lambda: closed == [0, 0])


@pytest.mark.parametrize("on_the_loop", [False, True])
async def test_opened_for_nobody(
    storage: Any, context: Context, monkeypatch: pytest.MonkeyPatch, on_the_loop: bool
) -> None:
    """What was opened for somebody who is gone is closed."""
    storage.create("a", MIB)
    pool = memory.MemoryPool(storage)
    session = block_session(memory.PoolOnTheLoop(pool) if on_the_loop else pool, context)
    info = (await session.refresh(Snapshot.EMPTY)).by_name["a"]
    gate, going = Gate(), asyncio.Event()
    opened: list[Any] = []
    closed: list[Any] = []
    real = memory.MemoryPool.open

    def slow(self: Any, name: str, write: bool) -> Any:
        opened.append(real(self, name, write))
        return opened[-1] if on_the_loop else gate(opened[-1])

    async def slow_on_the_loop(self: Any, name: str, write: bool) -> Any:
        volume = memory.VolumeOnTheLoop(self.pool.open(name, write))
        await going.wait()
        return volume

    monkeypatch.setattr(memory.MemoryPool, "open", slow)
    monkeypatch.setattr(memory.PoolOnTheLoop, "open", slow_on_the_loop)
    monkeypatch.setattr(memory.MemoryVolume, "close", lambda self: closed.append(self))

    async def use() -> None:
        async with session.open_volume(info):
            raise AssertionError("it was cancelled")

    task = asyncio.ensure_future(use())
    await eventually(lambda: opened)
    task.cancel()
    asyncio.get_running_loop().call_soon(lambda: (gate.open(), going.set()))
    with pytest.raises(asyncio.CancelledError):
        await task
    await eventually(lambda: closed == opened)
    await session.aclose()


async def test_closed_without_a_thread(storage: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A volume whose lane has no thread left is closed all the same."""
    monkeypatch.setattr("astore.blocks.open_blocks.CLOSE_SECONDS", 0.25)
    storage.create("a", MIB)
    lanes = Lanes()
    lane = lanes.lane("small", limit=1, timeout=20.0)
    session = block_session(
        memory.MemoryPool(storage), Context("p", "", lane, LaneCommandRunner(lane), get_logger(), 20.0)
    )
    info = (await session.refresh(Snapshot.EMPTY)).by_name["a"]
    closed: list[Any] = []
    monkeypatch.setattr(memory.MemoryVolume, "close", lambda self: closed.append(self))
    gate = Gate()
    async with session.open_volume(info) as file:
        assert isinstance(file, OpenBlocks)
        hanging = asyncio.ensure_future(lane.run(gate, timeout=1.0))
        await gate.reached()
        with pytest.raises(LaneTimeoutError):
            await hanging
    await eventually(lambda: closed == [file.volume])
    gate.open()
    await eventually(lambda: not lane.stuck)
    await bounded(session.aclose())
    lanes.close()


async def test_leftover_that_hangs(manager: Manager, storage: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is left of a killed process and cannot be looked at keeps no pool from starting."""
    storage.create(".astore-1.tmp", MIB)

    def refused(self: Any) -> bool:
        raise OSError(errno.EIO, "no")

    with monkeypatch.context() as patch:
        patch.setattr(memory.MemoryVolume, "lock", refused)
        pool = await started(manager, storage)
    assert (pool.state, pool.volumes, list(storage.images)) == (PoolState.RUNNING, (), [".astore-1.tmp"])
    await pool.stop()
    await pool.start()
    assert storage.images == {}
    await eventually(lambda: quiet(manager))


async def test_another_volume_is_not_deleted(storage: Any, context: Context) -> None:
    """A volume that takes the name between the check and the removal stays."""

    class Quick(memory.MemoryPool):  # type: ignore[misc]
        def remove(self, name: str, id: int | None = None) -> None:
            storage.images["moved"] = storage.images.pop(name)
            storage.create(name, 512)
            super().remove(name, id)

    session: Any = block_session(Quick(storage), context)
    made = await session.create_volume(VolumeDef("a", capacity=MIB))
    with pytest.raises(StorageError) as caught:
        await session.delete_volume(made)
    assert caught.value.errno == errno.EAGAIN
    assert sorted(storage.images) == ["a", "moved"]
