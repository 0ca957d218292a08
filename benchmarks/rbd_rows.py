"""Rows on rbd: refreshes beside libvirt and C, streams beside QEMU's own driver, and a neighbour whose OSD is stopped."""

from __future__ import annotations

import asyncio
import ctypes
import glob
import json
import os
import re
import shutil
import statistics
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import astore
from astore.model import VolumeDef
from astore_rbd import librbd
from astore_rbd.cluster import Cluster, settings_of
from astore_rbd.images import reading
from beds.ceph import CephBed, missing
from benchmarks.bench import Bench
from benchmarks.row import Row
from benchmarks.sides import first_refresh, say, unchanged_refresh

median = statistics.median

FIRST = {200: 20.0, 2_000: 40.0}
"""How many times faster than libvirt the first refresh must be, by the number of images."""

UNCHANGED = 100.0
NEAR_C = 1.5
MEBIBYTES = 1024
NEIGHBOUR = 1.2
LOOKS = 20


async def rbd_rows(bench: Bench) -> list[Row]:
    """Measure pools of a private cluster in memory."""
    if (why := missing()) is not None:
        bench.notes.append(f"rbd was not measured: {why}.")
        return []
    bed = CephBed(bench.folder / "ceph", room=12 << 30, keys=False)
    try:
        await asyncio.to_thread(bed.start)
        rows = []
        for count, factor in FIRST.items():
            rows += await _refreshes(bench, bed, count, factor)
        rows += await _streams(bench, bed)
        rows.append(await _neighbour(bench, bed))
        return rows
    finally:
        await asyncio.to_thread(bed.close)


def _xml(bed: CephBed, name: str, options: str = "") -> str:
    spaces = "xmlns:rbd='http://libvirt.org/schemas/storagepool/rbd/1.0'"
    source = f"<source><host name='{bed.host}' port='{bed.port}'/><name>{name}</name></source>"
    return f"<pool type='rbd' {spaces}><name>{name}</name>{source}{options}</pool>"


async def _refreshes(bench: Bench, bed: CephBed, count: int, factor: float) -> list[Row]:
    name = f"images{count}"
    await asyncio.to_thread(_fill, bed, name, count)
    text = _xml(bed, name)
    pool = await bench.manager.define(text)
    limit = _limit(bench)
    least: list[float] = []
    first: list[float] = []
    again: list[float] = []
    await first_refresh(pool)
    for _ in range(bench.pairs):
        if limit is not None:
            least.append(await asyncio.to_thread(_c_seconds, limit, bed, name))
        first.append(await first_refresh(pool))
        again.append(await unchanged_refresh(pool))
    libvirt, theirs = bench.libvirt(), None
    if libvirt is not None:
        await asyncio.to_thread(libvirt.start, text, name)
        theirs = median([await asyncio.to_thread(libvirt.refresh, name) for _ in range(2)])
        await asyncio.to_thread(libvirt.stop, name)
    await pool.stop()
    ours, unchanged = median(first), median(again)
    ratio = theirs / ours if theirs else float("nan")
    bar, met = f"≥ {factor:g} × libvirt", not theirs or ratio >= factor
    rows = [Row(f"rbd, {count:,} images, first", theirs, None, ours, bar, ratio, met)]
    if least:
        near = ours / median(least)
        rows.append(
            Row(
                f"rbd, {count:,} images, first (C)",
                None,
                median(least),
                ours,
                f"≤ {NEAR_C:g} × C",
                near,
                near <= NEAR_C,
            )
        )
    if count == max(FIRST):
        ratio = theirs / unchanged if theirs else float("nan")
        bar = f"≥ {UNCHANGED:g} × libvirt"
        met = not theirs or ratio >= UNCHANGED
        rows.append(Row(f"rbd, {count:,}, nothing changed", theirs, None, unchanged, bar, ratio, met))
    return rows


def _fill(bed: CephBed, name: str, count: int) -> None:
    """Make a pool with so many images."""
    bed.create_pool(name)
    began = time.perf_counter()
    definition = astore.PoolDef.from_xml(_xml(bed, name))
    cluster = Cluster(librbd.load(), settings_of(definition, None, 60.0))
    options = ctypes.c_void_p()
    cluster.lib.rbd_image_options_create(ctypes.byref(options))

    def create(number: int) -> None:
        librbd.checked(cluster.lib.rbd_create4(cluster.io, b"image%05d" % number, 10 << 30, options))

    with ThreadPoolExecutor(16) as threads:
        list(threads.map(create, range(count)))
    cluster.lib.rbd_image_options_destroy(options)
    cluster.close()
    say(f"   made {count} images in {time.perf_counter() - began:.1f} s")


def _limit(bench: Bench) -> Path | None:
    """Compile the C program beside this file; None if that is not possible."""
    program = bench.folder / "rbd_limit"
    if program.exists():
        return program
    source = Path(__file__).with_name("rbd_limit.c")
    cc = shutil.which("cc")
    argv = [cc or "cc", "-O2", str(source), "-o", str(program), "-l:librados.so.2", "-l:librbd.so.1"]
    if cc is None or subprocess.run(argv, check=False, capture_output=True).returncode:
        bench.notes.append("the C limit of rbd was not measured: no C compiler.")
        return None
    return program


