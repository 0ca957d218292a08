"""Bulk refreshes: one question to each host instead of one queued job for each pool.

Nothing of it is kept by the engine. A host that has a question answers for each pool when that is done, and says every second
that it is there. What it does not answer is queued as a job.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable

import msgspec
import nats.errors
from nats.aio.msg import Msg

from astore.errors import StoreError
from astore.manager import Manager
from astore_fleet.ending import end, heeding
from astore_fleet.engine import Engine
from astore_fleet.jobs.job_records import JobRecord, failure_of, fitting
from astore_fleet.names import escaped

ALIVE_SECONDS = 1.0
"""Seconds between two signs of life."""

SILENT_SECONDS = 5.0
"""Seconds without any after which a host is not waited for."""


class Question(msgspec.Struct, frozen=True):
    """The pools to refresh, and how."""

    pools: list[str]
    full: bool = False
    timeout: float | None = None
    limit: int = 16


class Answer(msgspec.Struct, frozen=True):
    """What came of one pool. Without a record: a sign of life, or, with ``last``, the end."""

    pool: str = ""
    record: JobRecord | None = None
    last: bool = False


def subject(engine: Engine, host: str) -> str:
    """Return the subject on which a host is asked."""
    return engine.names.told(f"refresh.{escaped(host)}")


async def ask(engine: Engine, host: str, question: Question) -> AsyncGenerator[tuple[str, JobRecord], None]:
    """Yield the answers of a host; perhaps not all, and none if it cannot be asked (the question may be too large)."""
    try:
        client = await engine.client()
        inbox = client.new_inbox()
        listening = await client.subscribe(inbox)
    except (StoreError, OSError, nats.errors.Error):
        return
    try:
        try:
            await client.publish(subject(engine, host), msgspec.msgpack.encode(question), reply=inbox)
        except (OSError, nats.errors.Error):
            return
        while True:
            try:
                message = await heeding(listening.next_msg(timeout=SILENT_SECONDS))
                answer = msgspec.msgpack.decode(message.data, type=Answer)
            except (nats.errors.Error, TimeoutError, msgspec.MsgspecError):
                return
            if answer.record is not None:
                yield answer.pool, answer.record
            elif answer.last:
                return
    finally:
        with contextlib.suppress(Exception):
            await listening.unsubscribe()


class Answerer:
    """Answers such questions on a host. :param holds: returns whether this host looks after a pool, and has begun."""

    def __init__(self, engine: Engine, manager: Manager, holds: Callable[[str], bool]) -> None:
        self._engine = engine
        self._manager = manager
        self._holds = holds
        self._tasks: set[asyncio.Task[None]] = set()

    async def hear(self, message: Msg) -> None:
        """Take a question, and answer it beside others."""
        try:
            question = msgspec.msgpack.decode(message.data, type=Question)
        except msgspec.MsgspecError:  # anybody may have written anything
            return
        task = asyncio.get_running_loop().create_task(self._answer(question, message.reply))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def aclose(self) -> None:
        """End what runs."""
        await end(set(self._tasks))

    async def _answer(self, question: Question, reply: str) -> None:
        alive = asyncio.get_running_loop().create_task(self._stay_alive(reply))
        waiting = iter([pool for pool in question.pools if self._holds(pool)])

        async def work() -> None:
            for pool in waiting:
                record = fitting(await self._refresh(pool, question), self._engine.largest)
                if record.failure is None or self._holds(
                    pool
                ):  # else it has gone on meanwhile: who asks finds it there
                    await self._tell(reply, Answer(pool, record))

        try:
            await asyncio.gather(*(work() for _ in range(max(question.limit, 1))))
            await self._tell(reply, Answer(last=True))
        finally:
            alive.cancel()

    async def _refresh(self, pool: str, question: Question) -> JobRecord:
        try:
            outcome = await self._manager.pool(pool).refresh(full=question.full, timeout=question.timeout)
        except Exception as error:  # a backend may raise anything
            return JobRecord(state="failed", failure=failure_of(error))
        return JobRecord(state="done", outcome=outcome)

    async def _stay_alive(self, reply: str) -> None:
        while True:
            await asyncio.sleep(ALIVE_SECONDS)
            await self._tell(reply, Answer())

    async def _tell(self, reply: str, answer: Answer) -> None:
        with contextlib.suppress(StoreError, OSError, nats.errors.Error):
            client = await self._engine.client()
            await client.publish(reply, msgspec.msgpack.encode(answer))
