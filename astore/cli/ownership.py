"""The mode, owner and group of a new volume."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from astore.cli.exits import CliError, Exit
from astore.cli.session import Session
from astore.errors import printable

if TYPE_CHECKING:
    from astore.model import Permissions


async def permissions_for(
    session: Session, pool: str, mode: str | None, owner: str | None, group: str | None
) -> Permissions | None:
    """Return the permissions of a new volume. None leaves them to the pool's backend.

    The defaults of owner and group are those of the pool's ``<permissions>``, if this user may give files away. virsh has no
    such defaults, so they do not apply under its names.

    :param mode: in octal. :param owner: the name or number of a user. :param group: the name or number of a group.
    :raises CliError: one of them is wrong.
    """
    from anyio import to_thread

    from astore.model import Permissions

    of_pool = session.pool(pool).definition.target.permissions
    if of_pool is None or session.settings.virsh or os.geteuid() != 0:
        of_pool = Permissions()
    user = of_pool.owner if owner is None else await to_thread.run_sync(_user, owner)
    team = of_pool.group if group is None else await to_thread.run_sync(_group, group)
    found = Permissions(None if mode is None else _mode(mode), user, team)
    return None if found == Permissions() else found


def _mode(text: str) -> int:
    if not (text.isdigit() and set(text) <= set("01234567") and int(text, 8) <= 0o777):
        raise CliError(f"--mode {printable(text)!r} is no octal number up to 0777", Exit.USAGE)
    return int(text, 8)


def _number(text: str) -> int:
    """Return a user's or group's number. :raises ValueError: none can have it; the largest means "as it was" (chown(2))."""
    number = int(text)
    if number >= 0xFFFFFFFF:
        raise ValueError(text)
    return number


def _user(text: str) -> int:
    import pwd

    try:
        return _number(text) if text.isdecimal() else pwd.getpwnam(text).pw_uid
    except (KeyError, ValueError):
        raise CliError(f"--owner {printable(text)!r}: there is no such user", Exit.USAGE) from None


def _group(text: str) -> int:
    import grp

    try:
        return _number(text) if text.isdecimal() else grp.getgrnam(text).gr_gid
    except (KeyError, ValueError):
        raise CliError(f"--group {printable(text)!r}: there is no such group", Exit.USAGE) from None
