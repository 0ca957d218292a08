"""Rows on a fleet: a cluster of three NATS servers and three hosts as processes, on one machine."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import time
import uuid
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import astore
from astore.lanes import Lanes
from astore.model import PoolDef, Snapshot, Target, VolumeInfo, VolumeType
from astore.store.contract import LastSeen, Run
from astore_fleet import Fleet, NatsStore
from beds.nats import NatsBed
from benchmarks.bench import Bench
from benchmarks.fleet_host import definition, registry
from benchmarks.row import Row
from benchmarks.sides import say

HOSTS = ("one", "two", "three")
POOLS = 300
VOLUMES = 20
ROUNDS = 100
BIG_POOLS, BIG_VOLUMES = 100, 10_000

READ = """
import asyncio, gc, os, sys, time
from astore_fleet import Fleet
def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
async def main(url, name):
    before, began = resident(), time.perf_counter()
    async with await Fleet.connect(url, name) as fleet:
        found = await fleet.snapshots()
        seconds = time.perf_counter() - began
        gc.collect()
        volumes = sum(len(one) for one in found.values())
        print(volumes, seconds, resident() - before)
asyncio.run(main(*sys.argv[1:]))
"""


async def fleet_rows(bench: Bench) -> list[Row]:
    """Measure a fleet."""
    rows: list[Row] = []
    with NatsBed(bench.folder / "nats", 3) as bed:
        rows += await _definitions(bench, bed)
        rows += await _events(bench, bed)
        for type, work, bar in (
            ("shared", f"{POOLS} dir pools of {VOLUMES}", 1.5),
            ("slow", f"{POOLS} pools of 50 ms", 0.5),
        ):
            rows += await _refreshes(bench, bed, type, work, bar)
        rows += await _reading(bench, bed)
    return rows


async def _definitions(bench: Bench, bed: NatsBed) -> list[Row]:
    """Define pools on one host, and see when another one tells of them."""
    delays = []
    async with (
        astore.Manager(store=await NatsStore.connect(bed.url, "definitions", host="one")) as one,
        astore.Manager(store=await NatsStore.connect(bed.url, "definitions", host="two")) as two,
        two.watch(),
        two.events(kinds=[astore.PoolDefined]) as events,
    ):
        for number in range(ROUNDS):
            await one.define(PoolDef("dir", f"p{number}", target=Target(f"/none/{number}")))
            began = time.perf_counter()
            await anext(events)
            delays.append(time.perf_counter() - began)
    return [_at_most(f"a definition is an event on another host, p99 of {ROUNDS}", _p99(delays), 1.0)]


@contextlib.asynccontextmanager
async def _hosts(bed: NatsBed, fleet: str, hosts: Sequence[str]) -> AsyncIterator[list[Process]]:
    """Start hosts as processes; kill them after the block."""
    running: list[Process] = []
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    try:
        for host in hosts:
            argv = [sys.executable, "-m", "benchmarks.fleet_host", bed.url, fleet, host]
            running.append(await asyncio.create_subprocess_exec(*argv, stdout=PIPE, env=environment))
        for process in running:
            assert process.stdout is not None
            assert await process.stdout.readline() == b"ready\n"
        yield running
    finally:
        for process in running:
            if process.returncode is None:
                process.kill()
            await process.wait()


async def _events(bench: Bench, bed: NatsBed) -> list[Row]:
    """Make files in a pool of one host, and read the events; then kill that host."""
    folder = bench.folder / "fleet-events"
    folder.mkdir()
    delays = []
    async with (
        await Fleet.connect(bed.url, "events", host="client") as fleet,
        _hosts(bed, "events", HOSTS[:2]) as hosts,
    ):
        async with fleet.events() as events:
            pool = await fleet.define(definition("shared", "images", str(folder)), hosts=["one"])
            while pool.info.state != "running":  # noqa: ASYNC110
                await asyncio.sleep(0.05)
            for number in range(ROUNDS):
                await asyncio.sleep(0.05)
                (folder / f"f{number}").write_bytes(b"")
                began = time.perf_counter()
                async for one in events:
                    if isinstance(one.event, astore.VolumeAdded):
                        delays.append(time.perf_counter() - began)
                        break
            await pool.place(hosts=("one", "two"))
            hosts[0].kill()
            began = time.perf_counter()
            while (pool.info.owner, pool.info.reachable, pool.info.state) != ("two", True, "running"):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
            await pool.refresh()
            took = time.perf_counter() - began
    return [
        _at_most(f"an event of one host is read by another client, p99 of {ROUNDS}", _p99(delays), 0.2),
        _at_most("a host is killed: its network pool is refreshed elsewhere", took, 30.0),
    ]


async def _refreshes(bench: Bench, bed: NatsBed, type: str, work: str, bar: float) -> list[Row]:
    """Refresh pools as jobs of three hosts, and in one Manager."""
    folder = bench.folder / f"fleet-{type}"
    for number in range(POOLS):
        path = folder / f"p{number}"
        path.mkdir(parents=True)
        for file in range(VOLUMES if type == "shared" else 0):
            (path / f"v{file}").write_bytes(b"x" * 512)
    made = [definition(type, f"p{number}", str(folder / f"p{number}")) for number in range(POOLS)]
    async with astore.Manager(bench.folder / f"state-{type}", registry=registry()) as manager:
        for one in made:
            await (await manager.define(one)).start()
        alone = [(await manager.refresh_all()).seconds for _ in range(bench.pairs)]
    async with await Fleet.connect(bed.url, type, host="client") as fleet, _hosts(bed, type, HOSTS):
        await fleet.define_many(made)
        while sum(one.state == "running" for one in fleet.pools()) < POOLS:  # noqa: ASYNC110
            await asyncio.sleep(0.2)
        say("   pools by host:", [list(dict(fleet.leases()).values()).__len__()])
        together = []
        for _ in range(bench.pairs):
            report = await fleet.refresh_all(timeout=60)
            assert not report.failed, report.failed[0].error
            together.append(report.seconds)
    ours, theirs = sorted(together)[len(together) // 2], sorted(alone)[len(alone) // 2]
    bench.notes.append(f"{work}: one Manager {theirs:.2f} s, as jobs on three hosts {ours:.2f} s.")
    text = f"≤ {bar:g} × one Manager"
    return [Row(f"refresh of {work}, jobs on 3 hosts", theirs, None, ours, text, ours / theirs, ours <= bar * theirs)]


async def _reading(bench: Bench, bed: NatsBed) -> list[Row]:
    """Keep snapshots of a million volumes, and read them in another process."""
    lanes = Lanes()
    store = await NatsStore.connect(bed.url, "reading", host="one")
    try:
        await store.open(lanes.lane("fleet"))
        for number in range(BIG_POOLS):
            made = PoolDef("dir", f"p{number}", uuid=str(uuid.uuid4()), target=Target(f"/srv/p{number}"))
            found = await store.read()
            assert found is not None
            await store.put(made, found.revision)
            assert made.uuid is not None
            await store.begin_run(Run(made, made.uuid, 1.0), persistent=True)
            await store.save_snapshot(made.name, 1.0, LastSeen(_snapshot(number), 1.0, None, made))
        kept = (await store.engine.info(store.engine.names.state))["state"]["bytes"]
    finally:
        await store.aclose()
        lanes.close()
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", READ, bed.url, "reading", stdout=PIPE)
    out, _ = await process.communicate()
    volumes, seconds, memory = (float(word) for word in out.split())
    bench.notes.append(
        f"A reader of {volumes:,.0f} volumes: {memory / volumes:.0f} B each; {kept / volumes:.0f} B each in the engine."
    )
    work = f"a reader opens {BIG_POOLS} pools of {BIG_VOLUMES:,}"
    share = memory / volumes / 1229
    return [
        _at_most(work, seconds, 5.0),
        Row(f"memory of a volume, {work}", None, None, memory / volumes, "≤ 1,229 B", share, share <= 1, "B"),
    ]


def _snapshot(pool: int) -> Snapshot:
    """A snapshot of volumes as different as real ones."""
    found = {}
    for number in range(BIG_VOLUMES):
        name = f"volume-{uuid.uuid5(uuid.NAMESPACE_URL, f'{pool}/{number}')}.qcow2"
        path, now = f"/srv/p{pool}/{name}", 1_790_000_000_000_000_000 + number * 1_234_567_891
        found[name] = VolumeInfo(
            name, VolumeType.FILE, path, path, (number % 64 + 1) << 30, number << 16, number << 16, "qcow2",
            0o100644, 107, 107, pool << 20 | number, now, now + 5, now + 7, (), "1.1", ("lazy_refcounts",), None, 65536, 2049,
        )  # fmt: skip
    return Snapshot(dict(sorted(found.items())), generation=1, taken_at=1.0, capacity=1 << 40)


def _p99(values: Sequence[float]) -> float:
    ordered = sorted(values)
    return ordered[min(int(len(ordered) * 0.99), len(ordered) - 1)]


def _at_most(work: str, seconds: float, bar: float) -> Row:
    return Row(work, None, None, seconds, f"≤ {bar:g} s", seconds / bar, seconds <= bar)


def measure(folder: Path, pairs: int = 3) -> None:
    """Measure these rows alone."""
    bench = Bench(folder, pairs=pairs, with_libvirt=False)
    for row in asyncio.run(fleet_rows(bench)):
        say(row)
    say("\n".join(bench.notes))
