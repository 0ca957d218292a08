"""Histories of registers with revisions and of leases, the checks of them, and trouble for the servers meanwhile.

All times are of one monotonic clock.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import NamedTuple

import pytest

from beds.hosts import HostNetwork, NetworkHost, missing
from beds.nats import NatsBed

UNCLOSED = pytest.mark.filterwarnings(
    "ignore:Exception ignored in. <function StreamWriter:pytest.PytestUnraisableExceptionWarning"
)
"""nats-py does not close the stream of a connection that failed while it was made."""


class Step(NamedTuple):
    """An operation on one register: a write that was acknowledged, or a read.

    :ivar revision: what was written, or read; higher ones are later. 0: nothing was there.
    :ivar after: of a write, the revision that it was conditioned on; None: unknown.
    """

    kind: str
    began: float
    ended: float
    revision: int
    client: str
    after: int | None = None


def check_register(steps: Iterable[Step]) -> int:
    """Check that the writes are linearizable, and what reads know; return how many reads are old.

    The writes have one possible order, that of their revisions: none may have ended before an earlier one began, and nothing
    lies between a write and what it was conditioned on. A read knows no write that had not begun, and no client goes back.
    An old read does not know a write of another client that had ended before the read began.
    """
    steps = list(steps)
    writes = sorted((one for one in steps if one.kind == "write"), key=lambda one: one.revision)
    revisions = [one.revision for one in writes]
    assert len(set(revisions)) == len(revisions), "two writes have one revision"
    latest, before = 0.0, 0
    for one in writes:
        assert one.ended >= latest, "a write comes before one that had ended when it began"
        assert one.after is None or one.after >= before, "a write has overwritten what its writer did not know"
        latest, before = max(latest, one.began), one.revision
    began = {one.revision: one.began for one in writes}
    known: dict[str, int] = {}
    for one in sorted(steps, key=lambda one: one.ended):
        assert one.revision >= known.get(one.client, 0), "a client has gone back, or does not know its own write"
        known[one.client] = one.revision
        if one.kind == "read":
            assert began.get(one.revision, 0.0) <= one.ended, "a read knows a write that had not begun"
    return _old_reads(writes, [one for one in steps if one.kind == "read"])


def _old_reads(writes: list[Step], reads: list[Step]) -> int:
    moments = [(one.ended, 0, one.revision) for one in writes] + [(one.began, 1, one.revision) for one in reads]
    done = old = 0
    for _, is_read, revision in sorted(moments):
        old += is_read and revision < done
        done = done if is_read else max(done, revision)
    return old


class Holding(NamedTuple):
    """A time in which a holder may believe that it has a lease: from when it was told so to when its time is over."""

    holder: str
    began: float
    ended: float


def check_holdings(holdings: Iterable[Holding]) -> None:
    """Check that no two holders believe at once that they have the lease."""
    last = Holding("", 0.0, 0.0)
    for one in sorted(holdings, key=lambda one: one.began):
        if one.ended <= one.began:  # the answer came when its time was over: nobody believed it
            continue
        if one.holder != last.holder:
            assert one.began >= last.ended, f"{one.holder} has the lease {last.ended - one.began:.3f} s too early"
        if one.ended > last.ended or one.holder != last.holder:
            last = one


@contextlib.asynccontextmanager
async def cluster(folder: Path) -> AsyncIterator[NatsBed]:
    """Start three servers, on hosts of their own if there can be any, else beside this process."""
    with contextlib.ExitStack() as stack:
        places: list[NetworkHost] = []
        if missing() is None:
            network = await asyncio.to_thread(stack.enter_context, HostNetwork())
            places = [await asyncio.to_thread(network.host, f"n{number}") for number in (1, 2, 3)]
        bed = NatsBed(folder, 3, places=places)
        stack.callback(bed.close)
        await asyncio.to_thread(bed.start)
        yield bed


async def trouble(bed: NatsBed, stop: asyncio.Event, draw: random.Random) -> int:
    """Kill, stop and cut off servers, one at a time; return how often."""
    count = 0
    while not stop.is_set():
        victim = draw.choice(bed.servers)
        kind = draw.choice(["kill", "stop", "cut"] if victim.place else ["kill", "stop"])
        if kind == "kill":
            await asyncio.to_thread(lambda one=victim: one.end(kill=True))
            await asyncio.sleep(0.3)
            await asyncio.to_thread(victim.start)
        elif kind == "stop":
            victim.signal(signal.SIGSTOP)
            await asyncio.sleep(1.0)
            victim.signal(signal.SIGCONT)
        else:
            assert victim.place is not None
            await asyncio.to_thread(victim.place.cut)
            await asyncio.sleep(1.0)
            await asyncio.to_thread(victim.place.mend)
        await asyncio.to_thread(victim.wait_ready, 60)
        count += 1
        await asyncio.sleep(0.5)
    return count
