"""FileTreeSession: the session of a pool that is a folder of files, and its refresh.

It runs the tree's blocking calls on the pool's lane, and does what all such pools share: incremental scanning, reading
and probing headers on several threads, records, and errors by entry.

One refresh is one call on the lane (:mod:`astore.trees.refresh`). The event loop only takes the finished snapshot.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import time

import msgspec

from astore.backend import Context, PoolSession, Tell, Told
from astore.cancellation import CLEANUP_SECONDS
from astore.errors import LaneTimeoutError
from astore.model import EntryError, Snapshot, VolumeInfo
from astore.trees.entries import entry_error, plain_record, read_anew
from astore.trees.refresh import Refresh
from astore.trees.resolver import Resolver
from astore.trees.told import FolderTold
from astore.trees.tree import FileTree
from astore.volume_io.volume_names import TEMPORARY

POLL_SECONDS = 0.01
"""How often to look whether a refresh that was given up has ended."""


class FileTreeSession(PoolSession):
    """A :class:`~astore.backend.PoolSession` over any tree; a backend returns one from ``open``."""

    def __init__(self, tree: FileTree, context: Context) -> None:
        self.tree = tree
        self.context = context
        self.hidden: tuple[str, ...] = ()
        """The names of unfinished volumes that the last refresh saw."""
        self._last: Refresh | None = None  # the last refresh, if it did not end well
        self._told: FolderTold | None = None

    async def watch(self, tell: Tell) -> Told | None:
        """Be told of changes by the kernel, if the tree is a folder of this machine."""
        if not self.tree.has_folder:
            return None
        if self._told is not None:
            self._told.close()
        told = self._told = FolderTold(self.tree, tell)
        await told.begin(self.context.lane.run)
        return told

    async def refresh(self, previous: Snapshot, *, full: bool = False) -> Snapshot:
        """List the folder and read what is new or changed."""
        told = self._told
        if told is not None and not full and told.is_true(previous):
            again: Snapshot | None = await self.context.lane.run(told.taken_again, previous)
            if again is not None:
                return again
            told.moved()
        read_before = {} if self._last is None else await self._ended(self._last)
        if told is not None:
            told.refresh_begins()
        refresh = self._last = Refresh(self.tree, self.context, previous, full, read_before)
        try:
            snapshot: Snapshot = await self.context.lane.run(
                *(told.listed, refresh) if told is not None else (refresh,)
            )
        except BaseException:
            refresh.given_up_at = time.monotonic()
            raise
        self._last = None
        self.hidden = tuple(refresh.hidden)
        if told is not None:
            told.refreshed(snapshot)
        return snapshot

    async def _ended(self, last: Refresh) -> dict[str, VolumeInfo]:
        """Wait until the thread of a refresh that was given up has ended: two at once would be no faster.

        :return: the records that it has read.
        :raises LaneTimeoutError: it hangs. The next refresh does not wait for it.
        """
        until = max(last.began + self.context.timeout, last.given_up_at + CLEANUP_SECONDS)
        while last.running:
            if time.monotonic() > until:
                self._last = None
                limit = self.context.timeout
                message = f"{self.context.name}: the refresh before this one did not end within {limit:g} s"
                raise LaneTimeoutError(message, lane=self.context.name, timeout=limit)
            await asyncio.sleep(POLL_SECONDS)
        return last.read_already()

    async def refresh_volume(self, name: str, before: VolumeInfo | None = None) -> VolumeInfo | EntryError | None:
        """Read one entry anew, with its header. :param before: its last record."""
        return await self.context.lane.run(read_entry, self.tree, name, before)

    async def aclose(self) -> None:
        """Listen no more and close the tree; a tree that hangs is abandoned after two seconds."""
        if self._told is not None:
            self._told.close()
        with contextlib.suppress(TimeoutError):
            await self.context.lane.run(self.tree.close, timeout=2.0)


def read_entry(tree: FileTree, name: str, before: VolumeInfo | None = None) -> VolumeInfo | EntryError | None:
    """Return one entry's record, its error, or None if there is no such entry. Blocks.

    :param before: its last record.
    :raises OSError: the tree, and not only the entry, cannot be read.
    """
    found: list[tuple[str, VolumeInfo]] = []
    if name.startswith(TEMPORARY):
        return None
    try:
        entry = tree.lookup(name)
    except OSError as error:
        if error.errno == errno.ENOENT:  # the folder is gone: for a missing entry lookup returns None
            raise
        tree.check()
        return entry_error(name, error)
    if entry is None:
        return None
    wrong = read_anew(tree, entry, found, before)
    if wrong is not None:
        tree.check()
        return wrong
    if not found:
        return None
    record = found[0][1]
    if record.references:
        references = Resolver(tree, lambda other: plain_record(tree, other)).placed(record.references)
        record = msgspec.structs.replace(record, references=references)
    return record
