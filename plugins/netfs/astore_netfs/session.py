"""A started netfs pool: a :class:`~astore.trees.session.WritableTreeSession` that watches over its mount."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import ClassVar, TypeVar

from astore.backend import Context
from astore.model import EntryError, Snapshot, VolumeInfo
from astore.trees.local import Folder
from astore.trees.session import WritableTreeSession
from astore.trees.writable_local import WritableLocalTree
from astore_netfs.command import target_path
from astore_netfs.mount import STALE, MountPoint

T = TypeVar("T")


READERS = 8
"""Threads that read headers at once: a server is waited for, and one FUSE client serves them in turn anyway."""


class MountedTree(WritableLocalTree):
    """The mounted folder, proved whenever it is opened, and open only as long as a call is in it.

    So an idle pool keeps nobody from unmounting, another process of astore least of all; nor does a call that was given
    up, and that came to open the folder only afterwards.

    :raises OSError: the folder cannot be opened.
    """

    makers: ClassVar[int] = 4
    shared: ClassVar[bool] = True

    def __init__(self, mount: MountPoint) -> None:
        super().__init__(target_path(mount.definition), readers=READERS, verify=mount.prove)
        self.detach()

    def _open(self) -> Folder:
        folder = super()._open()
        self.detach()  # whoever has asked for it holds it
        return folder


class NetfsSession(WritableTreeSession):
    """Proves before every scan that it looks at the mount it expects, and mounts anew what is stale or gone.

    :param tree: over the mounted folder. :param mount: where it is mounted.
    """

    tree: MountedTree

    def __init__(self, tree: MountedTree, mount: MountPoint, context: Context) -> None:
        super().__init__(tree, context)
        self.mount = mount

    async def refresh(self, previous: Snapshot, *, full: bool = False) -> Snapshot:
        """List the folder and read what is new or changed; a mount that is stale or gone is made anew first.

        :raises OSError: the server does not answer, or something else is mounted there.
        """
        return await self._renewing(lambda: WritableTreeSession.refresh(self, previous, full=full))

    async def refresh_volume(self, name: str, before: VolumeInfo | None = None) -> VolumeInfo | EntryError | None:
        """One entry, its header read anew; the mount as for :meth:`refresh`."""
        return await self._renewing(lambda: WritableTreeSession.refresh_volume(self, name, before))

    async def _renewing(self, act: Callable[[], Awaitable[T]]) -> T:
        # The mount is proved by the scan itself; asking beforehand would be a second way round for nothing.
        try:
            return await act()
        except OSError as error:
            if error.errno not in STALE:
                raise
            self.context.log.info("mount is stale or gone", target=self.mount.definition.target.path, error=str(error))
        await self.mount.ensure()
        return await act()

    async def stop(self) -> None:
        """Unmount. Refused by the kernel while it is in use, the pool stays as it is.

        :raises StorageError: EBUSY, it is in use. CommandError, LaneTimeoutError: it cannot be unmounted.
        """
        await self.mount.unmount()

    async def cut_loose(self) -> None:
        """Make every call that hangs on the mount return, and unmount, without asking the server."""
        self.tree.close()
        await self.mount.cut()

    async def aclose(self) -> None:
        """Let go of the folder, after work on volumes was ended; the mount stays."""
        await self.end_work()
        self.tree.close()  # not on the lane, which may be stuck: closing a directory asks no server (unlike a file)
