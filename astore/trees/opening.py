"""Opener: opens existing and new volumes of a writable tree."""

from __future__ import annotations

import contextlib
import errno
import time
from collections.abc import AsyncIterator, Callable

from astore.backend import Context, Lane
from astore.cancellation import SYNC_SECONDS, bounded, shielded, to_the_end
from astore.errors import StorageError, VolumeBusyError, printable
from astore.model import Permissions, VolumeInfo
from astore.trees.placing import HiddenFile, begin
from astore.trees.writable import WritableTree
from astore.volume_io.blocking_file import TreeFile
from astore.volume_io.open_file import OpenFile
from astore.volume_io.session_files import SessionFiles
from astore.volume_io.volume_names import checked_name
from astore.volume_io.wording import worded

LOCK_TRIES = 10
"""How many times a volume's lock is tried, 20 ms apart, before it counts as busy."""


class NewVolume(OpenFile):
    """An unfinished volume; ``info`` is its record once it is placed.

    Closing it before that removes it, after the last call has left it and while it is still locked.
    """

    def __init__(self, lane: Lane, made: HiddenFile) -> None:
        super().__init__(lane, made.file)
        self.made = made
        self.info: VolumeInfo | None = None

    def _close(self) -> None:
        if self.info is None:
            self.made.remove()
        self.made.close()


def info_of(new: NewVolume) -> VolumeInfo:
    """Return the record of a placed volume."""
    assert new.info is not None
    return new.info


class Opener:
    """Opens a tree's volumes, and new ones, and closes them when the session ends.

    Its errors name the volume; the core adds the pool.

    :param context: the pool's. :param current: returns its tree.
    """

    def __init__(self, context: Context, current: Callable[[], WritableTree]) -> None:
        self._lane = context.lane
        self._current = current
        self.files = SessionFiles()

    # ----------------------------------------------------------------------------------------------- new volumes

    @contextlib.asynccontextmanager
    async def new_volume(
        self, name: str, permissions: Permissions | None = None, format: str | None = None
    ) -> AsyncIterator[NewVolume]:
        """Create a volume: hidden inside the block, placed at its end, and removed if the block fails.

        :param format: its format; ``raw`` is noted at the file.
        :raises VolumeExistsError: the name is taken. StorageError: the storage failed.
        """
        with worded(name, "create"):
            checked_name(name)
            made = await to_the_end(
                *(self._lane, begin, self._current(), name, permissions, "raw" if format in (None, "raw") else None),
                undo=_discard,
            )
        new = NewVolume(self._lane, made)
        try:
            with self.files.keeping(new):
                yield new
                with worded(name, "create"):
                    new.info = await new.run(new.made.place, timeout=SYNC_SECONDS)
                    await shielded(new.aclose())
                self.files.check()  # the session may have ended, and closed and removed it, just now
        except BaseException:
            if new.info is not None:  # placed: closing no longer removes it
                await shielded(bounded(self._lane.run(new.made.remove)))
            with contextlib.suppress(Exception):
                await shielded(new.aclose())
            raise

    @contextlib.asynccontextmanager
    async def volume(self, volume: VolumeInfo, *, write: bool = False) -> AsyncIterator[OpenFile]:
        """Open a volume's bytes; for writing, locked against all other astore writers.

        :raises VolumeNotFoundError: it does not exist. VolumeBusyError: another writer has it open. StorageError: EISDIR …;
            EAGAIN: opened for writing, its name leads to another file than ``volume`` describes.
        """
        tree = self._current()
        with worded(volume.name, "open"):
            file = await to_the_end(self._lane, open_locked, tree, volume.name, write, volume.inode, undo=close_file)
        opened = OpenFile(self._lane, file, tree.note_folder)
        try:
            with self.files.keeping(opened):
                yield opened
        except BaseException:
            with contextlib.suppress(Exception):
                await shielded(opened.aclose())
            raise
        with worded(volume.name, "close"):
            await shielded(opened.aclose())


def replaced(name: str) -> StorageError:
    """Return the error for a volume whose name leads to another file than its record says."""
    return StorageError(
        f"volume {printable(name)!r} was replaced by another file; refresh it first", errno=errno.EAGAIN
    )


def open_locked(tree: WritableTree, name: str, write: bool, inode: int = 0) -> TreeFile:
    """Open an entry; for writing, locked. Blocks.

    :param inode: the file that it must be if it is opened for writing; 0: any.
    :raises VolumeBusyError: another writer has it open. StorageError: EAGAIN: it is another file.
    """
    file = tree.open(name, write=write)
    try:
        if write and inode and file.stat().inode != inode:
            raise replaced(name)
        if write and not _lock(file):
            raise VolumeBusyError(f"volume {name!r} is being written by somebody else", operation="write")
    except BaseException:
        with contextlib.suppress(OSError):
            file.close()
        raise
    return file


def _lock(file: TreeFile) -> bool:
    """Lock a file, with a few retries: a network may be slow to report that the last writer has gone."""
    for _ in range(LOCK_TRIES):
        if file.lock():
            return True
        time.sleep(0.02)
    return file.lock()


def close_file(file: TreeFile) -> None:
    """Close a file whose caller was cancelled. (``TreeFile.close`` itself would be the base class's method.)"""
    file.close()


def _discard(made: HiddenFile) -> None:
    made.remove()
    made.file.close()
