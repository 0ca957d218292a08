"""block_session: makes a session with the abilities of its pool.

Its class has those methods of :mod:`astore.backend`'s abilities for which the pool has calls.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from functools import cache

from astore.backend import BackingFile, Context
from astore.blocks.contract import BlockPool, MakesBlocks, RenamesBlocks, ResizesBlocks, TellsBlockUsers
from astore.blocks.creating import MakingSession
from astore.blocks.session import BlockSession
from astore.cancellation import bounded, shielded
from astore.errors import StorageError, printable
from astore.model import VolumeInfo
from astore.volume_io.volume_names import checked_name
from astore.volume_io.wording import replaced, worded


class ResizingSession(BlockSession):
    """The session of a pool with :class:`~astore.blocks.contract.ResizesBlocks`."""

    async def resize_volume(
        self,
        volume: VolumeInfo,
        capacity: int,
        *,
        allocate: bool = False,
        backing: BackingFile | None = None,
    ) -> VolumeInfo:
        """Make a volume larger or smaller.

        :raises StorageError: EAGAIN: its size is no longer that of ``volume``, or its name leads to another volume.
        """
        assert isinstance(self.pool, ResizesBlocks)
        async with self.opener.volume(volume, write=True) as file:
            with worded(volume.name, "resize"):
                size = (await file.stat()).size
                if size != volume.capacity:
                    raise StorageError(
                        f"resize of volume {printable(volume.name)!r}: it changed meanwhile, to {size} bytes; refresh it first",
                        errno=errno.EAGAIN,
                    )
                await file.run(self.pool.resize, file.volume, capacity, allocate)
                await file.sync()
                if (resized := await self.find(volume.name)).inode != volume.inode:
                    raise replaced(volume.name, "volume")
                return resized


class RenamingSession(BlockSession):
    """The session of a pool with :class:`~astore.blocks.contract.RenamesBlocks`."""

    async def rename_volume(self, volume: VolumeInfo, name: str) -> VolumeInfo:
        """Give a volume another, unused name.

        :raises VolumeExistsError: the name is taken. VolumeNotFoundError: the volume does not exist. StorageError: EAGAIN: its
            name leads to another volume than ``volume`` describes, which keeps that name.
        """
        assert isinstance(self.pool, RenamesBlocks)
        checked_name(name)
        with worded(volume.name, "rename", other=name):
            if (await self.find(volume.name)).inode != volume.inode:
                raise replaced(volume.name, "volume")
            await self.calls.to_the_end(self.pool.rename, volume.name, name)
            try:
                renamed = await self.find(name)
                if renamed.inode != volume.inode:
                    raise replaced(volume.name, "volume")
            except BaseException:
                await shielded(bounded(self.calls.run(self.pool.rename, name, volume.name)))
                raise
            return renamed


class TellingSession(BlockSession):
    """The session of a pool with :class:`~astore.blocks.contract.TellsBlockUsers`."""

    async def volume_users(self, volume: VolumeInfo) -> Sequence[str]:
        """Return who has a volume open. :raises StorageError: EAGAIN: its name leads to another volume than ``volume``."""
        assert isinstance(self.pool, TellsBlockUsers)
        async with self.opener.volume(volume, what="look for users") as file:
            with worded(volume.name, "look for users"):
                return await file.run(self.pool.users, file.volume)


_PARTS: tuple[tuple[type, type[BlockSession]], ...] = (
    (MakesBlocks, MakingSession),
    (ResizesBlocks, ResizingSession),
    (RenamesBlocks, RenamingSession),
    (TellsBlockUsers, TellingSession),
)


def block_session(pool: BlockPool, context: Context, kind: type[BlockSession] = BlockSession) -> BlockSession:
    """Make a session with the abilities of its pool.

    :param kind: a subclass of :class:`BlockSession` that adds or replaces abilities.
    """
    parts = tuple(part for ability, part in _PARTS if isinstance(pool, ability) and not issubclass(kind, part))
    return _session_class(kind, parts)(pool, context)


@cache
def _session_class(kind: type[BlockSession], parts: tuple[type[BlockSession], ...]) -> type[BlockSession]:
    bases = parts if kind is BlockSession else (kind, *parts)
    return type(kind.__name__, bases, {}) if bases else kind
