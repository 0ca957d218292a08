"""Hosts that are processes: killed, stopped for a while, and cut off; jobs that were running there, and events."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from pathlib import Path

import pytest
from core_fakes import eventually
from fleet_support import SECONDS, folder, process, shared, until

import astore
from astore_fleet import Fleet, FleetPool, JobUnknownError
from astore_fleet.engine import Engine
from astore_fleet.jobs import job_queue
from astore_fleet.jobs.job_records import Job
from beds.nats import NatsBed


async def owned(fleet: Fleet, pool: str, host: str) -> None:
    """Wait until a host looks after a pool, and its snapshot of it is there."""

    def so() -> bool:
        info = fleet.pool(pool).info
        return (info.owner, info.reachable, info.state) == (host, True, "running")

    await eventually(so, f"{host} has {pool}")


async def test_a_killed_hosts_pool_goes_on_elsewhere(
    fleet: Fleet, one_server: NatsBed, fleet_name: str, tmp_path: Path
) -> None:
    """After kill -9 the other host looks after the pool; no event is lost or doubled."""
    images = folder(tmp_path, "images", "a.img", "b.img")
    async with (
        fleet.events(since=0) as events,
        process(one_server, fleet_name, "one", tmp_path / "gate") as one,
        process(one_server, fleet_name, "two", tmp_path / "gate"),
    ):
        await fleet.define(shared("images", images), hosts=["one"])
        await owned(fleet, "images", "one")
        await fleet.pool("images").place(hosts=("one", "two"))
        await eventually(lambda: fleet.pool("images").info.volumes == 2, "its snapshot is kept")
        one.kill()
        began = time.monotonic()
        (images / "c.img").write_bytes(b"")
        (images / "a.img").unlink()
        await owned(fleet, "images", "two")
        await fleet.pool("images").refresh()
        assert time.monotonic() - began < 30
        (images / "d.img").write_bytes(b"")
        seen = [found.event for found in await until(events, astore.VolumeAdded, "d.img")]
        added = sorted(event.name for event in seen if isinstance(event, astore.VolumeAdded))
        removed = [event.name for event in seen if isinstance(event, astore.VolumeRemoved)]
        assert (added, removed) == (["a.img", "b.img", "c.img", "d.img"], ["a.img"])


async def test_a_host_that_was_away_learns_that_it_lost_its_pool(
    fleet: Fleet, one_server: NatsBed, fleet_name: str, tmp_path: Path
) -> None:
    """A stopped host goes on after its pool moved: it stops the pool, and tells nothing of it that is new."""
    images = folder(tmp_path, "images", "a.img")
    async with (
        process(one_server, fleet_name, "one", tmp_path / "gate") as one,
        process(one_server, fleet_name, "two", tmp_path / "gate"),
    ):
        await fleet.define(shared("images", images), hosts=["one"])
        await owned(fleet, "images", "one")
        await fleet.pool("images").place(hosts=("one", "two"))
        await eventually(lambda: fleet.pool("images").info.volumes == 1, "all is told, and its snapshot is kept")
        stopped = time.time()
        one.send_signal(signal.SIGSTOP)
        await owned(fleet, "images", "two")
        await eventually(lambda: list(fleet.store.table.runs["images"]) == ["two"], "the old run is removed")
        token = fleet.leases()["images"]
        async with fleet.events() as events:
            one.send_signal(signal.SIGCONT)
            await eventually(lambda: len(fleet.hosts()) == 2, "it is back")
            (images / "b.img").write_bytes(b"")
            seen = await until(events, astore.VolumeAdded, "b.img")
        # what was on its way when the host stopped is told late
        late = [found for found in seen if isinstance(found.event, astore.PoolEvent) and found.event.time > stopped]
        assert [found for found in late if found.host != "two"] == []
        assert fleet.leases()["images"] == token
        assert list(fleet.store.table.runs["images"]) == ["two"]


async def test_a_job_of_a_killed_host_is_unknown_and_never_run_twice(
    fleet: Fleet, one_server: NatsBed, fleet_name: str, tmp_path: Path
) -> None:
    """Work that is not idempotent is claimed once. If its host dies, nobody knows what came of it."""
    gate = tmp_path / "gate"
    log = Path(f"{gate}.log")
    async with (
        process(one_server, fleet_name, "one", gate) as one,
        process(one_server, fleet_name, "two", gate),
    ):
        pool = await fleet.define(shared("slow", tmp_path / "none", "held"), hosts=["one"])
        await owned(fleet, "slow", "one")
        await pool.place(hosts=("one", "two"))
        running = asyncio.ensure_future(pool.delete_volume("a"))
        await eventually(log.exists, "it has begun")
        one.kill()
        with pytest.raises(JobUnknownError, match="host 'one' went away"):
            await running
        await owned(fleet, "slow", "two")
        gate.touch()
        await pool.delete_volume("b")
        assert log.read_text().split() == ["a", "b"]


async def test_a_job_that_has_failed_is_not_begun(
    fleet: Fleet, one_server: NatsBed, fleet_name: str, tmp_path: Path
) -> None:
    """A job that waited for a host which went away does not run when that is back: its caller was told that it failed."""
    gate = tmp_path / "gate"
    gate.touch()
    async with process(one_server, fleet_name, "one", gate) as one:
        pool = await fleet.define(shared("slow", tmp_path / "none", "held"), hosts=["one"])
        await owned(fleet, "slow", "one")
        one.send_signal(signal.SIGSTOP)
        with pytest.raises(astore.PoolInaccessibleError, match="unreachable"):
            await pool.delete_volume("a")
        assert await job_queue.waiting(fleet.store.engine, "slow") == {}
        one.send_signal(signal.SIGCONT)
        await eventually(lambda: pool.info.reachable, "it is back")
        await pool.refresh(timeout=60)
        await pool.delete_volume("b")
        assert Path(f"{gate}.log").read_text().split() == ["b"]


async def test_a_refresh_of_a_killed_host_is_done_elsewhere(
    fleet: Fleet, one_server: NatsBed, fleet_name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Five refreshes that wait for a host that is stopped, and then killed, are one job, which the next host does."""
    engine, real, queued = fleet.store.engine, job_queue.submit, list[bool]()

    async def submit(engine: Engine, job: Job, host: str) -> bool:
        queued.append(await real(engine, job, host))
        return queued[-1]

    async with (
        fleet.events() as events,
        process(one_server, fleet_name, "one", tmp_path / "gate", seconds=10.0) as one,  # it is there while all ask
        process(one_server, fleet_name, "two", tmp_path / "gate"),
    ):
        pool = await fleet.define(shared("images", folder(tmp_path, "images", "a.img")), hosts=["one"])
        await owned(fleet, "images", "one")
        await pool.place(hosts=("one", "two"))
        await eventually(lambda: pool.info.volumes == 1, "its snapshot is kept")
        one.send_signal(signal.SIGSTOP)
        before = (await engine.info(engine.names.jobs))["state"]["last_seq"]
        monkeypatch.setattr(job_queue, "submit", submit)
        running = [asyncio.ensure_future(pool.refresh()) for _ in range(5)]
        await eventually(lambda: len(queued) >= 5, "all have asked")
        state = (await engine.info(engine.names.jobs))["state"]
        assert (queued.count(True), state["last_seq"] - before, state["messages"]) == (1, 1, 1)
        one.kill()
        outcomes = await asyncio.gather(*running)
        assert {(outcome.pool, outcome.unchanged) for outcome in outcomes} == {("images", 1)}
        assert pool.info.owner == "two"
        (tmp_path / "images" / "b.img").write_bytes(b"")
        seen = await until(events, astore.VolumeAdded, "b.img")
        refreshed = [one for one in seen if isinstance(one.event, astore.PoolRefreshed) and one.host == "two"]
        assert 1 <= len(refreshed) <= 5, "one when it takes the pool over, one for the job, perhaps some for b.img"


