"""The connections of a process: their bounds, their replacement, their end, and forks. With a library made for it."""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import signal
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from astore_gluster.volume.connection import Connection, ConnectionCache, Key
from tests.gluster.caches import counts, until

if TYPE_CHECKING:
    from tests.gluster.conftest import Fake


def test_bounds(fake: Fake, make: Callable[..., ConnectionCache], key: Callable[..., Key]) -> None:
    """No more than the limit; one that is idle makes room, the oldest first; and not without end while these close."""
    cache = make(limit=3, idle_limit=3)
    held = [cache.acquire(key(str(n))) for n in range(3)]
    with pytest.raises(OSError, match="in use") as caught:
        cache.acquire(key("more"))
    assert caught.value.errno == errno.EMFILE
    fake.fini_gate.clear()
    held[1].drop()
    held[0].drop()
    cache.acquire(key("3"))
    assert counts(cache) == (3, 1, 0, 1)
    cache.acquire(key("0")).drop()
    assert len(fake.made) == 4, "the one that became idle last was kept"
    for number in (4, 5):
        cache.acquire(key(str(number))).drop()
    assert counts(cache) == (3, 1, 0, 3)
    with pytest.raises(OSError, match="still being closed") as caught:
        cache.acquire(key("6"))
    assert caught.value.errno == errno.EMFILE
    assert counts(cache) == (3, 1, 0, 3), "none was given up in vain"
    fake.fini_gate.set()
    until(lambda: counts(cache)[3] == 0)
    cache.acquire(key("6"))


def test_idle_ones_are_few(fake: Fake, make: Callable[..., ConnectionCache], key: Callable[..., Key]) -> None:
    """Beyond ``idle_limit``, the one that has been idle for longest is closed."""
    cache = make(idle_limit=2)
    connections = [cache.acquire(key(str(n))) for n in range(4)]
    for connection in connections:
        connection.drop()
    until(lambda: counts(cache) == (2, 2, 0, 0))
    assert sorted(fake.finished) == [1, 2]


def test_idle_ones_are_closed_in_time(
    fake: Fake, make: Callable[..., ConnectionCache], key: Callable[..., Key]
) -> None:
    """After ``idle_seconds`` without use, by a thread that ends with the last of them; one used meanwhile stays."""
    cache = make(idle_seconds=1.5)  # one is taken again before that
    one, two = cache.acquire(key("1")), cache.acquire(key("2"))
    one.drop()
    two.drop()
    again = cache.acquire(key("2"))
    assert again is two
    until(lambda: fake.finished == [1])
    until(lambda: cache._reaper is None and counts(cache) == (1, 0, 0, 0))
    two.drop()
    until(lambda: fake.finished == [1, 2])
    until(lambda: cache._reaper is None)


def test_nobody_waits_for_the_end(fake: Fake, make: Callable[..., ConnectionCache], key: Callable[..., Key]) -> None:
    """Dropping and closing return at once, while the library takes its time."""
    cache = make(idle_limit=0)
    fake.fini_gate.clear()
    cache.acquire(key()).drop()
    assert counts(cache) == (0, 0, 0, 1)
    cache.acquire(key())
    assert fake.made == [b"v", b"v"], "one that is being closed is used no more"
    cache.close_idle()
    assert counts(cache) == (1, 0, 0, 1)


def test_replaced(fake: Fake, make: Callable[..., ConnectionCache], key: Callable[..., Key]) -> None:
    """One that does not work is replaced once, for all who say so; who holds it keeps it; the last one closes it."""
    cache = make()
    dead = cache.acquire(key())
    dead.hold()
    with ThreadPoolExecutor(4) as pool:
        found = [task.result() for task in [pool.submit(cache.acquire, key(), instead_of=dead) for _ in range(4)]]
    fresh = found[0]
    assert set(map(id, found)) == {id(fresh)}
    assert fresh is not dead
    assert (fresh.holds, dead.holds, len(fake.made)) == (4, 2, 2)
    assert cache.acquire(key()) is fresh
    assert counts(cache) == (2, 0, 0, 0)
    dead.drop()
    assert fake.finished == []
    dead.drop()
    until(lambda: counts(cache) == (1, 0, 0, 0))
    assert fake.finished == [1]
    for _ in range(5):
        fresh.drop()
    last = cache.acquire(key(), instead_of=fresh)
    until(lambda: counts(cache) == (1, 0, 0, 0))
    assert fake.finished == [1, 2]
    assert last.holds == 1


def test_replacing_fails(fake: Fake, make: Callable[..., ConnectionCache], key: Callable[..., Key]) -> None:
    """Where there is no better one, the old one stays what it was."""
    cache = make()
    dead = cache.acquire(key())
    fake.errno = errno.EIO
    with pytest.raises(OSError):
        cache.acquire(key(), instead_of=dead)
    assert cache.acquire(key()) is dead
    assert dead.holds == 2


