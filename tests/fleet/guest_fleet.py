"""What test_faults.py runs in a guest: a fleet whose hosts share an export of the guest's kernel, and what befalls them.

guest_fleet.py ROUNDS FAULT…
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

sys.path += [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

from fleet_faults import go_on
from fleet_hosts import scene
from fleet_storage import nfs_export

from beds import namespace


async def main(rounds: str, *faults: str) -> None:
    """Make a scene, and have all these faults so often."""
    async with scene(Path("/run"), 1, nfs_export, seconds=10) as made:
        await go_on(made, list(faults), int(rounds))
    print("all as it should be")


if __name__ == "__main__":
    namespace.claim_namespaces()
    asyncio.run(main(*sys.argv[1:]))
