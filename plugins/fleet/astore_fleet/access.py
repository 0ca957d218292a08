"""Access: how a client of a fleet is let in by the NATS servers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

import msgspec

from astore.errors import DefinitionError

_SUBJECT = re.compile(r"[\w-]+(\.[\w-]+)*", re.ASCII)


class Access(msgspec.Struct, frozen=True, kw_only=True):
    """How to be let in: one of user and password, a token, a file of credentials, or an nkey's seed; and TLS.

    :ivar tls: an ``ssl.SSLContext``.
    :ivar inbox_prefix: what the subjects of answers begin with, so that the servers can keep users from each other's answers;
        ``_INBOX.USER`` by default (the user may stand in the URL), or ``_INBOX`` where no user is named.
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

    def options(self, servers: Sequence[str] = ()) -> dict[str, Any]:
        """Return the client's options. :param servers: URLs, which may name a user, with a password."""
        found = {
            "user": self.user,
            "password": self.password,
            "token": self.token,
            "user_credentials": self.credentials,
            "nkeys_seed_str": self.nkey_seed,
            "tls": self.tls,
            "inbox_prefix": self.inbox_prefix or self._own_prefix(servers),
        }
        return {name: value for name, value in found.items() if value is not None}

    def _own_prefix(self, servers: Sequence[str]) -> str | None:
        """Return the prefix of the user; None if there is no user, or its name cannot be a part of a subject."""
        user = self.user or self._user_of(servers)
        one_word = user and "." not in user and _SUBJECT.fullmatch(user)
        return f"_INBOX.{user}" if one_word else None

    def _user_of(self, servers: Sequence[str]) -> str | None:
        """Return the user that URLs name; None if there is none, or nats-py does not use it. (Alone it is a token.)"""
        if self.token or self.credentials or self.nkey_seed:
            return None
        urls = [urlsplit(one if "://" in one else f"nats://{one}") for one in servers]
        return next((one.username for one in urls if one.username and one.password), None)
