"""The hosts of a Gluster pool: what may stand in the XML, which of them answer, and the URLs of what they serve."""

from __future__ import annotations

import contextlib
import errno
import os
import selectors
import socket
import time
from collections.abc import Iterable, Sequence
from typing import NamedTuple
from urllib.parse import quote

from astore.errors import DefinitionError
from astore.model import Host

DEFAULT_PORT = 24007
"""Where glusterd listens (GF_DEFAULT_BASE_PORT in glusterfs's glusterfs.h)."""

LONGEST_NAME = 254
"""Bytes of a volume's name. For a longer one, glusterd 10.3 sends a volume file that cannot be parsed, and libgfapi's parser
never recovers: every later connection of the process fails with EINVAL (seen)."""

URL_SAFE = "/;@&=+$,-_.!~*'()"
"""What libxml2's xmlSaveUri, and so libvirt, leaves as it is in the path of a URL, beside letters and digits."""


class Server(NamedTuple):
    """One management daemon: over ``tcp`` by host and port, or over ``unix`` by the path of its socket (port 0)."""

    transport: str
    host: str
    port: int

    def __str__(self) -> str:
        if self.transport == "unix" or self.port == DEFAULT_PORT:
            return self.host
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def servers_of(hosts: Iterable[Host]) -> tuple[Server, ...]:
    """The servers that ``<host>`` elements name; a name that begins with ``/`` is the path of glusterd's socket."""
    return tuple(
        dict.fromkeys(
            Server("unix", host.name, 0)
            if host.name.startswith("/")
            else Server("tcp", host.name, host.port or DEFAULT_PORT)
            for host in hosts
        )
    )


def url_parts(host: Host, volume: str, directory: str) -> tuple[str, str]:
    """What stands before and after a (quoted) name in the URL of a file: libvirt's form, over a socket QEMU's.

    ``gluster://host[:port]/volume/dir/`` and nothing, or ``gluster+unix:///volume/dir/`` and ``?socket=path``.
    """
    path = quote_path(f"/{volume}/{directory.strip('/')}".rstrip("/") + "/")
    if host.name.startswith("/"):
        return f"gluster+unix://{path}", f"?socket={quote_path(host.name)}"
    name = f"[{host.name}]" if ":" in host.name else host.name
    port = f":{host.port}" if host.port else ""
    return f"gluster://{name}{port}{path}", ""


def quote_path(path: str) -> str:
    """A path as it stands in a URL: UTF-8, or whatever bytes it was made of, in percent escapes."""
    return quote(os.fsencode(path), safe=URL_SAFE)


class Answers(NamedTuple):
    """``servers`` in the order in which to ask them, if one answered; else none, and ``failures`` says why."""

    servers: tuple[Server, ...]
    failures: tuple[tuple[Server, OSError], ...]


def ask(servers: Sequence[Server], timeout: float) -> Answers:
    """Connect to every server at once, until one takes the connection. Blocks, for ``timeout`` seconds at most, and while
    names are resolved.

    libgfapi tries its servers one after the other: it stays 3 s with each that refuses and minutes with one that swallows
    packets, in a call that nobody can end. So whoever answers is named first and whoever refused last, and if nobody
    answers it is not called.
    """
    failures: dict[Server, OSError] = {}
    answered: set[Server] = set()
    with contextlib.ExitStack() as stack:
        selector = stack.enter_context(selectors.DefaultSelector())
        for server in servers:
            try:
                for attempt in _begin(server, stack):
                    selector.register(attempt, selectors.EVENT_WRITE, server)
            except OSError as error:
                failures[server] = error
        deadline = time.monotonic() + timeout
        while selector.get_map() and not answered and (left := deadline - time.monotonic()) > 0:
            for key, _ in selector.select(left):
                server = key.data
                selector.unregister(key.fileobj)
                number = _socket(key.fileobj).getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                if number:
                    failures[server] = OSError(number, os.strerror(number))
                else:
                    answered.add(server)
    if answered:
        return Answers(tuple(sorted(servers, key=lambda server: (server not in answered, server in failures))), ())
    silent = OSError(errno.ETIMEDOUT, f"no answer within {timeout:g} s")
    return Answers((), tuple((server, failures.get(server, silent)) for server in servers))


def _socket(fileobj: object) -> socket.socket:
    assert isinstance(fileobj, socket.socket)
    return fileobj


def _begin(server: Server, stack: contextlib.ExitStack) -> list[socket.socket]:
    """Begin to connect to a server, at every address that it has."""
    targets: list[tuple[int, object]]
    if server.transport == "unix":
        targets = [(socket.AF_UNIX, server.host)]
    else:
        try:
            found = socket.getaddrinfo(server.host, server.port, type=socket.SOCK_STREAM)
        except (socket.gaierror, UnicodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            raise OSError(errno.ENOTCONN, f"unknown host ({reason})") from error
        targets = [(family, address) for family, _, _, _, address in found]
    attempts: list[socket.socket] = []
    failed: OSError | None = None
    for family, address in targets:
        try:
            attempt = stack.enter_context(socket.socket(family, socket.SOCK_STREAM))
            attempt.setblocking(False)
            number = attempt.connect_ex(address)  # type: ignore[arg-type]
        except OSError as error:
            failed = error
            continue
        if number in (0, errno.EINPROGRESS):
            attempts.append(attempt)
        else:
            failed = OSError(number, os.strerror(number))
    if not attempts and failed is not None:
        raise failed
    return attempts


def is_volume_name(name: str) -> bool:
    """Whether this may be the name of a volume: libvirt's rules, as many bytes as glusterd bears, and no option."""
    return (
        bool(name)
        and "/" not in name
        and name.isprintable()
        and not name.startswith("-")
        and len(os.fsencode(name)) <= LONGEST_NAME
    )


def check_server(host: Host) -> None:
    """See that a ``<host>`` can be given to libgfapi and to a command line.

    :raises DefinitionError: no name, an unfit one, or a port out of range.
    """
    name = host.name
    if not name:
        raise DefinitionError("a host needs a name", element="host")
    if name.startswith("/"):
        if not name.isprintable() or ".." in name.split("/") or len(os.fsencode(name)) > 107:
            raise DefinitionError(f"{name!r} cannot be the path of glusterd's socket", element="host")
        if host.port:
            raise DefinitionError(f"the socket {name!r} has no port", element="host")
    elif not name.isascii() or not all(c.isalnum() or c in "-._:%" for c in name) or name[0] in "-.":
        raise DefinitionError(f"{name!r} is not the name or the address of a host", element="host")
    if host.port is not None and not 0 < host.port < 65536:
        raise DefinitionError(f"the port {host.port} of host {name!r} is not between 1 and 65535", element="host")
