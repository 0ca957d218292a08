"""Two hundred pools on all storages, random work and random faults: at the end the view equals the disks, and nothing is left.

ASTORE_SOAK_SECONDS says how long (``make soak``: half an hour), ASTORE_SOAK_SEED which work and which faults.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import os
import random
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest
from core_fakes import eventually, quiet

import astore
from astore import VolumeDef
from astore.volume_io.volume_names import TEMPORARY
from beds import fuse

if TYPE_CHECKING:
    from beds.gluster import GlusterBed

SECONDS = float(os.environ.get("ASTORE_SOAK_SECONDS", "20"))
SEED = int(os.environ.get("ASTORE_SOAK_SEED", "1"))
WORKERS = 12
MOST = 8
"""Volumes of a pool."""

DIRS, SERVED, MOUNTED, SMALL = 130, 60, 4, 6

GROWTH = {"blocks": 1.05, "used": 1.1, "resident": 1.2}
"""How many times as much each may be in the last third of the time as in the third before; as measured, single samples
of blocks differ by 1 %, of the others by 8 %."""

BLOCKS_OF_A_VOLUME = 45
"""Python's objects for one more volume, as measured."""

FAULT = "the backend failed with"
"""Part of the message of an error that no backend may raise, such as a TypeError."""

Check = tuple[astore.Pool, Path]


def trimmed_sizes() -> Sizes:
    """Measure after the kernel has got back all whole pages that malloc(3) has and nobody uses."""
    ctypes.CDLL(None).malloc_trim(0)
    return sizes(0)


def uncover(target: Path) -> None:
    """Take the cover away, and what a pool that was started at the same moment has mounted on it. Blocks."""

    def covered() -> bool:
        lines = Path("/proc/self/mountinfo").read_text().splitlines()
        return any(f" {target} " in line and " tmpfs cover " in line for line in lines)

    while covered():
        subprocess.run(["umount", "-l", os.fspath(target)], check=True, timeout=200)


class Storage:
    """The pools, the folders of this machine where their files are, and what can go wrong with them.

    :ivar pools: each pool with that folder.
    """

    def __init__(self, gluster: GlusterBed, folder: Path) -> None:
        self.gluster = gluster
        self.folder = folder
        self.pools: list[Check] = []
        self.documents: list[tuple[str, Path]] = []
        self.mounts: list[Path] = []
        self.small: list[Path] = []

    def prepare(self) -> None:
        """Make folders, small file systems and volumes. Blocks."""
        for number in range(DIRS + SMALL):
            folder = self.folder / f"d{number}"
            folder.mkdir()
            if number >= DIRS:
                self.small.append(folder)
                subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "small", folder], check=True)
                folder = folder / "images"  # what fills the file system is no volume
                folder.mkdir()
            self._document("dir", f"d{number}", f"<target><path>{folder}</path></target>", folder)
        served, mounted = "soak-served", "soak-mounted"
        for name in (served, *(f"{mounted}{number}" for number in range(MOUNTED))):
            self.gluster.create_volume(name, options={"network.ping-timeout": 5})
        root = self.gluster.mount(served)
        for number in range(SERVED):
            (root / f"g{number}").mkdir()
            source = f"<host name='{self.gluster.host}'/><dir path='/g{number}'/><name>{served}</name>"
            self._document(
                "gluster", f"g{number}", f"<source>{source}</source>", self.gluster.brick(served) / f"g{number}"
            )
        for number in range(MOUNTED):
            target = self.folder / f"n{number}"
            target.mkdir()
            self.mounts.append(target)
            source = f"<host name='{self.gluster.host}'/><dir path='{mounted}{number}'/><format type='glusterfs'/>"
            rest = f"<source>{source}</source><target><path>{target}</path></target>"
            self._document("netfs", f"n{number}", rest, self.gluster.brick(f"{mounted}{number}"))

    def _document(self, kind: str, name: str, rest: str, kept: Path) -> None:
        self.documents.append((f"<pool type='{kind}'><name>{name}</name>{rest}</pool>", kept))

    def end(self) -> None:
        """Take all away again. Blocks."""
        for target in self.mounts:
            fuse.release(target)
        for folder in self.small:
            subprocess.run(["umount", "-l", folder], check=True)
        for name in ("soak-served", *(f"soak-mounted{number}" for number in range(MOUNTED))):
            self.gluster.delete_volume(name)

    # ------------------------------------------------------------------------------------------------------ faults

    @contextlib.asynccontextmanager
    async def brick_killed(self, rng: random.Random) -> AsyncIterator[None]:
        name = rng.choice(["soak-served", *(f"soak-mounted{number}" for number in range(MOUNTED))])
        await asyncio.to_thread(self.gluster.kill_brick, name)
        try:
            yield
        finally:
            await asyncio.to_thread(self.gluster.start_volume, name, force=True)

    @contextlib.asynccontextmanager
    async def client_stopped(self, rng: random.Random) -> AsyncIterator[None]:
        target = rng.choice(self.mounts)
        with contextlib.suppress(LookupError, OSError):  # it is not mounted at the moment
            await asyncio.to_thread(fuse.freeze, target)
        try:
            yield
        finally:
            with contextlib.suppress(LookupError, OSError):
                await asyncio.to_thread(fuse.thaw, target)

    @contextlib.asynccontextmanager
    async def mount_covered(self, rng: random.Random) -> AsyncIterator[None]:
        target = rng.choice(self.mounts)
        mount = ["mount", "-t", "tmpfs", "cover", os.fspath(target)]
        await asyncio.to_thread(subprocess.run, mount, check=True, timeout=200)
        try:
            yield
        finally:
            await asyncio.to_thread(uncover, target)

    @contextlib.asynccontextmanager
    async def disk_full(self, rng: random.Random) -> AsyncIterator[None]:
        filler = rng.choice(self.small) / "filler"

        def fill() -> None:
            with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
                while True:
                    file.write(bytes(1 << 16))

        await asyncio.to_thread(fill)
        try:
            yield
        finally:
            await asyncio.to_thread(filler.unlink)


