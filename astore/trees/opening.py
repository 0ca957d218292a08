"""Opener: what all work on the volumes of a writable tree begins with: opening those there are, and new ones."""

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
"""How many times a volume that somebody is writing is asked for, 20 ms apart."""


class NewVolume(OpenFile):
    """A volume in the making; ``info`` is its record once it is in its place.

    Whoever closes it before that removes it: no sooner than the last call is out of it, and while it still is locked.
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
    """The record of a volume that is in its place."""
    assert new.info is not None
    return new.info


class Opener:
    """Opens a tree's volumes, and new ones; what is open ends with it.

    What it raises names the volume; the core adds the pool.

    :param context: the pool's. :param current: gives its tree.
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
        """A new volume, hidden while it is written to inside, and in its place after; or not there at all.

        :param format: the format it is made in. That of a raw one is noted at it.
        :raises VolumeExistsError: there is something of this name. StorageError: the storage said no.
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
                self.files.check()  # or it was closed, and with that removed, in this very moment
        except BaseException:
            if new.info is not None:  # too late for closing it to remove it
                await shielded(bounded(self._lane.run(new.made.remove)))
            with contextlib.suppress(Exception):
                await shielded(new.aclose())
            raise

    @contextlib.asynccontextmanager
    async def volume(self, volume: VolumeInfo, *, write: bool = False) -> AsyncIterator[OpenFile]:
        """Open a volume's bytes; for writing, locked against all other writers of astore's.

        :raises VolumeNotFoundError: it is not there. VolumeBusyError: somebody is writing it. StorageError: EISDIR …;
            EAGAIN: for writing: another file has its name than the one that was protected, or asked about.
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


def open_locked(tree: WritableTree, name: str, write: bool, inode: int = 0) -> TreeFile:
    """Open an entry; for writing, locked. Blocks.

    :param inode: which file it must be, to be written to; 0: whichever.
    :raises VolumeBusyError: somebody else is writing it. StorageError: EAGAIN: it is another file.
    """
    file = tree.open(name, write=write)
    try:
        if write and inode and file.stat().inode != inode:
            raise StorageError(
                f"volume {printable(name)!r} is another file by now; refresh it first", errno=errno.EAGAIN
            )
        if write and not _lock(file):
            raise VolumeBusyError(f"volume {name!r} is being written by somebody else", operation="write")
    except BaseException:
        with contextlib.suppress(OSError):
            file.close()
        raise
    return file


def _lock(file: TreeFile) -> bool:
    """Lock it; for a moment again and again, since a network may be slow to tell that the last writer has gone."""
    for _ in range(LOCK_TRIES):
        if file.lock():
            return True
        time.sleep(0.02)
    return file.lock()


def close_file(file: TreeFile) -> None:
    """Close a file that nobody took. (``TreeFile.close`` is that of the base class, whatever file it is given.)"""
    file.close()


def _discard(made: HiddenFile) -> None:
    made.remove()
    made.file.close()
