"""``astore demo``: the command; the demonstration itself is imported when it runs."""

from __future__ import annotations

from typing import Annotated

import typer

from astore.cli.session import VERBOSE, Settings, logs, reported


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("demo")(demo)


def demo(
    context: typer.Context,
    pools: Annotated[int, typer.Option("--pools", min=1, max=500, metavar="N", help="How many dir pools.")] = 10,
    images: Annotated[int, typer.Option("--images", min=3, max=100_000, metavar="N", help="How many in each.")] = 100,
    verbose: Annotated[bool, VERBOSE] = False,
) -> None:
    """Show astore at work on real images, and leave nothing behind.

    Makes pools in a temporary folder, refreshes them all at once, shows what was found and the events as they came, then
    changes something and shows an incremental refresh pick up just that.
    """
    settings: Settings = context.obj or Settings()
    if settings.json:
        raise typer.BadParameter("demo is for people: it has no --json")
    settings = settings.with_verbose(verbose)
    with logs(settings.verbose), reported(settings):
        from astore.cli.demo import run_demo

        run_demo(lambda storage: storage.make_folders(pools), images=images)
