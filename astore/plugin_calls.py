"""Calls of plugin code, with checks of the results: a plugin may return anything, and cancel itself."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from astore.backend import Backend, Context, PoolSession
from astore.errors import AstoreError, BackendError, printable, reason
from astore.model import EntryError, PoolDef, Snapshot, VolumeInfo

T = TypeVar("T")

MANY = 4096


async def answer(call: Awaitable[T]) -> T:
    """Await a plugin's coroutine. A CancelledError that the plugin caused itself is a failure, and does not end the caller.

    :raises RuntimeError: the plugin raised CancelledError while the caller was not being cancelled. What the plugin raises.
    """
    try:
        return await call
    except asyncio.CancelledError as error:
        if is_cancelled():
            raise
        raise RuntimeError("a task of its own was cancelled") from error


async def asked(method: Callable[..., Awaitable[T]], *args: object) -> T:
    """Call a plugin's method and await it: both inside the task that awaits this."""
    return await answer(method(*args))


def is_cancelled() -> bool:
    """Return whether the current task is being cancelled; if not, a CancelledError was meant for another task."""
    task = asyncio.current_task()
    return task is None or task.cancelling() > 0


def checked_record(found: object) -> VolumeInfo:
    """Return a volume's record. :raises TypeError: the object is none."""
    if not isinstance(found, VolumeInfo):
        raise TypeError(f"it returned {found!r} in place of a volume's record")
    return found


def checked_entry(found: object, name: str) -> VolumeInfo | EntryError | None:
    """Return the result of refreshing one entry. :raises TypeError: it has another type, or is the record of another name."""
    if found is None or isinstance(found, EntryError):
        return found
    info = checked_record(found)
    if info.name != name:
        raise TypeError(f"it returned the record of {info.name!r} for {name!r}")
    return info


def checked_words(found: object) -> tuple[str, ...]:
    """Return a list of words, as they can be shown. :raises TypeError: the object is none."""
    if not isinstance(found, list | tuple) or not all(isinstance(one, str) for one in found):
        raise TypeError(f"it returned {found!r} in place of a list of words")
    return tuple(map(printable, found))


def checked_definition(backend: Backend, definition: PoolDef) -> PoolDef:
    """Return the definition that the backend accepts. :raises TypeError: it returned none. What the backend raises."""
    found = backend.check(definition)
    if not isinstance(found, PoolDef):
        raise TypeError(f"check() returned {found!r}")
    return found


def accepted_definition(backend: Backend, definition: PoolDef) -> PoolDef:
    """As :func:`checked_definition`, with astore's errors alone. :raises BackendError: the backend raised something else."""
    try:
        return checked_definition(backend, definition)
    except AstoreError:
        raise
    except Exception as error:  # plugin code: it may raise anything
        raise BackendError(
            f"the backend of pool type {definition.type!r} cannot check pool {definition.name!r}: "
            f"{type(error).__name__}: {reason(error)}",
            type=definition.type,
        ) from error


async def opened_session(backend: Backend, definition: PoolDef, context: Context) -> PoolSession:
    """Open a session. :raises TypeError: the backend returned none. What the backend raises."""
    session = await answer(backend.open(definition, context))
    if not isinstance(session, PoolSession):
        raise TypeError(f"open() returned {session!r}")
    return session


async def checked_snapshot(session: PoolSession, known: Snapshot, *, full: bool) -> Snapshot:
    """Refresh a session; see also :func:`check_volumes`.

    :raises TypeError: it returned no snapshot, or one with other things for errors. What the session raises.
    """
    snapshot = await answer(session.refresh(known, full=full))
    if not isinstance(snapshot, Snapshot):
        raise TypeError(f"refresh() returned {snapshot!r}")
    if not isinstance(snapshot.errors, tuple) or not all(isinstance(error, EntryError) for error in snapshot.errors):
        raise TypeError("refresh() returned a snapshot whose errors are no tuple of EntryError")
    return snapshot


def check_volumes(snapshot: Snapshot) -> None:
    """Check a session's snapshot of any size. :raises TypeError: its volumes are none."""
    volumes = snapshot.volumes
    for at in range(0, len(volumes), MANY):  # in steps: one call for all would let no other thread run
        if not set(map(type, volumes[at : at + MANY])) <= {VolumeInfo}:
            raise TypeError("refresh() returned a snapshot whose volumes are no VolumeInfo")
