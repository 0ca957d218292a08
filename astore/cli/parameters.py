"""Arguments and options that several commands have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from astore.cli.completion import complete_pool, complete_volume

F = TypeVar("F", bound=Callable[..., Any])

LIMIT = 16
"""How many pools are worked on at a time."""


class _Argument(click.Argument):
    """Shows in the usage whether its metavar may be left out or repeated."""

    def make_metavar(self, ctx: click.Context) -> str:
        """``POOL``, ``[POOL]``, ``POOL...`` or ``[POOL]...``."""
        text = self.human_readable_name
        return (text if self.required else f"[{text}]") + ("..." if self.nargs != 1 else "")


def argument(name: str, **settings: Any) -> Callable[[F], F]:
    """Add an argument to a command. :param settings: those of :class:`click.Argument`."""
    return click.argument(name, cls=_Argument, **settings)


def pool_argument(name: str) -> Callable[[F], F]:
    """Add an argument that names a pool. :param name: the parameter that takes it."""
    return argument(name, metavar="POOL", help="A pool's name or UUID.", shell_complete=complete_pool)


pool_arguments = argument("names", nargs=-1, metavar="POOL", help="Names or UUIDs.", shell_complete=complete_pool)
limit_option = click.option(
    "--limit",
    type=click.IntRange(min=1),
    default=LIMIT,
    show_default=True,
    metavar="N",
    help="How many pools at a time.",
)
volume_argument = argument("volume", metavar="VOLUME", help="A name, a key or a path.", shell_complete=complete_volume)
pool_option = click.option("--pool", metavar="POOL", help="Where to look for a name.", shell_complete=complete_pool)
force_option = click.option("--force", is_flag=True, help="Even if other volumes are backed by it.")
