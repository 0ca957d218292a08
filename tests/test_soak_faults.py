"""Two hundred pools on all storages, random work and random faults: at the end the view equals the disks, and nothing is left.

ASTORE_SOAK_SECONDS says how long (``make soak``: half an hour), ASTORE_SOAK_SEED which work and which faults.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from core_fakes import PATIENCE, eventually, quiet
from soak_storage import Storage
from soak_work import BLOCKS_OF_A_VOLUME, FAULT, Sizes, Worker, grown, sizes, trimmed_sizes
from stacks import of_all_threads

import astore
from astore.volume_io.volume_names import TEMPORARY
from tests.rbd.clients import secrets_of

if TYPE_CHECKING:
    from beds.ceph import CephBed
    from beds.gluster import GlusterBed
    from beds.iscsi import IscsiBed

SECONDS = float(os.environ.get("ASTORE_SOAK_SECONDS", "20"))
SEED = int(os.environ.get("ASTORE_SOAK_SEED", "1"))
WORKERS = 12
KEPT = 8
"""Descriptors that libraries may keep, for their logs and for names' look-up."""


def descriptors() -> list[str]:
    """What the process has open."""
    found = []
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):
            found.append(os.readlink(f"/proc/self/fd/{number}"))
    return sorted(found)


async def close_idle() -> None:
    """End libgfapi's connections that nobody uses, which are kept for a while. That takes it 10 s."""
    from astore_gluster.volume.connection import CONNECTIONS

    CONNECTIONS.close_idle()
    await eventually(lambda: not any(CONNECTIONS.statistics().values()), "the end of all connections")


async def recovered(pool: astore.Pool) -> None:
    """Bring a pool back: what is thawed, uncovered or restored comes back in its own time."""
    deadline = time.monotonic() + 150
    while True:
        try:
            if pool.state is not astore.PoolState.INACTIVE:
                await pool.stop(force=time.monotonic() > deadline - 75)
            await pool.start()
            await pool.refresh(full=True)
            return
        except (astore.AstoreError, TimeoutError) as error:
            if FAULT in str(error) or time.monotonic() > deadline:
                pytest.fail(f"{pool.name} does not come back: {error!r}")
            await asyncio.sleep(0.5)


async def ended(tasks: set[asyncio.Task[Any]]) -> None:
    """Wait for tasks that should end by themselves; tell what they and all threads do if they do not."""
    if not tasks:
        return
    print(f"the Manager left {len(tasks)} tasks, which end by themselves:", *tasks, sep="\n")
    _, left = await asyncio.wait(tasks, timeout=PATIENCE)
    for task in left:
        task.print_stack()
        for frame in task.get_stack():
            print({name: repr(value) for name, value in frame.f_locals.items()})
    assert not left, of_all_threads()


@pytest.mark.root
@pytest.mark.gluster
@pytest.mark.ceph
@pytest.mark.iscsi
@pytest.mark.fuse
@pytest.mark.soak
@pytest.mark.timeout(SECONDS * 2 + 900)
async def test_random_work_and_faults(gluster: GlusterBed, ceph: CephBed, iscsi: IscsiBed, tmp_path: Path) -> None:
    """Whatever goes wrong meanwhile, in the end each pool shows what is on its disk, and no thread, task or file is left."""
    rng = random.Random(SEED)
    storage = Storage(gluster, ceph, iscsi, tmp_path)
    await asyncio.to_thread(storage.prepare)
    told: Counter[tuple[str, str]] = Counter()
    faults: Counter[str] = Counter()
    measured: list[Sizes] = []
    trimmed: Sizes | None = None
    work: list[asyncio.Task[None]] = []
    before = descriptors(), asyncio.all_tasks()
    try:
        async with astore.Manager(
            tmp_path / "state", call_timeout=10, event_capacity=4096, secrets=secrets_of(ceph)
        ) as manager:
            pools = {await manager.define(document): look for document, look in storage.documents}
            assert len(pools) == 200
            assert set((await manager.start_all(autostart_only=False)).values()) == {None}
            until = time.monotonic() + SECONDS
            workers = [Worker([*pools], random.Random(rng.random()), number) for number in range(WORKERS)]
            work = [asyncio.create_task(worker.run(until)) for worker in workers]
            while time.monotonic() < until and not any(task.done() for task in work):
                fault = rng.choice(storage.faults)
                faults[fault.__name__] += 1
                async with fault(rng):
                    await asyncio.sleep(rng.uniform(0.2, min(8.0, SECONDS / 5)))
                await asyncio.sleep(rng.uniform(0.2, 2.0))
                measured.append(await asyncio.to_thread(sizes, sum(len(pool.snapshot) for pool in pools)))
            await asyncio.gather(*work)
            trimmed = await asyncio.to_thread(trimmed_sizes)
            for worker in workers:
                told += worker.told
            await asyncio.gather(*(recovered(pool) for pool in pools))
            for pool, look in pools.items():
                found = await asyncio.to_thread(look)
                assert not [name for name in found if name.startswith(TEMPORARY)], f"{pool.name}: {found}"
                blocks = pool.type in ("rbd", "iscsi-direct")
                shown = {one.name: one.capacity if blocks else one.physical for one in pool.volumes}
                assert shown == found, pool.name
                assert not pool.info.errors, pool.name
            await eventually(lambda: quiet(manager) and not manager.statistics().cleanups)
            for pool in pools:
                await pool.stop()
        await close_idle()
        await ended(asyncio.all_tasks() - before[1])
        after = descriptors(), asyncio.all_tasks()
        print(f"descriptors that were not open before: {[one for one in after[0] if one not in before[0]]}")
    finally:
        for task in work:
            task.cancel()
        print(f"work: {sorted(told.items())}\nfaults: {dict(faults)}")
        for one in measured[:: max(1, len(measured) // 25)]:
            print(f"    {one}")
        print(f"in the end {measured[-1:]}, after malloc_trim {trimmed}")
        await asyncio.to_thread(storage.end)
    assert not [bug for worker in workers for bug in worker.bugs]
    assert sum(count for (_, error), count in told.items() if not error) > 0
    assert after[1] == before[1]
    assert len(after[0]) <= len(before[0]) + KEPT, after[0]
    if SECONDS >= 300:  # before that the process is still growing into its work
        assert set(faults) == {fault.__name__ for fault in storage.faults}
        assert not grown(measured), (grown(measured), measured)


def test_a_leak_is_noticed() -> None:
    """Memory that has grown by half in the end is told; other numbers of volumes and single peaks are not."""
    rng = random.Random(SEED)

    def process(leak: float) -> list[Sizes]:
        found = []
        for moment in range(60):
            volumes, factor = rng.randrange(300, 1500), 1 + leak * moment / 60 + rng.uniform(-0.02, 0.02)
            peak = 40_000 if rng.random() < 0.1 else 0
            blocks = int(280_000 * factor) + BLOCKS_OF_A_VOLUME * volumes + peak
            found.append(Sizes(volumes, blocks, int(90e6 * factor), int(20e6 * factor), 0))
        return found

    assert not grown(process(0))
    assert set(grown(process(0.5))) == {"blocks", "used"}
    assert set(grown(process(2))) == {"blocks", "used", "resident"}
