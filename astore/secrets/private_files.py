"""Files that nobody else may read, in a folder that nobody else may look into. Everything here blocks.

A folder or a file is opened once; the descriptor is checked, and then read. Names are relative to the folder's descriptor.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from astore.errors import StoreError
from astore.store.local_files import require_ours, store_errors_about

_SAFE = os.O_CLOEXEC | os.O_NOFOLLOW


@contextlib.contextmanager
def opened_folder(path: Path, *, hidden: int = 0o077) -> Iterator[int | None]:
    """Open a folder for as long as the context lasts, and yield its descriptor; None if there is no such folder.

    :param hidden: the permissions that its mode must not have.
    :raises StoreError: it is a link or no folder, belongs to another user, or has one of these permissions.
    """
    with store_errors_about(path):
        try:
            folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | _SAFE)
        except FileNotFoundError:
            yield None
            return
        except NotADirectoryError:
            raise StoreError(f"{path} is a link or no folder, and is not read", errno=errno.ENOTDIR) from None
    try:
        with store_errors_about(path):
            _require_private(os.fstat(folder), path, hidden)
        yield folder
    finally:
        os.close(folder)


def read_private(folder: int, name: str, path: Path, largest: int, *, hidden: int = 0o077) -> bytes | None:
    """Return the content of a file; None if there is no such file.

    :param folder: the descriptor of its folder. :param path: the file's path, for errors.
    :param hidden: the permissions that its mode must not have.
    :raises StoreError: it is a link or no file, belongs to another user, has one of these permissions, or more than
        ``largest`` bytes.
    """
    with store_errors_about(path):
        try:
            fd = os.open(name, os.O_RDONLY | os.O_NONBLOCK | _SAFE, dir_fd=folder)
        except FileNotFoundError:
            return None
        except OSError as error:
            if error.errno != errno.ELOOP:
                raise
            raise StoreError(f"{path} is a link, and is not read", errno=errno.ELOOP) from None
        with open(fd, "rb", buffering=0) as file:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                raise StoreError(f"{path} is no file, and is not read")
            _require_private(status, path, hidden)
            content = b""
            while len(content) <= largest and (part := file.read(largest + 1 - len(content))):
                content += part
    if len(content) > largest:
        raise StoreError(f"{path} has more than {largest} bytes, and is not read")
    return content


def write_private(folder: int, name: str, path: Path, content: bytes) -> None:
    """Write a new file of mode 0600, and give it this name: readers see the old or the new one, whole.

    :raises StoreError: that failed; the old file stays.
    """
    beside = f".{os.urandom(8).hex()}.tmp"
    with store_errors_about(path):
        try:
            fd = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _SAFE, 0o600, dir_fd=folder)
            with open(fd, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(fd)
            os.rename(beside, name, src_dir_fd=folder, dst_dir_fd=folder)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(beside, dir_fd=folder)
            raise
        os.fsync(folder)


def _require_private(status: os.stat_result, path: Path, hidden: int) -> None:
    require_ours(status, path)
    if status.st_mode & hidden:
        raise StoreError(
            f"{path} is not hidden from other users (its mode is {stat.S_IMODE(status.st_mode):04o}), and is not read. "
            f"They may know what is in it: choose new secrets, or hide it (chmod go= {path})",
            errno=errno.EPERM,
        )
