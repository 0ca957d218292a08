"""FolderTold: how the session of a folder is told of changes, and whether its last snapshot is still true."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from astore.backend import Tell
from astore.model import Snapshot
from astore.notices import About, FolderNotices, FolderWatch
from astore.trees.tree import FileTree
from astore.volume_io.volume_names import TEMPORARY


class FolderTold:
    """A :class:`astore.backend.Told` by inotify(7).

    :ivar heard_nothing: whether there was no notice since the last whole refresh began.
    """

    way: str = "inotify"
    again: float | None = None

    def __init__(self, tree: FileTree, tell: Tell) -> None:
        self._tree = tree
        self._tell = tell
        self._watch: FolderWatch | None = None
        self._elsewhere = False  # whether the last whole refresh ended in another folder
        self._taken_at = -1.0  # of the snapshot that the last whole refresh returned
        self.heard_nothing: bool = False
        self.lost: bool = False
        self.note: str = ""
        self.complete: bool = False
        self.bound: float = 0.0

    async def begin(self, run: Callable[..., Any]) -> None:
        """Listen from now on. :param run: ``lane.run``. :raises OSError: see :meth:`FolderNotices.watch`."""
        self.note, self.bound = await run(self._tree.not_told)
        self.complete = not self.note
        self._watch = await FolderNotices.of_this_loop().watch(self._tree.open_folder, self._heard, run)

    def close(self) -> None:
        """Listen no more."""
        if self._watch is not None:
            self._watch.close()
        self.heard_nothing, self.lost = False, True

    def _heard(self, about: About, names: frozenset[str] | None) -> None:
        if names is not None:
            names = frozenset(name for name in names if not name.startswith(TEMPORARY))
            if not names:
                return
        self.heard_nothing = False
        self.lost = self.lost or about is About.PLACE
        # another name of the same file is not told of
        self._tell(None if self._tree.untold else names, about is About.CONTENT)

    # ------------------------------------------------------------------------------------------------- refreshes

    def is_true(self, snapshot: Snapshot) -> bool:
        """Return whether nothing was heard since a snapshot was taken, of what happened before this call."""
        if self._watch is None or self.lost or not self.complete:
            return False
        if snapshot.taken_at != self._taken_at or snapshot.unsettled:
            return False
        return self._watch.drain() and self.heard_nothing and not self._tree.untold

    def taken_again(self, snapshot: Snapshot) -> Snapshot | None:
        """Return a snapshot with the folder's sizes of now; None: the path leads to another folder. Blocks."""
        assert self._watch is not None
        tree, taken_at = self._tree, time.time()
        with tree.work():
            if not tree.is_folder(self._watch.identity):
                return None
            total, free = tree.statvfs()
            self._taken_at = taken_at
            return snapshot.taken_again(
                taken_at, capacity=total, allocation=total - free, available=free, permissions=tree.permissions()
            )

    def refresh_begins(self) -> None:
        """Note that the folder is listed from now on."""
        self._taken_at = -1.0
        self.heard_nothing = self._watch is not None and not self.lost and self._watch.drain()

    def listed(self, refresh: Callable[[], Snapshot]) -> Snapshot:
        """Run a whole refresh, and then see whether the path leads to the folder that is watched. Blocks."""
        snapshot, watch = refresh(), self._watch
        self._elsewhere = False
        if watch is not None:
            with self._tree.work():
                self._elsewhere = not self._tree.is_folder(watch.identity)
        return snapshot

    def refreshed(self, snapshot: Snapshot) -> None:
        """Note the snapshot of a whole refresh."""
        self._taken_at = snapshot.taken_at
        if self._elsewhere:
            self.moved()

    def moved(self) -> None:
        """Note that the path leads to another folder than the one that is watched."""
        if not self.lost:
            self._heard(About.PLACE, None)
