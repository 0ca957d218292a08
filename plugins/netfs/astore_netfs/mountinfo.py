"""What is mounted where, from the text of ``/proc/self/mountinfo`` (proc(5)) and from nothing else.

To touch a mount in order to learn about it is to hang with it when its server hangs. The text is the kernel's own and
always there.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from typing import NamedTuple

MOUNTINFO = "/proc/self/mountinfo"

_MAX_LINKS = 40
"""As many as the kernel follows (path_resolution(7))."""

_ESCAPE = re.compile(rb"\\([0-7]{3})")


class Mount(NamedTuple):
    """One line of mountinfo, its escapes undone.

    :ivar id: the mount's number. :ivar parent: that of the mount it is on. :ivar major, minor: of its device.
    :ivar root: the folder of its file system that is seen here. :ivar target: where it is mounted.
    :ivar options: of the mount. :ivar fstype: with its sub-type, as in ``fuse.glusterfs``. :ivar source: what is mounted.
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
    """The mounts that this process sees, in the kernel's order. Does not touch them."""
    with open(MOUNTINFO, "rb") as file:
        return parse(file.read())


def parse(text: bytes) -> list[Mount]:
    """The mounts that a mountinfo text tells of; a line that is none of proc(5)'s is passed over."""
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
    """The mount that is seen at a path, or None where nothing is mounted right there.

    Of several mounts on one path that is the topmost; one that a later mount further up covers is not seen.

    :param target: an absolute path without symbolic links. :param table: mounts to look through, else :func:`mounts`.
    """
    found = mounts() if table is None else list(table)
    ids = {mount.id for mount in found}
    on: dict[tuple[int | None, str], Mount] = {}
    for mount in found:
        # the root of what this process sees is on a mount that it does not see, or (the kernel's first) on itself
        parent = mount.parent if mount.parent in ids and mount.parent != mount.id else None
        on[parent, mount.target] = mount
    seen: Mount | None = None
    for path in _prefixes(target):
        while (upper := on.pop((None if seen is None else seen.id, path), None)) is not None:
            seen = upper
    return seen if seen is not None and seen.target == _prefixes(target)[-1] else None


def _prefixes(path: str) -> list[str]:
    """``/a/b`` is reached by ``/``, ``/a`` and ``/a/b``."""
    prefixes = ["/"]
    for part in path.split("/"):
        if part:
            prefixes.append(prefixes[-1].rstrip("/") + "/" + part)
    return prefixes


def locate(target: str) -> tuple[str, Mount | None]:
    """A path as mountinfo would have it, and what is mounted there.

    The text is asked first, for the path as it is; only if nothing is mounted there are symbolic links resolved, and then
    without touching what the text says is a mount: that is no link, and may hang.
    """
    table = mounts()
    mount = find_mount(target, table)
    if mount is not None:
        return mount.target, mount
    path = _without_links(target, table)
    return path, find_mount(path, table)


def _without_links(path: str, table: list[Mount]) -> str:
    """As os.path.realpath(), which would ask the server of a mount for its root's attributes."""
    seen = "/"
    parts = path.split("/")[::-1]
    links = _MAX_LINKS
    while parts:
        part = parts.pop()
        if part == "..":
            seen = os.path.dirname(seen)
        elif part not in ("", "."):
            beyond = os.path.join(seen, part)
            link = None if find_mount(beyond, table) is not None else _link(beyond)
            if link is None or not links:
                seen = beyond
                continue
            links -= 1
            parts += link.split("/")[::-1]
            if link.startswith("/"):
                seen = "/"
    return seen


def _link(path: str) -> str | None:
    """Where a symbolic link leads; None if it is none, or nothing."""
    try:
        return os.readlink(path)
    except OSError:
        return None


def mount_id(fd: int) -> int:
    """The number of the mount that an open descriptor is on (``mnt_id`` in /proc/self/fdinfo, proc(5))."""
    with open(f"/proc/self/fdinfo/{fd}", "rb") as file:
        return next(int(line[7:]) for line in file if line.startswith(b"mnt_id:"))
