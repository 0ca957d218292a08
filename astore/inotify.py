"""Instance: inotify(7) by the package asyncinotify, with a quick way to read its notices."""

from __future__ import annotations

import os
import struct
from typing import NamedTuple

from asyncinotify import Inotify, Mask

HEAD = struct.Struct("=iIII")
"""``struct inotify_event``: the watch's descriptor, the mask, a cookie, and the length of the name that follows."""

LONGEST = HEAD.size + 256
"""The longest notice: its name has NAME_MAX bytes and a zero."""

ROOM = 4096
"""Bytes read at once: 128 notices with names of up to 15 bytes."""

# plain numbers: operations on an enumeration take longer than all else that is done for a notice
MODIFY, OVERFLOW, IGNORED = int(Mask.MODIFY), int(Mask.Q_OVERFLOW), int(Mask.IGNORED)
GONE = int(Mask.MOVE_SELF | Mask.DELETE_SELF | Mask.UNMOUNT | Mask.IGNORED)


class Notice(NamedTuple):
    """One notice of the kernel's. ``name`` is in the watched folder; None: the folder itself."""

    descriptor: int
    mask: int
    name: str | None


class Instance(Inotify):
    """An inotify instance, whose reads never wait.

    The package makes several objects of each notice (36 µs). A storm of ten thousand notices a second would keep an event
    loop busy for a third of the time.
    """

    def __init__(self) -> None:
        super().__init__()
        os.set_blocking(self.fd, False)  # InitFlags.NONBLOCK of asyncinotify 4.4 is another flag

    def read(self) -> tuple[list[Notice], bool]:
        """Return some notices, and whether there are no more. Equal ones that follow each other are one."""
        try:
            data = os.read(self.fd, ROOM)
        except BlockingIOError:
            return [], True
        found: list[Notice] = []
        last, at, unpack = b"", 0, HEAD.unpack_from
        while at < len(data):
            descriptor, mask, _, length = unpack(data, at)
            end = at + HEAD.size + length
            if (whole := data[at:end]) != last:
                name = os.fsdecode(data[at + HEAD.size : end].rstrip(b"\0")) if length else None
                found.append(Notice(descriptor, mask, name))
                if mask & IGNORED:
                    self._watches.pop(descriptor, None)
            last, at = whole, end
        return found, len(data) <= ROOM - LONGEST  # the kernel had room for another one, and gave none
