"""The rows of the table, each measured side by side."""

from __future__ import annotations

import asyncio
import gc
import statistics
import time
import tracemalloc
from collections.abc import Awaitable, Callable

import astore
from beds.images import make_images
from benchmarks.bench import Bench
from benchmarks.creating_rows import creating_rows
from benchmarks.fleet_rows import fleet_rows
from benchmarks.fresh_rows import fresh_rows
from benchmarks.iscsi_rows import iscsi_rows
from benchmarks.late_loop import LateLoop
from benchmarks.neighbour_rows import neighbour_rows
from benchmarks.rbd_rows import rbd_rows
from benchmarks.row import Row
from benchmarks.scale_rows import scale_rows
from benchmarks.sides import first_refresh, say, settle, unchanged_refresh
from benchmarks.startup_rows import startup_rows
from benchmarks.volume_rows import volume_rows

median = statistics.median


async def dir_rows(bench: Bench, count: int = 10_000) -> list[Row]:
    folder = bench.folder / "dir"
    folder.mkdir()
    bench.fill(folder, count)
    settle()
    xml = f"<pool type='dir'><name>dir</name><target><path>{folder}</path></target></pool>"
    pool = await bench.manager.define(xml)
    return await _against_libvirt(
        bench, f"dir, {count:,} qcow2", pool, xml, ("faster first", 1.0), ("≥ 4 × unchanged", 4.0)
    )


async def netfs_rows(bench: Bench, count: int = 1_000) -> list[Row]:
    bed = bench.gluster
    bed.create_volume("fuse")
    bench.fill(bed.mount("fuse"), count)
    bed.unmount("fuse")
    settle()

    def xml(name: str) -> str:
        target = bench.folder / name
        target.mkdir(exist_ok=True)
        return (
            f"<pool type='netfs'><name>netfs</name><source><host name='{bed.host}'/><dir path='fuse'/>"
            f"<format type='glusterfs'/></source><target><path>{target}</path></target></pool>"
        )

    # a mount for each side: the second side would find a shared one warm
    pool = await bench.manager.define(xml("fuse-astore"))
    return await _against_libvirt(
        bench,
        f"netfs over FUSE, {count:,}",
        pool,
        xml("fuse-libvirt"),
        ("≥ 3 × faster first", 3.0),
        ("≥ 10 × unchanged", 10.0),
    )


async def _against_libvirt(
    bench: Bench, work: str, pool: astore.Pool, xml: str, first_bar: tuple[str, float], again_bar: tuple[str, float]
) -> list[Row]:
    libvirt = bench.libvirt()
    if libvirt is not None:
        libvirt.start(xml, pool.name)
    theirs: list[float] = []
    first: list[float] = []
    again: list[float] = []
    for _ in range(bench.pairs):
        if libvirt is not None:
            theirs.append(libvirt.refresh(pool.name))
        first.append(await first_refresh(pool))
        again.append(await unchanged_refresh(pool))
    if libvirt is not None:
        libvirt.stop(pool.name)
    other = median(theirs) if theirs else None
    return [
        _faster(f"{work}, first", other, median(first), *first_bar),
        _faster(f"{work}, nothing changed", other, median(again), *again_bar),
    ]


def _faster(work: str, libvirt: float | None, ours: float, bar: str, factor: float) -> Row:
    ratio = (libvirt / ours) if libvirt else float("nan")
    return Row(work, libvirt, None, ours, bar, ratio, not libvirt or ratio >= factor)


async def gluster_rows(bench: Bench) -> list[Row]:
    rows: list[Row] = []
    bed = bench.gluster
    for count in (1_000, 10_000):
        name = f"v{count}"
        bed.create_volume(name)
        bench.fill(bed.mount(name), count)
        bed.unmount(name)
        settle()
        xml = _gluster_xml(name, bed.host, name)
        pool = await bench.manager.define(xml)
        limit, libvirt = bench.limit(), bench.libvirt()
        least: list[float] = []
        listing: list[float] = []
        first: list[float] = []
        again: list[float] = []
        await first_refresh(pool)  # bricks warm
        for _ in range(bench.pairs):
            if limit is not None:
                least.append(limit.run(bed.host, name, "/", "handle", rounds=3))
                listing.append(limit.run(bed.host, name, "/", "list", rounds=3))
            first.append(await first_refresh(pool))
            again.append(await unchanged_refresh(pool))
        theirs = None
        if libvirt is not None:
            libvirt.start(xml, name)
            theirs = median([libvirt.refresh(name) for _ in range(2)])
            libvirt.stop(name)
        rows.append(_near(f"gluster, {count:,} qcow2, first", theirs, least, first, 1.5))
        if count == 1_000:
            rows.append(_near(f"gluster, {count:,}, nothing changed", theirs, listing, again, 2.0))
    return rows


