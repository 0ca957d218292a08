"""Command: a program that is run to its end, without a shell, and killed at its deadline."""

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

from astore.backend import CommandResult, Limits
from astore.commands.starter import STARTER, Request, exit_code, request, send, words
from astore.errors import AstoreError, CommandError, LaneTimeoutError

MAX_OUTPUT = 16 << 20
"""Bytes that a program may write to stdout, and as many to stderr, by default."""

DYING_SECONDS = 2.0
"""How long a killed program may delay a cancellation; one that hangs in the kernel dies later."""

LONGEST_SECONDS = 1e6
"""A deadline for programs without one: what select(2) can wait for."""


def environment(more: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a program, which speaks English. :param more: variables beside those of this process."""
    return {**os.environ, "LC_ALL": "C", "LANGUAGE": "C", **more}


@dataclasses.dataclass(eq=False)
class Command:
    """One run of a program. ``run`` blocks; ``kill`` may be called from any thread at any time.

    :ivar timeout: seconds. :ivar env: the whole environment. :ivar descriptors: they have the same numbers in the program.
    :ivar max_output: bytes that it may write to stdout, and as many to stderr.
    """

    argv: tuple[str, ...]
    timeout: float = LONGEST_SECONDS
    env: Mapping[str, str] = dataclasses.field(default_factory=lambda: environment({}))
    limits: Limits | None = None
    descriptors: Sequence[int] = ()
    max_output: int = MAX_OUTPUT
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
        """Run the program, with nothing on its stdin.

        :raises LaneTimeoutError: it did not end in time. CommandError: it cannot be run, was killed, or wrote too much.
        """
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
                    while channel.recv(4096):
                        pass
                if isinstance(error, TimeoutError) and not isinstance(error, AstoreError):
                    raise LaneTimeoutError(
                        f"{words(self.argv)}: did not end within {self.timeout:g} s and was killed",
                        timeout=self.timeout,
                    ) from None
                raise

    def _request(self) -> Request:
        """Return what the starter is to be sent. :raises ValueError: an argument that no program can get."""
        limits = (
            []
            if self.limits is None
            else [
                (resource_limits.RLIMIT_AS, self.limits.memory),
                (resource_limits.RLIMIT_CPU, math.ceil(self.limits.cpu)),
                (resource_limits.RLIMIT_CORE, 0),
            ]
        )
        return request(self.argv, self.env, [1, 2, *self.descriptors], limits)

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
                            returncode = exit_code(self.argv, answers)
                    elif len(key.data) + len(part) > self.max_output:
                        raise self._error(
                            f"{words(self.argv)}: wrote more than {self.max_output} bytes and was killed",
                            -signal.SIGKILL,
                        )
                    else:
                        key.data.extend(part)
        stdout, stderr = (bytes(part) for part in written.values())
        return CommandResult(self.argv, returncode, stdout, stderr)

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
