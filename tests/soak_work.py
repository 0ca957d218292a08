"""Random work on pools, and what it costs the process: for the soak."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import os
import random
import statistics
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import astore
from astore import VolumeDef

MOST = 8
"""Volumes of a pool."""

GROWTH = {"blocks": 1.05, "used": 1.1, "resident": 1.2}
"""How many times as much each may be in the last third of the time as in the third before; as measured, single samples
of blocks differ by 1 %, of the others by 8 %."""

BLOCKS_OF_A_VOLUME = 45
"""Python's objects for one more volume, as measured."""

FAULT = "the backend failed with"
"""Part of the message of an error that no backend may raise, such as a TypeError."""


class Worker:
    """Does random work, and counts what became of it.

    :ivar told: how many calls of each kind ended with each error ("" is none).
    :ivar bugs: messages of errors that storage cannot cause.
    """

    def __init__(self, pools: Sequence[astore.Pool], rng: random.Random, number: int) -> None:
        self._pools = pools
        self._rng = rng
        self._number = number
        self._made = 0
        self.told: Counter[tuple[str, str]] = Counter()
        self.bugs: list[str] = []

    async def run(self, until: float) -> None:
        """Work until then."""
        while time.monotonic() < until:
            kind = self._rng.choice(["dir", "gluster", "netfs", "rbd", "iscsi-direct"])  # most pools are of one kind
            pool = self._rng.choice([one for one in self._pools if one.type == kind])
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

    The lowest tenths are compared: work that is under way, and calls that a fault holds up, only add to what there is.
    """
    third = len(measured) // 3
    early, late = measured[third : 2 * third], measured[2 * third :]
    found = {}
    for name, most in GROWTH.items():
        before, after = (
            statistics.quantiles((getattr(one.without_volumes(), name) for one in part), n=10)[0]
            for part in (early, late)
        )
        if after > most * before:
            found[name] = after / before
    return found


def trimmed_sizes() -> Sizes:
    """Measure after the kernel has got back all whole pages that malloc(3) has and nobody uses."""
    ctypes.CDLL(None).malloc_trim(0)
    return sizes(0)
