"""Client: commands to the units of one target, whichever portal answers."""

from __future__ import annotations

import asyncio
import contextlib
import errno
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Final

from astore.backend import Context
from astore.lanes.job import at_least
from astore_iscsi import libiscsi, scsi
from astore_iscsi.libiscsi import Memory, memory_of
from astore_iscsi.portals import Portal, addresses_of
from astore_iscsi.scsi import Capacity, Limits, UnitError
from astore_iscsi.target.answers import Answer, ConnectionLost, Login
from astore_iscsi.target.connection import Connection, connected, most_telling
from astore_iscsi.target.survey import PAUSE, Found, Survey

LOGIN_SECONDS: Final = 5.0
"""The most time that one portal has for a login if there are others."""

SILENCE_SECONDS: Final = 10.0
"""After this time, or a quarter of the pool's deadline, a target that owes answers is asked whether it is there."""

TRIES: Final = 12
"""How often a command is sent that is answered by "not now"."""

LIST: Final = 4096
"""The room for the list of units at first, in bytes: that is 511."""

LOSSES: Final = 4
"""After how many lost connections a command fails."""

SILENT_SECONDS: Final = 300.0
"""After this time, units that owe answers while others answer are asked anew, on a new connection."""


class Unit:
    """A logical unit in use.

    :ivar id: what identifies it, if it must stay the same one; None: any unit with this number.
    :ivar checked: the client's number of changes when that was checked last. :ivar left: called when no command is under way
        any more; see :meth:`idle`.
    """

    def __init__(self, lun: int, id: int | None = None) -> None:
        self.lun = lun
        self.id = id
        self.checked = -1
        self.left: Callable[[], None] | None = None
        self._commands = 0
        self._idle: asyncio.Future[None] | None = None

    async def command(
        self,
        connection: Connection,
        cdb: bytes,
        memory: Memory | None,
        changed: Callable[[], None],
        writes: bool = False,
    ) -> Answer:
        """Send a command and return the answer. If this is cancelled, the command goes on, and its memory stays in use.

        :param changed: called if the unit tells that something has changed, which it tells once, whoever waits for it.
        :raises ConnectionLost: there is no answer.
        """
        future: asyncio.Future[Answer | OSError] = asyncio.get_running_loop().create_future()
        connection.send(self.lun, cdb, memory, writes, partial(self._done, future, changed))
        self._commands += 1
        answer = await future
        if isinstance(answer, OSError):
            raise answer
        return answer

    def _done(
        self, future: asyncio.Future[Answer | OSError], changed: Callable[[], None], answer: Answer | OSError
    ) -> None:
        self._commands -= 1
        if isinstance(answer, Answer) and answer.attention:
            changed()
        if not future.done():
            future.set_result(answer)
        if self._commands:
            return
        if self._idle is not None and not self._idle.done():
            self._idle.set_result(None)
        if self.left is not None:
            self.left()

    async def idle(self) -> None:
        """Wait until no command uses memory any more, those of cancelled callers included."""
        while self._commands:
            self._idle = asyncio.get_running_loop().create_future()
            await self._idle

    @property
    def busy(self) -> bool:
        """Whether commands are under way."""
        return self._commands > 0


