"""Lifecycle: starting, stopping, building, deleting and undefining a pool, one at a time.

::

    inactive ──start──► running ◄──refresh──► degraded        (some entries failed)
        ▲  └─build──► building ─┐   ▲  │
        │                       │   │  └── the source does not answer ──► inaccessible
        └───────stop────────────┘   └──────────── refresh ─────────────────────┘

Between a test of state and its change there is no await.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Protocol, TypeVar

import anyio

from astore.backend import Backend, BuildsPools, Context, CutsLoose, CutsPoolsLoose, DeletesPools, PoolSession
from astore.cancellation import CLEANUP_SECONDS, bounded, shielded
from astore.errors import InvalidStateError, LibvirtCode, ManagerClosedError, UnsupportedOperationError, reason
from astore.events import PoolBuilt, PoolDeleted, PoolStartFailed, PoolStopped
from astore.lanes.job import patient
from astore.model import PoolDef, PoolState
from astore.plugin_calls import answer, asked, checked_definition
from astore.pools.claims import Claims
from astore.pools.life import Life
from astore.pools.pool_errors import about_pool
from astore.pools.record import PoolRecord
from astore.pools.refresher import Refresher
from astore.pools.services import Services
from astore.store.contract import OutdatedError

T = TypeVar("T")


class Host(Protocol):
    """Keeps definitions and runs of pools where other processes find them."""

    async def catch_up(self, record: PoolRecord) -> None:
        """Take over other processes' changes to the pool, before an operation that relies on its state.

        :raises ManagerClosedError: the Manager is closed.
        """
        ...

    async def until_current(self, attempt: Callable[[], Awaitable[T]]) -> T:
        """Retry a change while it raises OutdatedError. Each attempt must read the store first.

        :raises OutdatedError: other processes were faster for ten seconds.
        """
        ...

    async def undefine(self, record: PoolRecord) -> None:
        """Remove the pool's definition.

        :raises InvalidStateError: the pool is transient. StoreError: that failed.
            OutdatedError: call :meth:`catch_up`, and retry.
        """
        ...

    async def set_autostart(self, record: PoolRecord, autostart: bool) -> None:
        """Store the pool's autostart mark. :raises StoreError: that failed."""
        ...

    async def begin_run(self, record: PoolRecord, life: Life) -> None:
        """Record the run of a pool that is being started. After a cancellation, :meth:`end_run` removes it if need be.

        :raises OutdatedError: another process has started or undefined the pool. StoreError: the run cannot be recorded.
        """
        ...

    async def check_end_run(self, record: PoolRecord) -> None:
        """Check that :meth:`end_run` can work, before the storage is released. :raises StoreError: it cannot."""
        ...

    async def end_run(self, record: PoolRecord, life: Life) -> None:
        """Remove the run of a pool that was stopped, and a transient pool itself. Bounded; never raises."""
        ...

    async def runs_elsewhere(self, record: PoolRecord, life: Life) -> bool:
        """Return whether another process has the pool active. Bounded; False if the store does not answer."""
        ...


