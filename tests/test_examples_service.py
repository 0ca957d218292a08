"""examples/inventory_service.py, served by a real server on a loopback port."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
import uvicorn
from core_fakes import PATIENCE, eventually
from leaks import LeakCheck
from watching_support import by_another_process

import astore
from astore.testing.conformance.source import qcow2, raw
from examples import inventory_service
from examples.inventory_service import app, encoded

pytestmark = pytest.mark.timeout(2 * PATIENCE)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder of the pool ``images``: a raw image, and one that is backed by it."""
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / "base.img").write_bytes(raw(1 << 20))
    (folder / "web.qcow2").write_bytes(qcow2(10 << 30, "base.img", "raw"))
    return folder


@pytest.fixture
async def state(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The state folder, where another process has defined the pool ``images`` and marked it for autostart."""
    state = tmp_path / "state"
    monkeypatch.setenv("ASTORE_STATE_DIR", str(state))
    async with astore.Manager(state) as manager:
        pool = await manager.define(astore.PoolDef("dir", "images", target=astore.Target(str(folder))))
        await pool.set_autostart(True)
    return state


class Service:
    """The service while it runs, and a client of it.

    :ivar port: of the service. :ivar ended: the task that serves.
    """

    def __init__(self, port: int, server: uvicorn.Server, ended: asyncio.Task[None], client: httpx.AsyncClient) -> None:
        self.port = port
        self.ended = ended
        self._server = server
        self._client = client

    @property
    def manager(self) -> astore.Manager:
        manager: astore.Manager = app.state.manager
        return manager

    def readers(self) -> int:
        """Return how many subscriptions there are besides the watch's."""
        return self.manager.statistics().events.subscribers - 1

    async def get(self, path: str) -> tuple[int, Any]:
        answer = await self._client.get(path)
        return answer.status_code, answer.json()

    async def until(self, path: str, condition: Callable[[Any], object]) -> Any:
        """Ask until the answer is such, and return it."""
        async with asyncio.timeout(PATIENCE):
            while not condition(found := (await self.get(path))[1]):
                await asyncio.sleep(0.01)
        return found

    @contextlib.asynccontextmanager
    async def events(self, last_event_id: str | None = None) -> AsyncIterator[Stream]:
        """Open the stream of events."""
        headers = {} if last_event_id is None else {"Last-Event-ID": last_event_id}
        async with self._client.stream("GET", "/events", headers=headers) as answer:
            assert answer.headers["content-type"].startswith("text/event-stream")
            yield Stream(answer)

    def end(self) -> None:
        """Tell the server to end, as SIGTERM does."""
        self._server.should_exit = True


class Message(NamedTuple):
    """A message of a stream. ``event`` is "" for one that is none: a comment, or an id alone."""

    event: str
    id: str
    data: dict[str, Any]
    comment: str = ""


class Stream:
    """The messages of a stream of Server-Sent Events."""

    def __init__(self, answer: httpx.Response) -> None:
        self._lines = answer.aiter_lines()

    def __aiter__(self) -> Stream:
        return self

    async def __anext__(self) -> Message:
        fields: dict[str, str] = {}
        async with asyncio.timeout(PATIENCE):
            async for line in self._lines:
                if not line:
                    data = json.loads(fields.get("data", "{}"))
                    return Message(fields.get("event", ""), fields.get("id", ""), data, fields.get("", ""))
                name, _, value = line.partition(":")
                assert name not in fields, f"{name} twice"
                fields[name] = value.removeprefix(" ")
        raise StopAsyncIteration

    async def find(self, event: str, name: str) -> Message:
        """Read on until this volume or pool has such an event."""
        read = []
        async for message in self:
            if message.event == event and message.data.get("name", message.data["pool"]) == name:
                return message
            read.append(message)
        raise AssertionError(f"no {event} of {name} in {read}")


@contextlib.asynccontextmanager
async def running() -> AsyncIterator[Service]:
    """Run the service on a port of its own. Afterwards nothing of it is left."""
    check = LeakCheck()
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 16)  # its connections have it too
        config = uvicorn.Config(app, lifespan="on", log_level="warning", timeout_graceful_shutdown=1)
        server, port = uvicorn.Server(config), listening.getsockname()[1]
        ended = asyncio.create_task(server.serve(sockets=[listening]))
        await eventually(lambda: server.started or ended.done(), "the server")
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE) as client:
            try:
                yield Service(port, server, ended, client)
            finally:
                server.should_exit = True
                await ended
    await eventually(lambda: not check.problems(), f"the end of {check.problems()}")


@pytest.fixture
async def service(state: Path) -> AsyncIterator[Service]:
    """The running service, with a pool that is watched."""
    async with running() as service:
        await service.until("/pools/images", lambda pool: (pool["freshness"] or {}).get("pushed"))
        yield service