async def many_rows(bench: Bench, volumes: int = 10, count: int = 100) -> list[Row]:
    bed = bench.gluster
    documents = {}
    for index in range(volumes):
        name = f"many{index}"
        bed.create_volume(name)
        make_images(bed.mount(name), count, backing_every=10)
        bed.unmount(name)
        documents[name] = _gluster_xml(name, bed.host, name)
    settle()
    pools = [await bench.manager.define(xml) for xml in documents.values()]
    first: list[float] = []
    again: list[float] = []
    for _ in range(bench.pairs):
        for pool in pools:
            if pool.active:
                await pool.stop()
            await pool.start(refresh=False)
        for into in (first, again):
            began = time.perf_counter()
            report = await bench.manager.refresh_all()
            into.append(time.perf_counter() - began)
            assert not report.failed
    libvirt, theirs = bench.libvirt(), None
    if libvirt is not None:
        for name, xml in documents.items():
            libvirt.start(xml, name)
        theirs = libvirt.refresh_all(list(documents))
        apart = libvirt.refresh_all(list(documents), "many")
        each = libvirt.refresh_each(list(documents))
        if theirs is None or apart is None:
            bench.notes.append("libvirt was asked to refresh many pools by as many virsh: there is no python3-libvirt.")
            theirs = each
        else:
            bench.notes.append(
                f"libvirt's {volumes} pools are refreshed by one program, which has a thread for each and one connection; "
                f"with {volumes} connections it takes {apart:.1f} s, and {volumes} virsh at once take {each:.1f} s."
            )
        for name in documents:
            libvirt.stop(name)
    work = f"{volumes} gluster volumes × {count}, all at once"
    return [
        _faster(f"{work}, first", theirs, median(first), "≥ 60 × faster", 60),
        _faster(f"{work}, nothing changed", theirs, median(again), "≥ 200 × faster", 200),
    ]


async def loop_rows(bench: Bench, pools: int = 50, count: int = 200) -> list[Row]:
    bed = bench.gluster
    bed.create_volume("loop")
    mounted = bed.mount("loop")
    documents = []
    for index in range(pools):
        folder = bench.folder / f"loop{index}"
        folder.mkdir()
        make_images(folder, count)
        documents.append(f"<pool type='dir'><name>d{index}</name><target><path>{folder}</path></target></pool>")
        if index < pools // 2:
            (mounted / f"p{index}").mkdir()
            make_images(mounted / f"p{index}", count)
            documents.append(_gluster_xml(f"g{index}", bed.host, "loop", f"/p{index}"))
    bed.unmount("loop")
    settle()
    rows = []
    for kind, chosen in (
        (f"{pools} dir pools × {count}", [text for text in documents if "'dir'" in text]),
        (
            f"{pools // 2} gluster and {pools // 2} dir pools × {count}",
            [text for text in documents if "'gluster'" in text] + [t for t in documents if "'dir'" in t][: pools // 2],
        ),
    ):
        made = [await bench.manager.define(text) for text in chosen]
        for pool in made:
            await pool.start(refresh=False)
        gc.collect()
        gc.freeze()  # this program and what it imports, 50,000 objects, whose collection takes up to 75 ms, is not astore
        async with LateLoop() as probe:
            delays = probe.delays
            await asyncio.sleep(0.5)
            idle = len(delays)
            for _ in range(3):
                await bench.manager.refresh_all(full=True)
                for _ in range(3):
                    await bench.manager.refresh_all()
        gc.unfreeze()
        busy = sorted(delays[idle:])
        p99, worst = busy[int(len(busy) * 0.99)], busy[-1]
        quiet = sorted(delays[:idle])
        starved = 0.0 if probe.latest is None else probe.latest.starved
        bench.notes.append(
            f"event loop while {kind} refresh: median {median(busy) * 1e3:.2f} ms, p99 {p99 * 1e3:.2f} ms, worst "
            f"{worst * 1e3:.2f} ms ({starved * 1e3:.2f} of them waiting for a processor) over {len(busy)} samples; "
            f"idle: p99 {quiet[int(len(quiet) * 0.99)] * 1e3:.2f} ms."
        )
        if seen := probe.latest:
            say("   the loop, when it was latest:", seen.stacks)
        rows.append(Row(f"event loop delay, {kind}, p99", None, None, p99, "< 10 ms", p99 / 0.010, p99 < 0.010))
        rows.append(
            Row(f"event loop delay, {kind}, worst", None, None, worst, "≤ 30 ms", worst / 0.030, worst <= 0.030)
        )
        for pool in made:
            await pool.stop()
    return rows


async def memory_rows(bench: Bench, count: int = 10_000) -> list[Row]:
    folder = bench.folder / "memory"
    folder.mkdir()
    bench.fill(folder, count)
    xml = f"<pool type='dir'><name>memory</name><target><path>{folder}</path></target></pool>"
    pool = await bench.manager.define(xml)
    await pool.start(refresh=False)
    gc.collect()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    await pool.refresh()
    gc.collect()
    each = (tracemalloc.get_traced_memory()[0] - before) / count
    tracemalloc.stop()
    bench.notes.append(f"memory for each volume kept: {each:.0f} bytes (bar: 1,024), index and events included.")
    kibibytes = each / 1024
    return [Row("memory for each volume", None, None, kibibytes, "≤ 1 KiB", kibibytes, each <= 1024, "KiB")]


def _gluster_xml(name: str, host: str, volume: str, directory: str = "/") -> str:
    return (
        f"<pool type='gluster'><name>{name}</name><source><host name='{host}'/><dir path='{directory}'/>"
        f"<name>{volume}</name></source></pool>"
    )


def _near(work: str, libvirt: float | None, limit: list[float], ours: list[float], factor: float) -> Row:
    least = median(limit) if limit else None
    seconds = median(ours)
    ratio = seconds / least if least else float("nan")
    return Row(work, libvirt, least, seconds, f"≤ {factor:g} × the limit", ratio, not least or ratio <= factor)


ROWS: dict[str, Callable[[Bench], Awaitable[list[Row]]]] = {
    "dir": dir_rows,
    "gluster": gluster_rows,
    "many": many_rows,
    "netfs": netfs_rows,
    "loop": loop_rows,
    "memory": memory_rows,
    "volumes": volume_rows,
    "creating": creating_rows,
    "neighbours": neighbour_rows,
    "scale": scale_rows,
    "startup": startup_rows,
    "fresh": fresh_rows,
    "iscsi": iscsi_rows,
    "rbd": rbd_rows,
    "fleet": fleet_rows,
}
"""The rows by the names that ``--rows`` accepts."""
