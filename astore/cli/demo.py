"""``astore demo``: refresh pools of real images, written like any program that uses astore.

Read :func:`tell` first. :mod:`astore.cli.demo_storage` makes the images and :mod:`astore.cli.demo_show` prints the
results.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import rich.console  # noqa: F401 (imported here, since a slow import would block the event loop)

import astore
import astore.manager  # for the same reason
from astore.cli.demo_show import (
    heading,
    show_change,
    show_changes,
    show_events,
    show_failures,
    show_pools,
    show_volumes,
)
from astore.cli.demo_storage import SETTLE_SECONDS, DemoStorage, change, fill_by_hand
from astore.cli.exits import CliError, Exit, explain
from astore.cli.interruptions import ignore_interruptions, interruptions_raise, run
from astore.cli.output import Output, duration
from astore.cli.progress import Ticker
from astore.event_bus import Subscription

STOP_SECONDS = 10.0
"""Seconds that a pool may take to stop before it is stopped by force."""


def run_demo(
    make: Callable[[DemoStorage], None],
    *,
    images: int,
    fill: Callable[[Path, int], None] = fill_by_hand,
    output: Output | None = None,
) -> None:
    """Run the demonstration in a temporary folder. It leaves no folder, process or mount behind, even after Ctrl-C.

    :param make: makes the storage and adds pools to it. :param images: how many images each folder gets (at least 3).
    :param fill: makes that many images in a folder. :param output: where to print; None prints to standard output.
    :raises CliError: it was interrupted.
    """
    output = output if output is not None else Output()
    gone = "everything that was made for this is gone again"
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # so that each line appears at once, also through `tee`
    try:
        with interruptions_raise(), DemoStorage(output, images, fill) as storage:
            heading(output, "Making storage")
            storage.make_place()
            make(storage)
            run(lambda: tell(storage, output))
    except KeyboardInterrupt:
        raise CliError(f"interrupted; {gone}", Exit.INTERRUPTED) from None
    output.line("")
    output.line(f"{gone.capitalize()}.", "dim")


async def tell(storage: DemoStorage, output: Output) -> None:
    """Define, start and refresh the pools, change some images, and refresh again."""
    async with astore.Manager(storage.folder / "state") as manager:
        try:
            async with manager.events(since=0) as events:
                pools = await define_and_start(manager, storage.definitions, output)
                await asyncio.sleep(storage.seconds_to_settle())

                heading(output, "Refreshing all of them at once")
                first = await refresh(manager, output)
                show_pools(output, pools, first)
                show_volumes(output, pools)

                heading(output, "The events, as they came")
                show_events(output, received(events))

                heading(output, "Something changes: an incremental refresh picks up just that")
                changed = await change_something(storage, output)
                again = await refresh(manager, output)
                show_changes(output, again, first, changed)
                show_events(output, received(events))
        finally:
            ignore_interruptions()
            await stop_all(manager)


async def define_and_start(
    manager: astore.Manager, definitions: Sequence[astore.PoolDef], output: Output
) -> list[astore.Pool]:
    """Define the pools and start them concurrently. (``define`` takes libvirt's XML as well.)"""
    heading(output, "Defining and starting pools")
    output.xml(definitions[-1].to_xml())
    pools = [await manager.define(definition) for definition in definitions]
    async with Ticker() as ticker:
        ticker.begin("starting", len(pools))

        async def start(pool: astore.Pool) -> None:
            # refresh=False: a start that refreshes would leave nothing for the next step to show
            await pool.start(build=pool.type == "netfs", refresh=False)
            ticker.step()

        outcomes = await asyncio.gather(*(start(pool) for pool in pools), return_exceptions=True)
    started = [pool for pool, outcome in zip(pools, outcomes, strict=True) if outcome is None]
    failed = {pool.name: error for pool, error in zip(pools, outcomes, strict=True) if isinstance(error, Exception)}
    types = ", ".join(sorted({pool.type for pool in started}))
    output.line(f"{len(started)} of {len(pools)} pools started, of the types {types}", "bold")
    show_failures(output, ((name, explain(error)) for name, error in failed.items()))
    return started


async def refresh(manager: astore.Manager, output: Output) -> astore.RefreshReport:
    """Refresh all active pools concurrently. A pool that fails does not affect the others."""
    async with Ticker(delay=0, stays=True) as ticker:
        ticker.begin("refreshing", len(manager.pools(active=True)))
        report = await manager.refresh_all(timeout=60, on_progress=lambda done, _all, _outcome: ticker.step(done))
    volumes = sum(len(pool.volumes) for pool in manager.pools(active=True))
    output.line(f"{len(report.pools)} pools with {volumes:,} volumes refreshed in {duration(report.seconds)}", "bold")
    show_failures(output, ((outcome.pool, explain(outcome.error)) for outcome in report.failed if outcome.error))
    return report


async def change_something(storage: DemoStorage, output: Output) -> list[str]:
    """Add, grow and remove an image in one folder of each kind. Return the names of the pools that see the change."""
    noticing: list[str] = []
    by_kind = {len(names): (names, folder) for names, folder in reversed(storage.folders.items())}
    for _, (names, folder) in sorted(by_kind.items()):
        done = await asyncio.to_thread(change, folder)
        show_change(output, names, done)
        noticing += names
    if len(by_kind) > 1:
        await asyncio.sleep(SETTLE_SECONDS)  # another Gluster client caches a file's attributes for a second
    return noticing


def received(events: Subscription) -> list[astore.Event]:
    """Return the events received so far. (To follow events, write ``async for event in events``.)"""
    found: list[astore.Event] = []
    while (event := events.receive_nowait()) is not None:
        found.append(event)
    return found


async def stop_all(manager: astore.Manager) -> None:
    """Stop every active pool; use force if its storage no longer answers."""

    async def stop(pool: astore.Pool) -> None:
        try:
            async with asyncio.timeout(STOP_SECONDS):
                await pool.stop()
        except (astore.AstoreError, OSError):
            with contextlib.suppress(astore.AstoreError, OSError):
                await pool.stop(force=True)
        ticker.step()

    active = manager.pools(active=True)
    async with Ticker() as ticker:
        ticker.begin("stopping", len(active))
        await asyncio.gather(*(stop(pool) for pool in active))
