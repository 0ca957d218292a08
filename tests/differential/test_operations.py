"""Steps drawn by lot, done by libvirt and by astore on ``dir`` pools, and all that both have to show compared after each.

Each side has a folder of its own (twins, in file systems of the same size), and both have one that is shared, where only others
change anything: there all times and sizes must be the same.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest
from differential.comparing import Comparing, put_away
from differential.counts import SEED, counting
from differential.lot import SHARED, TWINS, step
from differential.operations import LibvirtSide, astore_side
from differential.oracle import Oracle

from beds import namespace

pytestmark = [pytest.mark.root, pytest.mark.libvirt, pytest.mark.qemu]

STEPS = "ASTORE_DIFFERENTIAL_STEPS"
"""How many steps to do; a seed of its own then, which is printed, unless ASTORE_DIFFERENTIAL_SEED says which."""
USUAL_STEPS = 500
MS_NOATIME = 1024
"""linux/mount.h: reading changes no times."""


@pytest.fixture
def roots(tmp_path: Path) -> Iterator[dict[str, Path]]:
    """Three folders in memory, of the same size, in which reading changes nothing; twins' names are of one length."""
    found = {"libvirt": tmp_path / "twin1", "astore": tmp_path / "twin2", SHARED: tmp_path / SHARED}
    for folder in found.values():
        folder.mkdir()
        namespace.mount("tmpfs", folder, "tmpfs", flags=MS_NOATIME, data="size=64m,mode=0755")
    yield found
    for folder in found.values():
        namespace.unmount(folder, lazy=True)


async def test_steps_by_lot(oracle: Oracle, roots: dict[str, Path], tmp_path: Path) -> None:
    """Whatever is done, in whatever order: the same is accepted, refused, told, and left on the disk."""
    count = int(os.environ.get(STEPS, USUAL_STEPS))
    seed = int(os.environ.get(SEED) or (secrets.randbits(32) if STEPS in os.environ else 1))
    print(f"the same steps again: {SEED}={seed} {STEPS}={count}")
    oracle.ask("events")
    async with astore_side(roots["astore"], tmp_path / "state", counting("operations").met) as mine:
        to = Comparing(LibvirtSide(roots["libvirt"], oracle), mine, shared=(SHARED,), why=f" ({SEED}={seed})")
        random = Random(seed)
        try:
            for number in range(count):
                await step(to, random, roots[SHARED])
                if number % 10 == 9:
                    await to.look(*TWINS, SHARED)
                    await to.look_at_events()
        finally:
            put_away(oracle, (*TWINS, SHARED))
    assert counting("operations").compared > count
