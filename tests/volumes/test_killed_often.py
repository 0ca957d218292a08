"""A process killed at any moment, many times over: nothing that it was told is done is lost, and nothing unfinished stays.

ASTORE_KILLS says how many times on each storage; ``make soak`` kills a thousand times in all.
"""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from volumes.real_servers import dir_pool, gluster_pool, names_on, netfs_pool, volume_in_memory

from astore.errors import StorageError
from astore.manager import Manager
from astore.pools.pool import Pool
from astore.volume_io.volume_names import TEMPORARY
from beds import fuse

KILLS = int(os.environ.get("ASTORE_KILLS", "12"))

PROGRAM = """
import asyncio, itertools, os, random, sys
import astore
from astore import VolumeDef

def told(*words):
    os.write(1, (" ".join(words) + "\\n").encode())

async def main(definition, state, folders, seed):
    rng = random.Random(seed)
    async with astore.Manager(state) as manager:
        for number in itertools.count():
            name = f"v{seed}.{number}"
            if "storage" not in [one.name for one in manager.pools()]:
                told("begins", "define", "storage")
                await manager.define(definition)
                told("done", "define", "storage")
            pool = manager.pool("storage")
            if not pool.active:
                await pool.start()
            if not number:
                told("ready")
            work = rng.choice(["create", "upload", "copy", "define", "undefine", "restart"])
            volumes = [one.name for one in pool.volumes]
            others = [one.name for one in manager.pools() if one.name != "storage"]
            if work == "create":
                told("begins", "make", name, "zeros")
                await pool.create_volume(VolumeDef(name, capacity=300_000, allocation=300_000))
                told("done", "make", name)
            elif work == "upload":
                told("begins", "make", name, "empty")
                disk = await pool.create_volume(VolumeDef(name, capacity=0))
                told("done", "make", name)
                told("begins", "fill", name, "its-name")
                await disk.upload(name.encode() * 50_000)
                told("done", "fill", name)
            elif work == "copy" and volumes:
                source = rng.choice(volumes)
                told("begins", "make", name, source)
                await pool.copy_volume(pool.volume(source), VolumeDef(name))
                told("done", "make", name)
            elif work == "define":
                folder = f"{folders}/{name}"
                os.makedirs(folder)
                told("begins", "define", name)
                target = astore.Target(path=folder)
                other = await manager.define(astore.PoolDef(name=name, type="dir", target=target))
                told("done", "define", name)
                if rng.random() < 0.5:
                    await other.start()
            elif work == "undefine" and others:
                other = manager.pool(rng.choice(others))
                if other.active:
                    await other.stop()
                told("begins", "undefine", other.name)
                await other.undefine()
                told("done", "undefine", other.name)
            elif work == "restart":
                await pool.stop()
                await pool.start()

asyncio.run(main(*sys.argv[1:]))
"""

SERVED = [pytest.mark.root, pytest.mark.gluster]


class Storage(NamedTuple):
    """Where the killed processes work.

    :ivar definition: of the pool. :ivar folder: of this machine, where its files are.
    :ivar revive: starts a server that has ended by itself, and returns whether it had.
    """

    definition: str
    folder: Path
    revive: Callable[[], bool]


class Content(NamedTuple):
    """A text, so many times; that many zeros if it is empty."""

    text: str
    times: int

    def data(self) -> bytes:
        """Return the bytes."""
        return (self.text.encode() or b"\0") * self.times


