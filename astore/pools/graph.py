"""What images are made of, over all active pools: one graph, which everybody asks.

Its nodes are volumes, its edges the references in their headers. The last refresh resolved where a reference leads, as the
kernel or the storage does (:mod:`astore.places`). A file is known by its device and inode, however its path is spelled, and by
its path only where those cannot be told. Nothing here waits.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple
from urllib.parse import unquote

from astore.errors import StorageError, printable
from astore.images import ImageError, formats
from astore.images.gluster import parse_gluster_uri
from astore.images.references import are_relative
from astore.model import Place, Reference, ReferenceKind, VolumeInfo, VolumeType
from astore.places import beneath
from astore.pools.parts import Member, Parts

DEEPEST = 200
"""libvirt's limit for the length of a chain."""

READ_THROUGH = (ReferenceKind.BACKING, ReferenceKind.PARENT)


class Link(NamedTuple):
    """A file that an image is made of, the image itself first.

    :ivar path: an absolute path or a URL, or the name as the header has it where nobody can tell what it means.
    :ivar format: the format in which it is read: what the image above says, or else that of the volume.
    :ivar volume: None where no active pool has it. :ivar kind: what the image above uses it for; None of the first.
    :ivar doubt: why astore reads nothing through it, in words that follow what it is called.
    """

    path: str
    format: str | None = None
    volume: Member | None = None
    kind: ReferenceKind | None = None
    doubt: str | None = None


class Layer(NamedTuple):
    """A volume of a chain, and the format in which the one above has it read."""

    volume: Member
    format: str | None


def chain(volume: Member, pools: Sequence[Parts]) -> tuple[Link, ...]:
    """The files that a volume is made of, from the top down.

    An image's data file and extents follow it, then what it is backed by. The chain ends with an image that is backed by
    nothing, with one that no active pool has, or with one that is not read as it stands.

    :raises VolumeNotFoundError: the volume is not there. StorageError: ELOOP: the chain loops, or is deeper than 200.
    """
    info = volume.info
    links = [Link(info.path, info.format, volume)]
    seen = {(volume.pool.name, volume.name)}
    here: Member | None = volume
    images = 1
    while here is not None:
        info = here.info
        links += [_link(one, pools) for one in info.references if one.kind not in READ_THROUGH]
        below = [_link(one, pools) for one in info.references if one.kind in READ_THROUGH]
        links += below
        here = None
        if not below or below[0].volume is None or below[0].doubt is not None:
            continue
        top = below[0].volume
        if formats.driver_of(below[0].format) != formats.driver_of(top.info.format):
            continue  # read raw, whatever it is: then nothing is below it
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
    """Describe what a reference leads to."""
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
    """Whether a volume's references lead where they lead for somebody who opens it by this reference.

    QEMU puts relative names behind the folder of the name that it was given, which may be a link in another folder.
    """
    references, place, folder = volume.info.references, reference.place, volume.pool.snapshot.folder
    if place is None or folder is None or not are_relative(references):
        return True
    if place.beside is not None and folder.identity is not None:
        return place.beside == folder.identity
    return place.path.rpartition("/")[0] == folder.path


def layers(volume: Member, pools: Sequence[Parts]) -> list[Layer]:
    """The volumes of which an image is read, from the top down: volumes of active pools, all of them, and without a doubt.

    Headers are written by whoever may write to the pool, a guest or a local user.

    :raises StorageError: EPERM: it needs something else, or what its header says cannot be told, in words.
    """
    found: list[Layer] = []
    for link in chain(volume, pools):
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
    """The volume of an active pool that a reference leads to."""
    location, place = reference.location, reference.place
    if location is None:
        return None
    if place is not None:
        name = place.path.rpartition("/")[2]
        for pool in pools:  # most have the last part of their path as their name, so that few need a walk through all
            info = pool.snapshot.get(name)
            if info is not None and _is_at(place, info, pool):
                return Member(pool, name)
        if place.identity is not None:
            for pool in pools:
                for info in pool.volumes:
                    if info.identity == place.identity:
                        return Member(pool, info.name)
        if place.path.startswith("/"):
            return None  # the kernel knows where it leads: to no volume, whatever the name looks like
    name = unquote(location.partition("?")[0].rpartition("/")[2], errors="surrogateescape")
    for pool in pools:
        info = pool.snapshot.get(name)
        if info is not None and _is_called(location, info, pool):
            return Member(pool, name)
    return None


