"""Gluster pools are told of changes by the volume's bricks, or say what would make them told."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest
from core_fakes import eventually
from watching_support import watched

import astore
from astore.backend import Context
from astore.manager import pool_watch
from astore_gluster.backend import GlusterBackend
from astore_gluster.volume import told as told_module
from astore_gluster.volume import upcalls
from astore_gluster.volume.connection import CONNECTIONS, ConnectionCache
from astore_gluster.volume.options import BrickOptions, OptionsError
from tests.gluster.clients import ON, OtherClient, pollers, sees_the_truth, true_volumes, xml

if TYPE_CHECKING:
    from beds.gluster import GlusterBed

pytestmark = [pytest.mark.root, pytest.mark.gluster]


@pytest.fixture(autouse=True)
def no_listing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pool that is told of changes is not listed again within a test, unless the test says so."""
    monkeypatch.setattr(told_module, "AGAIN", 600.0)
    monkeypatch.setattr(pool_watch, "MOST", 600.0)


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
    "delete": lambda o: o.do("unlink", f"{o.images}/old"),
    "delete and make": _remake,
    "link": lambda o: o.do("link", f"{o.images}/old", f"{o.images}/new"),
    "symlink": lambda o: o.symlink("old", f"{o.images}/new"),
    "mkdir": lambda o: o.do("mkdir", f"{o.images}/new", 0o755),
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
        await eventually(lambda: len(pool.volumes) == 2, "the files of before")
        await asyncio.to_thread(CHANGES[change], other)
        await sees_the_truth(pool, gluster, told_volume, other.images, others, context)
    await pool.stop()


async def test_a_look_at_a_file_is_not_the_cache(
    gluster: GlusterBed, told_volume: str, other: OtherClient, others: ConnectionCache, context: Context
) -> None:
    """What was written right after a listing is seen by a look at that file, which is all that follows a notice."""
    backend = GlusterBackend(CONNECTIONS)
    definition = backend.check(astore.PoolDef.from_xml(xml(gluster, told_volume, other.images)))
    session = await backend.open(definition, context)
    told = await session.watch(lambda *_: None)
    try:
        for size in range(1, 9):
            await session.refresh(astore.Snapshot.EMPTY, full=True)
            await asyncio.to_thread(other.write, f"{other.images}/old", b"x" * size)
            found = await session.refresh_volume("old")
            true = await true_volumes(gluster, told_volume, other.images, others, context)
            assert isinstance(found, astore.VolumeInfo)
            assert (found.physical, found.mtime_ns) == (size, true["old"].mtime_ns)
    finally:
        told.close()
        await session.aclose()


@pytest.mark.parametrize("pause", [0.1, 0.45, 1.2])
async def test_what_is_written_again(
    gluster: GlusterBed, told_volume: str, other: OtherClient, manager: astore.Manager, pause: float
) -> None:
    """A file that is written to again and again is looked at again and again; its last size is seen."""
    await asyncio.to_thread(other.write, f"{other.images}/busy", b"x")
    pool = await manager.create(xml(gluster, told_volume, other.images))
    async with manager.watch():
        await watched(pool, "upcalls")
        for round_ in range(1, 4):
            for turn in range(3):
                await asyncio.to_thread(other.write, f"{other.images}/busy", b"y", round_ * 1000 + turn)
                await asyncio.sleep(pause)
            size = round_ * 1000 + 3
            await eventually(lambda size=size: pool.volume("busy").info.physical == size, f"the size {size}")
    await pool.stop()


async def test_many_changes_at_once(
    gluster: GlusterBed,
    told_volume: str,
    other: OtherClient,
    others: ConnectionCache,
    manager: astore.Manager,
    context: Context,
) -> None:
    """Hundreds of files that come and go are all seen."""
    pool = await manager.create(xml(gluster, told_volume, other.images))

    def changes() -> None:
        for number in range(400):
            other.write(f"{other.images}/f{number}", b"x" * number)
        for number in range(0, 400, 3):
            other.do("unlink", f"{other.images}/f{number}")
        for number in range(1, 400, 3):
            other.write(f"{other.images}/f{number}", b"longer" * number)

    async with manager.watch():
        await watched(pool, "upcalls")
        await asyncio.to_thread(changes)
        await sees_the_truth(pool, gluster, told_volume, other.images, others, context)
    await pool.stop()


