"""The Manager: the pools of one state folder, in one event loop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

import anyio
import msgspec

from astore.backend import Context, DiscoversSources
from astore.cancellation import CLEANUP_SECONDS, shielded
from astore.commands import LaneCommandRunner
from astore.errors import (
    DefinitionError,
    InvalidStateError,
    LibvirtCode,
    SourceConflictError,
    UnsupportedOperationError,
)
from astore.events import (
    DEFAULT_CAPACITY,
    Event,
    EventsStatistics,
    PoolDefined,
    Subscription,
)
from astore.lanes import DEFAULT_MAX_THREADS, DEFAULT_TIMEOUT, Lanes, LanesStatistics
from astore.logs import prepare
from astore.manager.catalogue import Catalogue, new_uuid
from astore.model import PoolDef, RefreshOutcome, RefreshReport
from astore.names import check_host
from astore.plugin_calls import answer
from astore.pools.pool import Pool
from astore.registry import BackendRegistry
from astore.store.local_files import LOCK_TIMEOUT, Version
from astore.store.local_runs import OUTDATED_PAUSE, OutdatedError

if TYPE_CHECKING:
    from astore.xml import DiscoveredSources

T = TypeVar("T")

OnProgress = Callable[[int, int, RefreshOutcome], None]
"""Called after each pool with how many are done, how many there are, and the outcome; must not block."""


def _import_ahead() -> None:
    """Import what is needed before long, and takes long enough for an event loop to notice. Blocks."""
    prepare()
    for module in ("pool", "volume", "documents"):
        import_module(f"astore.xml.{module}")


class Statistics(msgspec.Struct, frozen=True):
    """The Manager at a moment."""

    pools: int
    active: int
    volumes: int
    events: EventsStatistics
    lanes: LanesStatistics


class Manager(Catalogue):
    """The pools of one state folder. Use it as ``async with astore.Manager() as manager``.

    Entering reads the definitions; leaving detaches: mounts and pools stay as they are, and are active again for the
    next Manager on the same folder, in this process or another.

    :param state_dir: the folder of definitions; None is the machine's (root: /var/lib/astore) or the user's own.
        ValueError: it is the empty string.
    :param registry: None makes one with the backends of all installed distributions.
    :param max_threads: how many blocking calls may run at once, over all pools; stuck ones are not counted.
    :param call_timeout: seconds that one blocking call may take unless the backend says otherwise.
    :param event_capacity: how many events are kept for replay.
    """

    def __init__(
        self,
        state_dir: str | Path | None = None,
        *,
        registry: BackendRegistry | None = None,
        max_threads: int = DEFAULT_MAX_THREADS,
        call_timeout: float = DEFAULT_TIMEOUT,
        event_capacity: int = DEFAULT_CAPACITY,
    ) -> None:
        super().__init__(state_dir, registry, call_timeout=call_timeout, event_capacity=event_capacity)
        self._max_threads = max_threads

    # --------------------------------------------------------------------------------------- entering and leaving

    async def __aenter__(self) -> Self:
        if self._lanes is not None:
            raise InvalidStateError("this Manager is open already", operation="open")
        self._bus.open()
        self._registry.listen(self._bus.publish)
        self._lanes = Lanes(self._max_threads)
        self._store_lane = self._lanes.lane(f"state folder {self.state_dir}", limit=4)
        try:
            await self._store_lane.run(self._registry.scan)
            await self._store_lane.run(_import_ahead)
            await self.reload()
        except BaseException:
            self._registry.unlisten(self._bus.publish)
            self._lanes.close()
            self._lanes = None
            self._bus.close()
            raise
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Detach from all pools, which stay as they are. May be called twice; takes about two seconds at most."""
        lanes = self._lanes
        if lanes is None:
            return
        self._closing = True  # nothing begins from here on: nobody would let go of it
        try:
            await shielded(self._detach(list(self._pools.values())))
        finally:
            if self._lanes is lanes:  # else it was closed beside this, and perhaps opened anew
                self._lanes = None
                self._closing = False
                self._registry.unlisten(self._bus.publish)
                lanes.close()
                self._bus.close()

    async def _detach(self, pools: Sequence[Pool]) -> None:
        until = time.monotonic() + CLEANUP_SECONDS

        async def leave(pool: Pool) -> None:
            await pool._cancel_refresh("the Manager was closed", until=until)
            await pool._detach(until=until)

        with anyio.move_on_after(CLEANUP_SECONDS / 2):
            await self._save_snapshots(pools)
        await asyncio.gather(*(leave(pool) for pool in pools), return_exceptions=True)

    async def reload(self, *, thoroughly: bool = True) -> None:
        """Take over what other processes did to the state folder since it was last read.

        :param thoroughly: also what an editor did to a definition in its place; False is cheaper where nothing has changed.
        """
        self._check_open()
        async with self._catalogue:
            await self._reload(thoroughly=thoroughly)

    # ------------------------------------------------------------------------------------------------ definitions

    async def define(self, definition: str | bytes | PoolDef) -> Pool:
        """Define a pool, or define it anew (which an active pool takes up at its next start).

        :param definition: libvirt pool XML or a record.
        :raises DefinitionError: it is not acceptable. SourceConflictError: another pool has its name, uuid or source.
            StoreError: it could not be written.
        """
        accepted = await self._accepted(definition)
        async with self._catalogue:
            until = time.monotonic() + LOCK_TIMEOUT
            while True:
                await self._reload()
                try:
                    return await self._define(accepted)
                except OutdatedError:  # another process was faster; what it did is to be looked at first
                    if time.monotonic() > until:
                        raise
                    await asyncio.sleep(OUTDATED_PAUSE)

    async def _define(self, accepted: PoolDef) -> Pool:
        """With the catalogue lock held, and all read."""
        known = self._same_pool(accepted)
        wanted = msgspec.structs.replace(accepted, uuid=known.uuid if known else accepted.uuid or new_uuid())
        self._check_source(wanted, known)

        def then(version: Version) -> Pool:
            self._loaded.versions[wanted.name] = version
            pool = self._pools.get(wanted.name)
            if pool is None:  # new; or one that was transient, and has been stopped meanwhile
                pool = self._pools[wanted.name] = self._new_pool(wanted, persistent=True)
            else:
                pool._redefine(wanted, autostart=pool.autostart)
            pool._publish(PoolDefined)
            return pool

        return await self._change_store(then, self._store.save, wanted, loaded=self._loaded)

    async def create(
        self, definition: str | bytes | PoolDef, *, build: bool = False, timeout: float | None = None
    ) -> Pool:
        """Start a transient pool, which is gone when it is stopped.

        :param build: make its storage first. :param timeout: as for :meth:`Pool.start`.
        :raises: what :meth:`define` and :meth:`Pool.start` raise; then there is no such pool.
        """
        wanted = await self._accepted(definition)
        async with self._catalogue:
            await self._reload()
            known = self._same_pool(wanted)
            if known is not None:
                raise SourceConflictError(
                    f"there is a pool {known.name!r} already: "
                    + ("it is active" if known.active else "start it, or choose another name"),
                    other=known.name,
                    field="name",
                    libvirt_code=LibvirtCode.OPERATION_INVALID if wanted.uuid and known.active else None,
                )
            wanted = msgspec.structs.replace(wanted, uuid=wanted.uuid or new_uuid())
            self._check_source(wanted, None)
            pool = self._pools[wanted.name] = self._new_pool(wanted, persistent=False)
        try:
            await pool._begin(build, timeout=timeout)
        except BaseException:
            if self._pools.get(pool.name) is pool and not pool.active and not pool.persistent:
                del self._pools[pool.name]
            raise
        return pool

    # ---------------------------------------------------------------------------------------------- many at once

    async def refresh_all(
        self,
        names: Iterable[str] | None = None,
        *,
        limit: int = 16,
        timeout: float | None = None,
        full: bool = False,
        on_progress: OnProgress | None = None,
    ) -> RefreshReport:
        """Refresh many pools at once; one that fails or hangs costs only itself.

        :param names: which; None means all active pools. :param limit: how many at a time.
        :param timeout: seconds for each pool. :param full: trust nothing known.
        :raises PoolNotFoundError: a name is not a pool's. Nothing else is raised for a pool: see the report. What
            ``on_progress`` raises ends it, in an ``ExceptionGroup``.
        """
        self._check_open()
        pools = self.pools(active=True) if names is None else [self.pool(name) for name in dict.fromkeys(names)]
        outcomes: dict[str, RefreshOutcome] = {}

        async def one(pool: Pool) -> None:
            began = time.monotonic()
            try:
                outcome = await pool.refresh(full=full, timeout=timeout)
            except Exception as error:  # a backend may raise anything
                outcome = RefreshOutcome(pool=pool.name, uuid=pool.uuid, seconds=time.monotonic() - began, error=error)
            outcomes[pool.name] = outcome
            if on_progress is not None:
                on_progress(len(outcomes), len(pools), outcome)

        began = time.monotonic()
        await self._each(pools, one, limit)
        return RefreshReport(tuple(outcomes[name] for name in sorted(outcomes)), time.monotonic() - began)

    async def start_all(
        self, autostart_only: bool = True, *, limit: int = 16, timeout: float | None = None
    ) -> dict[str, Exception | None]:
        """Start many pools at once; those that are active are left out.

        :param autostart_only: only those marked for it. :param limit: how many at a time.
        :param timeout: as for :meth:`Pool.start`.
        :return: for each pool tried, None or why it could not be started.
        """
        self._check_open()
        pools = self.pools(active=False, persistent=True, autostart=True if autostart_only else None)
        outcomes: dict[str, Exception | None] = {}

        async def one(pool: Pool) -> None:
            try:
                await pool.start(timeout=timeout)
            except Exception as error:  # a backend may raise anything
                outcomes[pool.name] = error
            else:
                outcomes[pool.name] = None

        await self._each(pools, one, limit)
        return dict(sorted(outcomes.items()))

    def events(
        self,
        since: int | None = None,
        *,
        pools: Collection[str] | None = None,
        kinds: Collection[type[Event]] | None = None,
    ) -> Subscription:
        """Events as they come: ``async with manager.events() as events: async for event in events: ...``.

        :param since: replay first what came after this number. :param pools: only about these pools.
        :param kinds: only events of these classes (or their subclasses).
        """
        return self._bus.subscribe(since, pools=pools, kinds=kinds)

    async def discover(
        self, type: str, host: str | None = None, *, port: int | None = None, spec: str | bytes | None = None
    ) -> DiscoveredSources:
        """Which sources a host offers for pools of a type: records, and ``to_xml()`` gives libvirt's ``<sources>``.

        :param spec: a libvirt ``<source>`` document that names host and port, instead of these.
        :raises BackendError: no such backend. UnsupportedOperationError: it cannot. DefinitionError: not a host.
            OSError, CommandError, TimeoutError: the host, or the program that asks it, did not answer.
        """
        self._check_open()
        assert self._lanes is not None
        from astore.xml import DiscoveredSources, host_from_xml

        if spec is not None:
            if host is not None or port is not None:
                raise DefinitionError("a source specification names the host: give no other", element="host")
            named = host_from_xml(spec, type)
            host, port = named.name, named.port
        if host is not None:
            host = check_host(host)
        backend = await self._registry.get(type)
        if not isinstance(backend, DiscoversSources):
            raise UnsupportedOperationError(pool=None, type=type, operation="discover")
        lane = self._lanes.lane(f"discovery of {type} on {host}", limit=4, timeout=self._call_timeout)
        try:
            context = Context("", "", lane, LaneCommandRunner(lane), self.log.bind(discover=type), self._call_timeout)
            return DiscoveredSources(await answer(backend.discover(host, context, port=port)))
        finally:
            lane.close()

    async def capabilities(self) -> str:
        """libvirt's ``<storagepoolCapabilities>`` document: its pool types and those of all backends that work here."""
        self._check_open()
        from astore.xml import POOL_TYPES, capabilities_to_xml

        await self._registry.load_all()
        types = dict.fromkeys((*POOL_TYPES, *self._registry.types()))
        backends = {type_: self._registry.loaded(type_) for type_ in types}
        return capabilities_to_xml(
            (type_, backend is not None, backend.source_formats, backend.volume_formats)
            if backend is not None
            else (type_, False, (), ())
            for type_, backend in backends.items()
        )

    def statistics(self) -> Statistics:
        """Counts at this moment."""
        self._check_open()
        assert self._lanes is not None
        pools = list(self._pools.values())
        return Statistics(
            pools=len(pools),
            active=sum(pool.active for pool in pools),
            volumes=sum(len(pool.snapshot) for pool in pools),
            events=self._bus.statistics(),
            lanes=self._lanes.statistics(),
        )

    @staticmethod
    async def _each(pools: Sequence[Pool], call: Callable[[Pool], Any], limit: int) -> None:
        """Call for each pool, ``limit`` at a time: that many workers, each taking the next."""
        if limit < 1:
            raise ValueError("limit must be at least 1")
        waiting = iter(pools)

        async def worker() -> None:
            for pool in waiting:
                await call(pool)

        async with anyio.create_task_group() as group:
            for _ in range(min(limit, len(pools))):
                group.start_soon(worker)
