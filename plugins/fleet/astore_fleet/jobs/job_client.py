"""JobClient: asks for a job, and waits for its result wherever it is done."""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections.abc import Mapping
from typing import Any

import msgspec
import nats.errors

from astore.backend import Progress as OnProgress
from astore.cancellation import bounded, shielded
from astore.errors import AstoreError, PoolInaccessibleError, PoolNotFoundError, StoreError
from astore.model import PoolDef
from astore_fleet.ending import heeding
from astore_fleet.engine import Closed, Refused
from astore_fleet.jobs import job_queue
from astore_fleet.jobs.job_records import AGAIN, Job, JobRecord, JobUnknownError, Progress, error_of, timed_out
from astore_fleet.jobs.worker import told_of
from astore_fleet.placement.fleet_state import FleetState
from astore_fleet.placement.owning import candidates
from astore_fleet.store.nats_store import NatsStore

LOOK_SECONDS = 2.0
"""Seconds between two looks at what the engine has of a job, in case that a message was lost."""

GRACE_SECONDS = 5.0
"""Seconds that a host has to tell that a job's time is over."""

ABSENCE_SECONDS = 30.0
"""Seconds that a caller waits for servers that were there when the engine got its job."""

NOT_AGAIN = (Closed, Refused)
"""What does not become better by waiting."""

_decode = msgspec.msgpack.Decoder(JobRecord).decode
_decode_progress = msgspec.msgpack.Decoder(Progress).decode


class JobClient:
    """Asks for jobs."""

    def __init__(self, store: NatsStore, state: FleetState) -> None:
        self._store = store
        self._state = state

    async def run(
        self,
        pool: str,
        kind: str,
        arguments: Mapping[str, Any] | None = None,
        *,
        timeout: float | None = None,
        on_progress: OnProgress | None = None,
    ) -> JobRecord:
        """Have a job done, and return its record. If this raises, the job is cancelled (a refresh goes on for others).

        If the engine is away just then, it cannot be told: the job may still begin, until half of its record's time is over.

        :param timeout: seconds; it counts from when the engine has the job.
        :raises: what the work raises on its host. PoolNotFoundError: no such pool. PoolInaccessibleError: its host is not
            there. JobUnknownError: the host went away meanwhile. TimeoutError. StoreError: the engine does not answer, or has
            not for ABSENCE_SECONDS once it had the job.
        """
        job = Job(id=uuid.uuid4().hex, pool=pool, kind=kind, arguments=dict(arguments or {}), seconds=timeout)
        engine = self._store.engine
        client = await engine.client()
        listening = await client.subscribe(engine.names.told(told_of(job)))
        asked = False
        try:
            async with asyncio.timeout(None if timeout is None else timeout + GRACE_SECONDS) as limit:
                host = self._host(pool)
                if kind not in AGAIN:
                    await engine.info(engine.names.jobs)  # it tells the server's time
                    job = msgspec.structs.replace(job, since=time.monotonic() + engine.clock)
                asked = True
                await job_queue.submit(engine, job, host)
                record = await self._wait(job, listening, on_progress)
        except BaseException as error:
            if asked:
                await shielded(bounded(self._cancel(job)))
            if isinstance(error, TimeoutError) and limit.expired():
                raise timed_out(job) from None
            raise
        finally:
            with contextlib.suppress(Exception):
                await listening.unsubscribe()
        return self._checked(job, record)

    @staticmethod
    def _checked(job: Job, record: JobRecord) -> JobRecord:
        if record.state == "unknown":
            words = "" if record.failure is None else str(record.failure.arguments[0])
            raise JobUnknownError(f"{job.kind} of pool {job.pool!r}: {words}")
        if record.failure is not None:
            raise error_of(record.failure)
        if record.state == "cancelled":
            raise AstoreError(f"{job.kind} of pool {job.pool!r} was cancelled")
        return record

    def _host(self, pool: str) -> str:
        """Return the host that a job is for; empty: a host is to take the pool first."""
        held = self._store.table.definitions.get(pool)
        if held is None or not isinstance(held.definition(), PoolDef):
            raise PoolNotFoundError(f"there is no pool {pool!r}", what=pool)
        owner = self._state.owner(pool)
        if owner is not None and self._state.present(owner):
            return owner.host
        if not candidates(held, self._state.hosts.values()):
            where = f"host {owner.host!r} is not there" if owner is not None else "no host is there that it may run on"
            raise PoolInaccessibleError(f"pool {pool!r} is unreachable: {where}", pool=pool)
        return ""

    async def _wait(self, job: Job, listening: Any, on_progress: OnProgress | None) -> JobRecord:
        look = answered = time.monotonic() + LOOK_SECONDS
        while True:
            try:
                message = await heeding(listening.next_msg(timeout=max(look - time.monotonic(), 0.01)))
            except (TimeoutError, nats.errors.TimeoutError):
                look = time.monotonic() + LOOK_SECONDS
                try:
                    record = await self._look(job)
                except StoreError as error:  # servers that come back, or choose a leader, know what became of it
                    if isinstance(error, NOT_AGAIN) or time.monotonic() > answered + ABSENCE_SECONDS:
                        raise
                    continue
                answered = time.monotonic()
                if record is not None:
                    return record
                continue
            with contextlib.suppress(msgspec.MsgspecError):
                return _decode(message.data)
            with contextlib.suppress(msgspec.MsgspecError):
                progress = _decode_progress(message.data)
                if on_progress is not None:
                    on_progress(progress.done, progress.total)

    async def _look(self, job: Job) -> JobRecord | None:
        """Return the record of a job that is over. Put it where it belongs, if its pool has moved."""
        engine = self._store.engine
        if job.kind not in AGAIN:
            record, seq = await job_queue.record_of(engine, job.id)
            if record is not None:
                record = await job_queue.give_up_if_dead(engine, self._state, job.id, record, seq)
                if record.state == "unknown":
                    await self._drop(job)
                return None if record.state == "claimed" else record
            if job_queue.too_old(job_queue.age(engine, job, job.since)):
                if await job_queue.write_record(engine, job.id, job_queue.expired(), seq) is None:
                    return None  # somebody has it: look again
                await self._drop(job)
                return job_queue.expired()
        host = self._host(job.pool)
        waiting = await job_queue.waiting(engine, job.pool, job.what)
        if not waiting and (job.kind in AGAIN or (await job_queue.record_of(engine, job.id))[0] is None):
            await job_queue.submit(engine, job, host)  # the answer was lost, or it was never queued
        elif host and any(there != host for there in waiting.values()):
            await job_queue.move(engine, self._state, job.pool, host, job.what)
        return None

    async def _cancel(self, job: Job) -> None:
        """Cancel a job: before it is claimed, or while it runs."""
        if job.kind in AGAIN:
            return
        engine = self._store.engine
        if await job_queue.write_record(engine, job.id, JobRecord(state="cancelled"), 0) is not None:
            await self._drop(job)
        client = await engine.client()
        await client.publish(engine.names.told("cancel"), job.id.encode())

    async def _drop(self, job: Job) -> None:
        """Remove a job from the queue that must not run any more, if that is possible; its record says so, too."""
        with contextlib.suppress(StoreError):
            await job_queue.drop(self._store.engine, job)
