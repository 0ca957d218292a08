"""Connections to Gluster volumes: one for each (volume, servers), shared, counted, limited, and closed aside.

A connection (a ``glfs_t``) takes 10 to 30 ms to make, has 7 threads and 2 MB, and takes 10 s to close, even unused
(measured with GlusterFS 10.3). So pools with the same volume and servers share one. An idle connection is kept for a
while, for a pool that is started again. A daemon thread closes connections. A process that ends does not close them,
which is safe as long as no function of the library is called afterwards.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import threading
import time
import uuid
import weakref
from collections.abc import Callable
from typing import NamedTuple

from astore_gluster import libgfapi
from astore_gluster.libgfapi import Gfapi, keep_modules
from astore_gluster.servers import LONGEST_NAME, Server, ask
from astore_gluster.volume.upcalls import Upcalls

ANSWER_TIMEOUT = 5.0
"""The time for a host to accept a TCP connection, in seconds."""


class Key(NamedTuple):
    """The volume and servers of a connection; equal keys share one."""

    volume: str
    servers: tuple[Server, ...]

    def __str__(self) -> str:
        return f"Gluster volume {self.volume!r} on {', '.join(map(str, self.servers))}"


class Connection:
    """A connected volume. Hold it from before the first use of ``fs`` until after the last.

    :ivar gfapi: the library. :ivar fs: the ``glfs_t``. :ivar answered: whether any call on it was answered.
    :ivar upcalls: what the bricks tell it.
    :ivar holds: the number of holds: pools, calls in progress, and kept handles. It changes only under ``lock``, the
        cache's lock; so does ``idle_since``.
    :param on_idle: called with the lock held when the last hold is dropped.
    """

    __slots__ = (
        "_device",
        "_foreign",
        "_lock",
        "_on_idle",
        "answered",
        "fs",
        "gfapi",
        "holds",
        "idle_since",
        "key",
        "upcalls",
    )

    def __init__(
        self, gfapi: Gfapi, fs: int, key: Key, lock: threading.Lock, on_idle: Callable[[Connection], object]
    ) -> None:
        self.gfapi: Gfapi = gfapi
        self.fs: int = fs
        self.key: Key = key
        self.idle_since: float = 0.0
        self.answered: bool = False
        self.holds: int = 1
        self._lock = lock
        self._on_idle = on_idle
        self._foreign = False
        self._device: str | None = None
        self.upcalls: Upcalls = Upcalls(self)

    @property
    def device(self) -> str:
        """The identity of the volume: its id, the same on all its servers, or else (not over a socket) its name.

        May ask the volume's servers once.
        """
        if self._device is None:
            room = ctypes.create_string_buffer(16)
            if self.gfapi.get_volumeid(self.fs, ctypes.addressof(room), 16) >= 0:
                self._device = f"gluster:{uuid.UUID(bytes=room.raw)}"
            else:
                named = f"gluster:{self.key.volume}@{','.join(map(str, self.key.servers))}"
                if all(server.transport != "unix" for server in self.key.servers):
                    return named  # for the moment
                self._device = named
        return self._device

    def __repr__(self) -> str:
        return f"<Connection {self.key} holds={self.holds}>"

    def hold(self) -> None:
        """Add a hold; there must be one already. :raises OSError: EBADF, see :meth:`check`."""
        if self._foreign:
            self.check()
        with self._lock:
            self.holds += 1

    def check(self) -> None:
        """Check that the connection is this process's. :raises OSError: EBADF: it was made before a fork."""
        if self._foreign:
            raise OSError(errno.EBADF, f"{self.key}: the connection belongs to the parent process")

    def drop(self) -> None:
        """Drop a hold. The last one makes the connection idle. Never blocks for long."""
        with self._lock:
            self.holds -= 1
            if not self.holds and not self._foreign:
                self._on_idle(self)

    def disown(self, lock: threading.Lock) -> None:
        """Refuse all further use, after a fork: the connection is the parent's.

        :param lock: replaces the old one, which a thread of the parent may hold for ever.
        """
        self._foreign = True
        self._lock = lock


class _Opening:
    """A connection that one thread makes and others wait for."""

    __slots__ = ("connection", "done", "error", "waiting")

    def __init__(self) -> None:
        self.done = threading.Event()
        self.connection: Connection | None = None
        self.error: BaseException | None = None
        self.waiting = 0