class Killed:
    """What processes said that they did, and what is found after they were killed.

    :ivar pools: the pools that are defined; :ivar volumes: the volumes that were made, with what is in them: a text, so
        many times, or that many zeros if it is empty. :ivar uncertain: what the killed process was at: it may be done or not.
    """

    def __init__(self, storage: Storage, folder: Path) -> None:
        self.storage = storage
        self.state = folder / "state"
        self.folders = folder / "folders"
        self.pools: set[str] = set()
        self.volumes: dict[str, Content] = {}
        self.uncertain: tuple[str, str, str] | None = None

    async def once(self, seed: int) -> None:
        """Run a process, and kill it at a random moment after it is ready."""
        argv = [
            sys.executable,
            "-c",
            PROGRAM,
            self.storage.definition,
            *map(os.fspath, (self.state, self.folders)),
            str(seed),
        ]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        process = await asyncio.create_subprocess_exec(*argv, stdout=subprocess.PIPE, env=environment)
        assert process.stdout is not None
        said: list[str] = []
        rng = random.Random(seed)
        while not said or said[-1] != "ready":
            line = await process.stdout.readline()
            assert line, f"seed {seed}: it ended by itself after {said}"
            said.append(line.decode().strip())
        await asyncio.sleep(rng.random() ** 2 * 0.5)
        process.kill()
        rest, _ = await process.communicate()
        said += rest.decode().rsplit("\n", 1)[0].split("\n")
        self.uncertain = None
        for one in said:
            how, _, work = one.partition(" ")
            if how == "begins":
                what, name, *more = work.split()
                self.uncertain = what, name, more[0] if more else ""
            elif how == "done":
                assert self.uncertain is not None
                self._done(*self.uncertain)
                self.uncertain = None

    def _done(self, what: str, name: str, content: str) -> None:
        if what == "define":
            self.pools.add(name)
        elif what == "undefine":
            self.pools.discard(name)
        else:
            self.volumes[name] = self._content(name, content)

    def _content(self, name: str, content: str) -> Content:
        known = {"zeros": Content("", 300_000), "empty": Content("", 0), "its-name": Content(name, 50_000)}
        return known.get(content) or self.volumes[content]

    async def _start(self, pool: Pool) -> None:
        try:
            await pool.start()
        except (StorageError, TimeoutError):
            if not await asyncio.to_thread(self.storage.revive):
                raise
            await pool.start()

    async def check(self, seed: int) -> None:
        """Check what the next process finds, and begin with that."""
        what, name, content = self.uncertain or ("", "", "")
        async with Manager(self.state) as manager:
            found = {pool.name for pool in manager.pools()}
            expected = self.pools - {name} if what in ("define", "undefine") else self.pools
            assert found - {name} == expected, f"seed {seed}: the killed process was at {self.uncertain}"
            self.pools = found
            pool = manager.pool("storage")
            if pool.active:
                await pool.stop()
            await self._start(pool)
            left = set(await asyncio.to_thread(names_on, self.storage.folder))
            assert not [one for one in left if one.startswith(TEMPORARY)], f"seed {seed}: {left}"
            volumes = {one.name for one in pool.volumes}
            assert volumes == left, f"seed {seed}"
            assert volumes - {name} == self.volumes.keys() - {name}, f"seed {seed}: it was killed at {self.uncertain}"
            if what == "make" and name in volumes:  # complete, or not there
                self._done(what, name, content)
            assert what != "fill" or name in volumes, f"seed {seed}"
            partial = {name} if what == "fill" else set[str]()  # any part of it may be there
            for one in volumes - partial:
                data = await asyncio.to_thread((self.storage.folder / one).read_bytes)
                assert data == self.volumes[one].data(), f"seed {seed}: {one}, it was killed at {self.uncertain}"
            assert not pool.info.errors, f"seed {seed}"
            for one in volumes if len(volumes) > 10 else partial:
                await pool.volume(one).delete()
            self.volumes = {one.name: self.volumes[one.name] for one in pool.volumes}


@pytest.fixture
async def storage(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Storage]:
    """The storage that the parameter names."""
    kind: str = request.param
    target = tmp_path / "pool"
    target.mkdir()
    if kind == "dir":
        yield Storage(dir_pool(target, "storage").to_xml(), target, lambda: False)
        return
    bed = request.getfixturevalue("gluster")
    with volume_in_memory(bed, f"often-{kind}", 512) as brick:
        if kind == "gluster":
            definition = gluster_pool(bed, f"often-{kind}", "storage")
        else:
            definition = netfs_pool(bed, f"often-{kind}", target, "storage")
        yield Storage(definition.to_xml(), brick, lambda: bed.revive(f"often-{kind}"))
        await asyncio.to_thread(fuse.release, target)


@pytest.mark.soak
@pytest.mark.timeout(120 + 20 * KILLS)
@pytest.mark.parametrize(
    "storage",
    [
        pytest.param("dir"),
        pytest.param("gluster", marks=SERVED),
        pytest.param("netfs", marks=[*SERVED, pytest.mark.fuse]),
    ],
    indirect=True,
)
async def test_killed_often(storage: Storage, tmp_path: Path) -> None:
    """After each kill the state can be read, what was done is there, and the next start removes what was not."""
    drill = Killed(storage, tmp_path)
    first = int(os.environ.get("ASTORE_KILLS_SEED", "1"))
    for seed in range(first, first + KILLS):
        await drill.once(seed)
        await drill.check(seed)
    async with Manager(drill.state) as manager:
        for pool in manager.pools(active=True):
            await pool.stop()
    print(f"killed {KILLS} times")
