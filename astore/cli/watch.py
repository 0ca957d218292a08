"""``astore watch``: keep pools fresh and show them: a table on a terminal, a line for each event elsewhere."""

from __future__ import annotations

import asyncio
from contextlib import nullcontext, suppress
from functools import partial
from typing import TYPE_CHECKING

from anyio import to_thread

from astore.cli.command_line import Number, option
from astore.cli.events import Lines, alongside, ended_after, pools_named
from astore.cli.output import Answer, Output, complain, writing
from astore.cli.parameters import duration_option, pool_arguments
from astore.cli.session import Session, Settings, command
from astore.cli.watch_table import Board

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from rich.live import Live

    from astore.cli.watch_table import Row
    from astore.events import Event

PAUSE = 0.25
"""Seconds from one drawing of the table to the next, at least."""

TICK = 1.0
"""Seconds after which the table is looked at even if there was no event: the window may have another size."""

LEAVING = 1.0
"""Seconds that restoring the terminal may take. A terminal that is gone may hang."""


@command("watch", each_call=True)
@pool_arguments
@option(
    "--max-staleness",
    type=Number(min=0.1),
    metavar="SECONDS",
    help="How often at least to refresh pools whose storage tells nothing of changes.  [default: 30]",
)
@option("--autostart", is_flag=True, help="Start the pools that are marked for it; try again those that fail.")
@option("--no-retry", is_flag=True, help="Do not try again what failed.")
@duration_option
async def watch(
    session: Session,
    names: tuple[str, ...],
    max_staleness: float | None,
    autostart: bool,
    no_retry: bool,
    duration: float | None,
) -> Answer:
    """Watch pools until Ctrl-C: their states, how fresh they are, and what changes.

    All pools are watched, and those that come later join; with names, only these are shown. On a terminal this is a
    table. Elsewhere it is a line for each event, and with --json a document, as `astore events` writes them.

    --autostart is for the start of a machine, when the network may not be ready: a pool that fails is tried again after
    1 to 60 seconds, and told so.
    """
    await to_thread.run_sync(session.ticker.close)
    manager = session.manager
    chosen = pools_named(session, names)
    if autostart and not manager.pools(persistent=True, autostart=True):
        complain("no pool is marked for autostart")
    output = Output()
    start = partial(manager.start_all, timeout=session.settings.timeout)
    async with (
        ended_after(duration),
        manager.watch(max_staleness=max_staleness, retry=not no_retry),
        manager.events(0, pools=chosen) as stream,
        alongside(start) if autostart else nullcontext(),
    ):
        if _may_draw(output, session.settings):
            await _show(Board(manager, chosen, output), stream, output)
        else:
            await Lines(session.settings.json).write_all((), stream)
    return Answer(None, lambda _: None)


def _may_draw(output: Output, settings: Settings) -> bool:
    """Return whether to show the table. The log of --verbose would spoil it."""
    return output.terminal and not (settings.json or settings.verbose or output.console.is_dumb_terminal)


async def _show(board: Board, stream: AsyncIterator[Event], output: Output) -> None:
    """Show the table until it is cancelled, and restore the terminal."""
    from rich.live import Live

    live = Live(console=output.console, screen=True, auto_refresh=False, redirect_stdout=False, redirect_stderr=False)
    news = asyncio.Event()

    async def note() -> None:
        async for event in stream:
            board.note(event)
            news.set()

    with writing():
        try:
            live.start()
            async with alongside(note):
                await _draw(board, live, news)
        finally:
            with suppress(TimeoutError):
                async with asyncio.timeout(LEAVING):
                    await to_thread.run_sync(_restore, live, abandon_on_cancel=True)


async def _draw(board: Board, live: Live, news: asyncio.Event) -> None:
    """Draw the table whenever it differs, a few times a second at most."""
    shown: object = None
    while True:
        news.clear()
        rows = board.rows()
        if (rows, live.console.size) != shown:
            shown = rows, live.console.size
            # on a thread: a terminal that is slow, or stopped by Ctrl-S, must not hold up the refreshes
            await to_thread.run_sync(_put, live, board, rows, abandon_on_cancel=True)
        await asyncio.sleep(PAUSE)
        with suppress(TimeoutError):
            async with asyncio.timeout(TICK - PAUSE):
                await news.wait()


def _put(live: Live, board: Board, rows: Sequence[Row]) -> None:
    live.update(board.drawn(rows), refresh=True)


def _restore(live: Live) -> None:
    with suppress(OSError):
        live.stop()
