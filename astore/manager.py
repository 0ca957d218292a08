"""The Manager: the pools of one state folder, in one event loop."""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid as uuid_module
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import anyio
import msgspec

from astore import store as storage
from astore.backend import Backend, Context, DiscoversSources
from astore.commands import LaneCommandRunner
from astore.errors import (
    AstoreError,
    BackendError,
    DefinitionError,
    InvalidStateError,
    ManagerClosedError,
    PoolNotFoundError,
    SourceConflictError,
    UnsupportedOperationError,
    VolumeNotFoundError,
)
from astore.events import (
    DEFAULT_CAPACITY,
    Event,
    EventBus,
    EventsStatistics,
    PoolAutostartChanged,
    PoolDefined,
    PoolUndefined,
    Subscription,
)
from astore.lanes import DEFAULT_MAX_THREADS, DEFAULT_TIMEOUT, Lanes, LanesStatistics, PoolLane
from astore.logs import get_logger
from astore.model import DiscoveredSource, PoolDef, PoolState, RefreshOutcome, RefreshReport, Snapshot
from astore.names import check_host
from astore.pool import Pool
from astore.pool_refresh import CLEANUP_SECONDS
from astore.registry import BackendRegistry
from astore.shield import shielded
from astore.volume import Volume

T = TypeVar("T")

OnProgress = Callable[[int, int, RefreshOutcome], None]
"""Called after each pool with how many are done, how many there are, and the outcome; must not block."""

INLINE_XML = 16_384
"""Documents longer than this are parsed in a thread."""


class Statistics(msgspec.Struct, frozen=True):
    """The Manager at a moment."""

    pools: int
    active: int
    volumes: int
    events: EventsStatistics
    lanes: LanesStatistics