class Worker:
    """Does random work, and counts what became of it.

    :ivar told: how many calls of each kind ended with each error ("" is none).
    :ivar bugs: messages of errors that storage cannot cause.
    """

    def __init__(self, pools: list[Check], rng: random.Random, number: int) -> None:
        self._pools = pools
        self._rng = rng
        self._number = number
        self._made = 0
        self.told: Counter[tuple[str, str]] = Counter()
        self.bugs: list[str] = []

    async def run(self, until: float) -> None:
        """Work until then."""
        while time.monotonic() < until:
            kind = self._rng.choice(["dir", "gluster", "netfs"])  # most pools are of one kind
            pool, _ = self._rng.choice([one for one in self._pools if one[0].type == kind])
            name, work = self._rng.choice(self._work(pool))
            try:
                async with asyncio.timeout(self._rng.choice([0.05, 1, 20, 20, 20])):
                    await work()
            except astore.ManagerClosedError:
                return
            except (astore.AstoreError, TimeoutError) as error:
                self.told[name, type(error).__name__] += 1
                if FAULT in str(error) or isinstance(error, astore.BackendError):
                    self.bugs.append(f"{name} {pool.name}: {error!r}")
            else:
                self.told[name, ""] += 1

    def _work(self, pool: astore.Pool) -> list[tuple[str, Callable[[], Awaitable[object]]]]:
        self._made += 1
        name, rng = f"w{self._number}-{self._made}", self._rng
        if pool.state is astore.PoolState.INACTIVE:
            return [("start", pool.start)]
        found: list[tuple[str, Callable[[], Awaitable[object]]]] = [
            ("refresh", pool.refresh),
            ("full refresh", lambda: pool.refresh(full=True)),
        ]
        volumes = pool.volumes
        if len(volumes) < MOST:
            found.append(("create", lambda: pool.create_volume(VolumeDef(name, capacity=1 << 20))))
            found.append(("qcow2", lambda: pool.create_volume(VolumeDef(name, capacity=1 << 20, format="qcow2"))))
        if volumes:
            one = rng.choice(volumes)
            found += [
                ("upload", lambda: pool.volume(one.name).upload(rng.randbytes(rng.randrange(1 << 20)))),
                ("copy", lambda: pool.copy_volume(pool.volume(one.name), VolumeDef(name))),
                ("rename", lambda: pool.volume(one.name).rename(name)),
                ("delete", lambda: pool.volume(one.name).delete()),
                ("delete", lambda: pool.volume(one.name).delete()),
            ]
        if rng.random() < 0.02:
            found = [("restart", lambda: self._restart(pool))]
        return found

    async def _restart(self, pool: astore.Pool) -> None:
        await pool.stop(force=self._rng.random() < 0.3)
        await pool.start()


