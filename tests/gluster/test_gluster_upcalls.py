"""What listens to a connection's upcalls, and what it leaves; the options that say whether there are any."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest
from core_fakes import eventually
from watching_support import watched

import astore
from astore.backend import Context
from astore.manager import pool_watch
from astore.model import Snapshot
from astore_gluster.backend import GlusterBackend
from astore_gluster.servers import Server
from astore_gluster.volume import told as told_module
from astore_gluster.volume.connection import ConnectionCache, Key
from astore_gluster.volume.options import BrickOptions, OptionsError, ask_options
from astore_gluster.volume.session import GlusterSession
from tests.gluster.clients import ON, OtherClient, pollers, xml

if TYPE_CHECKING:
    from beds.gluster import GlusterBed
    from tests.gluster.conftest import CountedGfapi

pytestmark = [pytest.mark.root, pytest.mark.gluster]


async def test_nothing_is_left(
    gluster: GlusterBed,
    told_volume: str,
    other: OtherClient,
    make_context: Callable[[], Context],
    counted: CountedGfapi,
) -> None:
    """After the watch there is no thread, no handle and no hold more than before, however it ends."""
    for number in range(5):
        await asyncio.to_thread(other.write, f"{other.images}/f{number}", b"x")
    await asyncio.to_thread(other.do, "mkdir", f"{other.images}/folder", 0o755)
    cache = ConnectionCache(library=counted.load)
    backend = GlusterBackend(cache)
    definition = backend.check(astore.PoolDef.from_xml(xml(gluster, told_volume, other.images)))
    session = await backend.open(definition, make_context())
    assert isinstance(session, GlusterSession)
    connection, left = session.tree.connection, counted.left
    holds = connection.holds
    told: list[object] = []
    snapshot = Snapshot.EMPTY
    for _ in range(3):  # each replaces the one before
        watch = await session.watch(lambda *what: told.append(what))
        snapshot = await session.refresh(snapshot)
    assert pollers() == 1
    await eventually(
        lambda: counted.left.get("handle", 0) == left.get("handle", 0) + 7, "a handle for each, and the folder"
    )
    await asyncio.to_thread(other.do, "unlink", f"{other.images}/f0")
    await eventually(lambda: told, "the notice")
    snapshot = await session.refresh(snapshot)
    assert counted.left["handle"] == left.get("handle", 0) + 6
    watch.close()
    watch.close()
    await eventually(lambda: not pollers(), "no thread")
    assert (counted.left, connection.holds) == (left, holds)
    assert watch.lost
    await session.watch(lambda *what: told.append(what))
    await session.refresh(snapshot)
    await session.aclose()
    await eventually(lambda: not pollers() and not connection.holds, "no thread")
    assert counted.left == left
    cache.close_idle()


async def test_two_pools_of_one_volume(
    gluster: GlusterBed,
    told_volume: str,
    other: OtherClient,
    other_of: Callable[[str], OtherClient],
    manager: astore.Manager,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """They are told on one connection, each of its own files."""
    monkeypatch.setattr(told_module, "AGAIN", 600.0)  # neither is listed unasked
    monkeypatch.setattr(pool_watch, "MOST", 600.0)
    neighbour = await asyncio.to_thread(other_of, told_volume)
    pools = []
    for number, client in enumerate((other, neighbour)):
        await asyncio.to_thread(client.write, f"{client.images}/old", b"x")
        pools.append(await manager.create(xml(gluster, told_volume, client.images, f"p{number}")))
    async with manager.watch():
        for pool in pools:
            await watched(pool, "upcalls")
            await eventually(lambda pool=pool: pool.volumes, "the file of before")
        assert pollers() == 1
        taken = 0.0
        while taken != pools[1].snapshot.taken_at:  # until what was told of the new folders is over
            taken = pools[1].snapshot.taken_at
            await asyncio.sleep(2.0)
        await asyncio.to_thread(other.truncate, f"{other.images}/old", 1000)
        await eventually(lambda: pools[0].volume("old").info.physical == 1000, "the new size")
        await asyncio.to_thread(other.write, f"{other.images}/new", b"x")
        await eventually(lambda: len(pools[0].volumes) == 2, "the new file")
        await asyncio.to_thread(other.do, "unlink", f"{other.images}/old")
        await eventually(lambda: len(pools[0].volumes) == 1, "the end of the old one")
        assert pools[1].snapshot.taken_at == taken
        await asyncio.to_thread(neighbour.write, f"{neighbour.images}/new", b"x")
        await eventually(lambda: len(pools[1].volumes) == 2, "the change of the other")
    for pool in pools:
        await pool.stop()


async def test_volume_made_again(
    gluster: GlusterBed, other_of: Callable[[str], OtherClient], context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the session has connected anew, the old watch says that it is lost, and another one can be had."""
    name = "again"
    cache = ConnectionCache()
    try:
        await asyncio.to_thread(lambda: gluster.create_volume(name, options=ON))
        backend = GlusterBackend(cache)
        definition = backend.check(astore.PoolDef.from_xml(xml(gluster, name, "/")))
        session = await backend.open(definition, context)
        assert isinstance(session, GlusterSession)
        told: list[object] = []
        watch = await session.watch(lambda *what: told.append(what))
        await session.refresh(Snapshot.EMPTY)
        await asyncio.to_thread(gluster.delete_volume, name)
        await asyncio.to_thread(lambda: gluster.create_volume(name, options=ON))
        assert not watch.lost
        while not watch.lost:
            with contextlib.suppress(OSError):
                await session.refresh(Snapshot.EMPTY)
            await asyncio.sleep(0.2)
        assert (None, False) in told
        told.clear()
        watch = await session.watch(lambda *what: told.append(what))
        await session.refresh(Snapshot.EMPTY)
        await asyncio.to_thread(other_of, name)
        await eventually(lambda: told, "the notice")
        assert watch.complete
        await session.aclose()
    finally:
        cache.close_idle()
        await asyncio.to_thread(gluster.delete_volume, name)


