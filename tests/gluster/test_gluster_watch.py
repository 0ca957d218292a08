"""Gluster pools are told of changes by the volume's bricks, or say what would make them told."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import itertools
import os
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from watching_support import same, until, watched

import astore
from astore.backend import Context
from astore.model import Snapshot
from astore_gluster import libgfapi
from astore_gluster.backend import GlusterBackend
from astore_gluster.libgfapi import failure
from astore_gluster.servers import Server
from astore_gluster.volume import told as told_module
from astore_gluster.volume import upcalls
from astore_gluster.volume.connection import CONNECTIONS, Connection, ConnectionCache, Key
from astore_gluster.volume.options import BrickOptions, OptionsError, ask_options

if TYPE_CHECKING:
    from beds.gluster import GlusterBed

pytestmark = [pytest.mark.root, pytest.mark.gluster]

ON: dict[str, str | int] = {"features.cache-invalidation": "on", "features.cache-invalidation-timeout": 60}
_numbers = itertools.count(1)

SOON = 5.0
"""Seconds in which a change is seen here that the bricks tell of; the next listing is ten seconds later at least."""


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
        from gluster.gfapi import api

        function = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_char_p)(
            ("glfs_symlink", api.client)
        )
        self._check(function(self.connection.fs, target.encode(), path.encode()))


def xml(bed: GlusterBed, volume: str, directory: str, name: str = "images") -> str:
    return (
        f"<pool type='gluster'><name>{name}</name><source><host name='{bed.host}'/>"
        f"<dir path='{directory}'/><name>{volume}</name></source></pool>"
    )


@pytest.fixture(scope="module")
def others() -> Iterator[ConnectionCache]:
    """The connections of other clients."""
    cache = ConnectionCache()
    yield cache
    cache.close_idle()


@pytest.fixture(scope="module")
def told_volume(gluster: GlusterBed) -> Iterator[str]:
    """A volume of two bricks that tell of changes."""
    gluster.create_volume("told", bricks=2, options=ON)
    yield "told"
    CONNECTIONS.close_idle()
    gluster.delete_volume("told")


@pytest.fixture
def other_of(gluster: GlusterBed, others: ConnectionCache) -> Iterator[Callable[[str], OtherClient]]:
    """Makes other clients of a volume; each has two empty folders."""
    made: list[Connection] = []

    def make(volume: str) -> OtherClient:
        made.append(others.acquire(Key(volume, (Server("tcp", gluster.host, 24007),))))
        client = OtherClient(made[-1])
        for folder in (client.images, client.elsewhere):
            client.do("mkdir", folder, 0o755)
        return client

    yield make
    for connection in made:
        connection.drop()


@pytest.fixture
def other(other_of: Callable[[str], OtherClient], told_volume: str) -> OtherClient:
    """Another client of the volume that tells."""
    return other_of(told_volume)


@pytest.fixture
async def manager(tmp_path: Path) -> AsyncIterator[astore.Manager]:
    async with astore.Manager(tmp_path / "state") as manager:
        yield manager


async def true_volumes(
    bed: GlusterBed, volume: str, directory: str, cache: ConnectionCache, context: Context
) -> dict[str, astore.VolumeInfo]:
    """Return what a full refresh on another connection finds."""
    backend = GlusterBackend(cache)
    session = await backend.open(backend.check(astore.PoolDef.from_xml(xml(bed, volume, directory))), context)
    found = dict((await session.refresh(Snapshot.EMPTY, full=True)).by_name)
    await session.aclose()
    return found


async def soon(condition: Callable[[], object], what: str) -> float:
    """Wait until something holds, which the bricks tell of; return after how many seconds."""
    began = time.monotonic()
    async with asyncio.timeout(SOON):
        await until(condition, what)
    return time.monotonic() - began


def qcow2(size: int) -> bytes:
    header = bytearray(4096)
    header[:8] = b"QFI\xfb\0\0\0\x03"
    header[20:24] = (16).to_bytes(4)
    header[24:32] = size.to_bytes(8)
    header[96:104] = (4).to_bytes(4) + (104).to_bytes(4)
    return bytes(header)


def _replace(o: OtherClient) -> None:
    o.write(f"{o.images}/.tmp", b"longer")
    o.do("rename", f"{o.images}/.tmp", f"{o.images}/old")


def _remake(o: OtherClient) -> None:
    o.do("unlink", f"{o.images}/old")
    o.write(f"{o.images}/old", b"another")


CHANGES: dict[str, Callable[[OtherClient], object]] = {
    "make": lambda o: o.write(f"{o.images}/new", b"x"),
    "make qcow2": lambda o: o.write(f"{o.images}/new", qcow2(1 << 30)),
    "grow": lambda o: o.truncate(f"{o.images}/old", 1 << 20),
    "truncate": lambda o: o.truncate(f"{o.images}/old", 0),
    "write within": lambda o: o.write(f"{o.images}/old", b"y" * 10, 100),
    "append": lambda o: o.write(f"{o.images}/old", b"y" * 10, 8192),
    "becomes qcow2": lambda o: o.write(f"{o.images}/old", qcow2(2 << 30)),
    "fallocate": lambda o: o.fallocate(f"{o.images}/old", 0, 1 << 20),
    "chmod": lambda o: o.do("chmod", f"{o.images}/old", 0o600),
    "chown": lambda o: o.do("chown", f"{o.images}/old", 12, 34),
    "rename": lambda o: o.do("rename", f"{o.images}/old", f"{o.images}/new"),
    "rename over": lambda o: o.do("rename", f"{o.images}/other", f"{o.images}/old"),
    "replace": _replace,
    "replaced from elsewhere": lambda o: o.do("rename", f"{o.elsewhere}/outside", f"{o.images}/old"),
    "delete": lambda o: o.do("unlink", f"{o.images}/old"),
    "delete and make": _remake,
    "link": lambda o: o.do("link", f"{o.images}/old", f"{o.images}/new"),
    "symlink": lambda o: o.symlink("old", f"{o.images}/new"),
    "mkdir": lambda o: o.do("mkdir", f"{o.images}/new", 0o755),
    "rename out": lambda o: o.do("rename", f"{o.images}/old", f"{o.elsewhere}/old"),
}


@pytest.mark.parametrize("change", CHANGES)
async def test_every_kind_of_change(
    gluster: GlusterBed,
    told_volume: str,
    other: OtherClient,
    others: ConnectionCache,
    manager: astore.Manager,
    context: Context,
    change: str,
) -> None:
    """What another client does is seen soon, and the snapshot becomes what a full refresh finds."""
    await asyncio.to_thread(other.write, f"{other.images}/old", b"x" * 8192)
    await asyncio.to_thread(other.write, f"{other.images}/other", b"1")
    await asyncio.to_thread(other.write, f"{other.elsewhere}/outside", b"longer")
    pool = await manager.create(xml(gluster, told_volume, other.images))
    async with manager.watch():
        await watched(pool, "upcalls")
        await until(lambda: len(pool.volumes) == 2, "the files of before")
        await asyncio.to_thread(CHANGES[change], other)
        true = await true_volumes(gluster, told_volume, other.images, others, context)
        took = await soon(lambda: same(pool.snapshot, true), f"{change}: {list(true)}")
        print(f"{change}: {took:.3f} s")
    await pool.stop()
