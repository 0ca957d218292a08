"""The connections of a process: how they are made and shared, and what is said where they fail. With a library made for it."""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from astore.errors import BackendLoadError
from astore_gluster.servers import Server
from astore_gluster.volume import connection as connection_module
from astore_gluster.volume.connection import ConnectionCache, Key
from tests.gluster.caches import counts, until

if TYPE_CHECKING:
    from tests.gluster.conftest import Fake


def test_shared(fake: Fake, make: Callable[..., ConnectionCache], key: Callable[..., Key]) -> None:
    """The same volume and servers are one connection, counted; another volume is another."""
    cache = make()
    first = cache.acquire(key())
    assert cache.acquire(key()) is first
    other = cache.acquire(key("w"))
    assert other is not first
    assert (first.holds, other.holds, fake.made) == (2, 1, [b"v", b"w"])
    first.hold()
    first.drop()
    first.drop()
    assert counts(cache) == (2, 0, 0, 0)
    first.drop()
    assert counts(cache) == (2, 1, 0, 0)
    assert cache.acquire(key()) is first, "one that is idle is used again"
    assert "'v'" in repr(first)
    assert "127.0.0.1" in str(key())
    for connection in (first, other):
        connection.drop()
    cache.close_idle()
    until(lambda: counts(cache) == (0, 0, 0, 0))
    assert sorted(fake.finished) == [1, 2]


def test_made_once_for_many(fake: Fake, make: Callable[..., ConnectionCache], key: Callable[..., Key]) -> None:
    """Threads that ask while it is made wait for it, and each has its hold."""
    cache = make()
    fake.gate.clear()
    with ThreadPoolExecutor(16) as pool:
        asked = [pool.submit(cache.acquire, key()) for _ in range(16)]
        until(lambda: cache._opening and cache._opening[key()].waiting == 15)
        assert counts(cache) == (0, 0, 1, 0)
        fake.gate.set()
        found = {id(task.result()) for task in asked}
    assert len(found) == 1
    assert (len(fake.made), asked[0].result().holds) == (1, 16)


def test_failing_for_many(fake: Fake, make: Callable[..., ConnectionCache], key: Callable[..., Key]) -> None:
    """All who wait get the error, each an object of its own; what failed is closed, and the next attempt is another."""
    cache = make()
    fake.gate.clear()
    fake.errno = errno.ENOENT
    with ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(cache.acquire, key()) for _ in range(4)]
        until(lambda: cache._opening and cache._opening[key()].waiting == 3)
        fake.gate.set()
        errors = [task.exception() for task in asked]
    assert all(isinstance(error, FileNotFoundError) and "no such volume" in str(error) for error in errors)
    assert len(set(map(id, errors))) == 4
    until(lambda: counts(cache) == (0, 0, 0, 0))
    assert fake.finished == [1]
    fake.errno = 0
    cache.acquire(key())
    assert len(fake.made) == 2


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (errno.ENOENT, "no such volume"),
        (errno.EIO, "is it started"),
        (errno.EACCES, os.strerror(errno.EACCES)),
        (errno.EINVAL, "cannot read the server's volume file"),
        (0, os.strerror(errno.ENOTCONN)),
    ],
)
def test_why_not(
    fake: Fake, make: Callable[..., ConnectionCache], key: Callable[..., Key], number: int, said: str
) -> None:
    """What init's errno means, in words, with volume and host; a failure without one is a lack of connection."""
    fake.init = lambda fs: (ctypes.set_errno(number), -1)[1]  # type: ignore[method-assign, func-returns-value]
    with pytest.raises(OSError) as caught:
        make().acquire(key())
    assert caught.value.errno == (number or errno.ENOTCONN)
    assert said in str(caught.value)
    assert "'v'" in str(caught.value)
    assert "127.0.0.1" in str(caught.value)


def test_names_the_library_refuses(fake: Fake, make: Callable[..., ConnectionCache], key: Callable[..., Key]) -> None:
    """A name that is too long never gets there; one that it refuses is no lack of memory; and the other way round."""
    cache = make()
    with pytest.raises(OSError, match="too long"):
        cache.acquire(key("x" * 255))
    assert fake.made == []
    fake.new_fails = True
    for number, said in ((errno.EINVAL, "cannot be the name"), (errno.ENOMEM, "memory"), (0, "memory")):
        fake.errno = number
        with pytest.raises(OSError, match=said) as caught:
            cache.acquire(key())
        assert caught.value.errno == (number or errno.ENOMEM)
    assert counts(cache) == (0, 0, 0, 0)


