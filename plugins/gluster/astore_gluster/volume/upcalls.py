"""Upcalls: what a volume's bricks tell one connection of the changes that other clients make.

A brick tells a client of the inodes that this client has looked at, for as long as the volume's option
features.cache-invalidation-timeout says. libgfapi keeps the notices in a list, from the first call of
``glfs_h_poll_upcall`` to ``glfs_upcall_unregister``. A thread empties the list while somebody listens.

A callback (``glfs_upcall_register``) would be told some milliseconds earlier. But libgfapi runs it on a stack of its own
making, where CPython 3.14 cannot measure how deep it is and may end the process; and nothing says when the last callback
has returned, which must be before the interpreter ends.
"""

from __future__ import annotations

import asyncio
import ctypes
import threading
import time
from collections.abc import Callable, Set
from typing import NamedTuple, Protocol

from astore_gluster import libgfapi
from astore_gluster.libgfapi import Gfapi, Pointer
from astore_gluster.volume.options import BrickOptions, OptionsError

PAUSE = 0.1
"""Seconds between two looks at libgfapi's list."""

EMPTY = 32
"""So many empty answers in a row end a look. One alone may be a notice of a file that nobody has a handle of: libgfapi does
not tell that from an empty list."""

MOST = 1000
"""The most notices that are handed over at once."""

OPTIONS_AGE, FAILURE_AGE = 15.0, 300.0
"""Seconds for which the volume's options are not asked for again: after an answer, and after a failure."""


class Notice(NamedTuple):
    """A change by another client.

    :ivar flags: what has changed, as ``UP_…`` in :mod:`astore_gluster.libgfapi`.
    :ivar inode: the file or folder that has changed. :ivar folders: the folders where it is or was, if that was told.
    """

    flags: int
    inode: int
    folders: tuple[int, ...]


class Held(Protocol):
    """A connection, held; see :class:`astore_gluster.volume.connection.Connection`."""

    gfapi: Gfapi
    fs: int

    def hold(self) -> None: ...

    def drop(self) -> None: ...

    def check(self) -> None: ...


class KnownHandles:
    """Handles of the files that a pool is told of. libgfapi drops notices of files that it has no handle of.

    :ivar folder: the pool's folder. :ivar closed: whether it keeps none any more.
    """

    def __init__(self, gfapi: Gfapi) -> None:
        self._gfapi = gfapi
        self._lock = threading.Lock()
        self._handles: dict[int, int] = {}
        self.folder = 0
        self.closed: bool = False

    def __contains__(self, inode: int) -> bool:
        return inode in self._handles

    def keep(self, inode: int, handle: Pointer) -> None:
        """Keep a copy of a handle, unless there is one."""
        with self._lock:
            if handle and not self.closed and inode not in self._handles:
                kept = self._gfapi.object_copy(handle)
                if kept:
                    self._handles[inode] = kept

    def keep_only(self, inodes: set[int]) -> None:
        """Close the handles of all other files, except the folder's."""
        self._close(self._handles.keys() - inodes - {self.folder})

    def _close(self, inodes: Set[int]) -> None:
        with self._lock:
            closed = [self._handles.pop(inode) for inode in inodes if inode in self._handles]
        for handle in closed:
            self._gfapi.h_close(handle)

    def close(self) -> None:
        """Close all handles, and keep none from now on."""
        with self._lock:
            self.closed = True
        self._close(frozenset(self._handles))


class Listener:
    """One pool that listens to a connection's upcalls, until ``ended`` is set.

    :ivar known: handles of what it is told of, which are closed after it has ended.
    :param hear: called in the event loop with the notices.
    :param knows: returns whether an inode is known to be the pool's; any thread may call it.
    """

    def __init__(
        self,
        known: KnownHandles,
        loop: asyncio.AbstractEventLoop,
        hear: Callable[[list[Notice]], None],
        knows: Callable[[int], bool],
    ) -> None:
        self.known = known
        self._loop = loop
        self._hear = hear
        self.knows = knows
        self.ended: bool = False

    def give(self, notices: list[Notice]) -> None:
        """Hand notices over. Called on any thread."""
        try:
            self._loop.call_soon_threadsafe(self._take, notices)
        except RuntimeError:  # the loop was closed
            self.ended = True

    def _take(self, notices: list[Notice]) -> None:
        if not self.ended:
            self._hear(notices)