class Client:
    """A client of one target: it logs in when it must, at the first portal that answers, and again when it loses that one.

    A command whose answer got lost with its connection is sent again: it has the same effect then. The initiator's
    session keeps its number, so that the target has ended the first one by then.

    :param login: returns who logs in; called for each login.
    """

    def __init__(
        self, portals: Sequence[Portal], target: str, login: Callable[[], Awaitable[Login]], context: Context
    ) -> None:
        self.target = target
        self._library = libiscsi.load()
        self._portals = list(portals)
        self._login = login
        self._context = context
        self._silence = min(SILENCE_SECONDS, context.timeout / 4)
        self._connection: Connection | None = None
        self._connecting = asyncio.Lock()
        self._closed = False
        self._changes = 0  # of what may be behind the numbers of units

    # ------------------------------------------------------------------------------------------------------- logging in

    async def connect(self) -> Connection:
        """Return the connection, made anew if there is none. :raises OSError: no portal answers, or the login is refused."""
        async with self._connecting:
            connection = self._connection
            if connection is not None and connection.alive:
                return connection
            if self._closed:
                raise OSError(errno.EBADF, "the pool is closed")
            self._changes += 1
            if connection is not None:
                self._portals.append(self._portals.pop(0))  # try that one last
                self._connection = None
            connection = await self._first_that_answers()
            if self._closed:  # meanwhile
                connection.destroy()
                raise OSError(errno.EBADF, "the pool is closed")
            self._connection = connection
            return connection

    async def _first_that_answers(self) -> Connection:
        login = await self._login()
        share = at_least(self._context.timeout) * 0.9 / len(self._portals)
        limit = share if len(self._portals) == 1 else min(share, LOGIN_SECONDS)
        failures: list[tuple[Portal, OSError]] = []
        for portal in list(self._portals):
            try:
                async with asyncio.timeout(limit):
                    addresses = await addresses_of(portal, self._context)
                    connection = await connected(addresses, self._library, login, self._silence)
            except TimeoutError:
                failures.append((portal, OSError(errno.ETIMEDOUT, f"no answer within {limit:g} s")))
            except OSError as error:
                failures.append((portal, error))
                if error.errno == errno.EACCES:
                    break  # the others would say the same, and may count the attempts
            else:
                while self._portals[0] != portal:
                    self._portals.append(self._portals.pop(0))
                return connection
        why = "; ".join(f"{portal}: {error.strerror}" for portal, error in failures)
        raise OSError(most_telling([error for _, error in failures]).errno, f"iSCSI target {self.target}: {why}")

    async def close(self) -> None:
        """Log out. May be called twice."""
        self._closed = True
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()

    # ---------------------------------------------------------------------------------------------------------- commands

    async def run(
        self,
        unit: Unit,
        cdb: bytes,
        *,
        into: Memory | None = None,
        data: Memory | None = None,
    ) -> int:
        """Send a command, as often as it takes; return by how many bytes less than expected were transferred.

        :raises UnitError: the unit refuses it, or ESTALE: the number leads to another unit now. OSError: no portal answers.
        """
        losses = 0
        pause = PAUSE
        answer: Answer | None = None
        for _ in range(TRIES):
            connection = await self.connect()
            refused: Answer | None = None
            try:
                if unit.id is not None and unit.checked != self._changes:
                    refused = await self._check(connection, unit)
                answer = refused or await unit.command(
                    connection, cdb, into or data, self._note_change, data is not None
                )
            except ConnectionLost as error:
                losses += 1
                if losses == LOSSES:
                    raise self._worded(error) from error
                continue
            if answer.status == libiscsi.GOOD:
                return answer.short
            if answer.attention:
                continue
            if answer.busy:
                await asyncio.sleep(pause)
                pause *= 2
            else:
                break
        assert answer is not None
        raise answer.error()

    async def _check(self, connection: Connection, unit: Unit) -> Answer | None:
        """Check that a number leads to the unit that it led to.

        :return: None: it does; the answer, if the unit does not tell now. :raises UnitError: ESTALE: it does not.
        """
        changes = self._changes
        room = bytearray(scsi.IDENTIFICATION)
        ask = scsi.inquiry(len(room), scsi.VPD_IDENTIFICATION)
        answer = await unit.command(connection, ask, memory_of(room), self._note_change)
        if answer.status != libiscsi.GOOD:
            return answer
        if room[0] not in scsi.DISKS or scsi.parse_identification(room, self.target, unit.lun) != unit.id:
            raise UnitError(errno.ESTALE, f"LUN {unit.lun} of target {self.target} is another unit now")
        unit.checked = changes
        return None

    def _worded(self, error: OSError) -> OSError:
        return type(error)(error.errno, f"iSCSI target {self.target}: {error.strerror}")

    # -------------------------------------------------------------------------------------------- what the units are

    async def luns(self) -> list[int]:
        """Return the numbers of all units."""
        length = LIST
        while True:
            room = bytearray(length)
            try:
                await self.run(Unit(0), scsi.report_luns(length), into=memory_of(room))
            finally:
                self._note_change()  # the units need tell no more what this list has told
            whole, found = scsi.parse_luns(room)
            if whole <= length or length >= 8 + 8 * scsi.REPORT_LUNS_MOST:
                return found
            length = min(whole, 8 + 8 * scsi.REPORT_LUNS_MOST)

    async def survey(self, luns: Sequence[int]) -> list[Found]:
        """Ask units what they are, all at once; return what they said, in their order.

        :raises OSError: no portal answers. TimeoutError: no unit does.
        """
        usual = self._context.timeout
        # The caller of a refresh should learn which units are silent, and not only at the end of the time that it gives. (A
        # quarter, for a refresh has twice its caller's time.)
        patience = max(usual / 2, min(at_least(usual) / 4, usual))
        connection = await self.connect()
        since = min((debt.since for debt in connection.silent.values()), default=None)
        if since is not None and asyncio.get_running_loop().time() - since > SILENT_SECONDS:
            connection.destroy(ConnectionLost(errno.ETIMEDOUT, f"a unit has not answered for {SILENT_SECONDS:g} s"))
            connection = await self.connect()
        try:
            return await Survey(connection, self.target, luns, self._note_change).run(patience)
        except ConnectionLost:
            return await Survey(await self.connect(), self.target, luns, self._note_change).run(patience)

    def _note_change(self) -> None:
        """Note that another unit may be behind a number: units in use are looked at before their next command."""
        self._changes += 1

    async def unit(self, lun: int) -> tuple[int, int, Unit]:
        """Return a unit's peripheral device type, what identifies it, and the unit, which must stay the same one from now on.

        :raises UnitError: there is none, or it does not tell.
        """
        changes = self._changes
        room = bytearray(scsi.IDENTIFICATION)
        try:
            await self._inquire(Unit(lun), room, scsi.VPD_IDENTIFICATION)
            id = scsi.parse_identification(room, self.target, lun)
        except UnitError as error:
            if error.errno != errno.EOPNOTSUPP:
                raise
            # an old one: nothing tells it from another with its number
            await self._inquire(Unit(lun), room)
            return room[0], scsi.parse_identification(bytes(4), self.target, lun), Unit(lun)
        unit = Unit(lun, id)
        unit.checked = changes
        return room[0], id, unit

    async def capacity(self, unit: Unit) -> Capacity:
        """Return the size of a unit."""
        room = bytearray(32)
        await self.run(unit, scsi.read_capacity(), into=memory_of(room))
        return scsi.parse_capacity(room)

    async def limits(self, unit: Unit) -> Limits:
        """Return the limits of a unit; one that does not tell has none, and can unmap nothing."""
        limits, provisioning = bytearray(64), bytearray(64)
        with contextlib.suppress(UnitError):
            await self._inquire(unit, limits, scsi.VPD_BLOCK_LIMITS)
            await self._inquire(unit, provisioning, scsi.VPD_PROVISIONING)
        return scsi.parse_limits(limits, provisioning)

    async def _inquire(self, unit: Unit, room: bytearray, page: int | None = None) -> None:
        await self.run(unit, scsi.inquiry(len(room), page), into=memory_of(room))
