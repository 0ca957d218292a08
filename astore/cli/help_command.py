"""``astore help``: the help of a command."""

from __future__ import annotations

import click

from astore.cli.command_line import Command, argument


@click.command("help", cls=Command)
@argument("words", nargs=-1, metavar="COMMAND", help="Such as `vol info`, `vol` or `vol-info`.")
@click.pass_context
def help_command(context: click.Context, words: tuple[str, ...]) -> None:
    """Show the help of a command."""
    found = context.find_root()
    command: click.Command = found.command
    for word in words:
        inner = command.get_command(found, word) if isinstance(command, click.Group) else None
        if inner is None:
            raise click.UsageError(f"No such command '{' '.join(words)}'.", context)
        command = inner
        found = click.Context(command, info_name=word, parent=found, **command.context_settings)
    click.echo(command.get_help(found))
