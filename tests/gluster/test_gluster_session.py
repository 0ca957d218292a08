"""Pools on real volumes: several hosts, sockets, sub-directories, replicas; and connections that are lost or hang."""

from __future__ import annotations

import asyncio
import errno
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import TYPE_CHECKING

import pytest

from astore.backend import Context
from astore.cancellation import bounded
from astore.errors import LaneStuckError
from astore.lanes import Lanes
from astore.model import Host, PoolDef, Snapshot, Source, VolumeType
from astore_gluster.backend import GlusterBackend
from astore_gluster.servers import servers_of
from astore_gluster.volume import session as session_module
from astore_gluster.volume.connection import ConnectionCache, Key
from astore_gluster.volume.session import GlusterSession
from beds.images import make_images

if TYPE_CHECKING:
    from beds.gluster import GlusterBed
    from tests.gluster.conftest import CountedGfapi, Folder

pytestmark = [pytest.mark.root, pytest.mark.gluster, pytest.mark.fuse]


def definition(volume: str, directory: str, *hosts: Host) -> PoolDef:
    return GlusterBackend().check(
        PoolDef(type="gluster", name="p", source=Source(hosts=hosts, directory=directory, name=volume))
    )


@pytest.fixture
async def backend(connections: ConnectionCache) -> GlusterBackend:
    """The backend, on the tests' own connections."""
    return GlusterBackend(connections)


@pytest.fixture
def own() -> Iterator[ConnectionCache]:
    """Connections that a test may do anything to."""
    cache = ConnectionCache()
    yield cache
    cache.close_idle()


@pytest.fixture
async def sessions() -> AsyncIterator[list[GlusterSession]]:
    """Sessions that are closed afterwards."""
    made: list[GlusterSession] = []
    yield made
    for session in made:
        await session.aclose()


async def opened(backend: GlusterBackend, wanted: PoolDef, context: Context) -> GlusterSession:
    session = await backend.open(wanted, context)
    assert isinstance(session, GlusterSession)
    return session


