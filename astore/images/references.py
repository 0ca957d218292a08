"""Find the files that an image's header names: relative names, QEMU's protocols, and ``json:`` names.

The rules are QEMU's (its manual, "Disk images", and block.c), since QEMU opens the files. If a name leads to no known
place, or to several, its reference has a ``doubt``.
"""

from __future__ import annotations

from urllib.parse import unquote

from astore.images.fields import ENCODED, is_speakable
from astore.images.nodes import AS_FOLDER, FROM_HERE, Found, misfit, read_node
from astore.images.paths import URL_PARTS, absolute, beside, has_protocol, is_folders, is_url, on_record
from astore.model import Reference, ReferenceKind

LONGEST_NAME = 65_536
"""The longest name that is looked at, in characters."""

_NO_NAME = "has a name that means nothing"

NETWORK = frozenset(
    {
        *("nbd", "nbd+tcp", "nbd+unix", "http", "https", "ftp", "ftps", "ssh", "rbd", "iscsi", "iser", "nfs", "nvme"),
        *("gluster", "gluster+tcp", "gluster+unix", "gluster+rdma"),
    }
)
"""Protocols whose names are URLs, or like URLs, in QEMU 7.2."""
_DEVICES = frozenset({"host_device", "host_cdrom"})
_LAYERS = {"blkdebug": "blkdebug", "blkverify": "blkverify", "fat": "vvfat"}
"""Protocols whose names contain file names, between colons, and their drivers."""
_MOST_PARTS = 16


def located(references: tuple[Reference, ...], volume_path: str) -> tuple[Reference, ...]:
    """Add to each reference its file's location, and a doubt if the file may not be what is read.

    A ``json:`` name may describe several files: the file that is read comes first, then the others, each with a doubt.
    A name that means nothing gets a doubt and no location; it is not an error. A path that is not text is on record as a
    percent-encoded URL, ``file:///…``.

    :param references: the references that :func:`astore.images.probe` returned.
    :param volume_path: the image's absolute path, or its URL.
    """
    if not references:
        return references
    found: list[Reference] = []
    for reference in references:
        found.extend(_located(reference, volume_path))
    return tuple(found)


def are_relative(references: tuple[Reference, ...]) -> bool:
    """Return whether any of the names means something else, or nothing, for an image in another folder."""
    if not references:
        return False
    here, there = located(references, "/here/volume"), located(references, "/there/volume")
    return [one.location for one in here] != [one.location for one in there]


def _located(reference: Reference, volume_path: str) -> list[Reference]:
    name = reference.name
    if (
        reference.kind is ReferenceKind.BACKING
        and ":" not in name
        and volume_path.startswith("/")
        and name.isprintable()
        and reference.doubt != ENCODED
        and not is_folders(name)
    ):
        # a shortcut for the most common case
        location = beside(name, volume_path)
        if location is not None and len(name) <= LONGEST_NAME:
            return [Reference(reference.kind, name, reference.format, location, reference.doubt)]
    if len(name) > LONGEST_NAME:
        places = [Found(None, reference.format, _NO_NAME)]
    elif reference.doubt == ENCODED:
        decoded = Reference(reference.kind, unquote(name, errors="surrogateescape"), reference.format)
        places = _places(decoded, volume_path)
    elif is_speakable(name):
        places = _places(reference, volume_path)
    else:
        places = [Found(None, reference.format, _NO_NAME)]
    doubt = reference.doubt
    return [
        Reference(reference.kind, name, place.format, _as_text(place.location), doubt or place.doubt)
        for place in places
    ]


def _places(reference: Reference, volume_path: str) -> list[Found]:
    name, format = reference.name, reference.format
    if reference.kind is ReferenceKind.BACKING:
        return _backing(reference, volume_path)
    if reference.kind is ReferenceKind.DATA:
        return _data(reference, volume_path)
    if reference.kind is ReferenceKind.EXTENT:
        return [_plain(name, volume_path, format)]
    return [_parent(name, volume_path, format)]


def _as_text(location: str | None) -> str | None:
    if location is None or is_speakable(location):
        return location
    return on_record(location) if location.startswith("/") else None


def _plain(name: str, volume_path: str, format: str | None) -> Found:
    """Locate a name that QEMU appends to the image's folder, unless it begins with a slash."""
    doubt = None
    if is_url(volume_path) and not name.startswith("/") and not URL_PARTS.isdisjoint(name):
        doubt = "has a name that QEMU would read as a part of a URL"
    if is_folders(name):
        doubt = AS_FOLDER
    location = beside(name, volume_path)
    return Found(location, format, _NO_NAME if location is None else doubt)


def _backing(reference: Reference, volume_path: str) -> list[Found]:
    name, format = reference.name, reference.format
    if not has_protocol(name):
        return [_plain(name, volume_path, format)]
    protocol, _, rest = name.partition(":")
    if protocol == "json":
        return read_node(rest, format)
    if protocol == "file" or protocol in _DEVICES:
        # QEMU knows no file://host/: what follows "file:" is the path, whatever it begins with
        return [_here(rest, format, protocol)]
    if protocol in NETWORK:
        return [Found(name, format, None)]
    if protocol in _LAYERS:
        return _layers(protocol, rest, format)
    return [
        Found(None, format, f"is named with {protocol[:40] + ':'!r}, which QEMU takes for a protocol and does not know")
    ]


def _here(name: str, format: str | None, driver: str | None = None) -> Found:
    """Locate a name that QEMU passes to the kernel unchanged.

    :param driver: the driver that QEMU is told to use; None if it chooses by the kind of the file.
    """
    location = absolute(name)
    return Found(location, format, FROM_HERE if location is None else misfit(name, driver))


def _layers(protocol: str, rest: str, format: str | None) -> list[Found]:
    doubt = f"is read through QEMU's driver {_LAYERS[protocol]!r}"
    places = dict.fromkeys(absolute(part) for part in rest.split(":", _MOST_PARTS))
    return [Found(place, format, doubt) for place in places if place is not None] or [Found(None, format, doubt)]


def _data(reference: Reference, volume_path: str) -> list[Found]:
    """Locate an external data file. QEMU 7.2.22 opens it by its bare name; older ones treat it like a backing file's."""
    name = reference.name
    if not has_protocol(name) or name.startswith("/"):
        return [_here(name, reference.format)]
    doubt = "has a name with a protocol, which one QEMU reads and another does not"
    return [Found(place.location, place.format, doubt) for place in _backing(reference, volume_path)]


def _parent(name: str, volume_path: str, format: str | None) -> Found:
    """Locate a parent that is named in another system's words."""
    name = name.removeprefix(".\\")
    return Found(None if "\\" in name or name.startswith("(") else beside(name, volume_path), format, None)
