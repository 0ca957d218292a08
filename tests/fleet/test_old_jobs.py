"""Jobs that may not run twice, when the records that say so are gone: they were cancelled, claimed, or are simply old.

The records of these tests stay for seconds instead of an hour.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from core_fakes import cancelling, eventually
from fleet_history import UNCLOSED
from fleet_support import RECORDS, SECONDS, HeldSession, process, registry, shared

from astore.errors import StoreError
from astore_fleet import Agent, Fleet, FleetPool, JobUnknownError
from astore_fleet.engine import AWAY_SECONDS
from astore_fleet.jobs import job_client, job_queue
from astore_fleet.jobs.job_client import JobClient
from astore_fleet.jobs.job_records import Job, JobRecord
from beds.nats import NatsBed

RECORD_SECONDS = 4.0


@pytest.fixture
async def short(one_server: NatsBed, fleet_name: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Fleet]:
    """A client of a fleet whose records of jobs stay for RECORD_SECONDS."""
    monkeypatch.setattr(job_queue, "RECORD_SECONDS", RECORD_SECONDS)
    monkeypatch.setenv(RECORDS, str(RECORD_SECONDS))
    async with await Fleet.connect(one_server.url, fleet_name, host="client") as fleet:
        yield fleet


@contextlib.asynccontextmanager
async def host(bed: NatsBed, fleet: str, gate: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Agent]:
    """The host ``one`` in this process, whose records stay for RECORD_SECONDS, too."""
    monkeypatch.setattr(HeldSession, "gate", gate, raising=False)
    async with (
        await Fleet.connect(bed.url, fleet, host="one") as client,
        client.agent(seconds=SECONDS, registry=registry()) as agent,
    ):
        yield agent


async def running(fleet: Fleet, tmp_path: Path) -> FleetPool:
    """A pool whose volumes take their time, on the host ``one``."""
    pool = await fleet.define(shared("slow", tmp_path / "none", "held"), hosts=["one"])
    await eventually(lambda: (pool.info.owner, pool.info.state) == ("one", "running"), "it runs")
    return pool


async def queued(fleet: Fleet) -> bool:
    """Whether a job waits."""
    return bool(await job_queue.waiting(fleet.store.engine, "slow"))


async def until_queued(fleet: Fleet) -> None:
    """Wait for a job in the queue."""
    async with asyncio.timeout(60):
        while not await queued(fleet):
            await asyncio.sleep(0.01)


def delete(volume: str) -> Job:
    """A request."""
    return Job(id=uuid.uuid4().hex, pool="slow", kind="delete", arguments={"volume": volume})


def log_of(gate: Path) -> list[str]:
    """Which deletions have begun."""
    log = Path(f"{gate}.log")
    return log.read_text().split() if log.exists() else []


async def test_a_job_that_was_cancelled_waits_no_more(
    short: Fleet, one_server: NatsBed, fleet_name: str, tmp_path: Path
) -> None:
    """A request that was cancelled before its host took it is removed: its record alone would not stay long enough."""
    async with process(one_server, fleet_name, "one", tmp_path / "gate", 60.0) as one:
        pool = await running(short, tmp_path)
        one.send_signal(signal.SIGSTOP)
        asked = asyncio.ensure_future(pool.delete_volume("a"))
        await until_queued(short)
        await cancelling(asked)
        assert not await queued(short)
        await asyncio.sleep(RECORD_SECONDS + 1)
        one.send_signal(signal.SIGCONT)
        await pool.refresh()
        assert log_of(tmp_path / "gate") == []


async def test_an_old_job_is_not_begun(
    short: Fleet, one_server: NatsBed, fleet_name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request that waited for a host until its record was gone is unknown; so is one that was queued again meanwhile."""
    gate, engine = tmp_path / "gate", short.store.engine
    gate.touch()
    async with host(one_server, fleet_name, gate, monkeypatch):
        await running(short, tmp_path)
    jobs = [delete("a"), delete("b")]
    await job_queue.submit(engine, jobs[0], "one")
    await job_queue.submit(engine, jobs[1], "two")
    await job_queue.write_record(engine, jobs[0].id, JobRecord(state="cancelled"), 0)
    await asyncio.sleep(RECORD_SECONDS + 1)
    async with asyncio.timeout(60):  # the server may remove it late
        while await job_queue.record_of(engine, jobs[0].id) != (None, 0):
            await asyncio.sleep(0.1)
    async with host(one_server, fleet_name, gate, monkeypatch):
        states = []
        async with asyncio.timeout(60):
            while await queued(short):
                await asyncio.sleep(0.01)
            for job in jobs:
                while (record := (await job_queue.record_of(engine, job.id))[0]) is None or record.state == "claimed":
                    await asyncio.sleep(0.01)
                states.append(record.state)
        assert states == ["unknown", "unknown"]
        await asyncio.sleep(0.2)
    assert log_of(gate) == []