@pytest.fixture
def down() -> Iterator[Host]:
    """A host at which nobody listens."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield Host("127.0.0.1", bound.getsockname()[1])


@pytest.mark.parametrize("kind", ["tcp", "port", "unix", "first down", "first unknown", "all but the socket down"])
async def test_hosts(
    gluster: GlusterBed, folder: Folder, volume: str, context: Context, own: ConnectionCache, down: Host, kind: str
) -> None:
    """Any host that answers serves, over TCP and over glusterd's socket; the URL is the first host's."""
    glusterd = Host(f"{gluster.folder}/node1/run/glusterd.socket")
    hosts = {
        "tcp": (Host(gluster.host),),
        "port": (Host(gluster.host, 24007),),
        "unix": (glusterd,),
        "first down": (down, Host(gluster.host)),
        "first unknown": (Host("no-such-host.invalid"), down, Host(gluster.host)),
        "all but the socket down": (down, glusterd),
    }[kind]
    (folder.path / "a b.img").write_bytes(b"x" * 5000)
    (folder.path / "sub").mkdir()
    wanted = definition(volume, folder.name, *hosts)
    async with asyncio.timeout(120):
        session = await opened(GlusterBackend(own), wanted, context)
        snapshot = await session.refresh(Snapshot.EMPTY)
    assert list(snapshot.by_name) == ["a b.img", "sub"]
    record = snapshot.by_name["a b.img"]
    assert (record.type, record.format, record.capacity) == (VolumeType.NETWORK, "raw", 5000)
    assert snapshot.by_name["sub"].type is VolumeType.NETDIR
    if hosts[0].name.startswith("/"):
        assert record.key == f"gluster+unix:///{volume}{folder.name}/a%20b.img?socket={hosts[0].name}"
    else:
        port = f":{hosts[0].port}" if hosts[0].port else ""
        assert record.key == f"gluster://{hosts[0].name}{port}/{volume}{folder.name}/a%20b.img"
    assert record.path == record.key
    await session.aclose()


async def test_folder_of_a_folder(
    folder: Folder, volume: str, gluster: GlusterBed, backend: GlusterBackend, context: Context
) -> None:
    """A pool may be any folder of the volume, over a link too, and sees nothing else of it; not one that is missing."""
    (folder.path / "outside").write_bytes(b"")
    (folder.path / "a").mkdir()
    (folder.path / "a" / "b").mkdir()
    (folder.path / "a" / "b" / "inside").write_bytes(b"")
    (folder.path / "link").symlink_to("a/b")
    for directory in ("/a/b", "/link"):
        session = await opened(backend, definition(volume, folder.name + directory, Host(gluster.host)), context)
        assert list((await session.refresh(Snapshot.EMPTY)).by_name) == ["inside"]
        await session.aclose()
    for directory, number in (("/missing", errno.ENOENT), ("/outside", errno.ENOTDIR)):
        with pytest.raises(OSError) as caught:
            await backend.open(definition(volume, folder.name + directory, Host(gluster.host)), context)
        assert caught.value.errno == number
        assert volume in str(caught.value)
        assert directory in str(caught.value)


async def test_shared_connection(
    folder: Folder, volume: str, gluster: GlusterBed, context: Context, counted: CountedGfapi, backend: GlusterBackend
) -> None:
    """Twenty pools on one volume, started at once, make no connection more than there is."""
    before = counted.calls["new"]
    wanted = definition(volume, folder.name, Host(gluster.host))
    found = await asyncio.gather(*(opened(backend, wanted, context) for _ in range(20)))
    assert counted.calls["new"] == before
    assert len({id(session.tree.connection) for session in found}) == 1
    for session in found:
        await session.aclose()
        await session.aclose()


async def test_volume_that_is_not_started(
    gluster: GlusterBed, volume_factory: Callable[..., str], context: Context, own: ConnectionCache
) -> None:
    """No such volume, and one that is stopped, are told apart, in words with host and volume."""
    name = await asyncio.to_thread(volume_factory)
    await asyncio.to_thread(gluster.stop_volume, name)
    for volume, number, said in ((name, errno.EIO, "is it started"), ("nosuchvolume", errno.ENOENT, "no such volume")):
        with pytest.raises(OSError) as caught:
            await GlusterBackend(own).open(definition(volume, "/", Host(gluster.host)), context)
        assert caught.value.errno == number
        for part in (volume, gluster.host, said):
            assert part in str(caught.value)


@pytest.mark.parametrize("name", ["a b", "a.b", "ü", "%s%n", "x" * 254])
async def test_strange_names_of_volumes(
    gluster: GlusterBed, volume: str, context: Context, own: ConnectionCache, name: str
) -> None:
    """A name that Gluster does not take is refused by it, and harms no other connection."""
    with pytest.raises(OSError) as caught:
        await GlusterBackend(own).open(definition(name, "/", Host(gluster.host)), context)
    assert caught.value.errno in (errno.EINVAL, errno.ENOENT)
    await (await GlusterBackend(own).open(definition(volume, "/", Host(gluster.host)), context)).aclose()


async def test_replica(
    gluster: GlusterBed, volume_factory: Callable[..., str], context: Context, own: ConnectionCache
) -> None:
    """With one brick of three dead, a replicated volume is listed and read as before; without all, it is not."""
    name = await asyncio.to_thread(lambda: volume_factory(replica=3, options={"network.ping-timeout": 5}))
    await asyncio.to_thread(lambda: make_images(gluster.mount(name), 10))
    await asyncio.to_thread(gluster.unmount, name)
    session = await opened(GlusterBackend(own), definition(name, "/", Host(gluster.host)), context)
    whole = await session.refresh(Snapshot.EMPTY)
    assert len(whole) == 10
    await asyncio.to_thread(gluster.kill_brick, name, 0)
    without = await session.refresh(whole, full=True)
    assert list(without.by_name) == list(whole.by_name)
    assert not without.errors
    assert all(without.by_name[key].format == record.format for key, record in whole.by_name.items())
    await asyncio.to_thread(gluster.kill_brick, name)
    with pytest.raises(OSError):
        await session.refresh(whole)
    await session.aclose()


async def test_volume_made_again(
    gluster: GlusterBed, context: Context, own: ConnectionCache, sessions: list[GlusterSession]
) -> None:
    """A volume that was deleted and made again under its name is found by pools that run, and by those started now."""
    name = "again"
    await asyncio.to_thread(gluster.create_volume, name)
    try:
        wanted = definition(name, "/", Host(gluster.host))
        backend = GlusterBackend(own)
        for _ in range(2):
            sessions.append(await opened(backend, wanted, context))
        one, two = sessions
        await asyncio.to_thread(gluster.delete_volume, name)
        for session in (one, two):
            with pytest.raises(OSError) as caught:
                await session.refresh(Snapshot.EMPTY)
            assert caught.value.errno == errno.ENOTCONN
        await asyncio.to_thread(gluster.create_volume, name)
        await asyncio.to_thread(lambda: (gluster.mount(name) / "new.img").write_bytes(b"x"))
        started = await opened(backend, wanted, context)
        sessions.append(started)
        assert list((await started.refresh(Snapshot.EMPTY)).by_name) == ["new.img"]
        with pytest.raises(OSError):
            await one.refresh(Snapshot.EMPTY)  # it has just tried
        for session in (one, two):
            session._tried -= session_module.PAUSE
        assert list((await one.refresh(Snapshot.EMPTY)).by_name) == ["new.img"]
        record = await two.refresh_volume("new.img")
        assert record is not None
        assert len({id(session.tree.connection) for session in sessions}) == 1
        assert own.statistics()["open"] == 1
    finally:
        await asyncio.to_thread(gluster.delete_volume, name)


async def test_many_who_lost_it_at_once(
    folder: Folder, volume: str, gluster: GlusterBed, context: Context, own: ConnectionCache
) -> None:
    """Several calls that find the connection lost make one new one; a session that is closed meanwhile takes none."""
    backend = GlusterBackend(own)
    session = await opened(backend, definition(volume, folder.name, Host(gluster.host)), context)
    lost = session.tree
    renewed = await asyncio.gather(*(session._renew(lost) for _ in range(3)))
    assert sorted(renewed) == [False, False, True], "one connects, and the others are not kept waiting"
    assert session.tree is not lost
    assert await session._renew(lost) is True, "another call was faster"
    with pytest.raises(OSError):
        lost.check_folder()
    assert own.statistics()["open"] == 1
    lost = session.tree
    renewing = asyncio.create_task(session._renew(lost))
    await asyncio.sleep(0)
    await session.aclose()
    assert await renewing is False
    assert await session._renew(lost) is False
    assert own.statistics()["idle"] == own.statistics()["open"] == 1


async def test_server_that_says_nothing(
    make_context: Callable[..., Context], lanes: Lanes, own: ConnectionCache, volume: str
) -> None:
    """A host that takes the connection and is silent costs one thread, and each who asks its own deadline."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        wanted = definition(volume, "/", Host("127.0.0.1", listener.getsockname()[1]))
        context = make_context(0.4)
        for _ in range(4):
            with pytest.raises(TimeoutError):
                await GlusterBackend(own).open(wanted, context)
        await until(lambda: sum(lane.stuck for lane in lanes.statistics().lanes) == 1)
        assert own.statistics()["opening"] == 1
        task = asyncio.create_task(GlusterBackend(own).open(wanted, make_context(30)))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    # the listener is gone, and with it the connection: who waited for it is told, and the thread is free
    await until(lambda: not lanes.statistics().stuck)
    await until(lambda: not own.statistics()["opening"])


