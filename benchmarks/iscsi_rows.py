"""Rows on iSCSI targets: a refresh beside libvirt's, bulk data beside qemu-img's, and a neighbour whose target is stopped."""

from __future__ import annotations

import asyncio
import shutil
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

import astore
from beds.iscsi import ADDRESS, IscsiBed, Target, missing
from benchmarks.bench import Bench
from benchmarks.row import Row
from benchmarks.sides import first_refresh

median = statistics.median
MIB = 1 << 20
LUNS = 200
BULK = 1024
LOOKS = 20
DEADLINE = 5.0


async def iscsi_rows(bench: Bench) -> list[Row]:
    """Return all of them. The LUNs that are moved are on tmpfs, so that the target is not what is measured."""
    if (why := missing()) is not None:
        bench.notes.append(f"iSCSI was not measured: {why}.")
        return []
    folder = Path(tempfile.mkdtemp(prefix="astore-bench-iscsi-", dir="/dev/shm"))
    beds = [IscsiBed(folder / name) for name in ("healthy", "stopped")]
    try:
        for bed in beds:
            await asyncio.to_thread(bed.start)
        healthy = await asyncio.to_thread(_target, beds[0], LUNS)
        rows = [await _refreshes(bench, healthy)]
        rows += await _streams(bench, beds[0], folder, min(bench.mebibytes, BULK))
        rows.append(await _beside_a_stopped_one(bench, healthy, beds[1]))
        return rows
    finally:
        for pool in bench.manager.pools(active=True):
            if pool.type == "iscsi-direct":
                await pool.stop(force=True)
        for bed in beds:
            await asyncio.to_thread(bed.close)
        shutil.rmtree(folder)


def _target(bed: IscsiBed, luns: int, size: int = 8 * MIB) -> Target:
    target = bed.new_target()
    for lun in range(1, luns + 1):
        target.add_lun(lun, size)
    return target


def _xml(name: str, target: Target) -> str:
    return (
        f"<pool type='iscsi-direct'><name>{name}</name><source><host name='{ADDRESS}' port='{target.bed.port}'/>"
        f"<device path='{target.iqn}'/><initiator><iqn name='iqn.2026-01.test.astore:bench'/></initiator></source></pool>"
    )


async def _refreshes(bench: Bench, target: Target) -> Row:
    xml = _xml("iscsi", target)
    pool = await bench.manager.define(xml)
    libvirt = bench.libvirt()
    theirs: list[float] = []
    ours: list[float] = []
    if libvirt is not None:
        libvirt.start(xml, pool.name)
    for _ in range(bench.pairs):
        if libvirt is not None:
            theirs.append(libvirt.refresh(pool.name))
        ours.append(await first_refresh(pool))
    if libvirt is not None:
        libvirt.stop(pool.name)
    other = median(theirs) if theirs else None
    ratio = other / median(ours) if other else float("nan")
    return Row(f"iscsi-direct, {LUNS} LUNs", other, None, median(ours), "≥ 5 × faster", ratio, not other or ratio >= 5)


async def _streams(bench: Bench, bed: IscsiBed, folder: Path, mebibytes: int) -> list[Row]:
    target = await asyncio.to_thread(_target, bed, 1, mebibytes * MIB)
    pool = await bench.manager.define(_xml("iscsi-bulk", target))
    await pool.start()
    volume = pool.volume("unit:0:0:1")
    source, copy = folder / "source", folder / "copy"
    await asyncio.to_thread(_random_file, source, mebibytes)
    url = f"iscsi://{ADDRESS}:{bed.port}/{target.iqn}/1"
    times: dict[str, list[float]] = {name: [] for name in ("up", "qemu-up", "down", "qemu-down")}
    for _ in range(bench.pairs):
        times["qemu-up"].append(await asyncio.to_thread(_convert, "-n", str(source), url))
        began = time.perf_counter()
        await volume.upload(source)
        times["up"].append(time.perf_counter() - began)
        times["qemu-down"].append(await asyncio.to_thread(_convert, url, str(copy)))
        began = time.perf_counter()
        await _download(volume, copy)
        times["down"].append(time.perf_counter() - began)
    bench.notes.append(
        "iscsi bulk data are moved between a file on tmpfs and a LUN on tmpfs, and compared with `qemu-img convert` "
        "through QEMU's driver iscsi, without its search for zeros."
    )
    await pool.stop()
    rows = []
    for kind, work in (("up", "upload"), ("down", "download")):
        other, mine = median(times[f"qemu-{kind}"]), median(times[kind])
        name = f"iscsi-direct, {work} of {mebibytes} MiB (qemu-img)"
        rows.append(Row(name, None, other, mine, "≥ 0.9 × qemu-img", other / mine, other / mine >= 0.9))
    return rows


async def _download(volume: astore.Volume, path: Path) -> None:
    with path.open("r+b") as file:
        async with volume.download() as chunks:
            async for chunk in chunks:
                file.write(chunk)


def _random_file(path: Path, mebibytes: int) -> None:
    with open("/dev/urandom", "rb") as random, path.open("wb") as file:
        for _ in range(mebibytes):
            file.write(random.read(MIB))


def _convert(*operands: str) -> float:
    began = time.perf_counter()
    subprocess.run(["qemu-img", "convert", "-S", "0", "-f", "raw", "-O", "raw", *operands], check=True)
    return time.perf_counter() - began


async def _beside_a_stopped_one(bench: Bench, healthy: Target, bed: IscsiBed) -> Row:
    """Refresh a pool alone, and while another pool's target is stopped, in turn."""
    pool = bench.manager.pool("iscsi")
    other = await bench.manager.define(_xml("iscsi-stopped", await asyncio.to_thread(_target, bed, 1)))
    await other.start()
    alone: list[float] = []
    beside: list[float] = []
    took: list[float] = []
    errors: list[object] = []
    for _ in range(bench.pairs):
        await other.refresh(full=True)  # the target answers
        alone.append(await _looks(pool))
        bed.freeze()
        try:
            began = time.perf_counter()
            hanging = asyncio.ensure_future(other.refresh(full=True, timeout=DEADLINE))
            beside.append(await _looks(pool))
            assert not hanging.done()
            errors += await asyncio.gather(hanging, return_exceptions=True)
            took.append(time.perf_counter() - began)
        finally:
            bed.thaw()
    names = ", ".join(sorted({type(error).__name__ for error in errors}))
    bench.notes.append(
        f"iscsi, its target stopped, a deadline of {DEADLINE:g} s: {names} after {max(took):.1f} s at most."
    )
    ratio = median(beside) / median(alone)
    told = all(isinstance(error, TimeoutError) for error in errors) and max(took) < DEADLINE + 1
    return Row("another iscsi pool's refresh beside a stopped target", None, None, ratio, "≤ 1.2 × alone", ratio,
               ratio <= 1.2 and told, "×")  # fmt: skip


async def _looks(pool: astore.Pool) -> float:
    took = []
    for _ in range(LOOKS):
        began = time.perf_counter()
        await pool.refresh()
        took.append(time.perf_counter() - began)
    return median(took)
