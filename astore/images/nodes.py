"""QEMU's ``json:`` names: a node of its block graph, as BlockdevOptions in its qapi/block-core.json.

What is wanted of it is where the data is and of which format: a format's node over a protocol's. Whatever else a name says is
a doubt. So is a node of another kind, but the files at the bottom are found all the same.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple
from urllib.parse import quote

from astore.images.errors import ImageError
from astore.images.fields import speakable
from astore.images.formats import driver_of, name_of_driver
from astore.images.paths import URL_SAFE, absolute, has_protocol

DEEPEST = 32
"""Nodes below one another, the parts of dotted keys counted."""
MOST_BRACKETS = 256
"""Objects and lists in all, counted before the parser is let loose on them."""

FROM_HERE = "is named from whatever folder QEMU is started in"
_MALFORMED = "has a json: name that means nothing"
_UNTOLD = "has a json: name that does not say where it is"
_NO_DRIVER = "is described with a driver that is none"
_ANOTHER = "is one of several files that a json: name describes"

Node = dict[str, Any]


class Found(NamedTuple):
    """A file that a name leads to."""

    location: str | None
    format: str | None
    doubt: str | None


def read_node(text: str, told: str | None) -> list[Found]:
    """Find the files that a node leads to, given the JSON after ``json:``. The first is the one that is read.

    :param told: the format that the header gives, which QEMU lets win over the node's.
    """
    try:
        top, twice = _parsed(text)
    except ImageError:
        return [Found(None, told, _MALFORMED)]
    doubts = [f"is described with {key[:40]!r} twice" for key, _ in twice]
    format, leaf = _format_and_leaf(top, told, doubts)
    location = _location(leaf, doubts)
    others = dict.fromkeys(_leaves(top, leaf))
    others.update(dict.fromkeys((place, None) for key, value in twice for place in _paths(key, value)))
    rest = [Found(place, kind, _ANOTHER) for place, kind in others if place != location]
    if location is None and rest:
        location = rest.pop(0).location
    if location is None:
        doubts.append(_UNTOLD)
    return [Found(location, format, doubts[0] if doubts else None), *rest]


# ------------------------------------------------------------------------------------------------------------- parsing

_STRING = re.compile(r"""(["'])(?:(?!\1)[^\\]|\\.)*+\1?""", re.DOTALL)
_IN_STRING = re.compile(r"""\\.|\"""", re.DOTALL)


def _parsed(text: str) -> tuple[Node, list[tuple[str, Any]]]:
    """The node with dotted keys as objects, and what it says twice. :raises ImageError: it is none."""
    if text.count("{") + text.count("[") > MOST_BRACKETS:
        raise ImageError("it is nested too deep")
    if "'" in text:
        text = _STRING.sub(_double_quoted, text)
    try:
        value = json.loads(text, object_pairs_hook=_object, parse_constant=_constant)
    except ImageError:
        raise
    except (ValueError, RecursionError):
        raise ImageError("it is no JSON") from None
    if not isinstance(value, dict):
        raise ImageError("it is no object")
    twice: list[tuple[str, Any]] = []
    return _tree(value, 0, twice), twice


def _double_quoted(found: re.Match[str]) -> str:
    """A string between double quotation marks, as QEMU's JSON also has them between single ones."""
    whole = found[0]
    if len(whole) < 2 or whole[-1] != found[1]:
        raise ImageError("it has a string without an end")
    return f'"{_IN_STRING.sub(_escaped, whole[1:-1])}"'


def _escaped(found: re.Match[str]) -> str:
    return {'"': '\\"', "\\'": "'"}.get(found[0], found[0])


def _constant(word: str) -> None:
    raise ImageError(f"QEMU's JSON has no {word}")


def _object(pairs: list[tuple[str, Any]]) -> Node:
    node = dict(pairs)
    if len(node) != len(pairs):
        raise ImageError("it says a thing twice")
    return node


def _tree(flat: Node | list[Any], depth: int, twice: list[tuple[str, Any]]) -> Node:
    """``{"file.driver": …}`` as ``{"file": {"driver": …}}``, in the objects below as well; a list as ``{"0": …}``."""
    tree: Node = {}
    for key, value in flat.items() if isinstance(flat, dict) else ((str(at), one) for at, one in enumerate(flat)):
        *parents, last = key.split(".")
        below = depth + len(parents) + 1
        if below > DEEPEST:
            raise ImageError("it is nested too deep")
        branch: Node = {last: _tree(value, below, twice) if isinstance(value, dict | list) else value}
        for parent in reversed(parents):
            branch = {parent: branch}
        _merge(tree, branch, twice)
    return tree


def _merge(tree: Node, branch: Node, twice: list[tuple[str, Any]]) -> None:
    for key, value in branch.items():
        there = tree.setdefault(key, value)
        if there is value:
            continue
        if isinstance(there, dict) and isinstance(value, dict):
            _merge(there, value, twice)
        else:
            twice.append((key, value))


# ------------------------------------------------------------------------------------------------------- what it means

_HARMLESS = frozenset({"node-name", "read-only", "auto-read-only", "discard"})
"""Options that do not change what is read."""
_OVER_FILE = frozenset({"driver", "file"})


def _format_and_leaf(top: Node, told: str | None, doubts: list[str]) -> tuple[str | None, Node]:
    """The format of the image, and the node of the protocol that it is read through."""
    driver = _text(top, "driver")
    if driver in PROTOCOLS:
        if told is not None:
            doubts.append(f"is said to be {told}, and described as what QEMU's driver {driver!r} reads")
        return told or "raw", top
    name = None if driver is None else name_of_driver(driver)
    if driver is not None and name is None:
        doubts.append(_through(driver))
    elif name is not None and told is not None and driver_of(told) != driver:
        doubts.append(f"is said to be {told}, and described as {name}")
    elif driver is None and "driver" in top:
        doubts.append(_NO_DRIVER)
    elif driver is None and not isinstance(top.get("file"), dict):
        doubts.append("is described by neither a driver nor a file")
    _doubt_options(top, _OVER_FILE, doubts)
    if isinstance(top.get("file"), str):
        doubts.append("is described by the name of a node, which QEMU alone knows")
    leaf = _below(top)
    while leaf is not top and (driver := _text(leaf, "driver")) is not None and driver not in PROTOCOLS:
        if driver != "raw":
            is_format = name_of_driver(driver) is not None
            doubts.append("is described as an image inside another" if is_format else _through(driver))
        _doubt_options(leaf, _OVER_FILE, doubts)
        further = _below(leaf)
        if further is leaf:
            break
        leaf = further
    return told or name, leaf


def _through(driver: str) -> str:
    return f"is read through QEMU's driver {driver[:40]!r}"


def _below(node: Node) -> Node:
    """The node below one, or itself."""
    for key in ("file", "image"):
        below = node.get(key)
        if isinstance(below, dict):
            return below
    return node


def _doubt_options(node: Node, known: frozenset[str], doubts: list[str]) -> None:
    for key, value in node.items():
        if key not in known and key not in _HARMLESS:
            what = "null" if value is None else "an option"
            doubts.append(f"is given with {key[:40]!r}" + (f": {what}" if value is None else ""))


def _location(node: Node, doubts: list[str]) -> str | None:
    """Where a protocol's node has its data. A driver that is not named is that of files."""
    driver = _text(node, "driver")
    if driver is None and "driver" in node:
        doubts.append(_NO_DRIVER)
    protocol = PROTOCOLS.get(driver or "file")
    if protocol is None:
        return _by_filename(_text(node, "filename"))
    _doubt_options(node, protocol.keys, doubts)
    for server in _servers(node):
        if isinstance(server, dict):
            _doubt_options(server, _SERVER_KEYS, doubts)
    if protocol.describe is None:
        filename = _text(node, "filename")
        if filename is not None and not filename.startswith("/"):
            doubts.append(FROM_HERE)
        return None if filename is None else absolute(filename)
    found = protocol.describe(node)
    return _by_filename(_text(node, "filename")) if found is None else found


def _by_filename(filename: str | None) -> str | None:
    """A ``filename`` where QEMU takes none: it may have meant something to an older one. What is relative is not told."""
    if filename is None or filename.startswith("json:"):
        return None
    if filename.startswith("file:") or not has_protocol(filename):
        return absolute(filename.removeprefix("file:"))
    return filename


def _leaves(top: Node, main: Node) -> Iterator[tuple[str, str | None]]:
    """Location and format of each file in the tree that is not the main one."""
    waiting: list[tuple[Node, str | None]] = [(top, None)]
    while waiting:
        node, format = waiting.pop()
        driver = _text(node, "driver")
        if node is not main:
            place = _location(node, [])
            if place is not None:
                yield place, "raw" if format is None and driver in PROTOCOLS else format
        name = None if driver is None else name_of_driver(driver)
        waiting += [(below, name if key == "file" else None) for key, below in node.items() if isinstance(below, dict)]


def _paths(key: str, value: Any) -> Iterator[str]:
    """The file that a value names which is given a second time."""
    if isinstance(value, dict):
        yield from (place for place, _ in _leaves(value, {}))
    elif key in ("filename", "url") and isinstance(value, str):
        place = _by_filename(_text({key: value}, key))
        if place is not None:
            yield place


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


def _url(driver: str) -> Callable[[Node], str | None]:
    def describe(node: Node) -> str | None:
        url = _text(node, "url")
        return url if url is not None and url.startswith(f"{driver}://") else None

    return describe


# -------------------------------------------------------------------------------------------------------- their parts


def _text(node: Any, key: str) -> str | None:
    """A string or a number as text; None if it is absent, empty, no text for a name, or anything else."""
    value = node.get(key) if isinstance(node, dict) else None
    if isinstance(value, bool) or not isinstance(value, str | int):
        return None
    try:
        return speakable(str(value), "json: name") or None
    except ImageError:
        return None


def _server(node: Node) -> Node:
    """The server of a node; old QEMUs wrote its parts into the node itself."""
    server = node.get("server")
    return server if isinstance(server, dict) else node


def _servers(node: Node) -> list[Any]:
    """The servers of a node: a list is an object with the keys 0, 1, …, and a single server is one."""
    servers = node.get("server")
    if not isinstance(servers, dict):
        return []
    return [servers[key] for key in sorted(servers)] if "0" in servers else [servers]


def _address(server: Any) -> str | None:
    host, port = _text(server, "host"), _text(server, "port")
    if host is None:
        return None
    host = f"[{quote(host, safe=':')}]" if ":" in host else quote(host, safe="")
    return f"{host}:{quote(port, safe='')}" if port else host


# ----------------------------------------------------------------------------------------------------------- the table


class _Protocol(NamedTuple):
    """A driver that reads from a place. ``describe`` makes the place's URL; None for a file's ``filename``.

    ``keys`` say where it is. Any other changes what is read, or how.
    """

    describe: Callable[[Node], str | None] | None
    keys: frozenset[str]


def _protocol(describe: Callable[[Node], str | None] | None, *keys: str) -> _Protocol:
    return _Protocol(describe, frozenset({"driver", *keys}))


_SERVER_KEYS = frozenset({"type", "host", "port", "path", "socket"})
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
"""QEMU's drivers that read from a place, by name."""
