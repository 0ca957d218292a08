"""NatsStore passes the suite for stores, on one server and on a cluster of three."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest

from astore.store.contract import KeepsSnapshots, Leases, Store, WatchesStore
from astore.testing.stores import StoreConformance
from astore_fleet import NatsStore
from astore_fleet.names import Names
from beds.nats import NatsBed

WRITE = """
import asyncio, sys, nats
async def main():
    client = await nats.connect(sys.argv[1].split(","))
    await client.request(sys.argv[2], b"<pool", timeout=10)
    await client.close()
asyncio.run(main())
"""


class NatsStoreConformance(StoreConformance):
    """The suite, with a fleet for each place."""

    bed: NatsBed

    @staticmethod
    def fleet_at(place: Path) -> str:
        """The name of a fleet."""
        return hashlib.sha256(str(place).encode()).hexdigest()[:12]

    async def make_store(self, place: Path) -> Store:
        """Each client has a connection of its own."""
        store = NatsStore(self.bed.url, self.fleet_at(place), host="one")
        assert isinstance(store, KeepsSnapshots)
        assert isinstance(store, WatchesStore)
        assert isinstance(store, Leases)
        return store

    def damage(self, place: Path, name: str) -> bool:
        """Write half a document, as anybody may."""
        subject = Names(self.fleet_at(place)).definition(name)
        subprocess.run([sys.executable, "-c", WRITE, self.bed.url, subject], check=True)
        return True


class TestOnOneServer(NatsStoreConformance):
    """One server."""

    @pytest.fixture(autouse=True)
    def _server(self, one_server: NatsBed) -> None:
        self.bed = one_server


class TestOnACluster(NatsStoreConformance):
    """Three servers, three replicas."""

    @pytest.fixture(autouse=True)
    def _server(self, cluster: NatsBed) -> None:
        self.bed = cluster
