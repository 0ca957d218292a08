"""QEMU's ``json:`` names: a node of its block graph, as BlockdevOptions in its qapi/block-core.json.

What is wanted of it is where the data is: the path or URL at the bottom of the ``file`` children. Formats, and the ``offset``
and ``size`` of a raw node, are passed over.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

from astore.images.errors import ImageError
from astore.images.fields import speakable
from astore.images.paths import URL_SAFE, absolute, has_protocol

DEEPEST = 32
"""Nodes below one another, and parts of a dotted key."""
MOST_BRACKETS = 256
"""Objects and lists in all, counted before the parser is let loose on them."""

Node = dict[str, Any]


def location_of(text: str) -> str | None:
    """The path or URL that a node leads to, given the JSON after ``json:``; None if it does not say.

    :raises ImageError: it is no object, is nested too deep, or contradicts itself.
    """
    if text.count("{") + text.count("[") > MOST_BRACKETS:
        raise ImageError("a backing name's json: is nested too deep")
    try:
        value = json.loads(text, object_pairs_hook=_object)
    except ImageError:
        raise
    except (ValueError, RecursionError):
        raise ImageError("a backing name says json: and is none") from None
    if not isinstance(value, dict):
        raise ImageError("a backing name's json: is no object")
    node = _nested(value)
    for _ in range(DEEPEST):
        below = node.get("file")
        if not isinstance(below, dict):
            return _location(node)
        node = below
    raise ImageError("a backing name's json: is nested too deep")


def _object(pairs: list[tuple[str, Any]]) -> Node:
    node = dict(pairs)
    if len(node) != len(pairs):
        raise ImageError("a backing name's json: says a thing twice")
    return node


def _nested(flat: Node) -> Node:
    """``{"file.driver": …}`` as ``{"file": {"driver": …}}``, in the objects below as well."""
    tree: Node = {}
    for key, value in flat.items():
        *parents, last = key.split(".")
        if len(parents) > DEEPEST:
            raise ImageError("a backing name's json: is nested too deep")
        branch: Node = {last: _nested(value) if isinstance(value, dict) else value}
        for parent in reversed(parents):
            branch = {parent: branch}
        _merge(tree, branch)
    return tree


def _merge(tree: Node, branch: Node) -> None:
    for key, value in branch.items():
        there = tree.setdefault(key, value)
        if there is value:
            continue
        if not (isinstance(there, dict) and isinstance(value, dict)):
            raise ImageError(f"a backing name's json: says {key[:40]!r} twice")
        _merge(there, value)


def _location(node: Node) -> str | None:
    """Where a node that has no node below it has its data."""
    driver, filename = _text(node, "driver"), _text(node, "filename")
    if driver in ("file", "host_device", "host_cdrom"):
        # the driver is given, so QEMU looks for no protocol in it
        return None if filename is None else absolute(filename)
    if driver in ("http", "https", "ftp", "ftps", "tftp"):
        url = _text(node, "url") or filename
        if url is not None and not url.startswith(f"{driver}://"):
            raise ImageError(f"a backing name's url does not begin with {driver}://")
        return url
    describe = _DRIVERS.get(driver or "")
    if describe is not None:
        found = describe(node)
        if found is not None:
            return found
    return _by_filename(filename)


def _by_filename(filename: str | None) -> str | None:
    """A ``filename`` that QEMU would take the protocol from. What is relative is not told."""
    if filename is None or filename.startswith("json:"):
        return None
    if filename.startswith("file:") or not has_protocol(filename):
        return absolute(filename.removeprefix("file:"))
    return filename


# --------------------------------------------------------------------------------------------------- by driver


def _gluster(node: Node) -> str | None:
    volume, path = _text(node, "volume"), _text(node, "path")
    servers = _servers(node)
    if volume is None or path is None or not servers:
        return None
    where = f"/{quote(volume, safe='')}/{quote(path.lstrip('/'), safe=URL_SAFE)}"
    server = servers[0]
    if _text(server, "type") == "unix":
        socket = _text(server, "path") or _text(server, "socket")
        return None if socket is None else f"gluster+unix://{where}?socket={quote(socket)}"
    address = _address(server)
    return None if address is None else f"gluster://{address}{where}"


def _nbd(node: Node) -> str | None:
    server = _server(node)
    export = quote(_text(node, "export") or "", safe=URL_SAFE)
    socket = _text(server, "path")
    if socket is not None:
        return f"nbd+unix:///{export}?socket={quote(socket)}"
    address = _address(server)
    return None if address is None else f"nbd://{address}/{export}"


_RBD_ESCAPES = str.maketrans({character: f"\\{character}" for character in "\\:@/"})


def _rbd(node: Node) -> str | None:
    pool, image = _text(node, "pool"), _text(node, "image")
    if pool is None or image is None:
        return None
    namespace, snapshot = _text(node, "namespace"), _text(node, "snapshot")
    where = "/".join(part.translate(_RBD_ESCAPES) for part in (pool, namespace, image) if part is not None)
    return f"rbd:{where}" + (f"@{snapshot.translate(_RBD_ESCAPES)}" if snapshot else "")


def _iscsi(node: Node) -> str | None:
    portal, target = _text(node, "portal"), _text(node, "target")
    if portal is None or target is None:
        return None
    return f"iscsi://{quote(portal, safe='[]:')}/{quote(target, safe=':')}/{quote(_text(node, 'lun') or '0', safe='')}"


def _ssh(node: Node) -> str | None:
    address, path, user = _address(_server(node)), _text(node, "path"), _text(node, "user")
    if address is None or path is None:
        return None
    who = f"{quote(user, safe='')}@" if user else ""
    return f"ssh://{who}{address}/{quote(path.lstrip('/'), safe=URL_SAFE)}"


def _sheepdog(node: Node) -> str | None:
    vdi = _text(node, "vdi")
    if vdi is None:
        return None
    address = _address(_server(node))
    return f"sheepdog:{vdi}" if address is None else f"sheepdog://{address}/{quote(vdi, safe='')}"


def _nfs(node: Node) -> str | None:
    address, path = _address(_server(node)), _text(node, "path")
    return None if address is None or path is None else f"nfs://{address}/{quote(path.lstrip('/'), safe=URL_SAFE)}"


def _nvme(node: Node) -> str | None:
    device = _text(node, "device")
    if device is None:
        return None
    return f"nvme://{quote(device, safe=':')}/{quote(_text(node, 'namespace') or '1', safe='')}"


_DRIVERS: dict[str, Callable[[Node], str | None]] = {
    "gluster": _gluster,
    "nbd": _nbd,
    "rbd": _rbd,
    "iscsi": _iscsi,
    "ssh": _ssh,
    "sheepdog": _sheepdog,
    "nfs": _nfs,
    "nvme": _nvme,
}


# ------------------------------------------------------------------------------------------------------ their parts


def _text(node: Any, key: str) -> str | None:
    """A string or a number as text; None if it is absent, empty or anything else."""
    value = node.get(key) if isinstance(node, dict) else None
    if isinstance(value, bool) or not isinstance(value, str | int):
        return None
    return speakable(str(value), "json: of a backing name") or None


def _server(node: Node) -> Node:
    """The server of a node; old QEMUs wrote its parts into the node itself."""
    server = node.get("server")
    return server if isinstance(server, dict) else node


def _servers(node: Node) -> list[Any]:
    """A list of servers, which is an object with the keys 0, 1, … where it came from dotted keys."""
    servers = node.get("server")
    if isinstance(servers, dict):
        return [servers[key] for key in sorted(servers)]
    return servers if isinstance(servers, list) else []


def _address(server: Any) -> str | None:
    host, port = _text(server, "host"), _text(server, "port")
    if host is None:
        return None
    host = f"[{quote(host, safe=':')}]" if ":" in host else quote(host, safe="")
    return f"{host}:{quote(port, safe='')}" if port else host
