"""``astore vol upload`` and ``download``, in this process: files, pipes, standard streams, and what breaks off."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pty
import random
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import json_page as shapes
import pytest

from astore.cli import local_files
from astore.cli.exits import CliError
from astore.cli.local_files import NewFile
from astore.cli.progress import Ticker

Make = Callable[..., Path]

DATA = random.Random(1).randbytes((9 << 20) + 12_345)
"""More than one piece, and no whole number of them."""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file with DATA."""
    path = tmp_path / "data"
    path.write_bytes(DATA)
    return path


@contextlib.contextmanager
def at_the_other_end(work: Callable[[int], object], number: int) -> Iterator[None]:
    """Somebody works on the other end of a pipe meanwhile, and closes it."""

    def run() -> None:
        try:
            work(number)
        finally:
            os.close(number)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        thread.join(30)
        assert not thread.is_alive()


def write_all(number: int) -> None:
    view = memoryview(DATA)
    while view:
        view = view[os.write(number, view[:100_000]) :]


class Reader:
    """Reads a pipe to its end, slowly at first."""

    def __init__(self) -> None:
        self.found = b""

    def __call__(self, number: int) -> None:
        time.sleep(0.1)
        while (data := os.read(number, 1 << 20)) or not self.found:
            self.found += data
            if not data:  # a FIFO has no writer at first
                time.sleep(0.01)


# ----------------------------------------------------------------------------------------------------------- upload


def test_upload_a_file(astore: Any, folder: Path, file: Path) -> None:
    """All of it, at the beginning or elsewhere; the size of the volume stays."""
    sent = astore.good("vol", "upload", "a.raw", str(file), "--json").shape(shapes.Transfer)
    assert (sent.pool, sent.name, sent.bytes) == ("images", "a.raw", len(DATA))
    assert sent.seconds > 0
    assert (folder / "a.raw").read_bytes() == DATA.ljust(16 << 20, b"\0")
    ran = astore.good("vol-upload", "a.raw", str(file), "--pool", "images", "--offset", "1M", "--length", "10M")
    assert ran.out == "\n"
    assert astore.good("vol", "upload", "a.raw", str(file)).out.startswith("9.01 MiB uploaded to volume 'a.raw'")
    astore.good("vol", "upload", "a.raw", str(file), "--offset", "1M")
    assert (folder / "a.raw").read_bytes() == (DATA[: 1 << 20] + DATA).ljust(16 << 20, b"\0")


def test_upload_more_than_was_said(astore: Any, folder: Path, file: Path) -> None:
    """--length is a promise; who breaks it is told."""
    ran = astore.process("vol", "upload", "a.raw", "-", "--length", "1000", stdin=DATA)
    assert ran.code == 1
    assert "more than the announced 1000 bytes" in ran.complaint


def test_upload_zeros_as_holes(astore: Any, folder: Path, tmp_path: Path) -> None:
    """With --sparse, out of a file and out of a pipe."""
    (tmp_path / "zeros").write_bytes(bytes(8 << 20) + b"end")
    astore.good("vol", "upload", "a.raw", str(tmp_path / "zeros"), "--sparse")
    assert (folder / "a.raw").stat().st_blocks * 512 < 1 << 20
    assert (folder / "a.raw").read_bytes()[8 << 20 :][:4] == b"end\0"
    astore.good("vol", "upload", "a.raw", str(tmp_path / "zeros"))
    assert (folder / "a.raw").stat().st_blocks * 512 >= 8 << 20


