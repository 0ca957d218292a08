"""What keeps the pools and their state folder together: what this process does to it, and what others did.

What other processes changed is taken over whenever the folder is read anew, which every definition begins with. One
lock serialises what changes the list of pools.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import anyio
import msgspec

from astore.backend import Backend
from astore.cancellation import CLEANUP_SECONDS, bounded, retrieved, shielded
from astore.errors import (
    InvalidStateError,
    ManagerClosedError,
    reason,
)
from astore.events import EventBus, PoolAutostartChanged, PoolDefined, PoolUndefined
from astore.lanes import Lanes
from astore.lanes.lane import PoolLane
from astore.logs import get_logger
from astore.model import PoolDef, PoolState
from astore.pools.pool import Pool
from astore.pools.record import PoolView
from astore.registry import BackendRegistry
from astore.store import local_definitions as storage
from astore.store.local_runs import LastSeen, Runs, RunState

if TYPE_CHECKING:
    from astore.manager.catalogue import Catalogue

T = TypeVar("T")
R = TypeVar("R")


class StateFolder:
    """The part of :class:`~astore.manager.Manager` that reads and writes the state folder."""

    def __init__(
        self,
        state_dir: str | Path | None,
        registry: BackendRegistry | None,
        *,
        call_timeout: float,
        event_capacity: int,
    ) -> None:
        if state_dir is not None and not str(state_dir):
            raise ValueError("the state folder has no name")
        self.state_dir = Path(state_dir) if state_dir is not None else storage.default_state_dir()
        self.log = get_logger()
        self._bus = EventBus(event_capacity)
        self._registry = registry if registry is not None else BackendRegistry()
        self._call_timeout = call_timeout
        self._store = storage.DefinitionStore(self.state_dir)
        self._pools: dict[str, Pool] = {}
        self._loaded = storage.Loaded()  # as it was taken over last
        self._fingerprint: object = None  # and that of the folder then; None: look again
        self._known = False  # whether it was read before
        self._run_writes: Counter[str] = Counter()  # by pool: what this Manager did to the run state, begun and done
        self._catalogue = anyio.Lock()
        self._lanes: Lanes | None = None
        self._closing = False
        self._store_lane: PoolLane | None = None

    def _check_open(self, lanes: Lanes | None = None) -> None:
        """:param lanes: those that were there when what is being done began.

        :raises ManagerClosedError: it is closed, or was closed since (and opened anew).
        """
        if self._lanes is None or self._closing or lanes not in (None, self._lanes):
            raise ManagerClosedError

    def _pool_lane(self, name: str, backend: Backend) -> PoolLane:
        self._check_open()
        assert self._lanes is not None
        return self._lanes.lane(f"pool {name!r}", limit=backend.lane_threads, timeout=self._call_timeout)

    async def _in_store(self, func: Callable[..., T], *args: Any, **options: Any) -> T:
        self._check_open()
        assert self._store_lane is not None
        return await self._store_lane.run(partial(func, *args, **options))

    async def _change_store(self, then: Callable[[T], R], func: Callable[..., T], *args: Any, **options: Any) -> R:
        """Change definitions on disk, and take that over by ``then``: both, or, cancelled, perhaps neither.

        :param func: is given ``given_up`` as well, and finds out by it, before it changes anything, that nobody waits.
        :param then: is given what that returns.
        """
        given_up = threading.Event()
        left = False

        async def change() -> R | None:
            done = await self._in_store(func, *args, given_up=given_up, **options)
            return None if left else then(done)

        task = asyncio.get_running_loop().create_task(change())
        task.add_done_callback(retrieved)
        try:
            return cast(R, await asyncio.shield(task))
        except BaseException:
            given_up.set()
            try:
                await shielded(bounded(asyncio.wait([task])))
            finally:
                left = not task.done()  # what is written later than that is found like what another process writes
            raise

    async def _catch_up(self, pool: PoolView) -> None:
        """Take over what other processes did to a pool, before anything is done that takes it to be as it was."""
        if await self._is_news(pool):
            async with self._catalogue:
                if await self._is_news(pool):
                    await self._reload(thoroughly=True)

    async def _is_news(self, pool: PoolView) -> bool:
        self._check_open()
        if self._pools.get(pool.name) is not pool:
            return False
        version = self._loaded.versions.get(pool.name) if pool.persistent else None
        damaged = any(file.name == pool.name for file in self._loaded.damaged)
        if pool.persistent and version is None and not damaged and self._loaded.mark is not None:
            return True  # it was undefined
        started_at = pool._started_at if pool.active else None
        return await self._in_store(self._store.is_news, pool.name, version=version, started_at=started_at)

    async def _reload(self, *, thoroughly: bool = False) -> None:
        """With the catalogue lock held. :param thoroughly: also where nothing seems to have changed."""
        fingerprint = await self._in_store(self._store.fingerprint, self._loaded.damaged)
        if fingerprint == self._fingerprint and not thoroughly:
            return
        writes = self._run_writes.copy()
        loaded, runs, last_seen = await self._in_store(self._read_store)
        # no await from here on: what was read is taken over whole, or not at all
        # pools whose run state this Manager changed while the files were being read, or changes now, or that cannot be read
        own = {
            name
            for name in self._pools.keys() | runs.active.keys()
            if writes[name] != self._run_writes[name] or writes[name] % 2
        } | runs.unknown
        tell = self._known  # what is found on entering did not change: it was so
        self._known, self._fingerprint, self._loaded = True, fingerprint, loaded
        kept = {item.definition.name for item in loaded.pools} | {file.name for file in loaded.damaged}
        for item in loaded.pools:
            self._take_definition(item, tell=tell)
        started: dict[str, Callable[[], None]] = {}  # since, by another process: how to take that over
        for name, run in runs.active.items():
            pool = self._pools.get(name)
            known = pool is not None and pool.active and (pool.uuid, pool._started_at) == (run.uuid, run.started_at)
            if name not in own and not known:
                started[name] = partial(self._take_run, name, run, last_seen.get(name), tell=tell)
        ended = []
        for name, pool in list(self._pools.items()):
            if name in own:
                continue
            if pool.active and pool.persistent and name not in kept and loaded.mark is not None:
                pool._persistent = pool._autostart = False  # another process undefined it
                pool._publish(PoolUndefined)
            if pool.active and (name in started or (name not in runs.active and loaded.runs_known)):
                ended.append(pool)
            elif not pool.active and name not in kept and name not in started:
                self._drop(pool)
        waiting = {pool.name for pool in ended}
        for name, take in started.items():
            if name not in waiting:
                take()
        if ended:
            await shielded(self._end(ended, kept, started))

    def _take_run(self, name: str, run: RunState, seen: LastSeen | None, *, tell: bool) -> None:
        """Another process has started a pool."""
        pool = self._pools.get(name)
        if pool is not None and pool.uuid != run.uuid:
            self._drop(
                pool
            )  # it is another of that name that runs; a definition that there is comes back when it stops
            pool = self._pools.get(name)
        if pool is None:
            definition = msgspec.structs.replace(run.definition, uuid=run.uuid)
            pool = self._pools[name] = self._new_pool(definition, persistent=False)
        if self._idle(pool):
            pool._restore(run.definition, seen, run.started_at, tell=tell)
        else:
            self._fingerprint = None  # it is being started or stopped here: look again

    def _take_definition(self, item: storage.StoredPool, *, tell: bool) -> None:
        name = item.definition.name
        pool = self._pools.get(name)
        if pool is not None and pool.uuid != item.definition.uuid and self._idle(pool):
            self._drop(pool)  # another process undefined it, and defined another of that name
            pool = None
        if pool is None:
            pool = self._pools[name] = self._new_pool(item.definition, persistent=True, autostart=item.autostart)
        elif pool.uuid != item.definition.uuid or not pool._redefine(item.definition, autostart=item.autostart):
            return
        if tell:
            pool._publish(PoolDefined)

    def _drop(self, pool: Pool) -> None:
        """Another process undefined it, if it is at rest here: else it is looked at again."""
        if pool._lifecycle.locked():
            self._fingerprint = None
            return
        del self._pools[pool.name]
        if pool.persistent:
            pool._publish(PoolUndefined)

    async def _end(
        self, pools: Collection[Pool], kept: Collection[str], started: Mapping[str, Callable[[], None]]
    ) -> None:
        """Another process stopped them, and perhaps started or undefined them since. Side by side: each may take a while."""

        async def end(pool: Pool) -> None:
            if pool._lifecycle.locked() or not pool.active:
                self._fingerprint = None  # something is done to it here: look again
                return
            async with pool._lifecycle:
                await pool._become_inactive(forget=False)
            if pool.name in started:
                started[pool.name]()
            elif pool.name not in kept and self._pools.get(pool.name) is pool:
                self._drop(pool)

        outcomes = await asyncio.gather(*(end(pool) for pool in pools), return_exceptions=True)
        if any(outcomes):
            self._fingerprint = None

    def _new_pool(self, definition: PoolDef, *, persistent: bool, autostart: bool = False) -> Pool:
        return Pool(cast("Catalogue", self), definition, persistent=persistent, autostart=autostart)

    @staticmethod
    def _idle(pool: Pool) -> bool:
        return pool.state is PoolState.INACTIVE and not pool._lifecycle.locked()

    def _read_store(self) -> tuple[storage.Loaded, Runs, dict[str, LastSeen]]:
        loaded, runs = self._store.load(), self._store.load_runs()
        found = {}
        for name, run in runs.active.items():
            pool = self._pools.get(name)
            if pool is None or not pool.active or pool._started_at != run.started_at:
                seen = self._store.load_snapshot(name, run.started_at)
                if seen is not None:
                    found[name] = seen
        return loaded, runs, found

    async def _undefine(self, pool: Pool) -> None:
        if not pool.persistent:
            raise InvalidStateError(
                f"pool {pool.name!r} is transient: stopping it removes it", pool=pool.name, operation="undefine"
            )

        def then(_: None) -> None:
            if self._pools.get(pool.name) is pool:
                del self._pools[pool.name]
            self._loaded.versions.pop(pool.name, None)
            pool._publish(PoolUndefined)

        async with self._catalogue:
            version = self._loaded.versions.get(pool.name)
            await self._change_store(then, self._store.remove, pool.name, version=version)

    async def _set_autostart(self, pool: Pool, autostart: bool) -> None:
        def then(_: None) -> None:
            if pool._autostart != autostart:
                pool._autostart = autostart
                pool._publish(PoolAutostartChanged, autostart=autostart)

        async with self._catalogue:
            pool._require_known()
            await self._change_store(then, self._store.set_autostart, pool.name, autostart)

    async def _save_run(self, pool: Pool, definition: PoolDef) -> None:
        """Note that a pool is being started. Cancelled, it is not noted, or it is and can be taken back."""
        pool._started_at = time.time()
        state = RunState(definition, pool.uuid, pool._started_at)
        self._run_writes[pool.name] += 1
        try:
            await self._change_store(lambda _: None, self._store.save_run, pool.name, state, persistent=pool.persistent)
        finally:
            self._run_writes[pool.name] += 1

    async def _runs_elsewhere(self, pool: PoolView) -> bool:
        """Whether another process has the pool active. Bounded; False where that cannot be told."""
        with anyio.move_on_after(CLEANUP_SECONDS), contextlib.suppress(Exception):
            return await self._in_store(self._store.started_at, pool.name) not in (None, pool._started_at)
        return False

    async def _check_forgettable(self, pool: PoolView) -> None:
        """Before anything is let go. :raises StoreError: it could not be noted that the pool is not active any more."""
        await self._in_store(self._store.check_forgettable, pool.name)

    async def _forget_run(self, pool: Pool) -> None:
        if self._store_lane is not None:
            self._run_writes[pool.name] += 1
            try:
                # bounded, and whatever it says: a state folder that is gone has no run state either
                await bounded(self._store_lane.run(self._store.forget_run, pool.name, pool._started_at))
            finally:
                self._run_writes[pool.name] += 1
        if not pool.persistent and self._pools.get(pool.name) is pool:  # not before: whoever reads would find a new one
            del self._pools[pool.name]

    async def _save_snapshots(self, pools: Iterable[Pool]) -> None:
        """Keep what is known for the next process: a cache, so that failing to write it is no failure."""
        for pool in pools:
            seen = pool._last_seen
            if pool.active and seen != pool._saved:
                assert self._store_lane is not None
                try:
                    await self._store_lane.run(self._store.save_snapshot, pool.name, seen, pool._started_at)
                    pool._saved = seen
                except Exception as error:  # a plugin's snapshot may have anything in it
                    self.log.info("what is known of a pool was not kept", pool=pool.name, error=reason(error))
