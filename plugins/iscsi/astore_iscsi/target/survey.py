"""Survey: asks many units at once what they are and how large. A listing of hundreds is one wait, not a task for each."""

from __future__ import annotations

import asyncio
import errno
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

from astore_iscsi import libiscsi, scsi
from astore_iscsi.libiscsi import memory_of
from astore_iscsi.scsi import Capacity, UnitError
from astore_iscsi.target.answers import Answer
from astore_iscsi.target.connection import Connection, Debt

UNITS_AT_ONCE: Final = 64
"""How many units are asked at once."""

TRIES: Final = 8
"""How often a question is asked that is answered by "ask again"."""

PAUSE: Final = 0.02
"""Seconds before a busy unit is asked again; longer each time."""

_IDENTIFICATION: Final = scsi.IDENTIFICATION
_CAPACITY: Final = 32
_ROOM: Final = _IDENTIFICATION + _CAPACITY
_QUESTIONS: Final = (
    (scsi.test_unit_ready(), 0, 0),
    (scsi.inquiry(_IDENTIFICATION, scsi.VPD_IDENTIFICATION), 0, _IDENTIFICATION),
    (scsi.read_capacity(), _IDENTIFICATION, _ROOM),
)
_READY, _IDENTIFY, _MEASURE = range(3)


class Found:
    """What a unit said.

    :ivar kind: its peripheral device type; None: it did not tell. :ivar id: what identifies it.
    :ivar wrong: why it cannot be used, if it cannot.
    """

    def __init__(self, kind: int | None, id: int = 0, capacity: Capacity | None = None) -> None:
        self.kind = kind
        self.id = id
        self.capacity = capacity
        self.wrong: OSError | None = None


