"""Managers of several hosts on one fleet: what one does, the others know; old servers and absent ones are told in words."""

from __future__ import annotations

import asyncio
import errno
import time
from pathlib import Path

import pytest
from core_fakes import eventually
from fleet_history import UNCLOSED

import astore
from astore.errors import DefinitionError, StoreError
from astore_fleet import Access, NatsStore
from beds.nats import NatsBed

POOL = "<pool type='dir'><name>{name}</name><target><path>{path}</path></target></pool>"


async def test_a_definition_is_an_event_elsewhere_within_a_second(
    cluster: NatsBed, fleet_name: str, tmp_path: Path
) -> None:
    """A watched Manager tells of what another host defines, redefines and undefines."""
    async with (
        astore.Manager(store=await NatsStore.connect(cluster.url, fleet_name, host="a")) as one,
        astore.Manager(store=await NatsStore.connect(cluster.url, fleet_name, host="b")) as two,
        two.watch(),
        two.events(kinds=[astore.PoolDefined, astore.PoolUndefined]) as events,
    ):
        delays = []
        for number in range(10):
            pool = await one.define(POOL.format(name=f"p{number}", path=tmp_path / str(number)))
            began = time.monotonic()
            event = await anext(events)
            delays.append(time.monotonic() - began)
            assert isinstance(event, astore.PoolDefined)
            assert event.pool == pool.name
            assert two.pool(pool.name).definition == pool.definition
        assert sorted(delays)[len(delays) // 2] < 1.0
        await one.pool("p3").undefine()
        assert isinstance(await anext(events), astore.PoolUndefined)
        assert [pool.name for pool in two.pools()] == [pool.name for pool in one.pools()]


async def test_a_run_is_one_hosts(one_server: NatsBed, fleet_name: str, tmp_path: Path) -> None:
    """A pool that one host started is active on it alone, and for all of its processes, with its snapshot."""
    (tmp_path / "a.img").write_bytes(b"x" * 512)
    connect = NatsStore.connect
    async with astore.Manager(store=await connect(one_server.url, fleet_name, host="a")) as one:
        pool = await one.define(POOL.format(name="images", path=tmp_path))
        await pool.start()
        async with astore.Manager(store=await connect(one_server.url, fleet_name, host="b")) as other:
            assert not other.pool("images").active
    async with astore.Manager(store=await connect(one_server.url, fleet_name, host="a")) as again:
        assert again.pool("images").active
        assert [volume.name for volume in again.pool("images").volumes] == ["a.img"]
        await again.pool("images").stop()


async def test_an_old_server_is_refused_in_words() -> None:
    """A server older than 2.11 is not used."""

    async def old(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b'INFO {"server_id":"x","version":"2.9.10","proto":1,"headers":true,"max_payload":1048576}\r\n')
        while line := await reader.readline():
            if line.startswith(b"PING"):
                writer.write(b"PONG\r\n")
        writer.close()

    server = await asyncio.start_server(old, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(StoreError, match=r"version 2\.9\.10; a fleet needs 2\.11 or later") as caught:
            await NatsStore.connect(f"nats://127.0.0.1:{port}", "prod")
        assert caught.value.errno == errno.EPROTONOSUPPORT


async def test_no_server_is_told_in_words(tmp_path: Path) -> None:
    """A server that is not there, or a name that cannot be one, is an error at once."""
    with pytest.raises(StoreError, match="no connection"):
        await NatsStore.connect("nats://127.0.0.1:1", "prod")
    with pytest.raises(DefinitionError, match="cannot be a fleet's name"):
        await NatsStore.connect("nats://127.0.0.1:1", "a.b")


async def test_a_wrong_password_is_told_in_words(tmp_path: Path) -> None:
    """Whoever is not let in learns why."""
    with NatsBed(tmp_path, more='authorization { user: "astore", password: "right" }') as bed:
        # the server says why, and closes: the reason may be lost
        with pytest.raises(StoreError, match=r"(?i)authorization|refused the login"):
            await NatsStore.connect(bed.url, "prod", access=Access(user="astore", password="wrong"))
        store = await NatsStore.connect(bed.url, "prod", access=Access(user="astore", password="right"))
        await store.aclose()


@UNCLOSED
async def test_pools_go_on_without_a_server(fleet_name: str, tmp_path: Path) -> None:
    """While the server is gone, pools refresh and definitions are refused soon; when it is back, all goes on."""
    images = tmp_path / "images"
    images.mkdir()
    with NatsBed(tmp_path / "nats") as bed:
        store = await NatsStore.connect(bed.url, fleet_name, host="a")
        async with (
            astore.Manager(store=store) as one,
            astore.Manager(store=await NatsStore.connect(bed.url, fleet_name, host="b")) as two,
            two.watch(),
        ):
            pool = await one.define(POOL.format(name="images", path=images))
            await pool.start()
            await eventually(lambda: two.pools(), "the definition")
            bed.servers[0].end(kill=True)
            (images / "a.img").write_bytes(b"x")
            assert (await pool.refresh()).added == ("a.img",)
            began = time.monotonic()
            with pytest.raises(StoreError):
                await one.define(POOL.format(name="other", path=tmp_path / "other"))
            assert time.monotonic() - began < 15
            bed.servers[0].start()
            await eventually(lambda: store.engine.connected, "the connection")
            await one.define(POOL.format(name="other", path=tmp_path / "other"))
            await eventually(lambda: len(two.pools()) == 2, "the other definition")
            await pool.stop()


async def test_two_fleets_share_a_server(one_server: NatsBed, fleet_name: str, tmp_path: Path) -> None:
    """Fleets of other names have nothing in common."""
    connect = NatsStore.connect
    async with (
        astore.Manager(store=await connect(one_server.url, fleet_name)) as one,
        astore.Manager(store=await connect(one_server.url, f"{fleet_name}-x")) as other,
    ):
        await one.define(POOL.format(name="images", path=tmp_path))
        await other.reload()
        assert other.pools() == []