class Sizes(NamedTuple):
    """What the process has at one moment. All but the first two are in bytes.

    :ivar blocks: objects of Python. :ivar used: memory that is in use of what malloc(3) has, in all its arenas.
    :ivar free: memory that malloc(3) keeps, and nobody uses.
    """

    volumes: int
    blocks: int
    resident: int
    used: int
    free: int

    def without_volumes(self) -> Sizes:
        """Return what is left without the objects of the volumes, whose number changes all the time."""
        return self._replace(volumes=0, blocks=self.blocks - BLOCKS_OF_A_VOLUME * self.volumes)


class _Mallinfo(ctypes.Structure):
    """``struct mallinfo2``, see mallinfo(3)."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in [
            "arena",
            "ordblks",
            "smblks",
            "hblks",
            "hblkhd",
            "usmblks",
            "fsmblks",
            "uordblks",
            "fordblks",
            "keepcost",
        ]
    ]


def sizes(volumes: int) -> Sizes:
    gc.collect()
    mallinfo = ctypes.CDLL(None).mallinfo2
    mallinfo.restype = _Mallinfo
    found = mallinfo()
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return Sizes(volumes, sys.getallocatedblocks(), resident, found.uordblks + found.hblkhd, found.fordblks)


def grown(measured: Sequence[Sizes]) -> dict[str, float]:
    """Return what has grown too much from the second third of the samples to the last, and how many times.

    Medians are compared: a fault that holds calls up, and so their memory, is seen in some samples only.
    """
    third = len(measured) // 3
    early, late = measured[third : 2 * third], measured[2 * third :]
    found = {}
    for name, most in GROWTH.items():
        before, after = (
            statistics.median(getattr(one.without_volumes(), name) for one in part) for part in (early, late)
        )
        if after > most * before:
            found[name] = after / before
    return found


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


def on_disk(kept: Path) -> dict[str, int]:
    return {one.name: one.stat().st_size for one in os.scandir(kept) if one.name != ".glusterfs"}


@pytest.mark.root
@pytest.mark.gluster
@pytest.mark.fuse
@pytest.mark.soak
@pytest.mark.timeout(SECONDS * 2 + 900)
async def test_random_work_and_faults(gluster: GlusterBed, tmp_path: Path) -> None:
    """Whatever goes wrong meanwhile, in the end each pool shows what is on its disk, and no thread, task or file is left."""
    rng = random.Random(SEED)
    storage = Storage(gluster, tmp_path)
    await asyncio.to_thread(storage.prepare)
    told: Counter[tuple[str, str]] = Counter()
    faults: Counter[str] = Counter()
    measured: list[Sizes] = []
    trimmed: Sizes | None = None
    work: list[asyncio.Task[None]] = []
    try:
        async with astore.Manager(tmp_path / "state", call_timeout=10, event_capacity=4096) as manager:
            for document, kept in storage.documents:
                storage.pools.append((await manager.define(document), kept))
            assert len(storage.pools) == DIRS + SERVED + MOUNTED + SMALL
            assert set((await manager.start_all(autostart_only=False)).values()) == {None}
            until = time.monotonic() + SECONDS
            workers = [Worker(storage.pools, random.Random(rng.random()), number) for number in range(WORKERS)]
            work = [asyncio.create_task(worker.run(until)) for worker in workers]
            while time.monotonic() < until and not any(task.done() for task in work):
                fault = rng.choice(
                    [storage.brick_killed, storage.client_stopped, storage.mount_covered, storage.disk_full]
                )
                faults[fault.__name__] += 1
                async with fault(rng):
                    await asyncio.sleep(rng.uniform(0.2, min(8.0, SECONDS / 5)))
                await asyncio.sleep(rng.uniform(0.2, 2.0))
                measured.append(await asyncio.to_thread(sizes, sum(len(pool.snapshot) for pool, _ in storage.pools)))
            await asyncio.gather(*work)
            trimmed = await asyncio.to_thread(trimmed_sizes)
            for worker in workers:
                told += worker.told
            await asyncio.gather(*(recovered(pool) for pool, _ in storage.pools))
            for pool, kept in storage.pools:
                found = await asyncio.to_thread(on_disk, kept)
                assert not [name for name in found if name.startswith(TEMPORARY)], f"{pool.name}: {found}"
                shown = {volume.name: volume.physical for volume in pool.volumes}
                assert shown == found, pool.name
                assert not pool.info.errors, pool.name
            await eventually(lambda: quiet(manager) and not manager.statistics().cleanups)
            for pool, _ in storage.pools:
                await pool.stop()
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
    if SECONDS >= 300:  # before that the process is still growing into its work
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
