"""The command ``astore fleet``, the examples, and the example configuration of a server."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from core_fakes import eventually
from doc_blocks import blocks, commands
from fleet_support import SECONDS, folder, local, registry

import astore
from astore.cli.app import run
from astore.errors import StoreError
from astore_fleet import Access, Fleet
from astore_fleet.commands.hosts import EXAMPLES
from beds.nats import NatsBed, NatsServer

ROOT = Path(__file__).parents[2]


class Command:
    """The command ``astore``, run in this process with options that name a fleet."""

    def __init__(self, options: Sequence[str], capsys: pytest.CaptureFixture[str]) -> None:
        self._options = options
        self._capsys = capsys

    async def __call__(self, line: str, code: int = 0) -> str:
        """Run a command; return what it has written, to stdout if it has succeeded, else to stderr."""
        done = await asyncio.to_thread(run, [*self._options, *shlex.split(line)])
        out, err = self._capsys.readouterr()
        assert done == code, (line, out, err)
        return out if code == 0 else err

    async def json(self, line: str) -> Any:
        """Run a command, and return its document."""
        return json.loads(await self(f"{line} --json"))


@contextlib.asynccontextmanager
async def agent(bed: NatsBed, fleet: str, host: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """The command ``astore fleet agent`` as a process. It is killed after the block, if it has not ended."""
    argv = ["--url", bed.url, "--name", fleet, "--host", host, "agent", "--label", "disk=ssd", "--lease", str(SECONDS)]
    made = await asyncio.create_subprocess_exec(sys.executable, "-m", "astore", "fleet", *argv, stdout=PIPE)
    assert made.stdout is not None
    try:
        assert (await made.stdout.readline()).decode() == f"host {host!r} is there\n"
        yield made
    finally:
        if made.returncode is None:
            made.kill()
        await made.wait()


@pytest.fixture
def astore_on(one_server: NatsBed, fleet_name: str, capsys: pytest.CaptureFixture[str]) -> Command:
    """The command on the test's fleet: ``astore --fleet URL --fleet-name NAME``."""
    return Command(["--fleet", one_server.url, "--fleet-name", fleet_name], capsys)


@pytest.mark.parametrize(("command", "lines"), EXAMPLES.items(), ids=lambda value: getattr(value, "name", ""))
def test_help_shows_two_examples(capsys: pytest.CaptureFixture[str], command: Any, lines: tuple[str, str]) -> None:
    """Each line is one that can be typed: with --help it says what its command does, and shows itself."""
    for line in lines:
        assert run([*shlex.split(line)[1:], "--help"]) == 0
        out, err = capsys.readouterr()
        assert (command.help.splitlines()[0] in " ".join(out.split()), f"  {line}\n" in out, err) == (True, True, "")


async def test_pools_and_volumes_from_afar(
    one_server: NatsBed, fleet_name: str, tmp_path: Path, astore_on: Command
) -> None:
    """With --fleet, pools and volumes are listed and worked on wherever they live."""
    document = tmp_path / "images.xml"
    document.write_text(local("images", folder(tmp_path, "images", "a.img")))
    async with agent(one_server, fleet_name, "one") as host:
        assert "pool 'images' defined from" in await astore_on(f"pool define {document} --on one")
        assert "say on which hosts" in await astore_on(f"pool define {document}", code=1)
        async with await Fleet.connect(one_server.url, fleet_name) as fleet:
            await eventually(lambda: fleet.pool("images").info.volumes == 1, "the snapshot")
            await _work_on_pools(astore_on)
            await _work_on_volumes(astore_on, fleet)
        await _look_at_hosts(astore_on)
        host.send_signal(signal.SIGTERM)
        assert await host.wait() == 130
        (unreachable,) = (await astore_on.json("pool list"))["pools"]
        assert (unreachable["state"], unreachable["active"], unreachable["host"]) == ("unreachable", False, "one")
        assert "is unreachable: host 'one' is not there" in await astore_on("pool refresh images", code=1)
        assert await astore_on("pool undefine images") == "pool 'images' undefined\n"
        assert await astore_on("pool list --all --name") == ""


