"""TreeFile: an open regular file, by blocking calls."""

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
    """How many calls at once pay for bulk data."""

    @abc.abstractmethod
    def stat(self) -> FileStat:
        """The file's attributes."""

    @abc.abstractmethod
    def pread(self, length: int, offset: int) -> bytes:
        """``length`` bytes from ``offset`` on; fewer only where the file ends."""

    def preadinto(self, buffer: bytearray | memoryview, offset: int) -> int:
        """Fill ``buffer`` from ``offset`` on; returns how many bytes there were, fewer only where the file ends.

        A tree that can read straight into memory overrides it.
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
        """Take space for a range now; the file grows to hold it."""

    @abc.abstractmethod
    def punch(self, offset: int, length: int) -> None:
        """Make a range a hole; the size stays. :raises OSError: EOPNOTSUPP: this storage has no holes."""

    @abc.abstractmethod
    def seek_data(self, offset: int) -> int | None:
        """Where data begin at or after ``offset``; None where there is nothing but a hole up to the end."""

    @abc.abstractmethod
    def seek_hole(self, offset: int) -> int:
        """Where a hole begins at or after ``offset``: at the end of the file at the latest."""

    @abc.abstractmethod
    def copy_range(self, offset: int, target: Any, target_offset: int, length: int) -> int:
        """Have the storage copy a range into another file of the same tree; returns how much it did (0: the file ends).

        :param target: a TreeFile of the same kind.
        :raises OSError: EOPNOTSUPP, EXDEV, ENOSYS …: it cannot.
        """

    def clone(self, target: Any) -> None:
        """Have ``target``, an empty file of the same tree, share all of this one's blocks (a reflink).

        :raises OSError: EOPNOTSUPP …: this storage cannot.
        """
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    in_kernel: ClassVar[bool] = False
    """Whether :meth:`open_again` works."""

    def open_again(self) -> int:
        """A descriptor of the very same file for a program to inherit, without the locks of this one; the caller closes it."""
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    def noted_format(self) -> str | None:
        """The format that astore noted at the file, ``""`` if none is; None: this storage keeps no notes."""
        return None

    def note_format(self, format: str | None) -> bool:
        """Note at the file which format it was made in, or (None) take that back; False: this storage keeps no notes."""
        return False

    def begin_as_qemu(self, *, write: bool) -> bool:
        """Take the locks that QEMU takes on an image that it reads (or writes), until the file is closed.

        :return: False if a QEMU uses the image in a way that excludes this. True also where this storage has no such locks.
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
        """Wait until what was written is safe."""

    @abc.abstractmethod
    def lock(self) -> bool:
        """Lock the file against all others who lock it, in this process and elsewhere, until it is closed.

        :return: False if somebody else has it locked. True also where this storage has no locks.
        """

    @abc.abstractmethod
    def close(self) -> None:
        """Close the file. May be called twice, not while other calls are in progress.

        :raises OSError: a write that was put off failed.
        """
