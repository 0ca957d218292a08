"""Refresher: the refresh that a pool's callers share.

A refresh is a task: the first caller begins it, and others join. If all its callers are cancelled, it is cancelled. If the
time of the last one is over, it goes on for as long again, so that a caller who tries again finds it (nearly) done. Records
of single volumes that are learned meanwhile go into its journal, so that its snapshot has them too.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Mapping
from errno import EAGAIN

import anyio

from astore.backend import RefreshesVolume
from astore.cancellation import CLEANUP_SECONDS, seconds_until, shielded
from astore.errors import (
    AstoreError,
    InvalidStateError,
    LaneTimeoutError,
    ManagerClosedError,
    PoolInaccessibleError,
    StorageError,
    VolumeNotFoundError,
    is_shortage,
    printable,
)
from astore.lanes.job import PATIENCE, Patience, patient
from astore.model import Changes, EntryError, PoolState, RefreshOutcome, Snapshot, VolumeInfo
from astore.plugin_calls import answer, check_volumes, checked_entry, checked_snapshot, is_cancelled
from astore.pools.life import Life
from astore.pools.pool_errors import about_pool
from astore.pools.record import PoolRecord
from astore.pools.services import Services

Found = VolumeInfo | EntryError | None
"""The state of a name: a volume, an entry that cannot be read, or nothing."""

LINGER_SECONDS = 1.0
"""How long a refresh goes on at least after its last caller's time."""

COMPARED_INLINE = 1000
"""Snapshots with more volumes than this are checked and compared on the lane, not in the event loop."""


_NOT_OF_STORAGE = (InvalidStateError, ManagerClosedError)
"""Errors of a refresh that say nothing about the pool's storage."""


class _Run:
    """A running refresh, and the number of its callers."""

    __slots__ = ("began", "full", "journal", "life", "outcome", "patience", "task", "timer", "unasked", "waiters")

    def __init__(self, life: Life, full: bool, unasked: bool) -> None:
        self.life = life
        self.full = full
        self.unasked = unasked
        self.began = time.monotonic()
        self.waiters = 0
        self.patience = Patience(None)
        self.timer: asyncio.TimerHandle | None = None  # ends it when nobody waits any more
        self.journal: dict[str, Found] = {}  # states of single volumes that are newer than what this refresh reads
        self.task: asyncio.Task[RefreshOutcome] | None = None
        self.outcome: asyncio.Future[RefreshOutcome] = asyncio.get_running_loop().create_future()

    def tell(self, task: asyncio.Task[RefreshOutcome]) -> None:
        """Pass on the outcome of the task, which is done."""
        error = None if task.cancelled() else task.exception()
        if self.timer is not None:
            self.timer.cancel()
        if self.outcome.done():
            return
        if task.cancelled():
            self.outcome.cancel()
        elif error is not None:
            self.outcome.set_exception(error)
            self.outcome.exception()  # mark it as retrieved
        else:
            self.outcome.set_result(task.result())


