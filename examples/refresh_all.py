"""Make a pool of each folder on the command line, refresh all of them at once, and print the volumes and events."""

import asyncio
import sys
from pathlib import Path

import astore


async def main(folders: list[Path]) -> None:
    async with astore.Manager(state_dir="state") as manager:
        for folder in folders:
            await manager.define(astore.PoolDef("dir", folder.name, target=astore.Target(str(folder))))
        await manager.start_all(autostart_only=False)
        report = await manager.refresh_all(limit=16, timeout=30)  # a pool that hangs costs only itself
        print(f"{len(report.pools)} refreshed in {report.seconds:.3f} s, {len(report.failed)} failed")
        for pool in manager.pools():
            print(f"{pool.name}: {pool.state}", pool.error or f"with {pool.info.available >> 30} GiB free")
            for volume in pool.volumes:  # from the last snapshot: nothing to wait for
                print(f"  {volume.name:16} {volume.format:6} {volume.capacity >> 20:8} MiB  {volume.backing or ''}")
        async with manager.events(since=0) as events:  # everything from the first event on
            while event := events.receive_nowait():
                print(event.seq, type(event).__name__, getattr(event, "pool", ""), getattr(event, "name", ""))


asyncio.run(main([Path(name).absolute() for name in sys.argv[1:]]))
