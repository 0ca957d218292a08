"""A process that is killed half-way: what it was making is never seen, and the next start removes it."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest

from astore.manager import Manager
from astore.model import PoolDef, Target
from astore.pool import Pool

MIB = 1 << 20

PROGRAM = """
import asyncio, itertools, sys
import astore
from astore import VolumeDef

async def forever():
    while True:
        yield b"u" * 100_000

async def main(state, folder, work):
    async with astore.Manager(state) as manager:
        pool = await manager.define(astore.PoolDef(type="dir", name="p", target=astore.Target(path=folder)))
        await pool.start()
        print("at it", flush=True)
        for number in itertools.count():
            if work == "create":
                await pool.create_volume(VolumeDef(f"new{state[-4:]}.{number}", capacity=1 << 20, allocation=1 << 20))
            elif work == "copy":
                await pool.copy_volume(pool.volume("old"), VolumeDef(f"new{state[-4:]}.{number}", capacity=9 << 20))
            elif work == "qcow2":
                await pool.create_volume(VolumeDef(f"new{state[-4:]}.{number}", capacity=1 << 20, format="qcow2"))
            else:
                await pool.volume("target").upload(forever(), length=1 << 40)

asyncio.run(main(*sys.argv[1:]))
"""


async def killed(tmp_path: Path, folder: Path, work: str, seconds: float) -> None:
    """Have a process do this work, and kill it after so many seconds."""
    argv = [sys.executable, "-c", PROGRAM, os.fspath(tmp_path / f"state{seconds}"), os.fspath(folder), work]
    environment = os.environ | {"TMPDIR": os.fspath(tmp_path), "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    process = await asyncio.create_subprocess_exec(*argv, stdout=subprocess.PIPE, env=environment)
    assert process.stdout is not None
    assert await process.stdout.readline() == b"at it\n"
    await asyncio.sleep(seconds)
    process.kill()
    await process.wait()


@pytest.mark.parametrize("work", ["create", "copy", "upload", pytest.param("qcow2", marks=pytest.mark.qemu)])
async def test_killed_half_way(tmp_path: Path, folder: Path, manager: Manager, pool: Pool, work: str) -> None:
    """Every volume there is is whole; those there were before are as they were, and can be written."""
    old, target = os.urandom(8 * MIB), b"t" * MIB
    (folder / "old").write_bytes(old)
    (folder / "target").write_bytes(target)
    for seconds in (0.02, 0.09):
        await killed(tmp_path, folder, work, seconds)
        (folder / f".astore-{seconds}.tmp").write_bytes(b"as if it had been at the worst moment")
        await pool.refresh()
        assert not any(one.name.startswith(".astore-") for one in pool.volumes)
        await pool.stop()
        await pool.start()
        there = set(await asyncio.to_thread(os.listdir, folder))
        assert not any(name.startswith(".astore-") for name in there)
        assert {one.name for one in pool.volumes} == there
        for one in pool.volumes:
            if one.name.startswith("new"):
                content = (folder / one.name).read_bytes()
                if work == "create":
                    assert content == bytes(MIB)
                    assert one.allocation >= MIB
                elif work == "copy":
                    assert content == old.ljust(9 * MIB, b"\0")
                else:
                    assert (one.format, one.capacity) == ("qcow2", MIB)
                    checking = await asyncio.create_subprocess_exec("qemu-img", "check", "-q", folder / one.name)
                    assert await checking.wait() == 0
        assert (folder / "old").read_bytes() == old
        assert await pool.volume("target").upload(b"free") == 4


async def test_left_while_another_makes_one(tmp_path: Path, folder: Path, manager: Manager, pool: Pool) -> None:
    """What a living process is making stays, whoever starts the pool meanwhile."""
    (folder / "old").write_bytes(bytes(1000))
    code = (
        "import sys; from astore.volume_work.local import WritableLocalTree; from astore.volume_work.placing import begin\n"
        "made = begin(WritableLocalTree(sys.argv[1]), 'a', None); print(made.hidden, flush=True); sys.stdin.read()"
    )
    argv = [sys.executable, "-c", code, os.fspath(folder)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    maker = await asyncio.create_subprocess_exec(*argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
    assert maker.stdout is not None
    hidden = (await maker.stdout.readline()).decode().strip()
    for alive in (True, False):
        if not alive:
            maker.kill()
            await maker.wait()
        await pool.stop()
        await pool.start()
        assert (hidden in await asyncio.to_thread(os.listdir, folder)) is alive
        assert [one.name for one in pool.volumes] == ["old"]
    definition = PoolDef(type="dir", name="q", target=Target(path=str(folder)))
    async with Manager(tmp_path / "other", registry=manager.registry) as other:
        twin = await other.define(definition)
        await twin.start()
        assert [one.name for one in twin.volumes] == ["old"]
