"""A replicated volume that has lost its quorum."""

from __future__ import annotations

import asyncio
import contextlib
import errno
from collections.abc import Awaitable, Callable, Iterator
from typing import TYPE_CHECKING

import pytest

from astore.backend import Context, RefreshesVolume
from astore.model import Host, PoolDef, Snapshot, Source
from astore_gluster.backend import GlusterBackend
from astore_gluster.volume.connection import ConnectionCache
from beds.images import make_images

if TYPE_CHECKING:
    from beds.gluster import GlusterBed

pytestmark = [pytest.mark.root, pytest.mark.gluster, pytest.mark.fuse]


@pytest.fixture
def own() -> Iterator[ConnectionCache]:
    """Connections that a test may do anything to."""
    cache = ConnectionCache()
    yield cache
    cache.close_idle()


@pytest.mark.parametrize("directory", ["/", "/sub"])
async def test_lost_quorum(
    gluster: GlusterBed, volume_factory: Callable[..., str], context: Context, own: ConnectionCache, directory: str
) -> None:
    """With too few bricks for a quorum the volume does not answer, and that is said, of a single file too."""
    options: dict[str, str | int] = {"cluster.quorum-type": "auto", "network.ping-timeout": 5}
    name = await asyncio.to_thread(lambda: volume_factory(replica=3, options=options))

    def fill() -> None:
        folder = gluster.mount(name) / directory[1:]
        folder.mkdir(exist_ok=True)
        make_images(folder, 3)
        gluster.unmount(name)

    await asyncio.to_thread(fill)
    backend = GlusterBackend(own)
    source = Source(hosts=(Host(gluster.host),), directory=directory, name=name)
    session = await backend.open(backend.check(PoolDef(type="gluster", name="p", source=source)), context)
    assert isinstance(session, RefreshesVolume)
    whole = await session.refresh(Snapshot.EMPTY)
    for index in (0, 1):
        await asyncio.to_thread(gluster.kill_brick, name, index)
    calls = (lambda: session.refresh(whole, full=True), lambda: session.refresh_volume(next(iter(whole.by_name))))
    for call in calls:
        error = await until_it_fails(call)
        assert error.errno == errno.ENOTCONN
        assert f"Gluster volume '{name}' on {gluster.host}: too few of its bricks answer" in str(error)
    await asyncio.to_thread(lambda: gluster.start_volume(name, force=True))
    async with asyncio.timeout(120):
        while True:
            with contextlib.suppress(OSError):
                assert len(await session.refresh(whole)) == 3
                break
            await asyncio.sleep(0.1)
    await session.aclose()


async def until_it_fails(call: Callable[[], Awaitable[object]]) -> OSError:
    """Repeat a call until it fails: a client may take a moment to notice that a brick is dead."""
    async with asyncio.timeout(120):
        while True:
            try:
                await call()
            except OSError as error:
                return error
            await asyncio.sleep(0.05)
