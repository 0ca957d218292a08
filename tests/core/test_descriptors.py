"""Descriptors: an idle dir pool holds none, and a process that has none left is told so."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

COMMON = """
import asyncio, os, sys
import astore

async def made(manager, name):
    folder = os.path.join(sys.argv[1], name)
    os.mkdir(folder)
    open(os.path.join(folder, "disk"), "wb").close()
    pool = await manager.define(astore.PoolDef(type="dir", name=name, target=astore.Target(path=folder)))
    await pool.start()
    return pool
"""

MANY = """
async def main():
    async with astore.Manager(sys.argv[1] + "/state") as manager:
        pools = [await made(manager, f"p{number}") for number in range(300)]
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(2):
            await asyncio.gather(*(pool.refresh(full=True) for pool in pools))
        print({str(pool.state) for pool in pools}, sum(len(pool.volumes) for pool in pools))
        print(before < 40, len(os.listdir("/proc/self/fd")) < 40)

asyncio.run(main())
"""

NONE_LEFT = """
async def main():
    async with astore.Manager(sys.argv[1] + "/state") as manager:
        pool = await made(manager, "p")
        taken = []
        try:
            while True:
                taken.append(os.open("/", os.O_PATH))
        except OSError:
            pass
        for work in (pool.refresh, lambda: pool.create_volume(astore.VolumeDef("new", capacity=1))):
            try:
                await work()
            except astore.StorageError as error:
                print(type(error).__name__, error.errno, pool.state, "raise the limit (ulimit -n)" in str(error))
        for fd in taken:
            os.close(fd)
        await pool.refresh()
        print(pool.state, [volume.name for volume in pool.volumes])

asyncio.run(main())
"""


def run(program: str, folder: Path, limit: int) -> list[str]:
    """What a program prints that may have ``limit`` open files."""
    argv = ["sh", "-c", f'ulimit -n {limit}; exec "$0" "$@"', sys.executable, "-c", COMMON + program, str(folder)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_many_dir_pools(tmp_path: Path) -> None:
    """More pools than the process may have open files, all of them started and refreshed."""
    assert run(MANY, tmp_path, 256) == ["{'running'} 300", "True True"]


def test_no_descriptor_left(tmp_path: Path) -> None:
    """The error names the limit; the pool is running all the while, and works again when there are descriptors."""
    told = "StorageError 24 running True"
    assert run(NONE_LEFT, tmp_path, 64) == [told, told, "running ['disk']"]
