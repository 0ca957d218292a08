"""The names of iSCSI: portals, targets and initiators, checked; and the addresses of portals."""

from __future__ import annotations

import errno
import ipaddress
import re
import socket
from collections.abc import Iterable
from typing import NamedTuple

from astore.backend import Context
from astore.errors import DefinitionError
from astore.model import Host
from astore.names import check_host

DEFAULT_PORT = 3260
"""The port of iSCSI's targets (IANA)."""

LONGEST_NAME = 223
"""The longest name of a target or an initiator, in bytes (RFC 7143, 4.2.7.1)."""

_NAME = r"(?:iqn\.[0-9]{4}-[0-9]{2}\.[a-z0-9.:_-]+|eui\.[0-9a-f]{16}|naa\.(?:[0-9a-f]{16}|[0-9a-f]{32}))"


class Portal(NamedTuple):
    """An address at which a target is reached: a host's name or address, and a port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def portal_of(host: Host) -> Portal:
    """Return the portal of a ``<host>``."""
    return Portal(host.name, host.port or DEFAULT_PORT)


def portals_of(hosts: Iterable[Host]) -> tuple[Portal, ...]:
    """Return the portals of ``<host>`` elements, in their order, each once."""
    return tuple(dict.fromkeys(portal_of(host) for host in hosts))


def parse_portal(text: str) -> Portal | None:
    """Return the portal that a text like ``host:port`` or ``[address]:port,group`` means; None if it means none."""
    found = re.fullmatch(r"(\[[^\]]+\]|[^:,]+)(?::([0-9]{1,5}))?(?:,[0-9]+)?", text)
    if found is None or not 0 < (port := int(found[2] or DEFAULT_PORT)) < 65536:
        return None
    try:
        return Portal(check_host(found[1]).lower(), port)
    except DefinitionError:
        return None


def check_portal(host: Host) -> Host:
    """Return a ``<host>`` with its name checked. :raises DefinitionError: no portal can have this name, or this port."""
    if host.port is not None and not 0 < host.port < 65536:
        raise DefinitionError(f"the port {host.port} of host {host.name!r} is not between 1 and 65535", element="host")
    return Host(check_host(host.name), host.port)


def check_name(name: str, what: str, element: str) -> str:
    """Return the name of a target or an initiator in the case that it is compared in.

    :raises DefinitionError: nothing in iSCSI can have it (RFC 7143, 4.2.7).
    """
    lower = name.lower()
    if len(lower) > LONGEST_NAME or not re.fullmatch(_NAME, lower):
        raise DefinitionError(f"{name[:80]!r} is not the name of an iSCSI {what}", element=element)
    return lower


async def addresses_of(portal: Portal, context: Context) -> list[str]:
    """Return a portal's numeric addresses with its port, as libiscsi takes them. A name is looked up on the pool's lane.

    :raises OSError: ENOTCONN: the name is not known.
    """
    bare = portal.host.partition("%")[0]
    try:
        ipaddress.ip_address(bare)
    except ValueError:
        try:
            found = await context.lane.run(_look_up, portal)
        except (socket.gaierror, UnicodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            raise OSError(errno.ENOTCONN, f"unknown host ({reason})") from error
        return [str(Portal(address, portal.port)) for address in found]
    return [str(portal)]


def _look_up(portal: Portal) -> list[str]:
    found = socket.getaddrinfo(portal.host, portal.port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))