async def test_how_it_is_told(
    gluster: GlusterBed, told_volume: str, other: OtherClient, manager: astore.Manager
) -> None:
    """A pool says by when it sees what no brick tells, which the caller may shorten."""
    pool = await manager.create(xml(gluster, told_volume, other.images))
    async with manager.watch():
        await watched(pool, "upcalls")
        assert pool.info.freshness == astore.Freshness("upcalls", pushed=True, bound=600.0, note=told_module.UNTOLD)
    assert pool.info.freshness is None
    async with manager.watch(max_staleness=2.0):
        await watched(pool, "upcalls")
        assert pool.info.freshness is not None
        assert pool.info.freshness.bound == 2.0
    await pool.stop()


UNTOLD: dict[str, Callable[[OtherClient], object]] = {
    "rename in": lambda o: o.do("rename", f"{o.elsewhere}/outside", f"{o.images}/new"),
    "rename over": lambda o: o.do("rename", f"{o.elsewhere}/outside", f"{o.images}/old"),
    "rename out": lambda o: o.do("rename", f"{o.images}/old", f"{o.elsewhere}/old"),
    "link": lambda o: o.do("link", f"{o.elsewhere}/outside", f"{o.images}/new"),
}


@pytest.mark.parametrize("change", UNTOLD)
async def test_what_no_brick_tells(
    gluster: GlusterBed,
    told_volume: str,
    other: OtherClient,
    others: ConnectionCache,
    manager: astore.Manager,
    context: Context,
    change: str,
) -> None:
    """A file that comes from another folder, or goes there, is found by the next listing."""
    await asyncio.to_thread(other.write, f"{other.images}/old", b"1")
    await asyncio.to_thread(other.write, f"{other.elsewhere}/outside", b"x")
    pool = await manager.create(xml(gluster, told_volume, other.images))
    async with manager.watch(max_staleness=1.5):
        await watched(pool, "upcalls")
        await asyncio.to_thread(UNTOLD[change], other)
        await sees_the_truth(pool, gluster, told_volume, other.images, others, context)
    await pool.stop()


async def test_told_for_longer_than_the_timeout(
    gluster: GlusterBed,
    volume_factory: Callable[..., str],
    other_of: Callable[[str], OtherClient],
    manager: astore.Manager,
    notices: list[upcalls.Notice],
) -> None:
    """Bricks forget a client after the volume's timeout. The pool is listed in time, even while only bytes change."""
    # long enough for a listing that is seconds late on a busy machine
    volume = await asyncio.to_thread(volume_factory, options={**ON, "features.cache-invalidation-timeout": 12})
    other = await asyncio.to_thread(other_of, volume)
    for name in ("quiet", "busy"):
        await asyncio.to_thread(other.write, f"{other.images}/{name}", b"x")
    pool = await manager.create(xml(gluster, volume, other.images))
    async with manager.watch():
        await watched(pool, "upcalls")
        assert pool.info.freshness is not None
        assert pool.info.freshness.bound == 6.0
        for turn in range(26):
            await asyncio.to_thread(other.write, f"{other.images}/busy", b"x", turn)
            await asyncio.sleep(0.5)
        quiet = pool.volume("quiet").info.inode
        assert quiet not in {notice.inode for notice in notices}
        await asyncio.to_thread(other.write, f"{other.images}/quiet", b"longer")
        await eventually(lambda: quiet in {notice.inode for notice in notices}, "the notice")
        await eventually(lambda: pool.volume("quiet").info.physical == 6, "the size")
    await pool.stop()


