"""What bad sources get: an error that names them, within the deadline, and at nobody else's cost. With real servers."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from core_fakes import eventually

import astore
from beds import fuse
from beds.images import make_images

if TYPE_CHECKING:
    from beds.gluster import GlusterBed

pytestmark = [pytest.mark.root, pytest.mark.gluster]


@pytest.fixture
async def manager(tmp_path: Path) -> AsyncIterator[astore.Manager]:
    async with astore.Manager(tmp_path / "state") as manager:
        yield manager


@pytest.fixture
async def good(manager: astore.Manager, image_folder: Path) -> astore.Pool:
    """A pool that works all the time."""
    pool = await manager.define(
        f"<pool type='dir'><name>good</name><target><path>{image_folder}</path></target></pool>"
    )
    await pool.start()
    return pool


def gluster_xml(host: str, volume: str, name: str = "bad") -> str:
    return f"<pool type='gluster'><name>{name}</name><source><host name='{host}'/><name>{volume}</name></source></pool>"


def netfs_xml(host: str, volume: str, target: Path, name: str = "bad") -> str:
    return (
        f"<pool type='netfs'><name>{name}</name><source><host name='{host}'/><dir path='{volume}'/>"
        f"<format type='glusterfs'/></source><target><path>{target}</path></target></pool>"
    )


@pytest.mark.parametrize("host", [None, "127.9.9.9", "no-such-host.invalid"])
async def test_a_source_that_is_not_there(
    manager: astore.Manager, good: astore.Pool, gluster: GlusterBed, host: str | None
) -> None:
    """No such volume, nothing listening, no such host: an error with host and volume; the pool is not started."""
    pool = await manager.define(gluster_xml(host or gluster.host, "nosuchvolume"))
    with pytest.raises(astore.StorageError) as caught:
        await pool.start(timeout=30)
    assert (host or gluster.host) in str(caught.value)
    assert "nosuchvolume" in str(caught.value)
    assert pool.state == "inactive"
    assert pool.error is caught.value
    report = await manager.refresh_all()
    assert [outcome.pool for outcome in report.pools] == ["good"]
    assert not report.failed


async def test_a_brick_that_goes_down(
    manager: astore.Manager, good: astore.Pool, gluster: GlusterBed, volume_factory: Callable[..., str]
) -> None:
    """The pool is inaccessible, in words, its last snapshot readable; the brick back, the next refresh ends that."""
    name = await asyncio.to_thread(lambda: volume_factory(options={"network.ping-timeout": 5}))
    await asyncio.to_thread(lambda: make_images(gluster.mount(name), 5))
    await asyncio.to_thread(gluster.unmount, name)
    pool = await manager.define(gluster_xml(gluster.host, name))
    await pool.start()
    assert len(pool.volumes) == 5
    await asyncio.to_thread(gluster.kill_brick, name)
    report = await manager.refresh_all(timeout=30)
    assert [outcome.pool for outcome in report.failed] == ["bad"]
    assert name in str(report.failed[0].error) or "bad" in str(report.failed[0].error)
    assert pool.state == "inaccessible"
    assert pool.info.error
    assert len(pool.volumes) == 5
    assert good.state == "running"
    await asyncio.to_thread(lambda: gluster.start_volume(name, force=True))
    while (await manager.refresh_all(timeout=30)).failed:  # the client comes back in its own time
        await asyncio.sleep(0.2)
    assert pool.state == "running"
    assert pool.error is None
    await pool.stop()


async def test_a_hung_brick(
    manager: astore.Manager, good: astore.Pool, gluster: GlusterBed, volume_factory: Callable[..., str]
) -> None:
    """A server that stops answering costs its pool the timeout, and nobody else anything."""
    name = await asyncio.to_thread(lambda: volume_factory(options={"network.ping-timeout": 60}))
    await asyncio.to_thread(lambda: make_images(gluster.mount(name), 5))
    await asyncio.to_thread(gluster.unmount, name)
    pool = await manager.define(gluster_xml(gluster.host, name))
    await pool.start()
    await asyncio.to_thread(gluster.stop_brick, name)
    try:
        report = await manager.refresh_all(timeout=3)
        assert [outcome.pool for outcome in report.failed] == ["bad"]
        assert isinstance(report.failed[0].error, TimeoutError)
        assert pool.state == "running", "a caller's deadline says nothing about the pool"
        assert (await good.refresh()).unchanged == 20
    finally:
        await asyncio.to_thread(gluster.continue_brick, name)
    await eventually(lambda: not manager.statistics().lanes.stuck)
    await pool.refresh(timeout=30)
    assert pool.state == "running"
    await pool.stop()


@pytest.mark.fuse
async def test_a_hung_mount(
    manager: astore.Manager, good: astore.Pool, gluster: GlusterBed, new_volume: str, tmp_path: Path
) -> None:
    """Its refresh is late; the others do not wait for it; a forced stop cuts it loose."""
    target = tmp_path / "mnt"
    target.mkdir()
    pool = await manager.define(netfs_xml(gluster.host, new_volume, target))
    await pool.start()
    await asyncio.to_thread(make_images, target, 5)
    await pool.refresh()
    client = await asyncio.to_thread(fuse.freeze, target)
    done: list[str] = []
    report = await manager.refresh_all(
        timeout=3, full=True, on_progress=lambda _, __, outcome: done.append(outcome.pool)
    )
    assert [outcome.pool for outcome in report.failed] == ["bad"]
    assert isinstance(report.failed[0].error, TimeoutError)
    assert done == ["good", "bad"]
    assert pool.state == "running", "a caller's deadline says nothing about the pool"
    assert len(pool.volumes) == 5
    await pool.stop(force=True)
    assert pool.state == "inactive"
    assert not fuse.is_mounted(target)
    os.kill(client, signal.SIGKILL)  # it is stopped still, and does not know yet that its mount is gone


HUNG = """
import asyncio, sys, astore
async def main():
    async with astore.Manager(sys.argv[1]) as manager:
        report = await manager.refresh_all(timeout=1, full=True)
        assert [outcome.pool for outcome in report.failed] == ["bad"], report
    print("left", flush=True)
