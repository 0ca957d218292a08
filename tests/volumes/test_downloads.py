"""Downloads against a model, and by threads: whatever is slow, fails or hangs, what comes is what the file has."""

from __future__ import annotations

import asyncio
import os
import random
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from core_fakes import eventually
from hypothesis import given, settings
from hypothesis import strategies as st
from volumes.model_file import GRAIN, BrokenFile, ModelFile, Steps, blobs, plain, sizes

from astore.backend import Filled, Take
from astore.errors import LaneStuckError, LaneTimeoutError
from astore.lanes import Lanes
from astore.lanes.lane import PoolLane
from astore.volume_io import downloads
from astore.volume_io.blocks import Hole
from astore.volume_io.copying import Count
from astore.volume_io.downloads import Download, downloading
from astore.volume_io.local_file import LocalFile
from astore.volume_io.named_file import NamedFile
from astore.volume_io.open_file import OpenFile

BLOCK = 100


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """All that is counted in MiB is counted in tens of bytes here."""
    monkeypatch.setattr(downloads, "BLOCK", BLOCK)
    monkeypatch.setattr("astore.volume_io.copying.BLOCK", 130)


# ------------------------------------------------------------------------------------------------- against a model


@settings(max_examples=100)
@given(data=st.lists(blobs, max_size=5).map(b"".join), offset=sizes, length=st.none() | sizes, sparse=st.booleans())
def test_download_is_the_file(data: bytes, offset: int, length: int | None, sparse: bool) -> None:
    """Whatever part is asked for, with holes told or not."""
    end = len(data) if length is None else min(len(data), offset + length)
    start = min(offset, end)

    async def run() -> tuple[list[Any], int]:
        steps = Steps()
        file = ModelFile(data)
        async with downloading(file, start, end, sparse, Count(None, steps)) as blocks:
            got = [one async for one in blocks]
        assert file.most <= ModelFile.in_flight
        return got, steps.done

    got, done = asyncio.run(run())
    assert plain(got) == data[start:end]
    assert done == end - start
    assert sparse or not any(isinstance(one, Hole) for one in got)
    assert not any(isinstance(one, Hole) and not one.length for one in got)


async def test_download_gives_what_comes_before_an_error() -> None:
    """All blocks before the one that cannot be read are given; then the error, as often as one asks."""
    got = []
    async with downloading(BrokenFile(300, OSError(5, "no"), b"x" * 1000), 0, 1000, False, Count(None, None)) as blocks:
        for _ in range(3):
            got.append(await anext(blocks))
        for _ in range(2):
            with pytest.raises(OSError, match="no"):
                await anext(blocks)
    assert plain(got) == b"x" * 300


async def test_blocks_that_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks that somebody keeps, or looks at, stay as they are; the memory of the others is used again."""
    monkeypatch.setattr(downloads, "BLOCK", 1000)
    data = random.Random(5).randbytes(99_500)
    file = ModelFile(data)
    used = set()
    async with downloading(file, 0, len(data), False, Count(None, None)) as blocks:
        async for block in blocks:
            used.add(id(block))
    assert len(used) <= file.in_flight + downloads.ROOM + 2
    kept: list[Any] = []
    async with downloading(file, 0, len(data), False, Count(None, None)) as blocks:
        async for block in blocks:
            assert isinstance(block, bytearray)
            kept.append(memoryview(block)[:10] if len(kept) % 3 else block)
    assert [bytes(one[:10]) for one in kept] == [data[at : at + 10] for at in range(0, len(data), 1000)]
    assert kept[3] == data[3000:4000]


async def test_download_of_what_is_cut() -> None:
    """A file that is cut while it is read ends there."""
    file = ModelFile(b"x" * 1000)
    async with downloading(file, 0, 1000, False, Count(None, None)) as blocks:
        await anext(blocks)
        await file.truncate(150)
        rest = [one async for one in blocks]
        assert len(plain(rest)) <= 500
        with pytest.raises(StopAsyncIteration):
            await anext(blocks)


async def test_many_small_holes() -> None:
    """What is between holes is read side by side, and holes come in their places."""
    data = b"".join((bytes(GRAIN) if n % 2 else bytes([n]) * GRAIN) for n in range(1, 60))
    file = ModelFile(data)
    async with downloading(file, 0, len(data), True, Count(None, None)) as blocks:
        got = [one async for one in blocks]
    assert [isinstance(one, Hole) for one in got] == [n % 2 == 1 for n in range(1, 60)]
    assert plain(got) == data


# --------------------------------------------------------------------------------------------------- by threads


class ThreadedFile(LocalFile):
    """A file whose reads wait, fail or hang as the test says.

    :param before: called with the offset, in the thread, before each read.
    """

    def __init__(self, path: Path, before: Callable[[int], object] = lambda _: None) -> None:
        super().__init__(os.open(path, os.O_RDONLY | os.O_CLOEXEC), str(path))
        self._before = before
        self.threads: set[int] = set()
        self.calls = 0

    def preadinto(self, buffer: bytearray | memoryview, offset: int) -> int:
        self.threads.add(threading.get_ident())
        self.calls += 1
        self._before(offset)
        return super().preadinto(buffer, offset)


DATA = random.Random(9).randbytes(200 * BLOCK + 7)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file with DATA in it."""
    made = tmp_path / "file"
    made.write_bytes(DATA)
    return made


