"""Parse Gluster's URLs, like QEMU's block/gluster.c."""

from __future__ import annotations

import re
from urllib.parse import unquote

import msgspec

LONGEST_URI = 65_536
"""The longest URL, in characters."""

_URI = re.compile(
    r"gluster(?:\+(?P<transport>tcp|unix|rdma))?://"
    r"(?P<host>\[[^\[\]/?#@]*\]|[^\[\]:/?#@]*)(?::(?P<port>[0-9]{1,5}))?"
    r"/+(?P<volume>[^/?#]+)/+(?P<path>[^/?#][^?#]*)(?:\?socket=(?P<socket>[^&#]+))?"
)


class GlusterLocation(msgspec.Struct, frozen=True):
    """``gluster[+transport]://host[:port]/volume/path[?socket=…]``.

    ``path`` is inside the volume, without a leading slash; ``host`` has no brackets; ``socket`` (a path) belongs to the
    transport ``unix``.
    """

    volume: str
    path: str
    transport: str = "tcp"
    host: str | None = None
    port: int | None = None
    socket: str | None = None

    @property
    def server(self) -> str:
        """Return the host or socket, as in a ``<host>``; empty if the URL names none."""
        return self.socket or self.host or ""

    @property
    def parts(self) -> tuple[str, ...]:
        """Return the parts of the path, without empty ones and ``.``."""
        return tuple(part for part in self.path.split("/") if part not in ("", "."))


def parse_uri(uri: str) -> GlusterLocation | None:
    """Parse a URL; None unless it is a Gluster URL with a volume and a file. It may have escaped UTF-8."""
    found = _URI.fullmatch(uri) if len(uri) <= LONGEST_URI and uri.isprintable() else None
    if found is None:
        return None
    transport, port = found["transport"] or "tcp", int(found["port"]) if found["port"] else None
    if (port is not None and port > 65_535) or (transport == "unix") != (found["socket"] is not None):
        return None
    try:
        volume, path, host, socket = (
            unquote(part or "", errors="strict")
            for part in (found["volume"], found["path"], found["host"].strip("[]"), found["socket"])
        )
    except UnicodeDecodeError:
        return None
    if "\0" in volume + path + host + socket:
        return None
    return GlusterLocation(volume, path, transport, host or None, port, socket or None)
