"""Rows on a Manager that is watched: how soon others' changes are events, and what watching costs."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import statistics
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import astore
from astore.event_bus import Subscription
from beds import uml
from benchmarks.bench import Bench
from benchmarks.late_loop import LateLoop, longest_callback
from benchmarks.row import Row
from benchmarks.sides import say, settle

VOLUMES = 1_000
MANY = 10_000
POOLS = 1_000
ROUNDS = 50
IDLE_SECONDS = 20.0
BUSY_SECONDS = 5.0
RATE = 10_000

OTHER = """
import os, sys, time
for line in sys.stdin:
    what, *names = line.split()
    if what in ("make", "grow"):
        with open(names[0], "ab") as file:
            file.write(b"x" * 512)
    elif what == "rename":
        os.rename(*names)
    else:
        os.unlink(names[0])
    print(time.monotonic(), flush=True)
"""
"""Makes the changes that it reads, and tells when each was done."""

WRITER = """
import sys, time
end = time.monotonic() + float(sys.argv[2])
with open(sys.argv[1], "ab", buffering=0) as file:
    while time.monotonic() < end:
        file.write(b"x" * 100)
        print(time.monotonic(), file.tell())
        time.sleep(0.002)
"""
"""Writes to a file all the time, and tells when it was of which size."""

NEIGHBOUR = """
import asyncio, sys, time
import astore

async def main():
    async with astore.Manager(sys.argv[1]) as manager:
        pool = None
        for _ in range(int(sys.argv[3])):
            for what in ("define", "start", "stop", "undefine"):
                await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)
                if what == "define":
                    pool = await manager.define(astore.PoolDef("dir", "shared", target=astore.Target(sys.argv[2])))
                else:
                    await getattr(pool, what)()
                print(time.monotonic(), flush=True)

