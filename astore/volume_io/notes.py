"""Notes at files: the format of a volume that was made raw, kept in an extended attribute."""

from __future__ import annotations

import errno
import os

NOTE = "user.astore.format"
"""The extended attribute in which the format of a volume is noted that was made raw (xattr(7))."""

NO_NOTES = frozenset({errno.EOPNOTSUPP, errno.ENOSYS, errno.EPERM, errno.EACCES})
"""What file systems say that keep no notes, or none of ours."""

NOT_NOTED = frozenset({errno.ENODATA, errno.ERANGE})
"""The errors of a file without a note, or with another one."""


def noted_format(fd: int) -> str | None:
    """The format that is noted at an open file, ``""`` if none is; None where the file system keeps no notes."""
    try:
        return "raw" if os.getxattr(fd, NOTE) == b"raw" else ""
    except OSError as error:
        if error.errno in NOT_NOTED:
            return ""
        if error.errno in NO_NOTES:
            return None
        raise


def note_format(fd: int, format: str | None) -> bool:
    """Note at an open file which format it was made in, or (None) take that back; False where no notes are kept."""
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
