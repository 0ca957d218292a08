"""Handover: a pool is active on the host that looks after it, and goes from one host to the next without a gap."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Mapping
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

from astore.errors import AstoreError, InvalidStateError, PoolNotFoundError, StoreError, VolumeBusyError, reason
from astore.manager import Manager
from astore.manager.many import start_pools
from astore.model import PoolDef
from astore.pools.pool import Pool
from astore.store.contract import Run
from astore_fleet.hosts.event_stream import Forwarder
from astore_fleet.jobs.worker import Worker
from astore_fleet.placement.fleet_state import FleetState
from astore_fleet.records import Owner
from astore_fleet.store.nats_store import NatsStore

if TYPE_CHECKING:
    from structlog.stdlib import BoundLogger

AT_ONCE = 16
"""How many pools are started, stopped or taken over at once."""

HANDOVER_SECONDS = 10.0
"""Seconds to wait until the next host has a pool active, before it is stopped here."""


class Handover:
    """Begins pools on the host that looks after them now, and stops them on the one that did.

    :param tokens: by name, the pools that this host looks after. :param spawn: runs a coroutine as a task of that name.
    :ivar worker: does the jobs of pools that have begun.
    """

    def __init__(
        self,
        manager: Manager,
        store: NatsStore,
        me: Owner,
        state: FleetState,
        tokens: Mapping[str, int],
        forwarder: Forwarder,
        spawn: Callable[[Coroutine[None, None, None], str], None],
        log: BoundLogger,
    ) -> None:
        self.worker: Worker
        self._manager = manager
        self._store = store
        self._me = me
        self._state = state
        self._tokens = tokens
        self._forwarder = forwarder
        self._spawn = spawn
        self._log = log
        self._slots = asyncio.Semaphore(AT_ONCE)
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()  # a pool is begun or left, not both
        self._waiting: set[str] = set()  # pools that are to begin
        self._asked: set[str] = set()  # pools whose autostart mark was heeded: who stops one later means it
        self._stale: set[str] = set()  # pools whose run here is from before they were lost: it ends, or begins anew
        self._seen: set[str] = set()  # stale pools that their owner was seen to have taken over
        self._resumed: set[str] = set()  # stale pools that were active, and are to be so again

    def ready(self, pool: str) -> bool:
        """Return whether a pool has begun here."""
        return pool not in self._waiting and pool not in self._stale

    def outdated(self, pool: str) -> bool:
        """Return whether a pool's run here is from before another host had the pool: it ends, or begins anew."""
        return pool in self._stale

    def taken(self, name: str) -> None:
        """Begin to look after a pool."""
        if name not in self._stale:  # what its run told meanwhile counts if it goes on
            self._moved(name)
        self._spawn_begin(name)

    def lost(self, name: str) -> None:
        """Leave a pool, once it is active on the host that has it."""
        self._asked.discard(name)
        self._waiting.discard(name)
        self._seen.discard(name)
        self._stale.add(name)
        self._spawn_leave(name)

    def go_on(self) -> None:
        """Try again what did not succeed; start what is to be started automatically by now; leave what others have."""
        for pool in self._manager.pools(active=True):
            name, owner = pool.name, self._state.owner(pool.name)
            elsewhere = owner != self._me and (owner is not None or name in self._store.table.definitions)
            if name not in self._tokens and name not in self._stale and elsewhere:
                self.lost(name)
        for name in self._tokens.keys() - self._asked:
            held = self._store.table.definitions.get(name)
            if held is not None and held.autostart:
                self._waiting.add(name)
        for name in self._waiting | self._stale:
            if self._turn(name).locked():  # it is tried now
                continue
            if name in self._tokens:
                self._spawn_begin(name)
            else:
                self._spawn_leave(name)
        for name in self._tokens:
            if self._gone(name) and self.ready(name) and not self._turn(name).locked():
                self._spawn(self._forget(name), f"astore fleet forgets {name}")

    def _moved(self, name: str) -> None:
        held = self._store.table.definitions.get(name)
        if held is not None and isinstance(definition := held.definition(), PoolDef):
            self._forwarder.moved(definition.uuid or "")

    def _turn(self, name: str) -> asyncio.Lock:
        return self._turns.setdefault(name, asyncio.Lock())

    def _spawn_begin(self, name: str) -> None:
        self._waiting.add(name)
        self._spawn(self._begin(name), f"astore fleet begins {name}")

    def _spawn_leave(self, name: str) -> None:
        self._spawn(self._leave(name), f"astore fleet leaves {name}")

    # ------------------------------------------------------------------------------------------------- beginning

    async def _begin(self, name: str) -> None:
        """Have a pool active if it was active on the host before, or is started automatically."""
        async with self._turn(name):
            token = self._tokens.get(name)
            if token is None or self.ready(name):
                return
            try:
                async with self._slots:
                    adopted = await self._begin_by(name, token)
                if self.ready(name):
                    await self.worker.gather(name)
                    if adopted:
                        await self._manager.pool(name).refresh()
            except (AstoreError, OSError) as error:
                self._log.warning("a pool was taken over with an error", pool=name, error=reason(error))

    async def _begin_by(self, name: str, token: int) -> bool:
        """Begin, unless the pool goes on meanwhile; return whether it is active as it was on another host."""
        table = self._store.table
        await self._manager.reload(thoroughly=name in self._stale)
        pool = self._manager.pool(name)
        if pool.active and (not pool.persistent or name in self._seen or await self._is_behind(name)):
            await self._begin_anew(pool)
            pool = self._manager.pool(name)
        elif name in self._stale and pool.active:
            self._forwarder.came_back(pool.uuid)
        elif name in self._stale:
            self._moved(name)
        run = max(table.elsewhere(name).values(), key=lambda one: one.started_at, default=None)
        if self._tokens.get(name) != token:  # it is left, or begun by another token
            return False
        if not pool.active and run is not None and run.uuid == pool.uuid:
            adopted = Run(run.definition, run.uuid, run.started_at)  # the same run: its snapshot counts here
            await self._store.begin_run(adopted, persistent=True, ours=False)
            await self._manager.reload(thoroughly=False)
        if not pool.active and (pool.autostart or name in self._resumed):
            error = (await start_pools([pool], limit=1, timeout=None))[name]
            if isinstance(error, StoreError):
                raise error
        if self._tokens.get(name) != token:
            return False
        if pool.autostart:
            self._asked.add(name)
        for told in (self._resumed, self._stale, self._waiting, self._seen):
            told.discard(name)
        return pool.active and run is not None

    async def _is_behind(self, name: str) -> bool:
        """Return whether another host, which has a run of a pool, has kept its snapshot later than this one."""
        elsewhere = self._store.table.elsewhere(name)
        newest = await self._store.snapshots.newest(name, (self._me.host, *elsewhere)) if elsewhere else None
        return newest not in (None, self._me.host)

    async def _begin_anew(self, pool: Pool) -> None:
        """Stop a run from before: another host has, or had, the pool, and knows better what was told of it."""
        self._resumed.add(pool.name)
        try:
            await pool.stop()
        except (StoreError, VolumeBusyError):  # it is tried again
            raise
        except (AstoreError, OSError) as error:  # its storage hangs: it goes on as it is
            self._log.warning("a pool could not begin anew", pool=pool.name, error=reason(error))
        else:
            self._moved(pool.name)
            await self._manager.reload(thoroughly=False)

    def _gone(self, name: str) -> list[str]:
        """Return the hosts that are gone, and whose run of a pool is still known."""
        return [host for host in self._store.table.elsewhere(name) if host not in self._state.hosts]

    async def _forget(self, name: str) -> None:
        """Remove the runs of hosts that are gone, once this host has kept a snapshot."""
        async with self._turn(name):
            token = self._tokens.get(name)
            try:
                if token is None or not await self._store.snapshots.kept_since(name, self._me.host, token):
                    return
                for host in self._gone(name):
                    if self._tokens.get(name) == token:
                        await self._store.forget_run(name, host)
            except StoreError as error:
                self._log.debug("runs of hosts that are gone are still known", pool=name, error=reason(error))

    # --------------------------------------------------------------------------------------------------- leaving

    async def _leave(self, name: str) -> None:
        """Stop a pool that another host looks after now, once it is active there."""
        async with self._turn(name):
            until = time.monotonic() + HANDOVER_SECONDS
            try:
                pool = self._manager.pool(name)
                while time.monotonic() < until and self._left(name) and self._runs(pool):
                    if self._nobodys(name):
                        return  # look again later
                    if await self._taken_over(name):
                        break
                    await asyncio.sleep(0.1)
                if self._left(name):
                    async with self._slots:
                        await self._stop(pool)
            except PoolNotFoundError:
                await self._end_unknown(name)
            except (AstoreError, OSError) as error:
                self._log.warning("a pool was left with an error", pool=name, error=reason(error))

    async def _end_unknown(self, name: str) -> None:
        """End the run of a pool that the Manager does not know any more, if it is still known to the engine."""
        try:
            run = self._store.table.run(name)
            if run is not None and name not in self._tokens:
                await self._store.end_run(name, run.started_at)
                await self._manager.reload()
        except AstoreError as error:
            self._log.debug("the end of a run was not written", pool=name, error=reason(error))
        else:
            if name not in self._tokens:
                self._stale.discard(name)

    def _left(self, name: str) -> bool:
        """Return whether a pool is to be stopped here: not if it has come back, and begins anew."""
        return name in self._stale and name not in self._tokens

    def _runs(self, pool: Pool) -> bool:
        return pool.active or self._store.table.run(pool.name) is not None

    def _nobodys(self, name: str) -> bool:
        """Return whether a pool that is defined has no owner that is there."""
        return name in self._store.table.definitions and not self._state.present(self._state.owner(name))

    async def _stop(self, pool: Pool) -> None:
        name = pool.name
        waits = name in self._store.table.definitions and (self._nobodys(name) or name not in self._seen)
        if waits and self._runs(pool):
            return  # its owner does not have it active: look again later
        if pool.active:
            self._resumed.add(name)
            try:
                await pool.stop()
            except VolumeBusyError:  # what it does ends first
                return
            except InvalidStateError:  # somebody was faster
                pass
            await self._manager.reload(thoroughly=False)
            pool = self._manager.pool(name)
        run = self._store.table.run(name)
        if run is not None and not pool.active:  # its end could not be written
            await self._store.end_run(name, run.started_at)
            await self._manager.reload()
        if self._left(name) and not self._runs(pool):
            self._resumed.discard(name)
            self._stale.discard(name)

    async def _taken_over(self, name: str) -> bool:
        """Return whether the host that looks after a pool has it active, and has kept a snapshot since it took it."""
        owned = self._state.owners.get(name)
        if owned is None or owned.owner is None or owned.owner.host not in self._store.table.elsewhere(name):
            return False
        if not await self._store.snapshots.kept_since(name, owned.owner.host, owned.token):
            return False
        self._seen.add(name)
        return True
