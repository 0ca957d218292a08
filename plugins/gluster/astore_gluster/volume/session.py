"""A started gluster pool, which reconnects when its connection is lost."""

from __future__ import annotations

import errno
import time
from collections.abc import Awaitable, Callable
from typing import Protocol, TypeVar

from astore.backend import Context, Tell, Told
from astore.model import EntryError, Snapshot, VolumeInfo
from astore.trees.session import WritableTreeSession
from astore_gluster.volume.connection import Connection
from astore_gluster.volume.told import GlusterTold
from astore_gluster.volume.tree import GlusterTree

T = TypeVar("T")

LOST = frozenset({errno.ENOTCONN, errno.ESTALE})
"""The errors of a volume whose bricks are gone, temporarily or (after it was deleted and created again) for good."""

PATIENCE = 5.0
"""Seconds to wait for a new connection before the old one's error is raised."""

PAUSE = 10.0
"""Seconds between attempts: each costs a connection, and a second to close it."""


class MakeTree(Protocol):
    """A function that connects and opens the folder; see :func:`astore_gluster.backend.make_tree`. Blocks."""

    def __call__(self, timeout: float, instead_of: Connection | None = None) -> GlusterTree: ...


class GlusterSession(WritableTreeSession):
    """A session on ``tree``, which it replaces by a tree on a new connection when the old one is lost.

    libgfapi reconnects by itself to bricks that were away, some 3 s after they are back, but never to the bricks of a
    volume that was deleted and created again.

    :param make: makes such trees.
    """

    tree: GlusterTree

    def __init__(self, tree: GlusterTree, make: MakeTree, context: Context) -> None:
        super().__init__(tree, context)
        self._make = make
        self._tried = -PAUSE  # time of the last attempt
        self._closed = False
        self._upcalls: GlusterTold | None = None

    async def watch(self, tell: Tell) -> Told:
        """Be told of changes by the volume's bricks, if the volume's options have them tell."""
        if self._upcalls is not None:
            self._upcalls.close()
        told = self._upcalls = GlusterTold(self.tree, tell)
        await told.begin(self.context.lane.run)
        return told

    async def refresh(self, previous: Snapshot, *, full: bool = False) -> Snapshot:
        """List the folder and read new and changed files. :raises OSError: the volume does not answer."""
        snapshot = await self._renewing(lambda: WritableTreeSession.refresh(self, previous, full=full))
        if self._upcalls is not None:
            told = self._upcalls
            await told.listed(snapshot, self.context.lane.run)
            await told.ask_again(self.context.lane.run)
        return snapshot

    async def refresh_volume(self, name: str, before: VolumeInfo | None = None) -> VolumeInfo | EntryError | None:
        """Look up one entry and read its header. :raises OSError: the volume does not answer."""
        return await self._renewing(lambda: WritableTreeSession.refresh_volume(self, name, before))

    async def _renewing(self, act: Callable[[], Awaitable[T]]) -> T:
        tree = self.tree
        try:
            return await act()
        except OSError as error:
            if error.errno not in LOST or not await self._renew(tree):
                raise
        return await act()

    async def _renew(self, lost: GlusterTree) -> bool:
        """Replace a tree whose connection is lost; return whether there is a new one."""
        if self.tree is not lost:
            return True  # another call replaced it first
        now = time.monotonic()
        if self._closed or now - self._tried < PAUSE:
            return False
        self._tried = now
        limit = min(PATIENCE, self.context.timeout)
        try:
            tree = await self.context.lane.run(
                self._make, limit, lost.connection, timeout=limit, discard=GlusterTree.close
            )
        except OSError as error:  # LaneTimeoutError and LaneStuckError are TimeoutErrors, and so OSErrors
            self.context.log.info("cannot reconnect", tree=repr(lost), error=str(error))
            return False
        if self._closed:
            tree.close()
            return False
        self._tried = now - PAUSE
        self.tree = tree
        lost.close()
        if self._upcalls is not None:
            self._upcalls.replaced()
            self._upcalls = None
        return True

    async def aclose(self) -> None:
        """Drop the connection, after all work on volumes has ended. Not on the lane, which may be stuck."""
        self._closed = True
        if self._upcalls is not None:
            self._upcalls.close()
        try:
            await self.end_work()
        finally:  # also if nobody waits any longer
            self.tree.close()
