"""What the rbd tests share: a namespace of their own each, a Manager that has its secret, and another client."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import astore
from tests.rbd.clients import OtherClient, definition_of, secrets_of

if TYPE_CHECKING:
    from beds.ceph import CephBed

_numbers = itertools.count(1)


@pytest.fixture(scope="module")
def ceph_without_keys(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CephBed]:
    """A cluster that asks no client for a key."""
    from beds.ceph import CephBed

    with CephBed(tmp_path_factory.mktemp("open-ceph"), keys=False) as bed:
        yield bed


@pytest.fixture
def where(ceph: CephBed, ceph_pool: str) -> str:
    """The name POOL/NAMESPACE of an empty namespace."""
    name = f"{ceph_pool}/test{next(_numbers)}"
    ceph.rbd("namespace", "create", name)
    return name


@pytest.fixture
def other(ceph: CephBed, where: str) -> Iterator[OtherClient]:
    """Another client of the namespace."""
    client = OtherClient(ceph, where)
    yield client
    client.close()


@pytest.fixture
async def manager(tmp_path: Path, ceph: CephBed) -> AsyncIterator[astore.Manager]:
    """A Manager with the cluster's key."""
    async with astore.Manager(tmp_path / "state", secrets=secrets_of(ceph)) as manager:
        yield manager
        for pool in manager.pools(active=True):
            await pool.stop()


@pytest.fixture
async def pool(manager: astore.Manager, ceph: CephBed, where: str) -> astore.Pool:
    """A started pool on the namespace."""
    pool = await manager.define(definition_of(ceph, where))
    await pool.start()
    return pool
