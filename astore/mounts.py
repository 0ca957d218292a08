"""Read the mounts that this process sees from the text of ``/proc/self/mountinfo`` (proc(5)).

Touching a mount hangs if its server hangs. Reading the kernel's text never does.
"""

from __future__ import annotations

import os
import re
from typing import NamedTuple

MOUNTINFO = "/proc/self/mountinfo"

_ESCAPE = re.compile(rb"\\([0-7]{3})")


class Mount(NamedTuple):
    """One line of mountinfo, unescaped.

    :ivar id: the mount's number. :ivar parent: the number of the mount below it. :ivar major, minor: its device.
    :ivar root: the folder of the file system that is visible. :ivar target: where it is mounted.
    :ivar options: the mount's options. :ivar fstype: with its sub-type, as in ``fuse.glusterfs``. :ivar source: what is
        mounted. :ivar fs_options: the file system's own options.
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
    fs_options: str = ""


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
            _text(b" ".join(fields[dash + 3 :])),
        )
    except (ValueError, IndexError):
        return None


def _text(field: bytes) -> str:
    return os.fsdecode(_ESCAPE.sub(lambda octal: bytes([int(octal[1], 8) & 0xFF]), field))


def mount_id(fd: int) -> int:
    """Return the number of the mount of an open descriptor (``mnt_id`` in /proc/self/fdinfo, proc(5))."""
    with open(f"/proc/self/fdinfo/{fd}", "rb") as file:
        return next(int(line[7:]) for line in file if line.startswith(b"mnt_id:"))
