"""Find and remove the hidden files of work that ended without removing them.

A hidden file of work in progress is locked, but a file without a lock may be one too: a server that was restarted has
forgotten its locks. So a process never removes a file that it is working on itself, and removes one that another process may
have made only if it has not changed for an hour. A pool's first refresh goes by the locks alone.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence

from astore.backend import Lane
from astore.trees.writable import WritableTree
from astore.volume_io.volume_names import IN_PROGRESS, is_leftover, made_here

EVERY = 3600.0
"""Seconds from one look at all hidden files to the next, and how long a file must stay unchanged."""

Identity = tuple[int, int, int, int]


class Leftovers:
    """The hidden files of one pool.

    :ivar clock: returns a time in seconds; for tests.
    """

    def __init__(self) -> None:
        self.clock: Callable[[], float] = time.monotonic
        self._looked: float | None = None  # when all hidden files were looked at last
        self._due = True
        self._seen: dict[str, tuple[Identity, float]] = {}  # others' files, and since when they are unchanged

    def look_again(self) -> None:
        """Have the next refresh look at all hidden files: work may have ended while the storage did not answer."""
        self._due = True

    async def remove(self, lane: Lane, tree: WritableTree, hidden: Sequence[str]) -> int:
        """Remove leftovers among the hidden files that a refresh saw; return how many. In doubt a file stays.

        Files that this process left are removed at every call, others at the first one, after :meth:`look_again`, and every
        hour.

        :raises LaneTimeoutError: the storage hangs.
        """
        all_of_them = self._due or self._looked is None or self.clock() >= self._looked + EVERY
        first = self._looked is None
        names = [name for name in hidden if is_leftover(name) and (all_of_them or made_here(name))]
        if all_of_them:
            self._looked, self._due = self.clock(), False
            self._seen = {name: seen for name, seen in self._seen.items() if name in names}
        names = [name for name in names if name not in IN_PROGRESS]
        return await lane.run(self._remove, tree, names, first) if names else 0

    def _remove(self, tree: WritableTree, names: Sequence[str], first: bool) -> int:
        removed = 0
        for name in names:
            with contextlib.suppress(OSError):
                if first or made_here(name) or self._is_quiet(tree, name):
                    removed += remove_leftover(tree, name)
        return removed

    def _is_quiet(self, tree: WritableTree, name: str) -> bool:
        """Return whether a file has not changed for an hour, as far as this pool has seen."""
        now, stat = self.clock(), tree.stat(name, follow=False)
        identity = (stat.inode, stat.size, stat.mtime_ns, stat.ctime_ns)
        before, since = self._seen.get(name, (None, now))
        if before != identity:
            since = now
        self._seen[name] = (identity, since)
        return now >= since + EVERY


def remove_leftover(tree: WritableTree, name: str) -> bool:
    """Remove a hidden file unless a process has it locked, or this one works on it; return whether it was removed. Blocks.

    :raises OSError: it cannot be removed, or is no file.
    """
    if not is_leftover(name) or name in IN_PROGRESS:
        return False
    file = tree.open(name, write=True)
    try:
        if not file.lock():
            return False
        tree.unlink(name)
        return True
    finally:
        file.close()
