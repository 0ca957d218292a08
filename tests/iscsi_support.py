"""What the tests of iSCSI share: definitions of pools on the targets of a bed, and a password."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from astore.model import Device, Host, PoolDef, Source
from astore.model.secrets import SecretName
from astore.pools.pool import Pool
from beds.iscsi import ADDRESS, Target

MIB = 1 << 20
INITIATOR = "iqn.2026-01.test.astore:tests"
TIMEOUT = 6.0

NewPool = Callable[..., Awaitable[Pool]]


class Passwords:
    """The caller's secrets: one password for all."""

    password = b"correct horse"

    async def value(self, name: SecretName) -> bytes | None:
        return self.password


def definition_of(target: Target, name: str = "luns", **source: Any) -> PoolDef:
    """The definition of a pool on a target, at all ports of its bed."""
    given = {
        "hosts": tuple(Host(ADDRESS, port) for port in target.bed.ports),
        "devices": (Device(target.iqn),),
        "initiator": INITIATOR,
    }
    return PoolDef("iscsi-direct", name, source=Source(**{**given, **source}))