@pytest.mark.parametrize("blocking", [True, False])
def test_upload_standard_input(
    astore: Any, folder: Path, blocking: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A pipe, also one that does not wait for its writer."""
    reading, writing = os.pipe()
    os.set_blocking(reading, blocking)
    monkeypatch.setattr(local_files, "STANDARD_INPUT", reading)
    try:
        with at_the_other_end(write_all, writing):
            sent = astore.good("vol", "upload", "a.raw", "-", "--json").shape(shapes.Transfer)
    finally:
        os.close(reading)
    assert sent.bytes == len(DATA)
    assert (folder / "a.raw").read_bytes()[: len(DATA)] == DATA


def test_upload_standard_input_that_is_a_file(
    astore: Any, folder: Path, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From where it stands, and the total is known."""
    totals: list[int | None] = []
    monkeypatch.setattr(Ticker, "begin_bytes", lambda self, label, total: totals.append(total))
    with file.open("rb", buffering=0) as stream:
        stream.seek(100)
        monkeypatch.setattr(local_files, "STANDARD_INPUT", stream.fileno())
        assert astore.good("vol", "upload", "a.raw", "-", "--json").json()["bytes"] == len(DATA) - 100
    assert totals == [len(DATA) - 100]
    assert (folder / "a.raw").read_bytes()[: len(DATA) - 100] == DATA[100:]


def test_upload_a_fifo(astore: Any, folder: Path, tmp_path: Path) -> None:
    """As bash's <(...) is one."""
    os.mkfifo(tmp_path / "fifo")
    both = os.open(tmp_path / "fifo", os.O_RDWR)
    with at_the_other_end(write_all, both):
        astore.good("vol", "upload", "a.raw", str(tmp_path / "fifo"))
    assert (folder / "a.raw").read_bytes()[: len(DATA)] == DATA


def test_standard_input_that_cannot_be_read(
    astore: Any, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Is named so."""
    with (tmp_path / "file").open("wb") as stream:
        monkeypatch.setattr(local_files, "STANDARD_INPUT", stream.fileno())
        ran = astore("vol", "upload", "a.raw", "-")
    assert (ran.code, ran.complaint) == (
        1,
        "standard input: it is closed, or has the commands of `astore shell`: name a file instead",
    )


# --------------------------------------------------------------------------------------------------------- download


@pytest.fixture
def filled(folder: Path) -> Path:
    """The same folder; the volume has DATA and is as long as they are."""
    (folder / "a.raw").write_bytes(DATA)
    return folder


def test_download_to_a_new_file(astore: Any, filled: Path, tmp_path: Path) -> None:
    """All of it or a part, with the permissions that a new file gets; nothing else is left in the folder."""
    target = tmp_path / "to"
    target.mkdir()
    before = os.umask(0o027)
    try:
        got = astore.good("vol", "download", "a.raw", str(target / "x"), "--json").shape(shapes.Transfer)
    finally:
        os.umask(before)
    assert (got.pool, got.name, got.bytes) == ("images", "a.raw", len(DATA))
    assert (target / "x").read_bytes() == DATA
    assert (target / "x").stat().st_mode & 0o777 == 0o640
    part = ("a.raw", str(target / "y"), "--offset", "1K", "--length", "5", "--pool", "images")
    assert astore.good("vol", "download", *part).out.startswith("5 B downloaded from volume 'a.raw'")
    assert astore.good("vol-download", *part).out == "\n"
    assert (target / "y").read_bytes() == DATA[1024:1029]
    assert sorted(os.listdir(target)) == ["x", "y"]


def test_download_over_a_file(astore: Any, filled: Path, tmp_path: Path) -> None:
    """Keeps its permissions, and what links to it."""
    (tmp_path / "file").write_bytes(DATA + DATA)
    (tmp_path / "file").chmod(0o604)
    (tmp_path / "link").symlink_to("file")
    astore.good("vol", "download", "a.raw", str(tmp_path / "link"))
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "file").read_bytes() == DATA
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o604


def test_download_keeps_holes(astore: Any, folder: Path, tmp_path: Path) -> None:
    """With --sparse; also that at the end."""
    with (folder / "a.raw").open("r+b") as stream:
        stream.seek(4 << 20)
        stream.write(b"data")
    astore.good("vol", "download", "a.raw", str(tmp_path / "x"), "--sparse")
    assert (tmp_path / "x").stat().st_size == 16 << 20
    assert (tmp_path / "x").stat().st_blocks * 512 < 1 << 20
    assert (tmp_path / "x").read_bytes() == (folder / "a.raw").read_bytes()


@pytest.mark.parametrize("blocking", [True, False])
@pytest.mark.parametrize("options", [(), ("--json", "--sparse")])
def test_download_to_standard_output(
    astore: Any, filled: Path, options: tuple[str, ...], blocking: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bytes, and nothing else: no line, no document."""
    reading, writing = os.pipe()
    os.set_blocking(writing, blocking)
    monkeypatch.setattr(local_files, "STANDARD_OUTPUT", writing)
    got = Reader()
    with at_the_other_end(got, reading):
        try:
            ran = astore.good("vol", "download", "a.raw", "-", *options)
        finally:
            os.close(writing)
    assert ran.out == ""
    assert got.found == DATA


def test_download_to_a_fifo(astore: Any, filled: Path, tmp_path: Path) -> None:
    """It is written to, not replaced."""
    os.mkfifo(tmp_path / "fifo")
    got = Reader()
    reading = os.open(tmp_path / "fifo", os.O_RDONLY | os.O_NONBLOCK)  # which does not wait for a writer
    os.set_blocking(reading, True)
    with at_the_other_end(got, reading):
        assert astore.good("vol", "download", "a.raw", str(tmp_path / "fifo")).out.startswith("9.01 MiB downloaded")
    assert got.found == DATA


def test_a_terminal_is_spared(astore: Any, filled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody wants to see a disk there."""
    ours, theirs = pty.openpty()
    try:
        monkeypatch.setattr(local_files, "STANDARD_OUTPUT", theirs)
        ran = astore("vol", "download", "a.raw", "-")
    finally:
        os.close(ours)
        os.close(theirs)
    assert (ran.code, ran.complaint) == (
        1,
        "standard output is a terminal: send it to a file or to a program",
    )


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("{0}", "{0} is a directory: name a file in it"),
        ("{0}/none/x", "{0}/none/x: No such file or directory"),
        ("{0}/a.txt/x", "{0}/a.txt/x: Not a directory"),
        ("/dev/full", "/dev/full: No space left on device"),
    ],
)
def test_targets_that_cannot_be_written(astore: Any, filled: Path, tmp_path: Path, target: str, said: str) -> None:
    """Each is named in one line."""
    (tmp_path / "a.txt").write_text("")
    before = sorted(os.listdir(tmp_path))
    ran = astore("vol", "download", "a.raw", target.format(tmp_path))
    assert (ran.code, ran.complaint) == (1, said.format(tmp_path))
    assert sorted(os.listdir(tmp_path)) == before


@pytest.mark.parametrize("full", [True, False])
def test_standard_output_that_goes_nowhere(
    astore: Any, filled: Path, full: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk is a failure; a reader that is gone ends it without a word."""
    if full:
        number = os.open("/dev/full", os.O_WRONLY)
    else:
        reading, number = os.pipe()
        os.close(reading)
    monkeypatch.setattr(local_files, "STANDARD_OUTPUT", number)
    try:
        ran = astore("vol", "download", "a.raw", "-")
    finally:
        os.close(number)
    assert (ran.code, ran.err) == (1, "astore: standard output: No space left on device\n") if full else (141, "")


# ------------------------------------------------------------------------------------------------ what is broken off


@pytest.fixture
def interrupt(monkeypatch: pytest.MonkeyPatch) -> Callable[[signal.Signals], None]:
    """Sends this process a signal, and two more, as soon as there is progress."""

    def arm(number: signal.Signals) -> None:
        def progress(self: Ticker, done: int, total: int | None) -> None:
            real(self, done, total)
            for _ in range(3):
                signal.raise_signal(number)

        real = Ticker.progress
        monkeypatch.setattr(Ticker, "progress", progress)

    return arm


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("upload a.raw {0}/data", r"interrupted, [\d.]+ MiB of 9\.01 MiB were written to volume 'a\.raw'"),
        ("wipe a.raw", r"interrupted, [\d.]+ MiB of [\d.]+ MiB were written to volume 'a\.raw'"),
        ("download a.raw {0}/new", "interrupted"),
        ("download a.raw {0}/old", "interrupted"),
        ("clone a.raw b.raw --to other", "interrupted"),
    ],
)
def test_interrupted(
    astore: Any,
    filled: Path,
    make_pool: Make,
    file: Path,
    tmp_path: Path,
    interrupt: Callable[[signal.Signals], None],
    command: str,
    said: str,
    number: signal.Signals,
) -> None:
    """130, however impatient they are; nothing is left of what was being made, and what was there is as it was."""
    other = make_pool("other")
    (tmp_path / "old").write_text("old")
    before = sorted(os.listdir(tmp_path)), sorted(os.listdir(filled)), sorted(os.listdir(other))
    interrupt(number)
    ran = astore("vol", *command.format(tmp_path).split())
    assert ran.code == 130
    assert re.fullmatch(said, ran.complaint), ran.complaint
    assert (sorted(os.listdir(tmp_path)), sorted(os.listdir(filled)), sorted(os.listdir(other))) == before
    assert (tmp_path / "old").read_text() == "old"


def test_ignored_signals_stay_ignored(
    astore: Any, filled: Path, file: Path, interrupt: Callable[[signal.Signals], None]
) -> None:
    """As nohup has it, and a shell for its background jobs."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    interrupt(signal.SIGHUP)
    astore.good("vol", "upload", "a.raw", str(file))
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


def test_in_another_thread(astore: Any, filled: Path, file: Path) -> None:
    """Where signals cannot be handled, it works without."""
    codes: list[int] = []
    thread = threading.Thread(target=lambda: codes.append(astore("vol", "upload", "a.raw", str(file)).code))
    thread.start()
    thread.join(60)
    assert codes == [0]


def test_too_late(astore: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A source that is silent for longer than --timeout: how far it came is said."""
    reading, writing = os.pipe()
    monkeypatch.setattr(local_files, "STANDARD_INPUT", reading)
    try:
        os.write(writing, b"some")
        ran = astore("vol", "upload", "a.raw", "-", "--timeout", "3")
    finally:
        os.close(writing)  # and with it the read that was left behind
    assert ran.code == 124
    assert ran.complaint.startswith("not done within 3 s, 0 B were written to volume 'a.raw': give it more time")
    os.close(reading)


def test_giving_up_comes_in_between(tmp_path: Path) -> None:
    """A call that a cancellation left behind does nothing more once the rest was taken back."""
    late = NewFile(str(tmp_path / "late"))
    late.give_up()
    late.open()
    late.finish()
    begun = NewFile(str(tmp_path / "begun"))
    begun.open()
    begun.write(b"data")
    begun.give_up()
    begun.write(b"more")
    begun.finish()
    begun.give_up()
    assert os.listdir(tmp_path) == []


async def test_what_hangs_is_not_waited_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A target that cannot even be given up holds nothing up for long."""
    over = threading.Event()
    monkeypatch.setattr(local_files, "GIVING_UP_SECONDS", 0.05)

    class Hung(NewFile):
        def give_up(self) -> None:
            over.wait(60)

    try:
        with pytest.raises(CliError, match="No such file or directory"):
            async with asyncio.timeout(30), local_files.opened(Hung(str(tmp_path / "none" / "x"))):
                pass
    finally:
        over.set()
