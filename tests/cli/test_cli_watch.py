"""``astore watch``: its table, its lines, the start of pools that are not ready, and its end."""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import os
import shutil
import signal
import struct
import termios
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from core_fakes import FakeBackend, eventually, fake, fake_registry, started
from rich.cells import cell_len
from rich.console import Console
from terminals import PATIENCE, Terminal

import astore as library
from astore import events as kinds
from astore.cli.output import Output, when
from astore.cli.watch_table import Board, in_words
from astore.model import Freshness, PoolState

Make = Callable[..., Path]

ABOUT: dict[str, Any] = {"uuid": "u", "seq": 7}


# -------------------------------------------------------------------------------------------------------- the table


@pytest.mark.parametrize(
    ("freshness", "words"),
    [
        (None, "-"),
        (Freshness("inotify", pushed=True, bound=1.0), "inotify, within 1 s"),
        (
            Freshness("polled", pushed=False, bound=30.01, note="it tells nothing"),
            "polled, within 30.1 s: it tells nothing",
        ),
        (
            Freshness("polled", pushed=False, bound=60.0, note="pool 'p': no route", next_try=61.5),
            f"next try at {when(61.5)}: no route",
        ),
    ],
)
def test_freshness_in_words(freshness: Freshness | None, words: str) -> None:
    """How a pool learns of changes, and by when; the bound is never said to be less than it is."""
    assert in_words("p", freshness) == words


class Screen:
    """A terminal of some size, which only remembers."""

    def __init__(self, width: int, height: int, encoding: str = "utf-8") -> None:
        stream = io.TextIOWrapper(io.BytesIO(), encoding)
        self.output = Output(stream, terminal=True)
        self.console: Console = self.output.console
        self.console.size = (width, height)  # type: ignore[assignment]

    def lines(self, board: Board) -> list[str]:
        """What the board draws."""
        with self.console.capture() as captured:
            self.console.print(board.drawn(board.rows()))
        return captured.get().splitlines()


@pytest.fixture
def backend() -> FakeBackend:
    """A backend whose pools have the volume a."""
    backend = FakeBackend()
    backend.show("a")
    return backend


async def test_the_table_in_terminals_of_all_sizes(tmp_path: Path, backend: FakeBackend) -> None:
    """Every line fits, there are no more than the window has, and the pools that matter most are among them."""
    async with library.Manager(tmp_path / "state", registry=fake_registry(backend)) as manager:
        for number in range(30):
            await started(manager, fake(f"pool-{number:02}-with-a-long-name"))
        evil = "evil\x1b[2Jname"
        for width in (20, 40, 89, 90, 200):
            for height in (3, 10, 40, 200):
                screen = Screen(width, height)
                board = Board(manager, None, screen.output)
                board.note(kinds.VolumeRemoved(pool="pool-17-with-a-long-name", name=evil, time=time.time(), **ABOUT))
                lines = screen.lines(board)
                text = "\n".join(lines)
                assert len(lines) <= max(height, 4)
                assert all(cell_len(line) <= width for line in lines)
                assert "pool-17" in text
                assert "\x1b" not in text
                if height == 200:
                    assert all(f"pool-{number:02}" in text for number in range(30))
                    assert "30 pools: 30 runni"[: width - 1] in lines[-1]
                elif width == 200 and height == 10:
                    assert lines[-1] == "7 of 30 pools are shown: 30 running; Ctrl-C ends"


async def test_what_a_row_says(tmp_path: Path, backend: FakeBackend) -> None:
    """The last event with its time, bold while it is new; a refresh without volumes of its own is none; the next try."""
    async with library.Manager(tmp_path / "state", registry=fake_registry(backend)) as manager:
        pool = await started(manager, fake("pool"))
        other = await manager.define(fake("other"))
        board = Board(manager, {"pool", "other"}, Screen(100, 10).output)
        await started(manager, fake("third"))
        assert [(row.name, row.last.text, row.volumes) for row in board.rows()] == [
            ("other", "-", "0"),
            ("pool", "-", "1"),
        ]
        now = time.time()
        board.note(kinds.VolumeRemoved(pool="pool", name="a", time=now, **ABOUT))
        board.note(kinds.PoolRefreshed(pool="pool", generation=2, removed=1, time=now, **ABOUT))
        board.note(kinds.PoolRetry(pool="other", attempt=1, at=61.5, reason="gone", time=now - 60, **ABOUT))
        first, second = board.rows()
        assert second.last == (f"{when(now)} volume a removed", "bold")
        assert first.last == (f"{when(now - 60)} try 1 failed: gone; next try at {when(61.5)}", "")
        assert first.fresh == f"next try at {when(61.5)}: gone"
        board.note(kinds.PoolStarted(pool="other", time=now, **ABOUT))
        assert board.rows()[0].fresh == "-"
        await other.undefine()
        board.note(kinds.PoolUndefined(pool="other", time=now, **ABOUT))
        assert [row.name for row in board.rows()] == ["pool"]
        async with manager.watch(max_staleness=5):
            await eventually(lambda: pool.info.freshness, "the first refresh")
            assert board.rows()[0].fresh.startswith("polled, within 5")


