"""The file with a password for mount.cifs(8): private, and removed when the mount command has ended.

It is in a :class:`~astore.volume_io.private_folder.PrivateFolder`: the next one that is made removes those of killed processes.
"""

from __future__ import annotations

import os
import tempfile

from astore.errors import StorageError
from astore.volume_io.private_folder import PrivateFolder

PLACE = "/run"
"""The folder for root's files: it is in memory."""

NAME = "credentials"


class CredentialsFile:
    """A new file of mode 0600 in a new folder of mode 0700. Blocks.

    :ivar path: the file's path.
    :raises OSError: it cannot be created.
    """

    def __init__(self, text: bytes) -> None:
        self._folder = PrivateFolder(place=_place())
        self.path: str = os.path.join(self._folder.path, NAME)
        try:
            fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            with open(fd, "wb") as file:
                file.write(text)
        except BaseException:
            self.remove()
            raise

    def remove(self) -> None:
        """Remove the file and its folder. May be called twice. Never raises."""
        self._folder.remove()


def _place() -> str:
    place = PLACE if os.access(PLACE, os.W_OK | os.X_OK) else tempfile.gettempdir()
    if "," in place:
        raise StorageError(f"the folder for temporary files, {place}, has a comma, which a mount option cannot have")
    return place
