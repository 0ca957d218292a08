"""Secrets for the tests of a backend."""

from __future__ import annotations

from collections.abc import Mapping

from astore.backend import Secrets
from astore.model import SecretName


class GivenSecrets(Secrets):
    """The secrets of a test, for ``Manager(secrets=…)``, ``Context(secrets=…)`` and the conformance suite's ``secrets``.

    :ivar asked: the names that were asked for, in order.
    :param values: by usage name or uuid, the values.
    """

    def __init__(self, values: Mapping[str, bytes]) -> None:
        self._values = dict(values)
        self.asked: list[SecretName] = []

    async def value(self, name: SecretName) -> bytes | None:
        """Return the value of a secret; None if none was given."""
        self.asked.append(name)
        return self._values.get(name.uuid or name.usage or "")
