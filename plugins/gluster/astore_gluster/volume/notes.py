"""The note that astore keeps at files of a Gluster volume: the one that :mod:`astore.volume_io.notes` sees on a mount."""

from __future__ import annotations

import ctypes

from astore.volume_io import notes
from astore_gluster.libgfapi import failure

NOTE = notes.NOTE.encode()

NOTE_ROOM = 64
"""The size of the buffer for a note, in bytes."""


def noted(length: int, room: ctypes.Array[ctypes.c_char]) -> str | None:
    """Return the result of a call for the note: the format, ``""`` if none is noted, None if notes are not supported.

    :raises OSError: the volume does not answer.
    """
    if length >= 0:
        return "raw" if room.raw[:length] == b"raw" else ""
    if ctypes.get_errno() in notes.NOT_NOTED:
        return ""
    if ctypes.get_errno() in notes.NO_NOTES:
        return None
    raise failure()
