"""Make the errors of work on volumes: those of the storage in astore's terms, and those that all sessions have."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator

from astore.errors import (
    AstoreError,
    PoolInaccessibleError,
    StorageError,
    TransferError,
    VolumeBusyError,
    VolumeExistsError,
    VolumeNotFoundError,
    from_os_error,
    printable,
    reason,
)
from astore.model import EntryError, VolumeInfo
from astore.volume_io.copying import Count

_PASSED_ON = (TransferError, VolumeExistsError, PoolInaccessibleError)


@contextlib.contextmanager
def worded(name: str, operation: str, count: Count | None = None, other: str | None = None) -> Iterator[None]:
    """Raise errors of the storage as astore's, with the volume's name and the bytes done.

    :param name: the volume's. :param count: the bytes done, if they are counted.
    :param other: the name that EEXIST is about, if it is another.
    """
    try:
        yield
    except StorageError as error:
        if count is None or error.errno is None or isinstance(error, _PASSED_ON):
            raise
        raise TransferError(
            f"{error.message}, after {count.done} bytes", errno=error.errno, pool=error.pool, done=count.done
        ) from error
    except (AstoreError, TimeoutError):
        raise
    except OSError as error:
        plain = OSError(error.errno, error.strerror) if error.strerror else error
        what = f"{operation} of volume {printable(name)!r}"
        if error.errno == errno.EEXIST:
            raise VolumeExistsError(
                f"there is a volume {printable(other or name)!r} already", errno=errno.EEXIST
            ) from error
        if error.errno == errno.ENOENT:
            raise VolumeNotFoundError(f"{what}: it is not there any more", what=name) from error
        if count is not None:
            raise TransferError(
                f"{what}: {reason(plain)}, after {count.done} bytes", errno=error.errno, done=count.done
            ) from error
        raise from_os_error(plain, what) from error


def existing(entry: VolumeInfo | EntryError | None, name: str) -> VolumeInfo:
    """Return the record of an entry that must exist. :raises OSError: it does not (ENOENT), or cannot be read."""
    if entry is None:
        raise FileNotFoundError(errno.ENOENT, "it is not there any more", name)
    if isinstance(entry, EntryError):
        raise OSError(entry.errno or errno.EIO, entry.message, printable(name))
    return entry


def replaced(name: str, by: str = "file") -> StorageError:
    """Return the error for a volume whose name leads to another file or volume than its record says."""
    return StorageError(
        f"volume {printable(name)!r} was replaced by another {by}; refresh it first", errno=errno.EAGAIN
    )


def being_written(name: str) -> VolumeBusyError:
    """Return the error for a volume that another writer has locked."""
    return VolumeBusyError(f"volume {name!r} is being written by somebody else", operation="write")
