"""The command ``astore fleet``, the examples, and the example configuration of a server."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from asyncio.subprocess import PIPE
from pathlib import Path

import pytest
from core_fakes import eventually
from fleet_support import SECONDS, folder, local, registry

import astore
from astore.errors import StoreError
from astore_fleet import Access, Fleet
from beds.nats import NatsBed

ROOT = Path(__file__).parents[2]


class Command:
    """The command, on one fleet."""

    def __init__(self, url: str, fleet: str) -> None:
        self._environment = os.environ | {"ASTORE_FLEET_URL": url, "ASTORE_FLEET": fleet, "COLUMNS": "200"}

    async def start(self, *argv: str) -> asyncio.subprocess.Process:
        """Start it."""
        return await asyncio.create_subprocess_exec(
            sys.executable, "-m", "astore", "fleet", *argv, env=self._environment, stdout=PIPE, stderr=PIPE
        )

    async def __call__(self, *argv: str, code: int = 0) -> str:
        """Run it to its end; return what it wrote."""
        process = await self.start(*argv)
        out, err = await process.communicate()
        assert process.returncode == code, err.decode()
        return out.decode() or err.decode()


async def test_the_command(one_server: NatsBed, fleet_name: str, tmp_path: Path) -> None:
    """A host comes, a pool is defined, looked at and refreshed, and the host leaves."""
    run = Command(one_server.url, fleet_name)
    document = tmp_path / "images.xml"
    document.write_text(local("images", folder(tmp_path, "images", "a.img")))
    agent = await run.start("--host", "one", "agent", "--label", "disk=ssd", "--lease", str(SECONDS))
    try:
        assert agent.stdout is not None
        assert (await agent.stdout.readline()).decode() == "Host one is there\n"
        assert "Pool images defined" in await run("define", str(document), "--on", "one")
        assert "say on which hosts" in await run("define", str(document), code=1)
        async with await Fleet.connect(one_server.url, fleet_name) as fleet:
            await eventually(lambda: fleet.pool("images").info.volumes == 1, "the snapshot")
        (host,) = json.loads(await run("hosts", "--json"))["hosts"]
        assert host == {"host": "one", "labels": {"disk": "ssd"}, "pools": 1, "drained": False}
        assert "1 pools refreshed" in await run("refresh", "--all")
        assert "a.img" in await run("volumes", "--bigger-than", "10")
        assert json.loads(await run("status", "--json"))["states"] == {"running": 1}
        assert "images  one" in await run("leases")
        assert "which fleet?" in await Command("", fleet_name)("status", code=2)
        assert "there is no pool 'no'" in await run("refresh", "no", code=3)
        await run("drain", "one")
        assert json.loads(await run("hosts", "--json"))["hosts"][0]["drained"]
        await run("undrain", "one")
        agent.send_signal(signal.SIGTERM)
        assert await agent.wait() == 130
        assert json.loads(await run("pools", "--json"))["pools"][0]["state"] == "unreachable"
    finally:
        if agent.returncode is None:
            agent.kill()
        await agent.wait()


async def test_the_examples_run(one_server: NatsBed, fleet_name: str, tmp_path: Path) -> None:
    """A host, and a look at the fleet."""
    argv = [one_server.url, fleet_name]
    host = await asyncio.create_subprocess_exec(
        sys.executable, str(ROOT / "examples/fleet/host.py"), *argv, stdout=PIPE
    )
    try:
        assert host.stdout is not None
        assert b"is there" in await host.stdout.readline()
        look = await asyncio.create_subprocess_exec(sys.executable, str(ROOT / "examples/fleet/look.py"), *argv)
        assert await look.wait() == 0
    finally:
        host.kill()
        await host.wait()


async def test_the_example_configuration(tmp_path: Path) -> None:
    """With the permissions of the example, an agent can do its work, and a reader can look and change nothing."""
    text = (ROOT / "examples/fleet/nats.conf").read_text()
    _, _, users = text.partition("authorization {")
    assert "sync_interval: always" in text
    with NatsBed(tmp_path / "nats", more="authorization {" + users) as bed:
        for user in ("admin", "agent", "reader"):
            access = Access(user=user, password=f"change-me-{user}")
            async with await Fleet.connect(bed.url, "prod", host="one", access=access) as fleet:
                if user == "agent":
                    async with fleet.agent(seconds=SECONDS, registry=registry()):
                        pool = await fleet.define(local("images", folder(tmp_path, "images", "a.img")), hosts=["one"])
                        await eventually(lambda: fleet.pool("images").info.volumes == 1, "the snapshot")
                        await pool.create_volume(astore.VolumeDef(name="b", capacity=1))
                        await pool.delete_volume("b")
                        assert [one.unchanged for one in (await fleet.refresh_all()).pools] == [1]
                elif user == "reader":
                    assert [one.info.name for one in await fleet.volumes()] == ["a.img"]
                    async with fleet.events(since=0) as events:
                        await anext(events)
                    with pytest.raises(StoreError, match=r"(?i)permissions violation"):
                        await fleet.drain("one")


def test_the_core_knows_nothing_of_it() -> None:
    """No line of the core names the engine, and importing astore imports nothing of it."""
    for file in (ROOT / "astore").rglob("*.py"):
        text = file.read_text().lower()
        assert "nats" not in text.replace("alternats", ""), file
        assert "jetstream" not in text, file
