"""Secrets that systemd gives a service: files in ``$CREDENTIALS_DIRECTORY`` (systemd.exec(5), ``LoadCredential=``)."""

from __future__ import annotations

import os
import re
from pathlib import Path

from astore.model import SecretName
from astore.secrets.private_files import opened_folder, read_private
from astore.secrets.values import LARGEST_VALUE, value_from_text

_HIDDEN = 0o027
"""What others may not do. Where systemd grants a service's user access by an access control list, a mode has its mask in the
place of the group's permissions (acl(5))."""


def credential_name(name: SecretName) -> str:
    """Return the name of the credential that has a secret: ``astore.UUID``, or ``astore.TYPE.USAGE``.

    A byte of the usage that is no letter, digit, ``.``, ``_`` or ``-`` is written ``=XX``, in hexadecimal digits.
    """
    if name.uuid is not None:
        return f"astore.{name.uuid}"
    plain = (name.usage or "").encode("utf-8", "surrogatepass")
    return f"astore.{name.type}." + re.sub(rb"[^A-Za-z0-9._-]", lambda found: b"=%02X" % found[0][0], plain).decode()


class SystemdCredentials:
    """The credentials of this service.

    :param folder: where they are; None means ``$CREDENTIALS_DIRECTORY``, if it is set.
    """

    def __init__(self, folder: str | os.PathLike[str] | None = None) -> None:
        found = folder if folder is not None else os.environ.get("CREDENTIALS_DIRECTORY")
        self.folder: Path | None = Path(found) if found else None

    def value(self, name: SecretName) -> bytes | None:
        """Return the value of a secret; None if there is no such credential. Blocks.

        :raises StoreError: it cannot be read, or other users can read it. DefinitionError: it is no value of this usage.
        """
        file = credential_name(name)
        if self.folder is None or len(file) > os.pathconf("/", "PC_NAME_MAX"):
            return None
        with opened_folder(self.folder, hidden=_HIDDEN) as folder:
            if folder is None:
                return None
            text = read_private(folder, file, self.folder / file, 2 * LARGEST_VALUE, hidden=_HIDDEN)
        return None if text is None else value_from_text(text, name.type)
