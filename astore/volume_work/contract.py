"""What volume work needs of a tree of files: :class:`WritableTree` and :class:`TreeFile`, by blocking calls."""

from __future__ import annotations

import abc
import errno
import os
from typing import Any, ClassVar

from astore.files import FileStat, FileTree


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


class WritableTree(FileTree):
    """A tree in which files can be made and changed. Names are those of entries of the folder, never paths."""

    makers: ClassVar[int] = 4
    """How many threads at once pay for making many volumes."""

    shared: ClassVar[bool] = False
    """Whether other machines may write to files that only their owner may open here."""

    @property
    def ordered(self) -> bool:
        """Whether what was done to names and sizes before :meth:`sync_folder` is safe with it, of all files. May block."""
        return False

    @abc.abstractmethod
    def open(self, name: str, *, write: bool = False) -> TreeFile:
        """Open a regular file of the folder. Never waits for what is something else, and never leaves the folder.

        :raises OSError: ENOENT; EISDIR, EINVAL: it is something else; EXDEV: it is a link out of the folder.
        """

    @abc.abstractmethod
    def create(self, name: str, mode: int = 0o600) -> TreeFile:
        """Make a new regular file and open it for writing. :raises OSError: EEXIST: the name is taken."""

    @abc.abstractmethod
    def stat(self, name: str, *, follow: bool = True) -> FileStat:
        """An entry's attributes. :raises OSError: ENOENT …"""

    @abc.abstractmethod
    def link(self, file: Any, name: str) -> None:
        """Give an open file a second name: that very file, whatever its first name leads to by now.

        :param file: a TreeFile of this tree.
        :raises OSError: EEXIST: the name is taken; EPERM, EOPNOTSUPP: there are no links here; ENOENT: it has no name any more.
        """

    @abc.abstractmethod
    def rename(self, old: str, new: str) -> None:
        """Give an entry another name that nobody has. :raises OSError: EEXIST: the name is taken."""

    @abc.abstractmethod
    def unlink(self, name: str) -> None:
        """Remove a file, or a link."""

    @abc.abstractmethod
    def mkdir(self, name: str, mode: int = 0o711, uid: int = -1, gid: int = -1) -> None:
        """Make a directory; -1 leaves owner or group as it is. :raises OSError: EEXIST: the name is taken."""

    @abc.abstractmethod
    def rmdir(self, name: str) -> None:
        """Remove an empty directory. :raises OSError: ENOTEMPTY."""

    def note_folder(self) -> None:
        """Note at the folder that something is noted at files of it; see :meth:`astore.files.FileTree.has_notes`."""

    @abc.abstractmethod
    def sync_folder(self) -> None:
        """Wait until the names that were made and removed are safe."""
