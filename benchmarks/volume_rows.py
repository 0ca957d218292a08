"""Rows on work on volumes: uploads, downloads, copies; each compared with dd, libvirt or the C limit."""

from __future__ import annotations

import asyncio
import os
import resource
import statistics
import subprocess
import time
from collections.abc import AsyncIterator
from pathlib import Path

import astore
from benchmarks.bench import Bench
from benchmarks.row import Row
from benchmarks.sides import compiled, say

median = statistics.median
MIB = 1 << 20
CHUNK = os.urandom(MIB)
FUSE_SIDE = "through FUSE"


async def volume_rows(bench: Bench) -> list[Row]:
    """Return all of them, with volumes of ``bench.mebibytes``."""
    bed = bench.gluster
    bed.create_volume("bulk")
    folder = bench.folder / "bulk"
    folder.mkdir()
    rows: list[Row] = []
    local = await bench.manager.define(
        f"<pool type='dir'><name>bulk-dir</name><target><path>{folder}</path></target></pool>"
    )
    remote = await bench.manager.define(
        f"<pool type='gluster'><name>bulk-gluster</name><source><host name='{bed.host}'/><dir path='/'/>"
        "<name>bulk</name></source></pool>"
    )
    await local.start()
    await remote.start()
    rows += await _dir_streams(bench, local, folder, bench.mebibytes)
    rows += await _gluster_streams(bench, remote, bench.mebibytes)
    rows += await _sparse(bench, remote)
    return rows


async def _chunks(mebibytes: int) -> AsyncIterator[bytes]:
    for _ in range(mebibytes):
        yield CHUNK


async def _upload(volume: astore.Volume, mebibytes: int) -> float:
    began = time.perf_counter()
    await volume.upload(_chunks(mebibytes))
    return time.perf_counter() - began


async def _download(volume: astore.Volume) -> float:
    began = time.perf_counter()
    async with volume.download() as chunks:
        async for _ in chunks:
            pass
    return time.perf_counter() - began


def _dd(*operands: str) -> float:
    began = time.perf_counter()
    subprocess.run(["dd", *operands], check=True, capture_output=True)
    return time.perf_counter() - began


def _rate(work: str, theirs: list[float], ours: list[float], bar: str, least: float, side: str) -> Row:
    other, mine = median(theirs), median(ours)
    ratio = other / mine
    limit = other if side == "limit" else None
    return Row(work, None if limit else other, limit, mine, bar, ratio, ratio >= least)


async def _dir_streams(bench: Bench, pool: astore.Pool, folder: Path, mebibytes: int) -> list[Row]:
    source = bench.folder / "source"
    with source.open("wb") as file:
        for _ in range(mebibytes):
            file.write(CHUNK)
    volume = await pool.create_volume(astore.VolumeDef("bulk", capacity=mebibytes * MIB))
    target = folder / "dd"
    up: list[float] = []
    down: list[float] = []
    dd_up: list[float] = []
    dd_down: list[float] = []
    await _upload(volume, mebibytes)
    await asyncio.to_thread(_dd, f"if={source}", f"of={target}", "bs=1M", "conv=fsync")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(bench.pairs):
        dd_up.append(await asyncio.to_thread(_dd, f"if={source}", f"of={target}", "bs=1M", "conv=notrunc,fsync"))
        up.append(await _upload(volume, mebibytes))
        dd_down.append(await asyncio.to_thread(_dd, f"if={volume.path}", "of=/dev/null", "bs=1M"))
        down.append(await _download(volume))
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    target.unlink()
    source.unlink()
    await volume.delete()
    bench.notes.append(
        "dir uploads are compared with `dd bs=1M conv=fsync` from a file, downloads with `dd` to /dev/null."
    )
    return [
        _rate(f"dir, upload of {mebibytes} MiB (dd)", dd_up, up, "≥ 0.8 × dd", 0.8, "dd"),
        _rate(f"dir, download of {mebibytes} MiB (dd)", dd_down, down, "≥ 0.8 × dd", 0.8, "dd"),
        Row("memory above idle while streaming", None, None, grown, "≤ 64 MiB", grown / 64, grown <= 64, "MiB"),
    ]


