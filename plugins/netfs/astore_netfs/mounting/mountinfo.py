"""Find mounts by their paths, in the text of the kernel's table and nowhere else.

Touching a mount hangs if its server hangs. Reading the kernel's text never does.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable

from astore.mounts import Mount, mounts
from astore.places import MOST_LINKS


def find_mount(target: str, table: Iterable[Mount] | None = None) -> Mount | None:
    """Return the mount that is visible at a path, or None if nothing is mounted there.

    Of several mounts on one path, that is the topmost. A mount that a later mount on a parent covers is not visible.

    :param target: an absolute path without symbolic links.
    :param table: the mounts to search; None: :func:`mounts`.
    """
    found = mounts() if table is None else list(table)
    ids = {mount.id for mount in found}
    on: dict[tuple[int | None, str], Mount] = {}
    for mount in found:
        # the parent of this process's root is a mount that it does not see, or (for the kernel's first) itself
        parent = mount.parent if mount.parent in ids and mount.parent != mount.id else None
        on[parent, mount.target] = mount
    seen: Mount | None = None
    for path in _prefixes(target):
        while (upper := on.pop((None if seen is None else seen.id, path), None)) is not None:
            seen = upper
    return seen if seen is not None and seen.target == _prefixes(target)[-1] else None


def _prefixes(path: str) -> list[str]:
    """Return the paths that lead to a path: ``/``, ``/a`` and ``/a/b`` for ``/a/b``."""
    prefixes = ["/"]
    for part in path.split("/"):
        if part:
            prefixes.append(prefixes[-1].rstrip("/") + "/" + part)
    return prefixes


def locate(target: str) -> tuple[str, Mount | None]:
    """Return a path as mountinfo spells it, and the mount there.

    The path is looked up as it is first. Only if nothing is mounted there, symbolic links are resolved, without
    touching any mount: a mount is not a link, and may hang.
    """
    table = mounts()
    mount = find_mount(target, table)
    if mount is not None:
        return mount.target, mount
    path = _without_links(target, table)
    return path, find_mount(path, table)


def _without_links(path: str, table: list[Mount]) -> str:
    """Resolve links like os.path.realpath(), which would ask a mount's server for the attributes of its root."""
    seen = "/"
    parts = path.split("/")[::-1]
    links = MOST_LINKS
    while parts:
        part = parts.pop()
        if part == "..":
            seen = os.path.dirname(seen)
        elif part not in ("", "."):
            beyond = os.path.join(seen, part)
            link = None
            if find_mount(beyond, table) is None:
                with contextlib.suppress(OSError):  # it is not a link
                    link = os.readlink(beyond)
            if link is None or not links:
                seen = beyond
                continue
            links -= 1
            parts += link.split("/")[::-1]
            if link.startswith("/"):
                seen = "/"
    return seen
