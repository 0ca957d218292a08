"""A watched Gluster pool of which not everything is told: after the next listing the view is exact."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest
from core_fakes import eventually
from watching_support import watched

import astore
from astore.backend import Context
from astore_gluster.volume import told as told_module
from astore_gluster.volume import upcalls
from astore_gluster.volume.connection import ConnectionCache
from tests.gluster.clients import ON, OtherClient, sees_the_truth, xml

if TYPE_CHECKING:
    from beds.gluster import GlusterBed

pytestmark = [pytest.mark.root, pytest.mark.gluster]


REFUSED = (OSError, AssertionError)
"""What another client raises when a call fails, or a file cannot be opened."""


def changes_by_lot(other: OtherClient, lot: random.Random, count: int) -> None:
    """Change files of two folders, of which one is a pool's. Blocks. What a lost brick refuses is left."""
    for number in range(count):
        name, from_elsewhere = f"{other.images}/f{lot.randrange(12)}", f"{other.elsewhere}/f{number}"
        with contextlib.suppress(*REFUSED):
            match lot.randrange(6):
                case 0:
                    other.do("unlink", name)
                case 1:
                    other.do("rename", name, f"{other.images}/f{lot.randrange(12)}")
                case 2:
                    other.write(from_elsewhere, b"x" * number)
                    other.do("rename", from_elsewhere, name)
                case 3:
                    other.do("chmod", name, lot.choice((0o600, 0o644)))
                case _:
                    other.write(name, b"y" * lot.randrange(1, 5000))


@pytest.mark.parametrize("heard", [0.0, 0.25, 0.75])
async def test_lost_notices_do_no_harm(
    gluster: GlusterBed,
    told_volume: str,
    other: OtherClient,
    others: ConnectionCache,
    manager: astore.Manager,
    context: Context,
    monkeypatch: pytest.MonkeyPatch,
    heard: float,
) -> None:
    """Of what the bricks tell, some or all is lost."""
    monkeypatch.setattr(told_module, "AGAIN", 1.0)
    lot = random.Random(heard)
    give = upcalls.Listener.give

    def lossy(self: upcalls.Listener, notices: list[upcalls.Notice]) -> None:
        if kept := [notice for notice in notices if lot.random() < heard]:
            give(self, kept)

    monkeypatch.setattr(upcalls.Listener, "give", lossy)
    pool = await manager.create(xml(gluster, told_volume, other.images))
    async with manager.watch():
        await watched(pool, "upcalls")
        await asyncio.to_thread(changes_by_lot, other, lot, 100)
        true = await sees_the_truth(pool, gluster, told_volume, other.images, others, context)
        assert true
    await pool.stop()


async def test_brick_killed_amid_changes(
    gluster: GlusterBed,
    volume_factory: Callable[..., str],
    other_of: Callable[[str], OtherClient],
    others: ConnectionCache,
    manager: astore.Manager,
    context: Context,
) -> None:
    """One of two bricks is killed while others change files of both, and comes back."""
    volume = await asyncio.to_thread(volume_factory, bricks=2, options=ON)
    other = await asyncio.to_thread(other_of, volume)
    lot = random.Random(1)
    pool = await manager.create(xml(gluster, volume, other.images))
    async with manager.watch(max_staleness=2.0):
        await watched(pool, "upcalls")
        await asyncio.to_thread(changes_by_lot, other, lot, 40)
        work = asyncio.ensure_future(asyncio.to_thread(changes_by_lot, other, lot, 200))
        await asyncio.to_thread(gluster.kill_brick, volume)
        await work
        await asyncio.to_thread(lambda: gluster.start_volume(volume, force=True))

        def works() -> bool:
            try:
                for number in range(20):  # on both bricks
                    other.write(f"{other.images}/probe{number}", b"x")
            except REFUSED:
                return False
            return True

        while not await asyncio.to_thread(works):  # its connection comes back by itself, too
            await asyncio.sleep(0.2)
        await eventually(lambda: pool.state is astore.PoolState.RUNNING, "the brick is back")
        await watched(pool, "upcalls")
        await asyncio.to_thread(changes_by_lot, other, lot, 40)
        true = await sees_the_truth(pool, gluster, volume, other.images, others, context)
        assert len(true) > 20
    await pool.stop()