class Lifecycle:
    """Starts and stops one pool. One lock serialises its operations."""

    def __init__(
        self, record: PoolRecord, services: Services, host: Host, refresher: Refresher, claims: Claims
    ) -> None:
        self._record = record
        self._services = services
        self._host = host
        self._refresher = refresher
        self._claims = claims
        self._lock = anyio.Lock()

    @property
    def busy(self) -> bool:
        """Whether the pool is being started, stopped, built, deleted or undefined."""
        return self._lock.locked()

    async def start(self, *, build: bool, refresh: bool, timeout: float | None) -> None:
        """See :meth:`astore.Pool.start`."""
        await self._host.catch_up(self._record)
        await self.start_now(build=build, refresh=refresh, timeout=timeout)

    async def start_now(self, *, build: bool, refresh: bool, timeout: float | None) -> None:
        """Start a pool that has caught up already. Takes the lock before it awaits anything else."""
        self._services.check_open()
        async with self._lock:
            self._record.require_inactive("start")
            try:
                await self._start(build, refresh, timeout)
            except Exception as error:
                self._record.error = error
                self._record.publish(PoolStartFailed, reason=reason(error))
                raise

    async def stop(self, force: bool) -> None:
        """See :meth:`astore.Pool.stop`."""
        record = self._record
        self._services.check_open()
        record.wanted = False
        if not force or not record.active:
            await self._host.catch_up(record)
        async with self._lock:
            if not force:
                await self._host.check_end_run(record)
            life = record.require_active("stop")
            if not force:
                self._claims.require_unclaimed()
            life.ending = True  # no refresh may begin from here on: it would mount the storage again
            try:
                await self._refresher.cancel("the pool is being stopped")
                session = await self._session_to_stop(life, force)
                if session is not None:
                    await self._stop_session(session, force)
                await shielded(self._become_inactive(life), whole=True)
            finally:
                life.ending = False

    async def build(self) -> None:
        """See :meth:`astore.Pool.build`."""
        await self._host.catch_up(self._record)
        async with self._lock:
            self._record.require_inactive("build")
            await self._build(*await self._backend())

    async def delete(self) -> None:
        """See :meth:`astore.Pool.delete`."""
        await self._host.catch_up(self._record)
        async with self._lock:
            self._record.require_inactive("delete")
            backend, definition = await self._backend()
            if not isinstance(backend, DeletesPools):
                raise self._unsupported("delete")
            async with self._lane_context(backend) as context:
                await self._translated("delete", backend.delete(definition, context))
            self._record.publish(PoolDeleted)

    async def undefine(self) -> None:
        """See :meth:`astore.Pool.undefine`."""
        await self._host.until_current(self._undefine)

    async def _undefine(self) -> None:
        await self._host.catch_up(self._record)
        async with self._lock:
            self._record.require_inactive("undefine")
            await self._host.undefine(self._record)

    async def set_autostart(self, autostart: bool) -> None:
        """See :meth:`astore.Pool.set_autostart`."""
        record = self._record
        self._services.check_open()
        record.require_known()
        if not record.persistent:
            raise InvalidStateError(
                f"pool {record.name!r} is transient: only a defined pool can be started automatically",
                pool=record.name,
                state=record.state,
                operation="autostart",
                libvirt_code=LibvirtCode.INTERNAL_ERROR,
            )
        await self._host.set_autostart(record, autostart)

    async def ended_elsewhere(self) -> bool:
        """Take over that another process has stopped the pool; return False if the pool is busy here."""
        life = self._record.life
        if self.busy or life is None:
            return False
        async with self._lock:
            await self._become_inactive(life, note=False)
        return True

    async def leave(self, until: float) -> None:
        """Release what belongs to this process; the pool stays active for the next one. Bounded; never raises."""
        await self._refresher.cancel("the Manager was closed", until=until)
        life = self._record.life
        if life is not None:
            await life.detach(until)

    # ------------------------------------------------------------------------------------------------- starting

    async def _start(self, build: bool, refresh: bool, timeout: float | None) -> None:
        record = self._record
        backend, definition = await self._backend()
        if build and isinstance(backend, BuildsPools):  # as in libvirt, nothing to build is no error
            await self._build(backend, definition)
        life = Life(self._services, record.uuid, definition, time.time())
        lanes = self._services.lanes
        try:
            try:
                with patient(timeout):
                    async with asyncio.timeout(timeout):
                        await life.open(backend)
                await self._host.begin_run(record, life)
                self._services.check_open(lanes)
            except OutdatedError as error:
                raise InvalidStateError(
                    f"pool {record.name!r} was started or undefined by another process meanwhile",
                    pool=record.name,
                    state=PoolState.RUNNING,
                    operation="start",
                ) from error
            except Exception as error:
                raise about_pool(record.name, "start", error) from error
        except BaseException:
            await shielded(self._undo_start(life), whole=True)
            raise
        session = life.session
        record.begin(life)
        if refresh:
            try:
                await self._refresher.refresh(False, timeout)
            except BaseException:
                # as in libvirt, a pool that cannot be read is not started
                await shielded(self._give_up(life, session), whole=True)
                raise

    async def _undo_start(self, life: Life) -> None:
        """Undo a start that failed or was cancelled. Bounded."""
        session = life.session
        if session is not None and not await self._host.runs_elsewhere(self._record, life):
            await bounded(asked(session.stop))  # not if another process uses the storage
        await life.close()
        if session is not None:
            await self._host.end_run(self._record, life)

    async def _give_up(self, life: Life, session: PoolSession | None) -> None:
        """Stop a pool whose first refresh failed. Bounded."""
        life.ending = True  # as in stop(): no refresh may begin
        await self._refresher.cancel("the pool could not be started")
        if session is not None:
            with contextlib.suppress(Exception):
                await self._stop_session(session, force=True)
        await self._become_inactive(life)

    async def _build(self, backend: Backend, definition: PoolDef) -> None:
        if not isinstance(backend, BuildsPools):
            raise self._unsupported("build")
        self._record.set_state(PoolState.BUILDING)
        try:
            async with self._lane_context(backend) as context:
                await self._translated("build", backend.build(definition, context))
        finally:
            self._record.set_state(PoolState.INACTIVE)
        self._record.publish(PoolBuilt)

    # ------------------------------------------------------------------------------------------------- stopping

    async def _session_to_stop(self, life: Life, force: bool) -> PoolSession | None:
        try:
            async with asyncio.timeout(2 * CLEANUP_SECONDS if force else None):
                return await life.attached()
        except Exception as error:
            # The backend, a program it needs, or the storage is gone. Unless the pool leaves something outside of processes
            # (such as a mount), there is nothing to stop.
            type = life.definition.type
            registry = self._services.registry
            backend = registry.loaded(type)
            outside = type in registry and (backend is None or isinstance(backend, CutsPoolsLoose))
            if (outside and not force) or isinstance(error, ManagerClosedError):
                raise about_pool(self._record.name, "stop", error) from error
            if force and isinstance(backend, CutsPoolsLoose):
                with anyio.move_on_after(2 * CLEANUP_SECONDS), contextlib.suppress(Exception):
                    async with self._lane_context(backend) as context:
                        await backend.cut_loose(life.definition, context)
            return None

    async def _stop_session(self, session: PoolSession, force: bool) -> None:
        if force:
            end = session.cut_loose if isinstance(session, CutsLoose) else session.stop
            await bounded(asked(end), 2 * CLEANUP_SECONDS)
        else:
            await self._translated("stop", session.stop())

    async def _become_inactive(self, life: Life, *, note: bool = True) -> None:
        """Close the session and end the run, after the storage was released. The caller shields this.

        :param note: remove the run from the store, too.
        """
        self._record.end()  # first, so that no work opens a session again
        await self._refresher.cancel("the pool was stopped")
        await life.close()
        if note:
            await self._host.end_run(self._record, life)
        self._record.publish(PoolStopped)

    # -------------------------------------------------------------------------------------------------- backends

    async def _backend(self) -> tuple[Backend, PoolDef]:
        definition = self._record.definition
        backend = await self._services.registry.get(definition.type)
        try:
            return backend, checked_definition(backend, definition)
        except Exception as error:  # plugin code: it may raise anything
            raise about_pool(self._record.name, "check", error) from error

    @contextlib.asynccontextmanager
    async def _lane_context(self, backend: Backend) -> AsyncIterator[Context]:
        """Lend the backend a lane while it works on the pool without a session."""
        lane = self._services.pool_lane(self._record.name, backend)
        try:
            yield self._services.context(self._record.name, self._record.uuid, lane)
        finally:
            lane.close()

    async def _translated(self, operation: str, call: Awaitable[None]) -> None:
        try:
            await answer(call)
        except Exception as error:
            raise about_pool(self._record.name, operation, error) from error

    def _unsupported(self, operation: str) -> UnsupportedOperationError:
        return UnsupportedOperationError(pool=self._record.name, type=self._record.definition.type, operation=operation)
