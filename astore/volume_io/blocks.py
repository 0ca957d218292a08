"""What a download gives: bytes in memory that is used again once nobody else has it, and holes."""

from __future__ import annotations

import sys

import msgspec


class Hole(msgspec.Struct, frozen=True):
    """What a sparse download gives, and a sparse upload takes, for ``length`` bytes of nothing."""

    length: int


class Blocks:
    """Buffers of one size. One that was taken is given again when whoever it was given to, and all that look at it (views,
    calls that are still under way), have let go of it: CPython counts them.

    New memory for each block would be cleared by the kernel, page by page, which takes longer than reading what is cached.

    :param size: bytes of each. :param kept: how many are kept at most; it may be fewer, as they are made on demand.
    """

    def __init__(self, size: int, kept: int) -> None:
        self.size = size
        self._kept = kept
        self._blocks: list[bytearray] = []

    def take(self, length: int) -> bytearray:
        """A buffer of ``length`` bytes, up to the size, whatever is in it."""
        if length != self.size:
            return bytearray(length)
        blocks = self._blocks
        for number in range(len(blocks)):  # always from the first, so that few are used, which stay in the caches
            if sys.getrefcount(blocks[number]) == _OURS:
                if len(blocks[number]) != length:
                    blocks[number] = bytearray(length)  # whoever had it made it longer or shorter
                return blocks[number]
        block = bytearray(length)
        if len(blocks) < self._kept:
            blocks.append(block)
        return block


def _ours() -> int:
    """How often an object is counted that only one list has."""
    alone = [bytearray()]
    return sys.getrefcount(alone[0])


_OURS = _ours()
