"""``astore demo``: the command. It imports the demonstration only when it runs."""

from __future__ import annotations

import click

from astore.cli.command_line import Command, Whole, option
from astore.cli.session import Settings, logs, reported, verbose_option

pools_option = option(
    "--pools", type=Whole(1, 500), default=10, show_default=True, metavar="N", help="How many dir pools."
)
images_option = option(
    "--images", type=Whole(3, 100_000), default=100, show_default=True, metavar="N", help="How many in each."
)


@click.command("demo", cls=Command, params=[verbose_option()])
@pools_option
@images_option
def demo(pools: int, images: int) -> None:
    """Show astore at work on real images, and leave nothing behind.

    Makes pools in a temporary folder, refreshes them all at once, shows what was found and the events as they came, then
    changes something and shows an incremental refresh pick up just that.
    """
    settings = click.get_current_context().ensure_object(Settings)
    if settings.json:
        raise click.BadParameter("demo is for people: it has no --json")
    with logs(settings.verbose), reported(settings):
        from astore.cli.demo import run_demo

        run_demo(lambda storage: storage.make_folders(pools), images=images)
