"""Access: how a client of a fleet is let in by the NATS servers."""

from __future__ import annotations

import re
from typing import Any

import msgspec

from astore.errors import DefinitionError

_SUBJECT = re.compile(r"[\w-]+(\.[\w-]+)*", re.ASCII)


class Access(msgspec.Struct, frozen=True, kw_only=True):
    """How to be let in: one of user and password, a token, a file of credentials, or an nkey's seed; and TLS.

    :ivar tls: an ``ssl.SSLContext``.
    :ivar inbox_prefix: what the subjects of answers begin with, so that the servers can keep users from each other's answers;
        ``_INBOX.USER`` by default, or ``_INBOX`` where no user is named.
    :raises DefinitionError: ``inbox_prefix`` is no subject.
    """

    user: str | None = None
    password: str | None = None
    token: str | None = None
    credentials: str | None = None
    nkey_seed: str | None = None
    tls: Any = None
    inbox_prefix: str | None = None

    def __post_init__(self) -> None:
        if self.inbox_prefix is not None and not _SUBJECT.fullmatch(self.inbox_prefix):
            raise DefinitionError(
                f"answers cannot begin with {self.inbox_prefix!r}: say words with points between them"
            )

    def options(self) -> dict[str, Any]:
        """Return the client's options."""
        found = {
            "user": self.user,
            "password": self.password,
            "token": self.token,
            "user_credentials": self.credentials,
            "nkeys_seed_str": self.nkey_seed,
            "tls": self.tls,
            "inbox_prefix": self.inbox_prefix or self._own_prefix(),
        }
        return {name: value for name, value in found.items() if value is not None}

    def _own_prefix(self) -> str | None:
        """Return the prefix of the user; None if there is no user, or its name cannot be a part of a subject."""
        one_word = self.user and "." not in self.user and _SUBJECT.fullmatch(self.user)
        return f"_INBOX.{self.user}" if one_word else None
