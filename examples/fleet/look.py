"""Look at a fleet, refresh all of it, and search its volumes: ``python look.py nats://HOST:4222 prod``."""

import asyncio
import sys

from astore_fleet import Fleet


async def main(url: str, name: str) -> None:
    async with await Fleet.connect(url, name) as fleet:
        for pool in fleet.pools():  # from the engine: no host is asked
            print(pool.name, pool.owner, pool.state, pool.volumes, "volumes, seen", pool.age, "s ago")
        report = await fleet.refresh_all(timeout=30)  # each pool on the host that looks after it
        for outcome in report.failed:
            print(outcome.pool, outcome.error)
        for found in await fleet.search(format="qcow2", bigger_than=10 << 30):
            print(found.pool, found.info.name, found.info.capacity)


asyncio.run(main(*sys.argv[1:]))
