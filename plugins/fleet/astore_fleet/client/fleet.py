"""Fleet: the pools of many hosts, from anywhere."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Self

import msgspec

from astore.errors import DefinitionError, InvalidStateError, PoolNotFoundError
from astore.events import PoolAutostartChanged, PoolDefined, PoolUndefined
from astore.manager import Manager
from astore.manager.many import OnProgress
from astore.model import PoolDef, PoolState, RefreshOutcome, RefreshReport, Snapshot, VolumeInfo
from astore.registry import BackendRegistry
from astore_fleet.access import Access
from astore_fleet.client.event_reader import FleetEvents
from astore_fleet.client.fleet_pool import FleetPool
from astore_fleet.client.reading import Reader, Wanted
from astore_fleet.ending import together
from astore_fleet.hosts.agent import Agent
from astore_fleet.jobs import bulk, job_queue
from astore_fleet.jobs.job_client import JobClient
from astore_fleet.jobs.job_records import error_of
from astore_fleet.placement import owning
from astore_fleet.placement.fleet_state import DRAIN, FleetState
from astore_fleet.records import HOST_SECONDS, FleetPoolInfo, FleetVolume, HostInfo, Placement
from astore_fleet.store.definition_headers import New
from astore_fleet.store.nats_store import NatsStore

KEEP_EVENTS = 7 * 86_400.0
"""Seconds that events are kept, unless the one who creates the fleet says otherwise."""


class Fleet:
    """A client of a fleet: ``async with await Fleet.connect("nats://…", "prod") as fleet: ...``.

    Reads take what the engine has, and ask no host. :meth:`pool` returns a handle whose work is done on the pool's host.
    """

    def __init__(self, store: NatsStore, access: Access | None = None) -> None:
        self.store = store
        self._access = access
        self._state = FleetState(store.engine, snapshots=True)
        self._reader = Reader(store, self._state)
        self._jobs = JobClient(store, self._state)
        self._stack = contextlib.AsyncExitStack()

    @classmethod
    async def connect(
        cls,
        url: str | Sequence[str],
        fleet: str,
        *,
        host: str | None = None,
        replicas: int | None = None,
        access: Access | None = None,
        keep_events: float = KEEP_EVENTS,
    ) -> Self:
        """Connect to a fleet; create it if it is new.

        :param url, fleet, host, replicas: as for :meth:`NatsStore.connect`.
        :param keep_events: seconds that events are kept, if the fleet is new.
        :raises StoreError: no server answers, none lets this client in, or it is too old.
        """
        store = await NatsStore.connect(url, fleet, host=host, replicas=replicas, access=access)
        made = cls(store, access)
        try:
            await made.begin(keep_events)
        except BaseException:
            await made.aclose()
            raise
        return made

    async def begin(self, keep_events: float) -> None:
        """Create what the fleet lacks, and follow it. Part of :meth:`connect`."""
        self._stack.push_async_callback(self.store.aclose)
        engine, names = self.store.engine, self.store.engine.names
        subjects = f"astore.{names.fleet}.ev.>"
        await engine.make_stream(names.events, subjects, discard="old", max_age=int(keep_events * 1e9))
        await job_queue.make_streams(engine)
        self._stack.push_async_callback(self._state.aclose)
        await self._state.open()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connection. May be called twice."""
        await self._stack.aclose()

    # ------------------------------------------------------------------------------------------------ definitions

    async def define(
        self,
        definition: str | bytes | PoolDef,
        *,
        hosts: Iterable[str] = (),
        labels: Mapping[str, str] | None = None,
        autostart: bool = True,
    ) -> FleetPool:
        """Define or redefine a pool, and say where it may run.

        :param hosts: on one of these. :param labels: on hosts with all of these. Without both, a pool whose source is on the
            network may run anywhere; a local one needs one of them.
        :param autostart: whether the host that looks after it starts it.
        :raises DefinitionError, SourceConflictError, StoreError: as for :meth:`astore.Manager.define`.
        """
        placement = Placement(tuple(hosts), dict(labels or {}))
        store = self._second_store()
        store.new = New(placement, autostart)
        async with Manager(store=store) as manager:
            wanted = await manager.check(definition)
            if not (placement.hosts or placement.labels or wanted.source.hosts):
                raise DefinitionError(
                    f"pool {wanted.name!r} is local: say on which hosts it may run, by name or by labels"
                )
            hosts_by_name = owning.confined_to(wanted, placement, store.host)
            store.shows = lambda held: held.name == wanted.name or owning.may_meet(held, hosts_by_name)
            await manager.reload()  # pools that never meet may have the same source
            pool = await manager.define(wanted)
            name, uuid = pool.name, pool.uuid
            if pool.autostart != autostart:
                await pool.set_autostart(autostart)
        await self.store.place(name, placement)
        await self._tell(PoolDefined(pool=name, uuid=uuid, time=time.time()))
        return self.pool(name)

    async def set_autostart(self, name: str, on: bool) -> None:
        """Set or clear the mark by which a pool's host starts it. :raises PoolNotFoundError: there is no such pool."""
        info = self.pool(name).info
        await self.store.set_autostart(name, on)
        if info.autostart != on:
            await self._tell(PoolAutostartChanged(pool=name, uuid=info.uuid, time=time.time(), autostart=on))

    async def define_many(self, definitions: Iterable[PoolDef], *, autostart: bool = True) -> None:
        """Define pools that may run anywhere, one after the other, over one connection. :raises: as :meth:`define`."""
        store = self._second_store()
        store.new = New(autostart=autostart)
        async with Manager(store=store) as manager:
            for definition in definitions:
                if not definition.source.hosts:
                    raise DefinitionError(f"pool {definition.name!r} is local: define it alone, and say on which hosts")
                pool = await manager.define(definition)
                await self._tell(PoolDefined(pool=pool.name, uuid=pool.uuid, time=time.time()))

    async def undefine(self, name: str) -> None:
        """Remove a pool's definition. :raises PoolNotFoundError: there is none. InvalidStateError: it is active on a host."""
        info = self.pool(name).info
        active = [host for host in self.store.table.runs.get(name, {}) if host in self._state.hosts]
        if active:
            message = f"pool {name!r} is active on host {active[0]!r}"
            raise InvalidStateError(message, pool=name, state=PoolState.RUNNING, operation="undefine")
        async with Manager(store=self._second_store()) as manager:
            await manager.pool(name).undefine()
        await self.store.mirror().sync()
        await self._tell(PoolUndefined(pool=name, uuid=info.uuid, time=time.time()))

    def _second_store(self) -> NatsStore:
        engine = self.store.engine
        return NatsStore(
            engine.servers, engine.names.fleet, host=self.store.host, replicas=engine.replicas, access=self._access
        )

    async def _tell(self, event: PoolDefined | PoolUndefined | PoolAutostartChanged) -> None:
        engine = self.store.engine
        subject = engine.names.event(self.store.host, event.uuid, type(event).__name__)
        await engine.publish(engine.names.events, subject, msgspec.json.encode(event))

    # ------------------------------------------------------------------------------------- reads that ask no host

    def pools(self) -> list[FleetPoolInfo]:
        """Return all pools in name order, as they were last seen. Never waits."""
        return self._reader.pools()

    def pool(self, name: str) -> FleetPool:
        """Return the handle of a pool. :raises PoolNotFoundError: there is none of this name."""
        if name not in self.store.table.definitions:
            raise PoolNotFoundError(f"there is no pool {name!r}", what=name)
        return FleetPool(name, self.store, self._reader, self._jobs)

    def hosts(self) -> list[HostInfo]:
        """Return the hosts whose agents are there, in name order. Never waits."""
        return [host for _, host in sorted(self._state.hosts.items())]

    def drained(self) -> frozenset[str]:
        """Return the hosts that are to take no pools. Never waits."""
        return frozenset(self._state.drained)

    def leases(self) -> dict[str, tuple[str, int]]:
        """Return, by pool, the host that looks after it and the token with which it writes. Never waits."""
        return {
            pool: (owned.owner.host, owned.token)
            for pool, owned in sorted(self._state.owners.items())
            if owned.owner is not None
        }

    async def volumes(self, wanted: Wanted | None = None) -> list[FleetVolume]:
        """Return the volumes of all pools, in the order of pools and names. :param wanted: called with each record."""
        return await self._reader.volumes(wanted)

    async def snapshots(self) -> dict[str, Snapshot]:
        """Return the last snapshots of all pools that have one, in name order."""
        return {pool: snapshot for pool, (_, snapshot) in (await self._reader.each()).items()}

    async def search(
        self,
        *,
        name: str | None = None,
        format: str | None = None,
        backing: str | None = None,
        bigger_than: int | None = None,
        pools: Iterable[str] | None = None,
    ) -> list[FleetVolume]:
        """Return the volumes of all pools that match all of these.

        :param name: a part of the name. :param backing: the path of the backing file. :param bigger_than: bytes of capacity.
        :param pools: only those of these pools.
        """

        def matches(info: VolumeInfo) -> bool:
            return (
                (name is None or name in info.name)
                and (format is None or info.format == format)
                and (backing is None or info.backing_path == backing)
                and (bigger_than is None or info.capacity > bigger_than)
            )

        return await self._reader.volumes(matches, pools)

    async def find(self, *, key: str | None = None, path: str | None = None, name: str | None = None) -> FleetVolume:
        """Return the volume with this key, path or name (the first pool's that has one).

        :raises VolumeNotFoundError: no snapshot has it. TypeError: not one of the three is given.
        """
        given = {field: value for field, value in (("key", key), ("path", path), ("name", name)) if value is not None}
        if len(given) != 1:
            raise TypeError("give a key, a path or a name")
        ((field, value),) = given.items()
        return await self._reader.find(field, value)

    def events(self, since: int | None = None) -> FleetEvents:
        """Return the events of all hosts; see :class:`FleetEvents`."""
        return FleetEvents(self.store.engine, since)

    # ------------------------------------------------------------------------------------------------------ work

    async def refresh_all(
        self,
        names: Iterable[str] | None = None,
        *,
        limit: int = 256,
        timeout: float | None = None,
        full: bool = False,
        on_progress: OnProgress | None = None,
    ) -> RefreshReport:
        """Refresh many pools, each on its host. A pool that fails does not affect the others.

        Each host is asked once for all of its pools. What is not answered, because it died or a pool has moved, is queued.

        :param names: the pools; None: all that are active somewhere. :param limit: how many are queued at a time.
        :param timeout: seconds for each. :param on_progress: as for :meth:`astore.Manager.refresh_all`; but what it raises is
            raised as it is.
        :raises PoolNotFoundError: there is no pool of a name. Other errors of pools, and of the engine, are in the report.
        """
        chosen = self._active() if names is None else [self.pool(name).name for name in dict.fromkeys(names)]
        outcomes: dict[str, RefreshOutcome] = {}
        began = time.monotonic()

        def note(outcome: RefreshOutcome) -> None:
            outcomes[outcome.pool] = outcome
            if on_progress is not None:
                on_progress(len(outcomes), len(chosen), outcome)

        async def ask(host: str, pools: list[str]) -> None:
            answers = bulk.ask(self.store.engine, host, bulk.Question(pools, full, timeout))
            async with contextlib.aclosing(answers):
                async for pool, record in answers:
                    error = None if record.failure is None else error_of(record.failure)
                    note(record.outcome or RefreshOutcome(pool=pool, seconds=time.monotonic() - began, error=error))

        await together(ask(host, pools) for host, pools in self._by_host(chosen).items())
        waiting = iter([name for name in chosen if name not in outcomes])

        async def work() -> None:
            for name in waiting:
                try:
                    outcome = await self.pool(name).refresh(full=full, timeout=timeout)
                except Exception as error:  # whatever the host's backend has raised
                    outcome = RefreshOutcome(pool=name, seconds=time.monotonic() - began, error=error)
                note(outcome)

        await together(work() for _ in range(min(limit, len(chosen) - len(outcomes))))
        return RefreshReport(tuple(outcomes[name] for name in sorted(outcomes)), time.monotonic() - began)

    def _by_host(self, pools: Iterable[str]) -> dict[str, list[str]]:
        """Return which of these pools each host looks after that is there."""
        found: dict[str, list[str]] = {}
        for name in pools:
            owner = self._state.owner(name)
            if owner is not None and self._state.present(owner):
                found.setdefault(owner.host, []).append(name)
        return found

    def _active(self) -> list[str]:
        return [name for name in sorted(self.store.table.definitions) if name in self.store.table.runs]

    async def drain(self, host: str) -> None:
        """Have a host hand its pools to others, where they may run there, and take no more. Lasts until :meth:`undrain`."""
        engine = self.store.engine
        await engine.publish(engine.names.leases, engine.names.lease(f"{DRAIN}{host}"), b"1")

    async def undrain(self, host: str) -> None:
        """Let a host take pools again."""
        engine = self.store.engine
        headers = {"KV-Operation": "DEL"}
        await engine.publish(engine.names.leases, engine.names.lease(f"{DRAIN}{host}"), b"", headers, ttl=60.0)

    def agent(
        self,
        *,
        labels: Mapping[str, str] | None = None,
        seconds: float = HOST_SECONDS,
        registry: BackendRegistry | None = None,
        max_staleness: float | None = None,
    ) -> Agent:
        """Return this host's part in the fleet: ``async with fleet.agent() as agent: ...``; see :class:`Agent`."""
        return Agent(
            self._second_store(), labels=labels, seconds=seconds, registry=registry, max_staleness=max_staleness
        )
