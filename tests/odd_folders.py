"""Pools of type ``dir`` on folders of no known file system: nothing is left out because the file system keeps an order."""

from __future__ import annotations

from astore.backend import Context
from astore.backends.directory import DirectoryBackend
from astore.model import PoolDef
from astore.trees.session import WritableTreeSession
from astore.trees.writable_local import WritableLocalTree


class OddTree(WritableLocalTree):
    """A folder of no known file system, in which two threads make volumes."""

    makers = 2
    ordered = False


class OddFolders(DirectoryBackend):
    """Pools of type ``dir`` on such folders."""

    async def open(self, definition: PoolDef, context: Context) -> WritableTreeSession:
        return WritableTreeSession(await context.lane.run(OddTree, definition.target.path), context)
