"""``astore help``: the help of a command."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from astore.cli.command_line import Command, argument

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

VIRSH_GROUPS = {"volume": "vol"}
"""Our groups by virsh's keywords, where they differ."""


def _complete_command(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Return the groups and verbs that may follow the words before."""
    try:
        found, command = _named(ctx.find_root(), ctx.params.get("words") or ())
    except click.UsageError:
        return []
    return command.shell_complete(found, incomplete) if isinstance(command, click.Group) else []


@click.command("help", cls=Command)
@argument(
    "words",
    nargs=-1,
    metavar="COMMAND",
    help="Such as `vol info`, `vol` or `vol-info`.",
    shell_complete=_complete_command,
)
@click.pass_context
def help_command(context: click.Context, words: tuple[str, ...]) -> None:
    """Show the help of a command."""
    found, command = _named(context.find_root(), words)
    click.echo(command.get_help(found))


def _named(root: click.Context, words: Sequence[str]) -> tuple[click.Context, click.Command]:
    """Return the command that words name, and a context for it. :raises click.UsageError: there is none."""
    found, command = root, root.command
    for number, word in enumerate(words):
        inner: click.Command | None = None
        if number == 0:
            word = VIRSH_GROUPS.get(word, word)
        if isinstance(command, click.Group):
            _, inner, _ = command.resolve_command(found, [word])
        if inner is None:
            raise click.UsageError(f"There is no command '{' '.join(words)}'", found)
        command = inner
        found = click.Context(command, info_name=word, parent=found, **command.context_settings)
    return found, command