def test_replaced_ones_count(make: Callable[..., ConnectionCache], key: Callable[..., Key]) -> None:
    """What was replaced, and is still held, counts against the limit."""
    cache = make(limit=2)
    dead = cache.acquire(key())
    fresh = cache.acquire(key(), instead_of=dead)
    with pytest.raises(OSError, match="in use"):
        cache.acquire(key(), instead_of=fresh)
    dead.drop()
    cache.acquire(key(), instead_of=fresh)


def test_no_more_threads(
    monkeypatch: pytest.MonkeyPatch, make: Callable[..., ConnectionCache], key: Callable[..., Key]
) -> None:
    """At the end of the interpreter no thread can be started: nothing is closed, and nobody hears of it."""
    cache = make(idle_limit=1)
    connections = [cache.acquire(key(str(n))) for n in range(2)]

    def start(self: threading.Thread) -> None:
        raise RuntimeError("can't create new thread at interpreter shutdown")

    monkeypatch.setattr(threading.Thread, "start", start)
    for connection in connections:
        connection.drop()
    cache.close_idle()
    assert counts(cache) == (0, 0, 0, 2)


def test_under_load(fake: Fake, make: Callable[..., ConnectionCache], key: Callable[..., Key]) -> None:
    """Threads that take and give back, replace and close at once: the counts are right at the end, and all is closed."""
    cache = make(limit=64, idle_limit=2, idle_seconds=0.01)

    def work(seed: int) -> None:
        for step in range(60):
            connection = cache.acquire(key(str((seed + step) % 5)))
            if (seed + step) % 7 == 0:
                with contextlib.suppress(OSError):
                    cache.acquire(connection.key, instead_of=connection).drop()
            connection.hold()
            connection.drop()
            if step % 11 == 0:
                cache.close_idle()
            connection.drop()

    with ThreadPoolExecutor(8) as pool:
        for task in [pool.submit(work, seed) for seed in range(8)]:
            task.result()
    until(lambda: counts(cache) == (0, 0, 0, 0))
    assert sorted(fake.finished) == list(range(1, len(fake.made) + 1))


def test_fork(fake: Fake, make: Callable[..., ConnectionCache], key: Callable[..., Key]) -> None:
    """A child process begins anew, whatever lock was held; the parent's connections are refused there in words."""
    cache = make(idle_limit=0)
    mine = cache.acquire(key())
    replaced = cache.acquire(key("w"))
    cache.acquire(key("w"), instead_of=replaced)

    def child() -> int:
        assert counts(cache) == (0, 0, 0, 0)
        for connection in (mine, replaced):
            with contextlib.suppress(OSError):
                connection.hold()
                return 1
            with contextlib.suppress(OSError):
                connection.check()
                return 2
            connection.drop()  # as of what is collected there: it closes nothing
        own = cache.acquire(key())
        own.check()
        own.hold()
        return 0 if (own is not mine and own.holds == 2 and not fake.finished) else 3

    assert in_child(child, cache) == 0
    mine.check()
    assert counts(cache)[0] == 3
    assert mine.holds == 1


def test_inherited(fake: Fake, make: Callable[..., ConnectionCache], key: Callable[..., Key]) -> None:
    """What a child process does with the parent's connections, looked at here: none is used, closed or counted."""
    cache = make(idle_limit=0)
    connection, replaced = cache.acquire(key()), cache.acquire(key("w"))
    cache.acquire(key("w"), instead_of=replaced)
    cache._forked()
    assert counts(cache) == (0, 0, 0, 0)
    for inherited in (connection, replaced):
        for call in (inherited.hold, inherited.check):
            with pytest.raises(OSError, match="parent process") as caught:
                call()
            assert caught.value.errno == errno.EBADF
        inherited.drop()
    assert cache.acquire(key()) is not connection
    assert fake.finished == []


def in_child(function: Callable[[], int], cache: ConnectionCache) -> int:
    """Fork while another thread holds the cache's lock; what ``function`` returns in the child."""
    held, done = threading.Event(), threading.Event()

    def hold_lock() -> None:
        with cache._lock:
            held.set()
            done.wait(30)

    thread = threading.Thread(target=hold_lock)
    thread.start()
    held.wait(30)
    pid = os.fork()
    if pid == 0:
        code = 99
        try:
            signal.alarm(30)
            code = function()
        finally:
            os._exit(code)
    done.set()
    thread.join()
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_caches_come_and_go(fake: Fake) -> None:
    """A cache that nobody has any more is not kept for the sake of children to come."""
    cache: ConnectionCache | None = ConnectionCache(library=fake.load)
    gone = weakref.ref(cache)
    del cache
    gc.collect()
    assert gone() is None
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0


def test_connection_is_small(fake: Fake) -> None:
    """Connections have no dictionary: what is counted is all there is."""
    assert not hasattr(Connection(None, 1, Key("v", ()), threading.Lock(), print), "__dict__")  # type: ignore[arg-type]
