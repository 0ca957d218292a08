"""Private folders: temporary folders in which programs such as qemu-img prepare files for a pool.

The process that made a folder keeps it locked (flock(2)). A folder without a lock is a killed process's leftover, and the next
process that makes one removes it.
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
from astore.volume_io.volume_names import ATTEMPTS

PREFIX = "astore-"
LOCK = ".astore-lock"
"""The locked file in the folder."""

LONGEST = 80
"""The most bytes of the path of a folder for sockets; a socket's path has at most 107 (unix(7))."""


@contextlib.asynccontextmanager
async def private_folder(context: Context, *, for_socket: bool = False) -> AsyncIterator[str]:
    """Make a local folder that only this user may access, and remove it afterwards.

    :param for_socket: the path must be short.
    """
    made = await to_the_end(context.lane, PrivateFolder, for_socket, undo=PrivateFolder.remove)
    try:
        yield made.path
    finally:
        await cleaned_up(context.lane, made.remove)


class PrivateFolder:
    """A new, locked folder. Making one removes leftovers. Its methods block.

    :param for_socket: the path must be short.
    :param place: the folder to make it in; None: the one for temporary files.
    """

    def __init__(self, for_socket: bool = False, place: str | None = None) -> None:
        place = tempfile.gettempdir() if place is None else place
        if for_socket and len(os.fsencode(place)) > LONGEST:
            place = "/tmp"  # noqa: S108  (safe: mkdtemp makes a folder in it)
        for left in _left_behind(place):
            shutil.rmtree(left, ignore_errors=True)
        for _ in range(ATTEMPTS):
            self.path: str = tempfile.mkdtemp(None, PREFIX, place)
            self._fd = -1
            try:
                self._fd = os.open(f"{self.path}/{LOCK}", os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.path.samestat(os.fstat(self._fd), os.stat(f"{self.path}/{LOCK}")):
                    return
            except (BlockingIOError, FileNotFoundError):
                pass  # another process took it for a leftover before it was locked
            except BaseException:
                self.remove()
                raise
            self.remove()
        raise OSError(f"cannot make a private folder in {place}")

    def remove(self) -> None:
        """Remove the folder and its contents. Never raises."""
        shutil.rmtree(self.path, ignore_errors=True)
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


def _left_behind(place: str) -> Iterator[str]:
    """Yield this user's folders that no process has locked."""
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
