"""PoolWatch: the watch of one pool.

A pool is told of changes by its storage where that is possible (:class:`astore.backend.WatchesChanges`), and looked at every so
often otherwise. A notice only marks the pool; the ordinary refresh finds out what has changed. What no notice tells is found by
a slow sweep.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
import time
from collections.abc import Callable

from astore.backend import Told, WatchesChanges
from astore.errors import InvalidStateError, ManagerClosedError, PoolNotFoundError, VolumeNotFoundError, reason
from astore.events import PoolRetry
from astore.model import Freshness, PoolState, RefreshOutcome
from astore.plugin_calls import asked
from astore.pools.life import Life
from astore.pools.parts import Parts

SOON = 0.02
"""Seconds from a notice to the refresh, so that what belongs together is seen together."""

WRITING = 1.0
"""Seconds between the beginnings of two looks at files that are being written to."""

SHARE = 10.0
"""A pool that changes all the time is refreshed for one in SHARE of the time at most. One that does not has two refreshes free:
what changes right after a look is not found late."""

LISTING_SHARE = 2.0
"""A pool that must be listed every so often, so that it goes on being told, is listed for one in LISTING_SHARE of the time at
most."""

SWEEP = 600.0
"""Seconds between two refreshes of a pool that is told of everything."""

LEAST, MOST = 1.0, 30.0
"""Seconds between the beginnings of two refreshes of a pool that is polled: while it changes, and while it does not."""

SLOWER = 1.5
"""By how much the time between two refreshes grows while nothing changes."""

FIRST_RETRY, LAST_RETRY = 1.0, 60.0
"""Seconds from a failure to the next try: at first, and at most."""

FEW = 8
"""Up to this many names are looked at one by one, at once. The whole pool follows, unless only bytes have changed."""


class PoolWatch:
    """The watch of one pool: when it is looked at, and how it learns that it must be.

    :param begin: has :meth:`refresh` called in a task, soon. :param most_stale: seconds from the beginning of
        a poll to that of the next, at most; None: MOST.
    :param retry: whether to try again after a failure.
    """

    def __init__(
        self, parts: Parts, begin: Callable[[PoolWatch], None], *, most_stale: float | None, retry: bool
    ) -> None:
        self.parts = parts
        self._begin_soon = begin
        self._most_stale = MOST if most_stale is None else most_stale
        self._retry = retry
        self._life: Life | None = None  # which the fields below belong to
        self._told: Told | None = None
        self._note = ""
        self._whole = True  # whether the whole pool must be refreshed
        self._names: set[str] = (
            set()
        )  # a few names to look at before the whole pool is, or instead if only bytes have changed
        self._hurry = False  # whether more than bytes has changed
        self._timer: asyncio.TimerHandle | None = None
        self._due = 0.0
        self._busy = False
        self._began_at = 0.0  # when the last look began
        self._bytes_at = self._whole_bytes_at = (
            0.0  # when new bytes may be looked at again: of a few names, of the pool
        )
        self._took = self._listened = 0.0  # seconds: to listen and refresh; to listen
        self._free_at = -math.inf  # when the refreshes so far have had no more than their share of the time
        self._listed_at = 0.0  # when the last refresh of the whole pool began
        self._whole_at = 0.0  # when the next one is due, though nothing be heard
        self._interval = LEAST
        self._failures = 0
        self._closed = False

    def look(self) -> None:
        """Note that the pool's state has changed, or may have."""
        record = self.parts.record
        if record.life is not self._life:
            self._forget()
            self._life = record.life
            self._failures = 0
        if record.life is None:
            record.freshness = None
        if self._busy or self._timer is not None:
            return
        if record.life is not None:
            self._whole = True
            self._schedule(0.0)
        elif self._wanted():
            self._failed(record.error)

    def close(self) -> None:
        """Watch the pool no more."""
        self._closed = True
        self._forget()
        self.parts.record.freshness = None

    def _forget(self) -> None:
        told, self._told = self._told, None
        if told is not None:
            told.close()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._whole, self._whole_at, self._interval = True, 0.0, LEAST
        self._names.clear()

    def _wanted(self) -> bool:
        """Whether the pool is inactive because it could not be started."""
        record = self.parts.record
        return record.wanted and record.state is PoolState.INACTIVE and record.error is not None

    # ----------------------------------------------------------------------------------------------- when

    def _hear(self, names: frozenset[str] | None, bytes_alone: bool) -> None:
        """Note that the storage tells of a change."""
        if self._closed:
            return
        self._hurry = self._hurry or not bytes_alone
        self._whole = self._whole or names is None or not bytes_alone
        if names is not None and len(self._names | names) <= FEW:
            self._names |= names
        else:
            self._names.clear()
            self._whole = True
        if not self._busy:
            self._schedule(self._after_notice())

    def _after_notice(self) -> float:
        """Return in how many seconds to look at what was told."""
        if self._names:
            return max(SOON, 0.0 if self._hurry else self._bytes_at - time.monotonic())
        return max(SOON, self._until_whole())

    def _until_whole(self) -> float:
        """Return in how many seconds the whole pool may be refreshed again."""
        now = time.monotonic()
        if now >= self._whole_at:
            return 0.0
        return max(self._free_at, now if self._hurry else self._whole_bytes_at) - now

    def _schedule(self, seconds: float) -> None:
        """Look at the pool in so many seconds, or earlier if it was to be."""
        if self._closed:
            return
        loop = asyncio.get_running_loop()
        due = loop.time() + seconds
        if self._timer is not None:
            if self._due <= due:
                return
            self._timer.cancel()
        self._due = due
        self._timer = loop.call_at(due, self._begin)

    def _begin(self) -> None:
        self._timer = None
        self._busy = True
        self._begin_soon(self)

    def _next(self, outcome: RefreshOutcome | None) -> None:
        """Schedule the next look, after one that went well."""
        told = self._told
        if told is not None and told.complete:
            again = SWEEP if told.again is None else min(told.again, self._most_stale)
            sweep = max(again, (self._took - self._listened) * LISTING_SHARE, 0.01)
            late = sweep if sweep > again and told.again is not None else min(told.bound, sweep)
            bound = round(max(late, WRITING), 3)
            self.parts.record.freshness = Freshness(told.way, pushed=True, bound=bound, note=told.note)
            self._whole_at = self._listed_at + sweep * random.uniform(0.9, 1.0)  # noqa: S311  no secret
        else:
            changed = outcome is None or bool(outcome.added or outcome.changed or outcome.removed)
            limit = max(self._most_stale, self._took * SHARE, 0.01)
            self._interval = min(LEAST if changed else self._interval * SLOWER, limit)
            self._interval = max(self._interval, min(self._took * SHARE, limit))
            bound = limit + self._took + (0.0 if told is None else told.bound)
            note = self._note if told is None else told.note
            self.parts.record.freshness = Freshness("polled", pushed=False, bound=round(bound, 3), note=note)
            if outcome is None:  # a few names were looked at
                self._whole_at = min(self._whole_at, time.monotonic() + self._interval)
            else:
                self._whole_at = self._listed_at + self._interval
        self._schedule(max(self._whole_at - time.monotonic(), 0.0))
        if self._whole or self._names:
            self._schedule(self._after_notice())

    def _failed(self, error: Exception | None) -> None:
        """Schedule another try, and tell of it."""
        if not self._retry or self._closed:
            self.parts.record.freshness = None
            return
        self._failures += 1
        pause = min(FIRST_RETRY * 2 ** min(self._failures - 1, 10), LAST_RETRY) * random.uniform(0.8, 1.0)  # noqa: S311
        at = time.time() + pause
        record = self.parts.record
        why = "" if error is None else reason(error)
        record.publish(PoolRetry, attempt=self._failures, at=at, reason=why)
        if record.life is not None:
            record.freshness = Freshness("polled", pushed=False, bound=LAST_RETRY, note=why, next_try=at)
        self._schedule(pause)

    # ------------------------------------------------------------------------------------------ looking

    async def refresh(self) -> None:
        """Look at the pool, and schedule the next look. Never raises."""
        record = self.parts.record
        outcome: RefreshOutcome | None = None
        self._began_at = time.monotonic()
        try:
            if record.life is not None:
                outcome = await self._refresh(record.life)
            elif self._wanted():
                await self.parts.lifecycle.start(build=False, refresh=True, timeout=None)
        except (InvalidStateError, PoolNotFoundError, ManagerClosedError):
            self._looked()  # it was stopped, or is being started; an event tells when that is over
            self._whole = True
            if record.life is not None and not self._closed:
                self._schedule(FIRST_RETRY)
        except Exception as error:  # plugin code: it may raise anything
            self._looked()
            told, self._told = self._told, None
            if told is not None:
                told.close()
            self._life, self._whole = record.life, True
            if record.life is not None or self._wanted():
                self._failed(error)
        else:
            self._looked(outcome)
            self._failures = 0
            if record.life is None or record.life is not self._life:
                self.look()
            else:
                self._next(outcome)
        finally:
            self._busy = False

    def _looked(self, outcome: RefreshOutcome | None = None) -> None:
        self._busy = False
        now = time.monotonic()
        self._bytes_at = max(self._began_at + WRITING, now + min(now - self._began_at, WRITING))
        if outcome is not None:
            self._took, self._whole_bytes_at = self._listened + outcome.seconds, self._bytes_at
            share = min(self._took * SHARE, MOST)
            self._free_at = max(self._free_at, now - share) + share

    async def _refresh(self, life: Life) -> RefreshOutcome | None:
        """Refresh what may have changed."""
        if self._life is not life:
            self._forget()
            self._life = life
        told, began = self._told, self._began_at
        due = began >= self._whole_at
        if due:  # however much is heard of some names
            self._whole = True
        # the sweep finds what was not told: it listens anew, so that the session lists everything
        if told is not None and (told.lost or (told.complete and (due or not (self._whole or self._names)))):
            told.close()
            self._told = None
        if self._told is None:
            await self._listen(life)
        self._listened = time.monotonic() - began
        if self._whole and self._until_whole() <= 0:
            self._whole = self._hurry = False
            self._names.clear()
            self._listed_at = began
            try:
                return await self.parts.refresher.refresh(False, None, unasked=True)
            except BaseException:
                self._whole = True
                raise
        names = tuple(self._names)
        self._names.clear()
        for name in names:
            if time.monotonic() >= self._whole_at:
                self._whole = True
                break
            with contextlib.suppress(VolumeNotFoundError):
                await self.parts.refresher.refresh_volume(name, None)
        return None

    async def _listen(self, life: Life) -> None:
        """Have the storage tell of changes, if it can."""
        self._whole, self._whole_at = True, 0.0
        self._names.clear()
        try:
            session = await life.attached()
        except Exception:
            return  # the refresh fails as well, and then the pool's state tells of it
        if not isinstance(session, WatchesChanges):
            self._note = "its storage tells nothing"
            return
        try:
            told = await asked(session.watch, self._hear)
        except OSError as error:
            self._note = reason(error)
            return
        if told is None:
            self._note = "its storage tells nothing"
        elif self._closed or self.parts.record.life is not life:
            told.close()
        else:
            self._told = told
