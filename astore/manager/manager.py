"""Manager: the pools of one state folder, in one event loop."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Collection, Iterable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Self

import anyio
import msgspec

from astore.backend import Secrets
from astore.cancellation import CLEANUP_SECONDS, cleanups_left_behind, shielded
from astore.errors import BackendError, LibvirtCode, SourceConflictError
from astore.event_bus import DEFAULT_CAPACITY, E, EventBus, Subscription
from astore.lanes import DEFAULT_MAX_THREADS, DEFAULT_TIMEOUT, Lanes
from astore.lanes.lane import PoolLane
from astore.logs import prepare
from astore.manager.catalogue import Catalogue
from astore.manager.keeper import Keeper
from astore.manager.many import OnProgress, refresh_pools, start_pools
from astore.manager.statistics import Statistics
from astore.model import PoolDef, PoolState, RefreshReport
from astore.names import normal_path
from astore.plugin_calls import accepted_definition
from astore.pools import graph
from astore.pools.parts import Parts
from astore.pools.pool import Pool
from astore.pools.services import Services
from astore.pools.volume import Volume
from astore.registry import BackendRegistry
from astore.secrets.kept import KeptSecrets
from astore.store.contract import Damaged, Store
from astore.store.local import LocalStore
from astore.store.local_files import default_state_dir

if TYPE_CHECKING:
    from astore.manager.watching import Watch
    from astore.xml.documents import DiscoveredSources

SAVE_SECONDS = 20e-6
"""Seconds by which leaving a Manager may take longer for each record of a snapshot that is to be saved."""

INLINE_XML = 16_384
"""Documents longer than this are parsed in a thread."""


def _import_ahead() -> None:
    """Import modules that would hold up the event loop later. Blocks."""
    prepare()
    for module in ("pool", "volume", "documents"):
        import_module(f"astore.xml.{module}")


class Manager:
    """The pools of one state folder. Use it as ``async with astore.Manager() as manager``.

    Entering reads the definitions. Leaving detaches: pools and mounts stay active, for the next Manager on the same folder,
    in this process or another.

    :param state_dir: the folder of definitions; None means the machine's (root: /var/lib/astore) or the user's own.
        ValueError: it is the empty string.
    :param store: keeps definitions and runs instead of a folder; see :mod:`astore.store.contract`. The Manager opens and closes
        it. TypeError: a folder is given as well.
    :param registry: the backends; None means those of all installed distributions.
    :param max_threads: how many blocking calls may run at once, over all pools; stuck ones are not counted.
    :param call_timeout: seconds that one blocking call may take unless the backend says otherwise.
    :param event_capacity: how many events are kept for replay.
    :param secrets: has the values of secrets; None means systemd's credentials, then the state folder. See docs/secrets.md.
    """

    _lane: PoolLane
    """For blocking calls that belong to no pool; set while the Manager is open."""

    def __init__(
        self,
        state_dir: str | Path | None = None,
        *,
        store: Store | None = None,
        registry: BackendRegistry | None = None,
        max_threads: int = DEFAULT_MAX_THREADS,
        call_timeout: float = DEFAULT_TIMEOUT,
        event_capacity: int = DEFAULT_CAPACITY,
        secrets: Secrets | None = None,
    ) -> None:
        if state_dir is not None and not str(state_dir):
            raise ValueError("the state folder has no name")
        if store is not None and state_dir is not None:
            raise TypeError("a Manager has a state folder or a store")
        self.state_dir: Path | None = None  # the folder of definitions; None if a ``store`` was given
        if store is None:
            self.state_dir = Path(state_dir) if state_dir is not None else default_state_dir()
            store = LocalStore(self.state_dir)
        self._services = Services(
            registry if registry is not None else BackendRegistry(),
            EventBus(event_capacity),
            max_threads=max_threads,
            call_timeout=call_timeout,
            secrets=secrets if secrets is not None else KeptSecrets(self.state_dir, lambda: self._lane),
        )
        self._catalogue = Catalogue(self._services)
        self._keeper = Keeper(self._services, self._catalogue, store)
        self._store_name = store.name

    def __repr__(self) -> str:
        pools = len(self._catalogue.all())
        state = "closed" if self._services.lanes is None else f"{pools} pool{'s' * (pools != 1)}"
        return f"<Manager of {self._store_name}: {state}>"

    # --------------------------------------------------------------------------------------- entering and leaving

    async def __aenter__(self) -> Self:
        services = self._services
        lanes = services.open()
        lane = self._lane = lanes.lane(self._store_name, limit=4)
        try:
            await lane.run(services.registry.scan)
            await lane.run(_import_ahead)
            await self._keeper.open(lane)
            await self.reload()
        except BaseException:
            await shielded(self._keeper.aclose(), whole=True)
            services.close(lanes)
            raise
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.aclose()

    async def aclose(self, *, cut: bool = False) -> None:
        """Detach from all pools, which stay active. May be called twice. Takes about two seconds at most.

        :param cut: then cut the connection of a FUSE mount that hangs with calls of this process, if that may (root). Else such
            calls keep the process from exiting. Others who use the mount get errors. Takes two seconds more at most.
        """
        lanes = self._services.begin_closing()
        if lanes is None:
            return
        try:
            await shielded(self._detach(self._catalogue.all(), lanes, cut), whole=True)
        finally:
            self._services.close(lanes)  # does nothing if it was closed, and perhaps reopened, meanwhile

    async def _detach(self, pools: Sequence[Parts], lanes: Lanes, cut: bool) -> None:
        records = sum(len(pool.record.snapshot) for pool in pools)
        saving = CLEANUP_SECONDS / 2 + records * SAVE_SECONDS
        until = time.monotonic() + CLEANUP_SECONDS / 2 + saving
        with anyio.move_on_after(saving):
            await self._keeper.save_snapshots(sorted(pools, key=lambda pool: len(pool.record.snapshot)))
        await asyncio.gather(*(pool.lifecycle.leave(until) for pool in pools), return_exceptions=True)
        if cut:
            await self._services.cut_connections(until)
        if self._services.lanes is lanes:
            await self._keeper.aclose()

    async def reload(self, *, thoroughly: bool = True) -> None:
        """Take over the changes that others made to the store since it was last read.

        :param thoroughly: find definitions that an editor changed in place, too; False is cheaper if nothing has changed.
        """
        self._services.check_open()
        async with self._keeper.lock:
            await self._keeper.reload(thoroughly=thoroughly)

    # ---------------------------------------------------------------------------------------- lookups: never wait

    @property
    def registry(self) -> BackendRegistry:
        """The backends."""
        return self._services.registry

    @property
    def call_timeout(self) -> float:
        """The default deadline of a blocking call, in seconds."""
        return self._services.call_timeout

    @property
    def damaged(self) -> tuple[Damaged, ...]:
        """The definitions that could not be read, and why. They are left as they are."""
        return self._catalogue.damaged

    def pool(self, name: str) -> Pool:
        """Return the pool of this name. :raises PoolNotFoundError: there is none."""
        return self._catalogue.pool(name)

    def pool_by_uuid(self, uuid: str) -> Pool:
        """Return the pool with this UUID, in any notation. :raises PoolNotFoundError: there is none."""
        return self._catalogue.pool_by_uuid(uuid)

    def pool_by_target(self, path: str) -> Pool:
        """Return the active pool whose target is this path. :raises PoolNotFoundError: there is none."""
        return self._catalogue.pool_by_target(path)

    def pools(
        self,
        *,
        active: bool | None = None,
        persistent: bool | None = None,
        autostart: bool | None = None,
        types: Collection[str] | None = None,
        states: Collection[PoolState | str] | None = None,
    ) -> list[Pool]:
        """Return the pools in name order, by libvirt's filters; None does not filter."""
        wanted = None if states is None else {PoolState(state) for state in states}
        return [
            pool
            for pool in self._catalogue.pools()
            if (active is None or pool.active == active)
            and (persistent is None or pool.persistent == persistent)
            and (autostart is None or pool.autostart == autostart)
            and (types is None or pool.type in types)
            and (wanted is None or pool.state in wanted)
        ]

    def volume_by_key(self, key: str) -> Volume:
        """Return the volume of an active pool with this key. :raises VolumeNotFoundError: there is none."""
        return self._catalogue.volume_by("key", key)

    def volume_by_path(self, path: str) -> Volume:
        """Return the volume of an active pool with this path. :raises VolumeNotFoundError: there is none."""
        return self._catalogue.volume_by("path", normal_path(path))

    def dependents(self, volume: Volume) -> list[Volume]:
        """Return the volumes of all active pools that need this one, in the order of pools and names.

        They are backed by it, or have data in it. If it is a directory, they need a file below it.

        :raises VolumeNotFoundError: the volume is gone.
        """
        found = graph.dependents(volume.info, volume.pool.parts, self._catalogue.all())
        return [Volume(self._catalogue.handle(one.pool), one.name) for one in found]

    # ------------------------------------------------------------------------------------------------ definitions

    async def define(self, definition: str | bytes | PoolDef) -> Pool:
        """Define or redefine a pool. An active pool uses the new definition from its next start.

        :param definition: libvirt pool XML or a record.
        :raises DefinitionError: it is not acceptable. SourceConflictError: another pool has its name, uuid or source.
            StoreError: it could not be written.
        """
        accepted = await self.check(definition)
        return self._catalogue.handle(await self._keeper.define(accepted))

    async def check(self, definition: str | bytes | PoolDef) -> PoolDef:
        """Return a definition as :meth:`define` would store it: validated, with the defaults of its backend.

        :param definition: libvirt pool XML or a record.
        :raises DefinitionError: it is not acceptable. BackendError: its backend cannot check it.
        """
        self._services.check_open()
        from astore.xml.pool import pool_from_xml

        text = definition.to_xml() if isinstance(definition, PoolDef) else definition
        wanted = pool_from_xml(text) if len(text) <= INLINE_XML else await self._lane.run(pool_from_xml, text)
        try:
            backend = await self.registry.get(wanted.type)
        except BackendError:
            return wanted
        return accepted_definition(backend, wanted)

    async def create(
        self, definition: str | bytes | PoolDef, *, build: bool = False, timeout: float | None = None
    ) -> Pool:
        """Create and start a transient pool, which is gone when it is stopped.

        :param build: build its storage first. :param timeout: as for :meth:`Pool.start`.
        :raises: what :meth:`define` and :meth:`Pool.start` raise; the pool is gone then.
        """
        wanted = await self.check(definition)
        keeper, catalogue = self._keeper, self._catalogue
        async with keeper.lock:
            await keeper.reload()
            known = catalogue.same_pool(wanted)
            if known is not None:
                raise SourceConflictError(
                    f"there is a pool {known.name!r} already: "
                    + ("it is active" if known.active else "start it, or choose another name"),
                    other=known.name,
                    field="name",
                    libvirt_code=LibvirtCode.OPERATION_INVALID if wanted.uuid and known.active else None,
                )
            wanted = msgspec.structs.replace(wanted, uuid=wanted.uuid or str(uuid.uuid4()))
            catalogue.check_source(wanted, None)
            pool = catalogue.add(wanted, keeper, persistent=False)
        try:
            await pool.lifecycle.start_now(build=build, refresh=True, timeout=timeout)
        except BaseException:
            if not pool.active and not pool.record.persistent:
                catalogue.remove(pool.record)
            raise
        return catalogue.handle(pool)

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
        """Refresh many pools at once. A pool that fails or hangs does not affect the others.

        :param names: the pools; None means all active ones. :param limit: how many at a time.
        :param timeout: seconds for each pool. :param full: read every header anew.
        :raises PoolNotFoundError: there is no pool of a name. Other errors of pools are in the report. If ``on_progress``
            raises, the refresh ends with an ``ExceptionGroup``.
        """
        self._services.check_open()
        pools = self.pools(active=True) if names is None else [self.pool(name) for name in dict.fromkeys(names)]
        return await refresh_pools(pools, limit=limit, timeout=timeout, full=full, on_progress=on_progress)

    async def start_all(
        self, autostart_only: bool = True, *, limit: int = 16, timeout: float | None = None
    ) -> dict[str, Exception | None]:
        """Start many inactive pools at once.

        :param autostart_only: only pools with an autostart mark. :param limit: how many at a time.
        :param timeout: as for :meth:`Pool.start`.
        :return: by pool name, None or the error.
        """
        self._services.check_open()
        pools = self.pools(active=False, persistent=True, autostart=True if autostart_only else None)
        return await start_pools(pools, limit=limit, timeout=timeout)

    def events(
        self,
        since: int | None = None,
        *,
        pools: Collection[str] | None = None,
        kinds: Collection[type[E]] | None = None,
    ) -> Subscription[E]:
        """Return a subscription: ``async with manager.events() as events: async for event in events: ...``.

        :param since: replay the events after this number first. :param pools: only events about these pools.
        :param kinds: only events of these classes (or their subclasses), and :class:`astore.Lagged` if some were missed.
        :return: it may be read in any thread's event loop.
        """
        return self._services.bus.subscribe(since, pools=pools, kinds=kinds)

    def watch(self, *, max_staleness: float | Mapping[str, float] | None = None, retry: bool = True) -> Watch:
        """Keep all pools fresh: ``async with manager.watch(): ...``.

        What others change in active pools, and in the store, is seen and told by events: at once where the storage tells of it,
        else by refreshing every so often; ``pool.info.freshness`` says how. The watch ends with its block, or with the Manager.

        :param max_staleness: seconds from the beginning of a refresh of a polled pool to that of the next, at most; for all
            pools, or by name.
        :param retry: try pools again that are inaccessible, or that ``start_all`` could not start (``PoolRetry``).
        :raises InvalidStateError: on entering: this Manager is watched already, or is closed.
        """
        from astore.manager.watching import Watch

        return Watch(self._services, self._catalogue, self._keeper, max_staleness, retry)

    async def discover(
        self,
        type: str,
        host: str | None = None,
        *,
        port: int | None = None,
        spec: str | bytes | None = None,
        initiator: str | None = None,
    ) -> DiscoveredSources:
        """Return the sources that a host offers for pools of a type. ``to_xml()`` returns libvirt's ``<sources>``.

        :param spec: a libvirt ``<source>`` document that names host, port and initiator, instead of these parameters.
        :param initiator: the name under which to ask, where servers show themselves to some initiators only.
        :raises BackendError: the type has no usable backend. UnsupportedOperationError: its backend cannot discover.
            DefinitionError: no host is named, or it is none. OSError, CommandError, TimeoutError: the host, or the program
            that asks it, failed or did not answer.
        """
        from astore.manager.discovery import discover_sources

        return await discover_sources(self._services, type, host, port, spec, initiator)

    async def capabilities(self) -> str:
        """Return libvirt's ``<storagepoolCapabilities>`` document: its pool types and those of all usable backends."""
        from astore.manager.discovery import capabilities_of

        return await capabilities_of(self._services)

    def statistics(self) -> Statistics:
        """Return the counts at this moment."""
        lanes, pools = self._services.check_open(), self._catalogue.all()
        return Statistics(
            pools=len(pools),
            active=sum(pool.active for pool in pools),
            volumes=sum(len(pool.snapshot) for pool in pools),
            events=self._services.bus.statistics(),
            lanes=lanes.statistics(),
            cleanups=cleanups_left_behind(),
        )