asyncio.run(main())
"""
"""Another process on the state folder: it defines, starts, stops and undefines a pool, and tells when each was done."""

STORM = """
import os, random, sys, time
rate, seconds = int(sys.argv[1]), float(sys.argv[2])
lot, began, done = random.Random(1), time.monotonic(), 0
while done < rate * seconds:
    for _ in range(rate // 100):
        name = f"storm{lot.randrange(500)}"
        if (what := lot.randrange(4)) == 0 and os.path.exists(name):
            os.unlink(name)
        elif what == 1 and os.path.exists(name):
            os.rename(name, f"storm{lot.randrange(500)}")
        else:
            with open(name, "ab") as file:
                file.write(b"x" * lot.randrange(1, 1000))
        done += 1
    time.sleep(max(0.0, began + done / rate - time.monotonic()))
print(done, time.monotonic() - began)
"""
"""Makes many changes in a second, and tells how many in how many seconds."""


async def fresh_rows(bench: Bench) -> list[Row]:
    """Watch dir pools that other processes change."""
    rows = await _event_rows(bench)
    rows.append(await _gluster_row(bench))
    if why := uml.missing():
        bench.notes.append(f"no NFS: {why}")
    else:
        rows.append(await asyncio.to_thread(_nfs_row, bench))
    rows.append(await _neighbour_row(bench))
    rows += await _storm_rows(bench)
    rows += await _refresh_rows(bench)
    return rows + await _idle_rows(bench)


# ----------------------------------------------------------------------------------------------------- how soon


async def _event_rows(bench: Bench) -> list[Row]:
    """Measure from the end of another process's change to its event, for each kind of change, and for steady writing."""
    rows = []
    pool, folder = await _pool(bench, "told", VOLUMES)
    async with bench.manager.watch():
        await _pushed(pool)
        late = await delays(bench.manager, pool, folder, ROUNDS)
        writing = await _delays_while_written(bench.manager, pool, folder)
    rows.append(_told_row(bench, "event of a file made, grown, renamed, removed by another process, p99", late, 0.1))
    rows.append(_at_most("event of a file that is written to all the time, p99", _p99(writing), 1.0))
    return rows


async def _gluster_row(bench: Bench) -> Row:
    """Measure from the end of a FUSE client's change to its event in a gluster pool whose bricks tell; one a second."""
    bed, name = bench.gluster, "told"
    bed.create_volume(name, options={"features.cache-invalidation": "on"})
    folder = bed.mount(name)
    bench.fill(folder, 100)
    source = f"<source><host name='{bed.host}'/><dir path='/'/><name>{name}</name></source>"
    pool = await bench.manager.define(f"<pool type='gluster'><name>gluster-{name}</name>{source}</pool>")
    await pool.start()
    async with bench.manager.watch():
        await _pushed(pool)
        late = await delays(bench.manager, pool, folder, ROUNDS // 3, pause=1.0)
    return _told_row(bench, "event of a file that another client of a gluster volume changes, p99", late, 0.5)


def _nfs_row(bench: Bench) -> Row:
    """Measure from the end of a change on an NFS server to its event in a netfs pool, in a guest; one a second."""
    program = Path(__file__).with_name("nfs_guest.py")
    folder = bench.folder / "guest"
    folder.mkdir()
    said = uml.run_in_guest([sys.executable, str(program)], folder, timeout=600)
    work = "event of a file that is changed on an NFS server, polled each second, attributes cached for 1 s, p99"
    return _told_row(bench, work, json.loads(said.splitlines()[-1]), 2.0)


def _told_row(bench: Bench, work: str, late: dict[str, list[float]], bar: float) -> Row:
    each = ", ".join(f"{what} {_p99(found) * 1e3:.0f}" for what, found in late.items())
    bench.notes.append(f"{work} of {len(late['make'])} of each kind in ms: {each}.")
    return _at_most(work, _p99([one for found in late.values() for one in found]), bar)


async def _neighbour_row(bench: Bench) -> Row:
    """Measure from the end of another process's work on the same state folder to its event."""
    folder, late = bench.folder / "shared", []
    folder.mkdir()
    kinds = (astore.PoolDefined, astore.PoolStarted, astore.PoolStopped, astore.PoolUndefined)
    async with (
        astore.Manager(bench.folder / "state-shared") as manager,
        manager.watch(),
        _process(NEIGHBOUR, folder, str(bench.folder / "state-shared"), str(folder), str(ROUNDS)) as other,
        manager.events(pools={"shared"}) as events,
    ):
        for _ in range(ROUNDS):
            for kind in kinds:
                done = await _ask(other, "next")
                while not isinstance(await anext(events), kind):
                    pass
                late.append(max(time.monotonic() - done, 0.0))
    return _at_most("event of a pool that another process defines, starts, stops or undefines, p99", _p99(late), 1.0)


async def delays(
    manager: astore.Manager, pool: astore.Pool, folder: Path, rounds: int, *, pause: float = 0.0
) -> dict[str, list[float]]:
    """Have a file made, grown, renamed and removed by another process, and return how late each event was.

    :param pause: the least seconds between an event and the next change; up to 0.1 s is added at random.
    """
    late: dict[str, list[float]] = {"make": [], "grow": [], "rename": [], "remove": []}
    async with (
        _process(OTHER, folder) as other,
        manager.events(pools={pool.name}, kinds={astore.VolumeEvent}) as events,
    ):
        for turn in range(rounds):
            name, renamed = f"other{turn}", f"renamed{turn}"
            for what, names, kind, told in (
                ("make", name, astore.VolumeAdded, name),
                ("grow", name, astore.VolumeChanged, name),
                ("rename", f"{name} {renamed}", astore.VolumeAdded, renamed),
                ("remove", renamed, astore.VolumeRemoved, renamed),
            ):
                done = await _ask(other, f"{what} {names}")
                async for event in events:
                    if isinstance(event, kind) and isinstance(event, astore.VolumeEvent) and event.name == told:
                        break
                late[what].append(max(time.monotonic() - done, 0.0))
                await asyncio.sleep(random.uniform(pause, pause + 0.1))
    return late


async def _delays_while_written(manager: astore.Manager, pool: astore.Pool, folder: Path) -> list[float]:
    """Return, for each write to a file that is written to all the time, how late the event was that shows it."""
    shown: list[tuple[float, int]] = []  # when, and which size

    async def read(events: Subscription) -> None:
        async for event in events:
            if isinstance(event, astore.VolumeAdded | astore.VolumeChanged) and event.name == "busy":
                shown.append((time.monotonic(), event.volume.physical))

    async with manager.events(pools={pool.name}) as events:
        reading = asyncio.create_task(read(events))
        async with _process(WRITER, folder, "busy", str(BUSY_SECONDS)) as writer:
            text, _ = await writer.communicate()
        written = [(float(when), int(size)) for when, size in (line.split() for line in text.decode().splitlines())]
        while not shown or shown[-1][1] < written[-1][1]:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        reading.cancel()
        await asyncio.wait([reading])
    late, seen = [], iter(shown)
    at, size = next(seen)
    for when, length in written:
        while size < length:
            at, size = next(seen)
        late.append(max(at - when, 0.0))
    return late


# ----------------------------------------------------------------------------------------------- much at a time


async def _storm_rows(bench: Bench) -> list[Row]:
    """Have 10,000 changes a second made in one pool: the loop, the events of another pool, and what is seen in the end."""
    pool, folder = await _pool(bench, "storm", 100)
    quiet, quiet_folder = await _pool(bench, "beside", 100)
    async with bench.manager.watch():
        await _pushed(pool, quiet)
        await delays(bench.manager, quiet, quiet_folder, 3)
        storming = _process(STORM, folder, str(RATE), str(BUSY_SECONDS))
        async with LateLoop() as probe, storming as storm:
            ending = asyncio.create_task(storm.communicate())
            beside: list[float] = []
            with longest_callback() as longest:
                while not ending.done():
                    found = await delays(bench.manager, quiet, quiet_folder, 1)
                    beside += [one for delays in found.values() for one in delays]
            done, seconds = ending.result()[0].split()
            during = sorted(probe.delays)
        exact = await _becomes_true(bench, pool, folder)
    if seen := probe.latest:
        say("   the loop, when it was latest:", seen.stacks)
    rate, late = int(done) / float(seconds), float("inf") if exact is None else exact
    p99 = _p99(during)
    bench.notes.append(
        f"{int(done):,} changes in {float(seconds):.1f} s ({rate:,.0f} a second) in one watched pool: event loop median "
        f"{statistics.median(during) * 1e3:.2f} ms, p99 {p99 * 1e3:.2f} ms, worst {during[-1] * 1e3:.2f} ms over {len(during)} "
        f"samples, longest work on it {longest[0] * 1e3:.2f} ms of processor time; {len(beside)} events of another "
        f"pool: median {statistics.median(beside) * 1e3:.0f} ms; the end state was "
        f"{'exact' if exact is not None else 'WRONG'} {exact or 0.0:.2f} s after the last change."
    )
    work = f"{RATE:,} changes a second in one pool"
    return [
        Row(f"event loop delay, {work}, p99", None, None, p99, "< 10 ms", p99 / 0.010, p99 < 0.010),
        _at_most(f"event of another pool beside {work}, p99", _p99(beside), 0.1),
        Row(f"view is exact after {work}", None, None, late, "≤ 10 s", late / 10, exact is not None),
    ]


async def _becomes_true(bench: Bench, pool: astore.Pool, folder: Path) -> float | None:
    """Return the seconds after which the view is what a full refresh by another Manager finds; None: it is not."""
    began = time.monotonic()
    async with astore.Manager(bench.folder / "state-oracle") as other:
        oracle = await other.create(astore.PoolDef("dir", "oracle", target=astore.Target(str(folder))))
        true = oracle.snapshot.by_name
        while time.monotonic() - began < 10:
            mine = pool.snapshot.by_name
            if mine.keys() == true.keys() and all(mine[name].same_as(true[name]) for name in true):
                return time.monotonic() - began
            await asyncio.sleep(0.01)
    return None


# ------------------------------------------------------------------------------------------------ what it costs


async def _refresh_rows(bench: Bench) -> list[Row]:
    """Refresh a pool of 10,000 in which nothing has happened; and see that what has happened is found all the same."""
    pool, folder = await _pool(bench, "clean", MANY)
    libvirt, theirs = bench.libvirt(), None
    if libvirt is not None:
        libvirt.start(_definition("clean", folder), "clean")
        theirs = statistics.median([libvirt.refresh("clean") for _ in range(bench.pairs)])
        libvirt.stop("clean")
    unwatched = [await _refresh_seconds(pool) for _ in range(bench.pairs)]
    async with bench.manager.watch():
        await _pushed(pool)
        await pool.refresh()
        clean = [await _refresh_seconds(pool) for _ in range(ROUNDS)]
        async with _process(OTHER, folder) as other:
            for turn in range(10):
                await _ask(other, f"make new{turn}")
                await pool.refresh()
                assert f"new{turn}" in pool.snapshot.by_name
        full = await pool.refresh(full=True)
        assert len(pool.volumes) == MANY + 10
        late = await delays(bench.manager, pool, folder, 10)
    ours = statistics.median(clean)
    p99 = _p99([one for found in late.values() for one in found])
    bench.notes.append(
        f"refresh() of a dir pool of {MANY:,}: watched and clean {ours * 1e3:.2f} ms, not watched "
        f"{statistics.median(unwatched) * 1e3:.0f} ms, full {full.seconds * 1e3:.0f} ms. Events of changes in it: p99 "
        f"{p99 * 1e3:.0f} ms, because a pool is refreshed for a tenth of the time at most."
    )
    return [
        Row(f"dir, {MANY:,}, watched and clean: refresh()", theirs, None, ours, "≤ 1 ms", ours / 1e-3, ours <= 1e-3)
    ]


async def _idle_rows(bench: Bench) -> list[Row]:
    """Watch 1,000 pools in which nothing happens, in a process that does nothing else."""
    folder = bench.folder / "idle"
    folder.mkdir()
    argv = [sys.executable, "-m", "benchmarks.idle_pools", str(folder), str(POOLS), str(IDLE_SECONDS)]
    process = await asyncio.create_subprocess_exec(*argv, stdout=PIPE)
    text, _ = await process.communicate()
    took, before, during, share = json.loads(text)
    more = max(during - before, 0)
    bench.notes.append(f"{POOLS:,} dir pools: all watched {took:.1f} s after the watch began; {before} threads before.")
    work = f"{POOLS:,} dir pools watched, nothing happens"
    return [
        Row(f"processor share, {work}", None, None, share, "≤ 0.2 %", share / 0.2, share <= 0.2, "%"),
        Row(f"threads more, {work}", None, None, more, "0", more, not more, ""),
    ]


# -------------------------------------------------------------------------------------------------- what all share


async def _pool(bench: Bench, name: str, volumes: int) -> tuple[astore.Pool, Path]:
    folder = bench.folder / name
    folder.mkdir()
    bench.fill(folder, volumes)
    settle()
    pool = await bench.manager.define(_definition(name, folder))
    await pool.start()
    return pool, folder


def _definition(name: str, folder: Path) -> str:
    return f"<pool type='dir'><name>{name}</name><target><path>{folder}</path></target></pool>"


async def _pushed(*pools: astore.Pool) -> None:
    """Wait until the kernel tells of these pools."""
    for pool in pools:
        while pool.info.freshness is None or not pool.info.freshness.pushed:  # noqa: ASYNC110  no event tells of it
            await asyncio.sleep(0.01)


async def _refresh_seconds(pool: astore.Pool) -> float:
    began = time.perf_counter()
    await pool.refresh()
    return time.perf_counter() - began


@contextlib.asynccontextmanager
async def _process(program: str, folder: Path, *arguments: str) -> AsyncIterator[Process]:
    """Run a Python program in a folder; end it afterwards."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, *arguments, cwd=folder, stdin=PIPE, stdout=PIPE
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            assert process.stdin is not None
            process.stdin.close()
        await process.wait()


async def _ask(process: Process, line: str) -> float:
    """Have the process make a change; return when it was done."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(f"{line}\n".encode())
    return float(await process.stdout.readline())


def _p99(values: Sequence[float]) -> float:
    ordered = sorted(values)
    return ordered[min(int(len(ordered) * 0.99), len(ordered) - 1)]


def _at_most(work: str, seconds: float, bar: float) -> Row:
    return Row(work, None, None, seconds, f"≤ {bar:g} s", seconds / bar, seconds <= bar)
