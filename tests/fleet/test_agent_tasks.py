"""The tasks of an agent: one that fails begins again; if that does not help, the agent ends where all can see it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from core_fakes import eventually
from fleet_support import SECONDS, HeldSession, folder, registry, shared, until

import astore
from astore.cli.app import run
from astore.errors import StoreError
from astore_fleet import Agent, Fleet
from astore_fleet.engine import Closed
from astore_fleet.hosts import supervision
from astore_fleet.hosts.event_stream import Forwarder
from astore_fleet.jobs import job_queue
from astore_fleet.jobs.job_records import Job
from astore_fleet.jobs.worker import Worker
from beds.nats import NatsBed

TASKS = {
    "lease": (Agent, "_take_lease"),
    "places": (Agent, "_place_once"),
    "events": (Forwarder, "_publish"),
    "snapshots": (Forwarder, "_save"),
    "jobs": (Worker, "_next"),
    "a job": (Worker, "_do"),
}
"""Methods that the tasks call again and again."""


def fail(patch: pytest.MonkeyPatch, kind: type, method: str, error: Callable[[], Exception], times: int) -> list[int]:
    """Have a method raise so many times from now on; return how often it has raised, in a list."""
    real, count = getattr(kind, method), [0]

    async def failing(self: object, *args: Any) -> object:
        if count[0] < times:
            count[0] += 1
            raise error()
        return await real(self, *args)

    patch.setattr(kind, method, failing)
    return count


@pytest.mark.parametrize("task", TASKS)
async def test_a_task_that_fails_begins_again(
    fleet: Fleet, one_server: NatsBed, fleet_name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: str
) -> None:
    """After an error that nobody has foreseen, the agent keeps its lease, takes pools, tells events and does jobs."""
    images = folder(tmp_path, "images", "a.img")
    async with (
        fleet.events(since=0) as events,
        await Fleet.connect(one_server.url, fleet_name, host="one") as client,
        client.agent(seconds=SECONDS, registry=registry()) as agent,
    ):
        await fleet.define(shared("images", images))
        await eventually(lambda: fleet.pool("images").info.volumes == 1, "its snapshot is kept")
        failed = fail(monkeypatch, *TASKS[task], lambda: KeyError("unforeseen"), 2)
        (images / "b.img").write_bytes(b"")
        while failed[0] < 2:
            await fleet.pool("images").refresh(timeout=60)
        await fleet.define(shared("more", folder(tmp_path, "more", "m.img")))
        await eventually(lambda: fleet.pool("more").info.volumes == 1, "a new pool is taken")
        await eventually(lambda: fleet.pool("images").info.volumes == 2, "its snapshot is kept")
        (images / "c.img").write_bytes(b"")
        await fleet.pool("images").refresh(timeout=60)
        seen = [one.event for one in await until(events, astore.VolumeAdded, "c.img")]
        added = [one.name for one in seen if isinstance(one, astore.VolumeAdded) and one.pool == "images"]
        assert added == ["a.img", "b.img", "c.img"]
        assert agent.valid


async def test_the_engine_is_away_when_the_work_begins(
    fleet: Fleet, one_server: NatsBed, fleet_name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that cannot reach the engine at first begins when it can, however often it has tried."""
    monkeypatch.setattr(supervision, "FIRST_SECONDS", 0.01)
    times = 2 * supervision.MOST_FAILURES
    failed = fail(monkeypatch, Worker, "run", lambda: StoreError("no server answers"), times)
    async with (
        await Fleet.connect(one_server.url, fleet_name, host="one") as client,
        client.agent(seconds=SECONDS, registry=registry()),
    ):
        pool = await fleet.define(shared("images", folder(tmp_path, "images", "a.img")))
        await eventually(lambda: pool.info.volumes == 1, "it runs")
        await pool.refresh(timeout=60)
        assert failed == [times]


