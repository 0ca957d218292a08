"""Who may do what: the example configuration on a real server, with TLS, passwords and nkeys, and its permissions."""

from __future__ import annotations

import asyncio
import os
import re
import ssl
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import nats
import nkeys
import pytest
from core_fakes import eventually
from fleet_support import SECONDS, folder, local, registry
from nats.aio.client import Client

import astore
from astore.errors import DefinitionError, StoreError
from astore_fleet import Access, Fleet, FleetEvent, engine
from astore_fleet.names import Names
from beds.nats import NatsServer, missing, program

EXAMPLE = Path(__file__).parents[2] / "examples/fleet/nats.conf"

NAMES = Names("prod")
STREAMS = (NAMES.pools, NAMES.state, NAMES.leases, NAMES.results, NAMES.jobs, NAMES.events)


class ExampleServer(NatsServer):
    """A server with the example's configuration: TLS is switched on, paths and the port are this test's."""

    keys: dict[str, str]
    """Public nkeys, by the name of the user whose password each one replaces."""

    def configuration(self) -> str:
        """The example, with few lines changed."""
        text = EXAMPLE.read_text()
        here = f'listen: "{self.host}:{self.port}"\nhttp: "{self.host}:{self.monitor}"'
        text = text.replace('listen: "127.0.0.1:4222"', here)
        text = text.replace("/var/lib/nats", str(self.folder / "data"))
        tls = re.search(r"# tls \{.*?# \}", text, re.DOTALL)
        assert tls is not None
        text = text.replace(tls[0], re.sub(r"^# ", "", tls[0], flags=re.MULTILINE))
        text = text.replace("/etc/nats", str(self.folder.parent))
        for user, key in self.keys.items():
            text = text.replace(f'user: {user}, password: "change-me-{user}"', f"nkey: {key}")
        return text


def make_certificates(where: Path) -> None:
    """Make an authority, and certificates of the server and of a client by it."""

    def openssl(*words: str) -> None:
        subprocess.run(["openssl", *words], cwd=where, check=True, capture_output=True)

    new = ("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2")
    openssl(*new, "-x509", "-subj", "/CN=authority", "-keyout", "ca-key.pem", "-out", "ca.pem")
    for name in ("server", "client"):
        (where / f"{name}.ext").write_text("subjectAltName=IP:127.0.0.1\n")
        openssl(*new, "-subj", f"/CN={name}", "-keyout", f"{name}-key.pem", "-out", f"{name}.csr")
        signed = ("-CA", "ca.pem", "-CAkey", "ca-key.pem", "-CAcreateserial", "-days", "2")
        openssl("x509", "-req", "-in", f"{name}.csr", *signed, "-extfile", f"{name}.ext", "-out", f"{name}.pem")


class Bed:
    """The server, and how its users are let in."""

    def __init__(self, server: ExampleServer, where: Path, seed: str) -> None:
        self.server = server
        self.tls = ssl.create_default_context(cafile=where / "ca.pem")
        self.tls.load_cert_chain(where / "client.pem", where / "client-key.pem")
        self.seed = seed

    def access(self, user: str) -> Access:
        """How a user is let in: ``agent`` by nkey, the others by password."""
        if user == "agent":
            return Access(nkey_seed=self.seed, tls=self.tls, inbox_prefix="_INBOX.agent")
        return Access(user=user, password=f"change-me-{user}", tls=self.tls)

    async def fleet(self, user: str, name: str = "prod") -> Fleet:
        """A client."""
        return await Fleet.connect(self.server.url, name, host="one", access=self.access(user))


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bed]:
    """The example's server."""
    if reason := missing():
        pytest.fail(reason)
    where = tmp_path_factory.mktemp("example")
    make_certificates(where)
    seed = nkeys.encode_seed(os.urandom(32), nkeys.PREFIX_BYTE_USER)
    server = ExampleServer(where / "n1", 1)
    server.keys = {"agent": nkeys.from_seed(bytearray(seed)).public_key.decode()}
    server.start()
    try:
        server.wait_ready()
        yield Bed(server, where, seed.decode())
    finally:
        server.end(kill=True)


@pytest.fixture
async def admin(example: Bed) -> AsyncIterator[Fleet]:
    """The fleet, which the administrator has made."""
    async with await example.fleet("admin") as fleet:
        yield fleet


async def test_an_agent_works_and_a_reader_looks(example: Bed, admin: Fleet, tmp_path: Path) -> None:
    """An agent does its work, with all that belongs to it; a reader sees all of it."""
    async with (
        await example.fleet("agent") as fleet,
        fleet.agent(seconds=SECONDS, registry=registry()),
        await example.fleet("reader") as reader,
    ):
        pool = await fleet.define(local("images", folder(tmp_path, "images", "a.img")), hosts=["one"])
        await eventually(lambda: fleet.pool("images").info.volumes == 1, "the snapshot")
        await pool.create_volume(astore.VolumeDef(name="b", capacity=1))
        await pool.delete_volume("b")
        assert [one.unchanged for one in (await fleet.refresh_all()).pools] == [1]
        await fleet.drain("one")
        await fleet.undrain("one")
        await eventually(lambda: [one.name for one in reader.pools()] == ["images"], "the pool")
        await eventually(lambda: reader.pool("images").info.volumes == 1, "the snapshot")
        assert [one.info.name for one in await reader.volumes()] == ["a.img"]
        async with reader.events(since=0) as events:
            assert isinstance(await anext(events), FleetEvent)
        with pytest.raises(StoreError, match=r"(?i)permissions violation"):
            await reader.drain("one")
        await pool.stop()
        await fleet.undefine("images")


