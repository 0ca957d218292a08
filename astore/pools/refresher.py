"""Refresher: the refresh that a pool's callers share.

A refresh is a task that lives as long as somebody waits for it: the first caller begins it, others join, and the last to leave
cancels it. What is learned beside it (a single volume's record) is put into its journal, and so outlives it.
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
from astore.cancellation import CLEANUP_SECONDS, shielded
from astore.errors import (
    AstoreError,
    InvalidStateError,
    LaneTimeoutError,
    PoolInaccessibleError,
    StorageError,
    VolumeNotFoundError,
    printable,
)
from astore.model import Changes, EntryError, PoolState, RefreshOutcome, Snapshot, VolumeInfo
from astore.plugin_calls import answer, entry, is_cancelled, refreshed
from astore.pools.life import Life, seconds_until
from astore.pools.record import PoolRecord
from astore.pools.services import Services
from astore.pools.wording import about_pool

Found = VolumeInfo | EntryError | None
"""What is known of a name: a volume, an entry that cannot be read, or nothing."""

COMPARED_INLINE = 4000
"""Snapshots with more volumes than this are compared on the lane, not in the event loop."""


class _Run:
    """A refresh under way, and how many callers wait for it."""

    __slots__ = ("full", "given_up", "journal", "life", "outcome", "task", "waiters")

    def __init__(self, life: Life, full: bool) -> None:
        self.life = life
        self.full = full
        self.waiters = 0
        self.given_up = False
        self.journal: dict[str, Found] = {}  # what is known better than this refresh knows it
        self.task: asyncio.Task[RefreshOutcome] | None = None
        self.outcome: asyncio.Future[RefreshOutcome] = asyncio.get_running_loop().create_future()

    @property
    def over(self) -> bool:
        """Whether what it finds concerns nobody any more."""
        return self.given_up or self.life.ended

    def tell(self, task: asyncio.Task[RefreshOutcome]) -> None:
        """Pass on the outcome of the task, which is done."""
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


class Refresher:
    """Looks at the storage of one pool, and has the record take over what it finds."""

    def __init__(self, record: PoolRecord, services: Services) -> None:
        self._record = record
        self._services = services
        self._run: _Run | None = None

    @property
    def running(self) -> bool:
        """Whether a whole refresh is under way."""
        return self._run is not None

    async def refresh(self, full: bool, timeout: float | None) -> RefreshOutcome:
        """Refresh the whole pool; see :meth:`astore.Pool.refresh`."""
        life, generation = self._require_refreshable(), self._record.generation
        try:
            async with asyncio.timeout(timeout):
                return await self._shared(full)
        except TimeoutError as error:
            if isinstance(error, AstoreError):
                raise
            late = self._late(f"the refresh did not end within {timeout:g} s", timeout)
            if self._run is None and not life.ended and generation == self._record.generation:
                # nobody waits for it any more, and it did not end in the very moment of the timeout
                if life.lane is not None:
                    life.lane.write_off()
                self._record.set_state(PoolState.INACCESSIBLE, late)
            raise late from None

    def apply(self, patch: Mapping[str, Found], seconds: float = 0.0) -> RefreshOutcome:
        """Take over what is known of single volumes, also into a refresh that runs beside. Never waits."""
        if self._run is not None:
            self._run.journal.update(patch)
        return self._record.apply(patch, seconds)

    async def cancel(self, why: str, until: float | None = None) -> None:
        """Give up a refresh that is under way. Bounded. :param until: the moment at which this is to be over."""
        run = self._run
        if run is not None:
            self._record.log.debug("refresh given up", why=why)
            await self._end(run, until)

    def _require_refreshable(self) -> Life:
        self._services.check_open()
        return self._record.require_usable("refresh")

    def _late(self, what: str, timeout: float | None) -> LaneTimeoutError:
        return LaneTimeoutError(f"pool {self._record.name!r}: {what}", lane=self._record.name, timeout=timeout or 0)

    # --------------------------------------------------------------------------------------------- the whole pool

    async def _shared(self, full: bool) -> RefreshOutcome:
        life = self._require_refreshable()
        while (run := self._run) is not None and full and not run.full:
            # it trusts what is known: not what this caller wants. Wait for its end, whatever that is, and start anew.
            with contextlib.suppress(Exception):
                await self._join(run)
            life = self._require_refreshable()
        if run is None:
            run = self._run = _Run(life, full)
            run.task = asyncio.get_running_loop().create_task(
                self._refresh(run), name=f"astore refresh of {self._record.name}"
            )
            run.task.add_done_callback(run.tell)
        return await self._join(run)

    async def _join(self, run: _Run) -> RefreshOutcome:
        """Wait for a refresh that others may wait for too; the last to leave cancels it."""
        task = run.task
        assert task is not None
        run.waiters += 1
        try:
            return await asyncio.shield(run.outcome)
        except asyncio.CancelledError:
            if run.outcome.cancelled() and not is_cancelled():
                name = self._record.name
                raise InvalidStateError(
                    f"pool {name!r}: the refresh was given up, since the pool was stopped",
                    pool=name,
                    state=self._record.state,
                    operation="refresh",
                ) from None
            raise
        finally:
            run.waiters -= 1
            if not run.waiters and not task.done() and not run.outcome.done():
                await self._end(run)

    async def _end(self, run: _Run, until: float | None = None) -> None:
        task = run.task
        run.given_up = True
        if self._run is run:
            self._run = None
        if task is not None and not task.done():
            task.cancel()
            try:
                with anyio.move_on_after(seconds_until(until), shield=True):
                    await asyncio.wait([task])
            finally:
                run.outcome.cancel()  # nobody waits for a backend that does not let itself be cancelled

    async def _refresh(self, run: _Run) -> RefreshOutcome:
        began = time.monotonic()
        life, record = run.life, self._record
        try:
            try:
                session = await life.attached()
                snapshot = await refreshed(session, record.snapshot, full=run.full)
            except Exception as error:
                translated = about_pool(record.name, "refresh", error)
                if not run.over:
                    record.set_state(PoolState.INACCESSIBLE, translated)
                raise translated from error
            if run.over:
                raise record.wrong_state("was stopped meanwhile", "refresh")
            changes = await self._changes(snapshot, life)
            while run.journal:  # what was learned beside the refresh, also while it was compared
                journal, run.journal = run.journal, {}
                snapshot = snapshot.patched(journal, 0)
                changes = await self._changes(snapshot, life)
            if run.over:
                raise record.wrong_state("was stopped meanwhile", "refresh")
            return record.take(snapshot, changes, time.monotonic() - began)
        finally:
            if self._run is run:
                self._run = None

    async def _changes(self, snapshot: Snapshot, life: Life) -> Changes:
        """Return how the snapshot differs from the one that the record has."""
        before = self._record.snapshot
        if len(before) and len(snapshot) > COMPARED_INLINE and life.lane is not None:
            changes = await life.lane.run(snapshot.changes_since, before)
            if self._record.snapshot is before:
                return changes
        return snapshot.changes_since(self._record.snapshot)

    # ------------------------------------------------------------------------------------------------- one volume

    async def refresh_volume(self, name: str, timeout: float | None) -> RefreshOutcome:
        """Refresh one volume; see :meth:`astore.Pool.refresh`."""
        life, record = self._require_refreshable(), self._record
        if not _may_be_a_name(name):
            raise VolumeNotFoundError(f"pool {record.name!r} has no volume {name!r}", what=name)
        began = time.monotonic()
        try:
            async with asyncio.timeout(timeout):
                session = await life.attached()
                if not isinstance(session, RefreshesVolume):
                    return await self._shared(False)
                for _ in range(3):
                    known = record.snapshot.get(name)
                    # only of a volume that is known to have been made raw it matters what it was
                    before = () if known is None or known.made is None else (known,)
                    found = entry(await answer(session.refresh_volume(name, *before)), name)
                    if record.snapshot.get(name) is known:  # else what was read may be older than the snapshot is now
                        break
                else:
                    return await self._shared(False)
        except TimeoutError as error:
            if isinstance(error, AstoreError):
                raise about_pool(record.name, "refresh", error) from error
            raise self._late(f"refreshing volume {name!r} took longer than {timeout or 0:g} s", timeout) from error
        except Exception as error:
            translated = about_pool(record.name, "refresh", error)
            if isinstance(translated, PoolInaccessibleError) and not life.ended and not life.ending:
                record.set_state(PoolState.INACCESSIBLE, translated)
            raise translated from error
        life.check("refresh")
        patch: dict[str, Found] = {name: found}
        if (shown := printable(name)) != name and record.snapshot.get(shown) is None:
            # its error, if it had one, is known by the name that can be printed
            patch = {name: None, shown: found} if isinstance(found, EntryError) else {name: found, shown: None}
        return self.apply(patch, time.monotonic() - began)

    async def look_again(self, *names: str) -> None:
        """See what volumes are after work that may have changed them. Bounded; never raises."""
        for name in names:
            await shielded(self._refresh_quietly(name))

    async def look_at_same(self, name: str) -> None:
        """See what a volume is now. :raises StorageError: EAGAIN: it is another file than it was known as."""
        before = self._record.snapshot.get(name)
        await self.look_again(name)
        now = self._record.snapshot.get(name)
        if before is not None and now is not None and now.inode != before.inode:
            raise StorageError(
                f"volume {name!r} of pool {self._record.name!r} is another file than it was: look at it before you use it",
                errno=EAGAIN,
                pool=self._record.name,
            )

    async def _refresh_quietly(self, name: str) -> None:
        with contextlib.suppress(Exception):
            await self.refresh_volume(name, CLEANUP_SECONDS)


def _may_be_a_name(name: str) -> bool:
    try:
        os.fsencode(name)
    except UnicodeEncodeError:
        return False
    return bool(name) and "/" not in name and "\0" not in name and name not in (".", "..")
