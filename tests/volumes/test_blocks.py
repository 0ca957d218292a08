"""Memory that is used again: never while anybody has it."""

from __future__ import annotations

import threading

from astore.volume_io.blocks import Blocks


def test_what_nobody_has_is_given_again() -> None:
    """A block that was let go of is given again, and nothing new is made meanwhile."""
    blocks = Blocks(100, 2)
    first = blocks.take(100)
    first[:] = b"x" * 100
    known = id(first)
    second = blocks.take(100)
    assert second is not first
    del first
    assert id(blocks.take(100)) == known
    assert bytes(second) == bytes(100)
    third, fourth = blocks.take(100), blocks.take(100)
    assert len({id(second), id(third), id(fourth)}) == 3


def test_what_somebody_looks_at_is_not() -> None:
    """Views, and calls of other threads, hold a block as well as a name does."""
    blocks = Blocks(100, 1)
    view = memoryview(blocks.take(100))[10:20]
    known = id(view.obj)
    assert id(blocks.take(100)) != known
    go = threading.Event()
    thread = threading.Thread(target=lambda block: go.wait(), args=(view.obj,))
    thread.start()
    del view
    assert id(blocks.take(100)) != known
    go.set()
    thread.join()
    del thread
    assert id(blocks.take(100)) == known


def test_what_was_resized_is_not() -> None:
    """Whoever got a block may do with it what they like."""
    blocks = Blocks(100, 1)
    block = blocks.take(100)
    del block[50:]
    del block
    known = id(blocks.take(100))
    assert len(blocks.take(100)) == 100
    assert id(blocks.take(100)) == known, "it has its place, and is used again"


def test_other_lengths() -> None:
    """The last block of all is as long as it is asked for."""
    blocks = Blocks(100, 1)
    assert len(blocks.take(7)) == 7
    assert len(blocks.take(100)) == 100
