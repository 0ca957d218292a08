"""Worker: runs the jobs that are queued for its host.

A job stays in the queue until it is done. If the worker dies, the engine gives it out again: a refresh is run again; any other
job has a record that it was claimed, and becomes ``unknown``. Records do not stay for ever: a job that is so old that its
record may be gone is not begun.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Callable
from functools import partial

import msgspec
import nats.errors
from nats.aio.msg import Msg

from astore.cancellation import bounded
from astore.errors import AstoreError, PoolNotFoundError, StoreError
from astore.logs import get_logger
from astore.manager import Manager
from astore_fleet.ending import end, heeding
from astore_fleet.engine import ANSWER_SECONDS
from astore_fleet.jobs import bulk, job_queue
from astore_fleet.jobs.job_records import AGAIN, Job, JobRecord, Progress, failure_of, fitting, timed_out
from astore_fleet.jobs.verbs import act
from astore_fleet.names import escaped
from astore_fleet.placement.fleet_state import FleetState
from astore_fleet.records import Owner
from astore_fleet.store.nats_store import NatsStore

AT_ONCE = 16
"""How many jobs a host runs at once."""

ACK_SECONDS = 10.0
"""Seconds after which the engine gives a job to another worker, unless the one that has it says that it goes on."""

PULL_SECONDS = 20.0
"""Seconds that one question for a job waits."""

NOT_YET_SECONDS = 0.1
"""Seconds before a job is tried again whose pool is being started."""

TELL_SECONDS = 0.5
"""Seconds between two reports of progress."""


class Worker:
    """Runs jobs.

    :param holds: returns whether this host looks after a pool.
    """

    def __init__(
        self, manager: Manager, store: NatsStore, me: Owner, holds: Callable[[str], bool], state: FleetState
    ) -> None:
        self._manager = manager
        self._store = store
        self._me = me
        self._holds = holds
        self._state = state
        self._log = get_logger().bind(host=me.host)
        self._running: dict[str, asyncio.Task[None]] = {}  # by the job's id
        self._answerer = bulk.Answerer(store.engine, manager, holds)
        self._cancelled: set[str] = set()
        self._settling: set[str] = set()  # the jobs that are over, whose outcome is being written
        self._closing = False
        self._pools: Counter[str] = Counter()

    def busy(self, pool: str) -> bool:
        """Return whether a job of a pool runs."""
        return self._pools[pool] > 0

    async def gather(self, pool: str) -> None:
        """Take over the jobs of a pool that wait for other hosts."""
        await job_queue.move(self._store.engine, self._state, pool, self._me.host)

    async def run(self) -> None:
        """Run jobs until the task is cancelled, or the worker is closed."""
        engine = self._store.engine
        client = await engine.client()
        cancels = await client.subscribe(engine.names.told("cancel"), cb=self._cancel)
        questions = await client.subscribe(bulk.subject(engine, self._me.host), cb=self._answerer.hear)
        try:
            await asyncio.gather(*(self._pull() for _ in range(AT_ONCE)))
        finally:
            for one in (cancels, questions):
                with contextlib.suppress(Exception):
                    await one.unsubscribe()

    async def aclose(self) -> None:
        """Take no more jobs, cancel what runs, and wait until that is told. Bounded. May be called twice."""
        self._closing = True
        await self._answerer.aclose()
        running = set(self._running.values())
        for job in tuple(self._running):
            self._end(job)
        if running:
            await bounded(asyncio.wait(running))

    async def _cancel(self, message: Msg) -> None:
        self._end(message.data.decode("ascii", "replace"))

    def _end(self, job: str) -> None:
        """Cancel a job, unless it is over."""
        if job in self._running and job not in self._settling:
            self._cancelled.add(job)
            self._running[job].cancel()

    async def _pull(self) -> None:
        """Ask for a job, run it, and ask for the next one."""
        while not self._closing:
            try:
                message = await self._next()
                if message is not None and self._closing:
                    await message.nak()
                elif message is not None:
                    await self._take(message)
            except (AstoreError, OSError, TimeoutError, nats.errors.Error):
                await asyncio.sleep(0.2)
            except Exception as error:  # of one job: the others go on
                self._log.error("a job could not be run", error=f"{type(error).__name__}: {error}")
                await asyncio.sleep(1.0)

    async def _next(self) -> Msg | None:
        engine, names = self._store.engine, self._store.engine.names
        consumer = f"host-{escaped(self._me.host)}".replace("=", "_")
        client = await engine.client()
        subject = f"$JS.API.CONSUMER.MSG.NEXT.{names.jobs}.{consumer}"
        asked = msgspec.json.encode({"batch": 1, "expires": int(PULL_SECONDS * 1e9)})
        try:
            waiting = client.request(subject, asked, timeout=PULL_SECONDS + ANSWER_SECONDS, old_style=True)
            found = await heeding(waiting)
        except nats.errors.NoRespondersError:
            found = None
        if found is None or (found.headers or {}).get("Status") == "503":
            settings = {
                "durable_name": consumer,
                "ack_policy": "explicit",
                "ack_wait": int(ACK_SECONDS * 1e9),
                "filter_subject": names.job(self._me.host, "*", ">").replace("=2A", "*"),
                "max_ack_pending": 4 * AT_ONCE,
            }
            await engine.api(f"CONSUMER.CREATE.{names.jobs}.{consumer}", stream_name=names.jobs, config=settings)
            return None
        return None if "Status" in (found.headers or {}) else found

    # ------------------------------------------------------------------------------------------------- one job

    async def _take(self, message: Msg) -> None:
        try:
            job = msgspec.msgpack.decode(message.data, type=Job)
        except msgspec.MsgspecError:  # anybody may have written anything
            await self._done(message)
            return
        if job.id in self._running:
            await message.in_progress()
            return
        if not self._holds(job.pool):
            await self._pass_on(job, message)
            return
        task = asyncio.get_running_loop().create_task(self._do(job, message))
        self._running[job.id] = task
        self._pools[job.pool] += 1
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError:
            self._cancelled.add(job.id)
            task.cancel()
            await bounded(asyncio.wait([task]))
            raise
        finally:
            self._cancelled.discard(job.id)
            self._pools[job.pool] -= 1
            self._running.pop(job.id, None)
        if not task.cancelled() and (error := task.exception()) is not None:
            raise error

    async def _pass_on(self, job: Job, message: Msg) -> None:
        """Give a job to the host that looks after its pool."""
        owner = self._state.owner(job.pool)
        if owner == self._me:  # it is being started here, or the lease has to be renewed first
            await asyncio.sleep(NOT_YET_SECONDS)
            await message.nak()
            return
        job = msgspec.structs.replace(job, since=job.since or message.metadata.timestamp.timestamp())
        await job_queue.submit(self._store.engine, job, "" if owner is None else owner.host)
        await self._done(message)

    async def _do(self, job: Job, message: Msg) -> None:
        engine, claim = self._store.engine, None
        if job.kind not in AGAIN:
            await engine.info(engine.names.jobs)  # it tells the server's time
            claim = await job_queue.claim(engine, job, self._me)
            if claim is None:
                await self._claimed_before(job, message)
                return
        # after the claim, so that nothing comes between
        age = job_queue.age(engine, job, message.metadata.timestamp.timestamp())
        progress: list[Progress] = []
        alive = asyncio.get_running_loop().create_task(self._stay_alive(job, message, progress, claim))
        try:
            if claim is not None and job_queue.too_old(age):
                record = job_queue.expired()
            else:
                record = await self._outcome(job, age, progress)
            if claim is None and record.failure is not None and not self._holds(job.pool):
                await self._pass_on(job, message)  # the pool has gone on meanwhile, and the refresh with it
                return
            record = fitting(record, engine.largest)
            self._settling.add(job.id)
            if claim is not None:
                await claim.settle(record)  # until then the engine must not give the job out again
        finally:
            self._settling.discard(job.id)
            alive.cancel()
        if claim is not None:
            await end([alive])
        await self._done(message)
        if progress:  # the last, which is told even of a job that takes no time
            await self._tell(job, msgspec.msgpack.encode(progress.pop()))
        await self._tell(job, msgspec.msgpack.encode(record))

    async def _claimed_before(self, job: Job, message: Msg) -> None:
        """Handle a job that was claimed, cancelled or done before: it is not run again."""
        engine = self._store.engine
        record, seq = await job_queue.record_of(engine, job.id)
        if record is not None and record.state == "claimed":
            if record.session == self._me.session:  # it has ended here, and could not tell how
                record = job_queue.unknown(record)
                await job_queue.write_record(engine, job.id, record, seq)
            else:
                record = await job_queue.give_up_if_dead(engine, self._state, job.id, record, seq)
            if record.state == "claimed":
                return  # another host does it; the engine asks again
        await self._done(message)

    async def _outcome(self, job: Job, age: float, progress: list[Progress]) -> JobRecord:
        """Run a job to its end, and return its record; never raises, except CancelledError when the agent ends."""
        record = partial(JobRecord, host=self._me.host, session=self._me.session)
        try:
            async with asyncio.timeout(None if job.seconds is None else max(job.seconds - age, 0.0)) as limit:
                pool = self._manager.pool(job.pool)
                if job.kind in AGAIN:
                    outcome = await pool.refresh(full=job.kind == "refresh-full")
                    return record(state="done", outcome=outcome)

                def tell(done: int, total: int | None) -> None:
                    progress[:] = [Progress(done, total)]

                volume = await act(job.kind, self._manager, pool, job.arguments, tell)
                return record(state="done", volume=volume)
        except asyncio.CancelledError:
            if job.kind in AGAIN or job.id not in self._cancelled:
                raise
            return record(state="cancelled")  # what is cancelled leaves nothing half done
        except TimeoutError as error:
            return record(state="failed", failure=failure_of(timed_out(job) if limit.expired() else error))
        except PoolNotFoundError as error:
            return record(state="failed", failure=failure_of(error))
        except Exception as error:  # a backend may raise anything
            return record(state="failed", failure=failure_of(error))

    async def _stay_alive(
        self, job: Job, message: Msg, progress: list[Progress], claim: job_queue.Claim | None
    ) -> None:
        """Say that the job goes on, and how far it is; renew its claim."""
        said = renewed = time.monotonic()
        while True:
            await asyncio.sleep(TELL_SECONDS)
            with contextlib.suppress(StoreError, OSError, nats.errors.Error):
                if progress:
                    await self._tell(job, msgspec.msgpack.encode(progress.pop()))
                if time.monotonic() - said > ACK_SECONDS / 4:
                    await message.in_progress()
                    said = time.monotonic()
                if claim is not None and time.monotonic() - renewed > job_queue.RECORD_SECONDS / 4:
                    await claim.renew()
                    renewed = time.monotonic()

    async def _tell(self, job: Job, data: bytes) -> None:
        client = await self._store.engine.client()
        await client.publish(self._store.engine.names.told(told_of(job)), data)

    async def _done(self, message: Msg) -> None:
        """Have the engine remove a job from the queue, and wait until it is removed."""
        await self._store.engine.ask(message.reply, b"+ACK")


def told_of(job: Job) -> str:
    """Return on which subject the progress and the result of a job are told."""
    return f"job.{escaped(job.pool)}.{job.what}"
