"""Keeper: what keeps the pools and the state folder the same: what this process does, and what others did.

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
from typing import Any, TypeVar, cast

import anyio
import msgspec

from astore.cancellation import CLEANUP_SECONDS, bounded, retrieved, shielded
from astore.errors import InvalidStateError, reason
from astore.events import PoolDefined, PoolUndefined
from astore.lanes.lane import PoolLane
from astore.manager.catalogue import Catalogue
from astore.model import PoolDef
from astore.pools.life import Life
from astore.pools.parts import Parts
from astore.pools.record import PoolRecord
from astore.pools.services import Services
from astore.store.local_definitions import DefinitionStore, Loaded, StoredPool
from astore.store.local_files import LOCK_TIMEOUT, Version
from astore.store.local_runs import OUTDATED_PAUSE, LastSeen, OutdatedError, Runs, RunState

T = TypeVar("T")
R = TypeVar("R")


class Keeper:
    """Reads and writes the state folder for the catalogue. It is the :class:`~astore.pools.host.Host` of all pools."""

    def __init__(self, services: Services, catalogue: Catalogue, store: DefinitionStore) -> None:
        self._services = services
        self._catalogue = catalogue
        self._store = store
        self._lane: PoolLane | None = None
        self.loaded = Loaded()  # as it was taken over last
        self._fingerprint: object = None  # and that of the folder then; None: look again
        self._known = False  # whether it was read before
        self._run_writes: Counter[str] = Counter()  # by pool: what this Manager did to the run state, begun and done
        self.lock = anyio.Lock()
        """Held while the list of pools is changed."""

    def open(self, lane: PoolLane) -> None:
        """Begin to use the folder. :param lane: for blocking calls on it."""
        self._lane = lane

    # --------------------------------------------------------------------------------------------- calls on a lane

    async def run(self, func: Callable[..., T], *args: Any, **options: Any) -> T:
        """Make a blocking call on the lane of the state folder. :raises ManagerClosedError"""
        self._services.check_open()
        assert self._lane is not None
        return await self._lane.run(partial(func, *args, **options))

    async def _change(self, then: Callable[[T], R], func: Callable[..., T], *args: Any, **options: Any) -> R:
        """Change definitions on disk, and take that over by ``then``: both, or, cancelled, perhaps neither.

        :param func: is given ``given_up`` as well, and finds out by it, before it changes anything, that nobody waits.
        :param then: is given what that returns.
        """
        given_up = threading.Event()
        left = False

        async def change() -> R | None:
            done = await self.run(func, *args, given_up=given_up, **options)
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

    # ------------------------------------------------------------------------------------------- what others did

    async def catch_up(self, record: PoolRecord) -> None:
        """Take over what other processes did to a pool, before anything is done that takes it to be as it was."""
        if await self._is_news(record):
            async with self.lock:
                if await self._is_news(record):
                    await self.reload(thoroughly=True)

    async def _is_news(self, record: PoolRecord) -> bool:
        self._services.check_open()
        if record.gone:
            return False
        loaded = self.loaded
        version = loaded.versions.get(record.name) if record.persistent else None
        damaged = any(file.name == record.name for file in loaded.damaged)
        if record.persistent and version is None and not damaged and loaded.mark is not None:
            return True  # it was undefined
        started_at = None if record.life is None else record.life.started_at
        return await self.run(self._store.is_news, record.name, version=version, started_at=started_at)

    async def reload(self, *, thoroughly: bool = False) -> None:
        """Take over what is in the folder, with :attr:`lock` held. :param thoroughly: also where nothing seems changed."""
        fingerprint = await self.run(self._store.fingerprint, self.loaded.damaged)
        if fingerprint == self._fingerprint and not thoroughly:
            return
        writes = self._run_writes.copy()
        loaded, runs, last_seen = await self.run(self._read)
        # no await from here on: what was read is taken over whole, or not at all
        # pools whose run state this Manager changed while the files were being read, or changes now, or that cannot be read
        own = {
            name
            for name in {pool.name for pool in self._catalogue.all()} | runs.active.keys()
            if writes[name] != self._run_writes[name] or writes[name] % 2
        } | runs.unknown
        tell = self._known  # what is found on entering did not change: it was so
        self._known, self._fingerprint, self.loaded = True, fingerprint, loaded
        self._catalogue.damaged = {file.name: file.path for file in loaded.damaged}
        kept = {item.definition.name for item in loaded.pools} | self._catalogue.damaged.keys()
        for item in loaded.pools:
            self._take_definition(item, tell=tell)
        started: dict[str, Callable[[], None]] = {}  # since, by another process: how to take that over
        for name, run in runs.active.items():
            if name not in own and not self._is_known(name, run):
                started[name] = partial(self._take_run, name, run, last_seen.get(name), tell=tell)
        ended = []
        for pool in self._catalogue.all():
            name, record = pool.name, pool.record
            if name in own:
                continue
            if pool.active and record.persistent and name not in kept and loaded.mark is not None:
                record.become_transient()  # another process undefined it
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

    def _read(self) -> tuple[Loaded, Runs, dict[str, LastSeen]]:
        loaded, runs = self._store.load(), self._store.load_runs()
        found = {}
        for name, run in runs.active.items():
            if not self._is_known(name, run):
                seen = self._store.load_snapshot(name, run.started_at)
                if seen is not None:
                    found[name] = seen
        return loaded, runs, found

    def _is_known(self, name: str, run: RunState) -> bool:
        """Whether a run is the one that the pool of that name has here."""
        pool = self._catalogue.get(name)
        life = None if pool is None else pool.record.life
        return life is not None and (life.uuid, life.started_at) == (run.uuid, run.started_at)

    def _take_run(self, name: str, run: RunState, seen: LastSeen | None, *, tell: bool) -> None:
        """Another process has started a pool."""
        pool = self._catalogue.get(name)
        if pool is not None and pool.record.uuid != run.uuid:
            # it is another of that name that runs; a definition that there is comes back when it stops
            self._drop(pool)
            pool = self._catalogue.get(name)
        if pool is None:
            definition = msgspec.structs.replace(run.definition, uuid=run.uuid)
            pool = self._catalogue.add(definition, self, persistent=False)
        if pool.idle:
            life = Life(self._services, run.uuid, run.definition, run.started_at)
            pool.record.restore(life, seen, tell=tell)
        else:
            self._fingerprint = None  # it is being started or stopped here: look again

    def _take_definition(self, item: StoredPool, *, tell: bool) -> None:
        pool = self._catalogue.get(item.definition.name)
        if pool is not None and pool.record.uuid != item.definition.uuid and pool.idle:
            self._drop(pool)  # another process undefined it, and defined another of that name
            pool = None
        if pool is None:
            pool = self._catalogue.add(item.definition, self, persistent=True, autostart=item.autostart)
        elif pool.record.uuid != item.definition.uuid or not pool.record.redefine(
            item.definition, autostart=item.autostart
        ):
            return
        if tell:
            pool.record.publish(PoolDefined)

    def _drop(self, pool: Parts) -> None:
        """Another process undefined it, if it is at rest here: else it is looked at again."""
        if pool.lifecycle.busy:
            self._fingerprint = None
            return
        self._catalogue.remove(pool.record)
        if pool.record.persistent:
            pool.record.publish(PoolUndefined)

    async def _end(
        self, pools: Collection[Parts], kept: Collection[str], started: Mapping[str, Callable[[], None]]
    ) -> None:
        """Another process stopped them, and perhaps started or undefined them since. Side by side: each may take a while."""

        async def end(pool: Parts) -> None:
            if not await pool.lifecycle.ended_elsewhere():
                self._fingerprint = None  # something is done to it here: look again
            elif pool.name in started:
                started[pool.name]()
            elif pool.name not in kept and not pool.record.gone:
                self._drop(pool)

        outcomes = await asyncio.gather(*(end(pool) for pool in pools), return_exceptions=True)
        if any(outcomes):
            self._fingerprint = None

    # ------------------------------------------------------------------------------------- what this process does

    async def define(self, accepted: PoolDef, new_uuid: Callable[[], str]) -> Parts:
        """Keep a definition, and take it over. :raises: what :meth:`astore.Manager.define` raises."""
        async with self.lock:
            until = time.monotonic() + LOCK_TIMEOUT
            while True:
                await self.reload()
                try:
                    return await self._define(accepted, new_uuid)
                except OutdatedError:  # another process was faster; what it did is to be looked at first
                    if time.monotonic() > until:
                        raise
                    await asyncio.sleep(OUTDATED_PAUSE)

    async def _define(self, accepted: PoolDef, new_uuid: Callable[[], str]) -> Parts:
        known = self._catalogue.same_pool(accepted)
        uuid = known.record.uuid if known is not None else accepted.uuid or new_uuid()
        wanted = msgspec.structs.replace(accepted, uuid=uuid)
        self._catalogue.check_source(wanted, known)

        def then(version: Version) -> Parts:
            self.loaded.versions[wanted.name] = version
            pool = self._catalogue.get(wanted.name)
            if pool is None:  # new; or one that was transient, and has been stopped meanwhile
                pool = self._catalogue.add(wanted, self, persistent=True)
            else:
                pool.record.redefine(wanted, autostart=pool.record.autostart)
            pool.record.publish(PoolDefined)
            return pool

        return await self._change(then, self._store.save, wanted, loaded=self.loaded)

    async def undefine(self, record: PoolRecord) -> None:
        """Remove a pool's definition. :raises InvalidStateError: it has none. OutdatedError: another process changed it."""
        if not record.persistent:
            raise InvalidStateError(
                f"pool {record.name!r} is transient: stopping it removes it", pool=record.name, operation="undefine"
            )

        def then(_: None) -> None:
            self._catalogue.remove(record)
            self.loaded.versions.pop(record.name, None)
            record.publish(PoolUndefined)

        async with self.lock:
            version = self.loaded.versions.get(record.name)
            await self._change(then, self._store.remove, record.name, version=version)

    async def set_autostart(self, record: PoolRecord, autostart: bool) -> None:
        """Keep whether a pool is started automatically."""
        async with self.lock:
            record.require_known()
            await self._change(
                lambda _: record.set_autostart(autostart), self._store.set_autostart, record.name, autostart
            )

    async def begin_run(self, record: PoolRecord, life: Life) -> None:
        """Note that a pool is being started. Cancelled, it is not noted, or it is and can be taken back."""
        state = RunState(life.definition, record.uuid, life.started_at)
        self._run_writes[record.name] += 1
        try:
            await self._change(lambda _: None, self._store.save_run, record.name, state, persistent=record.persistent)
        finally:
            self._run_writes[record.name] += 1

    async def runs_elsewhere(self, record: PoolRecord, life: Life) -> bool:
        """Whether another process has the pool active. Bounded; False where that cannot be told."""
        with anyio.move_on_after(CLEANUP_SECONDS), contextlib.suppress(Exception):
            return await self.run(self._store.started_at, record.name) not in (None, life.started_at)
        return False

    async def check_end_run(self, record: PoolRecord) -> None:
        """Before anything is let go. :raises StoreError: it could not be noted that the pool is not active any more."""
        await self.run(self._store.check_forgettable, record.name)

    async def end_run(self, record: PoolRecord, life: Life) -> None:
        """Note that a pool is not active any more; a transient one is gone then."""
        if self._lane is not None:
            self._run_writes[record.name] += 1
            try:
                # bounded, and whatever it says: a state folder that is gone has no run state either
                await bounded(self._lane.run(self._store.forget_run, record.name, life.started_at))
            finally:
                self._run_writes[record.name] += 1
        if not record.persistent:  # not before: whoever reads would find a new one
            self._catalogue.remove(record)

    async def save_snapshots(self, pools: Iterable[Parts]) -> None:
        """Keep what is known for the next process: a cache, so that failing to write it is no failure."""
        for pool in pools:
            record, life = pool.record, pool.record.life
            seen = record.last_seen
            if life is not None and seen != record.saved:
                assert self._lane is not None
                try:
                    await self._lane.run(self._store.save_snapshot, record.name, seen, life.started_at)
                    record.saved = seen
                except Exception as error:  # a plugin's snapshot may have anything in it
                    self._services.log.info(
                        "what is known of a pool was not kept", pool=record.name, error=reason(error)
                    )
