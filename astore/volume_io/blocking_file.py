"""TreeFile: the contract of an open regular file, by blocking calls."""

from __future__ import annotations

import abc
import errno
import os
from typing import Any, ClassVar

from astore.model.records import FileStat


class TreeFile(abc.ABC):
    """An open regular file of a tree. Offsets and lengths are in bytes.

    Every method but :meth:`close` may be called from any thread, and several at once; each may raise OSError.
    """

    in_flight: ClassVar[int] = 2
    """How many calls should run at once for bulk data."""

    @abc.abstractmethod
    def stat(self) -> FileStat:
        """Return the file's attributes."""

    @abc.abstractmethod
    def pread(self, length: int, offset: int) -> bytes:
        """Read ``length`` bytes at ``offset``; fewer only at the end of the file."""

    def preadinto(self, buffer: bytearray | memoryview, offset: int) -> int:
        """Fill ``buffer`` from ``offset``, with fewer bytes only at the end of the file; return their number.

        A tree that can read straight into memory overrides this.
        """
        data = self.pread(len(buffer), offset)
        buffer[: len(data)] = data
        return len(data)

    @abc.abstractmethod
    def pwrite(self, data: bytes | bytearray | memoryview, offset: int) -> None:
        """Write all of ``data`` at ``offset``; the file grows to hold it."""

    @abc.abstractmethod
    def truncate(self, length: int) -> None:
        """Set the file's size; what it gains is a hole."""

    @abc.abstractmethod
    def allocate(self, offset: int, length: int) -> None:
        """Allocate space for a range; the file grows to hold it."""

    @abc.abstractmethod
    def punch(self, offset: int, length: int) -> None:
        """Make a range a hole and keep the size. :raises OSError: EOPNOTSUPP: this storage has no holes."""

    @abc.abstractmethod
    def seek_data(self, offset: int) -> int | None:
        """Return the first offset with data, from ``offset`` on; None: there is only a hole up to the end."""

    @abc.abstractmethod
    def seek_hole(self, offset: int) -> int:
        """Return the first offset in a hole, from ``offset`` on; the end of the file counts as one."""

    @abc.abstractmethod
    def copy_range(self, offset: int, target: Any, target_offset: int, length: int) -> int:
        """Have the storage copy a range into another file of the same tree; return the bytes copied (0: the file ends).

        :param target: a TreeFile of the same class.
        :raises OSError: EOPNOTSUPP, EXDEV, ENOSYS …: the storage cannot.
        """

    def clone(self, target: Any) -> None:
        """Make ``target``, an empty file of the same tree, share all blocks of this file (a reflink).

        :raises OSError: EOPNOTSUPP …: the storage cannot.
        """
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    in_kernel: ClassVar[bool] = False
    """Whether :meth:`open_again` works."""

    def open_again(self) -> int:
        """Open this very file again for a program to inherit, without its locks; return a descriptor that the caller closes."""
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    def noted_format(self) -> str | None:
        """Return the format that astore noted at the file, ``""`` if none is; None: this storage keeps no notes."""
        return None

    def note_format(self, format: str | None) -> bool:
        """Note the format that the file was made in, or remove the note (None); False: this storage keeps no notes."""
        return False

    def begin_as_qemu(self, *, write: bool) -> bool:
        """Take the locks that QEMU takes on an image that it reads (or writes), until the file is closed.

        :return: False if a running QEMU holds conflicting locks. True also if this storage has no such locks.
        """
        return True

    @abc.abstractmethod
    def chmod(self, mode: int) -> None:
        """Set the permission bits."""

    @abc.abstractmethod
    def chown(self, uid: int = -1, gid: int = -1) -> None:
        """Set owner and group; -1 leaves one as it is."""

    @abc.abstractmethod
    def sync(self) -> None:
        """Wait until written data is safe."""

    @abc.abstractmethod
    def lock(self) -> bool:
        """Lock the file against other callers of this method, here and on other machines, until it is closed.

        :return: False if it is locked already. True also if this storage has no locks.
        """

    @abc.abstractmethod
    def close(self) -> None:
        """Close the file. May be called twice, but not while other calls run.

        :raises OSError: a delayed write failed.
        """