class Survey:
    """One round of questions to units, on one connection.

    :param target: its name, which identifies units that do not tell what they are.
    :param changed: called when a unit tells that something has changed, which it tells once.
    """

    def __init__(self, connection: Connection, target: str, luns: Sequence[int], changed: Callable[[], None]) -> None:
        self._changed = changed
        self._loop = asyncio.get_running_loop()
        self._connection = connection
        self._target = target
        self._luns = luns
        self._room = bytearray(_ROOM * len(luns))
        self._memory = memory_of(self._room) if luns else None
        self._answers: list[list[Answer | None]] = [[None] * len(_QUESTIONS) for _ in luns]
        self._open = [len(_QUESTIONS)] * len(luns)
        self._queue: deque[int] = deque()
        self._awaited: dict[int, tuple[Debt, Callable[[asyncio.Future[OSError | None]], None]]] = {}
        self._asked = [0.0] * len(luns)  # when, on the loop's clock
        self._owed = [0] * len(luns)  # commands of each unit that have no answer yet
        self._debts: dict[int, Debt] = {}  # of this survey, once it has ended
        self._under_way = 0  # units
        self._ended: asyncio.Future[None] = self._loop.create_future()

    async def run(self, patience: float) -> list[Found]:
        """Ask all units; return what they said, in their order.

        A unit that still owes answers to an earlier survey on this connection, whose caller went away, is asked when it has
        given them. If it was asked for those longer ago than ``patience``, it is silent, and not waited for.

        :param patience: seconds for the answers. What is not answered then is that unit's error.
        :raises ConnectionLost: the connection broke. TimeoutError: no unit answered.
        """
        now = self._loop.time()
        for number, lun in enumerate(self._luns):
            if (debt := self._connection.silent.get(lun)) is None:
                self._queue.append(number)
            elif now < debt.since + patience:
                self._awaited[number] = debt, partial(self._ask_later, number)
                debt.paid.add_done_callback(self._awaited[number][1])
        if self._queue or self._awaited:
            self._ask_more()
            try:
                await asyncio.wait([self._ended], timeout=patience)
            finally:
                self._give_up()
            if not self._ended.cancelled():
                self._ended.result()
        if self._luns and all(self._open):
            raise TimeoutError(f"no unit of target {self._target} answers within {patience:g} s")
        return [self._found(number, patience) for number in range(len(self._luns))]

    def _give_up(self) -> None:
        """Ask nothing more, and note which units owe answers."""
        self._queue.clear()
        self._ended.cancel()
        for debt, ask in self._awaited.values():
            debt.paid.remove_done_callback(ask)
        for number, owed in enumerate(self._owed):
            if owed:
                since = self._asked[number]
                debt = self._connection.silent.setdefault(self._luns[number], Debt(since, self._loop.create_future()))
                debt.since = min(debt.since, since)
                debt.answers += owed
                self._debts[number] = debt

    def _ask_later(self, number: int, paid: asyncio.Future[OSError | None]) -> None:
        """Ask a unit that owes nothing any more."""
        if self._ended.done():
            return
        if (error := paid.result()) is not None:
            self._end(error)
            return
        del self._awaited[number]
        self._queue.append(number)
        self._ask_more()

    def _ask_more(self) -> None:
        while self._queue and self._under_way < UNITS_AT_ONCE and not self._ended.done():
            number = self._queue.popleft()
            self._under_way += 1
            self._asked[number] = self._loop.time()
            for question in range(len(_QUESTIONS)):
                self._send(number, question, TRIES)

    def _send(self, number: int, question: int, tries: int) -> None:
        if self._ended.done():
            return
        cdb, start, stop = _QUESTIONS[question]
        assert self._memory is not None
        at = number * _ROOM
        memory = self._memory.part(at + start, at + stop) if stop else None
        try:
            done = partial(self._answered, number, question, tries - 1)
            self._connection.send(self._luns[number], cdb, memory, False, done)
        except OSError as error:
            self._end(error)
        else:
            self._owed[number] += 1

    def _answered(self, number: int, question: int, tries: int, answer: Answer | OSError) -> None:
        self._owed[number] -= 1
        if (debt := self._debts.get(number)) is not None:
            debt.answers -= 1
            if not debt.answers:
                self._connection.silent.pop(self._luns[number], None)
                debt.paid.set_result(answer if isinstance(answer, OSError) else None)
        if isinstance(answer, OSError):
            self._end(answer)
            return
        if answer.attention:
            self._changed()
        if answer.status != libiscsi.GOOD and tries and (answer.attention or answer.busy):
            pause = PAUSE * 2 ** (TRIES - 1 - tries) if answer.busy else 0.0
            self._loop.call_later(pause, self._send, number, question, tries)
            return
        self._answers[number][question] = answer
        self._open[number] -= 1
        if not self._open[number]:
            self._under_way -= 1
            if self._queue:
                self._loop.call_soon(self._ask_more)
            elif not self._under_way and not self._awaited:
                self._end(None)

    def _end(self, error: OSError | None) -> None:
        if self._ended.done():
            return
        if error is None:
            self._ended.set_result(None)
        else:
            self._ended.set_exception(error)
            self._ended.exception()  # the caller may have gone

    def _found(self, number: int, patience: float) -> Found:
        """Return what a unit said."""
        ready, identified, measured = self._answers[number]
        at = number * _ROOM
        identification = self._room[at : at + _IDENTIFICATION]
        told = identified is not None and identified.status == libiscsi.GOOD
        kind = identification[0] if told else None
        lun = self._luns[number]
        found = Found(kind, scsi.parse_identification(identification if told else bytes(4), self._target, lun))
        if ready is None or identified is None or measured is None:
            found.wrong = OSError(errno.ETIMEDOUT, f"the unit does not answer within {patience:g} s")
            return found
        try:
            if ready.status != libiscsi.GOOD:
                raise ready.error()
            if not told and not identified.refused:  # else it would be taken for another unit
                raise identified.error()
            if measured.status != libiscsi.GOOD:
                raise measured.error()
            found.capacity = scsi.parse_capacity(self._room[at + _IDENTIFICATION : at + _ROOM])
        except UnitError as error:
            found.wrong = error
        return found