class Refresher:
    """Reads the storage of one pool, and updates its record."""

    def __init__(self, record: PoolRecord, services: Services) -> None:
        self._record = record
        self._services = services
        self._run: _Run | None = None
        self._took = 0.0  # seconds that the last refresh took

    @property
    def running(self) -> bool:
        """Whether a whole refresh is running."""
        return self._run is not None

    async def refresh(self, full: bool, timeout: float | None, *, unasked: bool = False) -> RefreshOutcome:
        """Refresh the whole pool; see :meth:`astore.Pool.refresh`.

        :param unasked: the watch does it, for changes until now. It and a caller share no refresh that began earlier.
        """
        self._require_refreshable()
        return await self._shared(full, None if timeout is None else time.monotonic() + timeout, timeout, unasked)

    def apply(self, patch: Mapping[str, Found], seconds: float = 0.0) -> RefreshOutcome:
        """Take over the state of single volumes, also into the journal of a running refresh. Never waits."""
        if self._run is not None:
            self._run.journal.update(patch)
        return self._record.apply(patch, seconds)

    async def cancel(self, why: str, until: float | None = None) -> None:
        """Cancel a running refresh. Bounded. :param until: the deadline on the monotonic clock."""
        run = self._run
        if run is not None:
            self._record.log.debug("refresh given up", why=why)
            await self._end(run, until)

    def _require_refreshable(self) -> Life:
        self._services.check_open()
        return self._record.require_usable("refresh")

    def _late(self, timeout: float | None) -> LaneTimeoutError:
        known = f" (the last one took {self._took:.3g} s)" if self._took else ""
        return LaneTimeoutError(
            f"pool {self._record.name!r}: the refresh did not end within {timeout or 0:g} s{known}",
            lane=self._record.name,
            timeout=timeout or 0,
        )

    # --------------------------------------------------------------------------------------------- the whole pool

    async def _shared(
        self, full: bool, until: float | None = None, timeout: float | None = None, unasked: bool = False
    ) -> RefreshOutcome:
        """Join the refresh that runs, or begin one.

        :param until: the caller's deadline on the monotonic clock. :param timeout: the seconds that it had.
        """
        life = self._require_refreshable()
        asked = time.monotonic()
        # one that may have missed what happened a moment ago, or that trusts the last snapshot while this caller does not
        while (run := self._run) is not None and (
            ((unasked or run.unasked) and run.began < asked) or (full and not run.full)
        ):
            with contextlib.suppress(Exception):
                await self._join(run, until, timeout)
            if until is not None and time.monotonic() >= until:
                raise self._late(timeout)
            life = self._require_refreshable()
        if run is None:
            run = self._run = _Run(life, full, unasked)
            run.task = asyncio.get_running_loop().create_task(
                self._refresh(run), name=f"astore refresh of {self._record.name}"
            )
            run.task.add_done_callback(run.tell)
        return await self._join(run, until, timeout)

    async def _join(self, run: _Run, until: float | None, timeout: float | None) -> RefreshOutcome:
        """Wait for a shared refresh.

        :raises LaneTimeoutError: it did not end in time.
        """
        run.waiters += 1
        if run.timer is not None:
            run.timer.cancel()
        if until is not None:
            run.patience.extend(until - time.monotonic() + max(timeout or 0.0, LINGER_SECONDS))
        late = False
        try:
            async with asyncio.timeout(None if until is None else until - time.monotonic()) as deadline:
                return await asyncio.shield(run.outcome)
        except TimeoutError as error:
            if isinstance(error, AstoreError) or not deadline.expired():
                raise
            late = True
            raise self._late(timeout) from None
        except asyncio.CancelledError:
            if run.outcome.cancelled() and not is_cancelled():
                raise self._record.wrong_state("was stopped, and its refresh was given up", "refresh") from None
            raise
        finally:
            run.waiters -= 1
            if not run.waiters and not run.outcome.done():
                if late:
                    self._end_later(run, max(timeout or 0.0, LINGER_SECONDS))
                else:
                    await self._end(run)

    def _end_later(self, run: _Run, seconds: float) -> None:
        """Give up a refresh after so many seconds, unless another caller joins it."""

        def end() -> None:
            if self._run is run and not run.waiters:
                self._run = None
                run.outcome.cancel()
                if run.task is not None:
                    run.task.cancel()

        run.timer = asyncio.get_running_loop().call_later(seconds, end)

    async def _end(self, run: _Run, until: float | None = None) -> None:
        task = run.task
        if self._run is run:
            self._run = None
        if run.timer is not None:
            run.timer.cancel()
        if task is not None and not task.done():
            task.cancel()
            try:
                with anyio.move_on_after(seconds_until(until), shield=True):
                    await asyncio.wait([task])
            finally:
                run.outcome.cancel()  # do not wait for a backend that resists the cancellation

    async def _refresh(self, run: _Run) -> RefreshOutcome:
        began = time.monotonic()
        life, record = run.life, self._record
        PATIENCE.set(run.patience)  # of this task
        try:
            try:
                session = await life.attached()
                found = [await checked_snapshot(session, record.snapshot, full=run.full)]
                journal, run.journal = run.journal, {}
                before = record.snapshot
                if not journal and found[0].has_records_of(before):
                    snapshot, changes = found[0], Changes(unchanged=len(before))
                elif len(found[0]) + len(before) > COMPARED_INLINE and life.lane is not None:
                    snapshot, changes = await life.lane.run(_compared, found, before, journal)
                else:
                    snapshot, changes = _compared(found, before, journal)
            except Exception as error:
                translated = about_pool(record.name, "refresh", error)
                about_storage = not is_shortage(translated) and not isinstance(translated, _NOT_OF_STORAGE)
                if self._run is run and about_storage:
                    record.set_state(PoolState.INACCESSIBLE, translated)
                raise translated from error
            self._check_current(run)
            if run.journal:  # it has grown meanwhile, and what is in it has been told of
                snapshot = snapshot.patched(run.journal, 0)
                changes = changes.without(run.journal, len(snapshot))
            self._took = time.monotonic() - began
            return record.take(snapshot, changes, self._took)
        finally:
            if self._run is run:
                self._run = None

    def _check_current(self, run: _Run) -> None:
        """Check that the refresh goes on. :raises InvalidStateError: it was cancelled."""
        if self._run is not run:
            raise self._record.wrong_state("was stopped meanwhile", "refresh")

    # ------------------------------------------------------------------------------------------------- one volume

    async def refresh_volume(self, name: str, timeout: float | None) -> RefreshOutcome:
        """Refresh one volume; see :meth:`astore.Pool.refresh`."""
        self._require_refreshable()
        with patient(timeout):
            return await self._refresh_volume(name, timeout)

    async def _refresh_volume(self, name: str, timeout: float | None) -> RefreshOutcome:
        record = self._record
        life = record.require_active("refresh")
        if not _may_be_a_name(name):
            raise VolumeNotFoundError(f"pool {record.name!r} has no volume {name!r}", what=name)
        began = time.monotonic()
        session = None
        limit = asyncio.timeout(timeout)
        try:
            async with limit:
                session = await life.attached()
                if not isinstance(session, RefreshesVolume):
                    return await self._shared(False)
                for _ in range(3):
                    known = record.snapshot.get(name)
                    # the last record matters only for a volume that is known to have been made raw
                    before = () if known is None or known.made is None else (known,)
                    found = checked_entry(await answer(session.refresh_volume(name, *before)), name)
                    if record.snapshot.get(name) is known:  # else the snapshot may be newer than this read
                        break
                else:
                    return await self._shared(False)
        except TimeoutError as error:
            if timeout is None or not limit.expired():
                raise about_pool(record.name, "refresh", error) from error
            message = f"pool {record.name!r}: refreshing volume {name!r} took longer than {timeout:g} s"
            raise LaneTimeoutError(message, lane=record.name, timeout=timeout) from error
        except Exception as error:
            translated = about_pool(record.name, "refresh", error)
            mine = life.session is session and not life.ended and not life.ending
            if mine and isinstance(translated, PoolInaccessibleError):
                record.set_state(PoolState.INACCESSIBLE, translated)
            raise translated from error
        life.check("refresh", session)
        patch: dict[str, Found] = {name: found}
        if (shown := printable(name)) != name and record.snapshot.get(shown) is None:
            # errors are listed under the printable name
            patch = {name: None, shown: found} if isinstance(found, EntryError) else {name: found, shown: None}
        return self.apply(patch, time.monotonic() - began)

    async def look_again(self, *names: str) -> None:
        """Refresh volumes after work that may have changed them. Bounded; never raises."""
        for name in names:
            with contextlib.suppress(Exception):
                await shielded(self._refresh_volume(name, CLEANUP_SECONDS))

    async def look_at_same(self, name: str) -> None:
        """Refresh a volume. :raises StorageError: EAGAIN: it is another file than before."""
        before = self._record.snapshot.get(name)
        await self.look_again(name)
        now = self._record.snapshot.get(name)
        if before is not None and now is not None and now.inode != before.inode:
            raise StorageError(
                f"volume {name!r} of pool {self._record.name!r} is another file than it was: look at it before you use it",
                errno=EAGAIN,
                pool=self._record.name,
            )


def _compared(found: list[Snapshot], before: Snapshot, journal: Mapping[str, Found]) -> tuple[Snapshot, Changes]:
    """Return the snapshot to take over, and its changes since ``before``.

    :param found: the snapshot of the session. It is taken out, so that what is not needed of it is freed here.
    :param journal: what has been learned of single volumes since the refresh began; ``before`` has it.
    :raises TypeError: the session returned other things than volumes.
    """
    snapshot = found.pop()
    check_volumes(snapshot)
    snapshot = snapshot.keeping(before)
    if journal:
        snapshot = snapshot.patched(journal, 0)
    changes, snapshot = snapshot.changes_since(before), snapshot.sharing(before)
    return snapshot.prepared(), changes


def _may_be_a_name(name: str) -> bool:
    try:
        os.fsencode(name)
    except UnicodeEncodeError:
        return False
    return bool(name) and "/" not in name and "\0" not in name and name not in (".", "..")
