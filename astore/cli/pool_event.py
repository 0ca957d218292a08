"""``astore pool event``: wait for events of pools, as ``virsh pool-event`` does."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Collection
from functools import partial
from pathlib import Path

import click
from anyio import move_on_after, to_thread

from astore import events as kinds
from astore.cli.command_line import option
from astore.cli.completion import complete_pool
from astore.cli.entry import FLUSH_SECONDS
from astore.cli.events import POLL_SECONDS, alongside, ended_after, follow_folder, pools_named
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
_TYPES = ("lifecycle", "refresh")


@command("event")
@option("--pool", metavar="POOL", help="Only events of this pool.", shell_complete=complete_pool)
@option("--event", type=click.Choice(list(_TYPES)), metavar="TYPE", help="lifecycle or refresh.")
@option("--loop", is_flag=True, help="Go on after the first event, until --timeout or Ctrl-C.")
@option("--list", "listed", is_flag=True, help="List the types of events.")
@option("--timestamp", "stamped", is_flag=True, help="Begin each line with date and time.")
async def pool_event(
    session: Session, pool: str | None, event: str | None, loop: bool, listed: bool, stamped: bool
) -> Answer:
    """Wait for an event of a pool, as virsh does; `astore events` tells of more. --timeout ends it."""
    if listed:
        return Answer({"events": list(_TYPES)}, lambda output: output.raw("\n".join(_TYPES)))
    if event is None:
        raise CliError("say which --event to wait for, lifecycle or refresh, or say --list", Exit.USAGE)
    await to_thread.run_sync(session.ticker.close)
    chosen = pools_named(session, [] if pool is None else [pool])
    manager = session.manager
    followed = alongside(partial(follow_folder, manager))
    count = 0
    timed_out = True

    async def told(line: str) -> None:
        if not session.settings.json:
            await to_thread.run_sync(_put, line, abandon_on_cancel=True)

    try:
        async with ended_after(session.settings.timeout), followed:
            async with manager.events(0, pools=chosen, kinds=tuple(_LIFECYCLE)) as stream:
                found = _lifecycle(stream) if event == "lifecycle" else _refreshes(session, chosen)
                async for when, pool_name, word in found:
                    begin = f"{timestamp(when)}: " if stamped else ""
                    said = f": {word}" if word else ""
                    line = f"{begin}event '{event}' for storage pool {printable(pool_name)}{said}"
                    await told(line)
                    count += 1
                    if not loop:
                        break
            timed_out = False
    except asyncio.CancelledError:  # by a signal
        with move_on_after(FLUSH_SECONDS, shield=True):  # nobody may read what is written
            await told(f"event loop interrupted\nevents received: {count}" + "\n" * session.settings.virsh)
        raise

    def show(output: Output) -> None:
        if timed_out:
            output.line("event loop timed out")
        output.line(f"events received: {count}")

    return Answer(
        {"event": event, "count": count, "timed_out": timed_out},
        show,
        code=Exit.OK if count else Exit.FAILED,
    )


_Told = AsyncIterator[tuple[float, str, str]]
"""Events: when, the pool's name, and what happened."""


async def _lifecycle(stream: AsyncIterator[kinds.Event]) -> _Told:
    async for event in stream:
        if isinstance(event, kinds.PoolEvent):
            yield event.time, event.pool, _LIFECYCLE[type(event)]


async def _refreshes(session: Session, chosen: Collection[str] | None) -> _Told:
    """Yield the refreshes of other processes, from when they have left their snapshots: this process refreshes nothing."""
    from astore.store.local_files import LockedFolder, default_state_dir
    from astore.store.run_files import SnapshotFiles

    folder = session.settings.state_dir
    files = SnapshotFiles(LockedFolder(Path(folder) if folder else default_state_dir()))

    def taken() -> dict[str, float]:
        names = [pool.name for pool in session.manager.pools(active=True) if chosen is None or pool.name in chosen]
        return {name: seen.snapshot.taken_at for name in names if (seen := files.read(name)) is not None}

    known = await to_thread.run_sync(taken)
    while True:
        await asyncio.sleep(POLL_SECONDS)
        now = await to_thread.run_sync(taken)
        for name, when in now.items():
            if when != known.get(name):
                yield when, name, ""
        known = now


def _put(line: str) -> None:
    with writing():
        Output().raw(line)
        sys.stdout.flush()
