"""Private folders: where programs such as qemu-img work on what is on its way to a pool.

Each is locked by the process that made it (flock(2)), so that whoever makes the next one can tell which a killed process has
left behind, and removes them.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator

from astore.backend import Context
from astore.cancellation import cleaned_up, to_the_end

PREFIX = "astore-"
LOCK = ".astore-lock"
"""The file in it that is locked."""

LONGEST = 80
"""Bytes of the path of a folder for sockets, whose own may have 107 (unix(7))."""

ATTEMPTS = 16


@contextlib.asynccontextmanager
async def private_folder(context: Context, *, for_socket: bool = False) -> AsyncIterator[str]:
    """A folder of this machine that only this user may look into; gone afterwards.

    :param for_socket: its path has to be short.
    """
    made = await to_the_end(context.lane, PrivateFolder, for_socket, undo=PrivateFolder.remove)
    try:
        yield made.path
    finally:
        await cleaned_up(context.lane, made.remove)


class PrivateFolder:
    """A new folder, locked; what others left is removed. Blocking.

    :param for_socket: its path has to be short.
    :param place: the folder to make it in; None means the one for temporary files.
    """

    def __init__(self, for_socket: bool = False, place: str | None = None) -> None:
        place = tempfile.gettempdir() if place is None else place
        if for_socket and len(os.fsencode(place)) > LONGEST:
            place = "/tmp"  # noqa: S108  (in a folder of its own, as everywhere)
        for left in _left_behind(place):
            shutil.rmtree(left, ignore_errors=True)
        for _ in range(ATTEMPTS):
            self.path = tempfile.mkdtemp(None, PREFIX, place)
            self._fd = -1
            try:
                self._fd = os.open(f"{self.path}/{LOCK}", os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.path.samestat(os.fstat(self._fd), os.stat(f"{self.path}/{LOCK}")):
                    return
            except (BlockingIOError, FileNotFoundError):
                pass  # somebody took it for left behind before it was locked
            except BaseException:
                self.remove()
                raise
            self.remove()
        raise OSError(f"no private folder can be made in {place}")

    def remove(self) -> None:
        """Remove it with all that is in it. Never raises."""
        shutil.rmtree(self.path, ignore_errors=True)
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


def _left_behind(place: str) -> Iterator[str]:
    """The folders of this user's that nobody has locked any more."""
    with contextlib.suppress(OSError), os.scandir(place) as entries:
        for entry in entries:
            if not entry.name.startswith(PREFIX):
                continue
            with contextlib.suppress(OSError):
                if entry.is_dir(follow_symlinks=False) and entry.stat(follow_symlinks=False).st_uid == os.geteuid():
                    fd = os.open(f"{entry.path}/{LOCK}", os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
                    try:
                        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                        yield entry.path
                    finally:
                        os.close(fd)
