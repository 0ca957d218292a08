"""What a failed call leaves behind: its error, and nothing that hangs on to it."""

from __future__ import annotations

import weakref

import pytest

from astore.lanes import Lanes

pytestmark = pytest.mark.usefixtures("no_leaks")


async def test_an_error_that_was_raised_before(lanes: Lanes) -> None:
    """An error that is raised again has frames of others in its traceback, which go on: this test's, for one."""
    error = OSError(5, "no")

    def fail() -> None:
        raise error

    lane = lanes.lane("pool")
    for _ in range(3):
        with pytest.raises(OSError, match="no"):
            await lane.run(fail)


async def test_a_kept_error_keeps_nothing_else(lanes: Lanes) -> None:
    """Whoever keeps what a call raised does not keep what the call had in hand, such as an open directory."""

    class Thing:
        pass

    things: list[weakref.ref[Thing]] = []

    def inner() -> None:
        thing = Thing()
        things.append(weakref.ref(thing))
        raise OSError(5, "no")

    def outer() -> None:
        thing = Thing()
        things.append(weakref.ref(thing))
        try:
            inner()
        except OSError as error:
            raise ValueError("worse") from error

    lane = lanes.lane("pool")
    with pytest.raises(ValueError, match="worse") as caught:
        await lane.run(outer)
    assert isinstance(caught.value.__cause__, OSError)
    assert [thing() for thing in things] == [None, None]
