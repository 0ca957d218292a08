"""One ``<pool>`` document, as libvirt and as astore take it; and where they are meant to differ."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NamedTuple

from differential.oracle import LibvirtRefusedError, Oracle
from lxml import etree

from astore import DefinitionError, PoolDef
from astore.xml.known_types import POOL_TYPES
from astore.xml.reading import FS_NAMESPACE, RBD_NAMESPACE, string_of

NO_BACKEND = "this libvirt has no backend for the type"
_SIZES = ("capacity", "allocation", "available")
_OPTIONS = {
    "fs": f"{{{FS_NAMESPACE}}}mount_opts",
    "netfs": f"{{{FS_NAMESPACE}}}mount_opts",
    "rbd": f"{{{RBD_NAMESPACE}}}config_opts",
}
"""The elements of other namespaces that libvirt reads and writes, by the type of the pool."""
_CONTAINERS = ("pool", "source", "target", "device")


class Difference(NamedTuple):
    """Where astore is meant to differ; docs/differences-from-libvirt.md has each of them."""

    name: str
    why: str
    met: Callable[[Any], bool]
    """Of the document's root: whether it has what the two take differently."""
    says: str = ""
    """What astore's error says, if it refuses it."""


def _text(root: Any, path: str) -> str:
    return string_of(root, path) or ""


def _has_control(text: str) -> bool:
    return any(ord(c) < 32 or ord(c) == 127 for c in text)


def _name(root: Any) -> str:
    return _text(root, "./name") or _text(root, "./source/name")


def _path_is_unsafe(root: Any) -> bool:
    path = _text(root, "./target/path")
    absolute = path.startswith("/") and ".." not in path.split("/") and not _has_control(path)
    return root.get("type") in ("dir", "netfs") and not absolute


def _option_is_unsafe(root: Any) -> bool:
    names = root.xpath("./fs:mount_opts/fs:option/@name", namespaces={"fs": FS_NAMESPACE})
    return any(not name or "," in name or name.startswith("-") or _has_control(name) for name in names)


def _port_is_none(root: Any) -> bool:
    ports = [int(port) for port in root.xpath("./source/host/@port") if re.fullmatch(r"\s*[-+]?[0-9]+", port)]
    return any(not 0 <= port < 65_536 for port in ports)


def _extent_is_malformed(root: Any) -> bool:
    numbers = [
        extent.get(end, "") for extent in root.iterfind("./source/device/freeExtent") for end in ("start", "end")
    ]
    return any(not re.fullmatch(r"\s*\+?[0-9]+", number) or int(number) >= 1 << 64 for number in numbers)


def _is_gluster(root: Any) -> bool:
    return bool(root.get("type") == "gluster")


STRICTER = (
    Difference(
        "a pool's name that begins with '-', is '.' or '..', has control characters or is too long for a file's",
        "it becomes a file's name and an argument of programs",
        lambda root: (
            _name(root).startswith(("-",))
            or _name(root) in (".", "..")
            or _has_control(_name(root))
            or len(_name(root).encode()) > 250
        ),
        "pool name",
    ),
    Difference(
        "a dir or netfs target that is not absolute, has '..' or control characters",
        "it is opened, made and mounted on",
        _path_is_unsafe,
        r"not absolute|has a '\.\.'|control characters",
    ),
    Difference(
        "a mount option that is empty, has a comma, a leading '-' or control characters",
        "it reaches mount's command line, and is one option",
        _option_is_unsafe,
        "mount option|<option>: it has no attribute 'name'",
    ),
    Difference("a host's port below 0 or above 65,535", "there is none", _port_is_none, "port .* is not between"),
    Difference(
        "a protocol version with blanks or control characters",
        "it reaches mount's command line",
        lambda root: bool(re.search(r"[\x00-\x20]", _text(root, "./source/protocol/@ver"))),
        "not a protocol version",
    ),
    Difference(
        "a Gluster volume's name with '/'",
        "libvirt refuses it when the pool is started",
        lambda root: _is_gluster(root) and "/" in _text(root, "./source/name"),
        "has no '/'",
    ),
    Difference(
        "a Gluster directory that is not absolute",
        "libvirt refuses it when the pool is started",
        lambda root: _is_gluster(root) and not _text(root, "./source/dir/@path").startswith("/"),
        "must begin with '/'",
    ),
    Difference(
        "a free extent that is not two numbers",
        "libvirt does not read free extents; astore keeps them",
        _extent_is_malformed,
        "start|end",
    ),
)
"""libvirt accepts, astore refuses."""

LOOSER = (
    Difference(
        "a pool type that libvirt does not know",
        "its backend may be a plugin",
        lambda root: root.get("type") not in POOL_TYPES,
    ),
)
"""libvirt refuses, astore accepts."""


UNESCAPED = "an adapter's name with ', < or &"
KEPT_FOREIGN = "elements of namespaces that libvirt does not read, or not in a pool of this type"
KEPT_EXTENTS = "free extents of a source's device"
LARGE_IDS = "owners and groups of 2,147,483,648 and more"
LINE_ENDS = "tabs and line ends in attributes, and carriage returns"
LAXER_THAN_SCHEMA = "documents that violate libvirt's schema, but that libvirt reads"
WRITTEN = (UNESCAPED, KEPT_FOREIGN, KEPT_EXTENTS, LARGE_IDS, LINE_ENDS)
"""Both accept, and write something else: the documentation has what."""


