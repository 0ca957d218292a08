"""The queue of jobs in the engine: where a job waits, who has claimed it, and moving it to another host."""

from __future__ import annotations

import asyncio
import time

import msgspec

from astore.errors import StoreError
from astore.store.contract import OutdatedError
from astore_fleet.engine import Closed, Engine, Full, Message, Refused
from astore_fleet.jobs.job_records import AGAIN, Job, JobRecord, JobUnknownError, failure_of
from astore_fleet.names import unescaped
from astore_fleet.placement.fleet_state import FleetState
from astore_fleet.records import Owner

RECORD_SECONDS = 3600.0
"""Seconds that the record of a job is kept. A job that may not run twice is begun in the first half of them only: whatever a
record says of it is there then."""

DUPLICATE_SECONDS = 120.0
"""Seconds within which the engine knows a write again. It must not be longer than a record is kept."""

FIRST_SECONDS = 0.1
"""Seconds before an outcome that was not written is written again; twice as many after each further failure."""

MOST_SECONDS = 2.0
"""The most of them."""

_decode_job = msgspec.msgpack.Decoder(Job).decode
_decode_record = msgspec.msgpack.Decoder(JobRecord).decode


async def make_streams(engine: Engine) -> None:
    """Create the queue, and the stream of records."""
    names = engine.names
    await engine.make_stream(
        names.jobs,
        f"astore.{names.fleet}.job.>",
        retention="workqueue",
        max_msgs_per_subject=1,
        discard_new_per_subject=True,
    )
    window = min(DUPLICATE_SECONDS, RECORD_SECONDS)
    await engine.make_bucket(names.results, max_age=int(RECORD_SECONDS * 1e9), duplicate_window=int(window * 1e9))


def decoded(message: Message) -> Job | None:
    """Return the job of a message; None: it is none."""
    try:
        return _decode_job(message.data)
    except Exception:  # anybody may have written anything
        return None


async def submit(engine: Engine, job: Job, host: str) -> bool:
    """Queue a job for a host; return False if one waits there that does the same. :param host: empty: none yet."""
    subject = engine.names.job(host, job.pool, job.what)
    try:
        await engine.publish(engine.names.jobs, subject, msgspec.msgpack.encode(job))
    except Full:
        return False
    return True


async def waiting(engine: Engine, pool: str, what: str = ">") -> dict[str, str]:
    """Return the subjects of the jobs of a pool that are not done, and for which host each one is."""
    info = await engine.info(engine.names.jobs, subjects_filter=engine.names.job("*", pool, what))
    subjects = info["state"].get("subjects") or {}
    return {subject: unescaped(part) if (part := subject.split(".")[3]) != "=" else "" for subject in subjects}


async def record_of(engine: Engine, job: str) -> tuple[JobRecord | None, int]:
    """Return what is known of a job, and the sequence of that; None, 0: nothing."""
    found = await engine.last(engine.names.results, engine.names.result(job))
    if found is None:
        return None, 0
    try:
        return _decode_record(found.data), found.seq
    except Exception:  # anybody may have written anything
        return None, found.seq


async def write_record(engine: Engine, job: str, record: JobRecord, after: int) -> int | None:
    """Write the record of a job; return its sequence, or None: it has changed since ``after``."""
    names = engine.names
    try:
        return await engine.publish(names.results, names.result(job), msgspec.msgpack.encode(record), after=after)
    except OutdatedError:
        return None