async def _work_on_pools(astore_on: Command) -> None:
    listed = (await astore_on("pool list")).splitlines()
    assert [line.split()[:5] for line in listed] == [
        ["Name", "Type", "State", "Host", "Autostart"],
        ["images", "dir", "running", "one", "yes"],
    ]
    assert await astore_on("pool list --name --host one") == "images\n"
    assert await astore_on("pool list --name --inactive") == ""
    (pool,) = (await astore_on.json("pool list"))["pools"]
    assert f" {pool['capacity']} " in await astore_on("pool list --bytes")
    info = await astore_on.json(f"pool info {pool['uuid']}")
    assert (info["pool"]["name"], info["pool"]["volumes"], info["pool"]["host"]) == ("images", 1, "one")
    assert "May run on:" in await astore_on("pool info images")
    assert "<name>images</name>" in await astore_on("pool dumpxml images")
    assert [one["unchanged"] for one in (await astore_on.json("pool refresh --all"))["pools"]] == [1]
    assert "there is no pool 'no'" in await astore_on("pool refresh no", code=3)
    assert "name the pools, or say --all" in await astore_on("pool stop", code=2)
    assert await astore_on("pool stop images") == "pool 'images' stopped\n"
    assert "is inactive" in await astore_on("pool refresh images", code=1)
    assert "is marked for autostart" in await astore_on("pool autostart images")
    assert await astore_on("pool start --all") == "pool 'images' started\n"
    assert "to undefine it, stop it first" in await astore_on("pool undefine images", code=1)


async def _work_on_volumes(astore_on: Command, fleet: Fleet) -> None:
    assert "volume 'b' created" in await astore_on("vol create images b 1MiB")
    assert "already" in await astore_on("vol create images b 1MiB", code=1)
    assert "resized to 2.00 MiB" in await astore_on("vol resize images/b 2MiB")
    assert "with --shrink" in await astore_on("vol resize b 1KiB --pool images", code=2)
    assert "volume 'c' cloned from 'b'" in await astore_on("vol clone images/b c")
    assert "volume 'c' wiped" in await astore_on("vol wipe c --pool images")
    await eventually(lambda: fleet.pool("images").info.volumes == 3, "the snapshot")
    assert await astore_on("vol list images --name") == "a.img\nb\nc\n"
    assert await astore_on("vol list --name --bigger-than 1MiB") == "images/b\nimages/c\n"
    sizes = {int(line.split()[3]) for line in (await astore_on("vol list images --bytes")).splitlines()[1:]}
    assert sizes == {one["capacity"] for one in (await astore_on.json("vol list images"))["volumes"]}
    volume = await astore_on.json("vol info c")
    assert (volume["pool"], volume["host"], volume["capacity"]) == ("images", "one", 2 << 20)
    assert (await astore_on("vol path c")).rstrip() == volume["path"]
    assert "<name>c</name>" in await astore_on(f"vol dumpxml {volume['path']}")
    assert await astore_on("vol delete images/b images/c") == "volume 'b' deleted\nvolume 'c' deleted\n"
    assert "has no volume 'c'" in await astore_on("vol delete images/c", code=3)
    assert "no pool of the fleet has a volume 'zz'" in await astore_on("vol info zz", code=3)


async def _look_at_hosts(astore_on: Command) -> None:
    (host,) = (await astore_on.json("fleet hosts"))["hosts"]
    assert host == {"host": "one", "labels": {"disk": "ssd"}, "pools": 1, "drained": False}
    assert (await astore_on.json("fleet status"))["states"] == {"running": 1}
    assert "images  one" in await astore_on("fleet leases")
    await astore_on("fleet drain one")
    assert (await astore_on.json("fleet hosts"))["hosts"][0]["drained"]
    await astore_on("fleet undrain one")


async def test_what_works_on_one_machine_only_is_refused(
    one_server: NatsBed, fleet_name: str, astore_on: Command
) -> None:
    """Commands that need the machine of a pool say so; what is no command at all stays unknown."""
    for line, words in {
        "vol upload images/a a.img": "`vol upload` works on the pools of one machine",
        "pool build images --no-overwrite": "`pool build` works",
        "secret list": "`secret` works",
        "vol-list images": "`vol-list` works",
        "pool nonsense": "No such command 'nonsense'",
        "nonsense": "There is no command 'nonsense'",
    }.items():
        assert words in await astore_on(line, code=2)