class Probe:
    """A bare connection of a user, and what the server refuses it."""

    def __init__(self, client: Client, refused: list[str]) -> None:
        self.client = client
        self.refused = refused

    async def publish(self, subjects: list[str]) -> list[str]:
        """Publish something to each subject; return those that were not refused."""
        for subject in subjects:
            await self.client.publish(subject, b"{}", reply=self.client.new_inbox())
        return await self._allowed(subjects, "publish to")

    async def subscribe(self, subjects: list[str]) -> list[str]:
        """Subscribe to each subject; return those that were not refused."""
        for subject in subjects:
            await self.client.subscribe(subject)
        return await self._allowed(subjects, "subscription to")

    async def _allowed(self, subjects: list[str], what: str) -> list[str]:
        """Wait until the server has said that it does not know a last subject, and return those that it let pass."""
        await self.client.flush()
        await self.client.publish("$SYS.last")
        await eventually(lambda: any('"$sys.last"' in text for text in self.refused), "the last refusal")
        self.refused[:], refused = [], set(self.refused)
        return [one for one in subjects if not any(f'{what} "{one.lower()}"' in text for text in refused)]


@pytest.fixture
async def probe(example: Bed, request: pytest.FixtureRequest) -> AsyncIterator[Probe]:
    """A bare connection of the user that the parameter names."""
    refused: list[str] = []

    async def note(error: Exception) -> None:
        refused.append(str(error).lower())

    client = await nats.connect(
        example.server.url, error_cb=note, max_reconnect_attempts=1, **example.access(request.param).options()
    )
    try:
        yield Probe(client, refused)
    finally:
        await client.close()


def written() -> list[str]:
    """The subjects that a fleet's data are written to."""
    return [
        NAMES.definition("images"), NAMES.run("images", "one"), NAMES.owner("images"), NAMES.snapshot("images", "one"),
        NAMES.lease("host:one"), NAMES.lease("drain:one"), NAMES.result("x"), NAMES.job("one", "images", "refresh"),
        NAMES.event("one", "-", "PoolDefined"), NAMES.told("cancel"), NAMES.told("job.images.refresh"), NAMES.barrier,
    ]  # fmt: skip


def managed(streams: tuple[str, ...]) -> list[str]:
    """The requests that change or remove streams and consumers."""
    api = ("CREATE", "UPDATE", "DELETE", "PURGE", "MSG.DELETE", "RESTORE", "SNAPSHOT")
    found = [f"$JS.API.STREAM.{verb}.{stream}" for verb in api for stream in streams]
    return found + [f"$JS.API.CONSUMER.DELETE.{stream}.host-one" for stream in streams]


LISTENING = [
    ">", "$SYS.>", "$JS.>", "$KV.>", "astore.>", NAMES.job("*", "*", ">"), f"$KV.astore-{NAMES.fleet}-pools.>",
    "_INBOX.>", "_INBOX.*", "_INBOX.*.*", "_INBOX.admin.>", "_INBOX.another.>",
]  # fmt: skip
"""Subjects by which somebody would hear what is meant for others."""

ANOTHER = Names("other")


def read(names: Names) -> list[str]:
    """The requests by which a fleet's definitions, jobs and results are read."""
    streams = (names.pools, names.state, names.leases, names.results, names.jobs, names.events)
    api = ("STREAM.MSG.GET", "CONSUMER.CREATE", "DIRECT.GET")
    return [f"$JS.API.{verb}.{stream}" for verb in api for stream in streams]


@pytest.mark.parametrize("probe", ["reader"], indirect=True)
async def test_a_reader_changes_nothing(admin: Fleet, probe: Probe) -> None:
    """Whatever a reader writes is refused, and so is taking jobs and hearing what is told to others."""
    before = [(await admin.store.engine.info(stream))["state"]["last_seq"] for stream in STREAMS]
    taken = [f"$JS.API.CONSUMER.MSG.NEXT.{NAMES.jobs}.host-one", f"$JS.API.CONSUMER.CREATE.{NAMES.jobs}.host-one"]
    answers = [
        "$JS.ACK.astore-prod-jobs.host-one.1.1.1.1.0",
        "$SYS.REQ.SERVER.PING",
        "_INBOX.another",
        "_INBOX.agent.x",
    ]
    jobs_and_results = [f"$JS.API.STREAM.MSG.GET.{stream}" for stream in (NAMES.jobs, NAMES.results)]
    subjects = written() + managed(STREAMS) + taken + answers + jobs_and_results + read(ANOTHER)
    assert await probe.publish(subjects) == []
    assert await probe.subscribe([*LISTENING, "_INBOX.agent.>"]) == []
    assert await probe.subscribe(["_INBOX.reader.>"]) == ["_INBOX.reader.>"]
    assert [(await admin.store.engine.info(stream))["state"]["last_seq"] for stream in STREAMS] == before