class Upcalls:
    """The upcalls of one connection, for all who listen to it.

    :ivar heard: whether any notice has come, ever. :ivar listeners: those who listen, or did a moment ago.
    """

    def __init__(self, connection: Held) -> None:
        self._connection = connection
        self._lock = threading.Lock()
        self.listeners: tuple[Listener, ...] = ()
        self._polled = False  # whether there is a thread
        self.heard: bool = False
        self._options: BrickOptions | OptionsError | None = None
        self._asked_at = 0.0

    def listen(self, listener: Listener) -> None:
        """Have a listener told of what is looked at from now on. Blocks.

        :raises OSError: EBADF: the connection is another process's.
        """
        self._connection.check()
        with self._lock:
            self.listeners += (listener,)
            if self._polled:
                return
            self._connection.hold()
            self._polled = True
        try:
            self._take_one()  # libgfapi keeps notices from now on
            threading.Thread(target=self._poll, name="astore-gluster-upcalls", daemon=True).start()
        except BaseException:
            with self._lock:
                self._polled = False
                self.listeners = ()
            self._connection.drop()
            raise

    def options(self, ask: Callable[[], BrickOptions]) -> BrickOptions:
        """Return what the volume's options say, which may be some seconds old. Blocks.

        :param ask: asks the servers. :raises OptionsError: no server says it.
        """
        age = FAILURE_AGE if isinstance(self._options, OptionsError) else OPTIONS_AGE
        if self._options is None or time.monotonic() - self._asked_at > age:
            try:
                self._options = ask()
            except OptionsError as error:
                self._options = error
            self._asked_at = time.monotonic()
        if isinstance(self._options, OptionsError):
            raise OptionsError(str(self._options))
        return self._options

    # ---------------------------------------------------------------------------------------------------- the thread

    def _poll(self) -> None:
        while self._listening():
            notices = self._drained()
            if notices:
                self.heard = True
                for listener in self.listeners:
                    listener.give(notices)
            if len(notices) < MOST:
                time.sleep(PAUSE)
        self._connection.drop()

    def _listening(self) -> bool:
        """Whether anybody listens. If not, tell libgfapi to keep no more notices."""
        for listener in self.listeners:
            if listener.ended:
                listener.known.close()
        with self._lock:
            self.listeners = tuple(listener for listener in self.listeners if not listener.known.closed)
            if self.listeners:
                return True
            self._connection.gfapi.upcall_unregister(self._connection.fs, libgfapi.EVENT_ANY)
            self._polled = False
            return False

    def _drained(self) -> list[Notice]:
        notices: list[Notice] = []
        empty = 0
        while empty < EMPTY and len(notices) < MOST:
            notice = self._take_one()
            if notice is None:
                empty += 1
            else:
                notices.append(notice)
                empty = 0
        return notices

    def _take_one(self) -> Notice | None:
        """Take a notice from libgfapi's list; None if there was none that it could tell."""
        gfapi = self._connection.gfapi
        found = ctypes.c_void_p()
        if gfapi.h_poll_upcall(self._connection.fs, ctypes.addressof(found)) != 0 or not found.value:
            return None
        try:
            if gfapi.upcall_get_reason(found.value) != libgfapi.UPCALL_INODE_INVALIDATE:
                return None
            event = gfapi.upcall_get_event(found.value)
            assert event is not None
            places = (gfapi.upcall_inode_get_pobject(event), gfapi.upcall_inode_get_oldpobject(event))
            return Notice(
                gfapi.upcall_inode_get_flags(event),
                self._inode(gfapi.upcall_inode_get_object(event)) or 0,
                tuple(inode for place in places if (inode := self._inode(place)) is not None),
            )
        finally:
            gfapi.free(found.value)

    def _inode(self, handle: Pointer) -> int | None:
        """Return the inode number of a handle: the last half of its GFID (``gfid_to_ino`` in glusterfs)."""
        if not handle:
            return None
        room = ctypes.create_string_buffer(libgfapi.HANDLE_LENGTH)
        self._connection.gfapi.h_extract_handle(handle, ctypes.addressof(room), libgfapi.HANDLE_LENGTH)
        return int.from_bytes(room.raw[8:])
