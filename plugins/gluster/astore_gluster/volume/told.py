"""GlusterTold: how a gluster pool is told of changes, and how late that may be.

Bricks tell of all that happens to a file that this client has seen, and of files that are made in a folder that it has
listed. They do not tell a folder of a name that comes by link() or rename() (glusterfs 10.3, upcall.c), and libgfapi drops
notices that name a folder or a file which it has no handle of (glfs-handleops.c). So a file that is moved between this and
another folder is found by the next listing only. So is what happened while a brick was away, what another user of the same
connection does, and a change of the target of a symbolic link.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

from astore.backend import Tell
from astore.model import Snapshot
from astore_gluster import libgfapi
from astore_gluster.volume.options import TIMEOUT, BrickOptions, OptionsError, ask_options
from astore_gluster.volume.tree import GlusterTree
from astore_gluster.volume.upcalls import KnownHandles, Listener, Notice

AGAIN = 30.0
"""Seconds between two listings at most, which find what bricks do not tell."""

UNTOLD = "a file that is moved between this and another folder, or linked here, is not told of, but found by listing"
"""The note of a pool that is told of the rest."""

FEW = 1000
"""Up to so many files are sorted by their inodes in the event loop, when that is first needed; more on the lane."""

_Names = dict[int, set[str]]

OF_BYTES = libgfapi.UP_SIZE | libgfapi.UP_TIMES
"""What writes and truncation change."""


class GlusterTold:
    """A :class:`astore.backend.Told` by upcalls.

    :param tell: as for :class:`astore.backend.WatchesChanges`.
    """

    way = "upcalls"

    def __init__(self, tree: GlusterTree, tell: Tell) -> None:
        self._tree = tree
        self._tell = tell
        self._listener = Listener(
            KnownHandles(tree.connection.gfapi), asyncio.get_running_loop(), self._hear, self._knows
        )
        self._folder: int | None = None
        self._known = 0  # how many inodes a brick remembers
        self._snapshot = Snapshot.EMPTY
        self._names: _Names | None = None
        self.complete: bool = False
        self.bound: float = 0.0
        self.again: float | None = None
        self.lost: bool = False
        self.note: str = ""

    async def begin(self, run: Callable[..., Awaitable[None]]) -> None:
        """Listen from now on. :param run: ``lane.run``. :raises OSError: the volume does not answer."""
        try:
            await run(self._begin)
        except BaseException:
            self.close()
            raise

    def _begin(self) -> None:
        key, upcalls = self._tree.connection.key, self._tree.connection.upcalls
        switch = f"gluster volume set {key.volume} features.cache-invalidation on"
        try:
            options = upcalls.options(lambda: ask_options(key.volume, key.servers))
        except OptionsError as error:
            options = BrickOptions(tell=upcalls.heard, timeout=TIMEOUT, inodes=0)
            if not upcalls.heard:
                self.note = f"whether the volume tells of changes is not known ({error}); if it does not: {switch}"
        else:
            if not options.tell:
                self.note = f"the volume tells of no changes, which this would change: {switch}"
                return
        self._known = options.inodes
        self._folder = self._tree.listen(self._listener)
        if options.tell:
            self.again = self.bound = min(options.timeout / 2, AGAIN)
            self.complete, self.note = True, UNTOLD

    def close(self) -> None:
        """Listen no more."""
        self._listener.ended = True
        self.lost = True

    async def listed(self, snapshot: Snapshot, run: Callable[..., Awaitable[_Names]]) -> None:
        """Note the last snapshot, whose files are known by their inodes. :param run: ``lane.run``."""
        names = None
        if len(snapshot) > FEW:
            with contextlib.suppress(OSError):  # no thread was free
                names = await run(_by_inode, snapshot)
        self._snapshot, self._names = snapshot, names

    async def ask_again(self, run: Callable[..., Awaitable[bool]]) -> None:
        """Ask whether the bricks tell of changes by now, if they did not."""
        if not self.complete and not self.lost:
            with contextlib.suppress(OSError):  # no thread was free
                if await run(self._tells):
                    self.replaced()

    def _tells(self) -> bool:
        key, upcalls = self._tree.connection.key, self._tree.connection.upcalls
        try:
            return upcalls.options(lambda: ask_options(key.volume, key.servers)).tell
        except OptionsError:
            return upcalls.heard

    def replaced(self) -> None:
        """Have the session asked for another one: nothing is told on a new connection, or with new options, before that."""
        self.close()
        self._tell(None, False)

    def _hear(self, notices: list[Notice]) -> None:
        written: set[str] = set()
        for notice in notices:
            names = self._changed(notice)
            if names is None:
                self._tell(None, False)
                return
            written |= names
        if written:
            self._tell(frozenset(written), True)

    def _changed(self, notice: Notice) -> set[str] | None:
        """Return whose bytes alone have changed; None: anything may have."""
        if notice.flags == libgfapi.UP_FORGET and 0 < self._known < len(self._snapshot):
            return set()  # the brick remembers fewer inodes than the pool has, and forgets one for each that is listed
        if self._folder is None or self._folder in (notice.inode, *notice.folders):
            return None
        names = self._by_inode().get(notice.inode)
        if names:
            return None if notice.flags & ~OF_BYTES else names
        elsewhere = notice.folders or any(
            other.knows(notice.inode) for other in self._tree.connection.upcalls.listeners
        )
        return set() if elsewhere else None  # in doubt: it may be a file that was made a moment ago

    def _knows(self, inode: int) -> bool:
        """Return whether the pool's folder, or a file in it, has this inode."""
        return inode == self._folder or inode in self._by_inode()

    def _by_inode(self) -> _Names:
        names = self._names
        if names is None:
            names = self._names = _by_inode(self._snapshot)
        return names


def _by_inode(snapshot: Snapshot) -> _Names:
    """Return the names of each inode, complete: threads of other pools' event loops ask for it."""
    names: _Names = {}
    for record in snapshot.volumes:
        names.setdefault(record.inode, set()).add(record.name)
    return names
