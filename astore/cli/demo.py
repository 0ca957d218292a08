"""``astore demo``: the main job on real images, written as a program that uses astore would be.

:func:`tell` is the whole of it. What it works on is made by :mod:`astore.cli.demo_storage`, what it shows is written by
:mod:`astore.cli.demo_show`.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import threading
from collections.abc import Iterator, Sequence

import astore
from astore.cli.demo_show import (
    heading,
    show_change,
    show_changes,
    show_events,
    show_failures,
    show_pools,
    show_volumes,
)
from astore.cli.demo_storage import DemoStorage, change, settled
from astore.cli.exits import explain
from astore.cli.output import Output, duration
from astore.cli.progress import Ticker

STOP_SECONDS = 10.0
"""How long a pool may take to stop before it is given up by force."""


def run_demo(*, gluster: bool, pools: int, images: int, output: Output | None = None) -> None:
    """Run it. Everything is in a temporary folder, and nothing is left: no folder, process or mount, also after Ctrl-C.

    :param gluster: start a private Gluster too, where that can be done. :param pools: how many ``dir`` pools.
    :param images: how many images in each pool (3 at least).
    """
    output = output if output is not None else Output()
    with terminations_interrupt(), contextlib.ExitStack() as stack:
        heading(output, "Making storage")
        with settled():
            storage = stack.enter_context(DemoStorage(output, gluster=gluster, pools=pools, images=images))
        stack.push(_undisturbed)
        asyncio.run(tell(storage, output))
    output.line("")
    output.line("Everything that was made for this is gone again.", "dim")


async def tell(storage: DemoStorage, output: Output) -> None:
    """Define and start pools, refresh them all at once, show what was found; change something, and refresh again."""
    async with astore.Manager(storage.state_dir) as manager:
        try:
            async with manager.events(since=0) as events:
                pools = await define_and_start(manager, storage.definitions, output)

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
            await stop_all(manager)


async def define_and_start(
    manager: astore.Manager, definitions: Sequence[astore.PoolDef], output: Output
) -> list[astore.Pool]:
    """Define the pools and start them, all at once. A definition may as well be libvirt's XML."""
    heading(output, "Defining and starting pools")
    output.xml(definitions[-1].to_xml())
    pools = [await manager.define(definition) for definition in definitions]
    # refresh=False: else each start would look at its volumes, and there would be nothing left to show
    outcomes = await asyncio.gather(
        *(pool.start(build=pool.type == "netfs", refresh=False) for pool in pools), return_exceptions=True
    )
    started = [pool for pool, outcome in zip(pools, outcomes, strict=True) if outcome is None]
    failed = {pool.name: error for pool, error in zip(pools, outcomes, strict=True) if isinstance(error, Exception)}
    output.line(f"{len(started)} of {len(pools)} pools started, over {len({pool.type for pool in started})} backends")
    show_failures(output, ((name, explain(error)) for name, error in failed.items()))
    return started


async def refresh(manager: astore.Manager, output: Output) -> astore.RefreshReport:
    """Refresh all active pools at once. One that failed would cost only itself."""
    with Ticker(delay=0) as ticker:
        ticker.begin("refreshing", len(manager.pools(active=True)))
        report = await manager.refresh_all(timeout=60, on_progress=lambda done, _all, _outcome: ticker.step(done))
    volumes = sum(len(pool.volumes) for pool in manager.pools(active=True))
    output.line(f"{len(report.pools)} pools with {volumes:,} volumes refreshed in {duration(report.seconds)}", "bold")
    show_failures(output, ((outcome.pool, explain(outcome.error)) for outcome in report.failed if outcome.error))
    return report


async def change_something(storage: DemoStorage, output: Output) -> list[str]:
    """Add, grow and remove an image in one folder of each kind; say which pools will see it."""
    noticing: list[str] = []
    by_kind = {len(names): (names, folder) for names, folder in reversed(storage.folders.items())}
    for names, folder in by_kind.values():
        done = await asyncio.to_thread(change, folder)
        show_change(output, names, done)
        noticing += names
    if len(by_kind) > 1:
        await asyncio.sleep(1.1)  # another Gluster client trusts what it knows of a file for a second
    return noticing


def received(events: astore.events.Subscription) -> list[astore.Event]:
    """What is there to read now. (A program that follows events says ``async for event in events``.)"""
    found: list[astore.Event] = []
    while (event := events.receive_nowait()) is not None:
        found.append(event)
    return found


async def stop_all(manager: astore.Manager) -> None:
    """Stop every active pool: unmount what was mounted; by force, where its storage does not answer any more."""

    async def stop(pool: astore.Pool) -> None:
        try:
            async with asyncio.timeout(STOP_SECONDS):
                await pool.stop()
        except (astore.AstoreError, OSError):
            with contextlib.suppress(astore.AstoreError, OSError):
                await pool.stop(force=True)

    await asyncio.gather(*(stop(pool) for pool in manager.pools(active=True)))


# --------------------------------------------------------------------------------------------------------- signals


@contextlib.contextmanager
def terminations_interrupt() -> Iterator[None]:
    """SIGTERM and SIGHUP end the demonstration as Ctrl-C does: what was made is taken away first."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)}
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _undisturbed(*_: object) -> None:
    """From here on everything is taken away again: a second Ctrl-C must not cut that short."""
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
