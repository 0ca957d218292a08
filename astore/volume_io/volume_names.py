"""Check the names of volumes, and make the hidden names of unfinished ones."""

from __future__ import annotations

import errno
import os
import secrets

from astore.errors import DefinitionError, printable
from astore.model import EntryError
from astore.names import check_volume_name

TEMPORARY = ".astore-"
"""The prefix of hidden names, which no listing shows."""

SUFFIX = ".tmp"
"""The suffix of hidden names. A name with the prefix alone is not astore's."""

ATTEMPTS = 16
"""How many hidden names are tried: a file may be removed as a leftover before it is locked, but not that often."""


IN_PROGRESS: set[str] = set()
"""The hidden names of the files that this process is working on. Any thread may add and discard one."""

_process = secrets.token_hex(4)


def _forked() -> None:
    global _process
    _process = secrets.token_hex(4)


os.register_at_fork(after_in_child=_forked)


def new_hidden_name() -> str:
    """Return a new hidden name."""
    return f"{TEMPORARY}{_process}{secrets.token_hex(4)}{SUFFIX}"


def made_here(name: str) -> bool:
    """Return whether a hidden name was made by this process."""
    return name.startswith(f"{TEMPORARY}{_process}")


def is_leftover(name: str) -> bool:
    """Return whether a name is one that astore gives to unfinished volumes."""
    return name.startswith(TEMPORARY) and name.endswith(SUFFIX)


def checked_name(name: str) -> str:
    """Return ``name``. :raises DefinitionError: no volume can have this name."""
    check_volume_name(name)
    if name.startswith(TEMPORARY):
        raise DefinitionError(
            f"names that begin with {TEMPORARY!r} are reserved for unfinished volumes", element="name"
        )
    return name


def wrong_name(name: str) -> EntryError | None:
    """Return the error of an entry whose name no volume can have; None if one can. Call it for names beyond printable ASCII."""
    if any(ord(c) < 32 or c == "\x7f" for c in name):
        return EntryError(printable(name), "its name has control characters", skipped=True)
    try:
        name.encode()
    except UnicodeEncodeError:
        return EntryError(printable(name), "its name is not UTF-8", errno.EILSEQ)
    return None
