"""Access: how a client of a fleet is let in by the NATS servers."""

from __future__ import annotations

from typing import Any

import msgspec


class Access(msgspec.Struct, frozen=True, kw_only=True):
    """How to be let in: one of user and password, a token, a file of credentials, or an nkey's seed; and TLS.

    :ivar tls: an ``ssl.SSLContext``.
    """

    user: str | None = None
    password: str | None = None
    token: str | None = None
    credentials: str | None = None
    nkey_seed: str | None = None
    tls: Any = None

    def options(self) -> dict[str, Any]:
        """Return the client's options."""
        found = {
            "user": self.user,
            "password": self.password,
            "token": self.token,
            "user_credentials": self.credentials,
            "nkeys_seed_str": self.nkey_seed,
            "tls": self.tls,
        }
        return {name: value for name, value in found.items() if value is not None}
