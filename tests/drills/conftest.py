"""What the drills share: netfs pools on FUSE file systems that misbehave, and a Manager that is left before they end."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from astore.manager import Manager
from astore.model import Host, PoolDef, Source, Target
from beds.fuse_fs import FuseFs


class Drill(NamedTuple):
    """A file system, and the pool that mounts it."""

    fs: FuseFs
    definition: PoolDef

    @property
    def target(self) -> Path:
        """Where the pool is mounted."""
        assert self.definition.target.path is not None
        return Path(self.definition.target.path)


Make = Callable[..., Drill]


@pytest.fixture
def new_drill(new_fuse_fs: Callable[..., FuseFs], tmp_path: Path) -> Make:
    """Makes a file system, with the arguments of ``FuseFs`` after the folder, and the definition of a netfs pool on it."""

    def make(name: str = "drill", **settings: object) -> Drill:
        fs = new_fuse_fs(**settings).lend_to_netfs()
        target = tmp_path / f"{name}-target"
        target.mkdir()
        source = Source(hosts=(Host(fs.host),), directory=fs.directory, format="glusterfs")
        return Drill(fs, PoolDef(type="netfs", name=name, source=source, target=Target(path=str(target))))

    return make


@pytest.fixture
def call_timeout() -> float:
    """Seconds that a call of the Manager's pools may take."""
    return 60.0


@pytest.fixture
async def manager(new_drill: Make, tmp_path: Path, call_timeout: float) -> AsyncIterator[Manager]:
    """A Manager. It is left while the drill's file systems are still served, whatever state they are in."""
    async with Manager(tmp_path / "state", call_timeout=call_timeout) as manager:
        yield manager
