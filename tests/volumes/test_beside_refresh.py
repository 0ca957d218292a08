"""An upload while the same pool is refreshed all the time, and listed by other processes: nothing fails, nothing is torn."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from volumes.real_servers import MIB, PATIENCE, dir_pool, gluster_pool, volume_in_memory

from astore.events import VolumeRemoved
from astore.manager import Manager
from astore.model import PoolDef, VolumeDef
from astore.pools.pool import Pool
from astore.testing.conformance.source import qcow2

if TYPE_CHECKING:
    from beds.gluster import GlusterBed

UPLOAD_MIB = int(os.environ.get("ASTORE_TEST_UPLOAD_MIB", "1024"))
"""How much is uploaded."""

REFRESHES = 100

CAPACITY = 3 << 30
"""What the header of the image says that is uploaded."""

LISTER = """
import asyncio, json, sys
import astore

async def main(definition, state):
    async with astore.Manager(state) as manager:
        pool = await manager.define(definition)
        await pool.start()
        print("ready", flush=True)
        ended = asyncio.ensure_future(asyncio.to_thread(sys.stdin.read))
        while not ended.done():
            await pool.refresh()
            print(json.dumps([[v.name, v.format, v.capacity, v.physical, v.allocation] for v in pool.volumes]), flush=True)

asyncio.run(main(*sys.argv[1:]))
"""
"""Refreshes and lists the pool by a Manager of its own, until its input ends."""


class Row(NamedTuple):
    """A volume as somebody lists it."""

    name: str
    format: str
    capacity: int
    physical: int
    allocation: int


class Watch:
    """Looks at one list after the other by the same process: what is uploaded to only grows, all else stays."""

    def __init__(self, others: list[Row], mib: int) -> None:
        self._others = sorted(others)
        self._most = mib * MIB
        self._last = Row("target", "raw", 0, 0, 0)
        self.lists = 0

    def see(self, rows: list[Row]) -> None:
        """One list."""
        self.lists += 1
        assert sorted(row for row in rows if row.name != "target") == self._others
        (row,) = (row for row in rows if row.name == "target")
        assert (row.format, row.capacity) in {("raw", row.physical), ("qcow2", CAPACITY)}
        assert self._last.physical <= row.physical <= self._most
        assert row.allocation <= self._most + 64 * MIB
        assert (self._last.format, row.format) != ("qcow2", "raw")
        self._last = row


def rows_of(pool: Pool) -> list[Row]:
    """What the pool's snapshot has."""
    return [Row(v.name, v.format or "", v.capacity, v.physical, v.allocation) for v in pool.volumes]


@pytest.fixture
async def manager(tmp_path: Path) -> AsyncIterator[Manager]:
    """A Manager with the installed backends, whose state folder the command uses too."""
    async with Manager(tmp_path / "state") as manager, asyncio.timeout(2 * PATIENCE):
        yield manager


def environment(**more: object) -> dict[str, str]:
    """For other processes, which are to find the same astore."""
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        **{key: str(value) for key, value in more.items()},
    }


