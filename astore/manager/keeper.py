"""Keeper: keeps the store and the catalogue of pools in agreement.

Each read of the store takes over the changes of other processes; every definition begins with one. One lock serialises
changes of the list of pools.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import time
import uuid
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Iterable, Iterator, Mapping
from functools import partial
from typing import TypeVar

import anyio
import msgspec

from astore.cancellation import CLEANUP_SECONDS, bounded, shielded
from astore.errors import reason
from astore.events import PoolDefined, PoolUndefined
from astore.lanes.lane import PoolLane
from astore.manager.catalogue import Catalogue
from astore.model import PoolDef
from astore.pools.life import Life
from astore.pools.lifecycle import Host
from astore.pools.parts import Parts
from astore.pools.record import PoolRecord
from astore.pools.services import Services
from astore.store.contract import (
    Contents,
    KeepsSnapshots,
    LastSeen,
    OutdatedError,
    Revision,
    Run,
    Store,
    StoredPool,
    Version,
    WatchesStore,
)

T = TypeVar("T")

RETRY_SECONDS = 10.0
"""How long a change is retried while other processes are faster."""

RETRY_PAUSE = 0.01
"""Seconds between two tries."""

FOLLOW_SECONDS = 1.0
"""Seconds between two reads of a store that tells nothing, while it is watched."""


async def _every(seconds: float) -> AsyncGenerator[None]:
    while True:
        await asyncio.sleep(seconds)
        yield


class Keeper(Host):
    """Reads and writes the store for the catalogue."""

    def __init__(self, services: Services, catalogue: Catalogue, store: Store) -> None:
        self._services = services
        self._catalogue = catalogue
        self._store = store
        self._revision: Revision | None = None  # the revision that was read last
        self._versions: dict[str, Version] = {}  # the definitions' versions, as read or put
        self._lost = False  # whether the store was gone at the last read
        self._look_again = False  # read everything anew, even if the store has not changed
        self._run_writes: Counter[str] = Counter()  # by pool: writes of its run, begun and done; odd during a write
        self.lock: anyio.Lock = anyio.Lock()
        """Held while the list of pools is changed."""

    async def open(self, lane: PoolLane) -> None:
        """Open the store. :param lane: threads for blocking calls. :raises StoreError: the store cannot be used."""
        await self._store.open(lane)

    async def aclose(self) -> None:
        """Close the store. Bounded; never raises."""
        await bounded(self._store.aclose())

    # ------------------------------------------------------------------------------------------------- changes

    async def until_current(self, attempt: Callable[[], Awaitable[T]]) -> T:
        until = time.monotonic() + RETRY_SECONDS
        while True:
            try:
                return await attempt()
            except OutdatedError:
                if time.monotonic() > until:
                    raise
            await asyncio.sleep(RETRY_PAUSE)

    async def _changed(self, change: Awaitable[T]) -> T:
        """Await a change of the store, with :attr:`lock` held. If cancelled, read the store to learn the outcome (bounded)."""
        try:
            return await change
        except asyncio.CancelledError:
            self._look_again = True
            await shielded(bounded(self.reload()), whole=True)
            raise

    # ------------------------------------------------------------------------------- changes of other processes

    async def follow(self) -> None:
        """Take over what other processes change, as soon as the store tells of it or within a second, until it is cancelled.

        :raises StoreError: the store cannot be read.
        """
        told = self._store.changes() if isinstance(self._store, WatchesStore) else _every(FOLLOW_SECONDS)
        async with contextlib.aclosing(told) as changes:
            async for _ in changes:
                async with self.lock:
                    await self.reload()

    async def catch_up(self, record: PoolRecord) -> None:
        if await self._is_news(record):
            async with self.lock:
                if await self._is_news(record):
                    await self.reload(thoroughly=True)

    async def _is_news(self, record: PoolRecord) -> bool:
        self._services.check_open()
        if record.gone:
            return False
        version = self._versions.get(record.name) if record.persistent else None
        if record.persistent and version is None and not self._lost:
            return True  # it was undefined
        current = await self._store.current(record.name)
        started_at = None if record.life is None else record.life.started_at
        if current.started_at != started_at and not current.lost:
            return True
        return version is not None and version != current.version

    async def reload(self, *, thoroughly: bool = False) -> None:
        """Take over the contents of the store, with :attr:`lock` held.

        :param thoroughly: read everything, even if nothing seems to have changed.
        """
        self._services.check_open()
        writes = self._run_writes.copy()
        if self._revision is not None:
            self._revision = self._store.advanced(self._revision)
        contents = await self._store.read(None if thoroughly or self._look_again else self._revision)
        if contents is None:
            return
        last_seen = await self._last_seen(contents)
        # no await from here on: the contents are taken over whole, or not at all
        tell = self._revision is not None  # the first read, on entering, finds no changes
        self._take_contents(contents)
        runs = contents.runs
        # pools whose run this Manager was changing during the read, or whose run cannot be read
        own = {
            name
            for name in {pool.name for pool in self._catalogue.all()} | runs.keys()
            if writes[name] != self._run_writes[name] or writes[name] % 2
        } | contents.unknown
        for item in contents.pools:
            self._take_definition(item, tell=tell)
        started: dict[str, Callable[[], None]] = {}  # pools that another process started, and how to take over the run
        for name, run in runs.items():
            if name not in own and not self._is_known(run):
                started[name] = partial(self._take_run, run, last_seen.get(name), tell=tell)
        ended = []
        for pool in self._catalogue.all():
            name, record = pool.name, pool.record
            if name in own:
                continue
            if pool.active and record.persistent and name not in self._versions and not contents.lost:
                record.become_transient()  # another process undefined it
            if pool.active and (name in started or (name not in runs and not contents.lost)):
                ended.append(pool)
            elif not pool.active and name not in self._versions and name not in started:
                self._drop(pool)
        waiting = {pool.name for pool in ended}
        for name, take in started.items():
            if name not in waiting:
                take()
        if ended:
            await shielded(self._end(ended, started), whole=True)

    def _take_contents(self, contents: Contents) -> None:
        self._revision, self._lost, self._look_again = contents.revision, contents.lost, False
        self._versions = {stored.definition.name: stored.version for stored in contents.pools}
        self._versions |= {damaged.name: damaged.version for damaged in contents.damaged}
        self._catalogue.damaged = contents.damaged

    async def _last_seen(self, contents: Contents) -> dict[str, LastSeen]:
        """Return the last snapshots of pools that other processes have started."""
        wanted = {name: run.started_at for name, run in contents.runs.items() if not self._is_known(run)}
        if not wanted or not isinstance(self._store, KeepsSnapshots):
            return {}
        return await self._store.load_snapshots(wanted)

    def _is_known(self, run: Run) -> bool:
        """Return whether the pool of that name has this run here."""
        pool = self._catalogue.get(run.name)
        life = None if pool is None else pool.record.life
        return life is not None and (life.uuid, life.started_at) == (run.uuid, run.started_at)

    def _take_run(self, run: Run, seen: LastSeen | None, *, tell: bool) -> None:
        """Take over that another process has started a pool."""
        pool = self._catalogue.get(run.name)
        if pool is not None and pool.record.uuid != run.uuid:
            # another pool of that name runs; if this one has a definition, it comes back when the other stops
            self._drop(pool)
            pool = self._catalogue.get(run.name)
        if pool is None:
            definition = msgspec.structs.replace(run.definition, uuid=run.uuid)
            pool = self._catalogue.add(definition, self, persistent=False)
        if pool.idle:
            life = Life(self._services, run.uuid, run.definition, run.started_at)
            pool.record.restore(life, seen, tell=tell)
        else:
            self._look_again = True  # it is being started or stopped here

    def _take_definition(self, item: StoredPool, *, tell: bool) -> None:
        pool = self._catalogue.get(item.definition.name)
        if pool is not None and pool.record.uuid != item.definition.uuid and pool.idle:
            self._drop(pool)  # another process undefined it, and defined another pool of that name
            pool = None
        if pool is None:
            pool = self._catalogue.add(item.definition, self, persistent=True, autostart=item.autostart)
        elif pool.record.uuid != item.definition.uuid:
            del self._versions[pool.name]  # another pool's definition: this one, which is busy or active, has none
            self._look_again = True
            return
        elif not pool.record.redefine(item.definition, autostart=item.autostart):
            return
        if tell:
            pool.record.publish(PoolDefined)

    def _drop(self, pool: Parts) -> None:
        """Take over that another process undefined a pool; if it is busy here, look again later."""
        if pool.lifecycle.busy:
            self._look_again = True
            return
        self._catalogue.remove(pool.record)
        if pool.record.persistent:
            pool.record.publish(PoolUndefined)

    async def _end(self, pools: Collection[Parts], started: Mapping[str, Callable[[], None]]) -> None:
        """Take over that other processes stopped pools, and perhaps started or undefined them since. Concurrently."""

        async def end(pool: Parts) -> None:
            if not await pool.lifecycle.ended_elsewhere():
                self._look_again = True  # it is busy here
            elif pool.name in started:
                started[pool.name]()
            elif pool.name not in self._versions and not pool.record.gone:
                self._drop(pool)

        outcomes = await asyncio.gather(*(end(pool) for pool in pools), return_exceptions=True)
        if any(outcomes):
            self._look_again = True

    # ------------------------------------------------------------------------------- changes of this process

    async def define(self, accepted: PoolDef) -> Parts:
        """Store a definition, and add or update its pool. :raises: as :meth:`astore.Manager.define`."""

        async def attempt() -> Parts:
            async with self.lock:
                await self.reload()
                return await self._define(accepted)

        return await self.until_current(attempt)

    async def _define(self, accepted: PoolDef) -> Parts:
        known = self._catalogue.same_pool(accepted)
        if known is not None and known.record.persistent and known.name not in self._versions and not self._lost:
            raise OutdatedError(f"pool {known.name!r} was undefined meanwhile", errno=errno.EAGAIN)
        chosen = known.record.uuid if known is not None else accepted.uuid or str(uuid.uuid4())
        wanted = msgspec.structs.replace(accepted, uuid=chosen)
        self._catalogue.check_source(wanted, known)
        assert self._revision is not None
        self._versions[wanted.name] = await self._changed(self._store.put(wanted, self._revision))
        pool = self._catalogue.get(wanted.name)
        if pool is None:  # it is new, or it was transient and has been stopped meanwhile
            pool = self._catalogue.add(wanted, self, persistent=True)
        else:
            pool.record.redefine(wanted, autostart=pool.record.autostart)
        pool.record.publish(PoolDefined)
        return pool

    async def undefine(self, record: PoolRecord) -> None:
        if not record.persistent:
            raise record.wrong_state("is transient: stopping it removes it", "undefine")
        async with self.lock:
            version = self._versions.get(record.name)
            if version is None:
                raise OutdatedError(f"pool {record.name!r} was undefined meanwhile", errno=errno.EAGAIN)
            try:
                await self._changed(self._store.remove(record.name, version))
                self._versions.pop(record.name, None)
            finally:
                if record.name not in self._versions and not record.gone:  # even if cancelled after it was done
                    self._catalogue.remove(record)
                    record.publish(PoolUndefined)

    async def set_autostart(self, record: PoolRecord, autostart: bool) -> None:
        async with self.lock:
            self._services.check_open()
            record.require_known()
            await self._changed(self._store.set_autostart(record.name, autostart))
            record.set_autostart(autostart)

    async def begin_run(self, record: PoolRecord, life: Life) -> None:
        self._services.check_open()
        with self._writing_run(record):
            run = Run(life.definition, record.uuid, life.started_at)
            await self._store.begin_run(run, persistent=record.persistent)

    async def runs_elsewhere(self, record: PoolRecord, life: Life) -> bool:
        with anyio.move_on_after(CLEANUP_SECONDS), contextlib.suppress(Exception):
            return (await self._store.current(record.name)).started_at not in (None, life.started_at)
        return False

    async def check_end_run(self, record: PoolRecord) -> None:
        self._services.check_open()
        await self._store.check_end_run(record.name)

    async def end_run(self, record: PoolRecord, life: Life) -> None:
        with self._writing_run(record):
            # errors do not matter: a store that is gone has no run either
            await bounded(self._store.end_run(record.name, life.started_at))
        if not record.persistent:  # not before: a reload would take the run for a new pool
            self._catalogue.remove(record)

    @contextlib.contextmanager
    def _writing_run(self, record: PoolRecord) -> Iterator[None]:
        """Make reloads ignore the pool's run inside the context, and those that overlap with it."""
        self._run_writes[record.name] += 1
        try:
            yield
        finally:
            self._run_writes[record.name] += 1

    async def save_snapshots(self, pools: Iterable[Parts]) -> None:
        """Save the snapshots of active pools for the next process. A cache: errors are logged, never raised."""
        if not isinstance(self._store, KeepsSnapshots):
            return
        for pool in pools:
            record, life = pool.record, pool.record.life
            seen = record.last_seen
            if life is not None and seen != record.saved:
                try:
                    await self._store.save_snapshot(record.name, life.started_at, seen)
                    record.saved = seen
                except Exception as error:  # a plugin's snapshot may hold anything
                    self._services.log.info(
                        "the snapshot of a pool was not saved", pool=record.name, error=reason(error)
                    )
