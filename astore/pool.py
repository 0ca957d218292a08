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
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

import anyio

from astore.backend import (
    Backend,
    BuildsPools,
    Context,
    CutsLoose,
    DeletesPools,
    PoolSession,
    RefreshesVolume,
    abilities,
)
from astore.commands import LaneCommandRunner
from astore.errors import (
    AstoreError,
    BackendError,
    DefinitionError,
    InvalidStateError,
    LaneTimeoutError,
    ManagerClosedError,
    PoolInaccessibleError,
    PoolNotFoundError,
    StorageError,
    UnsupportedOperationError,
    VolumeNotFoundError,
    from_os_error,
    printable,
    reason,
)
from astore.events import (
    Event,
    PoolBuilt,
    PoolDeleted,
    PoolRefreshed,
    PoolStarted,
    PoolStateChanged,
    PoolStopped,
    VolumeAdded,
    VolumeChanged,
    VolumeRemoved,
)
from astore.model import (
    Changes,
    EntryError,
    PoolDef,
    PoolInfo,
    PoolState,
    RefreshOutcome,
    Snapshot,
    VolumeInfo,
)
from astore.shield import shielded
from astore.volume import Volume

if TYPE_CHECKING:
    from astore.lanes import PoolLane
    from astore.manager import Manager

CLEANUP_SECONDS = 2.0
"""How long a clean-up may hold up a cancellation."""


_PASSED_ON = (InvalidStateError, BackendError, DefinitionError, UnsupportedOperationError, ManagerClosedError)
"""Errors that are as good to a pool's user as they are to whoever raised them."""


class _Refresh:
    """A refresh under way and who waits for it."""

    __slots__ = ("full", "journal", "overdue", "task", "waiters")

    def __init__(self, full: bool) -> None:
        self.full = full
        self.waiters = 0
        self.overdue = False
        self.journal: dict[str, VolumeInfo | EntryError | None] = {}  # what is known better than this refresh knows it
        self.task: asyncio.Task[RefreshOutcome] | None = None


