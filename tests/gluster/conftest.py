"""What the gluster tests share: a volume, connections whose handles are counted, folders seen from two sides."""

from __future__ import annotations

import contextlib
import copy
import ctypes
import errno
import itertools
import socket
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
import structlog

import astore
from astore.backend import Context
from astore.commands import LaneCommandRunner
from astore.lanes import Lanes
from astore_gluster import libgfapi
from astore_gluster.libgfapi import Gfapi
from astore_gluster.servers import Server
from astore_gluster.volume import upcalls
from astore_gluster.volume.connection import CONNECTIONS, Connection, ConnectionCache, Key
from astore_gluster.volume.tree import GlusterTree
from beds import namespace
from tests.gluster.clients import ON, OtherClient

if TYPE_CHECKING:
    from beds.gluster import GlusterBed


_GIVES = {
    "object_copy": "handle",
    "h_lookupat": "handle",
    "open": "file",
    "h_open": "file",
    "creat": "file",
    "opendir": "listing",
    "new": "connection",
}
_TAKES = {"h_close": "handle", "close": "file", "closedir": "listing", "fini": "connection"}


class CountedGfapi:
    """libgfapi with a count of its calls, and of the objects that it gave and took back."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self.open: Counter[str] = Counter()
        self._lock = threading.Lock()

    def load(self) -> Gfapi:
        """The library, counted here."""
        gfapi = copy.copy(libgfapi.load())
        for name in libgfapi.Gfapi.declarations:
            setattr(gfapi, name, self._counted(name, getattr(gfapi, name)))
        return gfapi

    def _counted(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            result = function(*arguments)
            with self._lock:
                self.calls[name] += 1
                if result is not None and name in _GIVES:
                    self.open[_GIVES[name]] += 1
                if name in _TAKES:
                    self.open[_TAKES[name]] -= 1
            return result

        return call

    @property
    def left(self) -> dict[str, int]:
        """What is open, beside connections."""
        with self._lock:
            return {kind: count for kind, count in self.open.items() if count and kind != "connection"}


class Folder(NamedTuple):
    """A folder of a volume: ``path`` through a FUSE mount, ``tree`` through libgfapi, ``name`` in the volume."""

    path: Path
    tree: GlusterTree
    name: str


@pytest.fixture(scope="session")
def counted() -> CountedGfapi:
    """The counts of ``connections``."""
    return CountedGfapi()


@pytest.fixture(scope="session")
def connections(counted: CountedGfapi) -> Iterator[ConnectionCache]:
    """Connections of the tests' own. Closing one takes 10 s: they are few, and nobody waits for it."""
    cache = ConnectionCache(library=counted.load)
    yield cache
    cache.close_idle()


@pytest.fixture(scope="session")
def volume(gluster: GlusterBed) -> Iterator[str]:
    """A volume of two bricks, mounted by FUSE, in which tests have folders."""
    name = "shared"
    with contextlib.ExitStack() as stack:
        gluster.create_volume(name, bricks=2)
        stack.callback(gluster.delete_volume, name)
        gluster.mount(name, options=("--attribute-timeout=0", "--entry-timeout=0"))
        yield name


@pytest.fixture
def shared_key(gluster: GlusterBed, volume: str) -> Key:
    """What names the shared volume's connection."""
    return Key(volume, (Server("tcp", gluster.host, 24007),))


@pytest.fixture
def connection(connections: ConnectionCache, shared_key: Key) -> Iterator[Connection]:
    """A connection to the shared volume, held by the test."""
    connection = connections.acquire(shared_key)
    yield connection
    connection.drop()


@pytest.fixture
def volume_in_memory(gluster: GlusterBed) -> Iterator[str]:
    """A fresh volume of three bricks in memory, where thousands of files are made and removed quickly."""
    name = "memory"
    bricks = [gluster.folder / "node1" / "bricks" / f"{name}.{n}" for n in range(3)]
    with contextlib.ExitStack() as stack:
        for brick in bricks:
            brick.mkdir()
            stack.callback(brick.rmdir)
            namespace.mount("tmpfs", brick, "tmpfs")
            stack.callback(namespace.unmount, brick)
        gluster.create_volume(name, bricks=3)
        stack.callback(gluster.delete_volume, name)
        yield name


_numbers = itertools.count(1)


@pytest.fixture
def folder(gluster: GlusterBed, volume: str, connection: Connection, counted: CountedGfapi) -> Iterator[Folder]:
    """A fresh folder of the shared volume. Nothing that was opened through its tree may be left open."""
    name = f"/folder{next(_numbers)}"
    path = gluster.mount(volume) / name[1:]
    path.mkdir()
    before, holds = counted.left, connection.holds
    connection.hold()
    tree = GlusterTree(connection, name, (f"gluster://{gluster.host}/{volume}{name}/", ""))
    yield Folder(path, tree, name)
    tree.close()
    assert counted.left == before, "left open"
    assert connection.holds == holds, "a hold was not given back"


