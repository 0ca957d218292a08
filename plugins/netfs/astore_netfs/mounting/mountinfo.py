"""Find mounts in the text of ``/proc/self/mountinfo`` (proc(5)), and nowhere else.

Touching a mount hangs if its server hangs. Reading the kernel's text never does.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable
from typing import NamedTuple

from astore.places import MOST_LINKS

MOUNTINFO = "/proc/self/mountinfo"

_ESCAPE = re.compile(rb"\\([0-7]{3})")


class Mount(NamedTuple):
    """One line of mountinfo, unescaped.

    :ivar id: the mount's number. :ivar parent: the number of the mount below it. :ivar major, minor: its device.
    :ivar root: the folder of the file system that is visible. :ivar target: where it is mounted.
    :ivar options: the mount's options. :ivar fstype: with its sub-type, as in ``fuse.glusterfs``. :ivar source: what is
        mounted.
    """

    id: int
    parent: int
    major: int
    minor: int
    root: str
    target: str
    options: str
    fstype: str
    source: str


def mounts() -> list[Mount]:
    """Return the mounts that this process sees, in the kernel's order, without touching them."""
    with open(MOUNTINFO, "rb") as file:
        return parse(file.read())


def parse(text: bytes) -> list[Mount]:
    """Return the mounts in a text of mountinfo; malformed lines are skipped."""
    found = []
    for line in text.split(b"\n"):  # not splitlines(): a carriage return is not escaped
        mount = _mount(line.split(b" "))
        if mount is not None:
            found.append(mount)
    return found


def _mount(fields: list[bytes]) -> Mount | None:
    # 36 35 98:0 /root /target rw,noatime [optional fields] - fstype source rw,errors=continue
    try:
        dash = fields.index(b"-", 6)
        major, minor = fields[2].split(b":")
        return Mount(
            int(fields[0]),
            int(fields[1]),
            int(major),
            int(minor),
            _text(fields[3]),
            _text(fields[4]),
            _text(fields[5]),
            _text(fields[dash + 1]),
            _text(fields[dash + 2]),
        )
    except (ValueError, IndexError):
        return None


def _text(field: bytes) -> str:
    return os.fsdecode(_ESCAPE.sub(lambda octal: bytes([int(octal[1], 8) & 0xFF]), field))


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


def mount_id(fd: int) -> int:
    """Return the number of the mount of an open descriptor (``mnt_id`` in /proc/self/fdinfo, proc(5))."""
    with open(f"/proc/self/fdinfo/{fd}", "rb") as file:
        return next(int(line[7:]) for line in file if line.startswith(b"mnt_id:"))
