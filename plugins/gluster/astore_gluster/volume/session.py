"""A started gluster pool, which connects anew when its connection is lost."""

from __future__ import annotations

import errno
import time
from collections.abc import Awaitable, Callable
from typing import Protocol, TypeVar

from astore.backend import Context
from astore.model import EntryError, Snapshot, VolumeInfo
from astore.trees.session import WritableTreeSession
from astore_gluster.volume.connection import Connection
from astore_gluster.volume.tree import GlusterTree

T = TypeVar("T")

LOST = frozenset({errno.ENOTCONN, errno.ESTALE})
"""What a volume says whose bricks are gone, for the moment or (deleted, and made again under its name) for good."""

PATIENCE = 5.0
"""Seconds that a new connection may take before the old one's error is told after all."""

PAUSE = 10.0
"""Seconds from one attempt to the next: each costs a connection, and a second to be closed again."""


class MakeTree(Protocol):
    """Connects and opens the folder; see :func:`astore_gluster.backend.make_tree`. Blocks."""

    def __call__(self, timeout: float, instead_of: Connection | None = None) -> GlusterTree: ...


class GlusterSession(WritableTreeSession):
    """Reads the folder by ``tree``, and by another one on a new connection when that one's is lost.

    libgfapi comes back by itself to bricks that were away, some 3 s after they are back; but never to the bricks of a volume
    that was deleted and made again.

    :param make: makes such trees.
    """

    tree: GlusterTree

    def __init__(self, tree: GlusterTree, make: MakeTree, context: Context) -> None:
        super().__init__(tree, context)
        self._make = make
        self._tried = -PAUSE  # when it was last tried
        self._closed = False

    async def refresh(self, previous: Snapshot, *, full: bool = False) -> Snapshot:
        """List the folder and read what is new or changed. :raises OSError: the volume does not answer."""
        return await self._renewing(lambda: WritableTreeSession.refresh(self, previous, full=full))

    async def refresh_volume(self, name: str, before: VolumeInfo | None = None) -> VolumeInfo | EntryError | None:
        """One entry, its header read anew. :raises OSError: the volume does not answer."""
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
        """Take another tree in the place of one whose connection is lost; say whether there is one."""
        if self.tree is not lost:
            return True  # another call was faster
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
            self.context.log.info("cannot connect anew", tree=repr(lost), error=str(error))
            return False
        if self._closed:
            tree.close()
            return False
        self._tried = now - PAUSE
        self.tree = tree
        lost.close()
        return True

    async def aclose(self) -> None:
        """Let go of the connection, after work on volumes was ended. Not on the lane, which may be stuck."""
        self._closed = True
        await self.end_work()
        self.tree.close()