@pytest.mark.parametrize("probe", ["agent"], indirect=True)
async def test_an_agent_keeps_to_its_fleet(admin: Fleet, probe: Probe) -> None:
    """An agent may remove no stream, read nothing of another fleet, and hear nothing of the server's own."""
    allowed = {f"$JS.API.STREAM.MSG.DELETE.{NAMES.jobs}", f"$JS.API.STREAM.PURGE.{NAMES.state}"}
    subjects = [one for one in managed(STREAMS) if one not in allowed] + read(ANOTHER)
    subjects += [ANOTHER.definition("images"), ANOTHER.owner("images"), ANOTHER.job("one", "images", "refresh")]
    subjects += ["$SYS.REQ.SERVER.PING", "$SYS.REQ.ACCOUNT.PING.CONNZ", "$JS.API.INFO", "$JS.API.STREAM.LIST"]
    subjects += ["_INBOX.reader.x", "_INBOX.x"]
    assert await probe.publish(subjects) == []
    assert await probe.subscribe([*LISTENING, "_INBOX.reader.>"]) == []


def test_whose_answers() -> None:
    """The subjects of answers begin with the user's name, if it is one word, or with what the caller says."""
    for access, prefix in (
        (Access(), None),
        (Access(token="secret"), None),
        (Access(user="reader"), "_INBOX.reader"),
        (Access(user="a.b"), None),
        (Access(user=">"), None),
        (Access(user="reader", inbox_prefix="_INBOX.mine"), "_INBOX.mine"),
    ):
        assert access.options().get("inbox_prefix") == prefix
    for url, access, prefix in (
        ("nats://reader:secret@one:4222", Access(), "_INBOX.reader"),
        ("reader:secret@one", Access(), "_INBOX.reader"),
        ("nats://reader:secret@one", Access(user="admin", password="x"), "_INBOX.admin"),
        ("nats://reader:secret@one", Access(token="x"), None),
        ("nats://secret@one", Access(), None),
        ("nats://one", Access(), None),
    ):
        assert access.options([url]).get("inbox_prefix") == prefix
    for wrong in ("", ">", "_INBOX.*", "_INBOX.", "two words"):
        with pytest.raises(DefinitionError, match="cannot begin with"):
            Access(inbox_prefix=wrong)


async def test_a_user_in_the_url(example: Bed, admin: Fleet) -> None:
    """A user whose name and password stand in the URL is answered, as one who is named beside it."""
    url = example.server.url.replace("nats://", "nats://reader:change-me-reader@")
    async with await Fleet.connect(url, "prod", host="one", access=Access(tls=example.tls)) as fleet:
        assert fleet.pools() == admin.pools()


async def test_the_example_cluster(tmp_path: Path) -> None:
    """The server understands the lines of the example on a cluster, which let in nobody without a certificate."""
    text = EXAMPLE.read_text()
    lines = text[text.index("# server_name: n1") :]
    cluster = re.sub(r"^# ", "", lines, flags=re.MULTILINE)
    make_certificates(tmp_path)
    (tmp_path / "cluster.conf").write_text(cluster.replace("/etc/nats", str(tmp_path)))
    path = program()
    assert path is not None
    argv = [path, "-t", "-c", str(tmp_path / "cluster.conf")]
    done = await asyncio.to_thread(subprocess.run, argv, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "0.0.0.0" not in text
    assert "authorization {" in cluster
    assert "verify: true" in cluster


async def test_who_is_not_let_in(example: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong password, a strange key, no certificate, and a server of an unknown authority are told in words."""
    monkeypatch.setattr(engine, "CONNECT_SECONDS", 4.0)  # for the unknown authority all of it is waited
    tls, url = example.tls, example.server.url
    strange = nkeys.encode_seed(os.urandom(32), nkeys.PREFIX_BYTE_USER).decode()
    bare = ssl.create_default_context(cafile=example.server.folder.parent / "ca.pem")
    refused = "(?i)authorization|refused the login"  # the server says why, and closes: the reason may be lost
    for access, why in (
        (Access(user="admin", password="wrong", tls=tls), refused),
        (Access(nkey_seed=strange, tls=tls), refused),
        (Access(user="admin", password="change-me-admin", tls=bare), "(?i)certificate"),
        (Access(user="admin", password="change-me-admin", tls=ssl.create_default_context()), "(?i)certificate"),
        (Access(tls=tls), refused),
    ):
        async with asyncio.timeout(60):
            with pytest.raises(StoreError, match=why):
                await Fleet.connect(url, "prod", access=access)
