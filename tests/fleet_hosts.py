"""Hosts of a fleet in network namespaces, the servers beside them, and the storage that the hosts share.

``python fleet_hosts.py URL FLEET HOST SECONDS OFFSET`` is a host whose clock is off by OFFSET seconds; SIGUSR1 puts it
forward by a minute, SIGUSR2 back. It prints which volumes its Manager has seen come, and whether its lease holds.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from unittest import mock

from core_fakes import PATIENCE, eventually
from fleet_storage import HeldTreeBackend, SharedStorage, Storage, begun_log, let_go, plain_folder
from fleet_support import local, registry, shared

import astore
from astore.errors import StoreError
from astore_fleet import Agent, Fleet, FleetEvent
from astore_fleet.engine import Message
from astore_fleet.mirror import Mirror
from astore_gluster.backend import GlusterBackend
from astore_netfs import NetfsBackend
from beds.hosts import HostNetwork, NetworkHost
from beds.nats import NatsBed, NatsServer

SECONDS = 2.0
"""How long a host's lease lasts."""

LOCAL = ("own-one", "own-two", "also-two")
"""The pools of one host each. With them ``two`` has so many that it takes no other from ``one`` to even out."""

POOLS = ("images", "work", *LOCAL)

MINUTE = 60.0


class HostProcess:
    """A host: where it runs, its process, and what that has said."""

    def __init__(self, folder: Path, name: str, place: NetworkHost, offset: float, seconds: float) -> None:
        self.folder = folder
        self.name = name
        self.place = place
        self.offset = offset
        self.seconds = seconds
        self.said: list[str] = []
        self._process: Process | None = None
        self._reader: asyncio.Task[None] | None = None

    async def start(self, url: str, fleet: str) -> None:
        """Start the process, and wait until the agent is there."""
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        argv = [*self.place.prefix, "unshare", "--mount", sys.executable, "-W", "error", __file__]
        argv += [url, fleet, self.name, str(self.seconds), str(self.offset)]
        self._process = await asyncio.create_subprocess_exec(*argv, stdout=PIPE, stderr=self._log(), env=environment)
        before = len(self.said)
        self._reader = asyncio.ensure_future(self._read(self._process))
        await eventually(lambda: "ready" in self.said[before:], f"{self.name} is ready")

    def _log(self) -> int:
        return os.open(self.folder / f"{self.name}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    async def _read(self, process: Process) -> None:
        assert process.stdout is not None
        async for line in process.stdout:
            self.said.append(line.decode().strip())

    @property
    def has_lease(self) -> bool:
        """Whether it has said last that it has a lease."""
        return [one for one in self.said if one in ("ready", "lease", "no lease")][-1:] != ["no lease"]

    def send(self, number: signal.Signals) -> None:
        """Send the process a signal."""
        assert self._process is not None
        self._process.send_signal(number)

    async def end(self) -> None:
        """Kill the process, whatever it does, if it runs."""
        process, self._process = self._process, None
        if process is not None:
            if process.returncode is None:
                process.send_signal(signal.SIGCONT)
                process.kill()
            await process.wait()
        if self._reader is not None:
            await self._reader
            self._reader = None


class Scene:
    """Two hosts, ``one`` and ``two``, with storage that both see (the pools ``images`` and ``work``) and a folder for each.

    The clock of ``one`` is a minute ahead, that of ``two`` a minute behind. The storage of ``images`` is the scene's; ``work``
    is a folder where creating a volume waits until it may.

    :ivar fleet: a client beside the bridge. :ivar folders: where this process sees the files of each pool.
    :ivar events: all events so far. :ivar writes: all writes of the state's stream.
    """

    def __init__(
        self, folder: Path, bed: NatsBed, fleet: Fleet, hosts: Mapping[str, HostProcess], images: SharedStorage
    ) -> None:
        self.revive = images.revive
        self.folders = {name: folder / name for name in POOLS} | {"images": images.folder}
        self.bed = bed
        self.fleet = fleet
        self.hosts = hosts
        self.events: list[FleetEvent] = []
        self.writes: list[Message] = []
        self.renewals = 0

    async def follow(self, ended: asyncio.Event) -> None:
        """Read events and writes until the end."""
        engine, names = self.fleet.store.engine, self.fleet.store.engine.names
        state = Mirror(engine, names.state, self.writes.append)
        leases = Mirror(engine, names.leases, self._count)
        await state.open()
        await leases.open()

        async def read() -> None:
            async with self.fleet.events(since=0) as events:
                async for one in events:
                    self.events.append(one)

        reading = asyncio.ensure_future(read())
        await ended.wait()
        reading.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await reading
        await state.aclose()
        await leases.aclose()

    def _count(self, message: Message) -> None:
        self.renewals += 1

    def write(self, pool: str, *names: str) -> None:
        """Make files in a pool."""
        for name in names:
            (self.folders[pool] / name).write_bytes(b"x" * 1024)

    async def define(self, images: SharedStorage) -> None:
        """Define the pools, and wait until they run where they may."""
        for name in ("work", *LOCAL):
            self.folders[name].mkdir()
        await self.fleet.define(images.definition, hosts=["one"])
        await self.fleet.define(shared("work", self.folders["work"], HeldTreeBackend.type), hosts=["one"])
        for name in LOCAL:
            await self.fleet.define(local(name, self.folders[name]), hosts=[name.rpartition("-")[2]])
            await self.owned(name, name.rpartition("-")[2])
        await self.owned("images", "one")
        await self.owned("work", "one")

    async def begin_work(self, name: str) -> asyncio.Task[astore.VolumeInfo]:
        """Ask for a volume of the pool ``work``, and wait until the host has begun. If it is refused before, ask again."""
        for _ in range(60):
            made = asyncio.ensure_future(self.fleet.pool("work").create_volume(astore.VolumeDef(name, capacity=4096)))
            await eventually(lambda made=made: made.done() or name in self.begun(), f"{name} has begun")
            if name in self.begun():
                return made
            error = made.exception()
            assert isinstance(error, astore.StorageError), error
            print(f"{name} is asked for again: {error!r}")
            await asyncio.sleep(0.5)
        raise AssertionError(f"{name} is refused again and again")

    def let_work_go(self, name: str) -> None:
        """Let a volume that was asked for be created."""
        let_go(self.folders["work"], name)

    def begun(self) -> list[str]:
        """Return the volumes of the pool ``work`` that hosts have begun to create, each as often as that."""
        log = begun_log(self.folders["work"])
        return log.read_text().split() if log.exists() else []

    def added(self) -> list[tuple[str, str]]:
        """Return which volumes were told to have come, by pool."""
        return [(one.event.pool, one.event.name) for one in self.events if isinstance(one.event, astore.VolumeAdded)]

    def removed(self) -> list[tuple[str, str]]:
        """Return which volumes were told to have gone, by pool."""
        return [(one.event.pool, one.event.name) for one in self.events if isinstance(one.event, astore.VolumeRemoved)]

    async def told(self, pool: str, *names: str) -> None:
        """Wait for the events of these files."""
        await eventually(lambda: {(pool, name) for name in names} <= set(self.added()), f"{pool}: {names} are told")

    async def owned(self, pool: str, host: str) -> None:
        """Wait until a host looks after a pool, and it runs there."""

        def so() -> bool:
            info = self.fleet.pool(pool).info
            return (info.owner, info.reachable, info.state) == (host, True, "running")

        await eventually(so, f"{host} has {pool}")

    async def kept(self, pool: str) -> None:
        """Wait until the snapshot of a pool has as many volumes as its folder has files."""

        def so() -> bool:
            return self.fleet.pool(pool).info.volumes == len(os.listdir(self.folders[pool]))

        await eventually(so, f"the snapshot of {pool} is kept")

    async def all_there(self) -> None:
        """Wait until the client is connected and all hosts are there."""
        await eventually(lambda: self.fleet.store.engine.connected, "the client is connected")
        await eventually(lambda: len(self.fleet.hosts()) == len(self.hosts), "all hosts are there")

    def check(self) -> None:
        """Check that nothing was told or done twice, and that each snapshot was written by the token of its owner."""
        assert len(self.begun()) == len(set(self.begun())), "work was done twice"
        for told in (self.added(), self.removed()):
            doubled = {name for _, name in (Counter(told) - Counter(set(told)))}
            assert not doubled, [one for one in self.events if getattr(one.event, "name", "") in doubled]
        sequence = [one.seq for one in self.events]
        assert sequence == sorted(set(sequence))
        owners: dict[str, tuple[int, bytes]] = {}
        for message in self.writes:
            _, _, pool, kind, *_ = message.subject.split(".")
            if kind == "own":
                owners[pool] = (message.seq, message.data)
            elif kind == "snap" and not message.deleted:
                headers = message.headers
                assert headers.get("Nats-Expected-Last-Subject-Sequence-Subject", "").endswith(f".{pool}.own"), pool
                token = int(headers["Nats-Expected-Last-Subject-Sequence"])
                assert token >= owners[pool][0], "a snapshot was written by the token of a former owner"

    async def leader(self) -> NatsServer:
        """Return the server that leads the stream of the state; of one server, that."""
        if len(self.bed.servers) == 1:
            return self.bed.servers[0]
        found = await self.fleet.store.engine.info(self.fleet.store.engine.names.state)
        return self.bed.servers[int(found["cluster"]["leader"][1:]) - 1]


@contextlib.asynccontextmanager
async def scene(
    folder: Path, servers: int = 1, storage: Storage = plain_folder, seconds: float = SECONDS
) -> AsyncIterator[Scene]:
    """Make servers and hosts, each in a namespace of its own, and a client.

    :param storage: of the pool ``images``. :param seconds: how long a host's lease lasts.
    """
    async with contextlib.AsyncExitStack() as stack:
        network = await asyncio.to_thread(stack.enter_context, HostNetwork())
        images = await stack.enter_async_context(storage(folder))
        places = [await asyncio.to_thread(network.host, f"n{number}") for number in range(1, servers + 1)]
        bed = NatsBed(folder / "nats", places=places)
        stack.callback(bed.close)
        await asyncio.to_thread(bed.start)
        hosts = {}
        for name, offset in (("one", MINUTE), ("two", -MINUTE)):
            hosts[name] = HostProcess(folder, name, await asyncio.to_thread(network.host, name), offset, seconds)
        async with await _connect(bed, servers) as fleet:
            made = Scene(folder, bed, fleet, hosts, images)
            ended = asyncio.Event()
            following = asyncio.ensure_future(made.follow(ended))
            try:
                for host in hosts.values():
                    await host.start(bed.url, "faults")
                await made.define(images)
                yield made
            finally:
                ended.set()
                await following
                for host in hosts.values():
                    await host.end()


async def _connect(bed: NatsBed, servers: int) -> Fleet:
    """Connect once the servers know each other."""
    until = time.monotonic() + PATIENCE
    while True:
        try:
            return await Fleet.connect(bed.url, "faults", host="client", replicas=servers)
        except StoreError:
            if time.monotonic() > until:
                raise


# ------------------------------------------------------------------------------------------------------ a host's program


async def _tell_lease(agent: Agent) -> None:
    before = True
    while True:
        await asyncio.sleep(0.05)
        if agent.valid != before:
            before = agent.valid
            print("lease" if before else "no lease", flush=True)


async def _serve(url: str, fleet: str, host: str, seconds: str, offset: str) -> None:
    backends = registry()
    for backend in (GlusterBackend(), NetfsBackend(), HeldTreeBackend()):
        backends.register(backend)
    real, off = time.time, [float(offset)]

    def step(by: float) -> None:
        off[0] += by

    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGUSR1, step, MINUTE)
    loop.add_signal_handler(signal.SIGUSR2, step, -MINUTE)

    def now() -> float:
        return real() + off[0]

    with mock.patch.object(time, "time", now):
        async with (
            await Fleet.connect(url, fleet, host=host) as client,
            client.agent(seconds=float(seconds), registry=backends) as agent,
            agent.manager.events(since=0) as events,
        ):
            print("ready", flush=True)
            telling = asyncio.ensure_future(_tell_lease(agent))
            async for event in events:
                if isinstance(event, astore.VolumeAdded):
                    print("added", event.pool, event.name, flush=True)
            telling.cancel()


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    asyncio.run(_serve(*sys.argv[1:]))