# ------------------------------------------------------------------------------------------------ pools and volumes


async def test_pools_and_volumes(service: Service) -> None:
    """Pools and volumes are served from the snapshots, with how fresh these are."""
    _, (pool,) = await service.get("/pools")
    assert (pool["name"], pool["state"], pool["volumes"]) == ("images", "running", 2)
    assert pool["freshness"] == {"way": "inotify", "pushed": True, "bound": 1.0, "note": "", "next_try": None}
    assert (await service.get("/pools/images"))[1]["uuid"] == pool["uuid"]
    status, found = await service.get("/pools/images/volumes")
    assert status == 200
    assert found["pool"]["name"] == "images"
    assert [one["name"] for one in found["volumes"]] == ["base.img", "web.qcow2"]
    status, volume = await service.get("/pools/images/volumes/web.qcow2")
    assert (status, volume["format"], volume["capacity"]) == (200, "qcow2", 10 << 30)


async def test_what_cannot_be_read(service: Service, folder: Path) -> None:
    """What is no volume is listed with the reason."""
    (folder / "\udce4.img").write_bytes(raw())
    pool = await service.until("/pools/images", lambda pool: pool["state"] == "degraded")
    _, found = await service.get("/pools/images/volumes")
    assert (pool["errors"], len(found["volumes"])) == (1, 2)
    assert [(one["name"], one["message"]) for one in found["errors"]] == [("\\xe4.img", "its name is not UTF-8")]


def test_bytes_that_are_not_utf_8() -> None:
    """A path with such bytes does not keep a record from being served."""
    assert json.loads(encoded({"path": "/\udce4"})) == {"path": "/\udce4"}


async def test_what_there_is_not(service: Service) -> None:
    """A name that nothing has is answered with 404 and says so, with and without a look."""
    for path in ("/pools/x", "/pools/x/volumes", "/pools/x/volumes/y", "/pools/images/volumes/y"):
        for query in ("", "?look=true"):
            status, found = await service.get(path + query)
            assert status == 404
            assert "no" in found["error"]


async def test_a_look_finds_what_the_snapshot_lacks(service: Service, folder: Path) -> None:
    """With ?look=true a volume is served that was made a moment ago."""
    for index in range(20):
        (folder / f"new{index}").write_bytes(raw())
        status, volume = await service.get(f"/pools/images/volumes/new{index}?look=true")
        assert (status, volume["name"]) == (200, f"new{index}")


async def test_a_look_into_what_does_not_answer(service: Service, folder: Path) -> None:
    """A pool whose folder is gone is served from its last snapshot and says when it is tried again. A look is refused."""
    away = folder.rename(folder.parent / "away")
    pool = await service.until("/pools/images", lambda pool: pool["state"] == "inaccessible" and pool["freshness"])
    assert pool["freshness"]["next_try"] > 0
    assert (await service.get("/pools/images/volumes/base.img?look=true"))[0] == 200
    status, found = await service.get("/pools/images/volumes/y?look=true")
    assert status == 503
    assert str(folder) in found["error"]
    away.rename(folder)
    await service.until("/pools/images", lambda pool: pool["state"] == "running")
    await service.manager.pool("images").stop()
    assert (await service.get("/pools/images/volumes/y?look=true"))[0] == 409


async def test_a_pool_that_is_not_ready_at_startup(state: Path, folder: Path) -> None:
    """The service starts without it, tells of each try, and serves it as soon as it can be started."""
    away = folder.rename(folder.parent / "away")
    async with running() as service, service.events() as stream:
        pool = await service.until("/pools/images", lambda pool: pool["error"])
        assert (pool["state"], pool["freshness"]) == ("inactive", None)
        assert (await service.get("/pools/images/volumes"))[1]["volumes"] == []
        assert (await stream.find("PoolRetry", "images")).data["attempt"] >= 1
        away.rename(folder)
        await stream.find("PoolStarted", "images")
        await stream.find("VolumeAdded", "web.qcow2")
        assert (await service.get("/pools/images/volumes/web.qcow2"))[0] == 200


# ------------------------------------------------------------------------------------------------------- the stream


async def test_changes_of_another_process(service: Service, folder: Path, state: Path) -> None:
    """What another process does in the folder, and to the state folder, comes as an event."""
    async with service.events() as stream:
        first = await anext(stream)
        assert (first.event, first.data) == ("", {})
        await by_another_process("echo x > new", folder)
        added = await stream.find("VolumeAdded", "new")
        assert added.data["volume"]["name"] == "new"
        assert added.id.endswith(f"-{added.data['seq']}")
        await by_another_process("mv new newer", folder)
        await stream.find("VolumeAdded", "newer")
        await by_another_process("rm newer", folder)
        await stream.find("VolumeRemoved", "newer")
        async with astore.Manager(state) as other:
            await other.define(astore.PoolDef("dir", "more", target=astore.Target(str(folder.parent / "more"))))
        await stream.find("PoolDefined", "more")
    assert (await service.get("/pools/more"))[0] == 200


