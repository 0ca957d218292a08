"""The local end of an upload or a download: files, pipes, standard input and output.

A pipe, a terminal or a hung mount may block for ever. Calls on them run in threads that a cancellation abandons, so Ctrl-C
always ends the command.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import select
import stat
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from typing import TypeVar

import anyio
from anyio import to_thread

from astore.cancellation import shielded
from astore.cli.exits import CliError, why_unread
from astore.volume_io.blocks import Hole

T = TypeVar("T")

STANDARD_INPUT, STANDARD_OUTPUT = 0, 1

PIECE = 4 << 20
"""Bytes read at once: the size of an upload's writes."""

PIPE_BYTES = 1 << 20
"""Bytes that a pipe should hold: the most that Linux grants without privileges (pipe(7)); its default is 64 KiB."""

GIVING_UP_SECONDS = 1.0
"""Seconds for which the clean-up of a download may hold up a cancellation."""


async def in_thread(func: Callable[..., T], *args: object) -> T:
    """Run a blocking call on a thread, and abandon it when cancelled."""
    return await to_thread.run_sync(func, *args, abandon_on_cancel=True)


# ------------------------------------------------------------------------------------------------------------ reading


async def size_to_read(file: str) -> int | None:
    """Return how many bytes a file (or standard input, `-`) holds, or None if that is unknown. Raises nothing."""
    return await in_thread(_size_to_read, file)


def _size_to_read(file: str) -> int | None:
    with contextlib.suppress(OSError):
        found = os.fstat(STANDARD_INPUT) if file == "-" else os.stat(file)
        if stat.S_ISREG(found.st_mode):
            return max(0, found.st_size - (os.lseek(STANDARD_INPUT, 0, os.SEEK_CUR) if file == "-" else 0))
    return None


async def pieces_of(file: str) -> AsyncGenerator[bytes, None]:
    """Yield the content of a pipe, a device or standard input (`-`). :raises CliError: it cannot be read."""
    number = await in_thread(_open_to_read, file)
    piece = await in_thread(_read_piece, file, number)
    while piece:
        yield piece
        # not after the end: a terminal can be read on
        piece = await in_thread(_read_piece, file, number) if len(piece) == PIECE else b""
    if file != "-":
        os.close(number)  # no `finally`: after a cancellation, a read may still be running


def _open_to_read(file: str) -> int:
    with _said_of(file, "standard input"):
        number = STANDARD_INPUT if file == "-" else os.open(file, os.O_RDONLY | os.O_CLOEXEC)
        _widen(number)
    return number


def _read_piece(file: str, number: int) -> bytes:
    """Read PIECE bytes; fewer only at the end of the stream."""
    found: list[bytes] = []
    room = PIECE
    with _said_of(file, "standard input"):
        while room:
            try:
                data = os.read(number, room)
            except BlockingIOError:
                _wait_for(number, select.POLLIN)
                continue
            if not data:
                break
            found.append(data)
            room -= len(data)
    return found[0] if len(found) == 1 else b"".join(found)


# ------------------------------------------------------------------------------------------------------------ writing


Check = Callable[[str, os.stat_result], None]
"""Called with the real path and the status of a file before it is overwritten. May block. Raises CliError to refuse."""


def _overwritten(path: str, found: os.stat_result) -> None:
    """Let any file be overwritten."""


async def target_for(file: str, check: Check = _overwritten) -> Target:
    """Choose the target for a file name; `-` is standard output. :raises CliError: there can be no such file."""
    if file == "-":
        return Stream(file)
    return await in_thread(_target_for, file, check)


def _target_for(file: str, check: Check) -> Target:
    with _said_of(file):
        try:
            mode = os.stat(file).st_mode
        except FileNotFoundError:
            return NewFile(file, check)
    if stat.S_ISDIR(mode):
        raise CliError(f"{file} is a directory: name a file in it")
    return NewFile(file, check) if stat.S_ISREG(mode) else Stream(file, check)