class ConnectionCache:
    """The connections of a process.

    :param limit: the most connections, in use or idle; as many more may be closing.
    :param idle_limit: the most idle connections.
    :param idle_seconds: how long an idle connection is kept.
    :param library: returns the library.
    """

    def __init__(
        self,
        *,
        limit: int = 128,
        idle_limit: int = 16,
        idle_seconds: float = 60.0,
        library: Callable[[], Gfapi] = libgfapi.load,
    ) -> None:
        self.limit = limit
        self.idle_limit = idle_limit
        self.idle_seconds = idle_seconds
        self._library = library
        self._begin()
        forked = weakref.WeakMethod(self._forked)
        os.register_at_fork(after_in_child=lambda: (forked() or _nothing)())

    def _begin(self) -> None:
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._open: dict[Key, Connection] = {}
        self._replaced: set[Connection] = set()
        self._opening: dict[Key, _Opening] = {}
        self._closing = 0
        self._reaper: threading.Thread | None = None

    def _forked(self) -> None:
        # a child process has these connections' memory but not their threads: it starts without any
        inherited = [*self._open.values(), *self._replaced]
        self._begin()
        for connection in inherited:
            connection.disown(self._lock)

    def statistics(self) -> dict[str, int]:
        """Return how many connections are ``open``, how many of these ``idle``, and how many being made or closed."""
        with self._lock:
            return {
                "open": len(self._open) + len(self._replaced),
                "idle": sum(not connection.holds for connection in self._open.values()),
                "opening": len(self._opening),
                "closing": self._closing,
            }

    def acquire(self, key: Key, timeout: float = 60.0, *, instead_of: Connection | None = None) -> Connection:
        """Return a connection, held once for the caller. Blocks; concurrent calls make one connection.

        :param timeout: seconds to wait for another thread that is making it.
        :param instead_of: a connection that no longer works. (A volume that was deleted and created again has other
            bricks, which a connection never learns.) Its other holders keep it.
        :raises OSError: ENOENT: no such volume; ECONNREFUSED, ENOTCONN, ETIMEDOUT …: no server answers; EIO: the volume
            is not started; EMFILE: too many connections; ETIMEDOUT: another thread hangs in the attempt. The message
            names host and volume.
        """
        with self._lock:
            connection = self._open.get(key)
            if connection is not None and connection is not instead_of:
                connection.holds += 1
                return connection
            opening = self._opening.get(key)
            if opening is not None:
                opening.waiting += 1
            else:
                self._make_room()
                mine = self._opening[key] = _Opening()
        return self._join(key, opening, timeout) if opening is not None else self._make(key, mine, timeout)

    def _make_room(self) -> None:
        """Check that another connection is allowed; close an idle one if necessary. The lock is held."""
        if self._closing >= self.limit:
            raise OSError(errno.EMFILE, f"{self._closing} connections to Gluster volumes are still being closed")
        if len(self._open) + len(self._replaced) + len(self._opening) >= self.limit:
            idle = [connection for connection in self._open.values() if not connection.holds]
            if idle:
                self._close(min(idle, key=lambda connection: connection.idle_since))
            else:
                raise OSError(errno.EMFILE, f"{self.limit} connections to Gluster volumes are in use already")

    def _make(self, key: Key, opening: _Opening, timeout: float) -> Connection:
        try:
            connection = opening.connection = self._connect(key, timeout)
        except BaseException as error:
            opening.error = error
            with self._lock:
                del self._opening[key]
            raise
        else:
            with self._lock:
                connection.holds += opening.waiting  # each waiting thread has a hold from now on
                del self._opening[key]
                replaced = self._open.get(key)
                if replaced is not None and replaced.holds:
                    self._replaced.add(replaced)
                elif replaced is not None:
                    self._close(replaced)
                self._open[key] = connection
            return connection
        finally:
            opening.done.set()

    def _join(self, key: Key, opening: _Opening, timeout: float) -> Connection:
        if not opening.done.wait(timeout):
            with self._lock:
                if opening.connection is None:
                    opening.waiting -= 1
                    raise OSError(errno.ETIMEDOUT, f"{key}: still connecting after {timeout:g} s")
            opening.done.wait()
        if opening.connection is not None:
            return opening.connection
        error = opening.error
        if isinstance(error, OSError):
            raise OSError(error.errno, error.strerror) from error
        raise OSError(errno.EIO, f"{key}: {error}") from error

    def _connect(self, key: Key, timeout: float) -> Connection:
        volume = os.fsencode(key.volume)
        if len(volume) > LONGEST_NAME:
            raise OSError(errno.EINVAL, f"Gluster volume {key.volume[:40]!r}…: the name is too long")
        gfapi = self._library()
        try:
            servers = ask(key.servers, min(ANSWER_TIMEOUT, timeout))
        except OSError as error:
            raise OSError(error.errno, f"Gluster volume {key.volume!r}: {error.strerror}") from error
        ctypes.set_errno(0)
        fs = gfapi.new(volume)
        if not fs:
            number = ctypes.get_errno() or errno.ENOMEM
            why = "that cannot be the name of a volume" if number == errno.EINVAL else os.strerror(number)
            raise OSError(number, f"{key}: {why}")
        gfapi.set_logging(fs, b"/dev/null", libgfapi.LOG_NONE)
        # With it a write succeeds before any brick has seen it, and its failure is reported by the next call: nobody could
        # tell how much was written. Without it, concurrent writes are no slower (measured).
        gfapi.set_xlator_option(fs, b"*-write-behind", b"pass-through", b"true")
        # Libgfapi's cache of attributes: it answers with old ones for up to two seconds, also after a brick has told of a
        # change (seen).
        gfapi.set_xlator_option(fs, b"*-md-cache", b"pass-through", b"true")
        failed = any(
            gfapi.set_volfile_server(fs, server.transport.encode(), os.fsencode(server.host), server.port) != 0
            for server in servers
        )
        if not failed:
            ctypes.set_errno(0)
            failed = gfapi.init(fs) != 0
        if failed:
            number = ctypes.get_errno() or errno.ENOTCONN
            with self._lock:
                self._finish(gfapi, fs)
            raise OSError(number, f"{key}: {_why_not(number)}")
        return Connection(gfapi, fs, key, self._lock, self._idle)

    def _idle(self, connection: Connection) -> None:
        """Start the clock of a connection whose last hold was dropped. The lock is held."""
        if connection in self._replaced:
            self._replaced.remove(connection)
            self._finish(connection.gfapi, connection.fs)
            return
        connection.idle_since = time.monotonic()
        idle = [other for other in self._open.values() if not other.holds]
        if len(idle) > self.idle_limit:
            self._close(min(idle, key=lambda other: other.idle_since))
        if self._reaper is None:
            with contextlib.suppress(RuntimeError):
                reaper = threading.Thread(target=self._reap, name="astore-gluster-reaper", daemon=True)
                reaper.start()
                self._reaper = reaper

    def _reap(self) -> None:
        """Close connections that have been idle for long enough; return when none is idle."""
        with self._lock:
            while True:
                idle = [connection for connection in self._open.values() if not connection.holds]
                if not idle:
                    self._reaper = None
                    return
                oldest = min(idle, key=lambda connection: connection.idle_since)
                left = oldest.idle_since + self.idle_seconds - time.monotonic()
                if left <= 0:
                    self._close(oldest)
                else:
                    self._changed.wait(left)

    def close_idle(self) -> None:
        """Begin to close every idle connection, without waiting for it."""
        with self._lock:
            for connection in list(self._open.values()):
                if not connection.holds:
                    self._close(connection)
            self._changed.notify_all()

    def _close(self, connection: Connection) -> None:
        """Remove an idle connection, and have it closed. The lock is held."""
        del self._open[connection.key]
        self._finish(connection.gfapi, connection.fs)

    def _finish(self, gfapi: Gfapi, fs: int) -> None:
        """Have a ``glfs_t`` closed in the background. The lock is held."""
        self._closing += 1

        def finish() -> None:
            keep_modules()
            gfapi.fini(fs)  # the result only tells that something was still referenced
            with self._lock:
                self._closing -= 1

        # at its end the interpreter starts no threads; the connection ends with the process
        with contextlib.suppress(RuntimeError):
            threading.Thread(target=finish, name="astore-gluster-fini", daemon=True).start()


def _why_not(number: int) -> str:
    """Return the meaning of the errno of a failed glfs_init."""
    if number == errno.ENOENT:
        return "there is no such volume"
    if number == errno.EIO:
        return "the volume does not come up (is it started?)"
    if number == errno.EINVAL:
        return "libgfapi cannot read the server's volume file (it may need a new process after that)"
    return os.strerror(number)


def _nothing() -> None:
    """Reset a cache that no longer exists, in a child process: do nothing."""


CONNECTIONS = ConnectionCache()
"""The connections of this process."""
