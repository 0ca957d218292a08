"""What plugin code answers, looked at before it is believed: it may return anything, and cancel what it likes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from astore.backend import Backend, Context, PoolSession
from astore.model import EntryError, PoolDef, Snapshot, VolumeInfo

T = TypeVar("T")


async def answer(call: Awaitable[T]) -> T:
    """Await a plugin's coroutine. Where something of its own was cancelled, that is a failure, and does not end its caller.

    :raises RuntimeError: the plugin was cancelled, and nobody has cancelled the caller. What the plugin raises.
    """
    try:
        return await call
    except asyncio.CancelledError as error:
        if is_cancelled():
            raise
        raise RuntimeError("something of its own was cancelled") from error


async def asked(method: Callable[..., Awaitable[T]], *args: object) -> T:
    """Call a plugin's method and await its answer: for whoever wants all of that in a task."""
    return await answer(method(*args))


def is_cancelled() -> bool:
    """Whether the task that runs is being cancelled: else a CancelledError is somebody else's."""
    task = asyncio.current_task()
    return task is None or task.cancelling() > 0


def checked_record(found: object) -> VolumeInfo:
    """A volume's record. :raises TypeError: it is none."""
    if not isinstance(found, VolumeInfo):
        raise TypeError(f"it returned {found!r} in place of a volume's record")
    return found


def checked_entry(found: object, name: str) -> VolumeInfo | EntryError | None:
    """What one entry is found to be. :raises TypeError: it is something else, or of another name."""
    if found is None or isinstance(found, EntryError):
        return found
    info = checked_record(found)
    if info.name != name:
        raise TypeError(f"it returned the record of {info.name!r} for {name!r}")
    return info


def checked_definition(backend: Backend, definition: PoolDef) -> PoolDef:
    """The definition as the backend takes it. :raises TypeError: it gave none. What the backend raises."""
    found = backend.check(definition)
    if not isinstance(found, PoolDef):
        raise TypeError(f"check() returned {found!r}")
    return found


async def opened_session(backend: Backend, definition: PoolDef, context: Context) -> PoolSession:
    """A session. :raises TypeError: it gave none. What the backend raises."""
    session = await answer(backend.open(definition, context))
    if not isinstance(session, PoolSession):
        raise TypeError(f"open() returned {session!r}")
    return session


async def checked_snapshot(session: PoolSession, known: Snapshot, *, full: bool) -> Snapshot:
    """What a session found. :raises TypeError: it gave no snapshot, or one of anything else. What the session raises."""
    snapshot = await answer(session.refresh(known, full=full))
    if not isinstance(snapshot, Snapshot):
        raise TypeError(f"refresh() returned {snapshot!r}")
    if not isinstance(snapshot.errors, tuple) or not all(isinstance(error, EntryError) for error in snapshot.errors):
        raise TypeError("refresh() returned a snapshot whose errors are no tuple of EntryError")
    if not set(map(type, snapshot.volumes)) <= {VolumeInfo}:
        raise TypeError("refresh() returned a snapshot whose volumes are no VolumeInfo")
    return snapshot
