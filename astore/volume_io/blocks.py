"""The pieces of a download: holes, and buffers that are reused once their last user lets go of them."""

from __future__ import annotations

import sys

import msgspec


class Hole(msgspec.Struct, frozen=True):
    """A hole of ``length`` bytes, in a sparse download or upload."""

    length: int


class Blocks:
    """A pool of buffers of one size. A buffer is reused when CPython counts no other reference: its receiver, views of it and
    running calls have all let go.

    The kernel clears new memory page by page, which takes longer than reading cached data into it.

    :param size: bytes of each buffer. :param kept: the most buffers to keep; they are made on demand.
    """

    def __init__(self, size: int, kept: int) -> None:
        self.size = size
        self._kept = kept
        self._blocks: list[bytearray] = []

    def take(self, length: int) -> bytearray:
        """Return a buffer of ``length`` bytes, at most ``size``, with arbitrary contents."""
        if length != self.size:
            return bytearray(length)
        blocks = self._blocks
        for number in range(len(blocks)):  # always from the first, so that few buffers are used and stay cached
            if sys.getrefcount(blocks[number]) == _OURS:
                if len(blocks[number]) != length:
                    blocks[number] = bytearray(length)  # its receiver changed its length
                return blocks[number]
        block = bytearray(length)
        if len(blocks) < self._kept:
            blocks.append(block)
        return block


def _ours() -> int:
    """Return the reference count of an object that only one list holds."""
    alone = [bytearray()]
    return sys.getrefcount(alone[0])


_OURS = _ours()
