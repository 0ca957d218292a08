"""``astore help``: the help of a command."""

from __future__ import annotations

import click

from astore.cli.command_line import Command, argument

VIRSH_GROUPS = {"volume": "vol"}
"""Our groups by virsh's keywords, where they differ."""


@click.command("help", cls=Command)
@argument("words", nargs=-1, metavar="COMMAND", help="Such as `vol info`, `vol` or `vol-info`.")
@click.pass_context
def help_command(context: click.Context, words: tuple[str, ...]) -> None:
    """Show the help of a command."""
    found = context.find_root()
    command: click.Command = found.command
    for number, word in enumerate(words):
        if not isinstance(command, click.Group):
            raise click.UsageError(f"There is no command '{' '.join(words)}'", found)
        if number == 0:
            word = VIRSH_GROUPS.get(word, word)
        _, inner, _ = command.resolve_command(found, [word])
        assert inner is not None
        command = inner
        found = click.Context(command, info_name=word, parent=found, **command.context_settings)
    click.echo(command.get_help(found))
