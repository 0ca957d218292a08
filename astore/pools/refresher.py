"""The refresh that a pool's callers share, and the session it works with.

A refresh is a task that lives as long as somebody waits for it: the first caller begins it, others join, and the last to leave
takes it along. What is learned beside it (a single volume's record) is put into its journal, and so outlives it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from typing import TYPE_CHECKING

import anyio

from astore.backend import (
    Context,
    PoolSession,
    RefreshesVolume,
)
from astore.cancellation import bounded, shielded
from astore.commands import LaneCommandRunner
from astore.errors import (
    AstoreError,
    InvalidStateError,
    LaneTimeoutError,
    PoolInaccessibleError,
    VolumeNotFoundError,
    printable,
)
from astore.events import (
    PoolRefreshed,
)
from astore.model import (
    Changes,
    EntryError,
    PoolState,
    RefreshOutcome,
    Snapshot,
    VolumeInfo,
)
from astore.plugin_calls import answer, asked, checked, entry, is_cancelled, opened, refreshed
from astore.pools.record import PoolView

if TYPE_CHECKING:
    from astore.lanes.lane import PoolLane

CLEANUP_SECONDS = 2.0
"""How long a clean-up may hold up a cancellation."""


class Refreshing:
    """A refresh under way and who waits for it."""

    __slots__ = ("full", "journal", "outcome", "task", "waiters")

    def __init__(self, full: bool) -> None:
        self.full = full
        self.waiters = 0
        self.journal: dict[str, VolumeInfo | EntryError | None] = {}  # what is known better than this refresh knows it
        self.task: asyncio.Task[RefreshOutcome] | None = None
        self.outcome: asyncio.Future[RefreshOutcome] = asyncio.get_running_loop().create_future()

    def tell(self, task: asyncio.Task[RefreshOutcome]) -> None:
        """The task is done: pass on what came of it."""
        error = None if task.cancelled() else task.exception()
        if self.outcome.done():
            return
        if task.cancelled():
            self.outcome.cancel()
        elif error is not None:
            self.outcome.set_exception(error)
            self.outcome.exception()  # seen, if nobody waits
        else:
            self.outcome.set_result(task.result())


class RefreshedPool(PoolView):
    """The part of :class:`~astore.pools.pool.Pool` that looks at the storage."""

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
        life, generation = self._life, self._generation
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
            if self._refresh is None and self._state.active and (life, generation) == (self._life, self._generation):
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
            run = self._refresh = Refreshing(full)
            run.task = asyncio.get_running_loop().create_task(
                self._run_refresh(run), name=f"astore refresh of {self.name}"
            )
            run.task.add_done_callback(run.tell)
        return await self._join(run)

    async def _join(self, run: Refreshing) -> RefreshOutcome:
        """Wait for a refresh that others may wait for too; the last to leave takes it along."""
        task = run.task
        assert task is not None
        run.waiters += 1
        try:
            return await asyncio.shield(run.outcome)
        except asyncio.CancelledError:
            if run.outcome.cancelled() and not is_cancelled():
                raise InvalidStateError(
                    f"pool {self.name!r}: the refresh was given up, since the pool was stopped",
                    pool=self.name,
                    state=self._state,
                    operation="refresh",
                ) from None
            raise
        finally:
            run.waiters -= 1
            if not run.waiters and not task.done() and not run.outcome.done():
                await self._end_refresh(run)

    async def _end_refresh(self, run: Refreshing, until: float | None = None) -> None:
        task = run.task
        if self._refresh is run:
            self._refresh = None
        if task is not None and not task.done():
            task.cancel()
            try:
                with anyio.move_on_after(_seconds(until), shield=True):
                    await asyncio.wait([task])
            finally:
                run.outcome.cancel()  # nobody waits for a backend that does not let itself be cancelled

    async def _cancel_refresh(self, why: str, until: float | None = None) -> None:
        run = self._refresh
        if run is not None:
            self._log.debug("refresh given up", why=why)
            await self._end_refresh(run, until)

    async def _run_refresh(self, run: Refreshing) -> RefreshOutcome:
        began = time.monotonic()
        try:
            try:
                session = await self._attached()
                snapshot = await refreshed(session, self._snapshot, full=run.full)
            except Exception as error:
                raise self._failed_refresh(error, run) from error
            if self._session is not session or self._refresh is not run:
                raise self._stopped_meanwhile("refresh")
            changes = await self._changes(snapshot)
            while run.journal:  # what was learned beside the refresh, also while it was compared
                journal, run.journal = run.journal, {}
                snapshot = snapshot.patched(journal, 0)
                changes = await self._changes(snapshot)
            return self._take(snapshot, changes, time.monotonic() - began)
        finally:
            if self._refresh is run:
                self._refresh = None

    def _failed_refresh(self, error: Exception, run: Refreshing) -> Exception:
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
        if not _may_be_a_name(name):
            raise VolumeNotFoundError(f"pool {self.name!r} has no volume {name!r}", what=name)
        session: PoolSession | None = None
        began = time.monotonic()
        try:
            async with asyncio.timeout(timeout):
                session = await self._attached()
                if not isinstance(session, RefreshesVolume):
                    return await self._shared_refresh(False)
                for _ in range(3):
                    known = self._snapshot.get(name)
                    # only of a volume that is known to have been made raw it matters what it was
                    before = () if known is None or known.made is None else (known,)
                    item = entry(await answer(session.refresh_volume(name, *before)), name)
                    if self._snapshot.get(name) is known:  # else what was read may be older than the snapshot is now
                        break
                else:
                    return await self._shared_refresh(False)
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
            # a session of an earlier life says nothing (both are None where the pool could not be attached)
            mine = session is self._session and self._state.active and not self._stopping
            if mine and isinstance(translated, PoolInaccessibleError):
                self._set_state(PoolState.INACCESSIBLE, translated)
            raise translated from error
        if self._session is not session:
            raise self._stopped_meanwhile("refresh")
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

    # ---------------------------------------------------------------------------------------------- the session

    async def _attached(self) -> PoolSession:
        """The session; opened now if another process, or this one earlier, started the pool."""
        if self._session is not None:
            return self._session
        async with self._attaching:
            if self._session is None:
                self._require_active("use")
                life = self._life
                backend = await self._manager.registry.get(self.type)
                definition = self._active_definition or checked(backend, self._definition)
                self._manager.registry.acquire(backend)
                session: PoolSession | None = None
                lanes = self._manager._lanes
                try:
                    lane = self._lane
                    if lane is None:
                        lane = self._lane = self._manager._pool_lane(self.name, backend)
                    session = await opened(backend, definition, self._context(lane))
                    self._manager._check_open(lanes)
                    self._require_active("use")
                    if life != self._life:
                        raise self._stopped_meanwhile("use")
                except BaseException:
                    try:
                        if session is not None:  # the pool was stopped, or the Manager closed, meanwhile
                            await shielded(bounded(asked(session.aclose)))
                    finally:
                        self._manager.registry.release(backend)
                    raise
                self._session, self._backend = session, backend
            return self._session

    async def _detach(self, until: float | None = None) -> None:
        """Let go of what belongs to this process. Never slow, never raises."""
        session, self._session = self._session, None
        backend, self._backend = self._backend, None
        lane, self._lane = self._lane, None
        try:
            if session is not None:
                await bounded(asked(session.aclose), _seconds(until))
        finally:
            if lane is not None:
                lane.close()
            if backend is not None:
                self._manager.registry.release(backend)

    def _context(self, lane: PoolLane) -> Context:
        return Context(
            name=self.name,
            uuid=self.uuid,
            lane=lane,
            run_command=LaneCommandRunner(lane),
            log=self._log,
            timeout=lane.timeout,
        )

    def _require_refreshable(self) -> None:
        self._require_active("refresh")
        if self._stopping:
            raise InvalidStateError(
                f"pool {self.name!r} is being stopped", pool=self.name, state=self._state, operation="refresh"
            )


def _may_be_a_name(name: str) -> bool:
    try:
        os.fsencode(name)
    except UnicodeEncodeError:
        return False
    return bool(name) and "/" not in name and "\0" not in name and name not in (".", "..")


def _seconds(until: float | None) -> float:
    """How long a clean-up may last that is to be over at a moment (of the monotonic clock)."""
    return CLEANUP_SECONDS if until is None else max(until - time.monotonic(), 0.05)
