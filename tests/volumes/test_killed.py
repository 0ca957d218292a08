"""A process that is killed half-way: what it was making is never seen, and the next start removes it."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from volumes.real_servers import MIB, dir_pool, gluster_pool, names_on, netfs_pool, volume_in_memory

from astore.manager import Manager
from astore.model import VolumeDef
from astore.pools.pool import Pool
from astore.volume_io.volume_names import TEMPORARY
from beds import fuse

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

MAKER = """
import sys
from astore.trees.writable_local import WritableLocalTree
from astore.model import VolumeDef
from astore.trees.placing import begin
made = begin(WritableLocalTree(sys.argv[1]), VolumeDef("a"))
print(made.hidden, flush=True)
sys.stdin.read()
"""
"""Makes a file, and does not come to its end."""

WORK = ["create", "copy", "upload", *(pytest.param(one, marks=pytest.mark.qemu) for one in ("qcow2", "convert"))]

SERVED = [pytest.mark.root, pytest.mark.gluster]

STORAGE = [
    pytest.param("dir"),
    pytest.param("gluster", marks=SERVED),
    pytest.param("netfs", marks=[*SERVED, pytest.mark.fuse]),
]


@pytest.fixture(scope="module")
def brick(request: pytest.FixtureRequest) -> Iterator[Path]:
    """The brick of the Gluster volume of all these tests, named like it."""
    with volume_in_memory(request.getfixturevalue("gluster"), "killed", 1024) as brick:
        yield brick


@pytest.fixture
async def manager(tmp_path: Path) -> AsyncIterator[Manager]:
    """A Manager with the installed backends."""
    async with Manager(tmp_path / "state") as manager:
        yield manager


@pytest.fixture
def storage() -> str:
    """What kind of storage the pool is on."""
    return "dir"


@pytest.fixture
def kept(request: pytest.FixtureRequest, storage: str, folder: Path) -> Path:
    """Where the storage keeps the pool's files, in a folder of this machine."""
    brick: Path = folder if storage == "dir" else request.getfixturevalue("brick")
    return brick


@pytest.fixture
async def pool(
    request: pytest.FixtureRequest, storage: str, folder: Path, kept: Path, manager: Manager
) -> AsyncIterator[Pool]:
    """A started pool with two volumes. After the test all of its volumes can be deleted, and then nothing is left."""
    if storage == "dir":
        definition = dir_pool(folder)
    elif storage == "gluster":
        definition = gluster_pool(request.getfixturevalue("gluster"), "killed")
    else:
        definition = netfs_pool(request.getfixturevalue("gluster"), "killed", folder)
    pool = await manager.define(definition)
    await pool.start()
    try:
        for name, content in (("old", OLD), ("target", b"t" * MIB)):
            disk = await pool.create_volume(VolumeDef(name, capacity=len(content)))
            await disk.upload(content)
        yield pool
        for one in pool.volumes:
            await pool.volume(one.name).delete()
        assert names_on(kept) == []
        await pool.stop()
    finally:
        if storage == "netfs":
            await asyncio.to_thread(fuse.release, folder)


async def killed(tmp_path: Path, pool: Pool, work: str, seconds: float) -> None:
    """Have a process do this work in this pool, and kill it after so many seconds."""
    argv = [sys.executable, "-c", PROGRAM, pool.to_xml(), os.fspath(tmp_path / f"state{seconds}"), work]
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


@pytest.mark.parametrize("work", WORK)
@pytest.mark.parametrize("storage", STORAGE)
async def test_killed_half_way(tmp_path: Path, kept: Path, storage: str, pool: Pool, work: str) -> None:
    """Every volume there is is whole; those there were before are as they were, and can be written at once."""
    for seconds in (0.02, 0.09) if storage == "dir" else (0.1,):
        await killed(tmp_path, pool, work, seconds)
        (kept / f"{TEMPORARY}{seconds}.tmp").write_bytes(b"as if it had been at the worst moment")
        await pool.refresh()
        assert not any(one.name.startswith(TEMPORARY) for one in pool.volumes)
        await pool.stop()
        await pool.start()
        there = names_on(kept)
        assert not any(name.startswith(TEMPORARY) for name in there)
        assert {one.name for one in pool.volumes} == set(there)
        assert await pool.volume("target").upload(b"free") == 4
        assert await content_of(pool, "old") == OLD
    for one in pool.volumes:
        if not one.name.startswith("new"):
            continue
        content = await content_of(pool, one.name)
        if work == "create":
            assert (one.capacity, one.format) == (MIB, "raw")
            assert one.allocation >= MIB
            assert content == bytes(MIB)
        elif work == "copy":
            assert content == OLD.ljust(9 * MIB, b"\0")
        else:
            assert (one.format, one.capacity) == ("qcow2", MIB if work == "qcow2" else len(OLD))
            copy = tmp_path / one.name
            copy.write_bytes(content)
            checking = await asyncio.create_subprocess_exec("qemu-img", "check", "-q", copy)
            assert await checking.wait() == 0


async def test_left_while_another_makes_one(tmp_path: Path, folder: Path, manager: Manager, pool: Pool) -> None:
    """What a living process is making stays, whoever starts the pool meanwhile."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    maker = await asyncio.create_subprocess_exec(
        *[sys.executable, "-c", MAKER, os.fspath(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
    )
    assert maker.stdout is not None
    hidden = (await maker.stdout.readline()).decode().strip()
    for alive in (True, False):
        if not alive:
            maker.kill()
            await maker.wait()
        await pool.stop()
        await pool.start()
        assert (hidden in await asyncio.to_thread(os.listdir, folder)) is alive
        assert [one.name for one in pool.volumes] == ["old", "target"]
    async with Manager(tmp_path / "other", registry=manager.registry) as other:
        twin = await other.define(dir_pool(folder, "q"))
        await twin.start()
        assert [one.name for one in twin.volumes] == ["old", "target"]