class Outcome(NamedTuple):
    """How a comparison came out: what to count it as, its pool type if both accept, and the deliberate differences."""

    outcome: str
    type: str = ""
    differences: tuple[str, ...] = ()
    written: str = ""
    """What astore wrote."""
    libvirt_wrote: str = ""


class Disagreement(AssertionError):
    """A difference that is not meant to be."""


def compare(document: str, oracle: Oracle) -> Outcome:
    """Have both read a document and write it again. :raises Disagreement: they differ, and should not."""
    libvirts, refusal = _by_libvirt(document, oracle)
    if refusal == NO_BACKEND:
        # its reader is asked without the backend, which would have brought what reads the backend's own namespace
        document = _without_options(document)
        libvirts, refusal = _by_libvirt(document, oracle, "parsed")
    try:
        astores, error = PoolDef.from_xml(document).to_xml(), ""
    except DefinitionError as caught:
        astores, error = "", str(caught)
    if not libvirts and not astores:
        return Outcome("refused by both")
    root = _parsed(document)
    if not libvirts:
        names = [d.name for d in LOOSER if d.met(root)]
        if not names:
            raise Disagreement(f"libvirt refuses it ({refusal}), astore takes it:\n{document}\nas\n{astores}")
        return Outcome("different on purpose", differences=tuple(names[:1]))
    if not astores:
        names = [d.name for d in STRICTER if d.met(root) and re.search(d.says, error)]
        if not names:
            raise Disagreement(f"astore refuses it ({error}), libvirt takes it:\n{document}\nas\n{libvirts}")
        return Outcome("different on purpose", differences=tuple(names[:1]))
    if _is_unescaped(libvirts):
        if any(re.search("['<&]", value) for value in root.xpath("./source/adapter/@*")):
            return Outcome("different on purpose", differences=(UNESCAPED,))
        raise Disagreement(f"libvirt makes no XML of\n{document}\nbut\n{libvirts}")
    one, other = _parsed(libvirts), _parsed(astores)
    differences = _leave_out(root, one, other)
    if _tree(one) != _tree(other):
        raise Disagreement(f"libvirt makes of\n{document}\nthis:\n{libvirts}\nand astore this:\n{astores}")
    return Outcome("accepted by both", root.get("type"), differences, astores, libvirts)


def _by_libvirt(document: str, oracle: Oracle, question: str = "round_trip") -> tuple[str, str]:
    """What libvirt writes, or why it refuses."""
    try:
        return oracle.ask(question, document), ""
    except LibvirtRefusedError as error:
        return "", NO_BACKEND if "missing backend for pool type" in str(error) else str(error)


def _without_options(document: str) -> str:
    root = _parsed(document)
    for element in root.findall(f"{{{RBD_NAMESPACE}}}config_opts"):
        root.remove(element)
    return str(etree.tostring(root, encoding="unicode"))


def _parsed(text: str) -> Any:
    return etree.fromstring(text.encode(), etree.XMLParser(remove_comments=True, remove_pis=True))


def _is_unescaped(text: str) -> bool:
    try:
        _parsed(text)
    except etree.XMLSyntaxError:
        return True
    return False


def _leave_out(root: Any, libvirts: Any, astores: Any) -> tuple[str, ...]:
    """Make alike what is meant to differ in what the two have written; the differences that were met."""
    met = set()
    if root.find("uuid") is None or not _text(root, "./uuid"):
        for tree in (libvirts, astores):
            for uuid in tree.findall("uuid"):
                tree.remove(uuid)
    for size in _SIZES:  # of an inactive pool, nought; libvirt's test driver has pools of some size
        libvirts.find(size).text = "0"
    for element in list(astores):
        if element.tag.startswith("{") and element.tag != _OPTIONS.get(root.get("type")):
            astores.remove(element)
            met.add(KEPT_FOREIGN)
    for extent in astores.findall("./source/device/freeExtent"):
        extent.getparent().remove(extent)
        met.add(KEPT_EXTENTS)
    for path in ("./target/permissions/owner", "./target/permissions/group"):
        element = libvirts.find(path)
        if element is not None and int(element.text) < 0:
            element.text = str(int(element.text) + (1 << 32))
            met.add(LARGE_IDS)
    for element in astores.iter():
        if "\r" in (element.text or ""):
            element.text = element.text.replace("\r\n", "\n").replace("\r", "\n")
            met.add(LINE_ENDS)
        for name, value in element.attrib.items():
            if re.search(r"[\t\r\n]", value):
                element.set(name, re.sub(r"\r\n|[\t\r\n]", " ", value))
                met.add(LINE_ENDS)
    return tuple(sorted(met))


def _tree(element: Any) -> Any:
    """An element, to be compared: its tag, attributes, text, and children in order."""
    text = element.text or ""
    if len(element) or element.tag in _CONTAINERS:
        text = text.strip()
    return element.tag, dict(element.attrib), text, [_tree(inner) for inner in element]
