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
import select
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final

from astore_iscsi import libiscsi
from astore_iscsi.libiscsi import Libiscsi, Memory, Task
from astore_iscsi.scsi import Sense
from astore_iscsi.target.answers import GOOD, Answer, ConnectionLost, Login, Told, login_error, targets

LOGOUT_SECONDS: Final = 0.5
"""How long a logout may take; the target drops the session anyway when its connection is closed."""

NO_UNIT: Final = -1


class _Waiting:
    """A call that libiscsi has not answered yet, with everything that it may still read or write.

    :ivar done: is called once, with the answer, or an OSError in place of one.
    """

    __slots__ = ("done", "kept", "parse", "task")

    def __init__(self, parse: Callable[[int, int], Any] | None, done: Callable[[Any], None]) -> None:
        self.parse = parse
        self.done = done
        self.task = 0
        self.kept: object = None


class Debt:
    """What a unit owes to surveys that have ended.

    :ivar since: when it was asked first for what it owes, on the loop's clock. :ivar answers: how many answers are owed.
    :ivar paid: is done when none is owed any more; its result is the error if the connection was lost.
    """

    def __init__(self, since: float, paid: asyncio.Future[OSError | None]) -> None:
        self.since = since
        self.answers = 0
        self.paid = paid


class Connection:
    """A connection to a target. All methods belong to the event loop's thread.

    :param silence: seconds after which a target that owes answers is asked if it is there. After as many more it is given up.
    :ivar silent: units that owe answers to surveys that have ended.
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
        self.silent: dict[int, Debt] = {}
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
        try:
            number, answer = self._ask(lambda status, _: login_error(self._error()) if status else None)
            self._check(self._library.full_connect_async(self._context, address.encode(), NO_UNIT, self._done, number))
            self._follow()
            await _result(answer)
        except BaseException:
            self.destroy()
            raise

    def send(
        self, unit: int, cdb: bytes, memory: Memory | None, writes: bool, done: Callable[[Answer | OSError], None]
    ) -> None:
        """Send a command to a unit.

        :param memory: for the data that it reads, or writes. It is used until ``done`` is called.
        :param done: called once, in a later round of the loop, with the target's answer or a :class:`ConnectionLost`. It must
            not call this object.
        :raises ConnectionLost: the command was not sent, and ``done`` will not be called.
        """
        library = self._library
        number, waiting = self._call(None, done)
        direction, length = libiscsi.XFER_NONE, 0
        if memory is not None:
            direction, length = libiscsi.XFER_WRITE if writes else libiscsi.XFER_READ, memory.length
        waiting.kept = memory
        task = library.scsi_create_task(len(cdb), cdb, direction, length)
        self._check(not task, drop=number)
        assert task
        waiting.task = task
        if memory is not None:
            lend = library.scsi_task_add_data_out_buffer if writes else library.scsi_task_add_data_in_buffer
            self._check(lend(task, length, memory.address), drop=number)
        self._check(library.scsi_command_async(self._context, unit, task, self._done, None, number), drop=number)
        if not self._flushing:  # what tasks queue in this round of the loop is sent together
            self._flushing = True
            self._loop.call_soon(self._flush)

    async def discover(self) -> list[Told]:
        """Ask a discovery session for the targets."""
        number, answer = self._ask(targets)
        self._check(self._library.discovery_async(self._context, self._done, number), drop=number)
        self._flush()
        found: list[Told] | None = await _result(answer)
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
                    number, answer = self._ask(lambda *_: None)
                    self._check(self._library.logout_async(self._context, self._done, number), drop=number)
                    self._flush()
                    await _result(answer)
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

    def _call(self, parse: Callable[[int, int], Any] | None, done: Callable[[Any], None]) -> tuple[int, _Waiting]:
        """Register a call under the next number. :raises ConnectionLost: there is no connection any more."""
        if not self.alive:
            raise self._lost or ConnectionLost(errno.ENOTCONN, "the connection was closed")
        if not self._waiting:
            self._heard = self._loop.time()
        self._numbers += 1
        waiting = self._waiting[self._numbers] = _Waiting(parse, done)
        if self._watch is None:
            self._watch = self._loop.call_later(self._silence, self._listen)
        return self._numbers, waiting

    def _ask(self, parse: Callable[[int, int], Any]) -> tuple[int, asyncio.Future[Any]]:
        """Register a call; return its number, and a future of what ``parse`` makes of the answer."""
        answer = self._loop.create_future()
        number, _ = self._call(parse, partial(_settle, answer))
        return number, answer

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
            if waiting.parse is not None:
                answer = waiting.parse(status, data)
            else:
                answer = self._outcome(waiting.task, status)
                self._library.scsi_free_scsi_task(waiting.task)
        except Exception as error:
            answer = OSError(errno.EIO, f"the answer cannot be read: {error}")
        waiting.kept = None
        waiting.done(answer)

    def _outcome(self, task: int, status: int) -> Answer | OSError:
        found = Task.from_address(task)
        if status == libiscsi.GOOD:
            return Answer(status, None, found.residual) if found.residual_status == 1 else GOOD
        if status in (libiscsi.CANCELLED, libiscsi.ERROR, libiscsi.TIMEOUT):
            self._fail(ConnectionLost(errno.ENOTCONN, "the connection was lost"))
            return self._lost or OSError(errno.ENOTCONN, "the connection was lost")
        return Answer(status, Sense(found.sense_key, found.sense_code) if status == libiscsi.CHECK_CONDITION else None)

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
        library = self._library
        self._serving = True
        try:
            failed = library.service(self._context, events)
            if (
                not failed
                and events == select.POLLIN
                and self.alive
                and library.which_events(self._context) & select.POLLOUT
            ):
                failed = library.service(self._context, select.POLLOUT)  # what the answers ask for, such as data
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
            one.done(lost)

    # ----------------------------------------------------------------------------------------- a target that is silent

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
                self._flush()
        if self._watch is None and self.alive:
            self._watch = self._loop.call_later(self._silence, self._listen)


async def connected(addresses: list[str], library: Libiscsi, login: Login, silence: float) -> Connection:
    """Return a connection to the first of a portal's addresses that answers; see :class:`Connection`.

    :raises OSError: none does: the most telling error. EACCES: one refuses the login. ENOENT: none has the target, and one
        answers.
    """
    failures: list[OSError] = []
    for address in addresses:
        connection = Connection(library, login, silence)
        try:
            await connection.connect(address)
        except BaseException as error:
            connection.destroy()
            if not isinstance(error, OSError) or error.errno == errno.EACCES:
                raise
            failures.append(error)
        else:
            return connection
    raise most_telling(failures)


def most_telling(failures: Sequence[OSError]) -> OSError:
    """Return the error that says most: a refusal, then that a portal does not have the target, then the last one's."""
    ranks = {errno.EACCES: 2, errno.ENOENT: 1}
    return max(reversed(failures), key=lambda error: ranks.get(error.errno or 0, 0))


def _settle(future: asyncio.Future[Any], answer: Any) -> None:
    if not future.done():
        future.set_result(answer)


async def _result(answer: asyncio.Future[Any]) -> Any:
    result = await answer
    if isinstance(result, OSError):
        raise result
    return result
