"""Programs, run without a shell: killed and reaped at their deadline, or when the caller is cancelled."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import math
import os
import resource as resource_limits
import selectors
import signal
import socket
import threading
import time
from collections.abc import Mapping, Sequence

from astore.backend import CommandResult, Lane, Limits
from astore.cancellation import shielded
from astore.commands.starter import STARTER, Request, send
from astore.commands.starter_process import ANSWER, ENDED, FAILED, STARTED
from astore.errors import AstoreError, CommandError, LaneTimeoutError, printable
from astore.lanes.job import at_least

MAX_OUTPUT = 16 << 20
"""Bytes that a program may write to stdout, and as many to stderr, by default."""

DYING_SECONDS = 2.0
"""How long a killed program may delay a cancellation; one that hangs in the kernel dies later."""


LONGEST_SECONDS = 1e6
"""A deadline for programs without one: what select(2) can wait for."""


class LaneCommandRunner:
    """Runs programs on the threads of a lane; see :class:`astore.backend.CommandRunner`.

    :param timeout: the default deadline of a program, in seconds.
    """

    def __init__(self, lane: Lane, timeout: float = 30.0) -> None:
        self._lane = lane
        self._timeout = timeout

    async def __call__(
        self,
        argv: Sequence[str],
        *,
        timeout: float | None = None,
        check: bool = True,
        env: Mapping[str, str] | None = None,
        limits: Limits | None = None,
        descriptors: Sequence[int] = (),
        max_output: int = MAX_OUTPUT,
    ) -> CommandResult:
        limit = at_least(self._timeout if timeout is None else timeout)
        environment = {**os.environ, "LC_ALL": "C", "LANGUAGE": "C", **(env or {})}
        child = _Child(tuple(argv), limit, environment, limits, descriptors, max_output)
        try:
            # the thread ends by itself at the limit; the lane's deadline is for programs that cannot even be killed
            result = await self._lane.run(child.run, timeout=limit + 2.0)
        except BaseException:
            child.kill()
            await shielded(child.gone())
            raise
        if check and result.returncode != 0:
            raise _failed(result)
        return result


@dataclasses.dataclass(eq=False)
class _Child:
    """One program. ``run`` blocks; ``kill`` may be called from any thread at any time."""

    argv: tuple[str, ...]
    timeout: float
    env: Mapping[str, str]
    limits: Limits | None
    descriptors: Sequence[int]
    max_output: int
    _lock: threading.Lock = dataclasses.field(default_factory=threading.Lock)
    _channel: socket.socket | None = None
    _killed: bool = False
    _over: bool = True

    async def gone(self) -> None:
        """Wait until the program is dead after :meth:`kill`, for DYING_SECONDS at most: it then writes nothing any more."""
        for _ in range(int(DYING_SECONDS / 0.005)):
            if self._over:
                return
            await asyncio.sleep(0.005)

    def run(self) -> CommandResult:
        self._over = False
        try:
            return self._run()
        finally:
            self._over = True

    def _run(self) -> CommandResult:
        deadline = time.monotonic() + min(self.timeout, LONGEST_SECONDS)
        with contextlib.ExitStack() as stack:
            try:
                request = self._request()
                channel = stack.enter_context(STARTER.channel())
            except (OSError, ValueError) as error:
                raise self._error(f"the program {self.argv[0]!r} cannot be run: {error}") from error
            with self._lock:
                if self._killed:
                    raise self._error(f"{self.argv[0]} was cancelled")
                self._channel = channel
            stack.callback(self._forget_channel)
            channel.settimeout(min(max(self.timeout, 0.001), LONGEST_SECONDS))
            try:
                outputs = self._send(channel, request, stack)
                return self._communicate(channel, outputs, deadline)
            except BaseException as error:
                self.kill()
                # a process of another session may still hold the pipes; the program itself is reaped
                channel.settimeout(2.0)
                with contextlib.suppress(OSError):
                    while channel.recv(ANSWER.size):
                        pass
                if isinstance(error, TimeoutError) and not isinstance(error, AstoreError):
                    raise LaneTimeoutError(
                        f"{_words(self.argv)}: did not end within {self.timeout:g} s and was killed",
                        timeout=self.timeout,
                    ) from None
                raise

    def _request(self) -> Request:
        """Return what the starter is to be sent. :raises ValueError: an argument that no program can get."""
        argv = [os.fsencode(argument) for argument in self.argv]
        env = {os.fsencode(name): os.fsencode(value) for name, value in self.env.items()}
        if any(b"\0" in text for text in (*argv, *env, *env.values())):
            raise ValueError("embedded null byte")
        limits = (
            []
            if self.limits is None
            else [
                (resource_limits.RLIMIT_AS, self.limits.memory),
                (resource_limits.RLIMIT_CPU, math.ceil(self.limits.cpu)),
                (resource_limits.RLIMIT_CORE, 0),
            ]
        )
        return argv, env, limits, [1, 2, *self.descriptors]

    def _send(self, channel: socket.socket, request: Request, stack: contextlib.ExitStack) -> list[int]:
        """Send the request; return the descriptors to read stdout and stderr from, closed by ``stack``."""
        pipes = [os.pipe(), os.pipe()]
        for ours, _ in pipes:
            stack.callback(os.close, ours)
        try:
            send(channel, request, [*(theirs for _, theirs in pipes), *self.descriptors])
        except (OSError, ValueError) as error:
            if isinstance(error, TimeoutError):
                raise
            raise self._error(f"the program {self.argv[0]!r} cannot be run: {error}") from error
        finally:
            for _, theirs in pipes:
                os.close(theirs)
        return [ours for ours, _ in pipes]

    def _communicate(self, channel: socket.socket, outputs: list[int], deadline: float) -> CommandResult:
        """Return the program's result when it has ended and its output is closed.

        :raises TimeoutError: it did not end in time. CommandError: it cannot be run, was lost, or wrote too much.
        """
        written = {fd: bytearray() for fd in outputs}
        answers, returncode = bytearray(), 0
        with selectors.DefaultSelector() as selector:
            for fd, data in written.items():
                selector.register(fd, selectors.EVENT_READ, data)
            selector.register(channel, selectors.EVENT_READ, answers)
            while selector.get_map():
                ready = selector.select(max(0.0, deadline - time.monotonic()))
                if time.monotonic() >= deadline:
                    raise TimeoutError
                for key, _ in ready:
                    try:
                        part = os.read(key.fd, 1 << 16)
                    except ConnectionResetError:  # the starter died before the request was read
                        part = b""
                    if not part:
                        selector.unregister(key.fileobj)
                        if key.data is answers:
                            returncode = self._returncode(answers)
                    elif len(key.data) + len(part) > self.max_output:
                        raise self._error(
                            f"{_words(self.argv)}: wrote more than {self.max_output} bytes and was killed",
                            -signal.SIGKILL,
                        )
                    else:
                        key.data.extend(part)
        stdout, stderr = (bytes(part) for part in written.values())
        return CommandResult(self.argv, returncode, stdout, stderr)

    def _returncode(self, answers: bytearray) -> int:
        """Return the program's exit code. :raises CommandError: it cannot be run, or was lost."""
        told = dict(ANSWER.iter_unpack(answers[: len(answers) // ANSWER.size * ANSWER.size]))
        if (number := told.get(FAILED)) is not None:
            error = OSError(number, os.strerror(number), self.argv[0])
            why = "is not installed" if isinstance(error, FileNotFoundError) else f"cannot be run: {error}"
            raise self._error(f"the program {self.argv[0]!r} {why}") from error
        if (status := told.get(ENDED)) is not None:
            return os.waitstatus_to_exitcode(status)
        if (pid := told.get(STARTED)) is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(pid, signal.SIGKILL)  # what the program has started; itself it died with its parent
        raise self._error(f"{_words(self.argv)}: the process that starts programs died, and the program with it")

    def _error(self, message: str, returncode: int | None = None) -> CommandError:
        return CommandError(message, argv=self.argv, returncode=returncode, stderr="")

    def kill(self) -> None:
        """Kill the program; do not wait for its end."""
        with self._lock:
            self._killed = True
            if self._channel is not None:
                with contextlib.suppress(OSError):
                    self._channel.shutdown(socket.SHUT_WR)  # the starter kills the program, and all its session

    def _forget_channel(self) -> None:
        with self._lock:
            self._channel = None


async def prepare_programs(lane: Lane) -> None:
    """Start the helper process that starts programs, if it does not run. Called before a storage is opened."""
    if not STARTER.running:
        with contextlib.suppress(OSError):  # a program that is run later tells
            await lane.run(STARTER.start)


def _words(argv: Sequence[str]) -> str:
    """Return a command for messages: one line of at most 1000 characters."""
    return printable(" ".join(argv))[:1000]


def _failed(result: CommandResult) -> CommandError:
    stderr = result.stderr.decode("utf-8", "replace").strip()
    said = stderr or result.stdout.decode("utf-8", "replace").strip() or f"exit code {result.returncode}"
    line = " ".join(printable(said[:4000].replace("\n", " ")).split())[:1000]
    return CommandError(f"{_words(result.argv)}: {line}", argv=result.argv, returncode=result.returncode, stderr=stderr)
