"""A pool whose cluster shut it out makes one new connection, whoever asks, and closes each connection once."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any, cast

import pytest

from astore.backend import Lane
from astore_rbd.cluster import Cluster
from astore_rbd.images.listing import Listing
from astore_rbd.images.pool import RbdPool
from beds.processes import wait_until


class Link:
    """A connection that counts how often it is ended."""

    lib = io = None

    def __init__(self, number: int, shut_out: bool) -> None:
        self.device = f"rbd:{number}"
        self.shut_out = shut_out
        self.users = self.ended = 0
        self.over = False
        self.lock = threading.Lock()

    def hold(self) -> None:
        with self.lock:
            if self.over:
                raise OSError(errno.EBADF, "closed")
            self.users += 1

    def drop(self) -> None:
        with self.lock:
            self.users -= 1
            self.ended += self.over and not self.users

    def close(self) -> None:
        with self.lock:
            self.ended += not self.over and not self.users
            self.over = True


class Links:
    """The connections of a pool, of which the first ones are shut out."""

    def __init__(self, shut_out: int) -> None:
        self.made: list[Link] = []
        self.shut_out = shut_out
        self.before: Callable[[], object] = lambda: None

    def connect(self) -> Cluster:
        self.before()
        self.made.append(Link(len(self.made), len(self.made) < self.shut_out))
        return cast(Cluster, self.made[-1])

    def pool(self) -> RbdPool:
        return RbdPool(
            self.connect, self.connect(), cast(Lane, SimpleNamespace(given_up=False)), "images", allocation=False
        )


@pytest.fixture(autouse=True)
def looked(monkeypatch: pytest.MonkeyPatch) -> None:
    """A look at an image fails on a connection that is shut out."""

    def look(listing: Any, name: str) -> str:
        if listing._cluster.shut_out:
            raise OSError(errno.ESHUTDOWN, "shut out")
        return str(listing._cluster.device)

    monkeypatch.setattr(Listing, "look", look)


def test_one_for_all() -> None:
    """Threads that are shut out together share one new connection; the old one is closed once, after its last use."""
    links = Links(1)
    pool = links.pool()
    together = threading.Barrier(8)
    real = Listing.look

    def look(listing: Any, name: str) -> Any:
        if listing._cluster.shut_out:
            together.wait(30)
        return real(listing, name)

    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(8) as threads:
        patch.setattr(Listing, "look", look)
        assert set(threads.map(lambda _: cast(Any, pool.look("a")), range(8))) == {"rbd:1"}
    assert len(links.made) == 2
    assert pool.device == "rbd:1"
    wait_until(lambda: links.made[0].ended == 1, 30, "an end of the old connection")
    pool.close()
    pool.close()
    assert [one.ended for one in links.made] == [1, 1]
    with pytest.raises(OSError, match="closed"):
        pool.look("a")


def test_still_shut_out() -> None:
    """A new connection that is shut out too is tried once for a call, and kept until the next one."""
    links = Links(3)
    pool = links.pool()
    for count in (2, 3):
        with pytest.raises(OSError, match="shut out"):
            pool.look("a")
        assert len(links.made) == count
    assert cast(Any, pool.look("a")) == "rbd:3"
    wait_until(lambda: [one.ended for one in links.made] == [1, 1, 1, 0], 30, "an end of the old connections")


def test_no_new_connection() -> None:
    """If the cluster does not answer, the old connection stays, and the next call tries again."""
    links = Links(1)
    pool = links.pool()

    def refuse() -> None:
        raise OSError(errno.ENOTCONN, "the cluster does not answer")

    links.before = refuse
    with pytest.raises(OSError, match="does not answer"):
        pool.look("a")
    assert not links.made[0].over
    links.before = lambda: None
    assert cast(Any, pool.look("a")) == "rbd:1"


def test_closed_meanwhile() -> None:
    """A pool that is closed while it connects anew closes what it made."""
    links = Links(1)
    pool = links.pool()
    links.before = pool.close
    with pytest.raises(OSError, match="the pool is closed"):
        pool.look("a")
    assert [one.ended for one in links.made] == [1, 1]
