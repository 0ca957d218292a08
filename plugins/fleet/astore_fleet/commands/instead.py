"""``astore --fleet URL``: the commands on pools and volumes, on a fleet instead of this machine."""

from __future__ import annotations

from collections.abc import Mapping

import click

from astore.cli.app import POOL, VOLUME, app
from astore.cli.command_line import INSTEAD
from astore.cli.exits import CliError, Exit
from astore.cli.virsh import VERBS
from astore_fleet.commands import pools, volumes
from astore_fleet.commands.hosts import events, fleet
from astore_fleet.commands.place import place_options


def options() -> list[click.Parameter]:
    """Make the options of ``astore`` that name a fleet."""
    return place_options("fleet", lambda context: context.meta.update({INSTEAD: commands}))


class _Some(click.Group):
    """A group of commands that refuses in words those that work on the pool's host only.

    :param others: their names.
    """

    def __init__(self, name: str, made: Mapping[str, click.Command], others: Mapping[str, object], help: str) -> None:
        super().__init__(name, commands=dict(made), help=help, no_args_is_help=True)
        self._others = others

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return a command. Return None if there is no command of this name, with a fleet or without."""
        found = super().get_command(ctx, cmd_name)
        if found is None and cmd_name in self._others:
            found = _refused(cmd_name if self.name == "astore" else f"{self.name} {cmd_name}")
        return found


def _refused(name: str) -> click.Command:
    def refuse() -> None:
        raise CliError(f"`{name}` works on the pools of one machine: run it there, without --fleet", Exit.USAGE)

    settings = {"ignore_unknown_options": True, "allow_extra_args": True}
    return click.Command(name, callback=refuse, context_settings=settings, add_help_option=False)


commands = _Some(
    "astore",
    {
        "pool": _Some("pool", pools.COMMANDS, POOL, "Define, start, refresh and look at the pools of a fleet."),
        "vol": _Some("vol", volumes.COMMANDS, VOLUME, "Make, change and look at the volumes of a fleet."),
        "events": events,
        "fleet": fleet,
    },
    {**dict.fromkeys(app.list_commands(click.Context(app))), **VERBS},
    "The pools of many hosts.",
)
