"""Rows on neighbours: how long a pool's refresh takes while another pool hangs, is cut off, or lists a million entries."""

from __future__ import annotations

import asyncio
import contextlib
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import astore
from beds import fuse
from beds.fuse_fs import FuseFs, missing
from benchmarks.bench import Bench
from benchmarks.row import Row
from benchmarks.sides import say

median = statistics.median
VOLUMES = 1000
MANY = 1_000_000
LOOKS = 20
BEGUN = 1000
"""Entries of a listing after which it is well under way."""

BAR = 1.3

Neighbour = Callable[[], AbstractAsyncContextManager[None]]


async def neighbour_rows(bench: Bench) -> list[Row]:
    """Refresh a pool of 1,000 volumes alone and beside such a neighbour, in turn."""
    if (why := missing()) is not None:
        bench.notes.append(f"neighbours were not measured: {why}.")
        return []
    pools = {"dir": await _dir_pool(bench), "gluster": await _gluster_pool(bench)}
    hung = FuseFs(bench.folder / "hung")
    cut = FuseFs(bench.folder / "cut")
    many = FuseFs(bench.folder / "many", entries=MANY, cache=3600.0)
    try:
        neighbours: dict[str, Neighbour] = {
            "that hangs": await _hanging(bench, hung),
            "that is cut": await _cut(bench, cut),
            "of a million entries": await _listing(bench, many),
        }
        rows = []
        for name, beside in neighbours.items():
            for kind, pool in pools.items():
                ratio = await _compared(pool, beside, bench.pairs)
                rows.append(
                    Row(f"another {kind} pool's refresh beside a neighbour {name}", None, None, ratio,
                        f"≤ {BAR:g} × alone", ratio, ratio <= BAR, "×")
                )  # fmt: skip
        return rows
    finally:
        for bed in (hung, cut, many):
            await asyncio.to_thread(bed.close)


async def _dir_pool(bench: Bench) -> astore.Pool:
    folder = bench.folder / "healthy"
    folder.mkdir()
    bench.fill(folder, VOLUMES)
    return await _started(bench, f"<pool type='dir'><name>healthy</name><target><path>{folder}</path></target></pool>")


async def _gluster_pool(bench: Bench) -> astore.Pool:
    bed = bench.gluster
    bed.create_volume("healthy")
    await asyncio.to_thread(bench.fill, bed.mount("healthy"), VOLUMES)
    source = f"<host name='{bed.host}'/><dir path='/'/><name>healthy</name>"
    return await _started(bench, f"<pool type='gluster'><name>healthy-g</name><source>{source}</source></pool>")


async def _started(bench: Bench, text: str) -> astore.Pool:
    pool = await bench.manager.define(text)
    await pool.start()
    return pool


async def _fuse_pool(bench: Bench, bed: FuseFs, name: str) -> astore.Pool:
    target: Path = await asyncio.to_thread(bed.mount)
    text = f"<pool type='dir'><name>{name}</name><target><path>{target}</path></target></pool>"
    pool = await bench.manager.define(text)
    await pool.start(refresh=False)
    return pool


async def _hanging(bench: Bench, bed: FuseFs) -> Neighbour:
    """Return a neighbour whose refreshes hang in every listing."""
    (bed.files / "disk").write_bytes(b"x")
    pool = await _fuse_pool(bench, bed, "hung")

    @contextlib.asynccontextmanager
    async def beside() -> AsyncIterator[None]:
        gate = await asyncio.to_thread(bed.hold, "readdir")
        tasks = [asyncio.ensure_future(pool.refresh(timeout=0.2 * n)) for n in (1, 2, 3, 600)]
        await asyncio.to_thread(gate.wait)
        try:
            yield
        finally:
            await asyncio.to_thread(gate.remove)
            await asyncio.gather(*tasks, return_exceptions=True)

    return beside


async def _cut(bench: Bench, bed: FuseFs) -> Neighbour:
    """Return a neighbour that loses its connection in the middle of a refresh, and fails from then on."""
    (bed.files / "disk").write_bytes(b"x")
    pool = await _fuse_pool(bench, bed, "cut")
    target = Path(pool.definition.target.path or "")

    async def fail() -> None:
        while True:
            try:
                await pool.refresh()
            except astore.StorageError:
                await asyncio.sleep(0.01)
            else:
                raise AssertionError("a pool without a connection was refreshed")

    @contextlib.asynccontextmanager
    async def beside() -> AsyncIterator[None]:
        if not await asyncio.to_thread(fuse.is_mounted, target):
            await asyncio.to_thread(bed.mount)
        gate = await asyncio.to_thread(bed.hold, "readdir")
        task = asyncio.ensure_future(fail())
        await asyncio.to_thread(gate.wait)
        await asyncio.to_thread(fuse.abort, target)
        try:
            yield
            assert not task.done(), task
        finally:
            task.cancel()
            await asyncio.wait([task])
            await asyncio.to_thread(fuse.release, target)
            await asyncio.to_thread(gate.remove)

    return beside


async def _listing(bench: Bench, bed: FuseFs) -> Neighbour:
    """Return a neighbour that lists and reads a million entries all the time."""
    pool = await _fuse_pool(bench, bed, "many")

    @contextlib.asynccontextmanager
    async def beside() -> AsyncIterator[None]:
        before = (await asyncio.to_thread(bed.calls))["readdir"]
        task = asyncio.ensure_future(pool.refresh(timeout=3600))
        # the server tells nobody
        while (await asyncio.to_thread(bed.calls))["readdir"] <= before + BEGUN:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        try:
            yield
            assert not task.done(), "the million entries were read before the looks were over"
        finally:
            task.cancel()
            await asyncio.wait([task])

    return beside


async def _compared(pool: astore.Pool, beside: Neighbour, pairs: int) -> float:
    alone: list[float] = []
    meanwhile: list[float] = []
    for _ in range(pairs):
        alone += [await _seconds(pool.refresh) for _ in range(LOOKS)]
        async with beside():
            meanwhile += [await _seconds(pool.refresh) for _ in range(LOOKS)]
    say(f"    refresh alone {median(alone) * 1e3:.2f} ms, beside it {median(meanwhile) * 1e3:.2f} ms")
    return median(meanwhile) / median(alone)


async def _seconds(call: Callable[[], Awaitable[object]]) -> float:
    await asyncio.sleep(0.01)
    began = time.perf_counter()
    await call()
    return time.perf_counter() - began