async def test_jobs_end_in_time_or_by_request(
    fleet: Fleet, one_server: NatsBed, fleet_name: str, tmp_path: Path
) -> None:
    """A job has a deadline, whatever the hosts' clocks say; cancelling its caller cancels it; the pool goes on."""
    gate = tmp_path / "gate"
    log = Path(f"{gate}.log")
    async with process(one_server, fleet_name, "one", gate):
        pool = await fleet.define(shared("slow", tmp_path / "none", "held"), hosts=["one"])
        await owned(fleet, "slow", "one")
        with pytest.raises(TimeoutError, match="not done within 1 s"):
            await pool.delete_volume("a", timeout=1.0)
        before = _lines(log)
        running = asyncio.ensure_future(_when_free(pool))
        await eventually(lambda: _lines(log) == before + 1, "it has begun")
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        again = asyncio.ensure_future(_when_free(pool))
        await eventually(lambda: _lines(log) == before + 2, "it has begun again")
        gate.touch()
        await again


def _lines(log: Path) -> int:
    return len(log.read_text().splitlines()) if log.exists() else 0


async def _when_free(pool: FleetPool) -> None:
    """Delete the volume once nobody else does."""
    while True:
        with contextlib.suppress(astore.VolumeBusyError):
            return await pool.delete_volume("a")


async def test_a_host_has_one_agent(one_server: NatsBed, fleet_name: str, tmp_path: Path) -> None:
    """A second agent of the same name is refused; after a kill the next one takes over."""
    async with process(one_server, fleet_name, "one", tmp_path / "gate") as first:
        async with await Fleet.connect(one_server.url, fleet_name, host="one") as client:
            with pytest.raises(astore.InvalidStateError, match="has an agent already"):
                async with client.agent(seconds=SECONDS):
                    raise AssertionError
            first.kill()
            async with client.agent(seconds=SECONDS) as agent:
                assert agent.valid