@pytest.fixture
def make_context(lanes: Lanes) -> Callable[..., Context]:
    """Makes contexts, each with a lane of its own: ``make_context(timeout=…)``."""

    def make(timeout: float = 30.0) -> Context:
        lane = lanes.lane("pool", limit=10, timeout=timeout)
        return Context("pool", "", lane, LaneCommandRunner(lane, timeout), structlog.get_logger(), timeout)

    return make


@pytest.fixture
def context(make_context: Callable[..., Context]) -> Context:
    """A context with a deadline that a sound call never comes near."""
    return make_context()


# --------------------------------------------------------------------------------- a library made for the tests


class Fake:
    """A library whose connections are numbers. ``gate`` and ``fini_gate``: what init and fini wait for."""

    def __init__(self) -> None:
        self.made: list[bytes] = []
        self.finished: list[int] = []
        self.servers: list[tuple[bytes, bytes, int]] = []
        self.gate = threading.Event()
        self.fini_gate = threading.Event()
        self.gate.set()
        self.fini_gate.set()
        self.errno = 0
        self.new_fails = False
        self.server_fails = False
        self._lock = threading.Lock()

    def load(self) -> Any:
        return self

    def new(self, volume: bytes) -> int | None:
        if self.new_fails:
            ctypes.set_errno(self.errno)
            return None
        with self._lock:
            self.made.append(volume)
            return len(self.made)

    def set_logging(self, fs: int, path: bytes, level: int) -> int:
        return 0

    def set_xlator_option(self, fs: int, translator: bytes, key: bytes, value: bytes) -> int:
        return 0

    def set_volfile_server(self, fs: int, transport: bytes, host: bytes, port: int) -> int:
        self.servers.append((transport, host, port))
        if self.server_fails:
            ctypes.set_errno(errno.EINVAL)
            return -1
        return 0

    def init(self, fs: int) -> int:
        assert self.gate.wait(30)
        if self.errno:
            ctypes.set_errno(self.errno)
            return -1
        return 0

    def fini(self, fs: int) -> int:
        assert self.fini_gate.wait(30)
        with self._lock:
            self.finished.append(fs)
        return -1  # as it does whenever something was still referenced


@pytest.fixture
def fake() -> Iterator[Fake]:
    fake = Fake()
    yield fake
    fake.gate.set()
    fake.fini_gate.set()


@pytest.fixture
def make(fake: Fake) -> Iterator[Callable[..., ConnectionCache]]:
    made: list[ConnectionCache] = []

    def make(**options: Any) -> ConnectionCache:
        made.append(ConnectionCache(library=fake.load, **options))
        return made[-1]

    yield make
    for cache in made:
        cache.close_idle()  # and with the last of them ends the thread that watches them


@pytest.fixture
def key() -> Iterator[Callable[..., Key]]:
    """Names connections to a server that listens: ``key("volume")``."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(4096)  # nobody accepts
        server = Server("tcp", "127.0.0.1", listener.getsockname()[1])
        yield lambda volume="v": Key(volume, (server,))


# ------------------------------------------------------------------------------------------------------- the watch


@pytest.fixture(scope="module")
def others() -> Iterator[ConnectionCache]:
    """The connections of other clients."""
    cache = ConnectionCache()
    yield cache
    cache.close_idle()


@pytest.fixture(scope="module")
def told_volume(gluster: GlusterBed) -> Iterator[str]:
    """A volume of two bricks that tell of changes."""
    gluster.create_volume("told", bricks=2, options=ON)
    yield "told"
    CONNECTIONS.close_idle()
    gluster.delete_volume("told")


@pytest.fixture
def other_of(gluster: GlusterBed, others: ConnectionCache) -> Iterator[Callable[[str], OtherClient]]:
    """Makes other clients of a volume; each has two empty folders."""
    made: list[Connection] = []

    def make(volume: str) -> OtherClient:
        made.append(others.acquire(Key(volume, (Server("tcp", gluster.host, 24007),))))
        client = OtherClient(made[-1])
        for folder in (client.images, client.elsewhere):
            client.do("mkdir", folder, 0o755)
        return client

    yield make
    for connection in made:
        connection.drop()


@pytest.fixture
def other(other_of: Callable[[str], OtherClient], told_volume: str) -> OtherClient:
    """Another client of the volume that tells."""
    return other_of(told_volume)


@pytest.fixture
async def manager(tmp_path: Path) -> AsyncIterator[astore.Manager]:
    async with astore.Manager(tmp_path / "state") as manager:
        yield manager


@pytest.fixture
def notices(monkeypatch: pytest.MonkeyPatch) -> list[upcalls.Notice]:
    """All notices that pools are given."""
    given: list[upcalls.Notice] = []
    give = upcalls.Listener.give

    def spy(self: upcalls.Listener, batch: list[upcalls.Notice]) -> None:
        given.extend(batch)
        give(self, batch)

    monkeypatch.setattr(upcalls.Listener, "give", spy)
    return given
