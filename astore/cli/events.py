"""``astore events``: print the events of the state folder and of its pools as they come.

The command joins the state folder and reloads it once a second, which finds the changes of other processes. It refreshes
the active pools at an interval, which finds changed volumes. Each invocation numbers its events from 1.
"""

from __future__ import annotations

import asyncio
import itertools
import sys
import time
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import anyio
import click
import msgspec
from anyio import to_thread

from astore import events as kinds
from astore.cli import documents
from astore.cli.completion import complete_pool
from astore.cli.output import Answer, Output, complain, size, writing
from astore.cli.session import Session, command

if TYPE_CHECKING:
    from astore.manager import Manager

POLL_SECONDS = 1.0
"""Seconds between two looks at the state folder. If nothing changed, a look is three calls of stat(2)."""


@command("events")
@click.option(
    "--pool",
    "pools",
    multiple=True,
    metavar="POOL",
    help="Only events of this pool; may be given again.",
    shell_complete=complete_pool,
)
@click.option(
    "--refresh",
    type=click.FloatRange(min=0),
    default=10.0,
    show_default=True,
    metavar="SECONDS",
    help="How often to refresh the active pools; 0: never.",
)
@click.option(
    "--since", type=click.IntRange(min=0), default=0, show_default=True, metavar="N", help="Begin after number N."
)
@click.option("--count", type=click.IntRange(min=1), metavar="N", help="End after N events.")
@click.option("--for", "duration", type=click.FloatRange(min=0), metavar="SECONDS", help="End after this time.")
async def watch(
    session: Session, pools: tuple[str, ...], refresh: float, since: int, count: int | None, duration: float | None
) -> Answer:
    """Print events as they come, until Ctrl-C.

    With --json, one document in a line. Joins the state folder: what other processes define, start and stop is seen
    within a second. Volumes are looked at every --refresh seconds. Numbers are this invocation's own and begin with 1.
    """
    session.ticker.stop()
    for name in pools:
        if not any(pool.name == name for pool in session.manager.pools()):
            complain(f"there is no pool {name!r} yet: waiting for it")
    output = Output()
    written = 0
    try:
        with anyio.move_on_after(duration):
            async with anyio.create_task_group() as group, session.manager.events(0, pools=pools or None) as stream:
                group.start_soon(_follow_folder, session.manager)
                if refresh:
                    group.start_soon(_refresh_regularly, session.manager, refresh, session.settings.timeout)
                async for event in _wanted(stream, since, quiet=not session.settings.json):
                    text = documents.line(as_document(event)) if session.settings.json else in_words(event)
                    # on a thread: a slow reader must not hold up the refreshes
                    await to_thread.run_sync(_write, output, text, session.settings.json, abandon_on_cancel=True)
                    written += 1
                    if written == count:
                        group.cancel_scope.cancel()
                        break
    except BaseExceptionGroup as several:
        raise _first(several) from several
    return Answer(None, lambda _: None)


def _first(error: BaseException) -> BaseException:
    """Return the first error inside a group, or the error itself."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


async def _wanted(stream: AsyncIterator[kinds.Event], since: int, *, quiet: bool) -> AsyncIterator[kinds.Event]:
    async for event in stream:
        if event.seq <= since:
            continue
        if quiet and isinstance(event, kinds.PoolRefreshed) and not (event.added or event.changed or event.removed):
            continue  # people need no line every few seconds saying that nothing changed
        yield event


THOROUGHLY_EVERY = 10
"""Every tenth reload of the state folder also finds the changes that an editor made."""


async def _follow_folder(manager: Manager) -> None:
    for number in itertools.count(1):
        await asyncio.sleep(POLL_SECONDS)
        await manager.reload(thoroughly=not number % THOROUGHLY_EVERY)


async def _refresh_regularly(manager: Manager, every: float, timeout: float | None) -> None:
    while True:
        await manager.refresh_all(timeout=timeout)  # a failure makes the pool inaccessible, which is an event
        await asyncio.sleep(every)


def _write(output: Output, text: str, is_safe: bool) -> None:
    with writing():
        if is_safe:
            output.raw(text)
        else:
            output.line(text)
        sys.stdout.flush()


def as_document(event: kinds.Event) -> documents.Document:
    """Return an event's fields for JSON, with the volume as `vol list` has it."""
    fields: documents.Document = msgspec.to_builtins(event)
    if isinstance(event, kinds.VolumeAdded | kinds.VolumeChanged):
        fields["volume"] = documents.volume(event.pool, event.volume)
    return fields


def in_words(event: kinds.Event) -> str:
    """Return an event as one line: time, pool and description."""
    clock = time.strftime("%H:%M:%S", time.localtime(event.time))
    about = f"{event.pool}: " if isinstance(event, kinds.PoolEvent) else ""
    return f"{clock} {about}{what_happened(event)}"


def what_happened(event: kinds.Event) -> str:
    """Return the description of an event, without time and pool."""
    match event:
        case kinds.VolumeAdded(name=name, volume=volume):
            backing = f", backed by {volume.backing}" if volume.backing else ""
            return f"volume {name} added ({volume.format}, {size(volume.capacity)}{backing})"
        case kinds.VolumeChanged(name=name, volume=volume):
            return f"volume {name} changed ({volume.format}, {size(volume.capacity)})"
        case kinds.VolumeRemoved(name=name):
            return f"volume {name} removed"
        case kinds.VolumeProgress(name=name, operation=operation, done=done, total=total):
            return f"volume {name}: {operation}: {size(done)}{f' of {size(total)}' if total is not None else ''}"
        case kinds.PoolRefreshed():
            wrong = f", {event.errors} errors" if event.errors else ""
            return (
                f"refreshed: {event.added} added, {event.changed} changed, {event.removed} removed, "
                f"{event.unchanged} unchanged{wrong}"
            )
        case kinds.PoolStateChanged(old=old, new=new, reason=reason):
            return f"{old} → {new}{f': {reason}' if reason else ''}"
        case kinds.PoolAutostartChanged(autostart=autostart):
            return f"autostart {'on' if autostart else 'off'}"
        case kinds.BackendRegistered(type=type_):
            return f"backend for {type_} pools ready"
        case kinds.BackendUnregistered(type=type_):
            return f"backend for {type_} pools gone"
        case kinds.Lagged(missed=missed):
            return f"{missed} events were lost: this reader is too slow"
    word = type(event).__name__.removeprefix("Pool")
    return word.lower()
