"""Parse Gluster's URLs, like QEMU's block/gluster.c."""

from __future__ import annotations

import re
from collections.abc import Container
from typing import NamedTuple
from urllib.parse import unquote

LONGEST_URI = 65_536
"""The longest URL, in characters."""

_URI = re.compile(
    r"gluster(?:\+(?P<transport>tcp|unix|rdma))?://"
    r"(?P<host>\[[^\[\]/?#@]*\]|[^\[\]:/?#@]*)(?::(?P<port>[0-9]{1,5}))?"
    r"/+(?P<volume>[^/?#]+)/+(?P<path>[^/?#][^?#]*)(?:\?socket=(?P<socket>[^&#]+))?"
)


class GlusterLocation(NamedTuple):
    """What a URL names: ``gluster[+transport]://host[:port]/volume/path[?socket=…]``.

    :ivar server: the host, without brackets, or the socket's path, as in a ``<host>``; empty if the URL names none.
    :ivar parts: the parts of the path in the volume, without empty ones and ``.``.
    """

    volume: str
    server: str
    parts: tuple[str, ...]


def parse_uri(uri: str) -> GlusterLocation | None:
    """Parse a URL; None unless it is a Gluster URL with a volume and a file. It may have escaped UTF-8."""
    found = _URI.fullmatch(uri) if len(uri) <= LONGEST_URI and uri.isprintable() else None
    if found is None or int(found["port"] or 0) > 65_535:
        return None
    if (found["transport"] == "unix") != (found["socket"] is not None):
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
    return GlusterLocation(volume, socket or host, tuple(part for part in path.split("/") if part not in ("", ".")))


def parts_in(uri: str, volume: str | None, hosts: Container[str]) -> tuple[str, ...] | None:
    """Return the parts of the path that a URL names in a volume; None if it is no URL of this volume on any of ``hosts``."""
    found = parse_uri(uri)
    if found is None or found.volume != volume or found.server not in hosts:
        return None
    return found.parts
