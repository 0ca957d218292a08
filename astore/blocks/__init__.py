"""Pools whose volumes are no files: a backend writes a :class:`BlockPool` and gets a session by :func:`block_session`."""

from astore.blocks.contract import (
    Answer,
    Block,
    BlockPool,
    BlockVolume,
    MakesBlocks,
    RenamesBlocks,
    ResizesBlocks,
)
from astore.blocks.session import BlockSession, block_session

__all__ = [
    "Answer",
    "Block",
    "BlockPool",
    "BlockSession",
    "BlockVolume",
    "MakesBlocks",
    "RenamesBlocks",
    "ResizesBlocks",
    "block_session",
]
