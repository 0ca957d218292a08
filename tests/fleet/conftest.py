"""Private NATS servers for the tests of fleets; each test has a fleet of its own on them."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Iterator

import pytest

from astore_fleet import Fleet
from beds.nats import NatsBed, missing


@pytest.fixture(scope="session")
def one_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsBed]:
    """One server, shared by the session."""
    if reason := missing():
        pytest.fail(reason)
    with NatsBed(tmp_path_factory.mktemp("nats")) as bed:
        yield bed


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsBed]:
    """A cluster of three, shared by the session; tests that stop servers have their own."""
    if reason := missing():
        pytest.fail(reason)
    with NatsBed(tmp_path_factory.mktemp("nats-cluster"), 3) as bed:
        yield bed


_numbers = itertools.count(1)


@pytest.fixture
def fleet_name() -> str:
    """The name of a fleet that no other test has."""
    return f"t{next(_numbers)}"


@pytest.fixture
async def fleet(one_server: NatsBed, fleet_name: str) -> AsyncIterator[Fleet]:
    """A client of a new fleet that is no host."""
    async with await Fleet.connect(one_server.url, fleet_name, host="client") as fleet:
        yield fleet
