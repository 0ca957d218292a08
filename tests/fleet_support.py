"""What the tests of fleets share: backends for a shared storage, and hosts as processes.

``python fleet_support.py URL FLEET HOST SECONDS GATE`` is a host: it runs an agent until it is ended. Its pools of type
``held`` delete volumes when the file GATE is there, and write into GATE.log that they have begun.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from pathlib import Path
from typing import ClassVar

from core_fakes import PATIENCE, FakeBackend, FakeSession

from astore.backends.directory import DirectoryBackend
from astore.model import VolumeInfo
from astore.registry import BackendRegistry
from astore_fleet import Agent, Fleet, FleetEvent
from astore_fleet.jobs import job_queue
from beds.nats import NatsBed

SECONDS = 3.0
"""How long a host's lease lasts in tests."""

RECORDS = "ASTORE_TEST_RECORD_SECONDS"
"""The variable that says how long records of jobs stay for a host that is a process."""


class SharedBackend(DirectoryBackend):
    """Folders that every host of a test sees: a pool of this type names a host, and so may run anywhere."""

    type: ClassVar[str] = "shared"


class HeldSession(FakeSession):
    """Deletes when the gate is open."""

    gate: ClassVar[Path]

    async def delete_volume(self, info: VolumeInfo) -> None:
        """Write that it has begun; wait; end."""
        await asyncio.to_thread(self._note, info.name)
        until = time.monotonic() + PATIENCE
        while not await asyncio.to_thread(self.gate.exists):
            assert time.monotonic() < until, "the gate stayed closed"
            await asyncio.sleep(0.002)
        self.backend.shows[""].pop(info.name)

    def _note(self, name: str) -> None:
        with open(f"{self.gate}.log", "a") as log:
            log.write(f"{name}\n")


class HeldBackend(FakeBackend):
    """Pools with a volume each that takes its time."""

    type: ClassVar[str] = "held"
    session_class = HeldSession


def registry() -> BackendRegistry:
    """A registry with folders, local and shared, and what can be held."""
    made = BackendRegistry(group=None)
    held = HeldBackend()
    held.show("a", "b")
    for backend in (DirectoryBackend(), SharedBackend(), held):
        made.register(backend)
    return made


def shared(name: str, path: Path | str, type: str = "shared") -> str:
    """The definition of a pool that may run anywhere."""
    return (
        f"<pool type='{type}'><name>{name}</name><source><host name='everywhere'/></source>"
        f"<target><path>{path}</path></target></pool>"
    )


def local(name: str, path: Path | str) -> str:
    """The definition of a pool of one host."""
    return f"<pool type='dir'><name>{name}</name><target><path>{path}</path></target></pool>"


def folder(tmp_path: Path, name: str, *files: str) -> Path:
    """A folder with files."""
    made = tmp_path / name
    made.mkdir()
    for file in files:
        (made / file).write_bytes(b"x" * 1024)
    return made


async def until(events: AsyncIterator[FleetEvent], kind: type, name: str) -> list[FleetEvent]:
    """Read events to the one of this kind about the volume of this name."""
    seen: list[FleetEvent] = []
    async with asyncio.timeout(60):
        async for one in events:
            seen.append(one)
            if isinstance(one.event, kind) and getattr(one.event, "name", "") == name:
                return seen
    raise AssertionError


@contextlib.asynccontextmanager
async def host(bed: NatsBed, fleet: str, name: str, **labels: str) -> AsyncIterator[Agent]:
    """A host of the fleet."""
    async with (
        await Fleet.connect(bed.url, fleet, host=name) as client,
        client.agent(labels=labels, seconds=SECONDS, registry=registry()) as agent,
    ):
        yield agent


@contextlib.asynccontextmanager
async def process(bed: NatsBed, fleet: str, host: str, gate: Path, seconds: float = SECONDS) -> AsyncIterator[Process]:
    """A host that is a process; it is ended after the block, if that was not done."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    argv = [sys.executable, "-W", "error", __file__, bed.url, fleet, host, str(seconds), str(gate)]
    made = await asyncio.create_subprocess_exec(*argv, stdout=PIPE, env=environment)
    assert made.stdout is not None
    try:
        async with asyncio.timeout(60):
            assert await made.stdout.readline() == b"ready\n"
        yield made
    finally:
        if made.returncode is None:
            made.send_signal(signal.SIGCONT)
            made.kill()
        await made.wait()


async def _serve(url: str, fleet: str, host: str, seconds: str, gate: str) -> None:
    HeldSession.gate = Path(gate)
    job_queue.RECORD_SECONDS = float(os.environ.get(RECORDS, job_queue.RECORD_SECONDS))
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    async with (
        await Fleet.connect(url, fleet, host=host) as client,
        client.agent(seconds=float(seconds), registry=registry()),
    ):
        print("ready", flush=True)
        await ended.wait()


if __name__ == "__main__":
    asyncio.run(_serve(*sys.argv[1:]))