async def _gluster_streams(bench: Bench, pool: astore.Pool, mebibytes: int) -> list[Row]:
    bed, rows = bench.gluster, []
    program = compiled("gfapi_stream.c", bench.folder)
    if isinstance(program, str):
        bench.notes.append(f"the C limit of bulk data was not measured: {program}.")
        return []

    def limit(mode: str, file: str) -> float:
        argv = [str(program), bed.host, "bulk", mode, f"/{file}", str(mebibytes)]
        return float(subprocess.run(argv, check=True, capture_output=True, text=True).stdout)

    volume = await pool.create_volume(astore.VolumeDef("bulk", capacity=mebibytes * MIB))
    times: dict[str, list[float]] = {name: [] for name in ("c-up", "up", "c-down", "down", "dd", "cp", "copy")}
    mounted = await asyncio.to_thread(bed.mount, "bulk")
    for number in range(bench.pairs):
        times["c-up"].append(await asyncio.to_thread(limit, "write", "c"))
        times["up"].append(await _upload(volume, mebibytes))
        times["c-down"].append(await asyncio.to_thread(limit, "read", "c"))
        times["down"].append(await _download(volume))
        times["dd"].append(await asyncio.to_thread(_dd, f"if={mounted}/bulk", "of=/dev/null", "bs=1M"))
        times["cp"].append(
            await asyncio.to_thread(_dd, f"if={mounted}/bulk", f"of={mounted}/c2", "bs=1M", "conv=fsync")
        )
        began = time.perf_counter()
        copy = await pool.copy_volume(volume, astore.VolumeDef(f"copy{number}"))
        times["copy"].append(time.perf_counter() - began)
        await copy.delete()
        for name in ("c", "c2"):
            (mounted / name).unlink()
    await asyncio.to_thread(bed.unmount, "bulk")
    await volume.delete()
    say("   ", {name: [round(value, 2) for value in values] for name, values in times.items()})
    size = f"{mebibytes} MiB"
    rows.append(_rate(f"gluster, upload of {size}", times["c-up"], times["up"], "≥ 0.8 × the limit", 0.8, "limit"))
    rows.append(
        _rate(f"gluster, download of {size}", times["c-down"], times["down"], "≥ 0.8 × the limit", 0.8, "limit")
    )
    rows.append(
        _rate(f"gluster, download of {size} (dd {FUSE_SIDE})", times["dd"], times["down"], "≥ 2 × dd", 2.0, "dd")
    )
    work = f"gluster, copy of {size} within a pool (dd {FUSE_SIDE})"
    rows.append(_rate(work, times["cp"], times["copy"], "≥ 1 × dd", 1.0, "dd"))
    bench.notes.append(
        "a copy within a Gluster pool goes through the client: glfs_copy_file_range of GlusterFS 10.3 copies a file's first "
        "bytes whatever offset it is given."
    )
    return rows


async def _sparse(bench: Bench, pool: astore.Pool, gibibytes: int = 64) -> list[Row]:
    """Upload and download a volume of 64 GiB with 1 GiB of data in pieces, compared with 1 GiB without holes."""

    async def chunks() -> AsyncIterator[bytes | astore.Hole]:
        hole = (gibibytes * 1024 - 1024) // 64
        for _ in range(64):
            for _ in range(16):
                yield CHUNK
            yield astore.Hole(hole * MIB)

    dense = await pool.create_volume(astore.VolumeDef("dense", capacity=1 << 30))
    seconds = await _upload(dense, 1024) + await _download(dense)
    await dense.delete()
    volume = await pool.create_volume(astore.VolumeDef("sparse", capacity=gibibytes << 30))
    began = time.perf_counter()
    await volume.upload(chunks(), sparse=True)
    holes = 0
    async with volume.download(sparse=True) as given:
        async for chunk in given:
            holes += isinstance(chunk, astore.Hole)
    took = time.perf_counter() - began
    allocated = volume.info.allocation / (1 << 30)
    await volume.delete()
    bench.notes.append(
        f"the sparse volume of {gibibytes} GiB took {allocated:.2f} GiB on arrival, {holes} holes came back."
    )
    ratio = took / seconds
    met = ratio <= 2 and allocated < 1.1 and holes >= 60
    return [
        Row(
            f"gluster, {gibibytes} GiB sparse with 1 GiB, up and down",
            None,
            seconds,
            took,
            "≤ 2 × 1 GiB dense",
            ratio,
            met,
        )
    ]
