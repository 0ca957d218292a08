"""Rows on creating many volumes at once: compared with libvirt, with the C limit, and during another pool's refresh."""

from __future__ import annotations

import asyncio
import statistics
import subprocess
import time
from collections.abc import Awaitable, Callable

import astore
from benchmarks.bench import Bench
from benchmarks.row import Row
from benchmarks.sides import compiled, say

median = statistics.median
COUNT = 1000
AT_ONCE = 16
TURNS = 5


async def creating_rows(bench: Bench) -> list[Row]:
    """Create 1,000 raw volumes of 10 GiB, 16 at a time; the sides run in turn, each time in a new folder.

    The folders of libvirt and ``dir`` lie on a new file system, and nothing is deleted meanwhile.
    """
    bed = bench.gluster
    bed.create_volume("making")
    program = compiled("gfapi_create.c", bench.folder)
    if isinstance(program, str):
        bench.notes.append(f"the C limit of creating was not measured: {program}.")
    other = bench.folder / "other"
    other.mkdir()
    bench.fill(other, 1000)
    beside = await bench.manager.define(
        f"<pool type='dir'><name>beside</name><target><path>{other}</path></target></pool>"
    )
    await beside.start()
    root = await bench.manager.define(_gluster(bench, "making", "/"))
    await root.start()
    times: dict[str, list[float]] = {side: [] for side in ("libvirt", "dir", "C", "gluster")}
    slower: dict[str, list[float]] = {"dir": [], "gluster": []}
    for number in range(bench.pairs):
        libvirt = bench.libvirt()
        if libvirt is not None:
            folder = bench.apart() / f"lv-create{number}"
            folder.mkdir()
            xml = f"<pool type='dir'><name>lv-create</name><target><path>{folder}</path></target></pool>"
            libvirt.start(xml, "lv-create")
            times["libvirt"].append(await asyncio.to_thread(libvirt.create_volumes, "lv-create", COUNT))
            libvirt.stop("lv-create")
        if not isinstance(program, str):
            argv = [str(program), bed.host, "making", f"/c{number}", str(COUNT), str(AT_ONCE)]
            done = await asyncio.to_thread(subprocess.run, argv, check=True, capture_output=True, text=True)
            times["C"].append(float(done.stdout))
        for kind in ("dir", "gluster"):
            pool = await _pool(bench, root, kind, f"create-{kind}{number}")
            times[kind].append(await _create(pool, "n"))
            pool = await _pool(bench, root, kind, f"beside-{kind}{number}")
            slower[kind].append(await _refresh_beside(beside, pool))
    say("   ", {side: [round(value, 2) for value in values] for side, values in times.items()})
    rows = []
    for kind in ("dir", "gluster"):
        took = median(times[kind])
        theirs = median(times["libvirt"]) if times["libvirt"] else None
        ratio = theirs / took if theirs else float("nan")
        work = f"{kind}, {COUNT:,} raw volumes of 10 GiB created"
        rows.append(Row(work, theirs, None, took, "≥ 5 × libvirt on dir", ratio, not theirs or ratio >= 5))
    if times["C"]:
        limit, took = median(times["C"]), median(times["gluster"])
        work = f"gluster, {COUNT:,} raw volumes of 10 GiB created (C)"
        rows.append(Row(work, None, limit, took, "≥ 0.8 × the limit", limit / took, limit / took >= 0.8))
        if times["libvirt"]:
            bench.notes.append(
                "creating on Gluster cannot be 5 × libvirt on dir: the same calls from C, from 16 threads, are "
                f"{median(times['libvirt']) / limit:.2f} × libvirt on dir."
            )
    for kind in ("dir", "gluster"):
        ratio = median(slower[kind])
        work = f"another pool's refresh while volumes are created on {kind}"
        rows.append(Row(work, None, None, ratio, "≤ 1.2 × alone", ratio, ratio <= 1.2, "×"))
    return rows


def _gluster(bench: Bench, name: str, folder: str) -> str:
    source = f"<host name='{bench.gluster.host}'/><dir path='{folder}'/><name>making</name>"
    return f"<pool type='gluster'><name>{name}</name><source>{source}</source></pool>"


async def _pool(bench: Bench, root: astore.Pool, kind: str, name: str) -> astore.Pool:
    """Start a pool on a new folder."""
    if kind == "dir":
        folder = bench.apart() / name
        folder.mkdir()
        text = f"<pool type='dir'><name>{name}</name><target><path>{folder}</path></target></pool>"
    else:
        await root.create_volume(astore.VolumeDef(name, format="dir"))
        text = _gluster(bench, name, f"/{name}")
    pool = await bench.manager.define(text)
    await pool.start()
    return pool


async def _create(pool: astore.Pool, prefix: str, count: int = COUNT) -> float:
    turn = asyncio.Semaphore(AT_ONCE)

    async def one(number: int) -> None:
        async with turn:
            await pool.create_volume(astore.VolumeDef(f"{prefix}{number}.raw", capacity=10 << 30))

    return await _seconds(lambda: asyncio.gather(*(one(number) for number in range(count))))


async def _refresh_beside(beside: astore.Pool, pool: astore.Pool) -> float:
    """Return how many times as long another pool's refresh takes while volumes are created: medians, in turn."""
    alone: list[float] = []
    meanwhile: list[float] = []
    for turn in range(TURNS):
        for _ in range(10):
            alone.append(await _seconds(beside.refresh))
            await asyncio.sleep(0.01)
        making = asyncio.ensure_future(_create(pool, f"n{turn}-", COUNT // TURNS))
        while not making.done():
            meanwhile.append(await _seconds(beside.refresh))
            await asyncio.sleep(0.01)
        await making
    say(f"    refresh alone {median(alone) * 1e3:.2f} ms, meanwhile {median(meanwhile) * 1e3:.2f} ms")
    return median(meanwhile) / median(alone)


async def _seconds(call: Callable[[], Awaitable[object]]) -> float:
    began = time.perf_counter()
    await call()
    return time.perf_counter() - began
