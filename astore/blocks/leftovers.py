"""Find and remove the hidden volumes of work that ended without removing them; see :mod:`astore.volume_io.leftovers`.

So are volumes whose removal was asked for here and cut off within the storage: what is left of them has their names, and
nobody sees it.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
from collections.abc import Iterator, Sequence

from astore.backend import Context
from astore.blocks.calls import Calls
from astore.blocks.contract import Block, MakesBlocks
from astore.blocks.open_blocks import BlockOpener
from astore.cancellation import bounded, shielded
from astore.errors import printable
from astore.volume_io.leftovers import Suspects
from astore.volume_io.volume_names import IN_PROGRESS

PAUSE = 300.0
"""Seconds without a look after one that took too long: each costs the refresh that makes it a call's deadline."""


class Leftovers:
    """The hidden volumes of one pool.

    :param calls: makes the pool's calls. :param opener: opens its volumes. :param makes: removes them.
    :ivar suspects: those that may be leftovers, by what was listed of them.
    """

    def __init__(self, calls: Calls, opener: BlockOpener, makes: MakesBlocks, context: Context) -> None:
        self.suspects: Suspects[Block] = Suspects()
        self._calls = calls
        self._opener = opener
        self._makes = makes
        self._context = context
        self._not_before: float | None = None
        self._cut_off: dict[str, int] = {}  # the ids of volumes whose removal failed, by name

    @contextlib.contextmanager
    def removing(self, name: str, id: int) -> Iterator[None]:
        """Note a volume if its removal fails inside the block: if it had begun, the next refresh completes it."""
        try:
            yield
        except BaseException:
            self._cut_off[name] = id
            raise

    def look_again(self) -> None:
        """Have the next refresh look at all hidden volumes: work may have ended while the storage did not answer."""
        self.suspects.look_again()
        self._not_before = None

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

        After a look that took too long there is none for a while.
        """
        cut_off = [one for one in hidden if one.unfinished and self._cut_off.get(one.name) == one.id]
        self._cut_off = {one.name: one.id for one in cut_off}  # the removal of others had not begun, or was refused
        now = self.suspects.clock()
        if self._not_before is not None and now < self._not_before:
            return
        blocks = {one.name: one for one in hidden}
        among = self.suspects.among(blocks)
        found = [blocks[name] for name in among]
        going = [one for one in found if self.suspects.may_go(one.name, one, locks=not one.unfinished)]
        going += cut_off
        if not going:
            return
        self._not_before = now + PAUSE
        try:
            await bounded(self._remove(going), self._context.timeout)
        except asyncio.CancelledError:
            self.look_again()
            raise

    async def _remove(self, going: Sequence[Block]) -> None:
        removed = 0
        for one in going:
            try:
                removed += await self._remove_one(one)
            except TimeoutError:
                break  # the others would take as long
            except OSError:
                pass
            except Exception as error:  # a backend may raise anything, and its pool is of use all the same
                self._context.log.warning("an unfinished volume stays", volume=printable(one.name), reason=repr(error))
        else:
            self._not_before = None
        if removed:
            self._context.log.info("removed unfinished volumes", count=removed)

    async def _remove_one(self, found: Block) -> bool:
        """Remove a hidden volume, unless its lock shows that a process is making it; return whether it was removed.

        :raises OSError: EOPNOTSUPP: this storage has no locks. Other errors: the storage failed.
        """
        name = found.name
        if name in IN_PROGRESS:
            return False
        if found.unfinished:
            # nothing can be opened that would tell its id
            await self._calls.run(self._makes.remove, name, found.id if name in self._cut_off else None)
            self._cut_off.pop(name, None)
            return True
        opened = await self._opener.opened(name, True)
        try:
            if not await opened.run(opened.volume.lock):
                return False
            try:
                await self._calls.run(self._makes.remove, name, opened.volume.id)
            except OSError as error:
                if error.errno != errno.EBUSY:
                    raise
                await shielded(opened.aclose())  # this storage removes no open volume
                await self._calls.run(self._makes.remove, name, opened.volume.id)
            return True
        finally:
            await shielded(opened.aclose())
