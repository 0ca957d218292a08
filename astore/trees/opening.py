"""Opener: opens existing and new volumes of a writable tree."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator, Callable

from astore.backend import Context, Lane
from astore.cancellation import SYNC_SECONDS, shielded, to_the_end
from astore.model import VolumeDef, VolumeInfo
from astore.trees.placing import HiddenFile, begin
from astore.trees.writable import WritableTree
from astore.volume_io.blocking_file import TreeFile
from astore.volume_io.open_file import OpenFile
from astore.volume_io.session_files import LOCK_PAUSE, LOCK_TRIES, SessionFiles
from astore.volume_io.volume_names import checked_name
from astore.volume_io.wording import being_written, replaced, worded


class NewVolume(OpenFile):
    """An unfinished volume. Closing it before it is ``placed`` removes it, after its last call and while it is still locked.

    :ivar info: its record, once it is placed.
    """

    info: VolumeInfo

    def __init__(self, lane: Lane, made: HiddenFile) -> None:
        super().__init__(lane, made.file)
        self.made = made
        self.placed: bool = False

    async def place(self) -> None:
        """Give the volume its name and close it. :raises OSError: EEXIST: the name was taken meanwhile."""
        self.info = await self.run(self.made.place, timeout=SYNC_SECONDS)
        self.placed = True
        await shielded(self.aclose())

    async def remove(self) -> None:
        """Remove the volume although it is placed."""
        await self.lane.run(self.made.remove)

    def _close(self) -> None:
        if not self.placed:
            self.made.remove()
        self.made.close()


class Opener:
    """Opens a tree's volumes, and new ones, and closes them when the session ends.

    Its errors name the volume; the core adds the pool.

    :param context: the pool's. :param current: returns its tree.
    """

    def __init__(self, context: Context, current: Callable[[], WritableTree]) -> None:
        self.context = context
        self.current = current
        self.lane: Lane = context.lane
        self.files: SessionFiles = SessionFiles()

    @contextlib.asynccontextmanager
    async def new_volume(self, definition: VolumeDef) -> AsyncIterator[NewVolume]:
        """Create a volume: hidden inside the block, placed at its end, and removed if the block fails.

        That it is raw is noted at the file.

        :raises VolumeExistsError: the name is taken. StorageError: the storage failed.
        """
        name = definition.name
        with worded(name, "create"):
            checked_name(name)
            made = await to_the_end(self.lane, begin, self.current(), definition, undo=_discard)
        new = NewVolume(self.lane, made)
        async with self.files.making(new, name):
            yield new

    @contextlib.asynccontextmanager
    async def volume(self, volume: VolumeInfo, *, write: bool = False) -> AsyncIterator[OpenFile]:
        """Open a volume's bytes; for writing, locked against all other astore writers.

        :raises VolumeNotFoundError: it does not exist. VolumeBusyError: another writer has it open. StorageError: EISDIR …;
            EAGAIN: opened for writing, its name leads to another file than ``volume`` describes.
        """
        tree = self.current()
        with worded(volume.name, "open"):
            file = await to_the_end(self.lane, open_locked, tree, volume.name, write, volume.inode, undo=close_file)
        opened = OpenFile(self.lane, file, tree.note_folder)
        async with self.files.using(opened, volume.name):
            yield opened


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
            raise being_written(name)
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
        time.sleep(LOCK_PAUSE)
    return file.lock()


def close_file(file: TreeFile) -> None:
    """Close a file whose caller was cancelled. (``TreeFile.close`` itself would be the base class's method.)"""
    file.close()


def _discard(made: HiddenFile) -> None:
    made.remove()
    made.file.close()
