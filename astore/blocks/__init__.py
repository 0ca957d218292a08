"""Sessions for pools whose volumes are not files. A backend writes a :class:`BlockPool` for :func:`block_session`."""

from astore.blocks.abilities import block_session
from astore.blocks.contract import (
    Answer,
    Block,
    BlockPool,
    BlockVolume,
    ClonesBlocks,
    MakesBlocks,
    RenamesBlocks,
    ResizesBlocks,
    TellsBlockUsers,
)
from astore.blocks.session import BlockSession

__all__ = [
    "Answer",
    "Block",
    "BlockPool",
    "BlockSession",
    "BlockVolume",
    "ClonesBlocks",
    "MakesBlocks",
    "RenamesBlocks",
    "ResizesBlocks",
    "TellsBlockUsers",
    "block_session",
]