async def test_which_fleet_and_who_asks(
    one_server: NatsBed,
    fleet_name: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The options may follow ``fleet``, or come from the environment; what is wrong with them is told in words."""
    monkeypatch.setenv("ASTORE_FLEET", fleet_name)
    astore = Command([], capsys)
    assert "which fleet?" in await astore("fleet status", code=2)
    assert (await astore.json(f"fleet --url {one_server.url} status"))["pools"] == 0
    assert (await astore.json(f"fleet --url {one_server.url} --inbox _INBOX.mine status"))["pools"] == 0
    assert "answers cannot begin with '>'" in await astore(f"fleet --url {one_server.url} --inbox > status", code=1)
    monkeypatch.setenv("ASTORE_FLEET_URL", "nats://127.0.0.1:1")
    assert (await astore.json(f"--fleet {one_server.url} fleet status"))["hosts"] == 0
    assert "no connection" in await astore("fleet status", code=1)
    assert f"{tmp_path}/no: No such file" in await astore(f"--fleet tls://x --fleet-ca {tmp_path}/no pool list", code=1)
    assert f"{tmp_path}/no: No such file" in await astore(f"fleet --nkey {tmp_path}/no status", code=1)
    with NatsBed(tmp_path / "nats", more='authorization { user: "astore", password: "right" }') as bed:
        monkeypatch.setenv("ASTORE_FLEET_PASSWORD", "right")
        assert await astore(f"--fleet {bed.url} --fleet-user astore pool list --name") == ""
        monkeypatch.setenv("ASTORE_FLEET_PASSWORD", "wrong")
        said = await astore(f"--fleet {bed.url} --fleet-user astore pool list", code=1)
        assert re.search("(?i)authorization|refused the login", said), "the server's reason may be lost"


async def test_events_of_all_hosts(one_server: NatsBed, fleet_name: str, tmp_path: Path) -> None:
    """``astore --fleet URL events`` prints the events of all hosts with their numbers."""
    argv = ["--fleet", one_server.url, "--fleet-name", fleet_name, "events", "--since", "0", "--json"]
    async with await Fleet.connect(one_server.url, fleet_name, host="client") as fleet:
        await fleet.define(local("images", tmp_path), hosts=["one"])
    reading = await asyncio.create_subprocess_exec(sys.executable, "-m", "astore", *argv, stdout=PIPE)
    try:
        assert reading.stdout is not None
        event = json.loads(await reading.stdout.readline())
        assert (event["host"], event["pool"], event["number"]) == ("client", "images", 1)
    finally:
        reading.kill()
        await reading.wait()


def test_the_command_of_one_machine_does_not_look_for_fleets(tmp_path: Path) -> None:
    """``astore pool list --all`` imports nothing of a fleet, and does not look for options of other distributions."""
    program = """
import sys
import astore.cli.app as app
looked, look = [], app.installed_types
app.installed_types = lambda group: looked.append(group) or look(group)
assert app.run(["--state-dir", sys.argv[1], "pool", "list", "--all"]) == 0
assert app.OPTIONS not in looked and app.COMMANDS not in looked, looked
assert not [name for name in sys.modules if name.partition(".")[0] in ("astore_fleet", "nats")]
"""
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=True, timeout=60)


@pytest.mark.parametrize("page", ["docs/fleet.md", "plugins/fleet/README.md"])
async def test_the_first_commands_of_a_page(page: str, tmp_path: Path) -> None:
    """A server, a host and a definition make a fleet, by the commands that the page begins with; the port is this test's."""
    port = str(NatsServer(tmp_path, 1).port)
    block = next(one.text for one in blocks(ROOT / page) if one.text.startswith("$ nats-server "))
    server, agent, *rest = (shlex.split(line, comments=True) for line in commands(block.replace("4222", port)))
    assert server[0] == "nats-server"
    assert rest[0][-5:] == ["pool", "define", "images.xml", "--on", "one"]
    if "-c" in server:
        configuration = tmp_path / server[-1]
        configuration.parent.mkdir(parents=True)
        configuration.write_text((ROOT / server[-1]).read_text().replace("4222", port))
    else:
        server += ["-p", port]
    (tmp_path / "images.xml").write_text(local("images", folder(tmp_path, "images")))
    programs = Path(sys.executable).parent
    environment = {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}", "XDG_STATE_HOME": str(tmp_path)}

    async def start(argv: Sequence[str]) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(*argv, cwd=tmp_path, env=environment, stdout=PIPE, stderr=PIPE)

    async def ready(process: asyncio.subprocess.Process, stream: str, word: bytes) -> None:
        async with asyncio.timeout(60):
            while word not in (line := await getattr(process, stream).readline()):
                assert line, f"{stream} has ended, and had no {word!r}"

    running = [await start(server)]
    try:
        await ready(running[0], "stderr", b"Server is ready")
        running.append(await start(agent))
        await ready(running[1], "stdout", b"is there")
        for argv in rest:
            done = await start(argv)
            out, err = await done.communicate()
            assert done.returncode == 0, (argv, out, err)
            assert b"images" in out, argv
    finally:
        for process in running:
            process.kill()
            await process.communicate()
    assert (tmp_path / "data" / "jetstream").is_dir()


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