async def test_notes_are_written_out_where_there_is_room(tmp_path: Path, backend: FakeBackend) -> None:
    """What would make a pool fresher is read by people: it is cut off only if there are too many pools."""
    async with library.Manager(tmp_path / "state", registry=fake_registry(backend)) as manager:
        await started(manager, fake("pool"))
        note = " ".join(f"word{number}" for number in range(30))
        for width in (40, 120):
            for height, whole in ((5, False), (40, True)):
                screen = Screen(width, height)
                board = Board(manager, None, screen.output)
                board.note(kinds.PoolRetry(pool="pool", attempt=1, at=61.5, reason=note, time=1.0, **ABOUT))
                lines = screen.lines(board)
                assert len(lines) <= height
                assert ("word29" in "\n".join(lines)) == whole


async def test_a_terminal_without_utf_8(tmp_path: Path, backend: FakeBackend) -> None:
    """What it has no characters for is escaped, and nothing fails."""
    async with library.Manager(tmp_path / "state", registry=fake_registry(backend)) as manager:
        await started(manager, fake("pool"))
        screen = Screen(92, 10, "ascii")
        board = Board(manager, None, screen.output)
        event = kinds.PoolStateChanged(
            pool="pool", old=PoolState.RUNNING, new=PoolState.INACCESSIBLE, reason="x" * 80, time=time.time(), **ABOUT
        )
        board.note(event)
        text = "\n".join(screen.lines(board))
        assert "\\u2192" in text
        assert text.isascii()


def test_no_pools_yet(tmp_path: Path) -> None:
    """Then the last line is all there is."""
    screen = Screen(100, 10)
    assert (
        screen.lines(Board(library.Manager(tmp_path / "state"), None, screen.output))[-1] == "no pools yet; Ctrl-C ends"
    )


# ------------------------------------------------------------------------------------------------- on a terminal


@pytest.fixture
def terminal(astore: Any) -> Iterator[Callable[..., Terminal]]:
    """Runs the command on a terminal."""
    opened: list[Terminal] = []

    def run(*arguments: str, **more: Any) -> Terminal:
        opened.append(Terminal(astore.argv(*arguments, interrupted=True), astore.environment(), **more))
        return opened[-1]

    yield run
    for one in opened:
        one.close()


@pytest.mark.parametrize("columns", [120, 50])
def test_on_a_terminal(astore: Any, make_pool: Make, terminal: Callable[..., Terminal], columns: int) -> None:
    """The table shows what others do as they do it; Ctrl-C restores the terminal, and the exit code tells of it."""
    folder = make_pool()
    running = terminal("watch", columns=columns)
    running.until("images", "running", "inotify, within 1 s")
    (folder / "new.raw").touch()
    running.until("volume new.raw added")
    assert astore.process("pool", "define", astore.definition("late", folder / "late")).code == 0
    running.until("late", "inactive", " defined")
    before = len(running.seen)
    assert running.end() == 130
    assert running.seen.count(b"\x1b[?1049h") == running.seen.count(b"\x1b[?1049l") == 1
    table = running.seen.partition(b"\x1b[?1049h")[2]  # before it, a slow start may have shown its progress
    assert table.count(b"\x1b[?25l") == table.count(b"\x1b[?25h") == 1
    assert b"\x1b[?1049l" in running.seen[before:]
    assert running.seen.endswith(b"astore: interrupted\r\n")


def test_few_drawings(make_pool: Make, terminal: Callable[..., Terminal]) -> None:
    """Hundreds of changes in a second are a few drawings."""
    folder = make_pool()
    running = terminal("watch")
    running.until("inotify, within 1 s")
    began = time.monotonic()
    for number in range(300):
        (folder / f"new{number}.raw").touch()
        time.sleep(0.005)
    running.until(" 302 ")
    took = time.monotonic() - began
    assert running.end() == 130
    assert running.seen.count(b"\x1b[H") <= 4 * took + 10


# --------------------------------------------------------------------------------------------------------- elsewhere


def told_by(astore: Any, *arguments: str) -> list[str]:
    """The first two lines of a command, and what more it writes in a second and a half."""
    with astore.running(*arguments) as process:
        lines = [process.stdout.readline() for _ in range(2)]
        time.sleep(1.5)
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE) == 130
        return [line.decode().rstrip("\n") for line in lines + process.stdout.readlines()]


