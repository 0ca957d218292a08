"""Notices of the kernel about folders: one inotify instance for each event loop (inotify(7)), and the table of mounts.

A user may have some 128 inotify instances in all (fs.inotify.max_user_instances), so no pool has one of its own. The kernel
does not tell of writes through a mapping until the file is closed, of what goes through another name of a file, and of what
other machines do.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import errno
import os
import select
import threading
from collections.abc import Awaitable, Callable, Iterator
from typing import TYPE_CHECKING, ClassVar

from astore.libraries import found_by_the_linker
from astore.mounts import MOUNTINFO, parse

if TYPE_CHECKING:
    from asyncinotify import Mask, Watch

    from astore.inotify import Instance

PAUSE = 0.01
"""Seconds between two looks while there are notices. The kernel merges equal ones that wait."""


class About(enum.Enum):
    """What a notice is about."""

    CONTENT = "content"
    """A file was written to, and is perhaps still being written to."""
    NAME = "name"
    """A name, or a file's attributes, or a file that was closed after writing."""
    PLACE = "place"
    """The folder was moved, deleted, mounted over or unmounted; or notices were lost."""


Listener = Callable[[About, frozenset[str] | None], None]
"""Called in the event loop with names in the folder; None: the folder itself, or more than is known."""


@contextlib.contextmanager
def _limit_named(number: int, limit: str) -> Iterator[None]:
    """Name the machine's limit in an error that means that it is reached."""
    try:
        yield
    except OSError as error:
        if error.errno != number:
            raise
        raise OSError(
            number, f"the kernel has no more inotify {limit} for this user (fs.inotify.max_user_{limit})"
        ) from error


class FolderWatch:
    """A listener's watch of one folder. Close it in the event loop.

    :ivar identity: device and inode of the folder. :ivar path: where it was, without symbolic links.
    """

    def __init__(self, notices: FolderNotices, path: str, identity: tuple[int, int], listener: Listener) -> None:
        self.path = path
        self.identity = identity
        self.listener = listener
        self._notices = notices
        self.descriptors: set[int] = set()
        self.own = -1

    def drain(self) -> bool:
        """Pass on notices of changes that happened before this call; return whether those were all. Never waits."""
        return self._notices.drain()

    def close(self) -> None:
        """Stop listening. May be called twice."""
        self._notices.remove(self)