def test_options(gluster: GlusterBed, told_volume: str, volume_factory: Callable[..., str]) -> None:
    """Any server says what a volume's bricks tell, over TCP and over its socket; the first that answers is asked."""
    server = Server("tcp", gluster.host, 24007)
    local = Server("unix", f"{gluster.folder}/node1/run/glusterd.socket", 0)
    down = Server("tcp", gluster.host, 1)
    for servers in ((server,), (local,), (down, server)):
        assert ask_options(told_volume, servers) == BrickOptions(tell=True, timeout=1200, inodes=16384)
    other = volume_factory(options={"network.inode-lru-limit": 1000})
    assert ask_options(other, (server,)) == BrickOptions(tell=False, timeout=60, inodes=1000)
    for servers in ((down,), ()):
        with pytest.raises(OptionsError):
            ask_options(told_volume, servers)
    with pytest.raises(OptionsError):
        ask_options("missing", (server,))


@pytest.mark.parametrize(
    "answer",
    [b"", b"\x80\0\0\x04", b"\x80\0\0\x04abcd", b"\xff\xff\xff\xff", b"\0\0\0\x01a" * 3, b"\x80\0\0\x20" + bytes(32)],
)
def test_a_server_that_answers_nonsense(answer: bytes) -> None:
    """It is refused in words."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()

        def serve() -> None:
            link, _ = listener.accept()
            with link:
                link.recv(4096)
                link.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        with pytest.raises(OptionsError):
            ask_options("volume", (Server("tcp", "127.0.0.1", listener.getsockname()[1]),))
        thread.join()


def test_after_a_fork(connections: ConnectionCache, shared_key: Key) -> None:
    """A child process does not listen to its parent's connection."""
    connection = connections.acquire(shared_key)
    child = os.fork()
    if not child:
        try:
            connection.upcalls.listen(None)  # type: ignore[arg-type]
        except OSError as error:
            os._exit(error.errno or 1)
        finally:
            os._exit(1)
    connection.drop()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == errno.EBADF
