"""``astore events``: print the events of the state folder and of its pools as they come.

The command watches the Manager's pools and its state folder, so what others change is told, too. Each invocation numbers its
events from 1, so the numbers are in the JSON alone.
"""

from __future__ import annotations

import asyncio
import itertools
import sys
from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import click
import msgspec
from anyio import to_thread

from astore import events as kinds
from astore.cli import documents
from astore.cli.command_line import Number, Whole, option
from astore.cli.completion import complete_pool
from astore.cli.output import Answer, Output, complain, size, when, writing
from astore.cli.parameters import duration_option, point_in_time
from astore.cli.session import Session, command
from astore.errors import PoolNotFoundError, StoreError

if TYPE_CHECKING:
    from astore.manager import Manager

POLL_SECONDS = 1.0
"""Seconds between two looks at the state folder with ``--refresh 0``. If nothing changed, a look is three calls of stat(2)."""

THOROUGHLY_EVERY = 10
"""Every tenth look at the state folder also finds the changes that an editor made."""


def _classes(base: type[kinds.Event]) -> Iterator[type[kinds.Event]]:
    for kind in base.__subclasses__():
        yield kind
        yield from _classes(kind)


KINDS = {kind.__name__: kind for kind in _classes(kinds.Event) if kind.__module__ == kinds.__name__}
"""The classes of events by name. VolumeEvent stands for all about volumes."""
del KINDS["PoolEvent"]  # it would stand for almost all


@command("events", each_call=True)
@option(
    "--pool",
    "pools",
    multiple=True,
    metavar="POOL",
    help="Only events of this pool; may be given again.",
    shell_complete=complete_pool,
)
@option(
    "--kind",
    "names",
    multiple=True,
    type=click.Choice(sorted(KINDS)),
    metavar="KIND",
    help="Only events of this kind, such as VolumeAdded, or VolumeEvent for all about volumes; may be given again.",
)
@option(
    "--refresh",
    type=Number(min=0),
    default=10.0,
    show_default=True,
    metavar="SECONDS",
    help="How often at least to refresh pools whose storage tells nothing of changes; 0: refresh no pool.",
)
@option(
    "--since",
    callback=point_in_time,
    metavar="TIME",
    help="First tell of volumes that changed since then: '10 min', 2026-01-31, '2026-01-31 12:00'.",
)
@option("--count", type=Whole(min=1), metavar="N", help="End after N events.")
@duration_option
async def show_events(
    session: Session,
    pools: tuple[str, ...],
    names: tuple[str, ...],
    refresh: float,
    since: float | None,
    count: int | None,
    duration: float | None,
) -> Answer:
    """Print events as they come, until Ctrl-C.

    With --json, one document in a line. What other processes do with pools is seen within a second, and what changes in
    pools at once where their storage tells of it. The first events are what has changed since each pool's last refresh.

    Nobody keeps events. --since tells of volumes by their own times: not of those that were removed, and of several
    changes of a volume only the last one.
    """
    await to_thread.run_sync(session.ticker.close)
    wanted = tuple(KINDS[name] for name in names) or None
    chosen = pools_named(session, pools)
    earlier = [] if since is None else changed_since(session.manager, since, chosen, wanted)
    lines = Lines(session.settings.json, count)
    manager = session.manager
    followed = manager.watch(max_staleness=refresh) if refresh else alongside(partial(follow_folder, manager))
    async with ended_after(duration), followed, manager.events(0, pools=chosen, kinds=wanted) as stream:
        await lines.write_all(earlier, stream)
    return Answer(None, lambda _: None)


def pools_named(session: Session, given: Sequence[str]) -> frozenset[str] | None:
    """Return the names of pools that were given by name or UUID; None if none were. Those that are missing may come."""
    names = set()
    for text in given:
        try:
            names.add(session.pool(text).name)
        except PoolNotFoundError:
            complain(f"there is no pool {text!r} yet: waiting for it")
            names.add(text)
    return frozenset(names) or None


