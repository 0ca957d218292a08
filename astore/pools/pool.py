"""A pool: its states, its snapshot, and the refresh that its callers share.

::

    inactive ──start──► running ◄──refresh──► degraded        (some entries failed)
        ▲  └─build──► building ─┐   ▲  │
        │                       │   │  └── the source does not answer ──► inaccessible
        └───────stop────────────┘   └──────────── refresh ─────────────────────┘

Everything here belongs to one event loop. Between a test of state and its change there is no await; what lasts
is serialised by the pool's lifecycle lock (start, stop, build, delete) or shared (refresh).
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING, Any

import anyio

from astore.backend import (
    Backend,
    BuildsPools,
    CutsLoose,
    CutsPoolsLoose,
    DeletesPools,
    PoolSession,
)
from astore.cancellation import CLEANUP_SECONDS, bounded, shielded
from astore.errors import (
    InvalidStateError,
    LibvirtCode,
    ManagerClosedError,
    PoolInaccessibleError,
    UnsupportedOperationError,
    VolumeBusyError,
)
from astore.events import (
    PoolBuilt,
    PoolDeleted,
    PoolStarted,
    PoolStopped,
)
from astore.model import (
    PoolDef,
    PoolState,
    Snapshot,
)
from astore.plugin_calls import answer, asked, checked, opened
from astore.pools.glance import state_when_last_seen
from astore.pools.volume_jobs import WorkingPool
from astore.store.local_files import LOCK_TIMEOUT
from astore.store.local_runs import OUTDATED_PAUSE, LastSeen, OutdatedError

if TYPE_CHECKING:
    from astore.lanes.lane import PoolLane


class Pool(WorkingPool):
    """A storage pool. Got from a :class:`~astore.manager.Manager`; never made by hand."""

    async def start(self, build: bool = False, *, refresh: bool = True, timeout: float | None = None) -> None:
        """Start the pool: connect or mount, and look at its volumes once.

        :param build: make its storage first. :param refresh: False leaves the first look to the first refresh.
        :param timeout: seconds for the connecting and mounting, and again for the refresh.
        :raises InvalidStateError: it is active. BackendError: its backend is missing or unusable.
            OSError: the source does not answer. TimeoutError: not in time.
        """
        await self._manager._catch_up(self)
        await self._begin(build, refresh=refresh, timeout=timeout)

    async def _begin(self, build: bool, *, refresh: bool = True, timeout: float | None = None) -> None:
        """As :meth:`start`. It is locked at once, so that nobody takes a new transient pool for one that has ended."""
        self._manager._check_open()
        async with self._lifecycle:
            self._require_known()
            self._require_inactive("start")
            try:
                await self._start(build, refresh, timeout)
            except Exception as error:
                self._error = error
                raise

    async def stop(self, force: bool = False) -> None:
        """Stop the pool (virsh: pool-destroy): unmount, disconnect. A transient pool is gone then.

        :param force: give the pool up even where its storage hangs; calls that hang on a FUSE mount are cut loose.
        :raises InvalidStateError: it is not active. VolumeBusyError: volumes of it are being written (never with
            ``force``: that work fails then). OSError, CommandError, TimeoutError: it could not be stopped (it
            stays active; never with ``force``).
        """
        self._manager._check_open()
        if not force or not self.active:
            await self._manager._catch_up(self)
        async with self._lifecycle:
            if not force:
                await self._manager._check_forgettable(self)
            self._require_active("stop")
            self._require_no_writers(force)
            self._stopping = True  # no refresh begins from here on: it would mount again what is being unmounted
            try:
                await self._cancel_refresh("the pool is being stopped")
                session = await self._session_to_stop(force)
                if session is not None:
                    await self._stop_session(session, force)
                await shielded(self._become_inactive())
            finally:
                self._stopping = False

    async def build(self) -> None:
        """Make the pool's storage: a target directory, with the permissions of its definition or 0711.

        :raises InvalidStateError: it is active. UnsupportedOperationError: its backend cannot. OSError: it failed.
        """
        await self._manager._catch_up(self)
        async with self._lifecycle:
            self._require_known()
            self._require_inactive("build")
            await self._build(*await self._backend_for_me())

    async def delete(self) -> None:
        """Destroy the pool's storage (an empty target directory); the definition stays.

        :raises InvalidStateError: it is active. UnsupportedOperationError: its backend cannot. OSError: it failed.
        """
        await self._manager._catch_up(self)
        async with self._lifecycle:
            self._require_known()
            self._require_inactive("delete")
            backend, definition = await self._backend_for_me()
            if not isinstance(backend, DeletesPools):
                raise UnsupportedOperationError(pool=self.name, type=self.type, operation="delete")
            async with self._lent_lane(backend) as context:
                await self._translated("delete", backend.delete(definition, context))
            self._publish(PoolDeleted)

    async def undefine(self) -> None:
        """Remove the pool's definition. :raises InvalidStateError: it is active, or transient."""
        until = time.monotonic() + LOCK_TIMEOUT
        while True:
            await self._manager._catch_up(self)
            async with self._lifecycle:
                self._require_known()
                self._require_inactive("undefine")
                try:
                    return await self._manager._undefine(self)
                except OutdatedError:  # another process was faster; what it did is to be looked at first
                    if time.monotonic() > until:
                        raise
            await asyncio.sleep(OUTDATED_PAUSE)

    async def set_autostart(self, autostart: bool) -> None:
        """Say whether ``start_all`` starts it. :raises InvalidStateError: it is transient."""
        self._manager._check_open()
        self._require_known()
        if not self._persistent:
            raise InvalidStateError(
                f"pool {self.name!r} is transient: only a defined pool can be started automatically",
                pool=self.name,
                state=self._state,
                operation="autostart",
                libvirt_code=LibvirtCode.INTERNAL_ERROR,
            )
        await self._manager._set_autostart(self, autostart)

    # ---------------------------------------------------------------------------------------------- inner works

    async def _start(self, build: bool, refresh: bool, timeout: float | None) -> None:
        backend, definition = await self._backend_for_me()
        if build and isinstance(backend, BuildsPools):  # as in libvirt, nothing to build is no error
            await self._build(backend, definition)
        self._manager.registry.acquire(backend)
        lane: PoolLane | None = None
        session: PoolSession | None = None
        lanes = self._manager._lanes
        try:
            try:
                lane = self._manager._pool_lane(self.name, backend)
                async with asyncio.timeout(timeout):
                    session = await opened(backend, definition, self._context(lane))
                await self._manager._save_run(self, definition)
                self._manager._check_open(lanes)
            except OutdatedError as error:
                raise InvalidStateError(
                    f"pool {self.name!r} was started or undefined by another process meanwhile",
                    pool=self.name,
                    state=PoolState.RUNNING,
                    operation="start",
                ) from error
            except Exception as error:
                raise self._translate(error, "start") from error
        except BaseException:
            await shielded(self._undo_start(session, lane, backend))
            raise
        self._session, self._backend, self._lane = session, backend, lane
        self._active_definition = definition
        self._set_state(PoolState.RUNNING, None)
        self._publish(PoolStarted)
        self._log.debug("pool started")
        if refresh:
            try:
                await self.refresh(timeout=timeout)
            except BaseException:
                # as in libvirt, a pool that cannot be read is not started; not even half
                await shielded(self._give_up(session))
                raise

    async def _undo_start(self, session: PoolSession | None, lane: PoolLane | None, backend: Backend) -> None:
        """Leave nothing of a start that did not come to its end. Bounded."""
        if session is not None:
            if not await self._manager._runs_elsewhere(self):  # else it is their storage, too
                await bounded(asked(session.stop))
            await bounded(asked(session.aclose))
            await self._manager._forget_run(self)
        if lane is not None:
            lane.close()
        self._manager.registry.release(backend)

    async def _give_up(self, session: PoolSession) -> None:
        """Stop a pool whose first refresh failed. Bounded."""
        self._stopping = True  # as in stop(): nobody may begin a refresh of what is being let go
        try:
            await self._cancel_refresh("the pool could not be started")
            with contextlib.suppress(Exception):
                await self._stop_session(session, force=True)
            await self._become_inactive()
        finally:
            self._stopping = False

    async def _session_to_stop(self, force: bool) -> PoolSession | None:
        try:
            async with asyncio.timeout(2 * CLEANUP_SECONDS if force else None):
                return await self._attached()
        except Exception as error:
            # The backend is gone, or what the pool needs of the machine, or its storage. Where nothing of the pool is left
            # outside of processes (such as a mount), there is nothing to stop.
            registry = self._manager.registry
            backend = registry.loaded(self.type)
            outside = self.type in registry and (backend is None or isinstance(backend, CutsPoolsLoose))
            if (outside and not force) or isinstance(error, ManagerClosedError):
                raise self._translate(error, "stop") from error
            if force:
                await self._cut_loose_unopened()
            return None

    async def _cut_loose_unopened(self) -> None:
        backend = self._manager.registry.loaded(self.type)
        if isinstance(backend, CutsPoolsLoose) and self._active_definition is not None:
            with anyio.move_on_after(2 * CLEANUP_SECONDS), contextlib.suppress(Exception):
                async with self._lent_lane(backend) as context:
                    await backend.cut_loose(self._active_definition, context)

    async def _stop_session(self, session: PoolSession, force: bool) -> None:
        if force:
            end = session.cut_loose if isinstance(session, CutsLoose) else session.stop
            await bounded(asked(end), 2 * CLEANUP_SECONDS)
            return
        try:
            await answer(session.stop())
        except Exception as error:
            raise self._translate(error, "stop") from error

    async def _become_inactive(self, *, forget: bool = True) -> None:
        """After the storage was let go: close the session, forget the run, tell. Shielded by the caller."""
        self._life += 1
        self._active_definition = None
        self._snapshot = Snapshot.EMPTY
        self._set_state(PoolState.INACTIVE, None)  # first: from now on nobody attaches again
        await self._cancel_refresh("the pool was stopped")
        await self._detach()
        if forget:
            await self._manager._forget_run(self)
        self._publish(PoolStopped)

    async def _build(self, backend: Backend, definition: PoolDef) -> None:
        if not isinstance(backend, BuildsPools):
            raise UnsupportedOperationError(pool=self.name, type=self.type, operation="build")
        self._set_state(PoolState.BUILDING, None)
        try:
            async with self._lent_lane(backend) as context:
                await self._translated("build", backend.build(definition, context))
        finally:
            self._set_state(PoolState.INACTIVE, None)
        self._publish(PoolBuilt)

    async def _backend_for_me(self) -> tuple[Backend, PoolDef]:
        backend = await self._manager.registry.get(self.type)
        try:
            return backend, checked(backend, self._definition)
        except Exception as error:  # plugin code: it may raise anything
            raise self._translate(error, "check") from error

    @contextlib.asynccontextmanager
    async def _lent_lane(self, backend: Backend) -> Any:
        lane = self._manager._pool_lane(self.name, backend)
        try:
            yield self._context(lane)
        finally:
            lane.close()

    async def _translated(self, operation: str, call: Any) -> None:
        try:
            await answer(call)
        except Exception as error:
            raise self._translate(error, operation) from error

    def _require_no_writers(self, force: bool) -> None:
        busy = self._written | dict.fromkeys(self._relied_on, "made the backing file of another")
        if busy and not force:
            told = ", ".join(f"{name!r} ({what})" for name, what in list(busy.items())[:3])
            raise VolumeBusyError(
                f"volumes of pool {self.name!r} are being worked on: {told}; wait, or force the stop",
                pool=self.name,
                state=self._state,
                operation="stop",
            )

    def _require_inactive(self, operation: str) -> None:
        if self._state is not PoolState.INACTIVE:
            raise InvalidStateError(
                f"pool {self.name!r} is {self._state}: it can not be asked to {operation} now"
                + ("; stop it first" if self.active and operation != "start" else ""),
                pool=self.name,
                state=self._state,
                operation=operation,
            )

    def _redefine(self, definition: PoolDef, *, autostart: bool) -> bool:
        """Take over a persistent definition; say whether it is another. An active pool goes on by the one it has."""
        if self.active and self._active_definition is None:
            self._active_definition = self._definition
        same = self._persistent and self._definition == definition and self._autostart == autostart
        self._definition, self._autostart, self._persistent = definition, autostart, True
        return not same

    def _restore(self, definition: PoolDef, seen: LastSeen | None, started_at: float, *, tell: bool) -> None:
        """The pool was started by another process, or by this one earlier: it is active, and not attached yet."""
        self._active_definition = definition
        state, since, error = state_when_last_seen(seen), started_at, None
        if seen is not None:
            since = seen.since
            self._snapshot = seen.snapshot
            self._generation = max(self._generation, seen.snapshot.generation)
            if seen.error is not None:
                error = PoolInaccessibleError(seen.error, pool=self.name)
        if tell:
            self._set_state(state, error)
            self._publish(PoolStarted)
        self._state, self._error, self._since, self._started_at = state, error, since, started_at
        self._saved = self._last_seen