class FolderNotices:
    """The inotify instance of one event loop. It is opened by the first watch, and closed with the last."""

    _of_loops: ClassVar[dict[asyncio.AbstractEventLoop, FolderNotices]] = {}

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._listening: set[FolderWatch] = set()  # those that have been added, while the event loop is told of them
        self._adding = 0
        self._readers: set[int] = set()
        self._pause: asyncio.TimerHandle | None = None
        # Watches are added on other threads, and one that comes when nobody waits for it is removed there: its event loop
        # may be about to be closed. So the kernel's side below is opened and closed under this lock.
        self._lock = threading.Lock()
        self._inotify: Instance | None = None
        self._kernel: dict[int, Watch] = {}  # by watch descriptor
        self._watches: dict[int, list[FolderWatch]] = {}
        self._all: set[FolderWatch] = set()
        self._table = -1
        self._polling: select.epoll | None = None
        self._mounts: frozenset[bytes] = frozenset()  # the lines of the table: there may be thousands
        self._forgotten = 0  # how often a watch was removed

    @classmethod
    def of_this_loop(cls) -> FolderNotices:
        """Return the notices of the running event loop."""
        loop = asyncio.get_running_loop()
        return cls._of_loops.setdefault(loop, cls(loop))

    async def watch(
        self, open_folder: Callable[[], int], listener: Listener, run: Callable[..., Awaitable[FolderWatch]]
    ) -> FolderWatch:
        """Watch a folder from now on.

        :param open_folder: returns a descriptor of the folder, which is closed here; called on a thread.
        :param run: awaits a blocking call on a thread: ``lane.run``.
        :raises OSError: ENOSPC: fs.inotify.max_user_watches is reached; EMFILE: fs.inotify.max_user_instances is. What
            ``open_folder`` raises.
        """
        with self._lock:
            self._adding += 1
            self._of_loops.setdefault(self._loop, self)
        try:
            watch = await run(self._add, open_folder, listener, discard=self._release)
            self._listening.add(watch)
            try:
                self._begin()
            except BaseException:
                self.remove(watch)
                raise
            return watch
        finally:
            self._adding -= 1
            self._end_if_unused()

    # ------------------------------------------------------------------------------------------------- on a thread

    def _add(self, open_folder: Callable[[], int], listener: Listener) -> FolderWatch:
        with found_by_the_linker():  # asyncinotify looks for the C library
            from asyncinotify import Mask

            from astore.inotify import Instance

        of_itself = Mask.DELETE_SELF | Mask.MOVE_SELF | Mask.MASK_ADD | Mask.ONLYDIR
        of_files = Mask.MODIFY | Mask.ATTRIB | Mask.CLOSE_WRITE | Mask.MOVE | Mask.CREATE | Mask.DELETE
        fd = open_folder()
        try:
            st = os.fstat(fd)
            path = os.readlink(f"/proc/self/fd/{fd}")
            watch = FolderWatch(self, path, (st.st_dev, st.st_ino), listener)
            try:
                with _limit_named(errno.EMFILE, "instances"), self._lock:
                    self._all.add(watch)
                    if self._inotify is None:
                        self._open(Instance())
                with _limit_named(errno.ENOSPC, "watches"):
                    watch.own = self._watched(watch, f"/proc/self/fd/{fd}", of_itself | of_files)
                    while (parent := os.path.dirname(path)) != path:
                        path = parent
                        with contextlib.suppress(PermissionError, FileNotFoundError):
                            self._watched(watch, path, of_itself)
            except BaseException:
                self._release(watch)
                raise
            return watch
        finally:
            os.close(fd)

    def _open(self, inotify: Instance) -> None:
        self._inotify = inotify
        with contextlib.suppress(OSError):  # without /proc, only what is mounted is not told
            # never blocks, and O_NONBLOCK says so
            self._table = os.open(MOUNTINFO, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            self._polling = select.epoll()
            self._polling.register(self._table, select.EPOLLPRI | select.EPOLLERR)
            self._polling.poll(0)
            self._mounts = self._table_lines()

    def _watched(self, watch: FolderWatch, path: str, mask: Mask) -> int:
        inotify = self._inotify  # it stays open until _add has returned
        assert inotify is not None
        while True:
            forgotten = self._forgotten
            found = inotify.add_watch(path, mask)
            descriptor: int = found.wd
            with self._lock:  # not during the call: it may wait for storage
                if self._forgotten != forgotten:
                    continue  # it may be the one that was removed: the kernel has one for each folder
                self._kernel[descriptor] = found
                self._watches.setdefault(descriptor, []).append(watch)
            watch.descriptors.add(descriptor)
            return descriptor

    def _release(self, watch: FolderWatch) -> None:
        """Take a watch from the kernel; close its side after the last one."""
        with self._lock:
            self._all.discard(watch)
            for descriptor in watch.descriptors:
                watches = self._watches.get(descriptor, [])
                if watch in watches:
                    watches.remove(watch)
                if not watches:
                    self._forget(descriptor)
            watch.descriptors.clear()
            self._close_if_unused()

    def _forget(self, descriptor: int) -> None:
        self._forgotten += 1
        self._watches.pop(descriptor, None)
        found = self._kernel.pop(descriptor, None)
        if found is not None and self._inotify is not None:
            with contextlib.suppress(OSError):  # the folder is gone, and its watch with it
                self._inotify.rm_watch(found)

    def _close_if_unused(self) -> None:
        if self._all:
            return
        if not self._adding and self._of_loops.get(self._loop) is self:
            del self._of_loops[self._loop]
        if self._polling is not None:
            self._polling.close()
            self._polling = None
        if self._table >= 0:
            os.close(self._table)
            self._table = -1
        if self._inotify is not None:
            self._inotify.close()
            self._inotify = None

    # ------------------------------------------------------------------------------------------- in the event loop

    def _begin(self) -> None:
        if self._listening and self._pause is None:
            assert self._inotify is not None
            self._read(self._inotify.fd, self._readable)
            if self._polling is not None:
                self._read(self._polling.fileno(), self._mounts_changed)

    def _read(self, fd: int, call: Callable[[], None]) -> None:
        self._loop.add_reader(fd, call)
        self._readers.add(fd)

    def remove(self, watch: FolderWatch) -> None:
        """Remove a watch."""
        self._listening.discard(watch)
        self._end_if_unused()
        self._release(watch)

    def _end_if_unused(self) -> None:
        if self._listening:
            return
        if self._pause is not None:
            self._pause.cancel()
            self._pause = None
        while self._readers:
            fd = self._readers.pop()
            if not self._loop.is_closed():
                self._loop.remove_reader(fd)
        with self._lock:
            self._close_if_unused()

    def _readable(self) -> None:
        """Pass on some notices; look for more in a moment."""
        assert self._inotify is not None
        emptied = self._pass_on()
        if not self._listening:  # a listener has closed the last watch
            return
        self._loop.remove_reader(self._inotify.fd)
        self._pause = self._loop.call_later(PAUSE if emptied else 0, self._go_on)

    def _go_on(self) -> None:
        self._pause = None
        self._begin()

    def drain(self) -> bool:
        """Pass on notices that wait; return whether those were all. Others may come as quickly as they are passed on."""
        return self._pass_on()

    def _pass_on(self) -> bool:
        """Pass on some notices, so few that the event loop's other work soon has a turn; return whether there are no more."""
        inotify = self._inotify
        if inotify is None:
            return True
        from astore.inotify import GONE, MODIFY, OVERFLOW

        notices, emptied = inotify.read()
        heard: dict[tuple[int, About], set[str | None]] = {}
        for descriptor, mask, name in notices:
            if mask & OVERFLOW:
                for watch in tuple(self._all):
                    watch.listener(About.PLACE, None)
            elif mask & GONE:
                self._gone(inotify, descriptor, mask)
            else:
                heard.setdefault((descriptor, About.CONTENT if mask == MODIFY else About.NAME), set()).add(name)
        for (descriptor, about), names in heard.items():
            known = frozenset(name for name in names if name is not None)
            for watch in tuple(self._watches.get(descriptor, ())):
                if watch.own == descriptor:
                    watch.listener(about, known if len(known) == len(names) else None)
        return emptied or self._inotify is not inotify

    def _gone(self, inotify: Instance, descriptor: int, mask: int) -> None:
        """Tell that a folder was moved, deleted or unmounted."""
        from astore.inotify import IGNORED

        for watch in tuple(self._watches.get(descriptor, ())):
            watch.listener(About.PLACE, None)
        if mask & IGNORED:
            with self._lock:
                if (
                    self._inotify is inotify
                ):  # a listener may have closed the last watch, and another instance been opened
                    self._kernel.pop(descriptor, None)
                    self._watches.pop(descriptor, None)

    def _mounts_changed(self) -> None:
        """Tell those whose folder is below a mount point that appeared or vanished."""
        assert self._polling is not None
        self._polling.poll(0)
        before, self._mounts = self._mounts, self._table_lines()
        changed = {point for _, point in _points(before - self._mounts) ^ _points(self._mounts - before)}
        for watch in tuple(self._all):
            if any(watch.path == point or watch.path.startswith(point.rstrip("/") + "/") for point in changed):
                watch.listener(About.PLACE, None)

    def _table_lines(self) -> frozenset[bytes]:
        os.lseek(self._table, 0, os.SEEK_SET)
        text = b""
        while more := os.read(self._table, 1 << 20):
            text += more
        return frozenset(text.split(b"\n"))


def _points(lines: frozenset[bytes]) -> set[tuple[int, str]]:
    """Return the mounts in lines of the table, each as its number and its point."""
    return {(one.id, one.target) for one in parse(b"\n".join(lines))}
