"""Linearizability: a recorded history of definitions and owners, while a cluster's servers fail or are cut off.

Each definition carries a number that is one more than the highest its writer has read. A write succeeds on the condition
that no definition has changed since. So the writes have an order of their own, and the history shows whether it agrees with
time.
ASTORE_FLEET_OPERATIONS says how many operations there are.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from core_fakes import eventually
from fleet_history import UNCLOSED, Step, check_register, cluster, trouble

from astore.errors import StoreError
from astore.lanes import Lanes
from astore.model import PoolDef, Target
from astore.store.contract import OutdatedError
from astore_fleet import NatsStore
from astore_fleet.engine import Message
from astore_fleet.mirror import Mirror
from astore_fleet.names import Names
from astore_fleet.placement import owning
from astore_fleet.records import Owner

OPERATIONS = int(os.environ.get("ASTORE_FLEET_OPERATIONS", "300"))
CLIENTS = 6
NAMES = [f"p{number}" for number in range(5)]


class Operation(NamedTuple):
    """An operation of the history; times are of one monotonic clock. ``number`` is None where a write's outcome is unknown."""

    kind: str
    began: float
    ended: float
    number: int | None
    client: str = ""


def number_of(definition: PoolDef) -> int:
    """The number that a definition carries."""
    assert definition.target.path is not None
    return int(definition.target.path[1:])


async def write_and_read(
    store: NatsStore,
    history: list[Operation],
    steps: dict[str, list[Step]],
    draw: random.Random,
    enough: Callable[[], bool],
) -> None:
    """Read, and write by what was read, until there is enough of everything."""
    while not enough():
        began = time.monotonic()
        try:
            contents = await store.read()
        except (StoreError, TimeoutError):
            continue
        assert contents is not None
        highest = max((number_of(stored.definition) for stored in contents.pools), default=0)
        ended = time.monotonic()
        history.append(Operation("read", began, ended, highest, store.host))
        known = {one.definition.name: number_of(one.definition) for one in contents.pools}
        for name in NAMES:
            steps[name].append(Step("read", began, ended, known.get(name, 0), store.host))
        name = draw.choice(NAMES)
        uuid = next((one.definition.uuid for one in contents.pools if one.definition.name == name), None)
        made = PoolDef("dir", name, uuid or f"{draw.getrandbits(128):032x}", target=Target(f"/{highest + 1}"))
        began = time.monotonic()
        try:
            await store.put(made, contents.revision)
        except OutdatedError:
            continue
        except (StoreError, TimeoutError):
            history.append(Operation("write", began, float("inf"), None))
        else:
            ended = time.monotonic()
            history.append(Operation("write", began, ended, highest + 1, store.host))
            steps[name].append(Step("write", began, ended, highest + 1, store.host, known.get(name, 0)))


def check(history: list[Operation]) -> int:
    """Check that the writes have an order that agrees with time, and what each client reads; return how many reads are old.

    An old read does not know a write of another client that had ended before it began. A server that was stopped, and goes on,
    may answer so until it learns that there is another leader. Nothing can be written on what such a read says.
    """
    writes = sorted((one for one in history if one.kind == "write" and one.number), key=lambda one: one.number or 0)
    numbers = [one.number for one in writes]
    assert len(set(numbers)) == len(numbers), "two writers have written after the same state"
    latest = 0.0
    for one in writes:
        assert one.ended >= latest, "a write comes before one that had ended when it began"
        latest = max(latest, one.began)
    began = {one.number: one.began for one in writes}
    known: dict[str, int] = {}
    for one in sorted((one for one in history if one.number is not None), key=lambda one: one.ended):
        assert one.number is not None
        assert one.number >= known.get(one.client, 0), "a client has gone back, or does not know its own write"
        known[one.client] = one.number
        if one.kind == "read" and one.number in began:
            assert began[one.number] <= one.ended, "a read knows a write that had not begun"
    return _old_reads(writes, history)


def _old_reads(writes: list[Operation], history: list[Operation]) -> int:
    moments = [(one.ended, 0, one.number or 0) for one in writes]
    moments += [(one.began, 1, one.number or 0) for one in history if one.kind == "read"]
    done = old = 0
    for _, is_read, number in sorted(moments):
        old += is_read and number < done
        done = done if is_read else max(done, number)
    return old


class Owning:
    """The history of owners.

    :ivar taken: the sequences at which the pool was taken. :ivar written: the sequence and the token of each write.
    """

    def __init__(self) -> None:
        self.taken: set[int] = set()
        self.written: list[tuple[int, int]] = []
        self.refused = 0

    def check(self) -> None:
        """Check that no owner has written after another one had taken the pool."""
        for seq, token in self.written:
            assert not any(token < one < seq for one in self.taken), "an owner has written after another took the pool"


