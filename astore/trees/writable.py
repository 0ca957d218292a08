"""WritableTree: the contract of a tree whose files can be created and changed, by blocking calls."""

from __future__ import annotations

import abc
from typing import Any, ClassVar

from astore.model.records import FileStat
from astore.trees.tree import FileTree
from astore.volume_io.blocking_file import TreeFile


class WritableTree(FileTree):
    """A tree in which files can be created and changed. Names are of entries of the folder, never paths."""

    makers: ClassVar[int] = 4
    """How many threads should create volumes at once."""

    shared: ClassVar[bool] = False
    """Whether other machines may write files that only their owner may open here."""

    @property
    def ordered(self) -> bool:
        """Whether :meth:`sync_folder` also makes earlier changes of all files' names and sizes safe. May block."""
        return False

    @abc.abstractmethod
    def open(self, name: str, *, write: bool = False) -> TreeFile:
        """Open a regular file of the folder. Must not wait for anything else, such as a FIFO, and must not leave the folder.

        :raises OSError: ENOENT; EISDIR, EINVAL: it is not a regular file; EXDEV: it is a link out of the folder.
        """

    @abc.abstractmethod
    def create(self, name: str, mode: int = 0o600) -> TreeFile:
        """Create a regular file and open it for writing. :raises OSError: EEXIST: the name is taken."""

    @abc.abstractmethod
    def stat(self, name: str, *, follow: bool = True) -> FileStat:
        """Return an entry's attributes. :raises OSError: ENOENT …"""

    @abc.abstractmethod
    def link(self, file: Any, name: str) -> None:
        """Give an open file a second name: this very file, even if its first name leads elsewhere by now.

        :param file: a TreeFile of this tree.
        :raises OSError: EEXIST: the name is taken; EPERM, EOPNOTSUPP: no links on this storage; ENOENT: the file was removed.
        """

    @abc.abstractmethod
    def rename(self, old: str, new: str) -> None:
        """Give an entry another, unused name. :raises OSError: EEXIST: the name is taken."""

    @abc.abstractmethod
    def unlink(self, name: str) -> None:
        """Remove a file or a link."""

    @abc.abstractmethod
    def mkdir(self, name: str, mode: int = 0o711, uid: int = -1, gid: int = -1) -> None:
        """Create a directory; -1 leaves owner or group as it is. :raises OSError: EEXIST: the name is taken."""

    @abc.abstractmethod
    def rmdir(self, name: str) -> None:
        """Remove an empty directory. :raises OSError: ENOTEMPTY."""

    def note_folder(self) -> None:
        """Note at the folder that its files may have notes; see :meth:`astore.trees.tree.FileTree.has_notes`."""

    @abc.abstractmethod
    def sync_folder(self) -> None:
        """Wait until created and removed names are safe."""
