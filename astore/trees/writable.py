"""WritableTree: what work on volumes needs of a tree of files, by blocking calls."""

from __future__ import annotations

import abc
from typing import Any, ClassVar

from astore.model.records import FileStat
from astore.trees.tree import FileTree
from astore.volume_io.blocking_file import TreeFile


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
        """Note at the folder that something is noted at files of it; see :meth:`astore.trees.tree.FileTree.has_notes`."""

    @abc.abstractmethod
    def sync_folder(self) -> None:
        """Wait until the names that were made and removed are safe."""
