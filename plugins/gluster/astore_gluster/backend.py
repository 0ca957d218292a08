"""The pool type ``gluster``: a folder of a Gluster volume, reached through libgfapi, without a mount."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from astore.backend import Backend, Context, PoolSession
from astore.errors import DefinitionError
from astore.files import FileTreeSession
from astore.model import DiscoveredSource, Host, PoolDef, Target
from astore_gluster import libgfapi
from astore_gluster.connection import CONNECTIONS, ConnectionCache, Key
from astore_gluster.discovery import discover
from astore_gluster.servers import check_server, servers_of, url_parts
from astore_gluster.tree import GlusterTree


class GlusterBackend(Backend):
    """Drives pools of type ``gluster``.

    :param connections: where pools find their connections; all backends of a process share one by default.
    """

    type = "gluster"
    lane_threads = 10  # eight that read headers, and one for short calls beside them
    volume_formats = ("raw", "qcow2", "qcow", "qed", "vmdk", "vdi", "vpc", "iso", "luks")

    def __init__(self, connections: ConnectionCache = CONNECTIONS) -> None:
        self._connections = connections

    def require(self) -> None:
        """Load libgfapi. :raises BackendLoadError: it is missing or too old, in words."""
        libgfapi.load()

    def check(self, definition: PoolDef) -> PoolDef:
        """Validate; ``dir`` becomes ``/`` where there is none, and a target is dropped: a Gluster pool has none.

        :raises DefinitionError: the volume's name, the folder or a host is missing or not acceptable.
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
        """Volume, folder and hosts, in whatever order these are named."""
        source = definition.source
        hosts = sorted(str(server) for server in servers_of(source.hosts))
        return (
            ("source name", source.name or ""),
            ("source dir", source.directory or "/"),
            ("source host", ",".join(hosts)),
        )

    async def open(self, definition: PoolDef, context: Context) -> PoolSession:
        """Connect to the volume, or join the connection that there is, and see that the folder is there.

        :raises OSError: no host answers, or there is no such volume or folder, in words.
        """
        tree = await context.lane.run(self._open, definition, context.timeout, discard=GlusterTree.close)
        return FileTreeSession(tree, context)

    def _open(self, definition: PoolDef, timeout: float) -> GlusterTree:
        source = definition.source
        volume, directory = source.name or "", source.directory or "/"
        # a little less than the lane gives this call: who waits for another's attempt should not count as stuck
        connection = self._connections.acquire(Key(volume, servers_of(source.hosts)), timeout * 0.9)
        tree = GlusterTree(connection, directory, url_parts(source.hosts[0], volume, directory))
        try:
            tree.statvfs()
        except OSError as error:
            tree.close()
            raise OSError(
                error.errno, f"Gluster volume {volume!r}, directory {directory!r}: {error.strerror}"
            ) from error
        except BaseException:
            tree.close()
            raise
        return tree

    async def discover(
        self, host: str | None, context: Context, *, port: int | None = None
    ) -> Sequence[DiscoveredSource]:
        """The volumes that a host knows, see :func:`astore_gluster.discovery.discover`."""
        if host is None:
            raise DefinitionError("discovering gluster sources needs a host", element="host")
        server = Host(host, port)
        check_server(server)
        return await discover(server, context)


def _check_volume(name: str | None) -> None:
    if not name:
        raise DefinitionError("a gluster pool needs the name of a volume", element="name")
    if "/" in name or not name.isprintable() or name.startswith("-"):
        raise DefinitionError(f"{name!r} cannot be the name of a Gluster volume", element="name")


def _checked_directory(path: str) -> str:
    """The folder's path without doubled, trailing and do-nothing parts."""
    if not path.startswith("/"):
        raise DefinitionError(
            f"the directory in a Gluster volume must begin with '/', and {path!r} does not", element="dir"
        )
    if any(ord(c) < 32 or c == "\x7f" for c in path):
        raise DefinitionError(f"control characters in the directory {path!r}", element="dir")
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise DefinitionError(f"the directory {path!r} must not contain '..'", element="dir")
    return "/" + "/".join(parts)
