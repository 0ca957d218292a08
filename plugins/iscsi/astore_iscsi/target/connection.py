"""Connection: one login at one portal, driven by the event loop.

libiscsi's context has a socket, which the loop watches. libiscsi reads and writes it in :meth:`Connection._serve`, and calls
back from there. Memory that a command reads into or writes from is kept until libiscsi has called back or its context is gone,
however early the command's caller went away.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import re
import select
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from astore_iscsi import libiscsi
from astore_iscsi.libiscsi import Discovered, Libiscsi, Memory, Portal, Task
from astore_iscsi.scsi import Sense

LOGOUT_SECONDS: Final = 0.5
"""How long a logout may take; the target drops the session anyway when its connection is closed."""

NO_UNIT: Final = -1

_AUTHENTICATION: Final = 0x0201
_AUTHORIZATION: Final = 0x0202
_NOT_FOUND: Final = 0x0203


class Login(NamedTuple):
    """Who logs in, and where to.

    :ivar target: its name; None: a session to discover targets. :ivar isid: a number of the initiator's session: another login
        with the same one ends the first, with all its commands.
    :ivar user: for CHAP. :ivar password: for CHAP.
    """

    initiator: str
    target: str | None
    isid: int
    user: str | None = None
    password: bytes | None = None

    def __repr__(self) -> str:
        return f"Login({self.initiator!r}, {self.target!r}, user={self.user!r})"


class Answer(NamedTuple):
    """What became of a command that reached the target.

    :ivar status: SCSI's. :ivar sense: why it failed, if the status is CHECK CONDITION.
    :ivar short: by how many bytes less than expected were transferred.
    """

    status: int
    sense: Sense | None = None
    short: int = 0


class Told(NamedTuple):
    """A target that a discovery found, with its portals as the target writes them."""

    name: str
    portals: tuple[str, ...]


class ConnectionLost(OSError):
    """The connection broke, or the target says nothing any more."""


class _Waiting:
    """A call that libiscsi has not answered yet, with everything that it may still read or write.

    :ivar future: has the answer; an OSError in place of one if the connection is lost.
    """

    __slots__ = ("future", "kept", "parse", "task")

    def __init__(self, loop: asyncio.AbstractEventLoop, parse: Callable[[int, int], Any]) -> None:
        self.future: asyncio.Future[Any] = loop.create_future()
        self.parse = parse
        self.task = 0
        self.kept: object = None


class Connection:
    """A connection to a target. All methods belong to the event loop's thread.

    :param silence: seconds after which a target that owes answers is asked whether it is there. After as many more it is given up.
    """

    def __init__(self, library: Libiscsi, login: Login, silence: float) -> None:
        self._library = library
        self._loop = asyncio.get_running_loop()
        self._login = login
        self._silence = silence
        self._waiting: dict[int, _Waiting] = {}
        self._numbers = 0
        self._fd = -1
        self._wanted = 0  # events of poll(2)
        self._flushing = False
        self._heard = self._loop.time()
        self._watch: asyncio.TimerHandle | None = None
        self._asked = False
        self._done = libiscsi.COMMAND_DONE(self._called_back)
        self._lost: OSError | None = None
        self._serving = False
        made = library.create_context(login.initiator.encode())
        if not made:
            raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
        self._context = made
        try:
            self._configure()
        except BaseException:
            self.destroy()
            raise

    def _configure(self) -> None:
        library, context, login = self._library, self._context, self._login
        library.set_noautoreconnect(context, 1)
        library.set_isid_random(context, login.isid >> 16 & 0xFFFFFF, login.isid & 0xFFFF)
        self._check(library.set_header_digest(context, libiscsi.HEADER_DIGEST_NONE_CRC32C))
        kind = libiscsi.SESSION_DISCOVERY if login.target is None else libiscsi.SESSION_NORMAL
        self._check(library.set_session_type(context, kind))
        if login.target is not None:
            self._check(library.set_targetname(context, login.target.encode()))
        if login.user is not None:
            self._check(library.set_initiator_username_pwd(context, login.user.encode(), login.password or b""))

    @property
    def alive(self) -> bool:
        """Whether commands can be sent."""
        return self._lost is None and self._context != 0

    # ------------------------------------------------------------------------------------------------------ calls

    async def connect(self, address: str) -> None:
        """Connect and log in. If this fails or is cancelled, the connection is of no use any more.

        :param address: a numeric address and a port: names would be looked up here and now.
        :raises OSError: EACCES: the login was refused. ENOENT: there is no such target. Or the portal does not answer.
        """
        waiting = self._call(lambda status, _: _login_error(self._error()) if status else None)
        number = self._numbers
        try:
            self._check(self._library.full_connect_async(self._context, address.encode(), NO_UNIT, self._done, number))
            self._follow()
            await self._answer(waiting)
        except BaseException:
            self.destroy()
            raise

    async def command(
        self,
        unit: int,
        cdb: bytes,
        *,
        into: Memory | None = None,
        data: Memory | None = None,
        on_sent: Callable[[asyncio.Future[Any]], None] | None = None,
    ) -> Answer:
        """Send a command to a unit, and return what the target answers.

        If this is cancelled, the command goes on, and its memory stays in use.

        :param into: memory for the data that it reads. :param data: the data that it writes.
        :param on_sent: called with a future that is done when the memory is not used any more.
        :raises ConnectionLost: there is no answer.
        """
        library, memory = self._library, into if data is None else data
        waiting = self._call(lambda status, _: self._outcome(waiting.task, status))
        number = self._numbers
        waiting.kept = memory
        if memory is None:
            direction, length = libiscsi.XFER_NONE, 0
        else:
            direction, length = libiscsi.XFER_READ if data is None else libiscsi.XFER_WRITE, memory.length
        task = library.scsi_create_task(len(cdb), cdb, direction, length)
        self._check(not task, drop=number)
        assert task
        waiting.task = task
        if memory is not None:
            lend = library.scsi_task_add_data_in_buffer if data is None else library.scsi_task_add_data_out_buffer
            self._check(lend(task, length, memory.address), drop=number)
        self._check(library.scsi_command_async(self._context, unit, task, self._done, None, number), drop=number)
        if on_sent is not None:
            on_sent(waiting.future)
        self._flush_soon()
        answer: Answer = await self._answer(waiting)
        return answer

    async def discover(self) -> list[Told]:
        """Ask a discovery session for the targets."""
        waiting = self._call(_targets)
        number = self._numbers
        self._check(self._library.discovery_async(self._context, self._done, number), drop=number)
        self._flush_soon()
        found: list[Told] | None = await self._answer(waiting)
        if found is None:
            raise OSError(errno.EIO, self._error())
        return found

    async def close(self) -> None:
        """Log out, if the target answers soon, and close the connection. May be called twice."""
        if not self.alive:
            self.destroy()
            return
        try:
            with contextlib.suppress(OSError, TimeoutError):
                async with asyncio.timeout(LOGOUT_SECONDS):
                    waiting = self._call(lambda *_: None)
                    number = self._numbers
                    self._check(self._library.logout_async(self._context, self._done, number), drop=number)
                    self._flush_soon()
                    await self._answer(waiting)
        finally:
            self.destroy()

    def destroy(self, why: OSError | None = None) -> None:
        """Close the connection now; calls that wait fail. May be called twice."""
        self._fail(why or ConnectionLost(errno.ENOTCONN, "the connection was closed"))
        if self._context and not self._serving:
            context, self._context = self._context, 0
            self._library.destroy_context(context)
            self._release()

    # ------------------------------------------------------------------------------------------------------ inside

    def _call(self, parse: Callable[[int, int], Any]) -> _Waiting:
        """Register a call under the next number. :raises ConnectionLost: there is no connection any more."""
        if not self.alive:
            raise self._lost or ConnectionLost(errno.ENOTCONN, "the connection was closed")
        if not self._waiting:
            self._heard = self._loop.time()
        self._numbers += 1
        waiting = self._waiting[self._numbers] = _Waiting(self._loop, parse)
        self._watch_soon()
        return waiting

    async def _answer(self, waiting: _Waiting) -> Any:
        answer = await asyncio.shield(waiting.future)
        if isinstance(answer, OSError):
            raise answer
        return answer

    def _check(self, result: int, drop: int = 0) -> None:
        """Raise the library's error if a call failed. :param drop: the number of the call, which gets no answer then."""
        if result:
            if drop and (waiting := self._waiting.pop(drop, None)) is not None and waiting.task:
                self._library.scsi_free_scsi_task(waiting.task)
            raise ConnectionLost(errno.EIO, self._error())

    def _error(self) -> str:
        text = self._library.get_error(self._context) if self._context else None
        return " ".join((text or b"no reason given").decode(errors="replace").split())

    def _called_back(self, _: int, status: int, data: int, number: int) -> None:
        """Take an answer. libiscsi calls this in :meth:`_serve`, or while it destroys its context."""
        waiting = self._waiting.pop(number, None)
        if waiting is None:
            return
        try:
            answer = waiting.parse(status, data)
        except Exception as error:
            answer = OSError(errno.EIO, f"the answer cannot be read: {error}")
        if waiting.task:
            self._library.scsi_free_scsi_task(waiting.task)
        waiting.kept = None
        if not waiting.future.done():
            waiting.future.set_result(answer)

    def _outcome(self, task: int, status: int) -> Answer | OSError:
        if status in (libiscsi.CANCELLED, libiscsi.ERROR, libiscsi.TIMEOUT):
            return self._lost or ConnectionLost(errno.ENOTCONN, "the connection was lost")
        found = Task.from_address(task)
        sense = Sense(found.sense_key, found.sense_code) if status == libiscsi.CHECK_CONDITION else None
        return Answer(status, sense, found.residual if found.residual_status == 1 else 0)

    def _flush_soon(self) -> None:
        """Let libiscsi send in the next round of the loop what tasks queue in this one."""
        if not self._flushing:
            self._flushing = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flushing = False
        if self.alive and self._library.which_events(self._context) & select.POLLOUT:
            self._serve(select.POLLOUT)

    def _readable(self) -> None:
        self._heard = self._loop.time()
        self._asked = False
        self._serve(select.POLLIN)

    def _writable(self) -> None:
        self._serve(select.POLLOUT)

    def _serve(self, events: int) -> None:
        """Let libiscsi read and write what it can without waiting."""
        if not self.alive:
            return
        self._serving = True
        try:
            failed = self._library.service(self._context, events)
        finally:
            self._serving = False
        if failed and self._lost is None:
            self._fail(ConnectionLost(errno.ENOTCONN, self._error()))
        if self.alive:
            self._follow()
        else:
            self.destroy(self._lost)

    def _follow(self) -> None:
        """Have the loop watch the socket that libiscsi has now, for the events that it waits for now."""
        fd = self._library.get_fd(self._context)
        if fd != self._fd:
            self._unwatch()
            self._fd = fd
        wanted = self._library.which_events(self._context) if fd >= 0 else 0
        changed = wanted ^ self._wanted
        self._wanted = wanted
        if changed & select.POLLIN:
            if wanted & select.POLLIN:
                self._loop.add_reader(fd, self._readable)
            else:
                self._loop.remove_reader(fd)
        if changed & select.POLLOUT:
            if wanted & select.POLLOUT:
                self._loop.add_writer(fd, self._writable)
            else:
                self._loop.remove_writer(fd)

    def _unwatch(self) -> None:
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            self._loop.remove_writer(self._fd)
        self._fd, self._wanted = -1, 0

    def _fail(self, why: OSError) -> None:
        """Note that there is no connection any more. Who waits is told so; the memory stays until the context is gone."""
        if self._lost is None:
            self._lost = why
        self._unwatch()
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None

    def _release(self) -> None:
        """Tell all callers that wait yet that the connection is lost. The context is gone."""
        lost = self._lost
        waiting, self._waiting = self._waiting, {}
        for one in waiting.values():
            if one.task:
                self._library.scsi_free_scsi_task(one.task)
            if not one.future.done():
                one.future.set_result(lost)

    # ----------------------------------------------------------------------------------------- a target that is silent

    def _watch_soon(self) -> None:
        if self._watch is None:
            self._watch = self._loop.call_later(self._silence, self._listen)

    def _listen(self) -> None:
        """Ask a silent target whether it is there; give it up if it does not answer that either."""
        self._watch = None
        if not self._waiting or not self.alive:
            return
        quiet = self._loop.time() - self._heard
        if quiet >= 2 * self._silence * 0.99 and self._asked:
            self.destroy(ConnectionLost(errno.ETIMEDOUT, f"the target has said nothing for {quiet:.1f} s"))
            return
        if quiet >= self._silence * 0.99 and not self._asked:
            self._asked = True
            if self._library.is_logged_in(self._context):
                self._library.nop_out_async(self._context, self._done, None, 0, 0)
                self._flush_soon()
        self._watch_soon()


def _targets(status: int, data: int) -> list[Told] | None:
    """Read the list that a discovery made; None: it failed."""
    if status != libiscsi.GOOD:
        return None
    found = []
    at: int | None = data
    while at:
        target = Discovered.from_address(at)
        portals = []
        portal: int | None = target.portals
        while portal:
            one = Portal.from_address(portal)
            portals.append((one.portal or b"").decode(errors="replace"))
            portal = one.next
        found.append(Told((target.name or b"").decode(errors="replace"), tuple(portals)))
        at = target.next
    return found


def _login_error(text: str) -> OSError:
    """Return the error of a login that failed, from libiscsi's text: it has the number of the errno, or the login's status."""
    numbers = [int(number) for number in re.findall(r"\((\d+)\)", text)]
    number = numbers[-1] if numbers else errno.ENOTCONN
    refused = {
        _AUTHENTICATION: errno.EACCES,
        _AUTHORIZATION: errno.EACCES,
        _NOT_FOUND: errno.ENOENT,
    }
    if number in refused:
        return OSError(refused[number], f"the login was refused: {text}")
    return OSError(number if number in errno.errorcode else errno.ENOTCONN, text)