@pytest.fixture
def lane(lanes: Lanes) -> PoolLane:
    """A lane with four threads, whose calls may take half a minute."""
    return lanes.lane("pool", limit=4)


class Opened:
    """A threaded file as the core opens it, and by its name."""

    def __init__(self, lane: PoolLane, file: ThreadedFile) -> None:
        self.open_file = OpenFile(lane, file)
        self.named = NamedFile(self.open_file, "p", "v")

    async def __aenter__(self) -> Opened:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.open_file.aclose()

    def download(self, count: Count | None = None) -> Any:
        return downloading(self.named, 0, len(DATA), False, count or Count(None, None))


async def taken(blocks: Download, got: bytearray) -> Exception | None:
    """Take all there is into ``got``; returns what ended it, if that was an error."""
    try:
        async for block in blocks:
            assert isinstance(block, bytearray)
            got += block
    except Exception as error:
        return error
    return None


async def test_threads_stay_at_it(lane: PoolLane, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are not asked for each block, and there are no more of them than pay."""
    monkeypatch.setattr(downloads, "STAY", 10.0)
    monkeypatch.setattr(downloads, "ROOM", 50)  # so that they find something to do however slow the loop is
    asked = 0
    run = lane.run

    async def counted(*args: Any, **settings: Any) -> Any:
        nonlocal asked
        asked += 1
        return await run(*args, **settings)

    monkeypatch.setattr(lane, "run", counted)
    file = ThreadedFile(path, lambda _: time.sleep(0.001))
    async with Opened(lane, file) as opened, opened.download() as blocks:
        assert b"".join([block async for block in blocks]) == DATA
    assert file.calls == 201
    assert asked < 60
    assert 1 <= len(file.threads) <= file.in_flight


@pytest.mark.parametrize("stay", [0.0, 0.003])
async def test_threads_are_given_back(lane: PoolLane, path: Path, stay: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """However short they may stay, all comes, in order; and a pool with one thread is not kept from other work."""
    monkeypatch.setattr(downloads, "STAY", stay)
    lane.limit = 1
    others = 0
    over = asyncio.Event()

    async def other_work() -> None:
        nonlocal others
        while not over.is_set():
            await lane.run(int)
            others += 1

    file = ThreadedFile(path, lambda _: time.sleep(0.0005))
    async with asyncio.TaskGroup() as group:
        group.create_task(other_work())
        async with Opened(lane, file) as opened, opened.download() as blocks:
            assert b"".join([block async for block in blocks]) == DATA
        over.set()
    assert others > 10


async def test_slow_consumers(lane: PoolLane, path: Path) -> None:
    """No more is read ahead than there is room for, and no thread waits for whoever is slow."""
    file = ThreadedFile(path)
    async with Opened(lane, file) as opened, opened.download() as blocks:
        got = bytearray()
        for number in range(1, 50):
            got += await anext(blocks)
            if number % 10 == 0:
                while lane.statistics().running:
                    await asyncio.sleep(0.005)
                assert number <= file.calls <= number + file.in_flight + downloads.ROOM
        assert got == DATA[: len(got)]


async def test_consumers_of_any_patience(lane: PoolLane, path: Path) -> None:
    """Who gives up a block because it is late, and asks again, misses none."""
    rng = random.Random(3)
    file = ThreadedFile(path, lambda _: time.sleep(rng.random() * 0.002))
    got = bytearray()
    late = 0
    async with Opened(lane, file) as opened, opened.download() as blocks:
        while True:
            try:
                async with asyncio.timeout(rng.random() * 0.001):
                    got += await anext(blocks)
            except TimeoutError:
                late += 1
            except StopAsyncIteration:
                break
    assert got == DATA
    assert late


@pytest.mark.parametrize("at", [0, 1, 7, 50, 200])
async def test_error_in_a_thread(lane: PoolLane, path: Path, at: int) -> None:
    """All that comes before it is given; then it, with the pool's name and the volume's, as often as one asks."""

    def fail(offset: int) -> None:
        if offset >= at * BLOCK:
            raise OSError(5, "Input/output error")

    got = bytearray()
    async with Opened(lane, ThreadedFile(path, fail)) as opened, opened.download() as blocks:
        error = await taken(blocks, got)
        assert isinstance(error, OSError)
        assert str(error).endswith("pool 'p': volume 'v': Input/output error")
        with pytest.raises(OSError, match="pool 'p'"):
            await anext(blocks)
    assert got == DATA[: at * BLOCK]


@pytest.mark.parametrize("error", [GeneratorExit(), asyncio.CancelledError(), StopAsyncIteration(), MemoryError()])
async def test_plugins_that_raise_anything(error: BaseException) -> None:
    """Whoever waits for a block hears of it, and takes it neither for the end nor for a cancellation of their own."""

    class Odd(ModelFile):
        async def preadinto(self, buffer: bytearray | memoryview, offset: int) -> int:
            if offset:
                raise error
            return await super().preadinto(buffer, offset)

    misleading = isinstance(error, (asyncio.CancelledError, StopAsyncIteration))
    async with downloading(Odd(DATA), 0, len(DATA), False, Count(None, None)) as blocks:
        assert await anext(blocks) == DATA[:BLOCK]
        with pytest.raises(RuntimeError if misleading else type(error)):
            await anext(blocks)


@pytest.mark.parametrize("answer", [-1, BLOCK + 1, None])
async def test_plugins_that_do_not_keep_to_it(answer: int | None) -> None:
    """A file that says that it read what it cannot have read, or nothing at all, is an error and not a wait for ever."""

    class Odd(ModelFile):
        async def read_blocks(self, take: Take, filled: Filled) -> None:
            while take() is not None:
                if answer is None:
                    return
                filled(answer)

    async with downloading(Odd(DATA), 0, len(DATA), False, Count(None, None)) as blocks:
        with pytest.raises((ValueError, RuntimeError), match=r"a read of 100|read_blocks"):
            await anext(blocks)


async def test_eager_tasks() -> None:
    """Whatever makes tasks of the application's, and runs them at once (Python 3.12), does not make these."""
    loop = asyncio.get_running_loop()

    def factory(*_: Any, **__: Any) -> Any:
        raise AssertionError("a task of the application's kind")

    file = ModelFile(DATA)
    async with downloading(file, 0, len(DATA), False, Count(None, None)) as blocks:
        before = loop.get_task_factory()
        loop.set_task_factory(factory)
        try:
            got = plain([block async for block in blocks])
        finally:
            loop.set_task_factory(before)
    assert got == DATA


async def test_closed_by_somebody_else() -> None:
    """Who waits for a block of a download that another closes is told that it has ended."""

    class Hanging(ModelFile):
        async def preadinto(self, buffer: bytearray | memoryview, offset: int) -> int:
            await asyncio.Event().wait()
            raise AssertionError

    for steps in (0, 1, 5):
        async with downloading(Hanging(DATA), 0, len(DATA), False, Count(None, None)) as blocks:
            waiting = asyncio.ensure_future(anext(blocks))
            for _ in range(steps):
                await asyncio.sleep(0)
            await blocks.aclose()
            async with asyncio.timeout(120):
                with pytest.raises(StopAsyncIteration):
                    await waiting


async def test_error_while_data_are_looked_for() -> None:
    """Nothing is read behind an error, though more data are found meanwhile."""
    data = b"".join(bytes(GRAIN) + b"x" * GRAIN for _ in range(200))
    read: list[int] = []

    class Odd(ModelFile):
        async def preadinto(self, buffer: bytearray | memoryview, offset: int) -> int:
            read.append(offset)
            if offset > 4 * GRAIN:
                raise OSError(5, "no")
            return await super().preadinto(buffer, offset)

    file = Odd(data)
    errors = 0
    async with downloading(file, 0, len(data), True, Count(None, None)) as blocks:
        for _ in range(50):
            try:
                await anext(blocks)
            except OSError:
                errors += 1
    assert errors == 45
    assert max(read) <= 4 * GRAIN + 2 * GRAIN * file.in_flight


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """Closed; opened after the test."""
    gate = threading.Event()
    yield gate
    gate.set()


async def test_storage_that_hangs(lanes: Lanes, path: Path, gate: threading.Event) -> None:
    """The deadline is an error at the block that hangs; a thread that comes back late changes nothing, and reads no more."""
    lane = lanes.lane("slow", limit=4, timeout=2.0)

    def hang(offset: int) -> None:
        if offset == 20 * BLOCK:
            gate.wait(30)

    file = ThreadedFile(path, hang)
    got = bytearray()
    async with Opened(lane, file) as opened:
        async with opened.download() as blocks:
            assert isinstance(await taken(blocks, got), LaneTimeoutError)
            assert got == DATA[: 20 * BLOCK]
            calls = file.calls
            gate.set()
            while lane.stuck:
                await asyncio.sleep(0.01)
            with pytest.raises(LaneTimeoutError):
                await anext(blocks)
            assert file.calls == calls


async def test_no_thread_to_be_had(lanes: Lanes, path: Path, gate: threading.Event) -> None:
    """Where all threads hang already, the first block is that error."""
    lane = lanes.lane("stuck", limit=2)
    hanging = [asyncio.ensure_future(lane.run(gate.wait, timeout=1.0)) for _ in range(2)]
    await eventually(lambda: lane.statistics().running == 2)
    await asyncio.wait(hanging)
    for one in hanging:
        assert isinstance(one.exception(), LaneTimeoutError)
    async with Opened(lane, ThreadedFile(path)) as opened, opened.download() as blocks:
        for _ in range(2):
            with pytest.raises(LaneStuckError):
                await anext(blocks)


async def test_given_up_while_it_is_read(lane: PoolLane, path: Path, gate: threading.Event) -> None:
    """Whoever leaves early does not wait for what hangs, and what comes back late goes nowhere."""
    hanging: list[int] = []

    def hang(offset: int) -> None:
        if offset >= 3 * BLOCK:
            hanging.append(offset)
            gate.wait(120)

    file = ThreadedFile(path, hang)
    opened = Opened(lane, file)
    kept: list[Any] = []
    began = time.monotonic()
    async with opened.download() as blocks:
        for _ in range(3):
            kept.append(await anext(blocks))
        waiting = asyncio.ensure_future(anext(blocks))
        await eventually(lambda: len(hanging) == file.in_flight)
        waiting.cancel()
        await asyncio.wait([waiting])
    assert time.monotonic() - began < 60
    calls = file.calls
    gate.set()
    await opened.open_file.aclose()
    assert file.calls == calls
    assert [bytes(block) for block in kept] == [DATA[at : at + BLOCK] for at in range(0, 300, BLOCK)]
    assert isinstance(blocks, Download)
    with pytest.raises(StopAsyncIteration):
        await anext(blocks)


@pytest.mark.parametrize("seed", range(6))
async def test_kept_and_let_go_by_lot(lane: PoolLane, path: Path, seed: int) -> None:
    """Consumers that keep blocks, or views of them, at random: what they keep never changes."""
    rng = random.Random(seed)
    kept: list[tuple[int, Any]] = []
    at = 0

    async def consumed() -> AsyncIterator[tuple[int, Any]]:
        nonlocal at
        file = ThreadedFile(path, lambda _: time.sleep(rng.choice((0, 0, 0.0003))))
        async with Opened(lane, file) as opened, opened.download() as blocks:
            async for block in blocks:
                length = len(block)
                yield at, block
                at += length

    async for where, block in consumed():
        if rng.random() < 0.4:
            kept.append((where, memoryview(block) if rng.random() < 0.5 else block))
        elif rng.random() < 0.3:
            block[:] = bytes(len(block))
        elif rng.random() < 0.2:
            block.clear()
        if kept and rng.random() < 0.3:
            kept.pop(rng.randrange(len(kept)))
        if rng.random() < 0.1:
            await asyncio.sleep(0.001)
        for begin, one in kept:
            assert one == DATA[begin : begin + len(one)]
    assert at == len(DATA)
