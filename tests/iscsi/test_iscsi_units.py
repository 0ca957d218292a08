"""Units that behave as tgtd's do not: long identifications, other provisioning states, odd limits, silence. On a connection of
the tests' own."""

from __future__ import annotations

import asyncio
import ctypes
import struct
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from core_fakes import eventually

from astore.blocks import Block
from astore.model import EntryError
from astore_iscsi import scsi
from astore_iscsi.libiscsi import Memory
from astore_iscsi.scsi import Capacity, Limits, Sense
from astore_iscsi.target import client as clients
from astore_iscsi.target.answers import GOOD, Answer, ConnectionLost
from astore_iscsi.target.client import Client, Unit
from astore_iscsi.target.connection import Debt
from astore_iscsi.target.pool import IscsiPool
from astore_iscsi.target.volume import UnitVolume

BLOCKS = 2048
CAPACITY = struct.pack(">QI", BLOCKS - 1, 4096) + bytes((0, 0, 0xC0, 0)) + bytes(16)
NO_UNIT = Answer(2, Sense(5, 0x2500)), b""
BUSY = Answer(8, None), b""

Said = tuple[Answer, bytes] | None
"""The answer of a unit and its data; None: it is silent."""
Behaviour = Callable[[int, bytes], Said]
"""What a unit of this number says to a command."""


class OurConnection:
    """A connection to units that behave as a test says."""

    alive = True

    def __init__(self, behaviour: Behaviour) -> None:
        self.behaviour = behaviour
        self.silent: dict[int, Debt] = {}
        self.unanswered: list[Callable[[Answer | OSError], None]] = []
        self.written: list[bytes] = []

    def send(self, lun: int, cdb: bytes, memory: Memory | None, writes: bool, done: Any) -> None:
        """Answer in a later round of the loop."""
        if writes and memory is not None:
            self.written.append(ctypes.string_at(memory.address, memory.length))
        said = self.behaviour(lun, cdb)
        if said is None:
            self.unanswered.append(done)
            return

        def tell() -> None:
            if memory is not None and not writes:
                ctypes.memmove(memory.address, said[1], min(len(said[1]), memory.length))
            done(said[0])

        asyncio.get_running_loop().call_soon(tell)

    def destroy(self, why: OSError | None = None) -> None:
        """Note that it is gone."""
        self.alive = False


def client_of(behaviour: Behaviour, seconds: float = 20.0) -> tuple[Client, OurConnection]:
    """A client that is connected to such units."""
    context = SimpleNamespace(name="units", timeout=seconds)
    made = Client([], "iqn.2026-01.test:units", None, context)
    connection = OurConnection(behaviour)
    made._connection = connection
    return made, connection


def identification(*descriptors: bytes) -> bytes:
    """Page 83h of a disk."""
    body = b"".join(descriptors)
    return struct.pack(">BBH", 0, 0x83, len(body)) + body


def descriptor(association: int, kind: int, name: bytes) -> bytes:
    """A descriptor of page 83h."""
    return bytes((1, association << 4 | kind, 0, len(name))) + name


def disk(lun: int, cdb: bytes) -> Said:
    """A disk that answers all."""
    if cdb[0] == 0x12:
        return GOOD, identification(descriptor(0, 3, bytes((lun,)) * 16))
    return GOOD, CAPACITY if cdb[0] == 0x9E else b""


@pytest.mark.parametrize(("state", "hole"), [(0, False), (1, True), (2, True), (3, False), (4, False), (15, False)])
async def test_only_what_is_unmapped_is_a_hole(state: int, hole: bool) -> None:
    """Mapped blocks are data, under both numbers that standards have for them, and so are blocks of which nothing is known."""

    def unit(lun: int, cdb: bytes) -> Said:
        if cdb[:2] == b"\x9e\x12":
            return GOOD, struct.pack(">IxxxxQIBxxx", 20, 0, BLOCKS, state)
        return disk(lun, cdb)

    client, _ = client_of(unit)
    volume = UnitVolume(client, Unit(0), 1, Capacity(BLOCKS, 4096, True, True), Limits(unmaps=True))
    assert await volume.next_data(0) == (None if hole else (0, BLOCKS * 4096))


