"""The other end of an upload or a download: files of this machine, pipes, standard input and output.

Whatever may be silent for ever (a pipe that nobody writes to or reads, a terminal, a hung mount) is waited for in threads
that a cancellation leaves behind: Ctrl-C ends the command all the same.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import select
import stat
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Protocol, TypeVar

import anyio
from anyio import to_thread

from astore.cancellation import shielded
from astore.cli.exits import CliError
from astore.volume_io.blocks import Hole
from astore.volume_io.downloads import Download

T = TypeVar("T")

STANDARD_INPUT, STANDARD_OUTPUT = 0, 1

PIECE = 4 << 20
"""Bytes that are read at once: as much as an upload writes at once."""

PIPE_BYTES = 1 << 20
"""What a pipe is asked to hold (Linux gives 64 KiB by itself, and this much to everybody)."""

GIVING_UP_SECONDS = 1.0
"""How long taking back what was begun may hold up a cancellation."""


async def in_thread(func: Callable[..., T], *args: object) -> T:
    """Run a blocking call, which a cancellation leaves behind."""
    return await to_thread.run_sync(func, *args, abandon_on_cancel=True)


# ------------------------------------------------------------------------------------------------------------ reading


async def size_to_read(file: str) -> int | None:
    """How many bytes a file (or standard input, `-`) has to give; None where that is not known. Raises nothing."""
    return await in_thread(_size_to_read, file)


def _size_to_read(file: str) -> int | None:
    with contextlib.suppress(OSError):
        found = os.fstat(STANDARD_INPUT) if file == "-" else os.stat(file)
        if stat.S_ISREG(found.st_mode):
            return max(0, found.st_size - (os.lseek(STANDARD_INPUT, 0, os.SEEK_CUR) if file == "-" else 0))
    return None


async def pieces_of(file: str) -> AsyncIterator[bytes]:
    """What comes out of a pipe, a device, or standard input (`-`). :raises CliError: it cannot be read."""
    source = _Source(file)
    await in_thread(source.open)
    while piece := await in_thread(source.read):
        yield piece
    source.close()  # not where it was broken off: a read may be going on


class _Source:
    """A stream of this machine, by blocking calls."""

    def __init__(self, file: str) -> None:
        self.shown = "standard input" if file == "-" else file
        self._path = None if file == "-" else file
        self._number = STANDARD_INPUT
        self._over = False

    def open(self) -> None:
        with _said_of(self.shown):
            if self._path is not None:
                self._number = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
            _widen(self._number)

    def read(self) -> bytes:
        """As much as is worth a call, or what there is before the end."""
        found: list[bytes] = []
        room = PIECE
        with _said_of(self.shown):
            while room and not self._over:
                try:
                    data = os.read(self._number, room)
                except BlockingIOError:
                    _wait_for(self._number, select.POLLIN)
                    continue
                self._over = not data  # a terminal would go on after its end
                found.append(data)
                room -= len(data)
        return found[0] if len(found) == 1 else b"".join(found)

    def close(self) -> None:
        if self._path is not None:
            os.close(self._number)


# ------------------------------------------------------------------------------------------------------------ writing


class Target(Protocol):
    """Where a download goes, by blocking calls."""

    keeps_holes: bool

    def open(self) -> None: ...

    def write(self, piece: bytearray | Hole) -> None: ...

    def finish(self) -> None:
        """Everything was written."""
        ...

    def give_up(self) -> None:
        """Take back what was begun; the call that a cancellation left behind may still be going on."""
        ...


async def target_for(file: str) -> Target:
    """What a download to this file writes to; `-` is standard output. :raises CliError: there can be no such file."""
    if file == "-":
        return Stream(None)
    return await in_thread(_target_for, file)


def _target_for(file: str) -> Target:
    with _said_of(file):
        try:
            mode = os.stat(file).st_mode
        except FileNotFoundError:
            return NewFile(file)
    if stat.S_ISDIR(mode):
        raise CliError(f"{file} is a directory: name the file that is to be written in it")
    return NewFile(file) if stat.S_ISREG(mode) else Stream(file)


async def save(chunks: Download, target: Target) -> int:
    """Write all of a download, and finish; returns how many bytes there were, holes included."""
    count = 0
    async for chunk in chunks:
        await in_thread(target.write, chunk)
        count += chunk.length if isinstance(chunk, Hole) else len(chunk)
    await in_thread(target.finish)
    return count


@contextlib.asynccontextmanager
async def opened(target: Target) -> AsyncIterator[Target]:
    """The target, open; what is broken off inside is taken back."""
    try:
        await in_thread(target.open)
        yield target
    except BaseException:
        await shielded(_given_up(target))
        raise


async def _given_up(target: Target) -> None:
    with anyio.move_on_after(GIVING_UP_SECONDS):
        await in_thread(target.give_up)


class Stream:
    """Standard output (None), a FIFO or a device: written to as it is."""

    keeps_holes = False

    def __init__(self, path: str | None) -> None:
        self.shown = "standard output" if path is None else path
        self._path = path
        self._number = STANDARD_OUTPUT

    def open(self) -> None:
        if self._path is None and os.isatty(STANDARD_OUTPUT):
            raise CliError("standard output is a terminal: send it to a file or to a program")
        with _said_of(self.shown):
            if self._path is not None:
                self._number = os.open(self._path, os.O_WRONLY | os.O_CLOEXEC)
            _widen(self._number)

    def write(self, piece: bytearray | Hole) -> None:
        assert isinstance(piece, bytearray)
        with _said_of(self.shown):
            _write_all(self._number, piece)

    def finish(self) -> None:
        if self._path is not None:
            with _said_of(self.shown):
                os.close(self._number)

    def give_up(self) -> None:
        """What was written cannot be taken back, and a write that hangs keeps it open."""


class NewFile:
    """A regular file: written beside, and put in its place when it is complete. What is there until then stays as it is."""

    keeps_holes = True

    def __init__(self, path: str) -> None:
        self._path = path
        self._place = path
        self._beside: str | None = None
        self._number = -1
        self._at = 0
        self._over = False
        self._turn = threading.Lock()

    def open(self) -> None:
        with self._turn, _said_of(self._path):
            if self._over:
                return
            self._place = os.path.realpath(self._path)  # a link goes on leading to it
            folder, name = os.path.split(self._place)
            beside = os.path.join(folder, f".{name[:32]}.{secrets.token_hex(4)}.part")
            self._number = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
            self._beside = beside
            with contextlib.suppress(FileNotFoundError):
                os.fchmod(self._number, stat.S_IMODE(os.stat(self._place).st_mode))

    def write(self, piece: bytearray | Hole) -> None:
        with self._turn, _said_of(self._path):
            if self._over:
                return
            if isinstance(piece, Hole):
                self._at = os.lseek(self._number, piece.length, os.SEEK_CUR)
            else:
                _write_all(self._number, piece)
                self._at += len(piece)

    def finish(self) -> None:
        with self._turn, _said_of(self._path):
            if self._beside is None:
                return
            os.ftruncate(self._number, self._at)  # it may end in a hole
            number, self._number = self._number, -1
            os.close(number)
            os.replace(self._beside, self._place)
            self._beside = None

    def give_up(self) -> None:
        with self._turn:
            self._over = True
            if self._number >= 0:
                os.close(self._number)
                self._number = -1
            if self._beside is not None:
                with contextlib.suppress(OSError):
                    os.unlink(self._beside)
                self._beside = None


def _write_all(number: int, data: bytearray) -> None:
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(number, view) :]
        except BlockingIOError:
            _wait_for(number, select.POLLOUT)


# ------------------------------------------------------------------------------------------------------- small things


def _wait_for(number: int, event: int) -> None:
    """Whoever gave us the stream does not want to wait for it; we do."""
    poll = select.poll()
    poll.register(number, event)
    poll.poll()


def _widen(number: int) -> None:
    """Ask a pipe to hold more: that many fewer changes between its two programs."""
    with contextlib.suppress(OSError):
        if stat.S_ISFIFO(os.fstat(number).st_mode):
            fcntl.fcntl(number, fcntl.F_SETPIPE_SZ, PIPE_BYTES)


@contextlib.contextmanager
def _said_of(shown: str) -> Iterator[None]:
    """What the system says of a file, with the file's name. A reader of standard output that is gone is no error."""
    try:
        yield
    except OSError as error:
        if isinstance(error, BrokenPipeError) and shown == "standard output":
            raise
        raise CliError(f"{shown}: {error.strerror}") from error
