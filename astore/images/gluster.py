"""Gluster's URLs, as QEMU's block/gluster.c takes them apart."""

from __future__ import annotations

import re
from urllib.parse import unquote

import msgspec

from astore.images.errors import ImageError
from astore.images.fields import speakable

LONGEST_URI = 65_536
"""In characters."""

_GLUSTER = re.compile(
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


def parse_gluster_uri(uri: str) -> GlusterLocation:
    """Take a Gluster URI apart. :raises ImageError: it is none."""
    found = _GLUSTER.fullmatch(uri) if len(uri) <= LONGEST_URI and uri.isprintable() else None
    if found is None:
        raise ImageError(f"{uri[:200]!r} is no Gluster URI with a volume and a file")
    transport, host, socket = found["transport"] or "tcp", found["host"].strip("[]"), found["socket"]
    port = int(found["port"]) if found["port"] else None
    if port is not None and port > 65_535:
        raise ImageError(f"{uri[:200]!r}: there is no port {port}")
    if (transport == "unix") != (socket is not None):
        raise ImageError(f"{uri[:200]!r}: a socket belongs to the transport unix, and to no other")
    return GlusterLocation(
        _unescaped(found["volume"]),
        _unescaped(found["path"]),
        transport,
        _unescaped(host) or None,
        port,
        None if socket is None else _unescaped(socket),
    )


def _unescaped(text: str) -> str:
    try:
        plain = unquote(text, errors="strict")
    except UnicodeDecodeError:
        raise ImageError(f"{text[:200]!r}, in a Gluster URI, is not UTF-8") from None
    return speakable(plain, "Gluster URI")
