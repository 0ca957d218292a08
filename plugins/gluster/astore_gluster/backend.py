"""The pool type ``gluster``: a folder of a Gluster volume, reached through libgfapi, without a mount."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import msgspec

from astore.backend import Backend, Context, PoolSession
from astore.errors import DefinitionError, LibvirtCode
from astore.model import DiscoveredSource, Host, PoolDef, Target
from astore.model.formats import FILE_FORMATS
from astore.names import check_path
from astore_gluster import libgfapi, naming
from astore_gluster.discovery import discover
from astore_gluster.layout import NAME_ROOM
from astore_gluster.servers import check_server, is_volume_name, servers_of, url_parts
from astore_gluster.volume.connection import CONNECTIONS, Connection, ConnectionCache, Key
from astore_gluster.volume.session import LOST, GlusterSession
from astore_gluster.volume.tree import GlusterTree

LONGEST_DIRECTORY = 4096 - NAME_ROOM
"""The longest path of a folder, in bytes: with a file's name it must fit in the bricks' PATH_MAX."""


class GlusterBackend(Backend):
    """Pools of the type ``gluster``.

    :param connections: the cache of connections; by default one that all backends of the process share.
    """

    type = "gluster"
    lane_threads = 10  # eight to read headers, one for short calls
    volume_formats: ClassVar[tuple[str, ...]] = FILE_FORMATS

    def __init__(self, connections: ConnectionCache = CONNECTIONS) -> None:
        self._connections = connections

    def require(self) -> None:
        """Load libgfapi. :raises BackendLoadError: it is missing or too old."""
        libgfapi.load()

    def check(self, definition: PoolDef) -> PoolDef:
        """Check the definition; ``dir`` defaults to ``/``, and a target is dropped: a Gluster pool has none.

        :raises DefinitionError: the volume's name, the folder or a host is missing or invalid.
        """
        source = definition.source
        _check_volume(source.name)
        if not source.hosts:
            raise DefinitionError("a gluster pool needs a host", element="host")
        for host in source.hosts:
            check_server(host)
        directory = _checked_directory("/" if source.directory is None else source.directory)
        return msgspec.structs.replace(
            definition,
            source=msgspec.structs.replace(source, directory=directory, format=None),
            target=Target(),
        )

    def source_key(self, definition: PoolDef) -> tuple[tuple[str, str], ...]:
        """Return volume, folder and hosts, independent of the hosts' order."""
        source = definition.source
        hosts = sorted(str(server) for server in servers_of(source.hosts))
        return (
            ("source name", source.name or ""),
            ("source dir", source.directory or "/"),
            ("source host", ",".join(hosts)),
        )

    async def open(self, definition: PoolDef, context: Context) -> PoolSession:
        """Connect to the volume, or share a connection to it, and check that the folder exists.

        :raises OSError: no host answers, or there is no such volume or folder.
        """
        source = definition.source
        key = Key(source.name or "", servers_of(source.hosts))
        directory = source.directory or "/"
        url = url_parts(source.hosts[0], key.volume, directory)

        def make(timeout: float, instead_of: Connection | None = None) -> GlusterTree:
            # a little less than the lane's deadline: a call that waits for another's attempt is not stuck
            return make_tree(self._connections, key, directory, url, timeout * 0.9, instead_of)

        tree = await context.lane.run(make, context.timeout, discard=GlusterTree.close)
        return GlusterSession(tree, make, context)

    async def discover(
        self, host: str | None, context: Context, *, port: int | None = None
    ) -> Sequence[DiscoveredSource]:
        """Return a host's volumes, see :func:`astore_gluster.discovery.discover`."""
        if host is None:
            raise DefinitionError(
                "discovering gluster sources needs a host", element="host", libvirt_code=LibvirtCode.INVALID_ARG
            )
        server = Host(host, port)
        check_server(server)
        return await discover(server, context)

    disk_source = staticmethod(naming.disk_source)
    blockdev = staticmethod(naming.blockdev)
    volume_named = staticmethod(naming.volume_named)


def make_tree(
    connections: ConnectionCache,
    key: Key,
    directory: str,
    url: tuple[str, str],
    timeout: float,
    instead_of: Connection | None = None,
) -> GlusterTree:
    """Connect to a volume, and check that it answers and that the folder exists. Blocks.

    A connection that others hold may no longer work (see :meth:`ConnectionCache.acquire`); then a new one is tried.

    :param instead_of: a connection that does not work.
    """
    while True:
        connection = connections.acquire(key, timeout, instead_of=instead_of)
        tree = GlusterTree(connection, directory, url)
        try:
            tree.statvfs()
            tree.check_folder()
        except OSError as error:
            tree.close()
            if error.errno in LOST and connection.answered and instead_of is None:
                instead_of = connection
                continue
            raise OSError(
                error.errno, f"Gluster volume {key.volume!r}, directory {directory!r}: {error.strerror}"
            ) from error
        except BaseException:
            tree.close()
            raise
        connection.answered = True
        return tree


def _check_volume(name: str | None) -> None:
    if not name:
        raise DefinitionError("a gluster pool needs the name of a volume", element="name")
    if not is_volume_name(name):
        raise DefinitionError(f"{name!r} cannot be the name of a Gluster volume", element="name")


def _checked_directory(path: str) -> str:
    """Return the folder's path without empty parts, ``.`` and trailing slashes."""
    parts = [part for part in check_path(path, what="directory", element="dir").split("/") if part not in ("", ".")]
    lengths = [len(part.encode()) for part in parts]
    if max(lengths, default=0) >= NAME_ROOM or sum(lengths) + len(lengths) > LONGEST_DIRECTORY:
        raise DefinitionError(f"the directory {path[:40]!r}… is too long", element="dir")
    return "/" + "/".join(parts)