async def test_long_identification() -> None:
    """A listing and an open unit know the same unit, however much the page has before its own names."""
    port = descriptor(1, 8, b"iqn.2026-01.test:" + b"p" * 200 + b",t,0x0001\0")
    page = identification(port, descriptor(0, 3, bytes(range(16))), descriptor(0, 3, bytes(range(16, 32))))

    def unit(lun: int, cdb: bytes) -> Said:
        if cdb[0] == 0x12:
            return GOOD, page[: struct.unpack(">H", cdb[3:5])[0]]
        return disk(lun, cdb)

    client, _ = client_of(unit)
    pool = IscsiPool(client, "key")
    found, volume = await pool.look("unit:0:0:3"), await pool.open("unit:0:0:3", True)
    assert isinstance(found, Block)
    assert found.id == volume.id
    named_by_target = scsi.parse_identification(bytes(4), client.target, 3)
    assert found.id != named_by_target


async def test_a_unit_that_is_not_there() -> None:
    """A number that leads to no unit any more is no entry, though its target answers all its commands with that."""
    client, _ = client_of(lambda lun, cdb: NO_UNIT if lun == 7 else disk(lun, cdb))
    pool = IscsiPool(client, "key")
    assert await pool.look("unit:0:0:7") is None
    assert isinstance(await pool.look("unit:0:0:1"), Block)


@pytest.mark.parametrize(("most", "grain", "can"), [(1000, 64, True), (64, 64, True), (0, 64, True), (32, 64, False)])
async def test_grains_are_unmapped_as_a_whole(most: int, grain: int, can: bool) -> None:
    """No command unmaps a part of a grain, which a unit may ignore; a unit that takes no whole grain unmaps nothing."""
    client, connection = client_of(disk)
    limits = Limits(unmap=most, grain=grain, unmaps=True)
    volume = UnitVolume(client, Unit(0), 1, Capacity(BLOCKS, 4096, True, True), limits)
    if not can:
        with pytest.raises(OSError, match="not supported"):
            await volume.discard(0, BLOCKS * 4096)
        return
    await volume.discard(0, BLOCKS * 4096)
    ranges = [struct.unpack_from(">QI", data, 8) for data in connection.written]
    assert sum(count for _, count in ranges) == BLOCKS
    assert all(first % grain == 0 and count % grain == 0 for first, count in ranges)
    assert all(count <= most for _, count in ranges if most)


async def test_a_busy_unit_is_asked_again_later() -> None:
    """A unit that is busy for a moment is listed, and it is not asked all the time."""
    times: list[float] = []
    loop = asyncio.get_running_loop()

    def unit(lun: int, cdb: bytes) -> Said:
        if cdb[0]:
            return disk(lun, cdb)
        times.append(loop.time())
        return BUSY if len(times) < 4 else (GOOD, b"")

    client, _ = client_of(unit)
    assert isinstance(await IscsiPool(client, "key").look("unit:0:0:1"), Block)
    assert times[-1] - times[0] >= 0.02 * (1 + 2 + 4) * 0.9


async def test_unit_attention_is_asked_again() -> None:
    """A unit that was reset answers with UNIT ATTENTION, here the first command of each kind: it is asked again."""
    told: set[int] = set()

    def unit(lun: int, cdb: bytes) -> Said:
        if cdb[0] not in told:
            told.add(cdb[0])
            return Answer(2, Sense(6, 0x2900)), b""
        if cdb[0] == 0xA0:
            return GOOD, struct.pack(">IxxxxHxxxxxx", 8, 1)
        return (GOOD, b"x" * 4096) if cdb[0] == 0x88 else disk(lun, cdb)

    client, connection = client_of(unit)
    (found,) = await IscsiPool(client, "key").list({})
    assert isinstance(found, Block)
    volume = UnitVolume(client, Unit(1), found.id, Capacity(BLOCKS, 4096, True, True), Limits())
    buffer = bytearray(4096)
    assert await volume.read_into(buffer, 0) == 4096
    assert buffer == b"x" * 4096
    await volume.write(b"y" * 4096, 0)
    assert connection.written == [b"y" * 4096] * 2
    assert {0xA0, 0x12, 0x9E, 0x88, 0x8A} <= told


