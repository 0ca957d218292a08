"""Refresh a folder every second and print what changed in it, until Ctrl-C.

The reader starts late and asks for the events it missed: events are numbered, and the last ones are kept.
"""

import asyncio
import contextlib
import sys
import tempfile
from pathlib import Path

import astore


async def refresh_again_and_again(pool: astore.Pool, seconds: float) -> None:
    """Refresh the pool in a loop of our own: astore does not refresh by itself."""
    while True:
        with contextlib.suppress(OSError):  # an event says that the pool is inaccessible; the next refresh may succeed
            await pool.refresh(timeout=10)
        await asyncio.sleep(seconds)


def tell(event: astore.Event) -> None:
    match event:
        case astore.VolumeAdded() | astore.VolumeChanged():
            what = f"{event.name}: {event.volume.format}, {event.volume.capacity:,} bytes"
        case astore.VolumeRemoved():
            what = event.name
        case astore.PoolStateChanged():
            what = f"{event.pool}: {event.old} -> {event.new} {event.reason or ''}"
        case astore.Lagged():
            what = f"{event.missed} events lost: begin again with pool.snapshot"
        case _:
            return
    print(f"{event.seq:4} {type(event).__name__:16} {what}", flush=True)


async def main(folder: Path) -> None:
    with tempfile.TemporaryDirectory() as state:
        async with astore.Manager(state) as manager, asyncio.TaskGroup() as group:
            pool = await manager.create(astore.PoolDef("dir", folder.name, target=astore.Target(str(folder))))
            group.create_task(refresh_again_and_again(pool, seconds=1.0))
            async with manager.events(since=0) as events:
                async for event in events:
                    tell(event)


with contextlib.suppress(KeyboardInterrupt):
    asyncio.run(main(Path(sys.argv[1]).absolute()))
