"""For tests of a watched Gluster pool: other clients of its volume, and an oracle."""

from __future__ import annotations

import ctypes
import itertools
import os
import threading
from typing import TYPE_CHECKING

from core_fakes import eventually
from watching_support import same

import astore
from astore.backend import Context
from astore.model import Snapshot
from astore_gluster.backend import GlusterBackend
from astore_gluster.libgfapi import failure
from astore_gluster.volume.connection import Connection, ConnectionCache

if TYPE_CHECKING:
    from beds.gluster import GlusterBed

ON: dict[str, str | int] = {"features.cache-invalidation": "on", "features.cache-invalidation-timeout": 1200}
_numbers = itertools.count(1)


class OtherClient:
    """Another client of a volume: a connection of its own, which does its work by paths.

    :ivar images: a fresh folder. :ivar elsewhere: another one.
    """

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        number = next(_numbers)
        self.images, self.elsewhere = f"/images{number}", f"/elsewhere{number}"
        self._gfapi = connection.gfapi

    def _check(self, result: int | None) -> int:
        if result is None or result < 0:
            raise failure()
        return result

    def write(self, path: str, data: bytes, offset: int = 0) -> None:
        """Write into a file, which is made if it is missing."""
        fs, gfapi = self.connection.fs, self._gfapi
        fd = gfapi.open(fs, path.encode(), os.O_RDWR) or gfapi.creat(fs, path.encode(), os.O_RDWR, 0o644)
        assert fd is not None
        self._check(gfapi.pwrite(fd, data, len(data), offset, 0, None, None))
        self._check(gfapi.close(fd))

    def truncate(self, path: str, size: int) -> None:
        fd = self._gfapi.open(self.connection.fs, path.encode(), os.O_RDWR)
        assert fd is not None
        self._check(self._gfapi.ftruncate(fd, size, None, None))
        self._check(self._gfapi.close(fd))

    def fallocate(self, path: str, offset: int, length: int) -> None:
        fd = self._gfapi.open(self.connection.fs, path.encode(), os.O_RDWR)
        assert fd is not None
        self._check(self._gfapi.fallocate(fd, 0, offset, length))
        self._check(self._gfapi.close(fd))

    def do(self, what: str, *arguments: str | int) -> None:
        """Call a function of libgfapi that takes paths: ``do("rename", "/a", "/b")``."""
        raw = [one.encode() if isinstance(one, str) else one for one in arguments]
        self._check(getattr(self._gfapi, what)(self.connection.fs, *raw))

    def symlink(self, target: str, path: str) -> None:
        """Make a symbolic link. (The backend makes none, and does not declare the function.)"""
        library = ctypes.CDLL("libgfapi.so.0", use_errno=True)
        function = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_char_p)(
            ("glfs_symlink", library)
        )
        self._check(function(self.connection.fs, target.encode(), path.encode()))


def xml(bed: GlusterBed, volume: str, directory: str, name: str = "images") -> str:
    return (
        f"<pool type='gluster'><name>{name}</name><source><host name='{bed.host}'/>"
        f"<dir path='{directory}'/><name>{volume}</name></source></pool>"
    )


async def true_volumes(
    bed: GlusterBed, volume: str, directory: str, cache: ConnectionCache, context: Context
) -> dict[str, astore.VolumeInfo]:
    """Return what a full refresh on another connection finds."""
    backend = GlusterBackend(cache)
    session = await backend.open(backend.check(astore.PoolDef.from_xml(xml(bed, volume, directory))), context)
    found = dict((await session.refresh(Snapshot.EMPTY, full=True)).by_name)
    await session.aclose()
    return found


def half_lost(bed: GlusterBed, volume: str, directory: str) -> set[str]:
    """Return the names of files that a brick has without their handle, a second link in its folder ``.glusterfs``.

    Glusterfs 10.3 leaves such files when a file is removed or renamed on several bricks while another client looks it up:
    clients that have seen the file before list it, others do not. There is no one truth about it.
    """
    lost = set()
    for index in range(len(bed.brick_pids(volume))):
        folder = bed.brick(volume, index) / directory.lstrip("/")
        with os.scandir(folder) as entries:
            lost |= {entry.name for entry in entries if entry.is_file() and entry.stat().st_nlink == 1}
    return lost


async def sees_the_truth(
    pool: astore.Pool, bed: GlusterBed, volume: str, directory: str, cache: ConnectionCache, context: Context
) -> dict[str, astore.VolumeInfo]:
    """Wait until a watched pool has what a full refresh on another connection finds now, and return that."""
    true = await true_volumes(bed, volume, directory, cache, context)
    lost = half_lost(bed, volume, directory)
    await eventually(lambda: same(pool.snapshot, true, lost), lambda: f"{true} (there is {pool.snapshot.by_name})")
    return true


def pollers() -> int:
    """Return how many threads take notices from libgfapi."""
    return sum(thread.name == "astore-gluster-upcalls" for thread in threading.enumerate())