async def test_attention_that_a_listing_gets() -> None:
    """A unit tells once that it was replaced, here to a listing: an open volume is looked at before its next write."""
    name, attention = b"a", False

    def unit(lun: int, cdb: bytes) -> Said:
        nonlocal attention
        if cdb[0] == 0xA0:
            return GOOD, struct.pack(">IxxxxHxxxxxx", 8, 1)
        if cdb[0] == 0x12:
            return GOOD, identification(descriptor(0, 3, name * 16))
        if attention:
            attention = False
            return Answer(2, Sense(6, 0x3F0E)), b""
        return disk(lun, cdb)

    client, connection = client_of(unit)
    pool = IscsiPool(client, "key")
    volume = await pool.open("unit:0:0:1", True)
    await volume.write(b"y" * 4096, 0)
    name, attention = b"b", True
    assert isinstance(await pool.look("unit:0:0:1"), Block)
    assert not attention
    with pytest.raises(OSError, match="another unit now"):
        await volume.write(b"z" * 4096, 0)
    assert connection.written == [b"y" * 4096]


async def test_a_busy_unit_is_looked_at_again() -> None:
    """A unit that is too busy to say what it is, after a listing, is asked again before it is written."""
    busy = 0

    def unit(lun: int, cdb: bytes) -> Said:
        nonlocal busy
        if cdb[0] == 0x12 and busy:
            busy -= 1
            return BUSY
        return disk(lun, cdb)

    client, connection = client_of(unit)
    volume = await IscsiPool(client, "key").open("unit:0:0:1", True)
    client._note_change()
    busy = 2
    await volume.write(b"y" * 4096, 0)
    assert (busy, connection.written) == (0, [b"y" * 4096])


async def test_attention_that_nobody_waits_for() -> None:
    """What a unit tells once counts, also if the caller whose command was answered so was cancelled."""
    client, connection = client_of(lambda lun, cdb: None if cdb[0] == 0x88 else disk(lun, cdb))
    volume = await IscsiPool(client, "key").open("unit:0:0:1", False)
    changes = client._changes
    reading = asyncio.ensure_future(volume.read_into(bytearray(4096), 0))
    while not connection.unanswered:
        await asyncio.sleep(0)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    connection.unanswered.pop()(Answer(2, Sense(6, 0x3F0E)))
    assert client._changes == changes + 1
    await volume.close()


async def test_a_unit_that_fails_to_say_what_it_is() -> None:
    """It is an error, and not another unit, which nobody could tell from it."""
    fails = False

    def unit(lun: int, cdb: bytes) -> Said:
        return (Answer(2, Sense(4, 0x4400)), b"") if fails and cdb[0] == 0x12 else disk(lun, cdb)

    client, _ = client_of(unit)
    pool = IscsiPool(client, "key")
    assert isinstance(await pool.look("unit:0:0:1"), Block)
    fails = True
    assert isinstance(await pool.look("unit:0:0:1"), EntryError)
    with pytest.raises(OSError, match="hardware error"):
        await pool.open("unit:0:0:1", True)


async def test_two_writers_of_one_process() -> None:
    """Whatever pools they belong to, until the first one closes the unit."""
    pools = [IscsiPool(client_of(disk)[0], "key") for _ in range(2)]
    one, two = [await pool.open("unit:0:0:1", True) for pool in pools]
    assert await one.lock() and await one.lock()
    assert not await two.lock()
    await one.close()
    assert await two.lock()
    await two.close()


