"""Jobs: requests to a pool wherever it lives, their results, and errors that cross hosts with their types."""

from __future__ import annotations

import builtins
import errno
from typing import Any

import msgspec

import astore.errors as astore_errors
from astore.errors import AstoreError, reason
from astore.model import RefreshOutcome, VolumeInfo

AGAIN = frozenset({"refresh", "refresh-full"})
"""Kinds of jobs that may run twice: they are coalesced, and run anew if their worker died."""

_PLAIN = (str, int, float, bool, type(None))
_BUILTIN = {
    "TimeoutError",
    "OSError",
    "ValueError",
    "LookupError",
    "PermissionError",
    "FileNotFoundError",
    "FileExistsError",
}


class JobUnknownError(AstoreError):
    """The host that ran a job died, or went away, before it told the outcome: the work was done, in part, or not at all."""


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """A request.

    :ivar kind: ``refresh``, ``refresh-full``, or a verb of :mod:`astore_fleet.jobs.verbs`. :ivar arguments: plain values.
    :ivar seconds: after which it is given up, from when the engine kept it; None: never.
    :ivar since: when it was first asked for, by the server's clock, in seconds since the epoch; it stays when the job is queued
        again elsewhere. 0: when the engine kept the message.
    """

    id: str
    pool: str
    kind: str
    arguments: dict[str, Any] = {}
    seconds: float | None = None
    since: float = 0.0

    @property
    def what(self) -> str:
        """The last part of its subject: jobs that are coalesced share it."""
        return self.kind if self.kind in AGAIN else f"do.{self.id}"


class Failure(msgspec.Struct, frozen=True):
    """An error as plain values."""

    type: str
    arguments: list[Any]
    attributes: dict[str, Any] = {}


class JobRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a job: ``claimed``, ``done``, ``failed``, ``cancelled`` or ``unknown``, and by which run of an agent.

    :ivar result: of a refresh its outcome, else the new record of the volume, if it has one.
    """

    state: str
    host: str = ""
    session: str = ""
    outcome: RefreshOutcome | None = None
    volume: VolumeInfo | None = None
    failure: Failure | None = None


LARGEST = 500_000
"""The most bytes of a record."""

SHORT = 200
"""The most characters of each text of a failure that is too large."""


def fitting(record: JobRecord, largest: int) -> JobRecord:
    """Return a record that fits into a message: of one that is too large, the details are left out. (The events have them.)

    :param largest: the most bytes that the server takes.
    """
    for less in (_lighter, _bare):
        if len(msgspec.msgpack.encode(record)) <= min(LARGEST, largest):
            break
        record = less(record)
    return record


def _lighter(record: JobRecord) -> JobRecord:
    """Return a record without the names of volumes that a refresh found, and without the references of a volume."""
    outcome, volume = record.outcome, record.volume
    if outcome is not None:
        outcome = msgspec.structs.replace(outcome, added=(), changed=(), removed=(), errors=outcome.errors[:100])
    if volume is not None:
        volume = msgspec.structs.replace(volume, references=())
    return msgspec.structs.replace(record, outcome=outcome, volume=volume)


def _bare(record: JobRecord) -> JobRecord:
    """Return a record without the errors of a refresh, with short texts of a failure only."""
    outcome, failure = record.outcome, record.failure
    if outcome is not None:
        outcome = msgspec.structs.replace(outcome, errors=())
    if failure is not None:
        attributes = {name: _short(value) for name, value in failure.attributes.items()}
        failure = Failure(failure.type, [_short(one) for one in failure.arguments[:5]], attributes)
    return msgspec.structs.replace(record, outcome=outcome, failure=failure)


def _short(value: Any) -> Any:
    """Return a value of a failure with as much of it as may be sent in any case."""
    if isinstance(value, str):
        return value[:SHORT]
    return [] if isinstance(value, list) else value


class Progress(msgspec.Struct, frozen=True):
    """How many bytes of a job are done, of how many (None: unknown)."""

    done: int
    total: int | None = None


def failure_of(error: BaseException) -> Failure:
    """Return an error as plain values. Of an unknown class the words remain."""
    name = type(error).__name__
    if getattr(astore_errors, name, None) is not type(error) and name not in _BUILTIN:
        kind = next((one.__name__ for one in type(error).__mro__ if one.__name__ in _BUILTIN), "AstoreError")
        return Failure(kind, [reason(error)])
    arguments = [one if isinstance(one, _PLAIN) else str(one) for one in error.args]
    plain: dict[str, Any] = {name: value for name, value in vars(error).items() if isinstance(value, _PLAIN)}
    plain |= {name: list(value) for name, value in vars(error).items() if isinstance(value, tuple | list)}
    return Failure(name, arguments, plain)


def error_of(failure: Failure) -> Exception:
    """Return the error again, of its class."""
    kind = getattr(astore_errors, failure.type, None)
    if not (isinstance(kind, type) and issubclass(kind, AstoreError)):
        kind = getattr(builtins, failure.type) if failure.type in _BUILTIN else AstoreError
    arguments = failure.arguments
    if issubclass(kind, OSError) and arguments and not isinstance(arguments[0], int):
        arguments = [errno.EIO, *arguments]
    error: Exception = kind.__new__(kind, *arguments)
    error.args = tuple(arguments)
    for name, value in failure.attributes.items():
        if isinstance(value, list):
            value = tuple(value)
        if not name.startswith("_"):
            vars(error)[name] = value
    return error


def timed_out(job: Job) -> TimeoutError:
    """Return the error of a job whose time is over."""
    return TimeoutError(f"{job.kind} of pool {job.pool!r}: not done within {job.seconds:g} s")
