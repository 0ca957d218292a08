"""Sessions for pools that are folders of files. A backend writes a :class:`FileTree` or a :class:`WritableTree`.

A :class:`FileTree` has a dozen blocking calls, and :class:`FileTreeSession` is a pool session over it. A :class:`WritableTree`
adds a dozen more and a :class:`TreeFile` for open files; :class:`WritableTreeSession` does all volume work over it: create,
copy, upload, download, resize, wipe, rename, delete.
"""

from astore.model import FileStat
from astore.trees.scanning import FileTreeSession
from astore.trees.session import WritableTreeSession
from astore.trees.tree import FIRST_READ, Entry, FileTree, Reading
from astore.trees.writable import WritableTree
from astore.volume_io.blocking_file import TreeFile

__all__ = [
    "FIRST_READ",
    "Entry",
    "FileStat",
    "FileTree",
    "FileTreeSession",
    "Reading",
    "TreeFile",
    "WritableTree",
    "WritableTreeSession",
]