async def save(chunks: AsyncIterator[bytearray | Hole], target: Target) -> int:
    """Write a whole download to a target. Return the number of bytes, holes included."""
    count = 0
    async for chunk in chunks:
        await in_thread(target.write, chunk)
        count += chunk.length if isinstance(chunk, Hole) else len(chunk)
    await in_thread(target.finish)
    return count


@contextlib.asynccontextmanager
async def opened(target: Target) -> AsyncIterator[Target]:
    """Open a target, and give it up if the block raises."""
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
    """Standard output (`-`), a FIFO or a device, written in place."""

    keeps_holes = False

    def __init__(self, path: str, check: Check = _overwritten) -> None:
        self._path = path
        self._check = check
        self._number = STANDARD_OUTPUT

    def open(self) -> None:
        if self._path == "-" and os.isatty(STANDARD_OUTPUT):
            raise CliError("standard output is a terminal: send it to a file or to a program")
        with _said_of(self._path):
            if self._path != "-":
                self._number = os.open(self._path, os.O_WRONLY | os.O_CLOEXEC)
                try:
                    self._check(os.path.realpath(self._path), os.fstat(self._number))
                except CliError:
                    os.close(self._number)
                    raise
            _widen(self._number)

    def write(self, piece: bytearray | Hole) -> None:
        assert isinstance(piece, bytearray)
        with _said_of(self._path):
            _write_all(self._number, piece)

    def finish(self) -> None:
        if self._path != "-":
            with _said_of(self._path):
                os.close(self._number)

    def give_up(self) -> None:
        """Do nothing: written bytes cannot be taken back, and a hung write may still use the descriptor."""


class NewFile:
    """A regular file, written to a temporary file that replaces it on completion. Until then the old file stays."""

    keeps_holes = True

    def __init__(self, path: str, check: Check = _overwritten) -> None:
        self._path = path
        self._check = check
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
            self._place = os.path.realpath(self._path)  # so that a symbolic link stays a link
            found = _found_at(self._place)
            if found is not None:
                self._check(self._place, found)
            folder, name = os.path.split(self._place)
            beside = os.path.join(folder, f".{name[:32]}.{secrets.token_hex(4)}.part")
            self._number = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
            self._beside = beside
            if found is not None:
                os.fchmod(self._number, stat.S_IMODE(found.st_mode))

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
            os.ftruncate(self._number, self._at)  # the file may end in a hole
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


Target = Stream | NewFile
"""The destination of a download, written by blocking calls. ``finish`` completes it after the last write, ``give_up`` removes
what is incomplete, although a call that a cancellation abandoned may still be running."""


def _write_all(number: int, data: bytearray) -> None:
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(number, view) :]
        except BlockingIOError:
            _wait_for(number, select.POLLOUT)


# ------------------------------------------------------------------------------------------------------- small things


def _found_at(path: str) -> os.stat_result | None:
    with contextlib.suppress(FileNotFoundError):
        return os.stat(path)
    return None


def _wait_for(number: int, event: int) -> None:
    """Wait for a stream that another process made non-blocking."""
    poll = select.poll()
    poll.register(number, event)
    poll.poll()


def _widen(number: int) -> None:
    """Enlarge a pipe's buffer, which means fewer switches between its two programs."""
    with contextlib.suppress(OSError):
        if stat.S_ISFIFO(os.fstat(number).st_mode):
            fcntl.fcntl(number, fcntl.F_SETPIPE_SZ, PIPE_BYTES)


@contextlib.contextmanager
def _said_of(file: str, stream: str = "standard output") -> Iterator[None]:
    """Turn an OSError into a CliError that names the file, or the stream for `-`. A broken pipe of standard output passes."""
    reading = stream == "standard input"
    try:
        yield
    except OSError as error:
        if isinstance(error, BrokenPipeError) and file == "-":
            raise
        raise CliError(
            f"{stream if file == '-' else file}: {why_unread(file, error) if reading else error.strerror}"
        ) from error
