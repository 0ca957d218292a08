"""Starter: a helper process that starts all programs, so that none inherits a descriptor of a storage.

A child of this process has copies of all its descriptors until it becomes another program, and closing a copy of a file on
a FUSE mount waits for the mount's server (``flush``). If that server hangs, no program could be started any more, for no
pool. So programs are children of a helper that is started before any storage is opened.
"""

from __future__ import annotations

import contextlib
import marshal
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

from astore.cancellation import in_a_thread
from astore.commands.starter_process import ANSWER, ENDED, FAILED, LENGTH, MAX_DESCRIPTORS, PROGRAM, SPARE, STARTED
from astore.errors import CommandError, printable

Request = tuple[list[bytes], dict[bytes, bytes], list[tuple[int, int]], list[int]]
"""Arguments, environment, resource limits, and the numbers that the descriptors get in the program."""


class Starter:
    """The helper process, and another in reserve that replaces it if it dies. ``start`` and ``channel`` block."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # held while the helper is started
        self._count = threading.Lock()  # held for a moment
        self._controls: list[socket.socket] = []
        self._pid = 0
        self._users = 0

    @property
    def running(self) -> bool:
        """Whether the helper runs and another is in reserve."""
        controls = self._controls
        return len(controls) == 2 and all(map(_open, controls))

    def start(self) -> None:
        """Start what does not run. :raises OSError: that failed."""
        with self._lock:
            self._start()

    def _start(self) -> None:
        for control in list(self._controls):
            if not _open(control):
                self._controls.remove(control)
                control.close()
                with contextlib.suppress(ChildProcessError):  # the one in reserve is no child of this process
                    os.waitpid(self._pid, os.WNOHANG)
        if not self._controls:
            self._controls, self._pid = _spawned()
        elif len(self._controls) == 1:  # a fork of the one that is left: it has no descriptors of ours either
            ours, theirs = _socket_pair()
            with theirs:
                try:
                    socket.send_fds(self._controls[0], [SPARE], [theirs.fileno()])
                except OSError:
                    ours.close()
                    raise
            self._controls.append(ours)

    def channel(self) -> socket.socket:
        """Return the channel of a new program, for :func:`send`. :raises OSError: no program can be started."""
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                for _ in range(3):  # it may die at this very moment
                    with self._lock, contextlib.suppress(BrokenPipeError, ConnectionResetError):
                        self._start()
                        socket.send_fds(self._controls[0], [PROGRAM], [theirs.fileno()])
                        return ours
                raise ConnectionResetError("the process that starts programs ends at once")
            except BaseException:
                ours.close()
                raise

    def acquire(self) -> None:
        """Keep the helper until :meth:`release`. It is started by the first program, or by :meth:`start`."""
        with self._count:
            self._users += 1

    def release(self, *, keep: bool) -> None:
        """Let the helper end if nobody else keeps it. Never waits.

        :param keep: leave it running: this process still has descriptors of a storage that hangs.
        """
        with self._count:
            self._users -= 1
            unused = not self._users
        if unused and not keep and self._controls:
            in_a_thread(self._end)

    def _end(self) -> None:
        with self._lock:
            with self._count:  # a user that comes now finds it closed
                if self._users or not self._controls:
                    return
                pid = self._pid
                self._close()
        os.waitpid(pid, 0)

    def forget(self) -> None:
        """Close the sockets, in a fork of this process: the helper belongs to the parent."""
        self._lock, self._count = threading.Lock(), threading.Lock()
        self._users = 0
        self._close()

    def _close(self) -> None:
        for control in self._controls:
            control.close()
        self._controls = []


def send(channel: socket.socket, request: Request, descriptors: Sequence[int]) -> None:
    """Send a program's request. :raises OSError: the helper died, or the channel was shut down. ValueError: too many."""
    if len(descriptors) > MAX_DESCRIPTORS:
        raise ValueError(f"a program inherits at most {MAX_DESCRIPTORS} descriptors")
    body = marshal.dumps(request)
    socket.send_fds(channel, [LENGTH.pack(len(body))], descriptors)
    channel.sendall(body)


def request(
    argv: Sequence[str], env: Mapping[str, str], numbers: list[int], limits: list[tuple[int, int]] | None = None
) -> Request:
    """Return the request for a program.

    :param numbers: what the descriptors' numbers are in the program. :param limits: resource limits, each with its value.
    :raises ValueError: an argument that no program can get.
    """
    arguments = [os.fsencode(argument) for argument in argv]
    variables = {os.fsencode(name): os.fsencode(value) for name, value in env.items()}
    if any(b"\0" in text for text in (*arguments, *variables, *variables.values())):
        raise ValueError("embedded null byte")
    return arguments, variables, limits or [], numbers


def exit_code(argv: Sequence[str], answers: bytes | bytearray) -> int:
    """Return a program's exit code, from all that its channel has told.

    :raises CommandError: it cannot be run, or was lost.
    """
    told = dict(ANSWER.iter_unpack(answers[: len(answers) // ANSWER.size * ANSWER.size]))
    if (number := told.get(FAILED)) is not None:
        error = OSError(number, os.strerror(number), argv[0])
        why = "is not installed" if isinstance(error, FileNotFoundError) else f"cannot be run: {error}"
        raise CommandError(f"the program {argv[0]!r} {why}", argv=argv, returncode=None, stderr="") from error
    if (status := told.get(ENDED)) is not None:
        return os.waitstatus_to_exitcode(status)
    if (pid := told.get(STARTED)) is not None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)  # what the program has started; itself it died with its parent
    message = f"{words(argv)}: the process that starts programs died, and the program with it"
    raise CommandError(message, argv=argv, returncode=None, stderr="")


def words(argv: Sequence[str]) -> str:
    """Return a command for messages: one line of at most 1000 characters."""
    return printable(" ".join(argv))[:1000]


def _spawned() -> tuple[list[socket.socket], int]:
    """Start the helper and its reserve; return their control sockets, and the helper's process id."""
    ours, theirs = zip(_socket_pair(), _socket_pair(), strict=True)
    script = Path(__file__).with_name("starter_process.py")
    numbers = [control.fileno() for control in theirs]
    try:
        helper = subprocess.Popen(
            [sys.executable, "-I", "-S", "-B", os.fspath(script), *map(str, numbers)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # a Ctrl-C is for this process
            pass_fds=numbers,
        )
    except BaseException:
        for control in ours:
            control.close()
        raise
    finally:
        for control in theirs:
            control.close()
    helper.returncode = 0  # nobody waits for it: it ends with this process, and Popen need not warn
    return list(ours), helper.pid


def _socket_pair() -> tuple[socket.socket, socket.socket]:
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def _open(control: socket.socket) -> bool:
    """Return whether the other side is there."""
    poll = select.poll()
    try:
        poll.register(control, 0)  # an end is told without being asked for
    except ValueError:  # another thread closes it at this moment
        return False
    return not poll.poll(0)


STARTER = Starter()
"""The helper of this process. All Managers share it: a second one may be opened while a storage of the first hangs."""

os.register_at_fork(after_in_child=STARTER.forget)