async def test_volume_that_tells_nothing(
    gluster: GlusterBed,
    volume_factory: Callable[..., str],
    other_of: Callable[[str], OtherClient],
    manager: astore.Manager,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Such a pool is polled, and says what to switch on. When that is done, it is told."""
    monkeypatch.setattr(upcalls, "OPTIONS_AGE", 0.2)
    monkeypatch.setattr(upcalls, "FAILURE_AGE", 0.2)  # glusterd may be slow to answer beside other work
    volume = await asyncio.to_thread(volume_factory, bricks=2)
    other = await asyncio.to_thread(other_of, volume)
    pool = await manager.create(xml(gluster, volume, other.images))
    async with manager.watch(max_staleness=0.5):
        await watched(pool, "polled")
        freshness = pool.info.freshness
        assert freshness is not None
        assert f"gluster volume set {volume} features.cache-invalidation on" in freshness.note
        assert not freshness.pushed
        assert pollers() == 0
        await asyncio.to_thread(other.write, f"{other.images}/new", b"x")
        await eventually(lambda: pool.volumes, "what polling finds")
        await asyncio.to_thread(gluster.set_option, volume, {"features.cache-invalidation": "on"})
        await watched(pool, "upcalls")
        await asyncio.to_thread(other.write, f"{other.images}/newer", b"x")
        await eventually(lambda: len(pool.volumes) == 2, "what the bricks tell")
    await pool.stop()


async def test_options_that_nobody_says(
    gluster: GlusterBed,
    told_volume: str,
    other: OtherClient,
    manager: astore.Manager,
    monkeypatch: pytest.MonkeyPatch,
    notices: list[upcalls.Notice],
) -> None:
    """Where the options cannot be asked for, the pool is polled until the first notice proves that bricks tell."""

    def refused(*_: object) -> BrickOptions:
        raise OptionsError("refused")

    CONNECTIONS.close_idle()  # the options of a connection are asked for once in a while
    monkeypatch.setattr(told_module, "ask_options", refused)
    pool = await manager.create(xml(gluster, told_volume, other.images))
    async with manager.watch(max_staleness=0.5):
        await watched(pool, "polled")
        assert pool.info.freshness is not None
        assert "(refused)" in pool.info.freshness.note
        await asyncio.to_thread(other.write, f"{other.images}/new", b"x")
        await watched(pool, "upcalls")
        assert notices
    await pool.stop()
    CONNECTIONS.close_idle()


async def test_bricks_that_die_and_come_back(
    gluster: GlusterBed,
    volume_factory: Callable[..., str],
    other_of: Callable[[str], OtherClient],
    manager: astore.Manager,
    notices: list[upcalls.Notice],
) -> None:
    """The pool is inaccessible, comes back by itself, and is told again."""
    volume = await asyncio.to_thread(volume_factory, options=ON)
    other = await asyncio.to_thread(other_of, volume)
    await asyncio.to_thread(other.write, f"{other.images}/old", b"x")
    pool = await manager.create(xml(gluster, volume, other.images))
    async with manager.watch(max_staleness=1.0):
        await watched(pool, "upcalls")
        await asyncio.to_thread(gluster.kill_brick, volume)
        await eventually(lambda: pool.state is astore.PoolState.INACCESSIBLE, "no brick answers")
        await asyncio.to_thread(lambda: gluster.start_volume(volume, force=True))
        await eventually(lambda: pool.state is astore.PoolState.RUNNING, "the brick is back")
        await watched(pool, "upcalls")

        def works() -> bool:
            try:
                other.write(f"{other.images}/probe", b"x")
            except OSError:
                return False
            return True

        while not await asyncio.to_thread(works):  # its connection comes back by itself, too
            await asyncio.sleep(0.2)
        notices.clear()
        await asyncio.to_thread(other.write, f"{other.images}/old", b"longer")
        await eventually(lambda: pool.volume("old").info.physical == 6, "the size")
        await eventually(lambda: notices, "the notice")
    await pool.stop()
