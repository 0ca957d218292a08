"""Which volume a backing file's name means, and what a volume is backed by, down to the bottom."""

from __future__ import annotations

import contextlib
import errno
import posixpath
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING
from urllib.parse import unquote

import msgspec

from astore.errors import StorageError, VolumeNotFoundError
from astore.images import ImageError
from astore.images.backing import parse_gluster_uri, resolve_backing
from astore.model import VolumeInfo

if TYPE_CHECKING:
    from astore.catalogue import Catalogue
    from astore.pool_view import PoolView
    from astore.volume import Volume

DEEPEST = 200
"""libvirt's limit for the length of a chain."""


class ChainLink(msgspec.Struct, frozen=True):
    """One image of a backing chain, the volume itself first.

    ``path`` is an absolute path or a URL, or the name as the header has it where nobody can tell what it means; ``format`` is
    that of the volume, or what the image above says; ``volume`` is None where no active pool has it.
    """

    path: str
    format: str | None = None
    volume: Volume | None = None


def backing_chain(volume: Volume, catalogue: Catalogue) -> tuple[ChainLink, ...]:
    """The images that a volume is made of, from the top down, as the last snapshots of all active pools know them.

    The chain ends with an image that has no backing file, or with the first one that no active pool has.

    :raises VolumeNotFoundError: the volume is not there. StorageError: ELOOP: the chain loops, or is deeper than 200.
    """
    links = [ChainLink(volume.info.path, volume.info.format, volume)]
    seen = {volume.info.key}
    here = volume
    while (backing := here.info.backing) is not None:
        info = here.info
        path = _plain(info.backing_path or backing)
        try:
            below: Volume | None = catalogue.volume_by_path(path)
        except VolumeNotFoundError:
            below = _by_location(path, catalogue)
        links.append(ChainLink(path, below.info.format if below is not None else info.backing_format, below))
        if below is None:
            break
        if below.info.key in seen:
            raise StorageError(f"the backing chain of volume {volume.name!r} loops at {path}", errno=errno.ELOOP)
        if len(links) > DEEPEST:
            raise StorageError(
                f"the backing chain of volume {volume.name!r} is deeper than {DEEPEST}", errno=errno.ELOOP
            )
        seen.add(below.info.key)
        here = below
    return tuple(links)


def _by_location(path: str, catalogue: Catalogue) -> Volume | None:
    """The volume of a Gluster pool that a URL with another of the pool's hosts means."""
    if not path.startswith("gluster"):
        return None
    from astore.volume import Volume

    name = unquote(path.partition("?")[0].rpartition("/")[2])
    for pool in catalogue.pools(active=True):
        info = pool.snapshot.get(name)
        if info is not None and same_volume(info, pool)(path):
            return Volume(pool, info.name)
    return None


def _plain(path: str) -> str:
    """An absolute path without detours by ``.`` and ``..``; URLs and other names as they are."""
    return posixpath.normpath(path) if path.startswith("/") and not path.startswith("//") else path


def files_of(info: VolumeInfo) -> Iterator[str]:
    """What a volume needs beside itself, resolved: its backing file, and the file that has its data."""
    if info.backing_path is not None:
        yield info.backing_path
    if info.data_file is not None:
        with contextlib.suppress(ImageError):
            found = resolve_backing(info.data_file, info.key)
            if found is not None:
                yield found


def same_volume(info: VolumeInfo, pool: PoolView) -> Callable[[str], bool]:
    """A function that says whether a resolved backing path means this volume.

    On Gluster whatever host of the pool's a URL names: all of them serve the same volume.
    """
    key, path = info.key, info.path
    if not key.startswith("gluster"):
        return lambda other: other == path or _plain(other) == path
    mine = _location(key)
    hosts = {host.name.strip("[]") for host in pool.definition.source.hosts}

    def same(other: str) -> bool:
        if other == key:
            return True
        if mine is None or not other.startswith("gluster"):
            return False
        theirs = _location(other)
        return theirs is not None and theirs[1:] == mine[1:] and theirs[0] in hosts

    return same


def _location(uri: str) -> tuple[str, str, str] | None:
    """Host or socket, volume, and path in it."""
    try:
        found = parse_gluster_uri(uri)
    except ImageError:
        return None
    return found.socket or found.host or "", found.volume, "/".join(part for part in found.path.split("/") if part)
