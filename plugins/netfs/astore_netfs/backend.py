"""The pool type ``netfs``: a network file system, mounted on the pool's target by astore."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import msgspec

from astore.backend import Backend, Context, PoolSession
from astore.backends.target import build_target, delete_target
from astore.cancellation import shielded
from astore.model import DiscoveredSource, PoolDef
from astore.model.formats import FILE_FORMATS
from astore.names import check_path
from astore_netfs.discovery import discover_sources
from astore_netfs.mounting.command import FORMATS, check_source, source_format, target_path
from astore_netfs.mounting.mount import MountPoint
from astore_netfs.mounting.mountinfo import locate
from astore_netfs.mounting.renewal import RenewedMountPoint
from astore_netfs.mounting.session import READERS, MountedTree, NetfsSession


class NetfsBackend(Backend):
    """Pools that are a directory of a server: NFS, glusterfs by FUSE, or CIFS."""

    type: ClassVar[str] = "netfs"
    source_formats: ClassVar[tuple[str, ...]] = FORMATS
    volume_formats: ClassVar[tuple[str, ...]] = FILE_FORMATS
    lane_threads: ClassVar[int] = READERS + 2

    def check(self, definition: PoolDef) -> PoolDef:
        """Require host, directory and target; the format defaults to ``auto``.

        :raises DefinitionError: the definition cannot be mounted; see :func:`astore_netfs.mount_argv`.
        """
        check_source(definition)
        source = msgspec.structs.replace(definition.source, format=source_format(definition))
        path = check_path(target_path(definition), what="target path")
        return msgspec.structs.replace(
            definition, source=source, target=msgspec.structs.replace(definition.target, path=path)
        )

    def source_key(self, definition: PoolDef) -> tuple[tuple[str, str], ...]:
        """Return the directory and the hosts, independent of their order."""
        directory = (definition.source.directory or "").strip("/")
        hosts = ",".join(sorted({host.name.lower() for host in definition.source.hosts}))
        return (("source dir", directory), ("source host", hosts))

    async def open(self, definition: PoolDef, context: Context) -> PoolSession:
        """Mount the source, unless it is mounted, and open the folder.

        :raises StorageError: something else is mounted there, or there is no folder. CommandError: mount failed.
        :raises LaneTimeoutError: the server does not answer.
        """
        mount = RenewedMountPoint(definition, context)
        mounted = await mount.ensure()
        try:
            tree = await context.lane.run(MountedTree, mount, discard=MountedTree.close)
        except BaseException:
            if mounted:
                await shielded(_cut(mount), whole=True)
            raise
        return NetfsSession(tree, mount, context)

    async def cut_loose(self, definition: PoolDef, context: Context) -> None:
        """Detach the mount of a pool that hangs before a session can be opened; see ``NetfsSession.cut_loose``.

        :raises OSError: it cannot be detached. TimeoutError: not in time.
        """
        await MountPoint(definition, context).cut()

    async def cut_connection(self, definition: PoolDef, context: Context) -> None:
        """Abort the connection of a FUSE mount whose server does not answer; the mount stays until it is renewed.

        :raises OSError: the connection cannot be aborted, or may not be. TimeoutError: not in time.
        """
        await MountPoint(definition, context).cut_connection()

    async def build(self, definition: PoolDef, context: Context) -> None:
        """Create the target folder and missing parents. If the source is mounted there, its folder is not changed."""
        _, mount = await context.lane.run(locate, target_path(definition))
        if mount is None:
            await build_target(definition, context)

    async def delete(self, definition: PoolDef, context: Context) -> None:
        """Remove the target folder, which must be empty."""
        await delete_target(definition, context)

    async def discover(
        self, host: str | None, context: Context, *, port: int | None = None
    ) -> Sequence[DiscoveredSource]:
        """Return a host's NFS exports and Gluster volumes; see :func:`astore_netfs.discovery.discover_sources`."""
        return await discover_sources(host, context)


async def _cut(mount: MountPoint) -> None:
    try:
        await mount.cut()
    except OSError as error:
        mount.context.log.warning("a mount could not be taken back", error=str(error))
