"""NatsStore passes the suite for stores, on one server and on a cluster of three."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest
from nats.aio.msg import Msg

from astore.store.contract import KeepsSnapshots, Leases, Store, WatchesStore
from astore.testing.stores import StoreConformance
from astore_fleet import Fleet, NatsStore
from astore_fleet.engine import Engine
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


async def test_a_cluster_that_is_not_complete_yet(
    one_server: NatsBed, fleet_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Streams are made as soon as its servers know each other: what it says before is no failure."""
    wrong = b'{"error": {"code": 400, "err_code": 10005, "description": "no suitable peers for placement"}}'
    answers, ask = [wrong] * 3, Engine.ask

    async def not_yet(self: Engine, subject: str, data: bytes = b"", headers: dict[str, str] | None = None) -> Msg:
        said = await ask(self, subject, data, headers)
        return Msg(self, data=answers.pop()) if "STREAM.CREATE" in subject and answers else said

    monkeypatch.setattr(Engine, "ask", not_yet)
    async with await Fleet.connect(one_server.url, fleet_name, host="client") as fleet:
        await fleet.define("<pool type='dir'><name>a</name><target><path>/a</path></target></pool>", hosts=["one"])
        assert [pool.name for pool in fleet.pools()] == ["a"]
    assert not answers
