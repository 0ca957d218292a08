"""The catalogue: the pools of one state folder, by name, and what this process and others do to their definitions.

What other processes changed is taken over whenever the catalogue is read anew, which every definition begins with. One
lock serialises what changes the list of pools; lookups need none.
"""

from __future__ import annotations

import contextlib
import time
import uuid as uuid_module
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any, TypeVar

import anyio
import msgspec

from astore import store as storage
from astore.backend import Backend
from astore.errors import (
    AstoreError,
    BackendError,
    DefinitionError,
    InvalidStateError,
    LibvirtCode,
    ManagerClosedError,
    PoolNotFoundError,
    SourceConflictError,
    VolumeNotFoundError,
    reason,
)
from astore.events import EventBus, PoolAutostartChanged, PoolDefined, PoolUndefined
from astore.lanes import Lanes
from astore.logs import get_logger
from astore.model import PoolDef, PoolState, Snapshot, VolumeInfo
from astore.names import check_uuid, normal_path
from astore.pool import Pool
from astore.pool_lane import PoolLane
from astore.pool_view import PoolView
from astore.registry import BackendRegistry
from astore.shield import shielded
from astore.volume import Volume
from astore.volume_work.chain import same_volume

T = TypeVar("T")

INLINE_XML = 16_384
"""Documents longer than this are parsed in a thread."""


class Catalogue:
    """The part of :class:`~astore.manager.Manager` that knows the pools; the state folder is its memory."""

    def __init__(
        self,
        state_dir: str | Path | None,
        registry: BackendRegistry | None,
        *,
        call_timeout: float,
        event_capacity: int,
    ) -> None:
        self.state_dir = Path(state_dir) if state_dir is not None else storage.default_state_dir()
        self.log = get_logger()
        self._bus = EventBus(event_capacity)
        self._registry = registry if registry is not None else BackendRegistry()
        self._call_timeout = call_timeout
        self._store = storage.DefinitionStore(self.state_dir)
        self._pools: dict[str, Pool] = {}
        self._damaged: tuple[storage.DamagedFile, ...] = ()
        self._seen: object = None
        self._run_writes: Counter[str] = Counter()  # by pool: what this Manager did to the run state, begun and done
        self._catalogue = anyio.Lock()
        self._lanes: Lanes | None = None
        self._closing = False
        self._store_lane: PoolLane | None = None

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
        try:
            wanted = check_uuid(uuid)
        except DefinitionError:
            raise PoolNotFoundError(
                f"there is no pool with uuid {uuid!r}: it is none", what=uuid, libvirt_code=LibvirtCode.INVALID_ARG
            ) from None
        for pool in self._pools.values():
            if pool.uuid == wanted:
                return pool
        raise PoolNotFoundError(f"there is no pool with uuid {uuid!r}", what=uuid)

    def pool_by_target(self, path: str) -> Pool:
        """The active pool whose target is this path. :raises PoolNotFoundError: there is none."""
        wanted = normal_path(path)
        for pool in self._sorted():
            if pool.active and pool.definition.target.path == wanted:
                return pool
        raise PoolNotFoundError(f"no active pool has the target {path!r}", what=path)

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
        return self._volume_by("key", key)

    def volume_by_path(self, path: str) -> Volume:
        """The volume with this path, over all active pools. :raises VolumeNotFoundError: there is none."""
        return self._volume_by("path", normal_path(path))

    def _volume_by(self, field: str, value: str) -> Volume:
        pools = self._sorted()
        name = value.rstrip("/").rpartition("/")[2]
        for pool in pools:
            # most keys and paths end in the name, so that few need a walk through all volumes
            info = pool.snapshot.get(name)
            if info is not None and getattr(info, field) == value:
                return Volume(pool, name)
        for pool in pools:
            for info in pool.volumes:
                if getattr(info, field) == value:
                    return Volume(pool, info.name)
        raise VolumeNotFoundError(f"no active pool has a volume with the {field} {value!r}", what=value)

    def dependents(self, volume: Volume) -> list[Volume]:
        """The volumes, over all active pools, that are backed by this one, in the order of pools and names.

        :raises VolumeNotFoundError: it is not there.
        """
        return self._dependents_of(volume.info, volume.pool)

    def _dependents_of(self, info: VolumeInfo, pool: Pool | PoolView) -> list[Volume]:
        same = same_volume(info, pool)
        return [
            Volume(other, one.name)
            for other in self._sorted()
            for one in other.snapshot.backed
            if one.backing_path is not None and same(one.backing_path)
        ]

    # ------------------------------------------------------------------------------------ below: for Pool, and inside

    def _check_open(self) -> None:
        if self._lanes is None or self._closing:
            raise ManagerClosedError

    def _pool_lane(self, name: str, backend: Backend) -> PoolLane:
        self._check_open()
        assert self._lanes is not None
        return self._lanes.lane(f"pool {name!r}", limit=backend.lane_threads, timeout=self._call_timeout)

    def _sorted(self) -> list[Pool]:
        return [pool for _, pool in sorted(self._pools.items())]

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
        try:
            return backend.check(wanted)
        except AstoreError:
            raise
        except Exception as error:  # plugin code: it may raise anything
            raise BackendError(
                f"the backend of pool type {wanted.type!r} cannot check pool {wanted.name!r}: "
                f"{type(error).__name__}: {reason(error)}",
                type=wanted.type,
            ) from error

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
                if self._source_key(pool, theirs, backend) == mine:
                    fields = ", ".join(f"{field} {value!r}" for field, value in mine)
                    raise SourceConflictError(
                        f"pool {pool.name!r} has the same source: {fields}", other=pool.name, field=mine[0][0]
                    )

    @staticmethod
    def _source_key(pool: Pool, definition: PoolDef, backend: Backend) -> object:
        """What identifies the source of one of a pool's definitions; kept, since every new pool is compared with all."""
        kept = pool._source_keys.get(id(definition))
        if kept is None or kept[0] is not definition or kept[1] is not backend:
            try:
                key = backend.source_key(backend.check(definition))
            except Exception:  # it is not acceptable, or its backend has a fault: no source that is known
                key = ()
            current = {id(pool.definition), id(pool._definition)}
            pool._source_keys = {at: one for at, one in pool._source_keys.items() if at in current}
            kept = pool._source_keys[id(definition)] = (definition, backend, key)
        return kept[2]

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
                del self._pools[name]  # another process undefined it, and defined another of that name
                pool._publish(PoolUndefined)
                pool = None
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
            pool._require_known()
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
                assert self._store_lane is not None
                with contextlib.suppress(AstoreError):
                    await self._store_lane.run(self._store.save_snapshot, pool.name, snapshot)
                    pool._saved = snapshot


def new_uuid() -> str:
    """A random UUID, as libvirt writes it."""
    return str(uuid_module.uuid4())
