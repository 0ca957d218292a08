"""Storage that hangs: work on it can be cancelled, is told when it is overdue, and leaves nothing when the storage is back."""

from __future__ import annotations

import asyncio
import errno
import os
import time
from pathlib import Path

import pytest
from core_fakes import eventually, quiet
from leaks import open_files

from astore import cancellation as calls
from astore.backend import Context
from astore.errors import AstoreError, LaneTimeoutError, VolumeBusyError
from astore.lanes import Lanes
from astore.manager import Manager
from astore.model import PoolState, Snapshot, VolumeDef
from astore.pools.pool import Pool
from astore.testing.faults import Faults, Gate
from astore.trees.opening import close_file
from astore.trees.session import WritableTreeSession
from astore.trees.writable_local import WritableLocalTree
from astore.volume_io import open_file, uploads
from astore.volume_io.open_file import OpenFile
from astore.volume_io.private_folder import private_folder
from astore.volume_io.uploads import LaneExecutor

MIB = 1 << 20

BOUND = 20.0
"""Seconds that nothing here takes: what is bounded is bounded by a few."""


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clean-ups wait for a quarter of a second."""
    monkeypatch.setattr(calls, "CLEANUP_SECONDS", 0.25)
    monkeypatch.setattr(open_file, "CLOSE_SECONDS", 0.25)


@pytest.fixture
def unhurried(impatient: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Clean-ups wait for what comes to its end, however busy the machine."""
    monkeypatch.setattr(calls, "CLEANUP_SECONDS", BOUND)
    monkeypatch.setattr(calls, "HELD_SECONDS", BOUND)
    monkeypatch.setattr(open_file, "CLOSE_SECONDS", BOUND)
    monkeypatch.setattr("astore.volume_io.session_files.CLOSING_SECONDS", BOUND)


async def inside(gate: Gate) -> None:
    """Wait until a call is held at the gate."""
    await eventually(lambda: gate.inside)


async def cancelled(task: asyncio.Future[object]) -> float:
    """Cancel it; says how long that took."""
    began = time.monotonic()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    return time.monotonic() - began


@pytest.mark.parametrize(
    "call",
    [
        *("tree.create", "tree.link", "tree.sync_folder"),
        *("file.lock", "file.truncate", "file.sync", "file.close"),
    ],
)
async def test_create_cancelled_while_it_hangs(
    manager: Manager, pool: Pool, folder: Path, faults: Faults, call: str
) -> None:
    """A create that hangs, in whatever call, can be cancelled; when the storage is back, nothing is left of it."""
    before = open_files()
    gate = faults.hang(call)
    task = asyncio.ensure_future(pool.create_volume(VolumeDef("a", capacity=MIB)))
    await eventually(lambda: gate.inside)
    assert await cancelled(task) < BOUND
    gate.open()
    await eventually(lambda: quiet(manager) and not open_files() - before)
    await eventually(lambda: os.listdir(folder) == [])
    faults.clear(call)
    await pool.create_volume(VolumeDef("a", capacity=MIB))
    assert os.listdir(folder) == ["a"]


@pytest.mark.parametrize("call", ["file.pwrite", "file.sync", "tree.open", "file.lock"])
async def test_upload_cancelled_while_it_hangs(
    manager: Manager, pool: Pool, folder: Path, faults: Faults, call: str
) -> None:
    """So can an upload; the volume is somebody's until the last write is out of it, and free then."""
    disk = await pool.create_volume(VolumeDef("a", capacity=8 * MIB))
    before = open_files()
    gate = faults.hang(call)
    task = asyncio.ensure_future(disk.upload(bytes(8 * MIB)))
    await eventually(lambda: gate.inside)
    assert await cancelled(task) < BOUND
    faults.clear(call)
    if call in ("file.pwrite", "file.sync"):
        with pytest.raises(VolumeBusyError):
            await disk.upload(b"too early")
    gate.open()
    await eventually(lambda: quiet(manager) and not open_files() - before)
    assert await disk.upload(b"free") == 4
    assert (await pool.refresh(full=True)).errors == ()