class Claim:
    """A job that this host has claimed. Its record stays as long as it is renewed."""

    def __init__(self, engine: Engine, job: str, mine: JobRecord, seq: int) -> None:
        self._engine = engine
        self._job = job
        self._mine = mine
        self._seq = seq

    async def renew(self) -> None:
        """Write the record again, unless somebody has changed it."""
        seq = await write_record(self._engine, self._job, self._mine, self._seq)
        if seq is None and await self._is_mine():
            seq = await write_record(self._engine, self._job, self._mine, self._seq)
        self._seq = seq or self._seq

    async def settle(self, record: JobRecord) -> None:
        """Write the outcome, unless somebody else has written one. If the engine is away, try again for RECORD_SECONDS.

        :raises Refused: the engine does not take it. StoreError: it was away for too long.
        """
        pause, until = FIRST_SECONDS, time.monotonic() + RECORD_SECONDS
        while True:
            try:
                if await write_record(self._engine, self._job, record, self._seq) is not None:
                    return
                if not await self._is_mine():
                    return
            except StoreError as error:
                if isinstance(error, Refused | Closed) or time.monotonic() > until:
                    raise
            await asyncio.sleep(pause)
            pause = min(2 * pause, MOST_SECONDS)

    async def _is_mine(self) -> bool:
        """Return whether the record is still the claim, or gone; note its sequence, which a lost answer leaves unknown."""
        found, seq = await record_of(self._engine, self._job)
        if found is not None and found != self._mine:
            return False
        self._seq = seq
        return True


async def claim(engine: Engine, job: Job, me: Owner) -> Claim | None:
    """Claim a job; return None if there is a record of it: it was claimed, cancelled or done before."""
    mine = JobRecord(state="claimed", host=me.host, session=me.session)
    seq = await write_record(engine, job.id, mine, 0)
    return None if seq is None else Claim(engine, job.id, mine, seq)


def age(engine: Engine, job: Job, kept: float) -> float:
    """Return the seconds since a job was first asked for. :param kept: when the engine kept its message."""
    return max(time.monotonic() + engine.clock - (job.since or kept), 0.0)


def too_old(seconds: float) -> bool:
    """Return whether a job of this age is not begun any more: what a record said of it may be gone."""
    return seconds > RECORD_SECONDS / 2


def expired() -> JobRecord:
    """Return the record of a job that is too old."""
    words = (
        f"it has waited for more than {RECORD_SECONDS / 2:g} s: it is not begun any more, and may have been done before"
    )
    return JobRecord(state="unknown", failure=failure_of(JobUnknownError(words)))


async def drop(engine: Engine, job: Job) -> None:
    """Remove a job from the queue, wherever it waits."""
    for subject in await waiting(engine, job.pool, job.what):
        message = await engine.last(engine.names.jobs, subject)
        if message is not None:
            await engine.remove(engine.names.jobs, message.seq)


def unknown(record: JobRecord) -> JobRecord:
    """Return the record of a job that was claimed by a host which does not tell its outcome any more."""
    words = f"host {record.host!r} went away before it told the outcome: the work may be done, in part, or not at all"
    failure = failure_of(JobUnknownError(words))
    return JobRecord(state="unknown", host=record.host, session=record.session, failure=failure)


async def give_up_if_dead(engine: Engine, state: FleetState, job: str, record: JobRecord, seq: int) -> JobRecord:
    """Return the record of a job; ``unknown`` if it was claimed by an agent that is not there any more."""
    if record.state != "claimed" or state.present(Owner(record.host, record.session)):
        return record
    given_up = unknown(record)
    if await write_record(engine, job, given_up, seq) is not None:
        return given_up
    again, _ = await record_of(engine, job)
    return again or given_up


async def move(engine: Engine, state: FleetState, pool: str, host: str, what: str = ">") -> None:
    """Move jobs of a pool that wait for other hosts to this one. What was claimed there is not run again."""
    for subject, there in (await waiting(engine, pool, what)).items():
        message = None if there == host else await engine.last(engine.names.jobs, subject)
        job = None if message is None else decoded(message)
        if message is None:
            continue
        if job is not None:
            record, seq = (None, 0) if job.kind in AGAIN else await record_of(engine, job.id)
            if record is None:
                await submit(engine, msgspec.structs.replace(job, since=job.since or message.time), host)
            else:
                found = await give_up_if_dead(engine, state, job.id, record, seq)
                if found.state == "claimed":
                    continue  # it is being done
        await engine.remove(engine.names.jobs, message.seq)
