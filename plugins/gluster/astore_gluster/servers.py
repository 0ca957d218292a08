"""The hosts of a Gluster pool: check them, find one that answers, and make the URLs of their files."""

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
from astore.images.paths import URL_SAFE
from astore.model import Host

DEFAULT_PORT = 24007
"""Where glusterd listens (GF_DEFAULT_BASE_PORT in glusterfs's glusterfs.h)."""

LONGEST_NAME = 254
"""The longest name of a volume, in bytes.

For a longer one, glusterd 10.3 sends a volume file that cannot be parsed, and libgfapi's parser never recovers: every
later connection of the process fails with EINVAL (seen).
"""


class Server(NamedTuple):
    """One management daemon: over ``tcp`` at a host and port, or over ``unix`` at a socket's path (port 0)."""

    transport: str
    host: str
    port: int

    def __str__(self) -> str:
        if self.transport == "unix" or self.port == DEFAULT_PORT:
            return self.host
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def servers_of(hosts: Iterable[Host]) -> tuple[Server, ...]:
    """Return the servers of ``<host>`` elements; a name that begins with ``/`` is the path of glusterd's socket."""
    return tuple(
        dict.fromkeys(
            Server("unix", host.name, 0)
            if host.name.startswith("/")
            else Server("tcp", host.name, host.port or DEFAULT_PORT)
            for host in hosts
        )
    )


def url_parts(host: Host, volume: str, directory: str) -> tuple[str, str]:
    """Return the text before and after a (quoted) name in a file's URL: in libvirt's form, or QEMU's for a socket.

    ``gluster://host[:port]/volume/dir/`` and nothing, or ``gluster+unix:///volume/dir/`` and ``?socket=path``.
    """
    path = quote_path(f"/{volume}/{directory.strip('/')}".rstrip("/") + "/")
    if host.name.startswith("/"):
        return f"gluster+unix://{path}", f"?socket={quote_path(host.name)}"
    name = f"[{host.name}]" if ":" in host.name else host.name
    port = f":{host.port}" if host.port else ""
    return f"gluster://{name}{port}{path}", ""


def quote_path(path: str) -> str:
    """Quote a path for a URL: its UTF-8, or its undecodable bytes, in percent escapes."""
    return quote(os.fsencode(path), safe=URL_SAFE)


def ask(servers: Sequence[Server], timeout: float) -> tuple[Server, ...]:
    """Connect to every server at once, until one accepts. Blocks for at most ``timeout`` seconds, not counting DNS.

    libgfapi tries its servers one after the other, in a call that cannot be interrupted: it waits 3 s for each that
    refuses, and minutes for one that drops packets. So the server that answers is tried first, and those that refuse
    last; if none answers, libgfapi must not be called.

    :return: the servers in the order to try them.
    :raises OSError: no server answers; with the first one's errno, and each one's reason.
    """
    failures: dict[Server, OSError] = {}
    answered: set[Server] = set()
    with contextlib.ExitStack() as stack:
        selector = stack.enter_context(selectors.DefaultSelector())
        for server in servers:
            try:
                for attempt in _begin(server, stack):
                    selector.register(attempt, selectors.EVENT_WRITE, (server, attempt))
            except OSError as error:
                failures[server] = error
        deadline = time.monotonic() + timeout
        while selector.get_map() and not answered and (left := deadline - time.monotonic()) > 0:
            for key, _ in selector.select(left):
                server, attempt = key.data
                selector.unregister(attempt)
                number = attempt.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                if number:
                    failures[server] = OSError(number, os.strerror(number))
                else:
                    answered.add(server)
    if answered:
        return tuple(sorted(servers, key=lambda server: (server not in answered, server in failures)))
    silent = OSError(errno.ETIMEDOUT, f"no answer within {timeout:g} s")
    errors = [failures.get(server, silent) for server in servers]
    why = "; ".join(f"{server}: {error.strerror}" for server, error in zip(servers, errors, strict=True))
    raise OSError(errors[0].errno if errors else errno.EINVAL, f"no host answers ({why})")


def _begin(server: Server, stack: contextlib.ExitStack) -> list[socket.socket]:
    """Begin to connect to a server, at each of its addresses."""
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
    """Return whether a volume may have this name: libvirt's rules, glusterd's longest name, and no option."""
    return (
        bool(name)
        and "/" not in name
        and name.isprintable()
        and not name.startswith("-")
        and len(os.fsencode(name)) <= LONGEST_NAME
    )


def check_server(host: Host) -> None:
    """Check that libgfapi and a command line can take a ``<host>``.

    :raises DefinitionError: the name is missing or invalid, or the port is out of range.
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
