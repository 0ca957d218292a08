"""Reads and refreshes of all when the server is gone, a question is too large, or the caller's function fails."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from core_fakes import eventually
from fleet_support import SECONDS, folder, registry, shared

from astore.errors import StoreError
from astore.model import PoolDef, RefreshOutcome
from astore_fleet import Fleet
from beds.nats import NatsBed

POOLS = 5


async def defined(fleet: Fleet, tmp_path: Path, count: int = POOLS, letters: int = 1) -> None:
    """Define pools with a file each. :param letters: how long their names are."""
    for number in range(count):
        name = f"p{number:02}".ljust(letters, "x")
        await fleet.define(shared(name, folder(tmp_path, f"f{number}", "x.img")))
    await eventually(lambda: [one.volumes for one in fleet.pools()] == [1] * count, "all are read")


@pytest.mark.filterwarnings(
    "ignore:Exception ignored in. <function StreamWriter:pytest.PytestUnraisableExceptionWarning"
)
async def test_the_server_is_gone(tmp_path: Path) -> None:
    """Reads raise a StoreError, as they say; the report on a refresh of all has one for each pool."""
    with NatsBed(tmp_path / "nats") as bed:
        async with await Fleet.connect(bed.url, "gone", host="client") as fleet:
            async with (
                await Fleet.connect(bed.url, "gone", host="one") as client,
                client.agent(seconds=SECONDS, registry=registry()),
            ):
                await defined(fleet, tmp_path)
                bed.servers[0].end(kill=True)
                for read in (
                    fleet.volumes,
                    fleet.snapshots,
                    lambda: fleet.search(name="x"),
                    lambda: fleet.find(name="x"),
                ):
                    with pytest.raises(StoreError):
                        await read()
                    task = asyncio.current_task()
                    assert task is not None
                    assert task.cancelling() == 0
                report = await fleet.refresh_all()
                assert len(report.failed) == POOLS
                assert {type(one.error) for one in report.failed} == {StoreError}


async def test_a_question_that_is_too_large(tmp_path: Path) -> None:
    """Pools whose host cannot be asked for all at once are refreshed one by one."""
    with NatsBed(tmp_path / "nats", more="max_payload: 4096") as bed:
        async with await Fleet.connect(bed.url, "small", host="one") as fleet:
            async with fleet.agent(seconds=SECONDS, registry=registry()):
                await defined(fleet, tmp_path, 21, 200)
                report = await fleet.refresh_all()
                assert (len(report.pools), report.failed) == (21, ())


@pytest.mark.parametrize("queued", [False, True])
async def test_a_callers_function_that_fails(
    fleet: Fleet, one_server: NatsBed, fleet_name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, queued: bool
) -> None:
    """What ``on_progress`` raises is raised as it is, at its first call, whichever way the pools are refreshed."""
    calls: list[int] = []

    def fail(done: int, total: int, outcome: RefreshOutcome) -> None:
        calls.append(done)
        raise ZeroDivisionError

    if queued:
        monkeypatch.setattr(Fleet, "_by_host", lambda self, pools: {})
    async with (
        await Fleet.connect(one_server.url, fleet_name, host="one") as client,
        client.agent(seconds=SECONDS, registry=registry()),
    ):
        await defined(fleet, tmp_path)
        with pytest.raises(ZeroDivisionError):
            await fleet.refresh_all(limit=1, on_progress=fail)
        assert calls == [1]


async def test_definitions_of_many_are_events(fleet: Fleet) -> None:
    """``define_many`` tells each definition, as ``define`` does, with its UUID."""
    definitions = [PoolDef.from_xml(shared(f"p{number}", f"/p{number}")) for number in range(3)]
    async with asyncio.timeout(60), fleet.events(since=0) as events:
        await fleet.define_many(definitions)
        await fleet.define(shared("last", "/last"))
        told = [(await anext(events)).event for _ in range(4)]
    assert [type(one).__name__ for one in told] == ["PoolDefined"] * 4
    assert [(getattr(one, "pool", ""), getattr(one, "uuid", "")) for one in told] == [
        (name, fleet.pool(name).info.uuid) for name in ("p0", "p1", "p2", "last")
    ]