class Pool:
    """A storage pool. Got from a :class:`~astore.manager.Manager`; never made by hand."""

    def __init__(self, manager: Manager, definition: PoolDef, *, persistent: bool, autostart: bool = False) -> None:
        assert definition.uuid is not None
        self._manager = manager
        self._uuid = definition.uuid
        self._definition = definition  # the persistent one; of a transient pool, the one it runs by
        self._active_definition: PoolDef | None = None
        self._persistent = persistent
        self._autostart = autostart
        self._state = PoolState.INACTIVE
        self._since = time.time()
        self._error: Exception | None = None
        self._snapshot = Snapshot.EMPTY
        self._saved: Snapshot | None = None
        self._generation = 0
        self._session: PoolSession | None = None
        self._backend: Backend | None = None
        self._lane: PoolLane | None = None
        self._lifecycle = anyio.Lock()
        self._attaching = anyio.Lock()
        self._stopping = False
        self._refresh: _Refresh | None = None
        self._state_waiters: set[asyncio.Event] = set()
        self._log = manager.log.bind(pool=definition.name)

    def __repr__(self) -> str:
        return f"<Pool {self.name!r} ({self.type}, {self.state})>"

    # ------------------------------------------------------------------------------------- reads: they never wait

    @property
    def name(self) -> str:
        """Its name."""
        return self._definition.name

    @property
    def uuid(self) -> str:
        """Its UUID, in lower case with hyphens."""
        return self._uuid

    @property
    def type(self) -> str:
        """Its type: ``dir``, ``netfs``, ``gluster`` …"""
        return self.definition.type

    @property
    def definition(self) -> PoolDef:
        """What it runs by, if it is active; else its definition."""
        return self._active_definition or self._definition

    @property
    def state(self) -> PoolState:
        """What it is doing."""
        return self._state

    @property
    def active(self) -> bool:
        """Whether it was started and not stopped since."""
        return self._state.active

    @property
    def persistent(self) -> bool:
        """Whether its definition stays when it is stopped."""
        return self._persistent

    @property
    def autostart(self) -> bool:
        """Whether ``start_all`` starts it."""
        return self._autostart

    @property
    def error(self) -> Exception | None:
        """Why it is inaccessible, or why its last start failed; None while all is well."""
        return self._error

    @property
    def snapshot(self) -> Snapshot:
        """What the last good refresh found."""
        return self._snapshot

    @property
    def volumes(self) -> tuple[VolumeInfo, ...]:
        """The volumes' records in name order, as the last good refresh found them."""
        return self._snapshot.volumes

    @property
    def info(self) -> PoolInfo:
        """The pool at a glance."""
        snapshot = self._snapshot
        wrong = [error for error in snapshot.errors if not error.skipped]
        why = reason(self._error) if self._error is not None else None
        if why is None and self._state is PoolState.DEGRADED and wrong:
            why = f"{len(wrong)} entries cannot be read; the first: {wrong[0].name}: {wrong[0].message}"
        return PoolInfo(
            name=self.name,
            uuid=self.uuid,
            type=self.type,
            state=self._state,
            persistent=self._persistent,
            autostart=self._autostart,
            backend=self.type in self._manager.registry,
            capacity=snapshot.capacity,
            allocation=snapshot.allocation,
            available=snapshot.available,
            volumes=len(snapshot),
            errors=len(snapshot.errors),
            generation=snapshot.generation,
            taken_at=snapshot.taken_at,
            since=self._since,
            error=why,
        )

    def volume(self, name: str) -> Volume:
        """A volume by its name.

        :raises VolumeNotFoundError: the last snapshot has none of this name.
        """
        if self._snapshot.get(name) is None:
            raise VolumeNotFoundError(f"pool {self.name!r} has no volume {name!r}", what=name)
        return Volume(self, name)

    def to_xml(self, inactive: bool = False) -> str:
        """libvirt's ``<pool>`` document.

        :param inactive: the definition that the next start takes, instead of the one the pool runs by.
        """
        definition = self._definition if inactive else self.definition
        return definition.to_xml(None if inactive else self.info)

    def abilities(self) -> tuple[str, ...]:
        """The operations this pool supports beyond those that all do, as far as is known before it is started."""
        found: set[str] = set()
        backend = self._backend or self._manager.registry.loaded(self.type)
        if backend is not None:
            found.update(abilities(backend))
        if self._session is not None:
            found.update(abilities(self._session))
        return tuple(sorted(found))

    async def wait_state(self, *states: PoolState | str, timeout: float | None = None) -> PoolState:
        """Wait until the pool is in one of these states; say which.

        :param timeout: seconds; TimeoutError when they pass.
        """
        wanted = {PoolState(state) for state in states}
        changed = asyncio.Event()
        self._state_waiters.add(changed)
        try:
            async with asyncio.timeout(timeout):
                while self._state not in wanted:
                    changed.clear()
                    await changed.wait()
        finally:
            self._state_waiters.discard(changed)
        return self._state

    # ------------------------------------------------------------------------------------------------ lifecycle

    async def start(self, build: bool = False, *, refresh: bool = True, timeout: float | None = None) -> None:
        """Start the pool: connect or mount, and look at its volumes once.

        :param build: make its storage first. :param refresh: False leaves the first look to the first refresh.
        :param timeout: seconds for the connecting and mounting, and again for the refresh.
        :raises InvalidStateError: it is active. BackendError: its backend is missing or unusable.
            OSError: the source does not answer. TimeoutError: not in time.
        """
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
        :raises InvalidStateError: it is not active. OSError, CommandError, TimeoutError: it could not be stopped (it
            stays active; never with ``force``).
        """
        self._manager._check_open()
        async with self._lifecycle:
            self._require_active("stop")
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
        self._manager._check_open()
        async with self._lifecycle:
            self._require_known()
            self._require_inactive("build")
            backend, checked = await self._backend_for_me()
            await self._build(backend, checked)

    async def delete(self) -> None:
        """Destroy the pool's storage (an empty target directory); the definition stays.

        :raises InvalidStateError: it is active. UnsupportedOperationError: its backend cannot. OSError: it failed.
        """
        self._manager._check_open()
        async with self._lifecycle:
            self._require_known()
            self._require_inactive("delete")
            backend, checked = await self._backend_for_me()
            if not isinstance(backend, DeletesPools):
                raise UnsupportedOperationError(pool=self.name, type=self.type, operation="delete")
            async with self._lent_lane(backend) as context:
                await self._translated("delete", backend.delete(checked, context))
            self._publish(PoolDeleted)

    async def undefine(self) -> None:
        """Remove the pool's definition. :raises InvalidStateError: it is active, or transient."""
        self._manager._check_open()
        async with self._lifecycle:
            self._require_known()
            self._require_inactive("undefine")
            await self._manager._undefine(self)

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
            )
        await self._manager._set_autostart(self, autostart)

    # -------------------------------------------------------------------------------------------------- refresh

    async def refresh(
        self, name: str | None = None, full: bool = False, timeout: float | None = None
    ) -> RefreshOutcome:
        """Look at the source again. Who calls while a refresh runs shares it, and its outcome.

        :param name: look at this volume only. :param full: trust nothing known; read every header anew.
        :param timeout: seconds; when they pass and nobody else waits, the pool is inaccessible.
        :raises InvalidStateError: the pool is not active. OSError: the source cannot be read; the pool is inaccessible,
            its last good snapshot stays. TimeoutError: not in time.
        """
        self._manager._check_open()
        self._require_refreshable()
        if name is not None:
            return await self._refresh_volume(name, timeout)
        generation = self._generation
        try:
            async with asyncio.timeout(timeout):
                return await self._shared_refresh(full)
        except TimeoutError as error:
            if isinstance(error, AstoreError):
                raise
            late = LaneTimeoutError(
                f"pool {self.name!r}: the refresh did not end within {timeout:g} s",
                lane=self.name,
                timeout=timeout or 0,
            )
            if self._refresh is None and self._state.active and generation == self._generation:
                # nobody waits for it any more, and it did not end in the very moment of the timeout
                if self._lane is not None:
                    self._lane.write_off()
                self._set_state(PoolState.INACCESSIBLE, late)
            raise late from None

    async def _shared_refresh(self, full: bool) -> RefreshOutcome:
        while (run := self._refresh) is not None and full and not run.full:
            # it trusts what is known: not what this caller wants. Wait for its end, whatever that is, and start anew.
            with contextlib.suppress(Exception):
                await self._join(run)
            self._require_refreshable()
        if run is None:
            run = self._refresh = _Refresh(full)
            run.task = asyncio.get_running_loop().create_task(
                self._run_refresh(run), name=f"astore refresh of {self.name}"
            )
        return await self._join(run)

    async def _join(self, run: _Refresh) -> RefreshOutcome:
        """Wait for a refresh that others may wait for too; the last to leave takes it along."""
        task = run.task
        assert task is not None
        run.waiters += 1
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            if task.cancelled() and not _cancelling():
                raise InvalidStateError(
                    f"pool {self.name!r}: the refresh was given up, since the pool was stopped",
                    pool=self.name,
                    state=self._state,
                    operation="refresh",
                ) from None
            raise
        finally:
            run.waiters -= 1
            if not run.waiters and not task.done():
                await self._end_refresh(run)

    async def _end_refresh(self, run: _Refresh) -> None:
        task = run.task
        if self._refresh is run:
            self._refresh = None
        if task is not None and not task.done():
            task.cancel()
            with anyio.CancelScope(shield=True), anyio.move_on_after(CLEANUP_SECONDS, shield=True):
                await asyncio.wait([task])
        if task is not None:
            task.add_done_callback(_seen)

    async def _cancel_refresh(self, why: str) -> None:
        run = self._refresh
        if run is not None:
            self._log.debug("refresh given up", why=why)
            await self._end_refresh(run)

    async def _run_refresh(self, run: _Refresh) -> RefreshOutcome:
        began = time.monotonic()
        try:
            try:
                session = await self._attached()
                snapshot = await session.refresh(self._snapshot, full=run.full)
            except Exception as error:
                raise self._failed_refresh(error, run) from error
            if self._session is not session or self._refresh is not run:
                raise InvalidStateError(
                    f"pool {self.name!r} was stopped", pool=self.name, state=self._state, operation="refresh"
                )
            changes = await self._changes(snapshot)
            while run.journal:  # what was learned beside the refresh, also while it was compared
                journal, run.journal = run.journal, {}
                snapshot = snapshot.patched(journal, 0)
                changes = await self._changes(snapshot)
            return self._take(snapshot, changes, time.monotonic() - began)
        finally:
            if self._refresh is run:
                self._refresh = None

    def _failed_refresh(self, error: Exception, run: _Refresh) -> Exception:
        """What the callers are told; the pool turns inaccessible."""
        translated = self._translate(error, "refresh")
        if self._refresh is run and self._state.active:
            self._set_state(PoolState.INACCESSIBLE, translated)
        return translated

    async def _changes(self, snapshot: Snapshot) -> Changes:
        """What differs from the snapshot at hand: told inline where it is quick, else on the lane."""
        before = self._snapshot
        if len(before) and len(snapshot) > 4000 and self._lane is not None:
            changes = await self._lane.run(snapshot.changes_since, before)
            if self._snapshot is before:
                return changes
        return snapshot.changes_since(self._snapshot)

    def _take(self, snapshot: Snapshot, changes: Changes, seconds: float) -> RefreshOutcome:
        """Swap the snapshot in and tell. No await from here to the end."""
        self._generation += 1
        snapshot = snapshot.numbered(self._generation)
        self._snapshot = snapshot
        wrong = sum(not error.skipped for error in snapshot.errors)
        self._publish_changes(snapshot, changes)
        self._publish(
            PoolRefreshed,
            generation=snapshot.generation,
            added=len(changes.added),
            changed=len(changes.changed),
            removed=len(changes.removed),
            unchanged=changes.unchanged,
            errors=wrong,
        )
        self._set_state(PoolState.DEGRADED if wrong else PoolState.RUNNING, None)
        return RefreshOutcome(
            pool=self.name,
            uuid=self.uuid,
            added=changes.added,
            changed=changes.changed,
            removed=changes.removed,
            unchanged=changes.unchanged,
            errors=snapshot.errors,
            seconds=seconds,
            generation=snapshot.generation,
        )

    async def _refresh_volume(self, name: str, timeout: float | None) -> RefreshOutcome:
        if not name or "/" in name or "\0" in name or name in (".", ".."):
            raise VolumeNotFoundError(f"pool {self.name!r} has no volume {name!r}", what=name)
        began = time.monotonic()
        try:
            async with asyncio.timeout(timeout):
                session = await self._attached()
                if not isinstance(session, RefreshesVolume):
                    return await self._shared_refresh(False)
                for _ in range(3):
                    generation = self._generation
                    item = await session.refresh_volume(name)
                    if generation == self._generation:  # else what was read may be older than the snapshot is now
                        break
        except TimeoutError as error:
            if isinstance(error, AstoreError):
                raise self._translate(error, "refresh") from error
            raise LaneTimeoutError(
                f"pool {self.name!r}: refreshing volume {name!r} took longer than {timeout or 0:g} s",
                lane=self.name,
                timeout=timeout or 0,
            ) from error
        except Exception as error:
            translated = self._translate(error, "refresh")
            if isinstance(translated, PoolInaccessibleError) and self._state.active and not self._stopping:
                self._set_state(PoolState.INACCESSIBLE, translated)
            raise translated from error
        if self._session is not session:
            self._require_active("refresh")
        patch: dict[str, VolumeInfo | EntryError | None] = {name: item}
        if (shown := printable(name)) != name and self._snapshot.get(shown) is None:
            # its error, if it had one, is known by the name that can be printed
            patch = {name: None, shown: item} if isinstance(item, EntryError) else {name: item, shown: None}
        return self._apply(patch, time.monotonic() - began)

    def _apply(self, patch: dict[str, VolumeInfo | EntryError | None], seconds: float = 0.0) -> RefreshOutcome:
        """Take over what is known of single volumes, also into a refresh that runs beside. No await."""
        before = self._snapshot
        if self._refresh is not None:
            self._refresh.journal.update(patch)
        self._generation += 1
        snapshot = before.patched(patch, self._generation)
        names = {name: (before.get(name), snapshot.get(name)) for name in patch}
        changes = Changes(
            added=tuple(sorted(name for name, (old, new) in names.items() if old is None and new is not None)),
            changed=tuple(
                sorted(
                    n for n, (old, new) in names.items() if old is not None and new is not None and not new.same_as(old)
                )
            ),
            removed=tuple(sorted(name for name, (old, new) in names.items() if old is not None and new is None)),
            unchanged=sum(o is not None and n is not None and n.same_as(o) for o, n in names.values()),
        )
        self._snapshot = snapshot
        self._publish_changes(snapshot, changes)
        wrong = any(not error.skipped for error in snapshot.errors)
        if self._state is not PoolState.INACCESSIBLE:
            self._set_state(PoolState.DEGRADED if wrong else PoolState.RUNNING, None)
        return RefreshOutcome(
            pool=self.name,
            uuid=self.uuid,
            added=changes.added,
            changed=changes.changed,
            removed=changes.removed,
            unchanged=changes.unchanged,
            errors=tuple(item for item in patch.values() if isinstance(item, EntryError)),
            seconds=seconds,
            generation=snapshot.generation,
        )

    # ---------------------------------------------------------------------------------------------- inner works

    async def _start(self, build: bool, refresh: bool, timeout: float | None) -> None:
        backend, checked = await self._backend_for_me()
        if build:
            await self._build(backend, checked)
        self._manager.registry.acquire(backend)
        lane: PoolLane | None = None
        session: PoolSession | None = None
        try:
            try:
                lane = self._manager._pool_lane(self.name, backend)
                async with asyncio.timeout(timeout):
                    session = await backend.open(checked, self._context(lane))
                # to its end: a thread that is not waited for would write the file after it was removed again
                await shielded(self._manager._save_run(self, checked))
            except Exception as error:
                raise self._translate(error, "start") from error
        except BaseException:
            await shielded(self._undo_start(session, lane, backend))
            raise
        self._session, self._backend, self._lane = session, backend, lane
        self._active_definition = checked
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
            with anyio.move_on_after(CLEANUP_SECONDS):
                with contextlib.suppress(Exception):
                    await session.stop()
            with anyio.move_on_after(CLEANUP_SECONDS):
                with contextlib.suppress(Exception):
                    await session.aclose()
            await self._manager._forget_run(self)
        if lane is not None:
            lane.close()
        self._manager.registry.release(backend)

    async def _give_up(self, session: PoolSession) -> None:
        """Stop a pool whose first refresh failed. Bounded."""
        with contextlib.suppress(Exception):
            await self._stop_session(session, force=True)
        await self._become_inactive()

    async def _attached(self) -> PoolSession:
        """The session; opened now if another process, or this one earlier, started the pool."""
        if self._session is not None:
            return self._session
        async with self._attaching:
            if self._session is None:
                self._require_active("use")
                backend = await self._manager.registry.get(self.type)
                definition = self._active_definition or backend.check(self._definition)
                self._manager.registry.acquire(backend)
                session: PoolSession | None = None
                try:
                    lane = self._lane
                    if lane is None:
                        lane = self._lane = self._manager._pool_lane(self.name, backend)
                    session = await backend.open(definition, self._context(lane))
                    self._manager._check_open()
                    self._require_active("use")
                except BaseException:
                    if session is not None:  # the pool was stopped, or the Manager closed, meanwhile
                        await shielded(session.aclose())
                    self._manager.registry.release(backend)
                    raise
                self._session, self._backend = session, backend
            return self._session

    async def _session_to_stop(self, force: bool) -> PoolSession | None:
        try:
            async with asyncio.timeout(2 * CLEANUP_SECONDS if force else None):
                return await self._attached()
        except Exception:
            # The backend is gone, or what the pool needs of the machine. There is nothing to stop it with.
            if not force and self.type in self._manager.registry:
                raise
            return None

    async def _stop_session(self, session: PoolSession, force: bool) -> None:
        if force:
            with anyio.move_on_after(2 * CLEANUP_SECONDS):
                if isinstance(session, CutsLoose):
                    with contextlib.suppress(Exception):
                        await session.cut_loose()
                else:
                    with contextlib.suppress(Exception):
                        await session.stop()
            return
        try:
            await session.stop()
        except Exception as error:
            raise self._translate(error, "stop") from error

    async def _become_inactive(self, *, forget: bool = True) -> None:
        """After the storage was let go: close the session, forget the run, tell. Shielded by the caller."""
        self._active_definition = None
        self._snapshot = Snapshot.EMPTY
        self._set_state(PoolState.INACTIVE, None)  # first: from now on nobody attaches again
        await self._cancel_refresh("the pool was stopped")
        await self._detach()
        if forget:
            await self._manager._forget_run(self)
        self._publish(PoolStopped)

    async def _detach(self) -> None:
        """Let go of what belongs to this process. Never slow, never raises."""
        session, self._session = self._session, None
        backend, self._backend = self._backend, None
        lane, self._lane = self._lane, None
        try:
            if session is not None:
                with anyio.move_on_after(CLEANUP_SECONDS, shield=True):
                    with contextlib.suppress(Exception):
                        await session.aclose()
        finally:
            if lane is not None:
                lane.close()
            if backend is not None:
                self._manager.registry.release(backend)

    async def _build(self, backend: Backend, checked: PoolDef) -> None:
        if not isinstance(backend, BuildsPools):
            raise UnsupportedOperationError(pool=self.name, type=self.type, operation="build")
        self._set_state(PoolState.BUILDING, None)
        try:
            async with self._lent_lane(backend) as context:
                await self._translated("build", backend.build(checked, context))
        finally:
            self._set_state(PoolState.INACTIVE, None)
        self._publish(PoolBuilt)

    async def _backend_for_me(self) -> tuple[Backend, PoolDef]:
        backend = await self._manager.registry.get(self.type)
        return backend, backend.check(self._definition)

    @contextlib.asynccontextmanager
    async def _lent_lane(self, backend: Backend) -> Any:
        lane = self._manager._pool_lane(self.name, backend)
        try:
            yield self._context(lane)
        finally:
            lane.close()

    def _context(self, lane: PoolLane) -> Context:
        return Context(
            name=self.name,
            uuid=self.uuid,
            lane=lane,
            run_command=LaneCommandRunner(lane),
            log=self._log,
            timeout=lane.timeout,
        )

    async def _translated(self, operation: str, call: Any) -> None:
        try:
            await call
        except Exception as error:
            raise self._translate(error, operation) from error

    def _translate(self, error: Exception, operation: str) -> Exception:
        """The error with the pool's name in it, of astore's own tree."""
        if isinstance(error, _PASSED_ON):
            return error
        what = f"pool {self.name!r}: {operation}"
        if isinstance(error, StorageError):
            if error.pool is not None:
                return error
            return PoolInaccessibleError(f"{what}: {reason(error)}", errno=error.errno, pool=self.name)
        if isinstance(error, TimeoutError):
            return LaneTimeoutError(f"{what}: {reason(error) if str(error) else 'not in time'}", lane=self.name)
        if isinstance(error, OSError):
            return from_os_error(error, what, pool=self.name, inaccessible=True)
        if isinstance(error, AstoreError):
            return PoolInaccessibleError(f"{what}: {reason(error)}", pool=self.name)
        return PoolInaccessibleError(
            f"{what}: the backend failed with {type(error).__name__}: {reason(error)}", pool=self.name
        )

    def _require_known(self) -> None:
        if self._manager._pools.get(self.name) is not self:
            raise PoolNotFoundError(f"there is no pool {self.name!r} any more", what=self.name)

    def _require_active(self, operation: str) -> None:
        if not self._state.active:
            raise InvalidStateError(
                f"pool {self.name!r} is {self._state}: start it first",
                pool=self.name,
                state=self._state,
                operation=operation,
            )

    def _require_refreshable(self) -> None:
        self._require_active("refresh")
        if self._stopping:
            raise InvalidStateError(
                f"pool {self.name!r} is being stopped", pool=self.name, state=self._state, operation="refresh"
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

    def _set_state(self, new: PoolState, error: Exception | None) -> None:
        old = self._state
        self._error = error
        if old is new:
            return
        self._state = new
        self._since = time.time()
        why = reason(error) if error is not None else None
        self._publish(PoolStateChanged, old=old, new=new, reason=why)
        if new is PoolState.INACCESSIBLE:
            self._log.warning("pool inaccessible", reason=why)
        for waiter in self._state_waiters:
            waiter.set()

    def _publish(self, kind: Callable[..., Event], **fields: Any) -> None:
        self._manager._bus.publish(cast("type[Event]", kind), pool=self.name, uuid=self.uuid, **fields)

    def _publish_changes(self, snapshot: Snapshot, changes: Changes) -> None:
        added, changed, removed = changes.added, changes.changed, changes.removed
        pool, uuid, by_name = self.name, self.uuid, snapshot.by_name

        def build(index: int) -> Event:
            if index < len(added):
                name = added[index]
                return VolumeAdded(pool=pool, uuid=uuid, name=name, volume=by_name[name])
            index -= len(added)
            if index < len(changed):
                name = changed[index]
                return VolumeChanged(pool=pool, uuid=uuid, name=name, volume=by_name[name])
            return VolumeRemoved(pool=pool, uuid=uuid, name=removed[index - len(changed)])

        self._manager._bus.publish_batch(len(added) + len(changed) + len(removed), build, pool=pool)

    def _redefine(self, definition: PoolDef, *, autostart: bool) -> bool:
        """Take over a persistent definition; say whether it is another. An active pool goes on by the one it has."""
        if self.active and self._active_definition is None:
            self._active_definition = self._definition
        same = self._persistent and self._definition == definition and self._autostart == autostart
        self._definition, self._autostart, self._persistent = definition, autostart, True
        return not same

    def _restore(self, definition: PoolDef, snapshot: Snapshot | None, started_at: float, *, tell: bool) -> None:
        """The pool was started by another process, or by this one earlier: it is active, and not attached yet."""
        self._active_definition = definition
        state = PoolState.RUNNING
        if snapshot is not None:
            self._snapshot = self._saved = snapshot
            self._generation = max(self._generation, snapshot.generation)
            if any(not error.skipped for error in snapshot.errors):
                state = PoolState.DEGRADED
        if tell:
            self._set_state(state, None)
            self._publish(PoolStarted)
        self._state, self._since = state, started_at


def _seen(task: asyncio.Task[RefreshOutcome]) -> None:
    if not task.cancelled():
        task.exception()


def _cancelling() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
