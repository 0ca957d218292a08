"""A host of a fleet for measurements: ``python -m benchmarks.fleet_host URL FLEET HOST``.

Its pools of type ``shared`` are folders that may run on any host; those of type ``slow`` also wait 50 ms for each refresh.
"""

from __future__ import annotations

import asyncio
import sys
from typing import ClassVar

from astore.backend import Context, PoolSession
from astore.backends.directory import DirectoryBackend
from astore.model import PoolDef, Snapshot
from astore.registry import BackendRegistry
from astore_fleet import Fleet

SLOW_SECONDS = 0.05


class SharedBackend(DirectoryBackend):
    """Folders that every host sees."""

    type: ClassVar[str] = "shared"


class SlowSession(PoolSession):
    """A pool whose server takes its time."""

    async def refresh(self, previous: Snapshot, *, full: bool = False) -> Snapshot:
        """Wait, and find nothing."""
        async with _server:
            await asyncio.sleep(SLOW_SECONDS)
        return Snapshot(taken_at=1.0)

    async def aclose(self) -> None:
        """Do nothing."""


_server = asyncio.Semaphore(16)
"""A host asks for as many pools at once as a Manager refreshes."""


class SlowBackend(SharedBackend):
    """Pools whose server takes its time, whatever the host does."""

    type: ClassVar[str] = "slow"

    async def open(self, definition: PoolDef, context: Context) -> PoolSession:
        """Open nothing."""
        return SlowSession()


def registry() -> BackendRegistry:
    """The backends of these hosts."""
    made = BackendRegistry(group=None)
    for backend in (DirectoryBackend(), SharedBackend(), SlowBackend()):
        made.register(backend)
    return made


def definition(type: str, name: str, path: str) -> PoolDef:
    """The definition of a pool that may run on any host."""
    return PoolDef.from_xml(
        f"<pool type='{type}'><name>{name}</name><source><host name='everywhere'/></source>"
        f"<target><path>{path}</path></target></pool>"
    )


async def main(url: str, name: str, host: str) -> None:
    async with await Fleet.connect(url, name, host=host) as fleet, fleet.agent(registry=registry(), max_staleness=3600):
        print("ready", flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
