"""The file by which mount.cifs(8) gets a password: nobody else's to read, and gone when the mount command has ended.

It is in a folder of its own, which the process that made it has locked (flock(2)), so that whoever makes the next one can tell
what a killed process has left behind, and removes that.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
from collections.abc import Iterator

from astore.errors import StorageError

PLACE = "/run"
"""Where root's are: it is in memory."""

PREFIX = "astore-credentials-"
NAME = "credentials"
ATTEMPTS = 16


class CredentialsFile:
    """A new file of mode 0600 in a new folder of mode 0700. Blocking.

    :ivar path: where it is.
    :raises OSError: it cannot be made.
    """

    def __init__(self, text: bytes) -> None:
        place = _place()
        for left in _left_behind(place):
            _remove(left)
        for _ in range(ATTEMPTS):
            self._folder = tempfile.mkdtemp(prefix=PREFIX, dir=place)
            self.path = os.path.join(self._folder, NAME)
            self._fd = -1
            try:
                self._fd = _locked(self._folder, fcntl.LOCK_SH)
                fd = os.open(
                    NAME, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=self._fd
                )
                with open(fd, "wb") as file:
                    file.write(text)
                return
            except (BlockingIOError, FileNotFoundError):
                self.remove()  # somebody took it for left behind before it was locked
            except BaseException:
                self.remove()
                raise
        raise OSError(f"no file of credentials can be made in {place}")

    def remove(self) -> None:
        """Remove it. Never raises."""
        _remove(self._folder)
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


def _place() -> str:
    place = PLACE if os.access(PLACE, os.W_OK | os.X_OK) else tempfile.gettempdir()
    if "," in place:
        raise StorageError(f"the folder for temporary files, {place}, has a comma, which a mount option cannot have")
    return place


def _remove(folder: str) -> None:
    with contextlib.suppress(OSError):
        os.unlink(os.path.join(folder, NAME))
    with contextlib.suppress(OSError):
        os.rmdir(folder)


def _locked(folder: str, operation: int) -> int:
    """A descriptor of a folder, locked. :raises OSError: it is gone, or somebody else has it (BlockingIOError)."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, operation | fcntl.LOCK_NB)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _left_behind(place: str) -> Iterator[str]:
    """The folders of this user's that nobody has locked any more."""
    with contextlib.suppress(OSError), os.scandir(place) as entries:
        for entry in entries:
            if not entry.name.startswith(PREFIX):
                continue
            with contextlib.suppress(OSError):
                fd = _locked(entry.path, fcntl.LOCK_EX)
                try:
                    if os.fstat(fd).st_uid == os.geteuid():
                        yield entry.path
                finally:
                    os.close(fd)
