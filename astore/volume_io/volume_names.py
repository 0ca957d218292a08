"""Names of volumes: those that storage may have and no volume can, and the hidden ones of volumes in the making."""

from __future__ import annotations

import errno
import secrets

from astore.errors import DefinitionError, printable
from astore.model import EntryError
from astore.names import check_volume_name

TEMPORARY = ".astore-"
"""How hidden names begin; no listing shows them."""

SUFFIX = ".tmp"
"""How hidden names end. What begins like one and ends otherwise is nothing of astore's."""


def new_hidden_name() -> str:
    """A hidden name that nobody has."""
    return f"{TEMPORARY}{secrets.token_hex(8)}{SUFFIX}"


def is_leftover(name: str) -> bool:
    """Whether a name is one that astore gives a volume in the making."""
    return name.startswith(TEMPORARY) and name.endswith(SUFFIX)


def checked_name(name: str) -> str:
    """:raises DefinitionError: no volume can have this name."""
    check_volume_name(name)
    if name.startswith(TEMPORARY):
        raise DefinitionError(f"names that begin with {TEMPORARY!r} are those of volumes in the making", element="name")
    return name


def wrong_name(name: str) -> EntryError | None:
    """The error of an entry whose name, which is not of printable ASCII alone, no volume can have; None if one can."""
    if any(ord(c) < 32 or c == "\x7f" for c in name):
        return EntryError(printable(name), "its name has control characters", skipped=True)
    try:
        name.encode()
    except UnicodeEncodeError:
        return EntryError(printable(name), "its name is not UTF-8", errno.EILSEQ)
    return None
