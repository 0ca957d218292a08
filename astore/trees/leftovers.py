"""Find and remove the hidden files of work that ended without removing them; see :mod:`astore.volume_io.leftovers`."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

from astore.backend import Lane
from astore.trees.writable import WritableTree
from astore.volume_io.leftovers import Suspects
from astore.volume_io.volume_names import IN_PROGRESS, is_leftover


class Leftovers:
    """The hidden files of one pool.

    :ivar suspects: those that may be leftovers, by inode, size and times.
    """

    def __init__(self) -> None:
        self.suspects: Suspects[tuple[int, int, int, int]] = Suspects()

    async def remove(self, lane: Lane, tree: WritableTree, hidden: Sequence[str]) -> int:
        """Remove leftovers among the hidden files that a refresh saw; return how many. In doubt a file stays.

        :raises LaneTimeoutError: the storage hangs.
        """
        names = self.suspects.among(hidden)
        return await lane.run(self._remove, tree, names) if names else 0

    def _remove(self, tree: WritableTree, names: Sequence[str]) -> int:
        removed = 0
        for name in names:
            with contextlib.suppress(OSError):
                if self.suspects.may_go(name, _state(tree, name)):
                    removed += remove_leftover(tree, name)
        return removed


def _state(tree: WritableTree, name: str) -> tuple[int, int, int, int]:
    stat = tree.stat(name, follow=False)
    return (stat.inode, stat.size, stat.mtime_ns, stat.ctime_ns)


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