asyncio.run(main())
"""


@pytest.mark.fuse
async def test_a_process_with_a_hung_mount_ends(gluster: GlusterBed, new_volume: str, tmp_path: Path) -> None:
    """However many of its threads hang in the kernel."""
    target = tmp_path / "mnt"
    target.mkdir()
    async with astore.Manager(tmp_path / "state") as manager:
        pool = await manager.define(netfs_xml(gluster.host, new_volume, target))
        await pool.start()
    await asyncio.to_thread(fuse.freeze, target)
    try:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-W", "error", "-c", HUNG, str(tmp_path / "state"), stdout=subprocess.PIPE
        )
        assert process.stdout is not None
        assert await process.stdout.readline() == b"left\n"
        async with asyncio.timeout(60):  # the mount hangs all the while
            assert await process.wait() == 0
    finally:
        await asyncio.to_thread(fuse.thaw, target)
        async with astore.Manager(tmp_path / "state") as manager:
            await manager.pool("bad").stop()
    assert not fuse.is_mounted(target)


@pytest.mark.fuse
async def test_a_hung_mount_that_another_process_made(gluster: GlusterBed, new_volume: str, tmp_path: Path) -> None:
    """A forced stop cuts it loose too, though no session can be opened on it any more."""
    target = tmp_path / "mnt"
    target.mkdir()
    async with astore.Manager(tmp_path / "state") as manager:
        pool = await manager.define(netfs_xml(gluster.host, new_volume, target))
        await pool.start()
    client = await asyncio.to_thread(fuse.freeze, target)
    try:
        async with astore.Manager(tmp_path / "state") as manager:
            pool = manager.pool("bad")
            assert pool.active
            async with asyncio.timeout(30):
                await pool.stop(force=True)
            assert pool.state == "inactive"
        assert not fuse.is_mounted(target)
    finally:
        os.kill(client, signal.SIGKILL)
