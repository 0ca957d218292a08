"""OpeningSession: what all work on the volumes of a writable tree begins with: opening those there are, and new ones."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import time
from collections.abc import AsyncIterator, Iterator

import anyio

from astore.backend import Context
from astore.cancellation import SYNC_SECONDS, bounded, shielded, to_the_end
from astore.errors import (
    AstoreError,
    DefinitionError,
    PoolInaccessibleError,
    StorageError,
    TransferError,
    VolumeBusyError,
    VolumeExistsError,
    VolumeNotFoundError,
    from_os_error,
    printable,
    reason,
)
from astore.model import Permissions, Snapshot, VolumeInfo
from astore.names import check_volume_name
from astore.trees.batch_create import Makers
from astore.trees.placing import HiddenFile, begin, remove_leftovers
from astore.trees.scanning import FileTreeSession
from astore.trees.tree import TEMPORARY
from astore.trees.writable import WritableTree
from astore.volume_io.blocking_file import TreeFile
from astore.volume_io.copying import Count
from astore.volume_io.open_file import OpenFile

LOCK_TRIES = 10
"""How many times a volume that somebody is writing is asked for, 20 ms apart."""

CLOSING_SECONDS = 1.0
"""How long the end of a session waits for calls on its files."""


class NewVolume(OpenFile):
    """A volume in the making; ``info`` is its record once it is in its place.

    Whoever closes it before that removes it: no sooner than the last call is out of it, and while it still is locked.
    """

    def __init__(self, session: OpeningSession, made: HiddenFile) -> None:
        super().__init__(session.context.lane, made.file)
        self.made = made
        self.info: VolumeInfo | None = None

    def _close(self) -> None:
        if self.info is None:
            self.made.remove()
        self.made.close()


class OpeningSession(FileTreeSession):
    """A session that can open what is there, and make new files. What it raises names the volume; the core adds the pool."""

    tree: WritableTree

    def __init__(self, tree: WritableTree, context: Context) -> None:
        super().__init__(tree, context)
        self._looked_for_leftovers = False
        self._files: set[OpenFile] = set()
        self._over = False
        self.makers = Makers(context.lane, lambda: self.tree)

    async def aclose(self) -> None:
        """As for any tree, after what is being done to volumes was ended."""
        await self.end_work()
        await super().aclose()

    async def end_work(self) -> None:
        """Have what is being done to volumes fail, and what was being made be removed. Bounded; nothing begins after it."""
        self._over = True
        await self.makers.aclose(CLOSING_SECONDS)
        files = list(self._files)
        if files:
            with anyio.move_on_after(CLOSING_SECONDS):
                await asyncio.gather(*(file.aclose() for file in files), return_exceptions=True)

    async def refresh(self, previous: Snapshot, *, full: bool = False) -> Snapshot:
        """As for any tree; the first one removes what killed processes left in the making."""
        snapshot = await super().refresh(previous, full=full)
        if not self._looked_for_leftovers:
            if self.hidden:
                with contextlib.suppress(
                    OSError
                ):  # LaneTimeoutError is one: they are looked for at the next start again
                    removed = await self.context.lane.run(remove_leftovers, self.tree, self.hidden)
                    if removed:
                        self.context.log.info("removed volumes that were never finished", count=len(removed))
            self._looked_for_leftovers = True
        return snapshot

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
                *(self.context.lane, begin, self.tree, name, permissions, "raw" if format in (None, "raw") else None),
                undo=_discard,
            )
        new = NewVolume(self, made)
        try:
            with self._keeping(new):
                yield new
                with worded(name, "create"):
                    new.info = await new.run(new.made.place, timeout=SYNC_SECONDS)
                    await shielded(new.aclose())
                self._check_not_over()  # or it was closed, and with that removed, in this very moment
        except BaseException:
            if new.info is not None:  # too late for closing it to remove it
                await shielded(bounded(self.context.lane.run(new.made.remove)))
            with contextlib.suppress(Exception):
                await shielded(new.aclose())
            raise

    def _check_not_over(self) -> None:
        if self._over:
            raise StorageError("the pool was stopped meanwhile", errno=errno.EBADF)

    @contextlib.contextmanager
    def _keeping(self, file: OpenFile) -> Iterator[None]:
        """The file is one of those that are closed with the session."""
        self._files.add(file)
        try:
            self._check_not_over()
            yield
        finally:
            self._files.discard(file)

    @contextlib.asynccontextmanager
    async def open_volume(self, volume: VolumeInfo, *, write: bool = False) -> AsyncIterator[OpenFile]:
        """Open a volume's bytes; for writing, locked against all other writers of astore's.

        :raises VolumeNotFoundError: it is not there. VolumeBusyError: somebody is writing it. StorageError: EISDIR …;
            EAGAIN: for writing: another file has its name than the one that was protected, or asked about.
        """
        lane = self.context.lane
        with worded(volume.name, "open"):
            file = await to_the_end(lane, open_locked, self.tree, volume.name, write, volume.inode, undo=close_file)
        opened = OpenFile(lane, file, self.tree.note_folder)
        try:
            with self._keeping(opened):
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


def checked_name(name: str) -> str:
    """:raises DefinitionError: no volume can have this name."""
    check_volume_name(name)
    if name.startswith(TEMPORARY):
        raise DefinitionError(f"names that begin with {TEMPORARY!r} are those of volumes in the making", element="name")
    return name


_PASSED_ON = (TransferError, VolumeExistsError, PoolInaccessibleError)


@contextlib.contextmanager
def worded(name: str, operation: str, count: Count | None = None, other: str | None = None) -> Iterator[None]:
    """What the storage says, in astore's errors, with the volume's name and how far it came."""
    try:
        yield
    except StorageError as error:
        if count is None or error.errno is None or isinstance(error, _PASSED_ON):
            raise
        raise TransferError(
            f"{error.message}, after {count.done} bytes", errno=error.errno, pool=error.pool, done=count.done
        ) from error
    except (AstoreError, TimeoutError):
        raise
    except OSError as error:
        plain = OSError(error.errno, error.strerror) if error.strerror else error
        what = f"{operation} of volume {printable(name)!r}"
        if error.errno == errno.EEXIST:
            raise VolumeExistsError(
                f"there is a volume {printable(other or name)!r} already", errno=errno.EEXIST
            ) from error
        if error.errno == errno.ENOENT:
            raise VolumeNotFoundError(f"{what}: it is not there any more", what=name) from error
        if count is not None:
            raise TransferError(
                f"{what}: {reason(plain)}, after {count.done} bytes", errno=error.errno, done=count.done
            ) from error
        raise from_os_error(plain, what) from error
