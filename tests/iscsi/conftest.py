"""What the tests of iSCSI share: targets of a private tgtd, and pools on them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from astore.manager import Manager
from astore.model import Device, Host, PoolDef, Source
from astore.model.secrets import SecretName
from astore.pools.pool import Pool
from beds.iscsi import ADDRESS, IscsiBed, Target

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


@pytest.fixture
def target(iscsi: IscsiBed) -> Iterator[Target]:
    """A target without LUNs but its controller."""
    made = iscsi.new_target()
    yield made
    made.delete()


@pytest.fixture
def own_bed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[IscsiBed]:
    """A tgtd of the test's own, to be frozen and killed."""
    import tempfile

    with tempfile.TemporaryDirectory(prefix="astore-iscsi-") as folder, IscsiBed(folder) as bed:
        yield bed


@pytest.fixture
async def manager(tmp_path: Path) -> AsyncIterator[Manager]:
    """A Manager whose calls have little time."""
    async with Manager(tmp_path / "state", call_timeout=TIMEOUT, secrets=Passwords()) as manager:
        yield manager
        for pool in manager.pools(active=True):
            await pool.stop(force=True)


@pytest.fixture
def new_pool(manager: Manager) -> NewPool:
    """A function that defines and starts a pool, with the arguments of ``definition_of``."""

    async def new_pool(target: Target, name: str = "luns", **source: Any) -> Pool:
        pool = await manager.define(definition_of(target, name, **source))
        await pool.start()
        return pool

    return new_pool
