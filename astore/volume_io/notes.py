"""Notes at files: an extended attribute says that a volume was made raw."""

from __future__ import annotations

import errno
import os

NOTE = "user.astore.format"
"""The extended attribute with the format of a volume that was made raw (xattr(7))."""

NO_NOTES = frozenset({errno.EOPNOTSUPP, errno.ENOSYS, errno.EPERM, errno.EACCES})
"""Errors of file systems that keep no notes, or none of this user's."""

NOT_NOTED = frozenset({errno.ENODATA, errno.ERANGE})
"""The errors of a file without a note, or with another one."""


def noted_format(fd: int) -> str | None:
    """Return the format that is noted at an open file, ``""`` if none is; None: the file system keeps no notes."""
    try:
        return "raw" if os.getxattr(fd, NOTE) == b"raw" else ""
    except OSError as error:
        if error.errno in NOT_NOTED:
            return ""
        if error.errno in NO_NOTES:
            return None
        raise


def note_format(fd: int, format: str | None) -> bool:
    """Note the format that an open file was made in, or remove the note (None); False: no notes are kept."""
    try:
        if format is not None:
            os.setxattr(fd, NOTE, format.encode())
        else:
            os.removexattr(fd, NOTE)
    except OSError as error:
        if error.errno == errno.ENODATA:
            return True
        if error.errno in NO_NOTES or error.errno in (errno.ENOSPC, errno.EDQUOT):
            return False
        raise
    return True