@pytest.mark.parametrize("call", ["tree.unlink", "tree.rename", "tree.rmdir", "tree.mkdir"])
async def test_names_changed_late(manager: Manager, pool: Pool, folder: Path, faults: Faults, call: str) -> None:
    """A change of names that hangs is cancelled within bounds; what becomes of it, the next refresh shows."""
    disk = await pool.create_volume(VolumeDef("a", capacity=1))
    sub = await pool.create_volume(VolumeDef("d", format="dir"))
    gate = faults.hang(call)
    task: asyncio.Future[object] = asyncio.ensure_future(
        {
            "tree.unlink": disk.delete,
            "tree.rename": lambda: disk.rename("b"),
            "tree.rmdir": sub.delete,
            "tree.mkdir": lambda: pool.create_volume(VolumeDef("new", format="dir")),
        }[call]()
    )
    await eventually(lambda: gate.inside)
    assert await cancelled(task) < BOUND
    gate.open()
    await eventually(lambda: quiet(manager))
    expected = {"tree.unlink": ["d"], "tree.rename": ["b", "d"], "tree.rmdir": ["a"], "tree.mkdir": ["a", "d"]}[call]
    await eventually(lambda: sorted(os.listdir(folder)) == expected)
    await pool.refresh()
    assert [one.name for one in pool.volumes] == expected


async def test_names_changed_a_little_late(pool: Pool, folder: Path, faults: Faults, unhurried: None) -> None:
    """Whoever cancels finds the storage at rest: the change that was under way has come to its end."""
    disk = await pool.create_volume(VolumeDef("a", capacity=1))
    faults.run("tree.unlink", lambda call: time.sleep(0.05))
    faults.calls.clear()
    task = asyncio.ensure_future(disk.delete())
    await eventually(lambda: "tree.unlink" in faults.calls)
    await cancelled(task)
    assert os.listdir(folder) == []
    assert pool.volumes == ()
    faults.run("tree.mkdir", lambda call: time.sleep(0.05))
    task = asyncio.ensure_future(pool.create_volume(VolumeDef("d", format="dir")))
    await eventually(lambda: "tree.mkdir" in faults.calls)
    await cancelled(task)
    assert os.listdir(folder) == []


async def test_overdue(manager: Manager, pool: Pool, folder: Path, faults: Faults) -> None:
    """A call that passes its deadline is an error; with all threads hanging, work fails at once, and recovers."""
    disk = await pool.create_volume(VolumeDef("a", capacity=8 * MIB))
    before = open_files()
    lane = pool.parts.record.life.lane
    gate = faults.hang({"file.pwrite", "file.truncate"})
    sound, lane.timeout = lane.timeout, 0.3  # only for calls that hang
    with pytest.raises(LaneTimeoutError):
        await disk.upload(bytes(8 * MIB))
    while not any(lane.stuck == 4 for lane in manager.statistics().lanes.lanes):
        with pytest.raises(TimeoutError):
            await pool.create_volume(VolumeDef("b", capacity=1))
    began = time.monotonic()
    with pytest.raises(TimeoutError):
        await pool.create_volume(VolumeDef("b", capacity=1))
    assert time.monotonic() - began < BOUND
    lane.timeout = sound
    gate.open()
    faults.clear("file.pwrite", "file.truncate")
    await eventually(lambda: quiet(manager) and not open_files() - before)
    await eventually(lambda: os.listdir(folder) == ["a"])
    await disk.upload(b"well again")


async def test_stopped_by_force_while_it_hangs(manager: Manager, pool: Pool, folder: Path, faults: Faults) -> None:
    """A pool that hangs in a write is stopped by force; the write's end changes nothing any more."""
    disk = await pool.create_volume(VolumeDef("a", capacity=MIB))
    before = open_files()
    gate = faults.hang("file.pwrite")
    making = faults.hang("file.sync")
    work = [
        asyncio.ensure_future(disk.upload(bytes(MIB))),
        asyncio.ensure_future(pool.create_volume(VolumeDef("b", capacity=1))),
    ]
    await eventually(lambda: gate.inside and making.inside)
    began = time.monotonic()
    await pool.stop(force=True)
    assert time.monotonic() - began < BOUND
    gate.open()
    making.open()
    results = await asyncio.gather(*work, return_exceptions=True)
    assert all(isinstance(result, AstoreError) for result in results), results
    assert (pool.state, pool.volumes) == (PoolState.INACTIVE, ())
    faults.clear("file.pwrite", "file.sync")
    await eventually(lambda: quiet(manager))
    await pool.start()  # which removes what could not be removed while it hung
    assert os.listdir(folder) == ["a"]
    await pool.stop()
    await eventually(lambda: not open_files() - before)


