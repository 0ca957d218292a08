"""A process that watches pools in which nothing happens: ``python -m benchmarks.idle_pools FOLDER POOLS SECONDS``.

It tells, as JSON, the seconds until all were watched, its threads before and while it watches, and its share of a processor in
percent.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from pathlib import Path

import astore


async def main(folder: Path, count: int, seconds: float) -> None:
    """Make the pools, watch them, and measure."""
    async with astore.Manager(folder / "state") as manager:
        pools = []
        for index in range(count):
            place = folder / f"p{index}"
            place.mkdir()
            (place / "a.img").write_bytes(b"x" * 512)
            os.utime(place / "a.img", (1e9, 1e9))
            pools.append(await manager.define(astore.PoolDef("dir", place.name, target=astore.Target(str(place)))))
        await manager.start_all(autostart_only=False)
        await asyncio.sleep(2.0)
        threads = _threads()
        async with manager.watch():
            began = time.perf_counter()
            for pool in pools:
                while pool.info.freshness is None or not pool.info.freshness.pushed:  # noqa: ASYNC110  no event tells of it
                    await asyncio.sleep(0.01)
            watched = time.perf_counter() - began
            await asyncio.sleep(2.0)
            clock, processor = time.perf_counter(), time.process_time()
            await asyncio.sleep(seconds)
            share = (time.process_time() - processor) / (time.perf_counter() - clock) * 100
            print(json.dumps([watched, threads, _threads(), share]))


def _threads() -> int:
    return len(os.listdir("/proc/self/task"))


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])))
