"""Small files in a state folder: reads are bounded, writes are atomic. Everything here blocks."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TypeAlias

from astore.errors import AstoreError, StoreError

LARGEST_FILE = 4 << 20
"""The most bytes that a file may have."""

STALE_AFTER = 600.0
"""Seconds after which a temporary file is taken for the leftover of a killed process."""

FileVersion: TypeAlias = tuple[int, int, int]
"""Inode, mtime in nanoseconds and size (a folder's: number of links): it changes whenever the file is written."""

LOCK_TIMEOUT = 10.0
"""Seconds to wait for the lock of a state folder."""

PAUSE = 0.05
"""Seconds between two tries for the lock."""


def default_state_dir() -> Path:
    """Return root's state folder, /var/lib/astore, or the user's own, where the platform keeps users' state."""
    if os.geteuid() == 0:
        return Path("/var/lib/astore")
    import platformdirs  # here, because most commands do not need it

    return platformdirs.user_state_path("astore")


@contextlib.contextmanager
def store_errors_about(path: Path) -> Iterator[None]:
    """Turn an OSError inside into a StoreError that names this file."""
    try:
        yield
    except AstoreError:
        raise
    except OSError as error:
        raise StoreError(
            f"{path}: {error.strerror or error}", errno=error.errno if error.errno is not None else errno.EIO
        ) from error


def require_ours(st: os.stat_result, what: Path | str, *, sticky: bool = False) -> None:
    """Check that only root and the user who runs astore can have written a file or folder.

    :param st: its attributes. :param what: its path, for the message.
    :param sticky: accept a folder that all may write, if it has the sticky bit.
    :raises StoreError: EPERM; the message tells what to do.
    """
    me = os.geteuid()
    if st.st_uid not in (0, me):
        raise StoreError(
            f"{what} belongs to user {st.st_uid}, who is neither root nor the user {me} who runs astore, and is not read. "
            f"Look at what is in it, then give it to user {me} (chown {me})",
            errno=errno.EPERM,
        )
    if st.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and not (sticky and st.st_mode & stat.S_ISVTX):
        raise StoreError(
            f"{what} may be written by other users (its mode is {stat.S_IMODE(st.st_mode):04o}), and is not read. "
            f"Look at what is in it, then keep them out (chmod go-w)",
            errno=errno.EPERM,
        )


def names_in(folder: Path, suffix: str) -> list[str]:
    """Return the names that have this suffix, without it, in order. Remove stale temporary files.

    :raises StoreError: the folder cannot be read.
    """
    with store_errors_about(folder):
        try:
            found = os.listdir(folder)
        except FileNotFoundError:
            return []
    for name in found:
        if name.endswith(".tmp"):
            _remove_stale(folder / name)
    return sorted(name.removesuffix(suffix) for name in found if name.endswith(suffix) and _encodable(name))


def version_of(path: Path) -> FileVersion:
    """Return the version of a file. :raises OSError: stat(2) fails."""
    st = os.stat(path)
    return st.st_ino, st.st_mtime_ns, st.st_size


def read_whole(path: Path, largest: int = LARGEST_FILE) -> bytes:
    """Return the contents of a file.

    :raises OSError: it cannot be read. StoreError: it is larger than ``largest`` bytes, or other users may have written it.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        st = os.fstat(fd)
        require_ours(st, path)
        parts: list[bytes] = []
        room = largest + 1
        piece = min(max(st.st_size + 1, 4096), 1 << 20)  # os.read() allocates what it is asked for
        with contextlib.suppress(BlockingIOError):  # a FIFO that nobody writes to now
            while room > 0 and (part := os.read(fd, min(room, piece))):
                parts.append(part)
                room -= len(part)
    finally:
        os.close(fd)
    if room <= 0:
        raise StoreError(f"it is larger than {largest} bytes", errno=errno.EFBIG)
    return b"".join(parts)


def write_whole(path: Path, data: bytes, *, sync: bool) -> None:
    """Write a temporary file, and rename it to ``path``.

    :param sync: sync the file and its folder to disk.
    :raises StoreError: that failed; the old file stays.
    """
    beside = path.parent / f".{os.urandom(8).hex()}.tmp"
    with store_errors_about(path):
        try:
            fd = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            with open(fd, "wb") as file:
                file.write(data)
                file.flush()
                if sync:
                    os.fsync(fd)
            os.rename(beside, path)
            if sync:
                sync_folder(path.parent)
        except BaseException:
            with contextlib.suppress(OSError):
                beside.unlink(missing_ok=True)
            raise


def sync_folder(folder: Path) -> None:
    """Sync the names in a folder to disk. :raises OSError: that failed."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _remove_stale(path: Path) -> None:
    with contextlib.suppress(OSError):
        if time.time() - path.lstat().st_mtime > STALE_AFTER:
            path.unlink()


def _encodable(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


class LockedFolder:
    """A state folder and its lock. Taking the lock creates the folder with mode 0700."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder: Path = Path(folder)
        self.pools: Path = self.folder / "pools"
        self.autostart: Path = self.folder / "autostart"
        self.run: Path = self.folder / "run"
        self._thread_lock = threading.Lock()

    @contextlib.contextmanager
    def locked(self, timeout: float = LOCK_TIMEOUT, given_up: threading.Event | None = None) -> Iterator[None]:
        """Hold the folder's lock against other processes and threads.

        :param given_up: set it to give up waiting.
        :raises StoreError: the lock was not free within ``timeout`` seconds, or ``given_up`` was set.
        """
        deadline = time.monotonic() + timeout
        late = StoreError(f"{self.folder} is locked by another process", errno=errno.EWOULDBLOCK)

        def go_on(have: bool = False) -> None:
            if given_up is not None and given_up.is_set():
                raise StoreError(f"{self.folder}: given up", errno=errno.ECANCELED)
            if not have and time.monotonic() >= deadline:
                raise late

        self._make()
        while not self._thread_lock.acquire(timeout=PAUSE):
            go_on()
        try:
            with store_errors_about(self.folder / "lock"):
                fd = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                require_ours(os.fstat(fd), self.folder / "lock")
                pause = 0.001
                while not _flocked(fd, self.folder / "lock"):
                    go_on()
                    time.sleep(pause)
                    pause = min(pause * 2, PAUSE)
                go_on(have=True)
                yield
            finally:
                os.close(fd)
        finally:
            self._thread_lock.release()

    def check(self) -> None:
        """Check the folders. :raises StoreError: other users may have written one, or stat(2) fails."""
        for folder in (self.folder, self.pools, self.autostart, self.run):
            with store_errors_about(folder):
                try:
                    st = os.stat(folder)
                except FileNotFoundError:
                    continue
            require_ours(st, folder, sticky=folder is self.folder)

    def _make(self) -> None:
        self.check()
        with store_errors_about(self.folder):
            for folder in (self.folder, self.pools, self.autostart, self.run):
                if not folder.is_dir():
                    folder.mkdir(mode=0o700, parents=True, exist_ok=True)


def _flocked(fd: int, path: Path) -> bool:
    with store_errors_about(path):
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True