async def test_what_was_missed_comes_after_a_reconnection(service: Service, folder: Path) -> None:
    """A client that names the last event it has seen gets all later ones, each once, also before it has seen any."""
    async with service.events() as stream:
        before = (await anext(stream)).id
        await by_another_process("echo x > a", folder)
        seen = await stream.find("VolumeAdded", "a")
    for count, name in enumerate("bcd", 4):
        await by_another_process(f"echo x > {name}", folder)
        await service.until("/pools/images", lambda pool, count=count: pool["volumes"] == count)
    for since, names in ((before, "abcd"), (seen.id, "bcd")):
        async with service.events(since) as stream:
            assert (await anext(stream)).id == since
            number, added = int(since.partition("-")[2]), []
            while added[-1:] != ["d"]:
                message = await anext(stream)
                number += 1
                assert message.id.endswith(f"-{number}")
                if message.event == "VolumeAdded":
                    added.append(message.data["name"])
            assert added == list(names)


@pytest.mark.parametrize(
    "last_event_id", ["0123abcd-7", "7", "x", "-", "{run}-", "{run}-99999", "{run}--1", "{run}-1x"]
)
async def test_a_number_of_another_run(service: Service, folder: Path, last_event_id: str) -> None:
    """A client that has seen events of an earlier run, or none that there is, is told that it missed some."""
    async with service.events(last_event_id.format(run=app.state.run)) as stream:
        first = await anext(stream)
        assert (first.event, first.data) == ("Lagged", {"event": "Lagged", "missed": None})
        await by_another_process("echo x > new", folder)
        added = await stream.find("VolumeAdded", "new")
    assert int(first.id.partition("-")[2]) < int(added.id.partition("-")[2])


async def test_more_was_missed_than_is_kept(state: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that was away for too long is told how many events it missed, and gets those that are kept."""
    monkeypatch.setattr(astore, "Manager", partial(astore.Manager, event_capacity=16))
    async with running() as service:
        await service.until("/pools/images", lambda pool: (pool["freshness"] or {}).get("pushed"))
        async with service.events() as stream:
            seen = (await anext(stream)).id
        await by_another_process("for i in $(seq 50); do echo x > f$i; done", folder)
        await service.until("/pools/images", lambda pool: pool["volumes"] == 52)
        async with service.events(seen) as stream:
            assert (await anext(stream)).id == seen
            lagged = await anext(stream)
            assert lagged.event == "Lagged"
            assert lagged.data["missed"] == lagged.data["seq"] - int(seen.partition("-")[2]) > 30
            assert (await anext(stream)).data["seq"] == lagged.data["seq"] + 1


async def test_heartbeat(service: Service, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While nothing happens the stream has comments, so that a connection that is lost is noticed; it goes on after them."""
    monkeypatch.setattr(inventory_service, "HEARTBEAT", 0.05)
    async with service.events() as stream:
        assert (await anext(stream)).id
        for _ in range(3):
            assert await anext(stream) == Message("", "", {}, "nothing new")
        await by_another_process("echo x > new", folder)
        async for message in stream:
            if message.event == "VolumeAdded":
                break


# ----------------------------------------------------------------------------------------------------------- the end


async def test_the_client_leaves(service: Service) -> None:
    """A stream ends with its client."""
    async with service.events(), service.events():
        await eventually(lambda: service.readers() == 2, "both readers")
    await eventually(lambda: service.readers() == 0, "their end")


async def test_a_client_that_does_not_read(service: Service, folder: Path) -> None:
    """A client that reads nothing holds up nobody else, and its stream ends with it."""
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", service.port))
        connection.sendall(b"GET /events HTTP/1.1\r\nHost: x\r\n\r\n")
        await eventually(lambda: service.readers() == 1, "the reader")
        async with service.events() as stream:
            await by_another_process(
                "for i in $(seq 1000); do : > f$i; done; : > last", folder
            )  # more than buffers take
            await stream.find("VolumeAdded", "last")
        await eventually(lambda: service.readers() == 1, "the end of the other")
    await eventually(lambda: service.readers() == 0, "its end")


async def test_the_manager_closes(service: Service) -> None:
    """Streams end when the Manager is closed."""
    async with service.events() as stream:
        await eventually(lambda: service.readers() == 1, "the reader")
        await service.manager.aclose()
        async with asyncio.timeout(PATIENCE):
            async for message in stream:
                assert message.event != "Lagged"


async def test_the_server_ends(service: Service) -> None:
    """The server ends although there are streams."""
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(3):
            await stack.enter_async_context(service.events())
        await eventually(lambda: service.readers() == 3, "the readers")
        service.end()
        await asyncio.wait_for(asyncio.shield(service.ended), PATIENCE)
