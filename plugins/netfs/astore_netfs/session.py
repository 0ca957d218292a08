"""A started netfs pool: a :class:`~astore.files.FileTreeSession` that watches over its mount."""

from __future__ import annotations

import errno
from collections.abc import Awaitable, Callable
from typing import TypeVar

from astore.backend import Context
from astore.files import FileTreeSession
from astore.local_tree import LocalTree
from astore.model import EntryError, Snapshot, VolumeInfo
from astore_netfs.mount import STALE, MountPoint

T = TypeVar("T")


class NetfsSession(FileTreeSession):
    """Proves before every scan that it looks at the mount it expects, and mounts anew what is stale or gone.

    :param tree: over the mounted folder, with ``mount.prove`` as its ``verify``. :param mount: where it is mounted.
    """

    tree: LocalTree

    def __init__(self, tree: LocalTree, mount: MountPoint, context: Context) -> None:
        super().__init__(tree, context)
        self.mount = mount

    async def refresh(self, previous: Snapshot, *, full: bool = False) -> Snapshot:
        """List the folder and read what is new or changed; a mount that is stale or gone is made anew first.

        :raises OSError: the server does not answer, or something else is mounted there.
        """
        return await self._renewing(lambda: super(NetfsSession, self).refresh(previous, full=full))

    async def refresh_volume(self, name: str) -> VolumeInfo | EntryError | None:
        """One entry, its header read anew; the mount as for :meth:`refresh`."""
        return await self._renewing(lambda: super(NetfsSession, self).refresh_volume(name))

    async def _renewing(self, act: Callable[[], Awaitable[T]]) -> T:
        # The mount is proved by the scan itself; asking beforehand would be a second way round for nothing.
        try:
            return await act()
        except OSError as error:
            if error.errno not in STALE:
                raise
            self.context.log.info("mount is stale or gone", target=self.tree.path, error=str(error))
        self.tree.detach()
        await self.mount.ensure()
        return await act()

    async def stop(self) -> None:
        """Unmount. Refused by the kernel while it is in use, the pool stays as it is.

        :raises StorageError: EBUSY, it is in use. CommandError, LaneTimeoutError: it cannot be unmounted.
        """
        self.tree.detach()
        await self.mount.unmount()

    async def cut_loose(self) -> None:
        """Make every call that hangs on the mount return, and unmount, without asking the server."""
        self.tree.close()
        await self.mount.cut()


async def open_session(mount: MountPoint, context: Context, readers: int) -> NetfsSession:
    """The session of a pool that is mounted at ``mount``.

    :raises OSError: the folder cannot be opened.
    """

    def opened() -> LocalTree:
        tree = LocalTree(mount.path, readers=readers, verify=mount.prove)
        try:
            tree.statvfs()  # a server that does not answer is told from here, not from the first refresh
        except OSError as error:
            tree.close()
            if error.errno == errno.EACCES:  # glusterfs's root_squash and the like: it can be listed all the same
                return LocalTree(mount.path, readers=readers, verify=mount.prove)
            raise
        return tree

    tree = await context.lane.run(opened, discard=LocalTree.close)
    return NetfsSession(tree, mount, context)