async def test_a_task_that_always_fails_ends_the_agent(
    fleet: Fleet, one_server: NatsBed, fleet_name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The host gives its lease back, others take its pools, and whoever waits for the agent learns why."""
    monkeypatch.setattr(supervision, "FIRST_SECONDS", 0.01)
    real = Forwarder.run

    async def failing(self: Forwarder) -> None:
        if self is bad:
            raise KeyError("unforeseen")
        await real(self)

    monkeypatch.setattr(Forwarder, "run", failing)
    async with await Fleet.connect(one_server.url, fleet_name, host="one") as client:
        agent = client.agent(seconds=SECONDS, registry=registry())
        bad = vars(agent)["_forwarder"]
        async with agent:
            with pytest.raises(astore.AstoreError, match="the agent of host 'one' has ended: 'unforeseen'") as ended:
                await agent.wait()
            assert isinstance(ended.value.__cause__, KeyError)
            assert not agent.valid
            await eventually(lambda: not fleet.hosts(), "it has no lease")
            await asyncio.sleep(SECONDS)
            assert not fleet.hosts()
            async with (
                await Fleet.connect(one_server.url, fleet_name, host="two") as other,
                other.agent(seconds=SECONDS, registry=registry()),
            ):
                pool = await fleet.define(shared("images", folder(tmp_path, "images", "a.img")))
                await eventually(lambda: (pool.info.owner, pool.info.volumes) == ("two", 1), "the other has it")


async def test_the_command_ends_with_its_agent(
    fleet: Fleet,
    one_server: NatsBed,
    fleet_name: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """``astore fleet agent`` ends with an error when its agent cannot go on, so that a service manager starts it anew."""
    monkeypatch.setattr(supervision, "FIRST_SECONDS", 0.01)
    fail(monkeypatch, Worker, "run", lambda: KeyError("unforeseen"), 100)
    argv = ["fleet", "--url", one_server.url, "--name", fleet_name, "--host", "one", "agent"]
    assert await asyncio.to_thread(run, argv) not in (0, None)
    assert "the agent of host 'one' has ended" in capsys.readouterr().err
    await eventually(lambda: not fleet.hosts(), "it has no lease")


async def test_owners_that_are_read_anew_meanwhile(
    fleet: Fleet, one_server: NatsBed, fleet_name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A host that is handing back a pool while the list of owners is made anew hands it back at once."""
    async with (
        await Fleet.connect(one_server.url, fleet_name, host="one") as client,
        client.agent(seconds=SECONDS, registry=registry()) as agent,
        await Fleet.connect(one_server.url, fleet_name, host="two") as other,
        other.agent(seconds=SECONDS, registry=registry()),
    ):
        pool = await fleet.define(shared("images", folder(tmp_path, "images", "a.img")), hosts=["one"])
        await eventually(lambda: pool.info.volumes == 1, "it runs")
        real, cleared = Forwarder.settle, []

        async def settle(self: Forwarder) -> None:
            await real(self)
            if self is vars(agent)["_forwarder"]:
                agent.state.owners.clear()
                cleared.append(True)

        monkeypatch.setattr(Forwarder, "settle", settle)
        monkeypatch.setattr(supervision, "MOST_FAILURES", 1)
        await pool.place(hosts=("two",))
        await eventually(lambda: pool.info.owner == "two", "the other has it")
        assert cleared
        assert agent.valid


async def begun(fleet: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    """A deletion that is running on the host ``one``, until it is cancelled."""
    gate = tmp_path / "gate"
    monkeypatch.setattr(HeldSession, "gate", gate, raising=False)
    pool = await fleet.define(shared("slow", tmp_path / "none", "held"), hosts=["one"])
    await eventually(lambda: (pool.info.owner, pool.info.state) == ("one", "running"), "it runs")
    job = Job(id="j", pool="slow", kind="delete", arguments={"volume": "a"})
    await job_queue.submit(fleet.store.engine, job, "one")
    await eventually(Path(f"{gate}.log").exists, "it has begun")
    return job


async def state_of(fleet: Fleet, job: Job) -> str:
    """What the record of a job says."""
    record, _ = await job_queue.record_of(fleet.store.engine, job.id)
    return "" if record is None else record.state


async def test_an_agent_that_leaves_tells_what_came_of_its_jobs(
    fleet: Fleet, one_server: NatsBed, fleet_name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job that takes a while to clean up after it was cancelled does so, and has an outcome when its agent has left."""
    real, cleaned = HeldSession.delete_volume, []

    async def slow(self: HeldSession, info: astore.VolumeInfo) -> None:
        try:
            await real(self, info)
        finally:
            await asyncio.sleep(1.0)
            cleaned.append(info.name)

    monkeypatch.setattr(HeldSession, "delete_volume", slow)
    async with (
        await Fleet.connect(one_server.url, fleet_name, host="one") as client,
        client.agent(seconds=SECONDS, registry=registry()),
    ):
        job = await begun(fleet, tmp_path, monkeypatch)
    assert cleaned == ["a"]
    assert await state_of(fleet, job) == "cancelled"
    assert not await job_queue.waiting(fleet.store.engine, "slow")


async def test_an_agent_that_has_ended_works_no_more(
    fleet: Fleet, one_server: NatsBed, fleet_name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When a task always fails, the jobs that run are cancelled before the lease is given back, and none is taken."""
    monkeypatch.setattr(supervision, "FIRST_SECONDS", 0.01)
    async with (
        await Fleet.connect(one_server.url, fleet_name, host="one") as client,
        client.agent(seconds=SECONDS, registry=registry()) as agent,
    ):
        job = await begun(fleet, tmp_path, monkeypatch)
        fail(monkeypatch, Agent, "_place_once", lambda: KeyError("unforeseen"), 100)
        with pytest.raises(astore.AstoreError, match="unforeseen"):
            await agent.wait()
        assert await state_of(fleet, job) == "cancelled"
        later = Job(id="later", pool="slow", kind="delete", arguments={"volume": "b"})
        await job_queue.submit(fleet.store.engine, later, "one")
        await asyncio.sleep(0.5)
        assert await state_of(fleet, later) == ""


async def test_a_lease_that_is_renewed_too_late(
    fleet: Fleet, one_server: NatsBed, fleet_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A renewal that was on its way when the lease was given back is given back, too."""
    monkeypatch.setattr(supervision, "FIRST_SECONDS", 0.01)
    async with (
        await Fleet.connect(one_server.url, fleet_name, host="one") as client,
        client.agent(seconds=60.0, registry=registry()) as agent,
    ):
        parts = vars(agent)
        parts["_left"], parts["_lease"], parts["_until"] = True, None, 0.0
        await agent._take_lease()
        assert not agent.valid
        await eventually(lambda: not fleet.hosts(), "it has no lease")


async def test_a_connection_that_has_ended_ends_the_agent(
    one_server: NatsBed, fleet_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the server does not let the client in any more, whoever waits for the agent learns that."""
    monkeypatch.setattr(supervision, "FIRST_SECONDS", 0.01)
    async with (
        await Fleet.connect(one_server.url, fleet_name, host="one") as client,
        client.agent(seconds=SECONDS, registry=registry()) as agent,
    ):
        await (await agent.store.engine.client()).close()
        async with asyncio.timeout(60):
            with pytest.raises(astore.AstoreError, match="has ended") as ended:
                await agent.wait()
        assert isinstance(ended.value.__cause__, Closed)
