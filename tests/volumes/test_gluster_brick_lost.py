"""A brick, or a FUSE client, that dies or hangs in the midst of work: errors soon, nothing left, nothing else damaged."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import itertools
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest
from core_fakes import eventually
from volumes.real_servers import (
    MIB,
    PATIENCE,
    come_to_rest,
    gluster_pool,
    names_on,
    netfs_pool,
    volume_in_memory,
)

from astore.errors import PoolInaccessibleError, StorageError, TransferError
from astore.manager import Manager
from astore.model import VolumeDef
from astore.pools.pool import Pool
from astore.volume_io.volume_names import TEMPORARY
from beds import fuse

if TYPE_CHECKING:
    from beds.gluster import GlusterBed

pytestmark = [pytest.mark.root, pytest.mark.gluster]

OLD = os.urandom(32 * MIB)
"""What is in the volume that is read and copied."""

LOST = (errno.ENOTCONN, errno.ECONNABORTED, errno.EBADFD)
"""What storage says that is not there any more; the last, of files that were open, through FUSE."""

Act = Callable[[], object]


class Losable(NamedTuple):
    """A volume, and its brick."""

    name: str
    brick: Path


_numbers = itertools.count(1)


@pytest.fixture
def losable(gluster: GlusterBed) -> Iterator[Losable]:
    """A volume whose clients wait for its brick for 5 to 10 s: a busy machine makes them wait for a while, too."""
    name = f"lost{next(_numbers)}"
    with volume_in_memory(gluster, name, 512, {"network.ping-timeout": 5}) as brick:
        yield Losable(name, brick)


@pytest.fixture
async def manager(tmp_path: Path) -> AsyncIterator[Manager]:
    """A Manager with the installed backends."""
    async with Manager(tmp_path / "state") as manager:
        yield manager


class Work:
    """All kinds of work on the volumes of one pool, each again and again until it fails."""

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self.rounds = dict.fromkeys(("create", "copy", "upload", "wipe", "download"), 0)
        self._going = asyncio.Event()
        self._going.set()
        self._held = 0
        self._wiped = 0.0
        self._tasks = {
            name: asyncio.ensure_future(self._again(name, getattr(self, f"_{name}"))) for name in self.rounds
        }

    async def _again(self, name: str, work: Callable[[int], Awaitable[object]]) -> StorageError:
        for number in itertools.count():
            try:
                await work(number)
            except StorageError as error:
                return error
            self.rounds[name] += 1
        raise AssertionError

    async def _create(self, number: int) -> None:
        disk = await self.pool.create_volume(VolumeDef(f"new{number}", capacity=MIB, allocation=MIB))
        if number >= 3:
            await disk.delete()

    async def _copy(self, number: int) -> None:
        disk = await self.pool.copy_volume(self.pool.volume("old"), VolumeDef("copy"))
        await disk.delete()

    async def _upload(self, number: int) -> None:
        async def pieces() -> AsyncIterator[bytes]:
            for at in range(16):
                if at == 8:
                    await eventually(lambda: done[0] > 0, "progress")
                    await self._go_on()
                yield bytes([number % 256]) * MIB

        def progress(so_far: int, total: int | None) -> None:
            done[0] = so_far

        done = [0]
        await self.pool.volume("target").upload(pieces(), on_progress=progress)

    async def _download(self, number: int) -> None:
        async with self.pool.volume("old").download() as blocks:
            first = await anext(blocks)
            await self._go_on()
            assert b"".join([bytes(first), *[bytes(block) async for block in blocks]]) == OLD

    async def _wipe(self, number: int) -> None:
        def progress(so_far: int, total: int | None) -> None:
            self._wiped = so_far / total if total else 0.0

        await self.pool.volume("wiped").wipe("gutmann", on_progress=progress)

    async def _go_on(self) -> None:
        if not self._going.is_set():
            self._held += 1
            await self._going.wait()

    async def is_in_the_midst(self) -> None:
        """Wait until all has been done once, and is being done again; upload and download go no further.

        The wipe takes longest: it is told of some progress, and has yet much to do.
        """
        await eventually(lambda: all(count for name, count in self.rounds.items() if name != "wipe"), "all work")
        self._going.clear()
        await eventually(lambda: self._held == 2, "an upload and a download half-way")
        await eventually(lambda: 0 < self._wiped < 0.5, "a wipe under way")

    async def errors(self) -> dict[str, StorageError]:
        """What each kind ends with."""
        self._going.set()
        async with asyncio.timeout(PATIENCE):
            return {name: await task for name, task in self._tasks.items()}


async def lose_and_find(manager: Manager, pool: Pool, brick: Path, lose: Act, find: Act) -> None:
    """Take the storage from under all kinds of work, give it back, and see what is there."""
    for name, content in (("old", OLD), ("target", bytes(16 * MIB)), ("wiped", b"w" * 16 * MIB)):
        disk = await pool.create_volume(VolumeDef(name, capacity=len(content)))
        await disk.upload(content)
    work = Work(pool)
    await work.is_in_the_midst()
    try:
        await asyncio.to_thread(lose)
        errors = await work.errors()
        await come_to_rest(manager)
    finally:
        await asyncio.to_thread(find)
    for error in errors.values():
        assert (error.errno, error.pool) in {(number, "p") for number in LOST}
    for name in ("upload", "wipe"):
        told = errors[name]
        assert isinstance(told, TransferError)
        assert told.done > 0
    await refresh_until_well(pool)
    async with asyncio.timeout(PATIENCE):  # a brick that was stopped may yet have to notice whose locks are over
        while any(name.startswith(TEMPORARY) for name in names_on(brick)):
            await pool.refresh()
    there = names_on(brick)
    assert {one.name for one in pool.volumes} == set(there)
    sizes = {"old": len(OLD), "copy": len(OLD), "target": 16 * MIB, "wiped": 16 * MIB}
    for one in pool.volumes:
        size = sizes.get(one.name, MIB)
        assert one.capacity == one.physical == (brick / one.name).stat().st_size == size
        assert one.allocation >= size
    for name in {"old", "copy"} & set(there):
        assert (brick / name).read_bytes() == OLD
    assert await pool.volume("target").upload(b"t" * 16 * MIB) == 16 * MIB
    assert (brick / "target").read_bytes() == b"t" * 16 * MIB
    await pool.volume("wiped").wipe("zero")
    assert (brick / "wiped").read_bytes() == bytes(16 * MIB)
    for one in pool.volumes:
        await pool.volume(one.name).delete()
    assert names_on(brick) == []
    await pool.stop()


async def refresh_until_well(pool: Pool) -> None:
    """Refresh until the source answers again, which a connection may take seconds to notice."""
    async with asyncio.timeout(PATIENCE):
        while True:
            with contextlib.suppress(PoolInaccessibleError):
                await pool.refresh()
                return
            await asyncio.sleep(0.1)


@pytest.mark.parametrize("how", ["killed", "stopped"])
async def test_brick_of_a_gluster_pool(gluster: GlusterBed, losable: Losable, manager: Manager, how: str) -> None:
    """The brick is killed, or stops to answer until its clients have given it up."""
    pool = await manager.define(gluster_pool(gluster, losable.name))
    await pool.start()
    await lose_and_find(manager, pool, losable.brick, *brick_ways(gluster, losable.name)[how])


@pytest.mark.fuse
@pytest.mark.parametrize("how", ["killed", "stopped", "client killed"])
async def test_mount_of_a_netfs_pool(
    gluster: GlusterBed, losable: Losable, manager: Manager, tmp_path: Path, how: str
) -> None:
    """So where the brick is killed, or stops, under a FUSE mount; or the client of that is killed."""
    target = tmp_path / "pool"
    target.mkdir()
    ways = brick_ways(gluster, losable.name) | {"client killed": (lambda: fuse.kill(target), lambda: None)}
    try:
        pool = await manager.define(netfs_pool(gluster, losable.name, target))
        await pool.start()
        await lose_and_find(manager, pool, losable.brick, *ways[how])
    finally:
        await asyncio.to_thread(fuse.release, target)


def brick_ways(bed: GlusterBed, volume: str) -> dict[str, tuple[Act, Act]]:
    """How the brick is lost and found."""
    return {
        "killed": (lambda: bed.kill_brick(volume), lambda: bed.start_volume(volume, force=True)),
        "stopped": (lambda: bed.stop_brick(volume), lambda: bed.continue_brick(volume)),
    }
