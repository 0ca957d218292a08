"""The note that astore keeps at files of a Gluster volume, in an extended attribute."""

from __future__ import annotations

import ctypes
import errno

from astore_gluster.libgfapi import failure

NOTE = b"user.astore.format"
"""The extended attribute in which the format of a volume is noted that was made raw, as on a mounted file system."""

NOTE_ROOM = 64
"""The size of the buffer for a note, in bytes."""

NO_NOTES = (errno.EOPNOTSUPP, errno.ENOSYS, errno.EPERM, errno.EACCES)
"""The errors of storage that keeps no extended attributes."""


def noted(length: int, room: ctypes.Array[ctypes.c_char]) -> str | None:
    """Return the result of a call for the note: the format, ``""`` if none is noted, None if notes are not supported.

    :raises OSError: the volume does not answer.
    """
    if length >= 0:
        return "raw" if room.raw[:length] == b"raw" else ""
    if ctypes.get_errno() in (errno.ENODATA, errno.ERANGE):
        return ""
    if ctypes.get_errno() in NO_NOTES:
        return None
    raise failure()
