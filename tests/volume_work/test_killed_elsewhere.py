"""A process that is killed half-way, on Gluster, with and without a mount: what it was making is never seen, and goes."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from volume_work.real_servers import MIB, gluster_pool, names_on, netfs_pool, volume_in_memory

from astore.files import TEMPORARY
from astore.manager import Manager
from astore.model import VolumeDef
from astore.pool import Pool
from astore.testing.beds import fuse

if TYPE_CHECKING:
    from astore.testing.beds.gluster import GlusterBed

pytestmark = [pytest.mark.root, pytest.mark.gluster]

VOLUME = "killed"

OLD = os.urandom(8 * MIB)
"""What is in the volume that is copied."""

PROGRAM = """
import asyncio, itertools, os, sys
import astore
from astore import VolumeDef

async def forever():
    while True:
        yield b"u" * 100_000

async def main(definition, state, work):
    async with astore.Manager(state) as manager:
        pool = await manager.define(definition)
        await pool.start()
        print("at it", flush=True)
        old = pool.volume("old")
        for number in itertools.count():
            name = f"new{os.getpid()}.{number}"
            if work == "create":
                await pool.create_volume(VolumeDef(name, capacity=1 << 20, allocation=1 << 20))
            elif work == "qcow2":
                await pool.create_volume(VolumeDef(name, capacity=1 << 20, format="qcow2"))
            elif work == "copy":
                await pool.copy_volume(old, VolumeDef(name, capacity=9 << 20))
            elif work == "convert":
                await pool.copy_volume(old, VolumeDef(name, format="qcow2"))
            else:
                await pool.volume("target").upload(forever(), length=1 << 40)

asyncio.run(main(*sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def brick(gluster: GlusterBed) -> Iterator[Path]:
    """The brick of the volume of all these tests."""
    with volume_in_memory(gluster, VOLUME, 1024) as brick:
        yield brick


@pytest.fixture
async def manager(tmp_path: Path) -> AsyncIterator[Manager]:
    """A Manager with the installed backends."""
    async with Manager(tmp_path / "state") as manager:
        yield manager


@pytest.fixture(params=["gluster", pytest.param("netfs", marks=pytest.mark.fuse)])
async def pool(
    request: pytest.FixtureRequest, gluster: GlusterBed, brick: Path, manager: Manager, tmp_path: Path
) -> AsyncIterator[Pool]:
    """A started pool on the volume. After the test all of its volumes can be deleted, and then nothing is left."""
    target = tmp_path / "pool"
    target.mkdir()
    through = netfs_pool(gluster, VOLUME, target) if request.param == "netfs" else gluster_pool(gluster, VOLUME)
    pool = await manager.define(through)
    await pool.start()
    try:
        for name, content in (("old", OLD), ("target", b"t" * MIB)):
            disk = await pool.create_volume(VolumeDef(name, capacity=len(content)))
            await disk.upload(content)
        yield pool
        for one in pool.volumes:
            await pool.volume(one.name).delete()
        assert names_on(brick) == []
        await pool.stop()
    finally:
        await asyncio.to_thread(fuse.release, target)


async def killed(tmp_path: Path, pool: Pool, work: str, seconds: float) -> None:
    """Have a process do this work in this pool, and kill it after so many seconds."""
    argv = [sys.executable, "-c", PROGRAM, pool.to_xml(), os.fspath(tmp_path / "elsewhere"), work]
    environment = os.environ | {"TMPDIR": os.fspath(tmp_path), "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    process = await asyncio.create_subprocess_exec(*argv, stdout=subprocess.PIPE, env=environment)
    assert process.stdout is not None
    assert await process.stdout.readline() == b"at it\n"
    await asyncio.sleep(seconds)
    process.kill()
    await process.wait()


async def content_of(pool: Pool, name: str) -> bytes:
    """All that is in a volume."""
    async with pool.volume(name).download() as blocks:
        return b"".join([bytes(block) async for block in blocks])


WORK = ["create", "copy", "upload", *(pytest.param(one, marks=pytest.mark.qemu) for one in ("qcow2", "convert"))]


@pytest.mark.parametrize("work", WORK)
async def test_killed_half_way(tmp_path: Path, brick: Path, pool: Pool, work: str) -> None:
    """Every volume there is is whole; those there were before are as they were, and can be written at once."""
    await killed(tmp_path, pool, work, 0.1)
    await pool.refresh()
    assert not any(one.name.startswith(TEMPORARY) for one in pool.volumes)
    await pool.stop()
    await pool.start()
    there = names_on(brick)
    assert not any(name.startswith(TEMPORARY) for name in there)
    assert {one.name for one in pool.volumes} == set(there)
    assert await pool.volume("target").upload(b"free") == 4
    assert await content_of(pool, "old") == OLD
    for one in pool.volumes:
        if not one.name.startswith("new"):
            continue
        if work == "create":
            assert (one.capacity, one.format) == (MIB, "raw")
            assert one.allocation >= MIB
            assert await content_of(pool, one.name) == bytes(MIB)
        elif work == "copy":
            assert await content_of(pool, one.name) == OLD.ljust(9 * MIB, b"\0")
        else:
            assert (one.format, one.capacity) == ("qcow2", MIB if work == "qcow2" else len(OLD))
            copy = tmp_path / one.name
            copy.write_bytes(await content_of(pool, one.name))
            checking = await asyncio.create_subprocess_exec("qemu-img", "check", "-q", copy)
            assert await checking.wait() == 0
