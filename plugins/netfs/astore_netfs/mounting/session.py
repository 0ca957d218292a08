"""A started netfs pool: a :class:`~astore.trees.session.WritableTreeSession` that monitors its mount."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager
from typing import ClassVar, TypeVar

from astore.backend import Context, Tell, Told
from astore.model import EntryError, Snapshot, VolumeInfo
from astore.trees.session import WritableTreeSession
from astore.trees.writable_local import WritableLocalTree
from astore_netfs.mounting.command import target_path
from astore_netfs.mounting.mount import STALE, MountPoint

T = TypeVar("T")


READERS = 8
"""Threads that read headers at once; more would not help, since one FUSE client answers them in turn."""


class MountedTree(WritableLocalTree):
    """The mounted folder, verified whenever it is opened, and open only during a call.

    So an idle pool never keeps another process from unmounting, and neither does an abandoned call that opens the
    folder late.

    :raises OSError: the folder cannot be opened.
    """

    makers: ClassVar[int] = 4
    shared: ClassVar[bool] = True

    def __init__(self, mount: MountPoint) -> None:
        super().__init__(target_path(mount.definition), readers=READERS, verify=mount.prove)

    def work(self) -> AbstractContextManager[None]:
        """Keep nothing open between two calls: each opens the folder that is mounted now."""
        return contextlib.nullcontext()


class NetfsSession(WritableTreeSession):
    """A session that verifies the mount before every scan, and mounts again if it is stale or gone.

    :param tree: the tree on the mounted folder.
    :param mount: where it is mounted.
    """

    tree: MountedTree

    def __init__(self, tree: MountedTree, mount: MountPoint, context: Context) -> None:
        super().__init__(tree, context)
        self.mount = mount
        self._tell: Tell | None = None

    async def watch(self, tell: Tell) -> Told | None:
        """Be told of what this machine changes, and of a mount that was renewed.

        :raises OSError: the mount is stale or gone; the next refresh renews it, and tells so.
        """
        self._tell = tell
        return await super().watch(tell)

    async def refresh(self, previous: Snapshot, *, full: bool = False) -> Snapshot:
        """List the folder and read new and changed files; mount again first if the mount is stale or gone.

        :raises OSError: the server does not answer, or something else is mounted there.
        """
        return await self._renewing(lambda: WritableTreeSession.refresh(self, previous, full=full))

    async def refresh_volume(self, name: str, before: VolumeInfo | None = None) -> VolumeInfo | EntryError | None:
        """Look up one entry and read its header; the mount is handled as in :meth:`refresh`."""
        return await self._renewing(lambda: WritableTreeSession.refresh_volume(self, name, before))

    async def _renewing(self, act: Callable[[], Awaitable[T]]) -> T:
        # The scan itself verifies the mount; a check beforehand would only cost another round trip.
        try:
            return await act()
        except OSError as error:
            if error.errno not in STALE:
                raise
            self.context.log.info("mount is stale or gone", target=self.mount.definition.target.path, error=str(error))
        await self.mount.ensure()
        done = await act()
        if self._tell is not None:
            self._tell(None, False)  # the folder that was watched, if any, is on the mount of before
        return done

    async def stop(self) -> None:
        """Unmount. If the kernel refuses because the mount is in use, the pool stays as it is.

        :raises StorageError: EBUSY, it is in use. CommandError, LaneTimeoutError: it cannot be unmounted.
        """
        await self.mount.unmount()

    async def cut_loose(self) -> None:
        """Make every call that hangs on the mount return, and detach it, without asking the server."""
        self.tree.close()
        await self.mount.cut()

    async def aclose(self) -> None:
        """Close the folder, after all work on volumes has ended; the mount stays."""
        try:
            await self.end_work()
        finally:
            self.tree.close()  # not on the lane, which may be stuck; closing a directory, unlike a file, asks no server
