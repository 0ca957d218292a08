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
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence

from astore.backend import CommandResult, Lane, Limits
from astore.cancellation import shielded
from astore.errors import CommandError, LaneTimeoutError, printable

MAX_OUTPUT = 16 << 20
"""Bytes that a program may write to stdout, and as many to stderr, by default."""

DYING_SECONDS = 2.0
"""How long a killed program may delay a cancellation; one that hangs in the kernel dies later."""


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
        limit = self._timeout if timeout is None else timeout
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
    _process: subprocess.Popen[bytes] | None = None
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
        if self._killed:
            raise CommandError(f"{self.argv[0]} was cancelled", argv=self.argv, returncode=None, stderr="")
        process = self._start()
        with self._lock:
            self._process = process
            killed = self._killed
        if killed:  # the caller was cancelled while it started
            self.kill()
        try:
            stdout, stderr = self._communicate(process)
        except BaseException as error:
            self.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):
                # a process of another session may still hold the pipes; the program itself is reaped
                process.wait(timeout=2.0)
            if isinstance(error, subprocess.TimeoutExpired):
                raise LaneTimeoutError(
                    f"{_words(self.argv)}: did not end within {self.timeout:g} s and was killed", timeout=self.timeout
                ) from None
            raise
        finally:
            for stream in (process.stdout, process.stderr):
                if stream is not None:
                    stream.close()
        return CommandResult(self.argv, process.returncode, stdout, stderr)

    def _communicate(self, process: subprocess.Popen[bytes]) -> tuple[bytes, bytes]:
        """Return the program's output when it has ended: like ``Popen.communicate``, but bounded.

        :raises subprocess.TimeoutExpired: it did not end in time. CommandError: it wrote too much.
        """
        deadline = time.monotonic() + self.timeout
        written = {stream: bytearray() for stream in (process.stdout, process.stderr) if stream is not None}
        with selectors.DefaultSelector() as selector:
            for stream in written:
                selector.register(stream, selectors.EVENT_READ, written[stream])
            while selector.get_map():
                ready = selector.select(max(0.0, deadline - time.monotonic()))
                if time.monotonic() >= deadline:
                    raise subprocess.TimeoutExpired(self.argv, self.timeout)
                for key, _ in ready:
                    part = os.read(key.fd, 1 << 16)
                    if not part:
                        selector.unregister(key.fileobj)
                    elif len(key.data) + len(part) > self.max_output:
                        raise CommandError(
                            f"{_words(self.argv)}: wrote more than {self.max_output} bytes and was killed",
                            argv=self.argv,
                            returncode=-signal.SIGKILL,
                            stderr="",
                        )
                    else:
                        key.data.extend(part)
        process.wait(timeout=max(0.0, deadline - time.monotonic()))
        stdout, stderr = (bytes(part) for part in written.values())
        return stdout, stderr

    def _start(self) -> subprocess.Popen[bytes]:
        # without the lock: this hangs if the program's storage hangs, and kill() is called from the event loop
        try:
            process = subprocess.Popen(
                self.argv,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=self.env,
                start_new_session=True,
                pass_fds=tuple(self.descriptors),
            )
        except (OSError, ValueError) as error:
            why = "is not installed" if isinstance(error, FileNotFoundError) else f"cannot be run: {error}"
            what = f"the program {self.argv[0]!r} {why}"
            raise CommandError(what, argv=self.argv, returncode=None, stderr="") from error
        if self.limits is not None:
            try:
                _limit(process.pid, self.limits)
            except ProcessLookupError:  # it has ended already
                pass
            except BaseException:
                process.kill()
                process.wait()
                raise
        return process

    def kill(self) -> None:
        with self._lock:
            self._killed = True
            process = self._process
            if process is not None and process.returncode is None:
                # the whole session, because mount(8) runs helper programs
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(process.pid, signal.SIGKILL)


def _limit(pid: int, limits: Limits) -> None:
    """Limit a process that has just started (prlimit(2)), without raising a limit that it has."""
    for resource, value in (
        (resource_limits.RLIMIT_AS, limits.memory),
        (resource_limits.RLIMIT_CPU, math.ceil(limits.cpu)),
        (resource_limits.RLIMIT_CORE, 0),
    ):
        _, hard = resource_limits.prlimit(pid, resource)
        value = value if hard == resource_limits.RLIM_INFINITY else min(value, hard)
        resource_limits.prlimit(pid, resource, (value, value))


def _words(argv: Sequence[str]) -> str:
    """Return a command for messages: one line of at most 1000 characters."""
    return printable(" ".join(argv))[:1000]


def _failed(result: CommandResult) -> CommandError:
    stderr = result.stderr.decode("utf-8", "replace").strip()
    said = stderr or result.stdout.decode("utf-8", "replace").strip() or f"exit code {result.returncode}"
    line = " ".join(printable(said[:4000].replace("\n", " ")).split())[:1000]
    return CommandError(f"{_words(result.argv)}: {line}", argv=result.argv, returncode=result.returncode, stderr=stderr)