class Manager:
    """The pools of one state folder. Use it as ``async with astore.Manager() as manager``.

    Entering reads the definitions; leaving detaches: mounts and pools stay as they are, and are active again for the
    next Manager on the same folder, in this process or another.

    :param state_dir: the folder of definitions; None is the machine's (root: /var/lib/astore) or the user's own.
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
        self.state_dir = Path(state_dir) if state_dir is not None else storage.default_state_dir()
        self.log = get_logger()
        self._bus = EventBus(event_capacity)
        self._registry = registry if registry is not None else BackendRegistry()
        self._registry._publish = self._bus.publish
        self._max_threads = max_threads
        self._call_timeout = call_timeout
        self._store = storage.DefinitionStore(self.state_dir)
        self._pools: dict[str, Pool] = {}
        self._damaged: tuple[storage.DamagedFile, ...] = ()
        self._seen: object = None
        self._run_writes: Counter[str] = Counter()  # by pool: what this Manager did to the run state, begun and done
        self._catalogue = anyio.Lock()
        self._lanes: Lanes | None = None
        self._store_lane: PoolLane | None = None

    # --------------------------------------------------------------------------------------- entering and leaving

    async def __aenter__(self) -> Self:
        if self._lanes is not None:
            raise InvalidStateError("this Manager is open already", operation="open")
        self._bus.open()
        self._lanes = Lanes(self._max_threads)
        self._store_lane = self._lanes.lane(f"state folder {self.state_dir}", limit=4)
        try:
            await self._store_lane.run(self._registry.scan)
            await self.reload()
        except BaseException:
            self._lanes.close()
            self._lanes = None
            raise
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Detach from all pools, which stay as they are. May be called twice; takes two seconds at most."""
        lanes = self._lanes
        if lanes is None:
            return
        try:
            await shielded(self._detach(list(self._pools.values())))
        finally:
            self._lanes = None
            lanes.close()
            self._bus.close()

    async def _detach(self, pools: Sequence[Pool]) -> None:
        async def leave(pool: Pool) -> None:
            await pool._cancel_refresh("the Manager was closed")
            await pool._detach()

        with anyio.move_on_after(CLEANUP_SECONDS):
            await self._save_snapshots(pools)
        await asyncio.gather(*(leave(pool) for pool in pools), return_exceptions=True)

    async def reload(self) -> None:
        """Take over what other processes did to the state folder since it was last read."""
        self._check_open()
        async with self._catalogue:
            await self._reload()

    # ------------------------------------------------------------------------------------------------ definitions

    async def define(self, definition: str | bytes | PoolDef) -> Pool:
        """Define a pool, or define it anew (which an active pool takes up at its next start).

        :param definition: libvirt pool XML or a record.
        :raises DefinitionError: it is not acceptable. SourceConflictError: another pool has its name, uuid or source.
            StoreError: it could not be written.
        """
        wanted = await self._accepted(definition)
        async with self._catalogue:
            await self._reload()
            known = self._same_pool(wanted)
            wanted = msgspec.structs.replace(wanted, uuid=known.uuid if known else wanted.uuid or _new_uuid())
            self._check_source(wanted, known)
            await self._in_store(self._store.save, wanted)
            pool = known
            if pool is None:
                pool = self._pools[wanted.name] = Pool(self, wanted, persistent=True)
            else:
                was_transient = not pool.persistent
                pool._redefine(wanted, autostart=pool.autostart)
                if was_transient and pool.active:
                    await self._save_run(pool, pool.definition)
            pool._publish(PoolDefined)
            return pool

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
                    f"there is a pool {known.name!r} already: start it, or choose another name",
                    other=known.name,
                    field="name",
                )
            wanted = msgspec.structs.replace(wanted, uuid=wanted.uuid or _new_uuid())
            self._check_source(wanted, None)
            pool = self._pools[wanted.name] = Pool(self, wanted, persistent=False)
        try:
            await pool.start(build, timeout=timeout)
        except BaseException:
            if self._pools.get(pool.name) is pool and not pool.active:
                del self._pools[pool.name]
            raise
        return pool

    # ---------------------------------------------------------------------------------------------------- lookup

    @property
    def registry(self) -> BackendRegistry:
        """The backends."""
        return self._registry

    @property
    def damaged(self) -> tuple[storage.DamagedFile, ...]:
        """Definition files that could not be read, and why. They are left as they are."""
        return self._damaged

    def pool(self, name: str) -> Pool:
        """The pool of this name. :raises PoolNotFoundError: there is none."""
        pool = self._pools.get(name)
        if pool is None:
            raise PoolNotFoundError(f"there is no pool {name!r}", what=name)
        return pool

    def pool_by_uuid(self, uuid: str) -> Pool:
        """The pool with this UUID, however it is written. :raises PoolNotFoundError: there is none."""
        wanted = uuid.lower().replace("-", "")
        for pool in self._pools.values():
            if pool.uuid.replace("-", "") == wanted:
                return pool
        raise PoolNotFoundError(f"there is no pool with uuid {uuid!r}", what=uuid)

    def pool_by_target(self, path: str) -> Pool:
        """The pool whose target is this path. :raises PoolNotFoundError: there is none."""
        for pool in self._sorted():
            if pool.definition.target.path == path.rstrip("/"):
                return pool
        raise PoolNotFoundError(f"no pool has the target {path!r}", what=path)

    def pools(
        self,
        *,
        active: bool | None = None,
        persistent: bool | None = None,
        autostart: bool | None = None,
        types: Collection[str] | None = None,
        states: Collection[PoolState | str] | None = None,
    ) -> list[Pool]:
        """Pools in name order, by libvirt's filters; None does not filter."""
        wanted = None if states is None else {PoolState(state) for state in states}
        return [
            pool
            for pool in self._sorted()
            if (active is None or pool.active == active)
            and (persistent is None or pool.persistent == persistent)
            and (autostart is None or pool.autostart == autostart)
            and (types is None or pool.type in types)
            and (wanted is None or pool.state in wanted)
        ]

    def volume_by_key(self, key: str) -> Volume:
        """The volume with this key, over all active pools. :raises VolumeNotFoundError: there is none."""
        name = key.rstrip("/").rpartition("/")[2]
        for pool in self._sorted():
            # a key ends in the name (percent-escaped in URLs), so that few pools need a walk through their volumes
            info = pool.snapshot.get(name)
            if info is not None and info.key == key:
                return Volume(pool, name)
        for pool in self._sorted():
            if "%" in key:
                for info in pool.volumes:
                    if info.key == key:
                        return Volume(pool, info.name)
        raise VolumeNotFoundError(f"no active pool has a volume with the key {key!r}", what=key)

    def volume_by_path(self, path: str) -> Volume:
        """The volume with this path, over all active pools. :raises VolumeNotFoundError: there is none."""
        try:
            return self.volume_by_key(path)
        except VolumeNotFoundError:
            raise VolumeNotFoundError(f"no active pool has a volume with the path {path!r}", what=path) from None

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
        :raises PoolNotFoundError: a name is not a pool's. Nothing else is raised for a pool: see the report.
        """
        self._check_open()
        pools = self.pools(active=True) if names is None else [self.pool(name) for name in dict.fromkeys(names)]
        outcomes: dict[str, RefreshOutcome] = {}

        async def one(pool: Pool) -> None:
            began = time.monotonic()
            try:
                outcome = await pool.refresh(full=full, timeout=timeout)
            except (AstoreError, OSError) as error:
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
            except (AstoreError, OSError) as error:
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
        self, type: str, host: str | None = None, *, port: int | None = None
    ) -> Sequence[DiscoveredSource]:
        """Which sources a host offers for pools of a type.

        :raises BackendError: no such backend. UnsupportedOperationError: it cannot. DefinitionError: not a host.
            OSError, CommandError, TimeoutError: the host, or the program that asks it, did not answer.
        """
        self._check_open()
        assert self._lanes is not None
        if host is not None:
            host = check_host(host)
        backend = await self._registry.get(type)
        if not isinstance(backend, DiscoversSources):
            raise UnsupportedOperationError(pool=None, type=type, operation="discover")
        lane = self._lanes.lane(f"discovery of {type} on {host}", limit=4, timeout=self._call_timeout)
        try:
            context = Context("", "", lane, LaneCommandRunner(lane), self.log.bind(discover=type), self._call_timeout)
            return await backend.discover(host, context, port=port)
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

    # ------------------------------------------------------------------------------------ below: for Pool, and inside

    def _check_open(self) -> None:
        if self._lanes is None:
            raise ManagerClosedError

    def _pool_lane(self, name: str, backend: Backend) -> PoolLane:
        self._check_open()
        assert self._lanes is not None
        return self._lanes.lane(f"pool {name!r}", limit=backend.lane_threads, timeout=self._call_timeout)

    def _sorted(self) -> list[Pool]:
        return [pool for _, pool in sorted(self._pools.items())]

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

    async def _in_store(self, func: Callable[..., T], *args: Any) -> T:
        self._check_open()
        assert self._store_lane is not None
        return await self._store_lane.run(func, *args)

    async def _accepted(self, definition: str | bytes | PoolDef) -> PoolDef:
        """The definition, checked by the XML rules, wherever it came from, and by its backend, if there is one."""
        self._check_open()
        from astore.xml import pool_from_xml, pool_to_xml

        if isinstance(definition, PoolDef):
            text: str | bytes = pool_to_xml(definition)
        else:
            text = definition
        wanted = pool_from_xml(text) if len(text) <= INLINE_XML else await self._in_store(pool_from_xml, text)
        try:
            backend = await self._registry.get(wanted.type)
        except BackendError:
            return wanted
        return backend.check(wanted)

    def _same_pool(self, wanted: PoolDef) -> Pool | None:
        """The pool that a definition is about, by libvirt's rule: one name is one uuid, both ways."""
        by_name = self._pools.get(wanted.name)
        if by_name is not None:
            if wanted.uuid is not None and by_name.uuid != wanted.uuid:
                raise SourceConflictError(
                    f"pool {wanted.name!r} exists already with the uuid {by_name.uuid}",
                    other=by_name.name,
                    field="name",
                )
            return by_name
        for pool in self._pools.values():
            if wanted.uuid is not None and pool.uuid == wanted.uuid:
                raise SourceConflictError(
                    f"the uuid {wanted.uuid} belongs to pool {pool.name!r} already", other=pool.name, field="uuid"
                )
        for file in self._damaged:
            if file.name == wanted.name:
                raise DefinitionError(
                    f"there is a damaged definition of pool {wanted.name!r}: repair or remove {file.path} first"
                )
        return None

    def _check_source(self, wanted: PoolDef, known: Pool | None) -> None:
        """No two pools of one type have the same source."""
        backend = self._registry.loaded(wanted.type)
        if backend is None:
            return
        mine = backend.source_key(wanted)
        if not mine:
            return
        for pool in self._pools.values():
            if pool is known:
                continue
            for theirs in {id(d): d for d in (pool.definition, pool._definition) if d.type == wanted.type}.values():
                try:
                    same = backend.source_key(backend.check(theirs)) == mine
                except DefinitionError:
                    continue
                if same:
                    fields = ", ".join(f"{field} {value!r}" for field, value in mine)
                    raise SourceConflictError(
                        f"pool {pool.name!r} has the same source: {fields}", other=pool.name, field=mine[0][0]
                    )

    async def _reload(self) -> None:
        """With the catalogue lock held."""
        seen = await self._in_store(self._store.fingerprint)
        if seen == self._seen:
            return
        writes = self._run_writes.copy()
        loaded, runs, snapshots = await self._in_store(self._read_store)
        # pools that this Manager started or stopped while the files were being read: of those it knows better
        own = {name for name in self._pools.keys() | runs.keys() if writes[name] != self._run_writes[name]}
        tell = self._seen is not None  # what is found on entering did not change: it was so
        self._seen = seen
        self._damaged = loaded.damaged
        stored = {item.definition.name: item for item in loaded.pools}
        for name, item in stored.items():
            pool = self._pools.get(name)
            if pool is not None and pool.uuid != item.definition.uuid and self._idle(pool):
                pool = None  # another process undefined it, and defined another of that name
            if pool is None:
                pool = self._pools[name] = Pool(self, item.definition, persistent=True, autostart=item.autostart)
                changed = True
            elif pool.uuid == item.definition.uuid:
                changed = pool._redefine(item.definition, autostart=item.autostart)
            else:
                changed = False
            if changed and tell:
                pool._publish(PoolDefined)
        for name, run in runs.items():
            if name in own:
                continue
            pool = self._pools.get(name)
            if pool is None:
                definition = msgspec.structs.replace(run.definition, uuid=run.uuid)
                pool = self._pools[name] = Pool(self, definition, persistent=False)
            if self._idle(pool) and pool.uuid == run.uuid:
                pool._restore(run.definition, snapshots.get(name), run.started_at, tell=tell)
        damaged = {file.name for file in loaded.damaged}
        for name, pool in list(self._pools.items()):
            if pool._lifecycle.locked() or name in damaged or name in own:
                continue
            if pool.active and name not in runs:  # another process stopped it
                pool._lifecycle.acquire_nowait()
                try:
                    await shielded(pool._become_inactive(forget=False))
                finally:
                    pool._lifecycle.release()
            if not pool.active and name not in stored and self._pools.get(name) is pool:
                del self._pools[name]  # another process undefined it
                if pool.persistent:
                    pool._publish(PoolUndefined)

    @staticmethod
    def _idle(pool: Pool) -> bool:
        return pool.state is PoolState.INACTIVE and not pool._lifecycle.locked()

    def _read_store(self) -> tuple[storage.Loaded, dict[str, storage.RunState], dict[str, Snapshot]]:
        loaded, runs = self._store.load(), self._store.load_runs()
        snapshots = {}
        for name in runs:
            pool = self._pools.get(name)
            if pool is None or not pool.active:
                snapshot = self._store.load_snapshot(name)
                if snapshot is not None:
                    snapshots[name] = snapshot
        return loaded, runs, snapshots

    async def _undefine(self, pool: Pool) -> None:
        if not pool.persistent:
            raise InvalidStateError(
                f"pool {pool.name!r} is transient: stopping it removes it", pool=pool.name, operation="undefine"
            )
        async with self._catalogue:
            await self._in_store(self._store.remove, pool.name)
            if self._pools.get(pool.name) is pool:
                del self._pools[pool.name]
            pool._publish(PoolUndefined)

    async def _set_autostart(self, pool: Pool, autostart: bool) -> None:
        async with self._catalogue:
            await self._in_store(self._store.set_autostart, pool.name, autostart)
            if pool._autostart != autostart:
                pool._autostart = autostart
                pool._publish(PoolAutostartChanged, autostart=autostart)

    async def _save_run(self, pool: Pool, definition: PoolDef) -> None:
        state = storage.RunState(definition, pool.uuid, pool.persistent, time.time())
        self._run_writes[pool.name] += 1
        try:
            await self._in_store(self._store.save_run, pool.name, state)
        finally:
            self._run_writes[pool.name] += 1

    async def _forget_run(self, pool: Pool) -> None:
        if not pool.persistent and self._pools.get(pool.name) is pool:
            del self._pools[pool.name]
        if self._store_lane is not None:
            self._run_writes[pool.name] += 1
            try:
                with contextlib.suppress(AstoreError):  # a state folder that is gone has no run state either
                    await self._store_lane.run(self._store.forget_run, pool.name)
            finally:
                self._run_writes[pool.name] += 1

    async def _save_snapshots(self, pools: Iterable[Pool]) -> None:
        """Keep what is known for the next process: a cache, so that failing to write it is no failure."""
        for pool in pools:
            snapshot = pool.snapshot
            if pool.active and snapshot.generation and snapshot is not pool._saved:
                with contextlib.suppress(AstoreError):
                    await self._in_store(self._store.save_snapshot, pool.name, snapshot)
                    pool._saved = snapshot


def _new_uuid() -> str:
    return str(uuid_module.uuid4())
