"""Find and remove the hidden volumes of work that ended without removing them.

A hidden volume of work in progress is locked, but a volume without a lock may be one too: a client that loses its network
for a while may lose its locks. So a process never removes a volume that it is working on itself, and removes one that another
process may have made only if it has not changed for an hour. A session's first look goes by the locks alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import time
from collections.abc import Callable, Iterator, Sequence

from astore.backend import Context
from astore.blocks.calls import Calls
from astore.blocks.contract import Block, MakesBlocks
from astore.blocks.open_blocks import BlockOpener
from astore.cancellation import bounded, shielded
from astore.errors import printable
from astore.volume_io.volume_names import IN_PROGRESS, is_leftover, made_here

EVERY = 3600.0
"""Seconds from one look at all hidden volumes to the next, and how long a volume must stay unchanged."""

PAUSE = 300.0
"""Seconds without a look after one that took too long: each costs the refresh that makes it a call's deadline."""


class Leftovers:
    """The hidden volumes of one pool.

    :param calls: makes the pool's calls. :param opener: opens its volumes. :param makes: removes them.
    :ivar clock: returns a time in seconds; for tests.
    """

    def __init__(self, calls: Calls, opener: BlockOpener, makes: MakesBlocks, context: Context) -> None:
        self.clock: Callable[[], float] = time.monotonic
        self._calls = calls
        self._opener = opener
        self._makes = makes
        self._context = context
        self._looked: float | None = None  # when all hidden volumes were looked at last
        self._due = True
        self._not_before: float | None = None
        self._seen: dict[str, tuple[Block, float]] = {}  # others' volumes, and since when they are unchanged

    def look_again(self) -> None:
        """Have the next refresh look at all hidden volumes: work may have ended while the storage did not answer."""
        self._due, self._not_before = True, None

    @contextlib.contextmanager
    def looked_for_after_errors(self) -> Iterator[None]:
        """Call :meth:`look_again` if the storage fails inside the block."""
        try:
            yield
        except OSError:
            self.look_again()
            raise

    async def remove(self, hidden: Sequence[Block]) -> None:
        """Remove leftovers among the hidden volumes that a refresh saw. In doubt a volume stays. Bounded, as one call is.

        Volumes that this process left are removed at every call, others at the first one, after :meth:`look_again`, and every
        hour. After a look that took too long there is none for a while.
        """
        now = self.clock()
        if self._not_before is not None and now < self._not_before:
            return
        all_of_them = self._due or self._looked is None or now >= self._looked + EVERY
        first = self._looked is None
        blocks = [one for one in hidden if is_leftover(one.name) and (all_of_them or made_here(one.name))]
        if all_of_them:
            self._looked, self._due = now, False
            there = {one.name for one in blocks}
            self._seen = {name: seen for name, seen in self._seen.items() if name in there}
        names = [
            one.name
            for one in blocks
            if one.name not in IN_PROGRESS and (self._is_quiet(one) or first or made_here(one.name))
        ]
        if not names:
            return
        self._not_before = now + PAUSE
        try:
            await bounded(self._remove(names), self._context.timeout)
        except asyncio.CancelledError:
            self.look_again()
            raise

    def _is_quiet(self, block: Block) -> bool:
        """Return whether a volume has not changed for an hour, as far as this pool has seen."""
        now = self.clock()
        before, since = self._seen.get(block.name, (None, now))
        if before != block:
            since = now
        self._seen[block.name] = (block, since)
        return now >= since + EVERY

    async def _remove(self, names: Sequence[str]) -> None:
        removed = 0
        for name in names:
            try:
                removed += await self._remove_one(name)
            except TimeoutError:
                break  # the others would take as long
            except OSError:
                pass
            except Exception as error:  # a backend may raise anything, and its pool is of use all the same
                self._context.log.warning("an unfinished volume stays", volume=printable(name), reason=repr(error))
        else:
            self._not_before = None
        if removed:
            self._context.log.info("removed unfinished volumes", count=removed)

    async def _remove_one(self, name: str) -> bool:
        """Remove an unfinished volume, if its lock shows that no process is making it; return whether it was removed.

        :raises OSError: EOPNOTSUPP: this storage has no locks. Other errors: the storage failed.
        """
        if name in IN_PROGRESS:
            return False
        opened = await self._opener.opened(name, True)
        try:
            if not await opened.run(opened.volume.lock):
                return False
            try:
                await self._calls.run(self._makes.remove, name)
            except OSError as error:
                if error.errno != errno.EBUSY:
                    raise
                await shielded(opened.aclose())  # this storage removes no open volume
                await self._calls.run(self._makes.remove, name)
            return True
        finally:
            await shielded(opened.aclose())