def test_lines(astore: Any, make_pool: Make) -> None:
    """Where it is no terminal, it writes what `astore events` writes."""
    folder = make_pool()
    make_pool("other")
    (folder / "new.raw").touch()
    lines = told_by(astore, "watch", "images", "--max-staleness", "5")
    assert [line[20:] for line in lines] == [
        "images: volume new.raw added (raw, 0 B)",
        "images: refreshed: 1 added, 0 changed, 0 removed, 2 unchanged",
    ]
    ran = astore("watch", "nobody", "--json", "--for", "0.1")
    assert (ran.code, ran.out, ran.err) == (0, "", "astore: there is no pool 'nobody' yet: waiting for it\n")


def test_pools_that_are_not_ready_when_the_machine_starts(astore: Any, make_pool: Make) -> None:
    """--autostart starts the pools that are marked; those that fail are tried again until they come."""
    late = make_pool("late", start=False)
    make_pool("other", start=False)
    assert astore("watch", "--autostart", "--for", "0").err == "astore: no pool is marked for autostart\n"
    astore.good("pool", "autostart", "late")
    hidden = late.rename(late.with_name("hidden"))
    found: list[dict[str, Any]] = []
    with astore.running("watch", "--autostart", "--json") as process:
        for line in process.stdout:
            found.append(json.loads(line))
            if found[-1]["event"] == "PoolRetry" and not late.exists():
                hidden.rename(late)
            if found[-1]["event"] == "PoolRefreshed":
                break
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE) == 130
    assert {event["pool"] for event in found if "pool" in event} == {"late"}
    told = [event["event"] for event in found if event["event"] in ("PoolStartFailed", "PoolRetry", "PoolStarted")]
    assert told[:2] == ["PoolStartFailed", "PoolRetry"]
    assert told[-1] == "PoolStarted"
    (retry, *_) = [event for event in found if event["event"] == "PoolRetry"]
    assert retry["time"] < retry["at"] < retry["time"] + 2
    assert "does not exist" in retry["reason"]
    listed = astore.good("pool", "list", "--json").json()["pools"]
    assert [pool["name"] for pool in listed] == ["late"], "it stays active"


def test_without_retry(astore: Any, make_pool: Make) -> None:
    """--no-retry leaves a pool that failed as it is."""
    shutil.rmtree(make_pool("late", start=False))
    astore.good("pool", "autostart", "late")
    lines = told_by(astore, "watch", "--autostart", "--no-retry", "--json")
    assert [json.loads(line)["event"] for line in lines] == ["BackendRegistered", "PoolStartFailed"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_interrupted(astore: Any, make_pool: Make, number: signal.Signals) -> None:
    """It ends with one line and 130, the pool stays active, and neither files nor processes are left."""
    folder = make_pool()
    before = sorted(path.relative_to(astore.state_dir) for path in astore.state_dir.rglob("*"))
    with astore.running("watch", "--json") as process:
        timer = threading.Timer(0.5, (folder / "new.raw").touch)
        timer.start()
        names = [json.loads(process.stdout.readline())["event"] for _ in range(2)]
        timer.join()
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        process.send_signal(number)
        assert process.wait(PATIENCE) == 130
        assert process.stderr.read() == b"astore: interrupted\n"
    assert names[0] == "BackendRegistered"
    assert not [child for child in children if Path(f"/proc/{child}").exists()]
    assert sorted(path.relative_to(astore.state_dir) for path in astore.state_dir.rglob("*")) == before
    assert astore.good("pool", "list", "--name").out == "images\n"


def test_interrupted_while_nobody_reads(astore: Any, make_pool: Make) -> None:
    """A reader that has stopped reading, such as a pager, does not keep it from ending."""
    folder = make_pool()
    for number in range(400):
        (folder / f"{number}-{'x' * 200}").touch()
    with astore.running("watch") as process:
        pipe = process.stdout.fileno()
        full = fcntl.fcntl(pipe, fcntl.F_GETPIPE_SZ) - (1 << 12)
        deadline = time.monotonic() + PATIENCE
        while struct.unpack("i", fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)))[0] < full:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE) == 130


def test_pool_event_interrupted_while_nobody_reads(astore: Any, make_pool: Make) -> None:
    """So with the line of an event that waits to be read, and with those that tell of the end."""
    make_pool()
    with astore.running("pool-event", "--event", "lifecycle", "--loop") as process:
        tasks = Path(f"/proc/{process.pid}/task")
        filler = os.open(f"/proc/{process.pid}/fd/1", os.O_WRONLY | os.O_NONBLOCK)
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(filler, bytes(1 << 12))
        os.close(filler)

        def writes() -> bool:
            with contextlib.suppress(FileNotFoundError):
                return any((task / "syscall").read_text().startswith("1 0x1 ") for task in tasks.iterdir())
            return False

        deadline = time.monotonic() + PATIENCE
        while not writes():  # it may not have begun to look yet
            assert time.monotonic() < deadline
            astore.good("pool", "stop", "images")
            astore.good("pool", "start", "images")
            time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE) == 130