def changed_since(
    manager: Manager, since: float, pools: Collection[str] | None, wanted: tuple[type[kinds.Event], ...] | None
) -> list[kinds.Event]:
    """Return an event for each volume that has changed since a time, as far as the last refreshes know, in order of time.

    :param since: in seconds since the epoch. :param pools: only of these pools. :param wanted: only events of these classes.
    """
    found = [
        kinds.VolumeChanged(pool=pool.name, uuid=pool.uuid, name=info.name, volume=info, time=info.ctime_ns / 1e9)
        for pool in manager.pools(active=True)
        if pools is None or pool.name in pools
        for info in pool.volumes
        if info.ctime_ns / 1e9 >= since
    ]
    return sorted((event for event in found if wanted is None or isinstance(event, wanted)), key=lambda one: one.time)


@asynccontextmanager
async def ended_after(seconds: float | None) -> AsyncIterator[None]:
    """End the block after so many seconds; None: never."""
    try:
        async with asyncio.timeout(seconds) as limit:
            yield
    except TimeoutError:
        if not limit.expired():
            raise


@asynccontextmanager
async def alongside(call: Callable[[], Coroutine[Any, Any, object]]) -> AsyncIterator[None]:
    """Await a call beside the block, and cancel it when the block ends."""
    task = asyncio.create_task(call())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])


async def follow_folder(manager: Manager) -> None:
    """Tell, by the events of the Manager, what other processes do with pools. Never returns."""
    for number in itertools.count(1):
        await asyncio.sleep(POLL_SECONDS)
        with suppress(StoreError):  # it may be readable again the next time
            await manager.reload(thoroughly=not number % THOROUGHLY_EVERY)


class Lines:
    """Writes events to standard output, one a line.

    :param json: as documents. :param count: how many to write; None: all.
    """

    def __init__(self, json: bool, count: int | None = None) -> None:
        self._json = json
        self._left = count
        self._output = Output()

    async def write_all(self, earlier: Sequence[kinds.Event], stream: AsyncIterator[kinds.Event]) -> None:
        """Write the earlier events, then those of a stream as they come, until there were enough."""
        for event in earlier:
            if await self._write(event):
                return
        async for event in stream:
            if (self._json or not is_no_news(event)) and await self._write(event):
                return

    async def _write(self, event: kinds.Event) -> bool:
        """Write one event. Return whether it was the last."""
        text = documents.line(as_document(event)) if self._json else in_words(event)
        # on a thread: a slow reader must not hold up the refreshes
        await to_thread.run_sync(self._put, text, abandon_on_cancel=True)
        if self._left is not None:
            self._left -= 1
        return self._left == 0

    def _put(self, text: str) -> None:
        with writing():
            if self._json:
                self._output.raw(text)
            else:
                self._output.line(text)
            sys.stdout.flush()


def is_no_news(event: kinds.Event) -> bool:
    """Return whether people can do without an event: a refresh that found nothing."""
    return isinstance(event, kinds.PoolRefreshed) and not (event.added or event.changed or event.removed)


def as_document(event: kinds.Event) -> documents.Document:
    """Return an event's fields for JSON, with the volume as `vol list` has it."""
    fields: documents.Document = msgspec.to_builtins(event)
    if isinstance(event, kinds.VolumeAdded | kinds.VolumeChanged):
        fields["volume"] = documents.volume(event.pool, event.volume)
    return fields


def in_words(event: kinds.Event) -> str:
    """Return an event as one line: date and time, pool and description."""
    about = f"{event.pool}: " if isinstance(event, kinds.PoolEvent) else ""
    return f"{when(event.time)} {about}{what_happened(event)}"


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
        case kinds.PoolStateChanged(old=old, new=new):
            return f"{old} → {new}{_why(event)}"
        case kinds.PoolStartFailed():
            return f"could not be started{_why(event)}"
        case kinds.PoolRetry(attempt=attempt, at=at):
            return f"try {attempt} failed{_why(event)}; next try at {when(at)}"
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


def _why(event: kinds.PoolStateChanged | kinds.PoolStartFailed | kinds.PoolRetry) -> str:
    """Return the reason after a colon, without the pool's name, which the line begins with."""
    return f": {event.reason.removeprefix(f'pool {event.pool!r}: ')}" if event.reason else ""
