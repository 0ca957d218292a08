"""What tests of volume work on local files need: a folder, a pool on it, and a small file system."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from odd_folders import OddFolders

from astore.backend import Context
from astore.commands import LaneCommandRunner
from astore.lanes import Lanes
from astore.lanes.lane import PoolLane
from astore.logs import get_logger
from astore.manager import Manager
from astore.model import PoolDef, Target
from astore.pools.pool import Pool
from astore.registry import BackendRegistry
from astore.testing.faults import Faults
from beds import namespace


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The pool's folder."""
    made = tmp_path / "pool"
    made.mkdir()
    return made


@pytest.fixture
def faults() -> Iterator[Faults]:
    """Nothing, until the test says what; calls that hang are released after it."""
    with Faults() as faults:
        yield faults


@pytest.fixture
async def manager(tmp_path: Path, faults: Faults) -> AsyncIterator[Manager]:
    """A Manager whose pools of type ``dir`` have faults."""
    registry = BackendRegistry(group=None)
    registry.register(faults.into(OddFolders()))
    async with Manager(tmp_path / "state", registry=registry) as manager:
        yield manager


@pytest.fixture
async def pool(manager: Manager, folder: Path) -> Pool:
    """A started pool on the folder."""
    pool = await manager.define(PoolDef(type="dir", name="p", target=Target(path=str(folder))))
    await pool.start()
    return pool


@pytest.fixture
def lane() -> Iterator[PoolLane]:
    """Threads, without a pool."""
    lanes = Lanes()
    yield lanes.lane("test", limit=4, timeout=20.0)
    lanes.close()


@pytest.fixture
def context(lane: PoolLane) -> Context:
    """What the core lends, without a core."""
    return Context("p", "", lane, LaneCommandRunner(lane), get_logger())


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MiB."""
    target = tmp_path / "small"
    target.mkdir()
    namespace.mount("tmpfs", target, "tmpfs", data="size=4m")
    yield target
    namespace.unmount(target)
