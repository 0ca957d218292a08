"""QEMU's ``json:`` names: a node of its block graph, as BlockdevOptions in its qapi/block-core.json.

A node should give the data's place and format: a format's node over a protocol's. Any other option raises a doubt, and
so does any other kind of node, but the files at the bottom are found all the same.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from astore.images.errors import ImageError
from astore.images.fields import is_speakable
from astore.images.formats import driver_of, name_of_driver
from astore.images.paths import absolute, has_protocol, is_folders
from astore.images.protocols import GONE, PROTOCOLS, SERVER_KEYS, Node, servers_of, text_at

DEEPEST = 32
"""The deepest nesting of nodes; each part of a dotted key counts."""
MOST_BRACKETS = 256
"""The most objects and lists, counted before the text is parsed."""

FROM_HERE = "is named relative to the folder that QEMU is started in"
AS_FOLDER = "has a name that ends like a folder's"
_MALFORMED = "has a json: name that means nothing"
_UNTOLD = "has a json: name that does not say where it is"
_NO_DRIVER = "is described with an invalid driver"
_ANOTHER = "is one of several files that a json: name describes"


class Found(NamedTuple):
    """A file that a name leads to."""

    location: str | None
    format: str | None
    doubt: str | None


def read_node(text: str, told: str | None) -> list[Found]:
    """Find the files that a node leads to, from the JSON after ``json:``. The first is the one that is read.

    :param told: the format in the header, which QEMU prefers to the node's.
    """
    try:
        top, twice = _parsed(text)
    except ImageError:
        return [Found(None, told, _MALFORMED)]
    doubts = [f"is described with {key[:40]!r} twice" for key, _ in twice]
    format, leaf = _format_and_leaf(top, told, doubts)
    location = _location(leaf, doubts)
    doubts += _names_twice(top)
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
    """Return the node with dotted keys as objects, and any repeated keys. :raises ImageError: it is not a node."""
    if text.count("{") + text.count("[") > MOST_BRACKETS:
        raise ImageError("it is nested too deep")
    if "'" in text:
        text = _STRING.sub(_double_quoted, text)
    try:
        value = json.loads(text, object_pairs_hook=_object, parse_constant=_constant)
    except ImageError:
        raise
    except (ValueError, RecursionError):
        raise ImageError("it is not JSON") from None
    if not isinstance(value, dict):
        raise ImageError("it is not an object")
    twice: list[tuple[str, Any]] = []
    return _tree(value, 0, twice), twice


def _double_quoted(found: re.Match[str]) -> str:
    """Turn a string in single quotation marks, which QEMU's JSON allows, into one in double quotation marks."""
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
        raise ImageError("it gives a key twice")
    return node


def _tree(flat: Node | list[Any], depth: int, twice: list[tuple[str, Any]]) -> Node:
    """Turn ``{"file.driver": …}`` into ``{"file": {"driver": …}}``, at every depth, and a list into ``{"0": …}``."""
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

_SWITCH: frozenset[bool | str] = frozenset({True, False, "on", "off", "yes", "no", "y", "n", "true", "false"})
_HARMLESS: dict[str, frozenset[bool | str]] = {
    "read-only": _SWITCH,
    "auto-read-only": _SWITCH,
    "discard": frozenset({"ignore", "off", "unmap", "on"}),
}
"""Options that do not change what is read, and the values that QEMU accepts (block.c, bdrv_runtime_opts)."""
_SURROGATE = re.compile("[\ud800-\udfff]")
_NODE_NAME = re.compile(r"[A-Za-z][A-Za-z0-9._-]{0,30}")
"""The names that QEMU accepts for its nodes (id_wellformed, bdrv_assign_node_name)."""
_DEVICES = frozenset({"host_device", "host_cdrom"})
_NOT_DEVICES = frozenset({"shm", "mqueue", "hugepages"})
"""The file systems below /dev."""
_OVER_FILE = frozenset({"driver", "file"})


def _format_and_leaf(top: Node, told: str | None, doubts: list[str]) -> tuple[str | None, Node]:
    """Return the format of the image, and the node of the protocol that it is read through."""
    driver = text_at(top, "driver")
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
    while leaf is not top and (driver := text_at(leaf, "driver")) is not None and driver not in PROTOCOLS:
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
    """Return the node below one, or the node itself."""
    for key in ("file", "image"):
        below = node.get(key)
        if isinstance(below, dict):
            return below
    return node


