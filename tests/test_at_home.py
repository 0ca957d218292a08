"""astore in other people's programs: FastAPI, trio, other threads and loops, the interactive prompt."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio
from fastapi import FastAPI

import astore
from astore import (
    InvalidStateError,
    Manager,
    Pool,
    PoolDef,
    PoolRefreshed,
    Reference,
    ReferenceKind,
    RefreshOutcome,
    Target,
    Volume,
)


@pytest.fixture
async def manager(tmp_path: Path) -> AsyncIterator[Manager]:
    """A Manager with a started pool, ``images``, with one volume."""
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / "a.raw").write_bytes(bytes(1024))
    async with Manager(state_dir=tmp_path / "state") as manager:
        pool = await manager.define(PoolDef("dir", "images", target=Target(str(folder))))
        await pool.start()
        yield manager


@pytest.fixture
def pool(manager: Manager) -> Pool:
    """The pool."""
    return manager.pool("images")


async def test_records_go_through_fastapi(pool: Pool) -> None:
    """What a handler returns of a pool, its volumes, its events and a refresh is JSON, as it is."""
    app = FastAPI()

    @app.get("/")
    async def everything() -> dict[str, Any]:
        return {
            "pool": pool.info.to_dict(),
            "volumes": [volume.to_dict() for volume in pool.volumes],
            "outcome": (await pool.refresh()).to_dict(),
            "event": astore.PoolStarted(seq=7, pool="images", uuid=pool.uuid).to_dict(),
        }

    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://astore") as client:
        answer = await client.get("/")
    told = answer.json()
    assert (told["pool"]["name"], told["pool"]["state"], told["pool"]["volumes"]) == ("images", "running", 1)
    assert told["pool"]["capacity"] == pool.info.capacity
    (volume,) = told["volumes"]
    assert (volume["name"], volume["type"], volume["capacity"], volume["references"]) == ("a.raw", "file", 1024, [])
    assert told["outcome"]["unchanged"] == 1
    assert (told["event"]["event"], told["event"]["seq"]) == ("PoolStarted", 7)


def test_errors_and_names_that_are_no_text() -> None:
    """An error is its message; a byte that is not UTF-8 is written out, and hinders no encoder."""
    outcome = RefreshOutcome("p", error=OSError(5, "server down"), removed=("a",))
    assert outcome.to_dict()["error"] == "[Errno 5] server down"
    reference = Reference(ReferenceKind.BACKING, "b\udce4se.raw", location="/x/b\udce4se.raw")
    told = reference.to_dict()
    assert (told["kind"], told["name"]) == ("backing", "b\\udce4se.raw")
    assert json.dumps(told, ensure_ascii=False).encode()


def test_trio_is_refused_at_once(tmp_path: Path) -> None:
    """One error that says why, before anything is opened or made."""
    state = tmp_path / "state"

    async def enter() -> None:
        async with Manager(state_dir=state):
            raise AssertionError("it works under trio")

    with pytest.raises(InvalidStateError, match=r"asyncio's event loop, and not under trio"):
        trio.run(enter)
    assert not state.exists()


CALLS: dict[str, Callable[[Pool, Manager], Coroutine[Any, Any, object]]] = {
    "refresh": lambda pool, _: pool.refresh(),
    "refresh of a volume": lambda pool, _: pool.refresh("a.raw"),
    "find": lambda pool, _: pool.find("b.raw"),
    "start": lambda pool, _: pool.start(),
    "stop": lambda pool, _: pool.stop(),
    "build": lambda pool, _: pool.build(),
    "delete": lambda pool, _: pool.delete(),
    "undefine": lambda pool, _: pool.undefine(),
    "set_autostart": lambda pool, _: pool.set_autostart(True),
    "wait_state": lambda pool, _: pool.wait_state("inactive"),
    "create_volume": lambda pool, _: pool.create_volume(astore.VolumeDef("b.raw", capacity=1)),
    "copy_volume": lambda pool, _: pool.copy_volume(Volume(pool, "a.raw"), astore.VolumeDef("b.raw")),
    "upload": lambda pool, _: pool.volume("a.raw").upload(b"x"),
    "download": lambda pool, _: pool.volume("a.raw").download().__aenter__(),
    "open": lambda pool, _: pool.volume("a.raw").open().__aenter__(),
    "resize": lambda pool, _: pool.volume("a.raw").resize(2048),
    "wipe": lambda pool, _: pool.volume("a.raw").wipe(),
    "rename": lambda pool, _: pool.volume("a.raw").rename("b.raw"),
    "delete of a volume": lambda pool, _: pool.volume("a.raw").delete(),
    "set_format": lambda pool, _: pool.volume("a.raw").set_format("raw"),
    "create": lambda _, manager: manager.create(PoolDef("dir", "passing", target=Target("/x"))),
    "capabilities": lambda _, manager: manager.capabilities(),
    "define": lambda _, manager: manager.define(PoolDef("dir", "more", target=Target("/x"))),
    "reload": lambda _, manager: manager.reload(),
    "refresh_all": lambda _, manager: manager.refresh_all(),
    "start_all": lambda _, manager: manager.start_all(),
    "discover": lambda _, manager: manager.discover("netfs", "localhost"),
    "watch": lambda _, manager: manager.watch().__aenter__(),
    "aclose": lambda _, manager: manager.aclose(),
}


async def test_other_loops_and_threads_are_told(manager: Manager, pool: Pool) -> None:
    """Each call from another thread's loop is an error that says so, and harms nothing."""
    raised: dict[str, BaseException | None] = {}

    async def elsewhere() -> None:
        for name, call in CALLS.items():
            raised[name] = None
            try:
                await asyncio.wait_for(call(pool, manager), 10)
            except Exception as error:
                raised[name] = error

    thread = threading.Thread(target=lambda: asyncio.run(elsewhere()), name="a web server")
    thread.start()
    await asyncio.to_thread(thread.join, 120)
    assert not thread.is_alive()
    said = "another loop or thread (a web server)"
    wrong = {
        name: one for name, one in raised.items() if not isinstance(one, InvalidStateError) or said not in str(one)
    }
    assert wrong == {}
    assert (await pool.refresh()).unchanged == 1


