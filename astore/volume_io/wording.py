"""Translate errors of the storage into astore's."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator

from astore.errors import (
    AstoreError,
    PoolInaccessibleError,
    StorageError,
    TransferError,
    VolumeExistsError,
    VolumeNotFoundError,
    from_os_error,
    printable,
    reason,
)
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