async def test_a_silent_unit_owes_few_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """However often a target is listed, a unit that says nothing is asked once on a connection; others are not concerned."""
    silent = True

    def unit(lun: int, cdb: bytes) -> Said:
        if cdb[0] == 0xA0:
            return GOOD, struct.pack(">IxxxxHxxxxxxHxxxxxx", 16, 0, 1)
        return None if silent and lun == 1 else disk(lun, cdb)

    client, connection = client_of(unit, 0.2)
    pool = IscsiPool(client, "key")
    for _ in range(5):
        found = await pool.list({})
        assert [type(one) for one in found] == [Block, EntryError]
        assert len(connection.unanswered) == 3
    silent = False
    for done in connection.unanswered:
        done(GOOD)
    assert [type(one) for one in await pool.list({})] == [Block, Block]
    silent = True
    await pool.list({})

    async def connect() -> OurConnection:
        if not connection.alive:
            client._connection = OurConnection(unit)
        return client._connection

    monkeypatch.setattr(client, "connect", connect)
    monkeypatch.setattr(clients, "SILENT_SECONDS", 0.0)
    await pool.list({})
    assert not connection.alive, "units that have been silent for long are asked on another connection"


async def test_a_look_after_one_that_was_given_up() -> None:
    """A unit whose answers are under way, to a caller that has gone, is asked when it has given them: it is not silent."""
    late = True
    client, connection = client_of(lambda lun, cdb: None if late else disk(lun, cdb))
    gone = asyncio.ensure_future(client.survey([1]))
    await eventually(lambda: len(connection.unanswered) == 3)
    gone.cancel()
    with pytest.raises(asyncio.CancelledError):
        await gone
    late = False
    looks = [asyncio.ensure_future(client.survey(luns)) for luns in ([1], [0, 1], [0])]
    (other,) = await looks[2]
    assert other.capacity is not None
    assert not looks[0].done() and not looks[1].done()
    for done in connection.unanswered:
        done(GOOD)
    for found in [await looks[0], await looks[1]]:
        assert all(one.wrong is None and one.capacity is not None for one in found)
    assert not connection.silent


async def test_a_connection_that_is_lost_while_an_earlier_answer_is_awaited() -> None:
    """Who waits for the answers to an earlier look asks on the next connection when they cannot come any more."""
    client, lost = client_of(lambda lun, cdb: None)
    gone = asyncio.ensure_future(client.survey([1]))
    await eventually(lambda: len(lost.unanswered) == 3)
    gone.cancel()
    look = asyncio.ensure_future(client.survey([1]))
    await eventually(lambda: bool(lost.silent))
    await asyncio.sleep(0)
    lost.destroy()
    client._connection = OurConnection(disk)
    for done in lost.unanswered:
        done(ConnectionLost(104, "reset"))
    (found,) = await look
    assert found.capacity is not None
    assert len(lost.unanswered) == 3


async def test_a_unit_that_was_asked_late_has_its_time() -> None:
    """A unit is silent when the time since it was asked is over, however long ago the look began that asked it."""
    client, connection = client_of(lambda lun, cdb: None)
    looks = []
    for asked in (3, 6):
        looks.append(asyncio.ensure_future(client.survey([1])))
        await eventually(lambda: len(connection.unanswered) == 3)
        await asyncio.sleep(0.001)
        later = asyncio.get_running_loop().time()
        if asked == 6:
            for done in connection.unanswered[:]:
                done(GOOD)
            await eventually(lambda: len(connection.unanswered) == 6)
        looks[-1].cancel()
        await eventually(lambda: bool(connection.silent))
    assert connection.silent[1].since >= later
    await asyncio.wait(looks)


async def test_nothing_but_silence() -> None:
    """If every unit owes answers, the pool does not answer; a lost connection is told at once."""
    client, connection = client_of(lambda lun, cdb: None, 0.2)
    for _ in range(2):
        with pytest.raises(TimeoutError, match="no unit of target"):
            await client.survey([0, 1])
    assert len(connection.unanswered) == 6
    survey = asyncio.ensure_future(client.survey([2]))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    for done in connection.unanswered:
        done(ConnectionLost(104, "reset"))
    with pytest.raises((ConnectionLost, TimeoutError)):
        await survey