def _is_at(place: Place, info: VolumeInfo, pool: Parts) -> bool:
    """Whether a place is that of a volume: the same file, or the same path where that is all that is known."""
    if place.identity is not None and place.identity == info.identity:
        return True
    return place.path == _path_of(info, pool)


def _path_of(info: VolumeInfo, pool: Parts) -> str:
    """The path of a volume, by where its pool's folder really is."""
    folder = pool.snapshot.folder
    return info.path if folder is None else beneath(folder.path, info.name)


def _is_called(location: str, info: VolumeInfo, pool: Parts) -> bool:
    """Whether a path or URL means a volume by its text: on Gluster whichever of the pool's hosts it names."""
    if location in (info.path, info.key):
        return True
    if not info.key.startswith("gluster") or not location.startswith("gluster"):
        return False
    mine, theirs = _gluster(info.key), _gluster(location)
    hosts = {host.name.strip("[]") for host in pool.definition.source.hosts}
    return mine is not None and theirs is not None and theirs[1:] == mine[1:] and theirs[0] in hosts


def _gluster(uri: str) -> tuple[str, str, str] | None:
    """Host or socket, volume, and path in it."""
    try:
        found = parse_gluster_uri(uri)
    except ImageError:
        return None
    return found.socket or found.host or "", found.volume, "/".join(part for part in found.path.split("/") if part)


def _leads_to(reference: Reference, info: VolumeInfo, pool: Parts, pools: Sequence[Parts]) -> bool:
    """Whether a reference may lead to a volume: as it is now, or by its text."""
    if reference.place is not None:
        if _is_at(reference.place, info, pool):
            return True
        if reference.place.identity is None and info.identity is not None:  # a pool may know what file is there
            found = volume_at(reference, pools)
            if found is not None and found.info.identity == info.identity:
                return True
    return reference.location is not None and _is_called(reference.location, info, pool)


def _leads_through(place: Place | None, info: VolumeInfo, pool: Parts) -> bool:
    """Whether a place is a directory, or lies behind it."""
    if place is None:
        return False
    if info.identity is not None and (info.identity == place.identity or info.identity in place.through):
        return True
    path = _path_of(info, pool)
    return place.path == path or place.path.startswith(path + "/")


def dependents(info: VolumeInfo, pool: Parts, pools: Sequence[Parts]) -> list[Member]:
    """The volumes whose headers name this one: as what backs them, or as a file with data of theirs.

    Of a directory, those whose files lie behind it.
    """
    directory = info.type in (VolumeType.DIR, VolumeType.NETDIR)
    found: list[Member] = []
    for other in pools:
        for one in other.snapshot.referring:
            if other is pool and one.name == info.name:
                continue
            for reference in one.references:
                if (
                    _leads_through(reference.place, info, pool)
                    if directory
                    else _leads_to(reference, info, pool, pools)
                ):
                    found.append(Member(other, one.name))
                    break
    return found


def pools_behind(info: VolumeInfo, pool: Parts, pools: Iterable[Parts]) -> Iterator[Parts]:
    """The active pools whose folder is this directory, or lies behind it."""
    if info.type in (VolumeType.DIR, VolumeType.NETDIR):
        for other in pools:
            if other is not pool and other.active and _leads_through(_folder_of(other), info, pool):
                yield other


def _folder_of(pool: Parts) -> Place | None:
    """Where a pool's folder is, as far as is known."""
    folder, path = pool.snapshot.folder, pool.definition.target.path
    return Place(path) if folder is None and path is not None else folder
