"""What a row of fresh_rows.py runs in a guest: a watched pool on NFS, and another program that changes it on the server.

It prints, by kind of change, how many seconds after its end each event came, as JSON.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))

import astore
from beds import guest_servers
from benchmarks.fresh_rows import delays

VOLUMES = 100
ROUNDS = 8


async def _measure() -> dict[str, list[float]]:
    source = "<host name='127.0.0.1'/><dir path='/'/><format type='nfs'/><protocol ver='4.2'/>"
    options = "<fs:mount_opts><fs:option name='actimeo=1'/></fs:mount_opts>"
    definition = (
        "<pool type='netfs' xmlns:fs='http://libvirt.org/schemas/storagepool/fs/1.0'><name>nfs</name>"
        f"<source>{source}</source><target><path>/run/mnt</path></target>{options}</pool>"
    )
    async with astore.Manager("/run/state") as manager:
        pool = await manager.create(definition)
        async with manager.watch(max_staleness=1.0):
            while pool.info.freshness is None:  # noqa: ASYNC110  no event tells of it
                await asyncio.sleep(0.01)
            late = await delays(manager, pool, guest_servers.EXPORT, ROUNDS, pause=1.0)
        await pool.stop()
    return late


guest_servers.serve_nfs()
Path("/run/mnt").mkdir()
for number in range(VOLUMES):
    (guest_servers.EXPORT / f"disk{number}.raw").write_bytes(b"x" * 512)
print(json.dumps(asyncio.run(_measure())))
