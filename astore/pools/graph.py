"""The graph of images over all active pools: chains, layers and dependents.

Its nodes are volumes, its edges the references in their headers. The last refresh resolved the references, as the kernel or
the storage does (:mod:`astore.places`). Device and inode identify a file, however its path is spelled; the path does only if
those are unknown. The backends of the pools tell which volume a URL means. Nothing here waits.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple
from urllib.parse import unquote

from astore.errors import StorageError, printable
from astore.images import formats
from astore.images.references import are_relative
from astore.model import Place, Reference, ReferenceKind, VolumeInfo, VolumeType
from astore.places import beneath
from astore.pools.naming import volume_named
from astore.pools.parts import Member, Parts

DEEPEST = 200
"""The most images in a chain (libvirt's limit)."""

READ_THROUGH = (ReferenceKind.BACKING, ReferenceKind.PARENT)


class Link(NamedTuple):
    """A file that an image is made of; its fields are those of :class:`astore.ChainLink`."""

    path: str
    format: str | None = None
    volume: Member | None = None
    kind: ReferenceKind | None = None
    doubt: str | None = None


class Layer(NamedTuple):
    """A volume of a chain, and the format in which the image above reads it."""

    volume: Member
    format: str | None


def chain(volume: Member, pools: Sequence[Parts], *, of_snapshots: bool = True) -> tuple[Link, ...]:
    """Return the files that a volume is made of, from the top down, itself first.

    An image's data file and extents follow it, then its backing file. The chain ends with an image that has no backing
    file, that no active pool has, or that is not read in its own format.

    :param of_snapshots: the chain goes on where the storage itself reads through a snapshot, as in a clone.
    :raises VolumeNotFoundError: the volume is gone. StorageError: ELOOP: the chain loops, or is deeper than 200.
    """
    info = volume.info
    links = [Link(info.path, info.format, volume)]
    seen = {(volume.pool.name, volume.name)}
    here: Member | None = volume
    images = 1
    while here is not None:
        info = here.info
        links += [_link(one, pools) for one in info.references if one.kind not in READ_THROUGH]
        read_through = [one for one in info.references if one.kind in READ_THROUGH]
        below = [_link(one, pools) for one in read_through if of_snapshots or one.snapshot is None]
        links += below
        here = None
        if not below or below[0].volume is None or below[0].doubt is not None:
            continue
        top = below[0].volume
        if formats.driver_of(below[0].format) != formats.driver_of(top.info.format):
            continue  # it is read in another format, such as raw: nothing is below it
        if (top.pool.name, top.name) in seen or top.info.identity in {info.identity, volume.info.identity} - {None}:
            path = below[0].path
            raise StorageError(f"the backing chain of volume {volume.name!r} loops at {path}", errno=errno.ELOOP)
        images += 1
        if images > DEEPEST:
            raise StorageError(
                f"the backing chain of volume {volume.name!r} is deeper than {DEEPEST}", errno=errno.ELOOP
            )
        seen.add((top.pool.name, top.name))
        here = top
    return tuple(links)


def _link(reference: Reference, pools: Sequence[Parts]) -> Link:
    """Return the link that a reference makes."""
    found = volume_at(reference, pools)
    path = reference.location or reference.name
    if found is None:
        return Link(path, reference.format, None, reference.kind, reference.doubt)
    info = found.info
    path = info.path
    format, doubt = reference.format, reference.doubt
    if format is None:
        format = info.format
        if doubt is None and info.header_format is not None:
            doubt = f"was made raw and looks like {info.header_format}, and the image above does not say which it is"
    elif doubt is None and not formats.is_raw(format) and formats.driver_of(format) != formats.driver_of(info.format):
        doubt = f"is {info.format}, and the image above says that it is {printable(format)}"
    if doubt is None and formats.driver_of(format) == formats.driver_of(info.format) and not _at_home(reference, found):
        doubt = "is named in another folder than its own, from where the relative names in its header lead elsewhere"
    return Link(path, format, found, reference.kind, doubt)


def _at_home(reference: Reference, volume: Member) -> bool:
    """Return whether a volume's references mean the same files if QEMU opens it by this reference.

    QEMU resolves relative names against the folder of the name that it was given, which may be a link in another folder.
    """
    references, place, folder = volume.info.references, reference.place, volume.pool.snapshot.folder
    if place is None or folder is None or not are_relative(references):
        return True
    if place.beside is not None and folder.identity is not None:
        return place.beside == folder.identity
    return place.path.rpartition("/")[0] == folder.path


def layers(volume: Member, pools: Sequence[Parts]) -> list[Layer]:
    """Return the volumes of which an image is read, from the top down, if all are volumes of active pools without a doubt.

    Headers are untrusted: a guest or a local user may have written them.

    :raises StorageError: EPERM: the image needs another file, or a header is doubtful.
    """
    found: list[Layer] = []
    for link in chain(volume, pools, of_snapshots=False):
        what = f"volume {volume.name!r} needs {printable(link.path)}, which"
        why = link.doubt
        if why is None and link.volume is None:
            why = "is no volume of an active pool"
        if why is None and link.kind in (ReferenceKind.DATA, ReferenceKind.EXTENT):
            why = f"has data of {found[-1].volume.name!r}: images in several files are not read"
        if why is not None or link.volume is None:
            raise StorageError(f"{what} {why}", errno=errno.EPERM, pool=volume.pool.name)
        found.append(Layer(link.volume, link.format))
    return found


def volume_at(reference: Reference, pools: Sequence[Parts]) -> Member | None:
    """Return the volume of an active pool that a reference leads to, or None."""
    location, place = reference.location, reference.place
    if location is None:
        return None
    if place is not None:
        name = place.path.rpartition("/")[2]
        for pool in pools:  # most volumes are named by the last part of their path: then no walk through all is needed
            info = pool.snapshot.get(name)
            if info is not None and _is_at(place, info, pool):
                return Member(pool, name)
        if place.identity is not None:
            for pool in pools:
                for info in pool.snapshot.volumes:
                    if info.identity == place.identity:
                        return Member(pool, info.name)
        if place.path.startswith("/"):
            return None  # the kernel resolved it: it leads to no volume, whatever its text looks like
    for pool in pools:
        info = _called(location, pool)
        if info is not None:
            return Member(pool, info.name)
    return None


def _is_at(place: Place, info: VolumeInfo, pool: Parts) -> bool:
    """Return whether a place is a volume's: the same file, or the same path."""
    if place.identity is not None and place.identity == info.identity:
        return True
    return place.path == _path_of(info, pool)


def _path_of(info: VolumeInfo, pool: Parts) -> str:
    """Return the canonical path of a volume, by the place of its pool's folder."""
    folder = pool.snapshot.folder
    return info.path if folder is None else beneath(folder.path, info.name)


def _called(location: str, pool: Parts) -> VolumeInfo | None:
    """Return the volume of a pool that a path or URL means by its text, or None."""
    snapshot = pool.snapshot
    info = snapshot.get(unquote(location.partition("?")[0].rpartition("/")[2], errors="surrogateescape"))
    if info is not None and location in (info.path, info.key):
        return info
    name = volume_named(pool, location)
    return None if name is None else snapshot.get(name)


def _leads_to(reference: Reference, info: VolumeInfo, pool: Parts, pools: Sequence[Parts]) -> bool:
    """Return whether a reference may lead to a volume: by its place, or by its text."""
    if reference.place is not None:
        if _is_at(reference.place, info, pool):
            return True
        if reference.place.identity is None and info.identity is not None:  # a pool may know the file at that path
            found = volume_at(reference, pools)
            if found is not None and found.info.identity == info.identity:
                return True
    location = reference.location
    return location is not None and (location in (info.path, info.key) or volume_named(pool, location) == info.name)


def _leads_through(place: Place | None, info: VolumeInfo, pool: Parts) -> bool:
    """Return whether a place is this directory, or lies below it."""
    if place is None:
        return False
    if info.identity is not None and (info.identity == place.identity or info.identity in place.through):
        return True
    path = _path_of(info, pool)
    return place.path == path or place.path.startswith(path + "/")


def dependents(info: VolumeInfo, pool: Parts, pools: Sequence[Parts], *, of_snapshots: bool = True) -> list[Member]:
    """Return the volumes whose headers name this one, as their backing file or as a file with their data.

    For a directory, return the volumes whose headers name a file below it.

    :param of_snapshots: among them those that only read snapshots of the volume.
    """
    directory = info.type in (VolumeType.DIR, VolumeType.NETDIR)
    found: list[Member] = []
    for other in pools:
        for one in other.snapshot.referring:
            if other is pool and one.name == info.name:
                continue
            if any(
                _leads_through(reference.place, info, pool) if directory else _leads_to(reference, info, pool, pools)
                for reference in one.references
                if of_snapshots or reference.snapshot is None
            ):
                found.append(Member(other, one.name))
    return found


def pools_behind(info: VolumeInfo, pool: Parts, pools: Iterable[Parts]) -> Iterator[Parts]:
    """Yield the active pools whose folder is this directory, or lies below it."""
    if info.type in (VolumeType.DIR, VolumeType.NETDIR):
        for other in pools:
            if other is not pool and other.active and _leads_through(_folder_of(other), info, pool):
                yield other


def _folder_of(pool: Parts) -> Place | None:
    """Return the place of a pool's folder, as far as it is known."""
    folder, path = pool.snapshot.folder, pool.definition.target.path
    return Place(path) if folder is None and path is not None else folder