def _doubt_options(node: Node, known: frozenset[str], doubts: list[str]) -> None:
    for key, value in node.items():
        if key not in known and not _is_harmless(key, value):
            what = "null" if value is None else "an option"
            doubts.append(f"is given with {key[:40]!r}" + (f": {what}" if value is None else ""))


def _is_harmless(key: str, value: object) -> bool:
    if not isinstance(value, str | bool):
        return False
    if key == "node-name":
        return isinstance(value, str) and _NODE_NAME.fullmatch(value) is not None
    return value in _HARMLESS.get(key, ())


def misfit(filename: str, driver: str | None) -> str | None:
    """Return the doubt about an absolute file name that a driver is given: QEMU does not open every kind of file with it.

    :param driver: None if QEMU chooses it by the kind of the file.
    """
    if is_folders(filename):
        return AS_FOLDER
    parts = (absolute(filename) or "").split("/")
    is_device = parts[1:2] == ["dev"] and ".." not in parts and _NOT_DEVICES.isdisjoint(parts[2:3])
    if driver in _DEVICES and not is_device:
        return f"is read through QEMU's driver {driver!r}, which opens devices only"
    if driver == "file" and is_device:
        return "is read through QEMU's driver 'file', which opens no devices"
    return None


def _location(node: Node, doubts: list[str]) -> str | None:
    """Return where a protocol's node has its data. Without a driver it is a file's node."""
    driver = text_at(node, "driver")
    if driver is None and "driver" in node:
        doubts.append(_NO_DRIVER)
    if driver in GONE:
        doubts.append(f"is described with QEMU's driver {driver!r}, which is gone")
    protocol = PROTOCOLS.get(driver or "file")
    if protocol is None:
        return _by_filename(text_at(node, "filename"))
    _doubt_options(node, protocol.keys, doubts)
    for server in servers_of(node):
        if isinstance(server, dict):
            _doubt_options(server, SERVER_KEYS, doubts)
    if protocol.describe is None:
        filename = _filename(node)
        if filename is not None and not is_speakable(filename):
            doubts.append("has control characters in its name")
        if filename is not None and not filename.startswith("/"):
            doubts.append(FROM_HERE)
        elif filename is not None and (doubt := misfit(filename, driver)) is not None:
            doubts.append(doubt)
        return None if filename is None else absolute(filename)
    found = protocol.describe(node)
    return _by_filename(text_at(node, "filename")) if found is None else found


def _filename(node: Node) -> str | None:
    """Return a file's name, which may have any characters of Unicode but NUL."""
    filename = node.get("filename")
    if not isinstance(filename, str) or not filename or "\0" in filename:
        return text_at(node, "filename")
    return None if _SURROGATE.search(filename) else filename


def _by_filename(filename: str | None) -> str | None:
    """Return a ``filename`` where QEMU 7.2 allows none, but older ones may have read it; None for a relative name."""
    if filename is None or filename.startswith("json:"):
        return None
    if filename.startswith("file:") or not has_protocol(filename):
        return absolute(filename.removeprefix("file:"))
    return filename


def _leaves(top: Node, main: Node) -> Iterator[tuple[str, str | None]]:
    """Yield the location and format of each file in the tree, except the main one."""
    waiting: list[tuple[Node, str | None]] = [(top, None)]
    while waiting:
        node, format = waiting.pop()
        driver = text_at(node, "driver")
        if node is not main:
            place = _location(node, [])
            if place is not None:
                yield place, "raw" if format is None and driver in PROTOCOLS else format
        name = None if driver is None else name_of_driver(driver)
        waiting += [(below, name if key == "file" else None) for key, below in node.items() if isinstance(below, dict)]


def _names_twice(top: Node) -> list[str]:
    """Return a doubt if two nodes of a tree have the same name."""
    seen: set[str] = set()
    waiting = [top]
    while waiting:
        node = waiting.pop()
        name = text_at(node, "node-name")
        if name is not None and name in seen:
            return ["is described with two nodes of the same name"]
        seen.add(name or "")
        waiting += [below for below in node.values() if isinstance(below, dict)]
    return []


def _paths(key: str, value: Any) -> Iterator[str]:
    """Yield the file that a value names and that is given twice."""
    if isinstance(value, dict):
        yield from (place for place, _ in _leaves(value, {}))
    elif key in ("filename", "url") and isinstance(value, str):
        place = _by_filename(text_at({key: value}, key))
        if place is not None:
            yield place
