"""A simulated fleet: many agents as tasks of a few processes, on a real server, with storage that is made up.

``python -m benchmarks.fleet_simulation --hosts 100 --pools 1000 --volumes 200 --lease 10 --processes 2`` prints what the
server and the processes do while all hosts are there, what a reader takes, and how long a takeover lasts after one process is
killed. Definitions are written straight into the engine, as a store would write them.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import resource
import secrets
import sys
import tempfile
import time
import urllib.request
import uuid
from asyncio.subprocess import PIPE, Process
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from astore.backend import Backend, Context, PoolSession
from astore.model import Host, PoolDef, Snapshot, Source, Target, VolumeInfo, VolumeType
from astore.registry import BackendRegistry
from astore_fleet import Agent, Fleet, NatsStore, mirror
from astore_fleet.store.definition_headers import AUTOSTART, HOST, VERSION
from beds.nats import NatsBed
from benchmarks.sides import say

FLEET = "simulated"
AT_ONCE = 64
COMING = 8
"""How many agents of a process come at once."""

VOLUMES = "ASTORE_SIMULATED_VOLUMES"

READ = """
import asyncio, gc, json, os, sys, time
from astore_fleet import Fleet
def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
async def main(url, name):
    before, began = resident(), time.perf_counter()
    async with await Fleet.connect(url, name) as fleet:
        pools = fleet.pools()
        listed, list_memory = time.perf_counter() - began, resident() - before
        found = await fleet.snapshots()
        read = time.perf_counter() - began
        gc.collect()
        volumes = sum(len(one) for one in found.values())
        print(json.dumps([len(pools), listed, list_memory, volumes, read, resident() - before]))
