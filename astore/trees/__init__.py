"""Pools that are folders of files: a backend writes a :class:`FileTree` or :class:`WritableTree` and gets a session of it.

A :class:`FileTree` is a dozen blocking calls; :class:`FileTreeSession` makes a pool's session of one. A
:class:`WritableTree` is a dozen more, with a :class:`TreeFile` for what is open; :class:`WritableTreeSession` does all work on
volumes over it: create, copy, upload, download, resize, wipe, rename, delete.
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
