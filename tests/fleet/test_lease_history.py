"""Leases by a recorded history, while servers are killed, stopped and cut off: each is a register, and one holder has it.

ASTORE_FLEET_OPERATIONS says how many operations there are.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections import defaultdict
from pathlib import Path

import pytest
from fleet_history import UNCLOSED, Holding, Step, check_holdings, check_register, cluster, trouble

from astore.errors import StoreError
from astore.lanes import Lanes
from astore.store.contract import Lease, OutdatedError
from astore_fleet import NatsStore

OPERATIONS = int(os.environ.get("ASTORE_FLEET_OPERATIONS", "300"))
SECONDS = 1.0
NAMES = ("a", "b", "c", "d", "e", "f")
CLIENTS = 6


class History:
    """What was done with each lease, and when each holder may have believed that it had it."""

    def __init__(self) -> None:
        self.steps: dict[str, list[Step]] = defaultdict(list)
        self.holdings: dict[str, list[Holding]] = defaultdict(list)
        self.operations = 0
        self.unknown = 0

    def held(self, began: float, lease: Lease, after: int | None) -> None:
        """Note a lease that was given, or extended."""
        ended = time.monotonic()
        assert isinstance(lease.token, int)
        self.steps[lease.name].append(Step("write", began, ended, lease.token, lease.holder, after))
        self.holdings[lease.name].append(Holding(lease.holder, ended, began + SECONDS))

    def released(self, lease: Lease, began: float) -> None:
        """Note that a holder has begun to give a lease back: it believes no longer that it has it."""
        mine = self.holdings[lease.name]
        mine[:] = [
            one._replace(ended=min(one.ended, began)) if one.holder == lease.holder else one
            for one in mine
            if one.holder != lease.holder or one.began < began
        ]


async def use(store: NatsStore, history: History, draw: random.Random) -> None:
    """Take leases, extend them, give them back or forget them, and look at them, until there are enough operations."""
    mine: dict[str, Lease] = {}
    engine, names = store.engine, store.engine.names
    while history.operations < OPERATIONS:
        name, began = draw.choice(NAMES), time.monotonic()
        history.operations += 1
        lease = mine.get(name)
        try:
            if draw.random() < 0.3:
                found = await engine.last(names.leases, names.lease(name))
                seq = 0 if found is None else found.seq
                history.steps[name].append(Step("read", began, time.monotonic(), seq, store.host))
            elif lease is None:
                mine[name] = await store.acquire_lease(name, store.host, SECONDS)
                history.held(began, mine[name], None)
            elif draw.random() < 0.6:
                assert isinstance(lease.token, int)
                mine[name] = await store.renew_lease(lease, SECONDS)
                history.held(began, mine[name], lease.token)
            else:
                del mine[name]
                if draw.random() < 0.5:  # else it is forgotten, and its time ends
                    history.released(lease, began)
                    await store.release_lease(lease)
        except OutdatedError:
            mine.pop(name, None)
        except (StoreError, TimeoutError):
            mine.pop(name, None)
            history.unknown += 1
        await asyncio.sleep(draw.random() * 0.06)


@pytest.mark.soak
@UNCLOSED
@pytest.mark.timeout(0 if OPERATIONS > 1000 else 120)
async def test_a_lease_has_one_holder(tmp_path: Path) -> None:
    """Writes of a lease are linearizable, and no two holders have it at once, by their own clocks."""
    draw, lanes, history, stop = random.Random(11), Lanes(), History(), asyncio.Event()
    async with cluster(tmp_path) as bed:
        stores = [NatsStore(bed.url, "leases", host=f"h{number}") for number in range(CLIENTS)]
        try:
            for store in stores:
                await store.open(lanes.lane(store.name))
            troubles = asyncio.ensure_future(trouble(bed, stop, draw))
            await asyncio.gather(*(use(store, history, draw) for store in stores))
            stop.set()
            faults = await troubles
        finally:
            stop.set()
            for store in stores:
                await store.aclose()
            lanes.close()
    old = sum(check_register(steps) for steps in history.steps.values())
    for holdings in history.holdings.values():
        check_holdings(holdings)
    given = sum(len(one) for one in history.holdings.values())
    print(
        f"{history.operations} operations, {given} times held, {history.unknown} unknown, {old} old reads, {faults} faults"
    )
    assert given
    assert faults
    assert old <= history.operations // 100


def step(kind: str, began: float, ended: float, revision: int, after: int | None = None, client: str = "a") -> Step:
    """An operation."""
    return Step(kind, began, ended, revision, client, after)


@pytest.mark.parametrize(
    ("steps", "wrong"),
    [
        ([step("write", 0, 1, 1), step("write", 0, 1, 1)], "one revision"),
        ([step("write", 2, 3, 1), step("write", 0, 1, 2)], "comes before"),
        ([step("write", 0, 1, 1), step("write", 1, 2, 2), step("write", 2, 3, 3, 1)], "did not know"),
        ([step("write", 0, 1, 1), step("read", 2, 3, 0)], "gone back"),
        ([step("write", 2, 3, 1), step("read", 0, 1, 1)], "had not begun"),
    ],
)
def test_what_is_wrong_is_found(steps: list[Step], wrong: str) -> None:
    """The check finds doubled, disordered, lost and early writes, and clients that go back."""
    with pytest.raises(AssertionError, match=wrong):
        check_register(steps)


def test_old_reads_are_counted() -> None:
    """A read that does not know what another client had written is old."""
    steps = [step("write", 0, 1, 1), step("read", 2, 3, 0, client="b"), step("read", 4, 5, 1, client="b")]
    assert check_register(steps) == 1


def test_two_holders_at_once_are_found() -> None:
    """A lease that is given before its time is over is found."""
    check_holdings([Holding("a", 0, 2), Holding("a", 1, 3), Holding("b", 3, 4), Holding("a", 4, 5)])
    with pytest.raises(AssertionError, match="too early"):
        check_holdings([Holding("a", 0, 2), Holding("a", 1, 3), Holding("b", 2.5, 4)])
