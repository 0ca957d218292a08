"""QEMU's protocol drivers: how a ``json:`` node names a place, and the URL of the same place.

The keys are those of BlockdevOptions in QEMU's qapi/block-core.json, and those that older QEMUs wrote instead.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple
from urllib.parse import quote

from astore.images.errors import ImageError
from astore.images.fields import speakable
from astore.images.paths import URL_SAFE

Node = dict[str, Any]


def _gluster(node: Node) -> str | None:
    volume, path = text_at(node, "volume"), text_at(node, "path")
    servers = servers_of(node)
    if volume is None or path is None or not servers:
        return None
    where = f"/{quote(volume, safe='')}/{quote(path.lstrip('/'), safe=URL_SAFE)}"
    server = servers[0]
    if text_at(server, "type") == "unix":
        socket = text_at(server, "path") or text_at(server, "socket")
        return None if socket is None else f"gluster+unix://{where}?socket={quote(socket)}"
    address = _address(server)
    return None if address is None else f"gluster://{address}{where}"


def _nbd(node: Node) -> str | None:
    server = _server(node)
    export = quote(text_at(node, "export") or "", safe=URL_SAFE)
    socket = text_at(server, "path")
    if socket is not None:
        return f"nbd+unix:///{export}?socket={quote(socket)}"
    address = _address(server)
    return None if address is None else f"nbd://{address}/{export}"


_RBD_ESCAPES = str.maketrans({character: f"\\{character}" for character in "\\:@/"})


def _rbd(node: Node) -> str | None:
    pool, image = text_at(node, "pool"), text_at(node, "image")
    if pool is None or image is None:
        return None
    namespace, snapshot = text_at(node, "namespace"), text_at(node, "snapshot")
    where = "/".join(part.translate(_RBD_ESCAPES) for part in (pool, namespace, image) if part is not None)
    return f"rbd:{where}" + (f"@{snapshot.translate(_RBD_ESCAPES)}" if snapshot else "")


def _iscsi(node: Node) -> str | None:
    portal, target = text_at(node, "portal"), text_at(node, "target")
    if portal is None or target is None:
        return None
    return (
        f"iscsi://{quote(portal, safe='[]:')}/{quote(target, safe=':')}/{quote(text_at(node, 'lun') or '0', safe='')}"
    )


def _ssh(node: Node) -> str | None:
    address, path, user = _address(_server(node)), text_at(node, "path"), text_at(node, "user")
    if address is None or path is None:
        return None
    who = f"{quote(user, safe='')}@" if user else ""
    return f"ssh://{who}{address}/{quote(path.lstrip('/'), safe=URL_SAFE)}"


def _sheepdog(node: Node) -> str | None:
    vdi = text_at(node, "vdi")
    if vdi is None:
        return None
    address = _address(_server(node))
    return f"sheepdog:{vdi}" if address is None else f"sheepdog://{address}/{quote(vdi, safe='')}"


def _nfs(node: Node) -> str | None:
    address, path = _address(_server(node)), text_at(node, "path")
    return None if address is None or path is None else f"nfs://{address}/{quote(path.lstrip('/'), safe=URL_SAFE)}"


def _nvme(node: Node) -> str | None:
    device = text_at(node, "device")
    if device is None:
        return None
    return f"nvme://{quote(device, safe=':')}/{quote(text_at(node, 'namespace') or '1', safe='')}"


def _url(driver: str) -> Callable[[Node], str | None]:
    def describe(node: Node) -> str | None:
        url = text_at(node, "url")
        return url if url is not None and url.startswith(f"{driver}://") else None

    return describe


# -------------------------------------------------------------------------------------------------------- their parts


def text_at(node: Any, key: str) -> str | None:
    """Return a string or a number as text; None if it is absent, empty, not allowed in a name, or of another type."""
    value = node.get(key) if isinstance(node, dict) else None
    if isinstance(value, bool) or not isinstance(value, str | int):
        return None
    try:
        return speakable(str(value), "json: name") or None
    except ImageError:
        return None


def _server(node: Node) -> Node:
    """Return the server of a node; older QEMUs wrote its parts into the node itself."""
    server = node.get("server")
    return server if isinstance(server, dict) else node


def servers_of(node: Node) -> list[Any]:
    """Return the servers of a node: a list, an object with the keys 0, 1, …, or a single server."""
    servers = node.get("server")
    if isinstance(servers, list):
        return servers
    if not isinstance(servers, dict):
        return []
    return [servers[key] for key in sorted(servers)] if "0" in servers else [servers]


def _address(server: Any, *, quoted: bool = True) -> str | None:
    host, port = text_at(server, "host"), text_at(server, "port")
    if host is None:
        return None
    if quoted:
        host, port = quote(host, safe=":" if ":" in host else ""), quote(port or "", safe="")
    host = f"[{host}]" if ":" in host else host
    return f"{host}:{port}" if port else host


# ----------------------------------------------------------------------------------------------------------- the table


class Protocol(NamedTuple):
    """A driver that reads from a place. ``describe`` makes the place's URL; None for a file's ``filename``.

    ``keys`` name the place. Any other key changes what is read, or how.
    """

    describe: Callable[[Node], str | None] | None
    keys: frozenset[str]


def _protocol(describe: Callable[[Node], str | None] | None, *keys: str) -> Protocol:
    return Protocol(describe, frozenset({"driver", *keys}))


SERVER_KEYS = frozenset({"type", "host", "port", "path", "socket"})
PROTOCOLS = {
    "file": _protocol(None, "filename"),
    "host_device": _protocol(None, "filename"),
    "host_cdrom": _protocol(None, "filename"),
    "gluster": _protocol(_gluster, "volume", "path", "server"),
    "nbd": _protocol(_nbd, "server", "export", "host", "port", "path"),
    "rbd": _protocol(_rbd, "pool", "namespace", "image", "snapshot"),
    "iscsi": _protocol(_iscsi, "transport", "portal", "target", "lun"),
    "ssh": _protocol(_ssh, "server", "path", "user", "host", "port"),
    "sheepdog": _protocol(_sheepdog, "server", "vdi"),
    "nfs": _protocol(_nfs, "server", "path"),
    "nvme": _protocol(_nvme, "device", "namespace"),
    **{scheme: _protocol(_url(scheme), "url") for scheme in ("http", "https", "ftp", "ftps", "tftp")},
}
"""QEMU's protocol drivers, by name."""
GONE = frozenset({"sheepdog", "tftp"})
"""Drivers that QEMU 7.2 no longer has."""


def url_of(node: Node) -> str | None:
    """Return the URL by which QEMU's programs open a node: its place, and for ``rbd`` the monitors and the user as well.

    None: QEMU has no URL for it.
    """
    protocol = PROTOCOLS.get(text_at(node, "driver") or "")
    url = None if protocol is None or protocol.describe is None else protocol.describe(node)
    if url is None or node["driver"] != "rbd":
        return url
    options = {
        "id": text_at(node, "user") or "",
        "mon_host": ";".join(filter(None, (_address(server, quoted=False) for server in servers_of(node)))),
        "auth_client_required": ";".join(node.get("auth-client-required", ())),
    }
    return url + "".join(f":{key}={value.translate(_RBD_ESCAPES)}" for key, value in options.items() if value)