asyncio.run(main(*sys.argv[1:]))
"""


class SimulatedSession(PoolSession):
    """A pool with as many volumes as the environment says. It never changes."""

    def __init__(self, name: str) -> None:
        self._name = name

    async def refresh(self, previous: Snapshot, *, full: bool = False) -> Snapshot:
        """Return what was there before, or make it up."""
        if len(previous):
            return previous
        made: dict[str, VolumeInfo] = {}
        for number in range(int(os.environ.get(VOLUMES, "0"))):
            name = f"volume-{uuid.uuid5(uuid.NAMESPACE_URL, f'{self._name}/{number}')}.qcow2"
            path, now = f"/srv/{self._name}/{name}", 1_790_000_000_000_000_000 + number * 1_234_567_891
            made[name] = VolumeInfo(
                name, VolumeType.FILE, path, path, (number % 64 + 1) << 30, number << 16, number << 16, "qcow2",
                0o100644, 107, 107, number, now, now + 5, now + 7, (), "1.1", ("lazy_refcounts",), None, 65536, 2049,
            )  # fmt: skip
        return Snapshot(dict(sorted(made.items())), generation=1, taken_at=time.time(), capacity=1 << 40)

    async def aclose(self) -> None:
        """Do nothing."""


class SimulatedBackend(Backend):
    """Pools without storage."""

    type: ClassVar[str] = "simulated"
    api_version: ClassVar[int] = Backend.api_version

    def check(self, definition: PoolDef) -> PoolDef:
        """Take any definition."""
        return definition

    def source_key(self, definition: PoolDef) -> tuple[tuple[str, str], ...]:
        """Each pool has a source of its own."""
        return (("name", definition.name),)

    async def open(self, definition: PoolDef, context: Context) -> PoolSession:
        """Open nothing."""
        return SimulatedSession(definition.name)


# ------------------------------------------------------------------------------------------------------ hosts


async def _hosts(url: str, first: int, count: int, lease: float, heartbeat: float) -> None:
    """Be that many hosts until the input ends; say on each line of it how they are."""
    mirror.HEARTBEAT_SECONDS = heartbeat
    mirror.PATIENCE = 600.0  # hundreds of hosts share one event loop, and answer late
    # One process has the objects of hundreds of hosts: collections that go through all of them would take half the time.
    gc.set_threshold(1_000_000, 100, 100)
    agents: list[Agent] = []
    slots = asyncio.Semaphore(COMING)

    async def come(number: int) -> None:
        async with slots:
            registry = BackendRegistry(group=None)
            registry.register(SimulatedBackend())
            agent = Agent(NatsStore(url, FLEET, host=f"h{number}"), seconds=lease, registry=registry, max_staleness=1e6)
            await agent.__aenter__()
            agents.append(agent)

    await asyncio.gather(*(come(first + number) for number in range(count)))
    print("ready", flush=True)
    late, worst = 0, 0.0

    async def look() -> None:
        nonlocal late, worst
        while True:
            began = time.monotonic()
            await asyncio.sleep(0.1)
            worst = max(worst, time.monotonic() - began - 0.1)
            late += sum(not agent.valid for agent in agents)

    looking = asyncio.ensure_future(look())
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while await reader.readline():
        used = resource.getrusage(resource.RUSAGE_SELF)
        pools = sum(len(agent.manager.pools(active=True)) for agent in agents)
        told = {
            "pools": pools,
            "without lease": late,
            "loop late": round(worst, 3),
            "cpu": used.ru_utime + used.ru_stime,
        }
        print(json.dumps(told | {"resident": _resident("self")}), flush=True)
        late, worst = 0, 0.0
    looking.cancel()
    os._exit(0)


def _resident(pid: int | str) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


# ------------------------------------------------------------------------------------------------------ the measurement


class Simulation:
    """One run. :param options: as the command line says."""

    def __init__(self, options: argparse.Namespace, bed: NatsBed) -> None:
        self.options = options
        self.bed = bed
        self.processes: list[Process] = []

    async def run(self) -> None:
        """Start, define, watch, read, and kill."""
        options = self.options
        async with await Fleet.connect(self.bed.url, FLEET, host="client") as fleet:
            began = time.monotonic()
            await self._start()
            say(f"{options.hosts} hosts there after {time.monotonic() - began:.1f} s")
            began = time.monotonic()
            await self._define(fleet)
            say(f"{options.pools} definitions written in {time.monotonic() - began:.1f} s")
            await self._until(lambda: sum(one.state == "running" for one in fleet.pools()) == options.pools)
            say(f"all pools running after {time.monotonic() - began:.1f} s")
            await self._until(lambda: sum(one.volumes for one in fleet.pools()) == options.pools * options.volumes)
            say(f"all volumes kept after {time.monotonic() - began:.1f} s")
            await self._watch(options.seconds)
            await self._read()
            if len(self.processes) > 1:
                await self._kill_some(fleet)

    async def _define(self, fleet: Fleet) -> None:
        engine, slots = fleet.store.engine, asyncio.Semaphore(AT_ONCE)

        async def put(number: int) -> None:
            made = PoolDef(
                "simulated", f"p{number}", uuid=str(uuid.uuid4()), source=Source(hosts=(Host("everywhere"),)),
                target=Target(f"/srv/p{number}"),
            )  # fmt: skip
            headers = {VERSION: secrets.token_hex(8), HOST: "client", AUTOSTART: "1"}
            async with slots:
                subject = engine.names.definition(made.name)
                await engine.publish(engine.names.pools, subject, made.to_xml().encode(), headers)

        await asyncio.gather(*(put(number) for number in range(self.options.pools)))

    async def _start(self) -> None:
        options = self.options
        environment = os.environ | {
            VOLUMES: str(options.volumes),
            "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
        }
        share = options.hosts // options.processes
        for number in range(options.processes):
            argv = [sys.executable, "-m", "benchmarks.fleet_simulation", "--be", self.bed.url]
            argv += ["--first", str(number * share), "--hosts", str(share), "--lease", str(options.lease)]
            argv += ["--heartbeat", str(options.heartbeat)]
            made = await asyncio.create_subprocess_exec(*argv, stdin=PIPE, stdout=PIPE, env=environment)
            self.processes.append(made)
        for process in self.processes:
            assert process.stdout is not None
            assert await process.stdout.readline() == b"ready\n"

    async def _until(self, condition: Any) -> None:
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.2)

    async def _ask(self) -> list[dict[str, float]]:
        answers = []
        for process in self.processes:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(b"\n")
            answers.append(json.loads(await process.stdout.readline()))
        return answers

    def _server(self) -> dict[str, float]:
        server = self.bed.servers[0]
        with urllib.request.urlopen(f"http://{server.host}:{server.monitor}/varz", timeout=30) as answer:
            found = json.loads(answer.read())
        with open(f"/proc/{server.pid}/stat") as file:
            words = file.read().rpartition(")")[2].split()
        cpu = (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")
        return {"in": found["in_msgs"], "out": found["out_msgs"], "cpu": cpu, "memory": found["mem"]}

    async def _watch(self, seconds: float) -> None:
        hosts, server, began = await self._ask(), await asyncio.to_thread(self._server), time.monotonic()
        await asyncio.sleep(seconds)
        later, after, took = await self._ask(), await asyncio.to_thread(self._server), time.monotonic() - began
        say(
            f"server: {(after['in'] - server['in']) / took:,.0f} messages a second in, "
            f"{(after['out'] - server['out']) / took:,.0f} out; {(after['cpu'] - server['cpu']) / took:.2f} cores; "
            f"{after['memory'] / 1e6:,.0f} MB"
        )
        cpu = sum(now["cpu"] - before["cpu"] for now, before in zip(later, hosts, strict=True)) / took
        late = sum(one["without lease"] for one in later) / (took / 0.1) / self.options.hosts
        memory = sum(one["resident"] for one in later)
        say(
            f"hosts: {cpu:.2f} cores; {memory / self.options.hosts / 1e6:.1f} MB each; without a lease {late:.2%} of the time; "
            f"loops late by {max(one['loop late'] for one in later):.2f} s at most"
        )
        files = sum(path.stat().st_size for path in self.bed.servers[0].folder.rglob("*") if path.is_file())
        say(f"kept by the server: {files / 1e6:,.1f} MB")

    async def _read(self) -> None:
        process = await asyncio.create_subprocess_exec(sys.executable, "-c", READ, self.bed.url, FLEET, stdout=PIPE)
        out, _ = await process.communicate()
        pools, listed, list_memory, volumes, read, memory = json.loads(out)
        say(
            f"a reader: {pools} pools listed after {listed:.2f} s, {list_memory / 1e6:,.0f} MB; "
            f"{volumes:,} volumes after {read:.2f} s, {memory / 1e6:,.0f} MB"
        )

    async def _kill_some(self, fleet: Fleet) -> None:
        gone = self.options.hosts // self.options.processes
        victim, began = self.processes.pop(), time.monotonic()
        victim.kill()
        await victim.wait()
        await self._until(lambda: len(fleet.hosts()) == self.options.hosts - gone)
        seen = time.monotonic() - began
        await self._until(lambda: all(one.reachable and one.state == "running" for one in fleet.pools()))
        say(
            f"{gone} hosts killed: known after {seen:.1f} s, their pools go on elsewhere after {time.monotonic() - began:.1f} s"
        )

    async def close(self) -> None:
        """End the hosts."""
        for process in self.processes:
            if process.returncode is None:
                process.kill()
            await process.wait()


async def _simulate(options: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory(prefix="astore-simulation-", dir=options.folder) as folder, NatsBed(folder) as bed:
        simulation = Simulation(options, bed)
        try:
            await simulation.run()
        finally:
            await simulation.close()


def main(argv: Sequence[str] | None = None) -> None:
    """Run a simulation, or be its hosts."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fleet_simulation", description=__doc__)
    parser.add_argument("--hosts", type=int, default=100)
    parser.add_argument("--pools", type=int, default=1000)
    parser.add_argument("--volumes", type=int, default=200, help="of each pool")
    parser.add_argument("--lease", type=float, default=10.0, help="seconds that a host's lease lasts")
    parser.add_argument(
        "--heartbeat",
        type=float,
        default=mirror.HEARTBEAT_SECONDS,
        help="seconds between the engine's signs to each follower",
    )
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=20.0, help="how long to watch")
    parser.add_argument("--folder", type=Path, help="for the server's data")
    parser.add_argument("--be", help=argparse.SUPPRESS)
    parser.add_argument("--first", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    if options.be:
        asyncio.run(_hosts(options.be, options.first, options.hosts, options.lease, options.heartbeat))
    else:
        asyncio.run(_simulate(options))


if __name__ == "__main__":
    main()
