"""What logins and commands are answered, and what is asked of them; read from libiscsi's memory."""

from __future__ import annotations

import errno
import re
from typing import Final, NamedTuple

from astore_iscsi import libiscsi
from astore_iscsi.libiscsi import Discovered, Portal
from astore_iscsi.scsi import ABORTED, ILLEGAL_REQUEST, UNIT_ATTENTION, Sense, UnitError

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

    @property
    def attention(self) -> bool:
        """Whether the unit wants to tell first that something has changed. The command has to be sent again."""
        return self.sense is not None and self.sense.key == UNIT_ATTENTION

    @property
    def refused(self) -> bool:
        """Whether the unit does not know the command, or what it asks for."""
        return self.sense is not None and self.sense.key == ILLEGAL_REQUEST

    @property
    def busy(self) -> bool:
        """Whether the command should be sent again in a while."""
        aborted = self.sense is not None and self.sense.key == ABORTED
        return aborted or self.status in (libiscsi.BUSY, libiscsi.TASK_SET_FULL, libiscsi.TASK_ABORTED)

    def error(self) -> UnitError:
        """Return the error that a status that is not GOOD is."""
        if self.sense is not None:
            return self.sense.error()
        if self.status == libiscsi.RESERVATION_CONFLICT:
            return UnitError(errno.EBUSY, "another initiator has reserved the unit")
        if self.busy:
            return UnitError(errno.EAGAIN, "the unit is busy")
        return UnitError(errno.EIO, f"SCSI status {self.status:#x}")


class Told(NamedTuple):
    """A target that a discovery found, with its portals as the target writes them."""

    name: str
    portals: tuple[str, ...]


class ConnectionLost(OSError):
    """The connection broke, or the target says nothing any more."""


GOOD: Final = Answer(libiscsi.GOOD)


def targets(status: int, data: int) -> list[Told] | None:
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


def login_error(text: str) -> OSError:
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
