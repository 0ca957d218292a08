"""What the netfs tests share: lanes, contexts, definitions, sessions, and mounts to stand in for others."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
import structlog
from netfs.looking import Open

from astore.backend import Context
from astore.commands import LaneCommandRunner
from astore.lanes import Lanes
from astore.model import Host, PoolDef, Source, Target
from astore_netfs import NetfsBackend
from astore_netfs.mounting.session import NetfsSession
from beds import fuse, namespace
from beds.gluster import GlusterBed


@pytest.fixture
def make_context(lanes: Lanes) -> Callable[..., Context]:
    """Makes contexts, each with a lane of its own: ``make_context(timeout=…, threads=…)``."""

    def make(timeout: float = 30.0, threads: int = 6) -> Context:
        lane = lanes.lane("pool", limit=threads, timeout=timeout)
        log = structlog.get_logger()
        return Context("pool", "", lane, LaneCommandRunner(lane, timeout), log, timeout)

    return make


@pytest.fixture
def context(make_context: Callable[..., Context]) -> Context:
    """A context with a deadline that a sound call never comes near."""
    return make_context()


@pytest.fixture
def netfs_definition() -> Callable[..., PoolDef]:
    """Makes definitions: ``netfs_definition("nfs", "host", "/dir", target=…, options=(…), version=…)``."""

    def make(
        kind: str | None = "nfs",
        host: str | tuple[str, ...] = "server",
        directory: str | None = "/export",
        *,
        target: str | Path | None = "/mnt/pool",
        options: tuple[str, ...] = (),
        version: str | None = None,
    ) -> PoolDef:
        hosts = (host,) if isinstance(host, str) else host
        return PoolDef(
            type="netfs",
            name="pool",
            source=Source(
                hosts=tuple(Host(name) for name in hosts), directory=directory, format=kind, protocol_version=version
            ),
            target=Target(path=None if target is None else str(target)),
            mount_options=options,
        )

    return make


@pytest.fixture
def stand_in() -> Iterator[Callable[[str, Path], None]]:
    """Mounts a tmpfs with any source name on a folder: ``stand_in("host:/dir", folder)``; gone afterwards."""
    with contextlib.ExitStack() as made:

        def mount(source: str, target: Path) -> None:
            target.mkdir(exist_ok=True)
            namespace.mount(source, target, "tmpfs")
            made.callback(fuse.release, target)

        yield mount


@pytest.fixture
async def definition(
    gluster: GlusterBed, new_volume: str, tmp_path: Path, netfs_definition: Callable[..., PoolDef]
) -> AsyncIterator[PoolDef]:
    """A pool on a fresh Gluster volume, not mounted; whatever is mounted is taken away afterwards."""
    target = tmp_path / "pool"
    target.mkdir()
    made = netfs_definition("glusterfs", gluster.host, new_volume, target=target)
    yield NetfsBackend().check(made)
    await asyncio.to_thread(fuse.release, target)


@pytest.fixture
async def start(definition: PoolDef, context: Context) -> AsyncIterator[Open]:
    """Starts sessions of ``definition``, which are closed afterwards."""
    opened: list[NetfsSession] = []

    async def start(context: Context = context, definition: PoolDef = definition) -> NetfsSession:
        session = await NetfsBackend().open(definition, context)
        assert isinstance(session, NetfsSession)
        opened.append(session)
        return session

    yield start
    for session in opened:
        await session.aclose()