async def test_closed_without_a_thread(tmp_path: Path) -> None:
    """A file whose lane has no thread left, or none in time, is closed all the same."""
    (tmp_path / "a").write_bytes(b"x")
    tree = await asyncio.to_thread(WritableLocalTree, str(tmp_path))
    lanes = Lanes()
    lane = lanes.lane("small", limit=1, timeout=30.0)
    before = open_files()
    for stuck in (False, True):
        opened = OpenFile(lane, await asyncio.to_thread(tree.open, "a"))
        gate = Gate()
        busy = asyncio.ensure_future(lane.run(gate, timeout=1.0 if stuck else None))
        await inside(gate)
        if stuck:
            with pytest.raises(LaneTimeoutError):
                await busy
        await opened.aclose()
        await eventually(lambda: not open_files() - before)
        gate.open()
        await asyncio.wait([busy])
        await eventually(lambda: not lane.stuck)
        with pytest.raises(OSError):
            await opened.stat()
        await opened.aclose()
    lanes.close()
    tree.close()


async def test_image_folder_without_a_thread(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    """The private folder of an image goes, too, where the lane has no thread for that."""
    gates = [Gate() for _ in range(4)]
    async with private_folder(context) as made:
        folder = Path(made)
        (folder / "image").write_bytes(b"x")
        assert folder.stat().st_mode & 0o777 == 0o700
        busy = [asyncio.ensure_future(context.lane.run(gate)) for gate in gates]
        await eventually(lambda: all(gate.inside for gate in gates))
    await eventually(lambda: not folder.exists())
    for gate in gates:
        gate.open()
    await asyncio.wait(busy)


async def test_session_that_ends_first(folder: Path, context: Context, unhurried: None) -> None:
    """What is opened or made through a session that is closed meanwhile fails, and leaves nothing."""
    tree = await asyncio.to_thread(WritableLocalTree, str(folder))
    session = WritableTreeSession(tree, context)
    info = await session.create_volume(VolumeDef("a", capacity=1))
    before = open_files()

    async def close_inside(make: bool) -> None:
        async with session.opener.new_volume(VolumeDef("b")) if make else session.open_volume(info, write=True) as file:
            await session.aclose()
            await file.stat()

    for make in (True, False):
        with pytest.raises(OSError):
            await close_inside(make)
        assert os.listdir(folder) == ["a"]
        with pytest.raises(OSError):
            async with session.opener.new_volume(VolumeDef("c")):
                raise AssertionError("the session is closed")
        tree = await asyncio.to_thread(WritableLocalTree, str(folder))
        session = WritableTreeSession(tree, context)

    async def close_at_the_end() -> None:
        async with session.opener.new_volume(VolumeDef("d")) as new:
            place = new.made.place

            def place_and_end() -> object:
                session.opener.files.over = True  # as if aclose() ran in the moment between
                return place()

            new.made.place = place_and_end  # type: ignore[method-assign, assignment]

    with pytest.raises(OSError):
        await close_at_the_end()
    assert os.listdir(folder) == ["a"]
    session.opener.files.over = False
    await session.aclose()
    await eventually(lambda: not open_files() - before)


async def test_leftovers_that_hang(pool: Pool, folder: Path, faults: Faults) -> None:
    """Leftovers that cannot be looked at do not keep a pool from starting."""
    await pool.stop()
    (folder / ".astore-1.tmp").write_bytes(b"x")
    faults.fail("file.lock", errno.EIO)
    await pool.start()
    assert os.listdir(folder) == [".astore-1.tmp"]
    await pool.stop()
    faults.clear("file.lock")
    await pool.start()
    assert os.listdir(folder) == []
    assert Snapshot.EMPTY.volumes == pool.volumes


async def test_source_file_that_hangs(tmp_path: Path, manager: Manager, pool: Pool) -> None:
    """A file to upload that hangs (here a FIFO) is given up within bounds, and closed when it comes back."""
    disk = await pool.create_volume(VolumeDef("a", capacity=MIB))
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    before = open_files()
    opening = asyncio.ensure_future(disk.upload(fifo))
    await eventually(lambda: not quiet(manager))
    assert await cancelled(opening) < BOUND
    writer = os.open(fifo, os.O_RDWR)
    await eventually(lambda: quiet(manager) and (open_files() - before).total() == 1)
    reading = asyncio.ensure_future(disk.upload(fifo, sparse=True))
    await eventually(lambda: (open_files() - before).total() == 3)
    await asyncio.sleep(0.05)
    assert await cancelled(reading) < BOUND
    os.write(writer, b"late")
    await eventually(lambda: quiet(manager) and (open_files() - before).total() == 1)
    os.close(writer)
    assert not open_files() - before
    whole = asyncio.ensure_future(disk.upload(fifo))
    writer = await asyncio.to_thread(os.open, fifo, os.O_WRONLY)
    os.write(writer, b"all of it")
    os.close(writer)
    assert await whole == 9


async def test_lane_executor() -> None:
    """An executor of a lane's threads makes one call after the other, and tells what each said."""
    lanes = Lanes()
    executor = LaneExecutor(lanes.lane("files", limit=2))
    loop = asyncio.get_running_loop()
    order: list[int] = []

    def call(number: int) -> int:
        time.sleep(0.02 / (number + 1))
        order.append(number)
        return number

    assert await asyncio.gather(*(loop.run_in_executor(executor, call, n) for n in range(5))) == list(range(5))
    assert order == list(range(5))
    with pytest.raises(ZeroDivisionError):
        await loop.run_in_executor(executor, lambda: 1 // 0)
    gate = Gate()
    first = loop.run_in_executor(executor, gate, 1)
    second = loop.run_in_executor(executor, call, 9)
    await eventually(lambda: gate.inside)
    second.cancel()
    gate.open()
    assert await first == 1
    await asyncio.sleep(0.05)
    assert 9 not in order, "what was cancelled in time is not called"
    lanes.close()


async def test_source_file_closed_without_a_thread(tmp_path: Path) -> None:
    """A file that was uploaded from is closed, too, where the lane has no thread any more."""
    (tmp_path / "file").write_bytes(b"x" * 100)
    lanes = Lanes()
    lane = lanes.lane("small", limit=1, timeout=30.0)
    before = open_files()
    gate = Gate()
    async with uploads.chunks_of(tmp_path / "file", lane) as (chunks, size):
        assert size == 100
        assert [bytes(one) async for one in chunks] == [b"x" * 100]  # type: ignore[arg-type]
        hanging = asyncio.ensure_future(lane.run(gate, timeout=1.0))
        await inside(gate)
        with pytest.raises(LaneTimeoutError):
            await hanging
    await eventually(lambda: not open_files() - before)
    gate.open()
    await eventually(lambda: not lane.stuck)
    with pytest.raises(RuntimeError):
        async with uploads.chunks_of(tmp_path / "file", None):
            raise AssertionError("there is no lane")
    lanes.close()


async def test_undone_where_nobody_takes_it(context: Context) -> None:
    """What a call returns to nobody is undone, whether that comes at once or late."""
    undone: list[object] = []
    for count, late in enumerate((False, True), 1):
        gate = Gate()
        task = asyncio.ensure_future(calls.to_the_end(context.lane, gate, late, undo=undone.append))
        await inside(gate)
        if not late:
            asyncio.get_running_loop().call_later(0.05, gate.open)
        await cancelled(task)
        gate.open()
        await eventually(lambda wanted=count: len(undone) == wanted)
    assert undone == [False, True]
    with pytest.raises(ZeroDivisionError):
        await calls.to_the_end(context.lane, lambda: 1 // 0, undo=undone.append)
    assert len(undone) == 2


async def test_undone_where_the_lane_is_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a call returns to nobody is undone on a thread of its own if the lane has none free."""
    monkeypatch.setattr("astore.cancellation.CLEANUP_SECONDS", 0.05)
    lanes = Lanes()
    lane = lanes.lane("small", limit=1, timeout=20.0)
    made, busy = Gate(), Gate()
    undone: list[object] = []
    task = asyncio.ensure_future(calls.to_the_end(lane, made, "made", undo=undone.append))
    await inside(made)
    after = asyncio.ensure_future(lane.run(busy))
    asyncio.get_running_loop().call_soon(made.open)
    await cancelled(task)
    await eventually(lambda: undone == ["made"])
    busy.open()
    await after
    lanes.close()


async def test_a_file_nobody_took(folder: Path) -> None:
    """Closing what nobody took closes the very file, whatever class it is of."""
    (folder / "a").write_bytes(b"x")
    tree = await asyncio.to_thread(WritableLocalTree, str(folder))
    file = await asyncio.to_thread(tree.open, "a")
    close_file(file)
    with pytest.raises(OSError):
        file.fileno()
    tree.close()
