"""Arguments and options that several commands share."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import Any, TypeVar

import click

from astore.cli.command_line import Number, Whole, argument, option
from astore.cli.completion import complete_format, complete_pool, complete_volume

F = TypeVar("F", bound=Callable[..., Any])

LIMIT = 16
"""The default number of pools to work on at a time."""


def pool_argument(name: str) -> Callable[[F], F]:
    """Add an argument that names a pool. :param name: the parameter that takes it."""
    return argument(name, metavar="POOL", help="A pool's name or UUID.", shell_complete=complete_pool)


pool_arguments = argument("names", nargs=-1, metavar="POOL", help="Names or UUIDs.", shell_complete=complete_pool)
limit_option = option(
    "--limit",
    type=Whole(min=1),
    default=LIMIT,
    show_default=True,
    metavar="N",
    help="How many pools at a time.",
)
volume_argument = argument("volume", metavar="VOLUME", help="A name, a key or a path.", shell_complete=complete_volume)
pool_option = option("--pool", metavar="POOL", help="Where to look for a name.", shell_complete=complete_pool)
backing_format_option = option(
    "--backing-vol-format",
    "backing_format",
    metavar="FORMAT",
    help="Its format, if no pool knows it.",
    shell_complete=complete_format,
)
force_option = option("--force", is_flag=True, help="Even if other volumes are backed by it.")
duration_option = option("--for", "duration", type=Number(min=0), metavar="SECONDS", help="End after this time.")

_SECONDS = {"s": 1, "sec": 1, "second": 1, "min": 60, "minute": 60, "h": 3600, "hour": 3600, "d": 86400, "day": 86400}
_SECONDS |= {"week": 7 * 86400}
"""The units of a time that has passed, also in the plural."""


def point_in_time(context: click.Context, option: click.Parameter, text: str | None) -> float | None:
    """Return seconds since the epoch for ``10 min`` (ago) or a date, perhaps with a time, in ISO 8601.

    This is the callback of an option. :raises click.BadParameter: it is neither, or is in the future.
    """
    if text is None:
        return None
    now = time.time()
    ago = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?) ?([a-z]+?)s?(?: ago)?", text.strip())
    if ago is not None and ago[2] in _SECONDS:
        return now - float(ago[1]) * _SECONDS[ago[2]]
    from datetime import datetime

    try:
        found = datetime.fromisoformat(text.strip()).timestamp()
    except (ValueError, OverflowError, OSError):
        raise click.BadParameter(f"{text!r} is no time: say '10 min', '2 hours' or '2026-01-31 12:00'") from None
    if found > now:
        raise click.BadParameter(f"{text!r} is in the future")
    return found
