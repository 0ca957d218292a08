"""Ask glusterd for the options of a volume's bricks that say what the bricks tell their clients.

A client gets its own volume file from glusterd by the remote call GETSPEC, and a brick gets its own by the same call.
Anybody may ask for either. The client's file names the bricks, and theirs have the options (glusterfs:
rpc/xdr/src/glusterfs3-xdr.x, xlators/mgmt/glusterd/src/glusterd-handshake.c; XDR: RFC 4506; remote calls: RFC 5531).
"""

from __future__ import annotations

import os
import re
import socket
import struct
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from astore_gluster.servers import Server

HANDSHAKE, HANDSHAKE_VERSION, GETSPEC = 14398633, 2, 2
CALL, RPC_VERSION, LAST_FRAGMENT = 0, 2, 1 << 31
LARGEST = 16 << 20
"""The largest answer, in bytes."""

ASK_SECONDS = 2.0
"""Seconds in which all answers of a server must be there."""

TIMEOUT, INODE_LIMIT = 60, 16384
"""The defaults of features.cache-invalidation-timeout (in seconds) and network.inode-lru-limit."""

VERSIONS = {b"min-op-version": b"1", b"max-op-version": b"999999"}
"""What glusterd needs to be told: which versions of volume files the client understands."""

_SECTION = re.compile(r"^volume .*?$(.*?)^end-volume$", re.MULTILINE | re.DOTALL)
_LINE = re.compile(r"^ *(type|option +\S+) +(.*?) *$", re.MULTILINE)


class OptionsError(Exception):
    """The options cannot be asked for; the message says why."""


class BrickOptions(NamedTuple):
    """What the bricks tell.

    :ivar tell: whether all of them tell of changes. :ivar timeout: for how many seconds after a client looked at a file.
    :ivar inodes: how many inodes that nobody uses a brick remembers; 0: all.
    """

    tell: bool
    timeout: int
    inodes: int


def ask_options(volume: str, servers: Sequence[Server]) -> BrickOptions:
    """Ask the first server that answers. Blocks for at most ASK_SECONDS for each server, not counting DNS.

    :raises OptionsError: none answers, or its answer cannot be read.
    """
    why = "no server"
    for server in servers:
        try:
            return _options(volume, server, time.monotonic() + ASK_SECONDS)
        except (OSError, ValueError, struct.error) as error:
            why = str(error)
    raise OptionsError(why)


def _options(volume: str, server: Server, until: float) -> BrickOptions:
    bricks = []
    for kind, options in _sections(_get_spec(server, volume, until)):
        if kind == "protocol/client":
            path = options["remote-subvolume"].lstrip("/").replace("/", "-")
            bricks.append(f"{volume}.{options['remote-host']}.{path}")
    told: list[BrickOptions] = []
    for brick in bricks:
        tell, timeout, inodes = False, TIMEOUT, INODE_LIMIT
        for kind, options in _sections(_get_spec(server, brick, until)):
            if kind == "features/upcall":
                tell = options.get("cache-invalidation", "off").lower() in ("on", "yes", "true", "enable", "1")
                timeout = int(options.get("cache-invalidation-timeout", timeout))
            elif kind == "protocol/server":
                inodes = int(options.get("inode-lru-limit", inodes))
        told.append(BrickOptions(tell, timeout, inodes))
    if not told:
        raise ValueError("the volume file names no bricks")
    return BrickOptions(
        all(one.tell for one in told),
        min(one.timeout for one in told),
        min((one.inodes for one in told if one.inodes), default=0),
    )


def _sections(text: str) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield type and options of each section of a volume file."""
    for section in _SECTION.findall(text):
        lines = dict(_LINE.findall(section))
        yield lines.pop("type", ""), {key.split(maxsplit=1)[1]: value for key, value in lines.items()}


def _get_spec(server: Server, key: str, until: float) -> str:
    """Return the volume file that glusterd has under a name."""
    entries = b"".join(
        struct.pack(">II", len(name), len(value) + 1) + name + b"\0" + value + b"\0" for name, value in VERSIONS.items()
    )
    arguments = struct.pack(">I", 0) + _opaque(os.fsencode(key)) + _opaque(struct.pack(">I", len(VERSIONS)) + entries)
    nobody = struct.pack(">II", 0, 0)
    call = struct.pack(">6I", 1, CALL, RPC_VERSION, HANDSHAKE, HANDSHAKE_VERSION, GETSPEC) + nobody * 2 + arguments
    with _connected(server, until) as link:
        link.sendall(struct.pack(">I", LAST_FRAGMENT | len(call)) + call)
        answer = b""
        last = False
        while not last:
            (head,) = struct.unpack(">I", _received(link, 4, until))
            last, length = bool(head & LAST_FRAGMENT), head & ~LAST_FRAGMENT
            if len(answer) + length > LARGEST:
                raise ValueError(f"{server}: its answer is too long")
            answer += _received(link, length, until)
    _, _, refused, _, skip = struct.unpack_from(">5I", answer)
    (not_done,) = struct.unpack_from(">I", answer, 20 + skip)
    if refused or not_done:
        raise ValueError(f"{server}: glusterd refuses to answer")
    result, number, length = struct.unpack_from(">iiI", answer, 24 + skip)
    if result < 0:
        raise ValueError(f"{server}: {os.strerror(number) if number else 'glusterd has no such volume file'}")
    text = answer[36 + skip :][:length]
    return text.decode("utf-8", "surrogateescape")


def _opaque(value: bytes) -> bytes:
    return struct.pack(">I", len(value)) + value + bytes(-len(value) % 4)


def _connected(server: Server, until: float) -> socket.socket:
    left = max(until - time.monotonic(), 0.001)
    if server.transport != "unix":
        return socket.create_connection((server.host, server.port), left)
    link = socket.socket(socket.AF_UNIX)
    try:
        link.settimeout(left)
        link.connect(server.host)
    except BaseException:
        link.close()
        raise
    return link


def _received(link: socket.socket, length: int, until: float) -> bytes:
    parts = []
    while length:
        link.settimeout(max(until - time.monotonic(), 0.001))
        part = link.recv(min(length, 1 << 20))
        if not part:
            raise ConnectionResetError("the connection was closed")
        parts.append(part)
        length -= len(part)
    return b"".join(parts)