async def own_and_write(
    store: NatsStore, owner: Owner, stop: asyncio.Event, draw: random.Random, history: Owning
) -> None:
    """Take a pool from whoever has it, write by the token, and go on writing by it after it may be lost."""
    engine, names = store.engine, store.engine.names
    while not stop.is_set():
        try:
            found = await engine.last(names.state, names.owner("p0"))
            token = await owning.take(engine, "p0", owner, 0 if found is None else found.seq)
            if token is None:
                continue
            history.taken.add(token)
            for _ in range(draw.randrange(4)):
                subject, headers = names.snapshot("p0", owner.host), {"Token": str(token)}
                among = names.owner("p0")
                seq = await engine.publish(names.state, subject, b"", headers, after=token, among=among)
                history.written.append((seq, token))
        except OutdatedError:
            history.refused += 1
        except (StoreError, TimeoutError):
            continue


@pytest.mark.soak
@UNCLOSED
@pytest.mark.timeout(0 if OPERATIONS > 1000 else 120)
async def test_the_history_is_linearizable(tmp_path: Path) -> None:
    """No write is lost or made twice, few reads are old, and no owner writes after another one has taken the pool."""
    draw, lanes = random.Random(7), Lanes()
    history: list[Operation] = []
    by_owners, stop = Owning(), asyncio.Event()
    steps: dict[str, list[Step]] = defaultdict(list)

    def enough() -> bool:
        return len(history) >= OPERATIONS and len(by_owners.written) >= OPERATIONS // 20 and by_owners.refused > 0

    async with cluster(tmp_path) as bed:
        stores = [NatsStore(bed.url, "history", host=f"h{number}") for number in range(CLIENTS)]
        seen: list[Message] = []
        try:
            for store in stores:
                await store.open(lanes.lane(store.name))
            watching = Mirror(stores[0].engine, Names("history").state, seen.append)
            await watching.open()
            troubles = asyncio.ensure_future(trouble(bed, stop, draw))
            owners = [
                asyncio.ensure_future(
                    own_and_write(store, Owner(store.host, store.engine.session), stop, draw, by_owners)
                )
                for store in stores[:3]
            ]
            await asyncio.gather(*(write_and_read(store, history, steps, draw, enough) for store in stores))
            stop.set()
            assert await troubles >= 1
            await asyncio.gather(*owners)
            await eventually(lambda: stores[0].engine.connected, "the connection")
            await watching.sync()
            await watching.aclose()
        finally:
            stop.set()
            for store in stores:
                await store.aclose()
            lanes.close()
    old = check(history)
    assert old <= len(history) // 100
    for one in steps.values():
        check_register(one)
    for message in seen:  # what the acknowledgements did not tell
        if message.subject.endswith(".own"):
            by_owners.taken.add(message.seq)
        elif "Token" in message.headers:
            by_owners.written.append((message.seq, int(message.headers["Token"])))
    assert by_owners.written
    by_owners.check()
    writes = sum(one.kind == "write" for one in history)
    print(f"{len(history)} operations, {writes} writes, {old} old reads")
    print(f"{len(by_owners.taken)} owners, {len(by_owners.written)} writes by them, {by_owners.refused} refused")


@pytest.mark.parametrize(
    ("history", "wrong"),
    [
        ([Operation("write", 0, 1, 1), Operation("write", 0, 1, 1)], "same state"),
        ([Operation("write", 2, 3, 1), Operation("write", 0, 1, 2)], "comes before"),
        ([Operation("write", 0, 1, 1), Operation("read", 2, 3, 0)], "gone back"),
        ([Operation("write", 2, 3, 1), Operation("read", 0, 1, 1)], "had not begun"),
    ],
)
def test_what_is_wrong_is_found(history: list[Operation], wrong: str) -> None:
    """The check finds lost, disordered, old and early operations."""
    with pytest.raises(AssertionError, match=wrong):
        check(history)


def test_a_write_of_a_former_owner_is_found() -> None:
    """The check finds a write by a token that was over."""
    history = Owning()
    history.taken, history.written = {1, 5}, [(3, 1), (6, 5)]
    history.check()
    history.written.append((7, 1))
    with pytest.raises(AssertionError, match="after another took"):
        history.check()


def test_old_reads_are_counted() -> None:
    """A read that does not know what another client had written is old."""
    assert (
        check([Operation("write", 0, 1, 1, "a"), Operation("read", 2, 3, 0, "b"), Operation("read", 4, 5, 1, "b")]) == 1
    )