async def test_events_are_read_in_another_loop(manager: Manager, pool: Pool) -> None:
    """Unlike calls, a subscription works in any thread's event loop: an event wakes it there."""
    entered = threading.Event()
    found: list[object] = []

    async def read() -> None:
        async with manager.events(kinds={PoolRefreshed}) as events:
            entered.set()
            found.append(await asyncio.wait_for(anext(events), 60))

    thread = threading.Thread(target=lambda: asyncio.run(read()))
    thread.start()
    assert await asyncio.to_thread(entered.wait, 60)
    await pool.refresh()
    await asyncio.to_thread(thread.join, 120)
    assert [type(one) for one in found] == [PoolRefreshed]


async def test_calls_can_be_sent_into_the_loop(pool: Pool) -> None:
    """As the error says: from another thread, asyncio.run_coroutine_threadsafe() runs a call where it belongs."""
    loop = asyncio.get_running_loop()
    outcome = await asyncio.to_thread(lambda: asyncio.run_coroutine_threadsafe(pool.refresh(), loop).result(30))
    assert outcome.unchanged == 1


async def test_handles_say_what_they_are(tmp_path: Path) -> None:
    """At a prompt, a Manager shows its folder and how many pools it has."""
    manager = Manager(state_dir=tmp_path / "state")
    assert repr(manager) == f"<Manager of state folder {tmp_path}/state: closed>"
    async with manager:
        pool = await manager.define(PoolDef("dir", "images", target=Target(str(tmp_path))))
        assert repr(manager) == f"<Manager of state folder {tmp_path}/state: 1 pool>"
        assert repr(pool) == "<Pool 'images' (dir, inactive)>"