async def test_the_claim_of_a_long_job_stays(
    short: Fleet, one_server: NatsBed, fleet_name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job that takes longer than a record stays is known to be claimed all the time, and is done once."""
    gate, engine = tmp_path / "gate", short.store.engine
    async with host(one_server, fleet_name, gate, monkeypatch):
        pool = await running(short, tmp_path)
        asked = asyncio.ensure_future(pool.delete_volume("a"))
        await eventually(lambda: log_of(gate) == ["a"], "it has begun")
        subject = next(iter(await job_queue.waiting(engine, "slow"))).rpartition(".")[2]
        await asyncio.sleep(2 * RECORD_SECONDS)
        record, _ = await job_queue.record_of(engine, subject)
        assert record is not None
        assert record.state == "claimed"
        gate.touch()
        await asked
        assert log_of(gate) == ["a"]
        after, _ = await job_queue.record_of(engine, subject)
        assert after is not None
        assert after.state == "done"


async def test_an_outcome_is_kept_although_the_answer_to_renewing_was_lost(short: Fleet) -> None:
    """A claim that was renewed without its holder's knowledge is settled; one that somebody gave up is not."""
    engine, agent = short.store.engine, short.agent()
    first, second = delete("a"), delete("b")
    claim = await job_queue.claim(engine, first, agent.me)
    assert claim is not None
    assert await job_queue.claim(engine, first, agent.me) is None
    claimed, seq = await job_queue.record_of(engine, first.id)
    assert claimed is not None
    await job_queue.write_record(engine, first.id, claimed, seq)
    await claim.settle(JobRecord(state="done"))
    other = await job_queue.claim(engine, second, agent.me)
    assert other is not None
    await other.renew()
    record, seq = await job_queue.record_of(engine, second.id)
    assert record is not None
    await job_queue.write_record(engine, second.id, job_queue.unknown(record), seq)
    await other.renew()
    await other.settle(JobRecord(state="done"))
    found = [(await job_queue.record_of(engine, one.id))[0] for one in (first, second)]
    assert [one and one.state for one in found] == ["done", "unknown"]


async def test_a_claim_is_renewed_although_an_answer_was_lost(short: Fleet) -> None:
    """A claim that was renewed without its holder's knowledge, or is gone, is renewed again."""
    engine, agent = short.store.engine, short.agent()
    for gone in (False, True):
        job = delete("a")
        claim = await job_queue.claim(engine, job, agent.me)
        assert claim is not None
        claimed, seq = await job_queue.record_of(engine, job.id)
        assert claimed is not None
        if gone:
            await engine.purge(engine.names.results, engine.names.result(job.id))
        else:
            await job_queue.write_record(engine, job.id, claimed, seq)
        _, before = await job_queue.record_of(engine, job.id)
        await claim.renew()
        record, first = await job_queue.record_of(engine, job.id)
        await claim.renew()
        _, second = await job_queue.record_of(engine, job.id)
        assert record == claimed
        assert before < first < second


@UNCLOSED
async def test_an_outcome_waits_for_the_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The outcome of a job that ends while the engine is away is kept once that is back, and nothing calls it unknown."""
    gate = tmp_path / "gate"
    monkeypatch.setattr(HeldSession, "gate", gate, raising=False)
    with NatsBed(tmp_path / "nats") as bed:
        async with (
            await Fleet.connect(bed.url, "away", host="one") as client,
            client.agent(seconds=60.0, registry=registry()),
            await Fleet.connect(bed.url, "away", host="client") as fleet,
        ):
            await running(fleet, tmp_path)
            job, engine = delete("a"), fleet.store.engine
            await job_queue.submit(engine, job, "one")
            await eventually(lambda: log_of(gate) == ["a"], "it has begun")
            bed.servers[0].end(kill=True)
            gate.touch()
            await asyncio.sleep(AWAY_SECONDS + 1.0)
            bed.servers[0].start()
            await eventually(lambda: engine.connected, "it is back")
            async with asyncio.timeout(60):
                while await job_queue.waiting(engine, "slow"):
                    await asyncio.sleep(0.1)
            record, _ = await job_queue.record_of(engine, job.id)
            assert record is not None
            assert record.state == "done"


@UNCLOSED
@pytest.mark.parametrize("patient", [True, False])
async def test_a_caller_waits_for_the_engine(patient: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who waits for a job learns its outcome although the engine was away for a while; for too long, it is a StoreError."""
    gate = tmp_path / "gate"
    monkeypatch.setattr(HeldSession, "gate", gate, raising=False)
    look, failed = JobClient._look, list[StoreError]()

    async def looking(client: JobClient, job: Job) -> JobRecord | None:
        try:
            return await look(client, job)
        except StoreError as error:
            failed.append(error)
            raise

    monkeypatch.setattr(JobClient, "_look", looking)
    if not patient:
        monkeypatch.setattr(job_client, "ABSENCE_SECONDS", 0.0)
    with NatsBed(tmp_path / "nats") as bed:
        async with (
            await Fleet.connect(bed.url, "waits", host="one") as client,
            client.agent(seconds=120.0, registry=registry()),
            await Fleet.connect(bed.url, "waits", host="client") as fleet,
        ):
            pool = await running(fleet, tmp_path)
            asked = asyncio.ensure_future(pool.delete_volume("a"))
            await eventually(lambda: log_of(gate) == ["a"], "it has begun")
            bed.servers[0].end(kill=True)
            await eventually(lambda: len(failed) >= (2 if patient else 1), "the engine is away")
            if not patient:
                with pytest.raises(StoreError):
                    await asked
            gate.touch()
            bed.servers[0].start()
            await eventually(lambda: fleet.store.engine.connected, "it is back")
            if patient:
                await asked


async def test_a_job_that_is_over_is_not_cancelled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An agent that leaves while the outcome of a job is being written waits for that."""
    gate = tmp_path / "gate"
    gate.touch()
    monkeypatch.setattr(HeldSession, "gate", gate, raising=False)
    settling, real = asyncio.Event(), job_queue.Claim.settle

    async def slowly(claim: job_queue.Claim, record: JobRecord) -> None:
        settling.set()
        await asyncio.sleep(0.5)
        await real(claim, record)

    monkeypatch.setattr(job_queue.Claim, "settle", slowly)
    with NatsBed(tmp_path / "nats") as bed:
        async with await Fleet.connect(bed.url, "leaves", host="client") as fleet:
            async with (
                await Fleet.connect(bed.url, "leaves", host="one") as client,
                client.agent(seconds=60.0, registry=registry()),
            ):
                await running(fleet, tmp_path)
                job, engine = delete("a"), fleet.store.engine
                await job_queue.submit(engine, job, "one")
                await settling.wait()
            record, _ = await job_queue.record_of(engine, job.id)
            assert record is not None
            assert record.state == "done"


async def test_an_unknown_job_waits_no_more(short: Fleet, one_server: NatsBed, fleet_name: str, tmp_path: Path) -> None:
    """The job of a killed host is removed once its caller has learned that nobody knows its outcome."""
    gate = tmp_path / "gate"
    async with process(one_server, fleet_name, "one", gate, 2.0) as one:
        pool = await running(short, tmp_path)
        asked = asyncio.ensure_future(pool.delete_volume("a"))
        await eventually(lambda: log_of(gate) == ["a"], "it has begun")
        one.kill()
        with pytest.raises(JobUnknownError):
            await asked
        assert not await queued(short)


async def test_a_lost_job_is_not_asked_for_again_when_it_is_old(
    short: Fleet, one_server: NatsBed, fleet_name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A caller that finds neither its job nor a record of it, after the time that records stay, does not ask again."""
    monkeypatch.setattr(job_client, "LOOK_SECONDS", 0.75 * RECORD_SECONDS)
    async with process(one_server, fleet_name, "one", tmp_path / "gate", 60.0) as one:
        pool = await running(short, tmp_path)
        one.send_signal(signal.SIGSTOP)
        asked = asyncio.ensure_future(pool.delete_volume("a"))
        await until_queued(short)
        await short.store.engine.purge(short.store.engine.names.jobs, ">")
        with pytest.raises(JobUnknownError, match="not begun any more"):
            await asked
        assert not await queued(short)