def _c_seconds(program: Path, bed: CephBed, pool: str) -> float:
    """Return the seconds of the first reading through a new connection, as is a pool's first refresh; as many at once."""
    argv = [str(program), f"{bed.host}:{bed.port}", pool, "1", str(reading.IN_FLIGHT)]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    (seconds,) = re.findall(r"total=([0-9.]+)", done.stdout)
    return float(seconds)


async def _streams(bench: Bench, bed: CephBed) -> list[Row]:
    """Move a gibibyte of data up and down, in turn with ``qemu-img convert`` through QEMU's own driver."""
    name = "streams"
    await asyncio.to_thread(bed.create_pool, name)
    pool = await bench.manager.define(_xml(bed, name))
    await pool.start()
    if not glob.glob("/usr/lib/*/qemu/block-rbd.so"):
        bench.notes.append("streams of rbd were not measured: QEMU has no driver for it (Debian: qemu-block-extra).")
        return []
    size = MEBIBYTES << 20
    path = Path("/dev/shm") / f"astore-bench-{os.getpid()}.img"
    back = path.with_suffix(".back")
    for each in path, back:  # both have all their memory: the kernel's clearing of pages is not measured
        with each.open("wb") as file:
            for _ in range(MEBIBYTES // 16):
                file.write(os.urandom(16 << 20))
    try:
        disk = await pool.create_volume(VolumeDef("disk", capacity=size))
        qemu = f"json:{json.dumps(disk.qemu_blockdev())}"
        seconds: dict[str, list[float]] = {"up": [], "qemu up": [], "down": [], "qemu down": []}
        for _ in range(bench.pairs):
            seconds["qemu up"].append(await _qemu("-n", "-f", "raw", "-W", "-m", "16", str(path), qemu))
            began = time.perf_counter()
            await disk.upload(path)
            seconds["up"].append(time.perf_counter() - began)
            seconds["qemu down"].append(await _qemu("-n", "-O", "raw", "-W", "-m", "16", qemu, str(back)))
            began = time.perf_counter()
            with back.open("r+b") as file:
                async with disk.download() as blocks:
                    async for block in blocks:
                        file.write(block)
            seconds["down"].append(time.perf_counter() - began)
    finally:
        path.unlink()
        back.unlink()
    rows = []
    for way, word in (("up", "upload"), ("down", "download")):
        theirs, ours = median(seconds[f"qemu {way}"]), median(seconds[way])
        ratio = theirs / ours
        work = f"rbd, {word} of {MEBIBYTES} MiB (qemu-img)"
        rows.append(Row(work, None, theirs, ours, "≥ 0.9 × qemu-img", ratio, ratio >= 0.9))
    return rows


async def _qemu(*arguments: str) -> float:
    began = time.perf_counter()
    argv = ["qemu-img", "convert", *arguments]
    await asyncio.to_thread(subprocess.run, argv, check=True, capture_output=True)
    return time.perf_counter() - began


async def _neighbour(bench: Bench, bed: CephBed) -> Row:
    """Refresh a folder alone and beside a pool whose OSD is stopped, in turn."""
    folder = bench.folder / "beside-rbd"
    folder.mkdir()
    await asyncio.to_thread(bench.fill, folder, 1000)
    files = await bench.manager.define(
        f"<pool type='dir'><name>beside-rbd</name><target><path>{folder}</path></target></pool>"
    )
    await files.start()
    options = "<rbd:config_opts><rbd:option name='rados_osd_op_timeout' value='5'/></rbd:config_opts>"
    name = "images200"
    await bench.manager.pool(name).undefine()
    pool = await bench.manager.define(_xml(bed, name, options))
    await pool.start()
    alone: list[float] = []
    beside: list[float] = []
    took: list[float] = []
    errors: list[object] = []
    for _ in range(bench.pairs):
        await pool.refresh(full=True)  # the OSD answers
        alone += [await _refresh(files) for _ in range(LOOKS)]
        bed.pause("osd")
        try:
            began = time.perf_counter()
            hanging = asyncio.ensure_future(pool.refresh(full=True))
            beside += [await _refresh(files) for _ in range(LOOKS)]
            assert not hanging.done()
            errors += await asyncio.gather(hanging, return_exceptions=True)
            took.append(time.perf_counter() - began)
        finally:
            bed.resume("osd")
    names = ", ".join(sorted({type(error).__name__ for error in errors}))
    bench.notes.append(f"rbd, its OSD stopped, a deadline of 5 s: {names} after {max(took):.1f} s at most.")
    ratio = median(beside) / median(alone)
    told = all(isinstance(error, astore.AstoreError) for error in errors) and max(took) < 8
    return Row("another pool's refresh beside rbd whose OSD is stopped", None, None, ratio, f"≤ {NEIGHBOUR:g} × alone", ratio,
               ratio <= NEIGHBOUR and told, "×")  # fmt: skip


async def _refresh(pool: astore.Pool) -> float:
    began = time.perf_counter()
    await pool.refresh(full=True)
    return time.perf_counter() - began