def test_server_the_library_refuses(fake: Fake, make: Callable[..., ConnectionCache], key: Callable[..., Key]) -> None:
    """Without servers, libgfapi would ask this machine: it is not even tried."""
    fake.server_fails = True
    fake.init = lambda fs: pytest.fail("init was called")  # type: ignore[method-assign]
    cache = make()
    with pytest.raises(OSError) as caught:
        cache.acquire(key())
    assert caught.value.errno == errno.EINVAL
    until(lambda: fake.finished == [1])


def test_nobody_answers(fake: Fake, make: Callable[..., ConnectionCache]) -> None:
    """The library is not called where nobody listens; the error names each host and its reason."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        servers = (Server("tcp", "127.0.0.1", bound.getsockname()[1]), Server("unix", "/nonexistent", 0))
        with pytest.raises(OSError) as caught:
            make().acquire(Key("v", servers))
    assert caught.value.errno == errno.ECONNREFUSED
    for part in ("'v'", "127.0.0.1", "/nonexistent", os.strerror(errno.ENOENT)):
        assert part in str(caught.value)
    with pytest.raises(OSError) as caught:
        make().acquire(Key("v", ()))
    assert caught.value.errno == errno.EINVAL
    assert fake.made == []


def test_servers_in_the_order_that_helps(
    fake: Fake, make: Callable[..., ConnectionCache], key: Callable[..., Key]
) -> None:
    """Who answers is the first that the library asks; who does not is still told to it, as a spare."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        down = Server("tcp", "127.0.0.1", bound.getsockname()[1])
        (up,) = key().servers
        make().acquire(Key("v", (down, up)))
    assert fake.servers == [(b"tcp", b"127.0.0.1", up.port), (b"tcp", b"127.0.0.1", down.port)]


def test_waiting_for_one_that_hangs(fake: Fake, make: Callable[..., ConnectionCache], key: Callable[..., Key]) -> None:
    """Who joins an attempt waits for its own timeout and no longer; who made it gets it when it comes."""
    cache = make()
    fake.gate.clear()
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(cache.acquire, key())
        until(lambda: cache._opening)
        for _ in range(3):
            with pytest.raises(OSError, match="still connecting") as caught:
                cache.acquire(key(), 0.01)
            assert caught.value.errno == errno.ETIMEDOUT
        assert counts(cache) == (0, 0, 1, 0)
        fake.gate.set()
        assert first.result().holds == 1


def test_coming_at_the_very_end_of_the_timeout(make: Callable[..., ConnectionCache], key: Callable[..., Key]) -> None:
    """Who gives up in the moment in which the connection comes has it all the same: its hold was counted."""
    cache = make()

    class Late(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            came = super().wait(30)
            return came and timeout is None

    class Opening(connection_module._Opening):
        def __init__(self) -> None:
            super().__init__()
            self.done = Late()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(connection_module, "_Opening", Opening)
        with ThreadPoolExecutor(8) as pool:
            found = [task.result() for task in [pool.submit(cache.acquire, key(), 5) for _ in range(8)]]
    assert len(set(map(id, found))) == 1
    assert found[0].holds == 8


def test_what_is_no_oserror(make: Callable[..., ConnectionCache], key: Callable[..., Key]) -> None:
    """A library that cannot be loaded is that for who tries it, and an error for who waits."""
    came = threading.Event()

    def load() -> Any:
        assert came.wait(30)
        raise BackendLoadError("too old", type="gluster")

    cache = ConnectionCache(library=load)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(cache.acquire, key())
        until(lambda: cache._opening)
        second = pool.submit(cache.acquire, key())
        until(lambda: cache._opening[key()].waiting)
        came.set()
        assert isinstance(first.exception(), BackendLoadError)
        error = second.exception()
    assert isinstance(error, OSError)
    assert "too old" in str(error)
