"""Keep a download from overwriting volumes of active pools, and the files that those are made of."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from astore.cli.exits import CliError, shell_word
from astore.errors import printable

if TYPE_CHECKING:
    from astore.model import Snapshot
    from astore.pools.pool import Pool


class Replacing:
    """The check of a file that is to be overwritten, by what the last refreshes found.

    :param pools: the active pools.
    """

    def __init__(self, pools: Sequence[Pool]) -> None:
        self._pools = [(pool.name, pool.snapshot) for pool in pools]

    def check(self, path: str, found: os.stat_result) -> None:
        """Refuse a volume. Blocks. :param path: of the file, with links resolved. :raises CliError: it is one."""
        for pool, snapshot in self._pools:
            if (name := _volume_at(snapshot, path, found)) is not None:
                raise CliError(
                    f"{path} is volume {printable(name)!r} of pool {printable(pool)!r}: name another file, "
                    f"or `astore vol delete {shell_word(f'{pool}/{name}')}` first"
                )
            if (name := _volume_above(snapshot, path, found)) is not None:
                raise CliError(
                    f"{path} has data of volume {printable(name)!r} of pool {printable(pool)!r}: name another file"
                )


def _volume_at(snapshot: Snapshot, path: str, found: os.stat_result) -> str | None:
    """Return the name of the volume that a file is. Every file in a pool's folder is one, whether it was seen or not."""
    folder, name = os.path.split(path)
    if snapshot.folder is not None and snapshot.folder.path == folder:
        return name
    for info in snapshot.volumes:
        if info.path == path or (info.identity == (found.st_dev, found.st_ino) and _is_still(info.path, found)):
            return info.name
    return None


def _volume_above(snapshot: Snapshot, path: str, found: os.stat_result) -> str | None:
    """Return the name of a volume whose header names a file."""
    for info in snapshot.volumes:
        for place in (one.place for one in info.references if one.place is not None):
            if place.path == path or (place.identity == (found.st_dev, found.st_ino) and _is_still(place.path, found)):
                return info.name
    return None


def _is_still(path: str, found: os.stat_result) -> bool:
    """Return whether a path leads to a file: the inode of one that was removed may be another file's by now."""
    with suppress(OSError):
        return os.path.samestat(os.stat(path), found)
    return False
