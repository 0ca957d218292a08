"""``astore pool event``: wait for events of pools, as ``virsh pool-event`` does."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from functools import partial

import click
from anyio import to_thread

from astore import events as kinds
from astore.cli.command_line import option
from astore.cli.completion import complete_pool
from astore.cli.events import alongside, ended_after, follow_folder, pools_named
from astore.cli.exits import CliError, Exit
from astore.cli.output import Answer, Output, writing
from astore.cli.session import Session, command
from astore.cli.virsh_text import timestamp
from astore.errors import printable

_LIFECYCLE: dict[type[kinds.Event], str] = {
    kinds.PoolDefined: "Defined",
    kinds.PoolUndefined: "Undefined",
    kinds.PoolStarted: "Started",
    kinds.PoolStopped: "Stopped",
    kinds.PoolBuilt: "Created",
    kinds.PoolDeleted: "Deleted",
}
_CLASSES: dict[str, tuple[type[kinds.Event], ...]] = {"lifecycle": tuple(_LIFECYCLE), "refresh": (kinds.PoolRefreshed,)}


@command("event")
@option("--pool", metavar="POOL", help="Only events of this pool.", shell_complete=complete_pool)
@option("--event", type=click.Choice(list(_CLASSES)), metavar="TYPE", help="lifecycle or refresh.")
@option("--loop", is_flag=True, help="Go on after the first event, until --timeout or Ctrl-C.")
@option("--list", "listed", is_flag=True, help="List the types of events.")
@option("--timestamp", "stamped", is_flag=True, help="Begin each line with date and time.")
async def pool_event(
    session: Session, pool: str | None, event: str | None, loop: bool, listed: bool, stamped: bool
) -> Answer:
    """Wait for an event of a pool, as virsh does; `astore events` tells of more. --timeout ends it."""
    if listed:
        return Answer({"events": list(_CLASSES)}, lambda output: output.raw("\n".join(_CLASSES)))
    if event is None:
        raise CliError("say which --event to wait for, lifecycle or refresh, or say --list", Exit.USAGE)
    await to_thread.run_sync(session.ticker.close)
    chosen = pools_named(session, [] if pool is None else [pool])
    manager = session.manager
    followed = alongside(partial(follow_folder, manager))
    count = 0
    timed_out = True
    async with ended_after(session.settings.timeout), followed:
        async with manager.events(0, pools=chosen, kinds=_CLASSES[event]) as stream:
            async for line in _lines(stream, event, stamped):
                await to_thread.run_sync(_put, line, abandon_on_cancel=True)
                count += 1
                if not loop:
                    break
        timed_out = False

    def show(output: Output) -> None:
        if timed_out:
            output.line("event loop timed out")
        output.line(f"events received: {count}")

    return Answer(
        {"event": event, "count": count, "timed_out": timed_out}, show, code=Exit.OK if count else Exit.FAILED
    )


async def _lines(stream: AsyncIterator[kinds.Event], name: str, stamped: bool) -> AsyncIterator[str]:
    """Yield a line for each event."""
    async for event in stream:
        if isinstance(event, kinds.PoolEvent):
            word = _LIFECYCLE.get(type(event))
            when = f"{timestamp(event.time)}: " if stamped else ""
            yield f"{when}event '{name}' for storage pool {printable(event.pool)}{f': {word}' if word else ''}"


def _put(line: str) -> None:
    with writing():
        Output().raw(line)
        sys.stdout.flush()