async def test_cancelled_open_holds_nothing(
    folder: Folder, volume: str, gluster: GlusterBed, make_context: Callable[..., Context], own: ConnectionCache
) -> None:
    """An open that is cancelled while it connects lets the connection go when it comes; the next open takes it."""
    gate, came = threading.Event(), threading.Event()
    real = own._connect

    def connect(key: Key, timeout: float) -> object:
        came.set()
        assert gate.wait(30)
        return real(key, timeout)

    own._connect = connect  # type: ignore[assignment, method-assign]
    wanted = definition(volume, folder.name, Host(gluster.host))
    context = make_context()
    tasks = [asyncio.create_task(GlusterBackend(own).open(wanted, context)) for _ in range(3)]
    assert await asyncio.to_thread(came.wait, 30)
    for task in tasks:
        task.cancel()
    for task in tasks:
        with pytest.raises(asyncio.CancelledError):
            await task
    gate.set()
    await until(lambda: own.statistics() == {"open": 1, "idle": 1, "opening": 0, "closing": 0})
    session = await opened(GlusterBackend(own), wanted, context)
    assert own.statistics()["open"] == 1
    assert session.tree.connection.holds == 1
    await session.aclose()


async def test_given_up_while_closing_holds_nothing(
    gluster: GlusterBed, new_volume: str, own: ConnectionCache, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A session whose work does not end in time lets its connection go all the same."""
    session = await opened(GlusterBackend(own), definition(new_volume, "/", Host(gluster.host)), context)
    monkeypatch.setattr(session, "end_work", asyncio.Event().wait)
    await bounded(session.aclose(), 0.01)
    assert own.statistics()["open"] == own.statistics()["idle"] == 1


async def test_listing_that_fails_after_its_first_entry(
    folder: Folder,
    volume: str,
    gluster: GlusterBed,
    context: Context,
    own: ConnectionCache,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What was listed before, such as when the pool is closed meanwhile, holds the connection no longer."""
    await asyncio.to_thread(make_images, folder.path, 3)
    session = await opened(GlusterBackend(own), definition(volume, folder.name, Host(gluster.host)), context)
    with monkeypatch.context() as patch:
        patch.setattr(session.tree, "has_notes", lambda: session.tree.statvfs() and session.tree.path(""))
        with pytest.raises(OSError, match="Invalid argument"):
            await session.refresh(Snapshot.EMPTY)
    assert session.tree.connection.holds == 1
    assert len(await session.refresh(Snapshot.EMPTY)) == 3
    await session.aclose()


async def test_hung_brick(
    gluster: GlusterBed, volume_factory: Callable[..., str], make_context: Callable[..., Context], own: ConnectionCache
) -> None:
    """A brick that hangs costs calls their deadline; with all threads stuck calls fail at once, closing works all the same."""
    name = await asyncio.to_thread(lambda: volume_factory(options={"network.ping-timeout": 60}))
    wanted = definition(name, "/", Host(gluster.host))
    context = make_context(0.3)
    session = await opened(GlusterBackend(own), wanted, make_context())
    session.context = context
    connection = session.tree.connection
    await asyncio.to_thread(gluster.stop_brick, name)
    try:
        for _ in range(40):  # every other one waits in vain for the end of the one before it
            with pytest.raises(TimeoutError) as late:
                await session.refresh(Snapshot.EMPTY)
            if late.type is LaneStuckError:
                break
        else:
            pytest.fail("the threads are not all stuck")
        await session.aclose()
        with pytest.raises(OSError) as caught:
            session.tree.statvfs()
        assert caught.value.errno == errno.EBADF
    finally:
        await asyncio.to_thread(gluster.continue_brick, name)
    await until(lambda: connection.holds == 0)


async def test_lost_and_silent(
    gluster: GlusterBed,
    volume_factory: Callable[..., str],
    context: Context,
    own: ConnectionCache,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where connecting anew takes too long, the error that there was is told, and what comes too late is let go."""
    name = await asyncio.to_thread(lambda: volume_factory())
    session = await opened(GlusterBackend(own), definition(name, "/", Host(gluster.host)), context)
    gate = threading.Event()
    real = own._connect

    def connect(key: Key, timeout: float) -> object:
        assert gate.wait(60)
        return real(key, timeout)

    own._connect = connect  # type: ignore[assignment, method-assign]
    monkeypatch.setattr(session_module, "PATIENCE", 2.0)
    await asyncio.to_thread(gluster.kill_brick, name)
    with pytest.raises(OSError) as caught:
        await session.refresh(Snapshot.EMPTY)
    assert caught.value.errno == errno.ENOTCONN
    await until(lambda: own.statistics()["opening"] == 1)
    gate.set()
    await until(lambda: own.statistics()["opening"] == 0)
    await session.aclose()


async def test_what_else_may_go_wrong_on_opening(
    folder: Folder,
    volume: str,
    gluster: GlusterBed,
    backend: GlusterBackend,
    context: Context,
    connections: ConnectionCache,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whatever opening ends with, the hold on the connection is given back."""
    connection = connections.acquire(Key(volume, servers_of([Host(gluster.host)])))
    holds = connection.holds
    monkeypatch.setattr("astore_gluster.volume.tree.GlusterTree.check_folder", lambda self: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        await backend.open(definition(volume, folder.name, Host(gluster.host)), context)
    assert connection.holds == holds
    connection.drop()


async def until(condition: Callable[[], object], seconds: float = 120) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)