async def listed_by_another_manager(pool: Pool, state: Path, watch: Watch, uploaded: asyncio.Event) -> None:
    """Read what a process with a Manager of its own finds, over and over, until all is uploaded."""
    argv = [sys.executable, "-c", LISTER, pool.to_xml(), os.fspath(state)]
    process = await asyncio.create_subprocess_exec(
        *argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment(), limit=MIB
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        assert await process.stdout.readline() == b"ready\n"
        while line := await process.stdout.readline():
            watch.see([Row(*row) for row in json.loads(line)])
            if uploaded.is_set() and not process.stdin.is_closing():
                process.stdin.close()
        assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def listed_by_the_command(pool: Pool, state: Path, watch: Watch, uploaded: asyncio.Event) -> None:
    """Run ``astore vol list --json`` on the same state folder, over and over, until all is uploaded."""
    argv = [sys.executable, "-m", "astore.cli", "--json", "vol", "list", pool.name]
    while not uploaded.is_set():
        process = await asyncio.create_subprocess_exec(
            *argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment(ASTORE_STATE_DIR=state)
        )
        out, err = await process.communicate()
        assert (process.returncode, err) == (0, b"")
        volumes: list[dict[str, Any]] = json.loads(out)["volumes"]
        watch.see([Row(*(volume[field] for field in Row._fields)) for volume in volumes])


class Upload:
    """An upload that goes on as the refreshes do: so many of them are spread over the whole of it. Its last piece comes when
    everybody has had a look or two.
    """

    def __init__(self, mib: int, watches: list[Watch]) -> None:
        self.mib = mib
        self._watches = watches
        self.hash = hashlib.sha1(usedforsecurity=False)
        self._given = self._refreshed = 0
        self._moved = asyncio.Condition()
        self._filling = os.urandom(MIB - 16)

    async def pieces(self) -> AsyncIterator[bytes]:
        """An image whose header comes first."""
        for number in range(self.mib):
            async with self._moved:
                await self._moved.wait_for(lambda at=number: at * REFRESHES <= (self._refreshed + 1) * self.mib)
                self._given = number + 1
                self._moved.notify_all()
            while number == self.mib - 1 and any(watch.lists < 2 for watch in self._watches):
                await asyncio.sleep(0.01)
            piece = number.to_bytes(16) + self._filling
            if number == 0:
                piece = qcow2(CAPACITY).ljust(MIB, b"x")
            await asyncio.to_thread(self.hash.update, piece)
            yield piece

    async def refresh(self, pool: Pool, watch: Watch) -> None:
        """Refresh the pool again and again."""
        for number in range(REFRESHES):
            async with self._moved:
                await self._moved.wait_for(lambda at=number: self._given * REFRESHES >= at * self.mib)
            outcome = await pool.refresh(full=number % 10 == 0)
            assert outcome.errors == ()
            watch.see(rows_of(pool))
            async with self._moved:
                self._refreshed = number + 1
                self._moved.notify_all()


async def upload_beside(manager: Manager, definition: PoolDef, tmp_path: Path, mib: int, file: Path) -> None:
    """Upload while everybody looks on."""
    pool = await manager.define(definition)
    await pool.start()
    for number in range(8):
        disk = await pool.create_volume(VolumeDef(f"raw{number}", capacity=(number + 1) * MIB))
        await disk.upload(bytes([number]) * MIB)
        await pool.create_volume(VolumeDef(f"dir{number}", format="dir"))
    await pool.volume("raw7").upload(qcow2(5 << 30))
    await pool.refresh()
    others = rows_of(pool)
    disk = await pool.create_volume(VolumeDef("target", capacity=0))
    watches = [Watch(others, mib) for _ in range(3)]
    upload = Upload(mib, watches)
    uploaded = asyncio.Event()
    async with manager.events(kinds=[VolumeRemoved]) as removed, asyncio.TaskGroup() as group:
        group.create_task(listed_by_another_manager(pool, tmp_path / "other", watches[1], uploaded))
        group.create_task(listed_by_the_command(pool, tmp_path / "state", watches[2], uploaded))
        refreshing = group.create_task(upload.refresh(pool, watches[0]))
        assert await disk.upload(upload.pieces()) == mib * MIB
        await refreshing
        uploaded.set()
        assert removed.receive_nowait() is None
    assert watches[0].lists == REFRESHES
    await pool.refresh()
    assert disk.info.format == "qcow2"
    assert (disk.info.capacity, disk.info.physical) == (CAPACITY, mib * MIB)
    with file.open("rb") as stored:
        digest = await asyncio.to_thread(hashlib.file_digest, stored, lambda: hashlib.sha1(usedforsecurity=False))
    assert digest.digest() == upload.hash.digest()


async def test_dir(manager: Manager, tmp_path: Path) -> None:
    """On a folder."""
    folder = tmp_path / "pool"
    folder.mkdir()
    await upload_beside(manager, dir_pool(folder), tmp_path, UPLOAD_MIB, folder / "target")
    (folder / "target").unlink()


@pytest.mark.root
@pytest.mark.gluster
async def test_gluster(gluster: GlusterBed, manager: Manager, tmp_path: Path) -> None:
    """On a Gluster volume, a quarter of it."""
    mib = UPLOAD_MIB // 4
    with volume_in_memory(gluster, "refreshed", mib + 64) as brick:
        await upload_beside(manager, gluster_pool(gluster, "refreshed"), tmp_path, mib, brick / "target")
        await manager.pool("p").stop()
