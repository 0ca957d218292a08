"""The secrets that a Manager looks into unless it was given others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from astore.backend import Lane, Secrets
from astore.model import SecretName


class KeptSecrets(Secrets):
    """systemd's credentials, then the files of a state folder.

    :param state_dir: None: there is no state folder. :param lane: returns the threads to read them on.
    """

    def __init__(self, state_dir: Path | None, lane: Callable[[], Lane]) -> None:
        self._state_dir = state_dir
        self._lane = lane

    async def value(self, name: SecretName) -> bytes | None:
        """Return the value of a secret; None if neither has one.

        :raises StoreError: a file cannot be read, or other users can read it. DefinitionError: a credential is no value.
        """
        return await self._lane().run(self._value, name)

    def _value(self, name: SecretName) -> bytes | None:
        from astore.secrets.credentials import SystemdCredentials  # here, because most Managers are asked for no secret
        from astore.secrets.files import SecretFiles

        found = SystemdCredentials().value(name)
        return found if found is not None or self._state_dir is None else SecretFiles(self._state_dir).value(name)
