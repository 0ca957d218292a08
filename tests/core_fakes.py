"""Small things that the core's tests hold in their hands: calls that wait, conditions that come true, snapshots."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from astore.model import Snapshot, VolumeInfo, VolumeType

T = TypeVar("T")

PATIENCE = 10.0
"""Seconds that a test waits for what has to come; far more than it ever takes."""


async def eventually(condition: Callable[[], object], what: str = "the condition") -> None:
    """Let the loop run until ``condition()`` is true."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not come about"
        await asyncio.sleep(0.002)


async def steps(count: int) -> None:
    """Let the loop go round ``count`` times."""
    for _ in range(count):
        await asyncio.sleep(0)


class Gate:
    """A blocking call that stays in its thread until the gate is opened.

    :ivar entered: how many calls came in. :ivar inside: how many are in there. :ivar most: how many were at once.
    """

    def __init__(self) -> None:
        self.entered = 0
        self.inside = 0
        self.most = 0
        self._open = threading.Event()
        self._lock = threading.Lock()

    def __call__(self, result: Any = None) -> Any:
        with self._lock:
            self.entered += 1
            self.inside += 1
            self.most = max(self.most, self.inside)
        try:
            if not self._open.wait(PATIENCE * 3):
                raise AssertionError("the gate was never opened")
        finally:
            with self._lock:
                self.inside -= 1
        return result

    def open(self) -> None:
        """Let out who is inside, and let pass who comes."""
        self._open.set()

    def close(self) -> None:
        """Hold who comes from now on."""
        self._open.clear()


async def cancel_after(count: int, call: Callable[[], Awaitable[T]]) -> tuple[bool, T | None]:
    """Run ``call()`` in a task and cancel it after ``count`` rounds of the loop.

    Says whether it was cancelled, and what it returned if it was not.
    """

    async def body() -> T:
        return await call()

    task = asyncio.ensure_future(body())
    await steps(count)
    task.cancel()
    try:
        return False, await task
    except asyncio.CancelledError:
        return True, None


def volume(name: str, **fields: Any) -> VolumeInfo:
    """A record; what matters is given, the rest made up."""
    known: dict[str, Any] = {
        "name": name,
        "type": VolumeType.FILE,
        "key": f"/pool/{name}",
        "path": f"/pool/{name}",
        "capacity": 1 << 20,
        "allocation": 4096,
        "physical": 4096,
        "format": "raw",
        "mode": 0o100644,
        "uid": 0,
        "gid": 0,
        "inode": hash(name) & 0xFFFF,
        "atime_ns": 1,
        "mtime_ns": 2,
        "ctime_ns": 3,
    }
    return VolumeInfo(**(known | fields))


def snapshot(*names: str, **fields: Any) -> Snapshot:
    """A snapshot of volumes with these names."""
    return Snapshot({name: volume(name) for name in sorted(names)}, taken_at=1.0, **fields)


def run_python(code: str, *arguments: str, timeout: float = 60.0) -> subprocess.CompletedProcess[str]:
    """Run a program in an interpreter of its own; warnings are errors there too."""
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code, *arguments],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
    )
