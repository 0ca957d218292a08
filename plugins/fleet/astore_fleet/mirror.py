"""Mirror: follows a stream of the engine from its first message on, without a gap.

A consumer tells when it has lost its way (its numbers skip, or its heartbeats fail). Then another one goes on where the last
one was. After a long absence everything is read anew, because the marks of what was deleted do not stay for ever.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Sequence

import nats.errors
from nats.aio.msg import Msg

from astore.errors import StoreError, reason
from astore.logs import get_logger, prepare
from astore_fleet.ending import end, heeding
from astore_fleet.engine import ANSWER_SECONDS, Engine, Message

HEARTBEAT_SECONDS = 1.0
"""Seconds after which a consumer without messages says that it is there."""

RETRY_SECONDS = 0.2
"""Seconds between two tries to make a consumer."""

MARK_SECONDS = 3600.0
"""Seconds that the mark of a deleted key stays."""

PATIENCE = 30.0
"""While a stream is read for the first time, a message must arrive in each period of this many seconds."""

LATE_SECONDS = 0.05
"""Seconds that a message may take to arrive before the leader is asked for it."""


class Mirror:
    """Follows a stream. Close it with :meth:`aclose`.

    :param take: called with each message, in the stream's order; never waits. A message that it fails on is logged and passed
        over: whoever may write to the stream may write anything. :param reset: called before everything is read
        anew. :param filters: the subjects to follow; none: all. :param headers_only: leave bodies out.
    :param since: begin after this sequence instead of reading all that is kept, and never read anything anew.
    :param hold: awaited after each message: the engine holds back what follows until it returns.
    :param barrier: a subject to write to when :meth:`sync` finds a new leader.
    :ivar seq: the sequence up to which it has taken everything. :ivar changed: set after each message; clear it.
    """

    def __init__(
        self,
        engine: Engine,
        stream: str,
        take: Callable[[Message], None],
        reset: Callable[[], None] = lambda: None,
        *,
        filters: Sequence[str] = (),
        headers_only: bool = False,
        since: int | None = None,
        barrier: str = "",
        hold: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self.engine = engine
        self.stream = stream
        self.seq: int = since or 0
        self._position = self.seq
        self.changed: asyncio.Event = asyncio.Event()
        self._again = since is None
        self._hold = hold
        self._barrier = barrier
        self._created = ""
        self._leader: tuple[object, object] | None = None
        self._take = take
        self._reset = reset
        self._filters = list(filters)
        self._headers_only = headers_only
        self._heard = 0.0  # when it was last known to miss nothing, by the monotonic clock
        self._complete = asyncio.Event()
        self._following = asyncio.Event()
        self._arrived = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def open(self, *, complete: bool = True) -> None:
        """Begin, and wait until all that is kept has arrived. :raises StoreError: nothing came for PATIENCE seconds.

        :param complete: False: wait only until the engine is about to send it.
        """
        self._task = asyncio.get_running_loop().create_task(self._keep(), name=f"astore mirror of {self.stream}")
        wanted = self._complete if complete else self._following
        try:
            while not wanted.is_set():
                before = self.seq
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(PATIENCE):
                        await wanted.wait()
                if not wanted.is_set() and self.seq == before:
                    raise self.engine.error(f"the stream {self.stream} cannot be read")
        except BaseException:
            await self.aclose()
            raise

    async def aclose(self) -> None:
        """End. May be called twice."""
        task, self._task = self._task, None
        if task is not None:
            await end([task])

    async def sync(self, least: int = 0) -> None:
        """Wait until everything that was written before this call has been taken, as far as the leader knows.

        (A leader that was stopped, and goes on, may not know for a moment that there is another one.)

        :param least: the sequence of a write of one's own, which is taken in any case.
        :raises StoreError: that cannot be known.
        """
        info = await self.engine.info(self.stream)
        last = int(info["state"]["last_seq"])
        cluster = info.get("cluster") or {}
        leader = (cluster.get("leader"), cluster.get("leader_since"))
        barrier = self._barrier if cluster.get("replicas") else ""
        if barrier and leader != self._leader:
            # a new leader may answer before it has applied all that the old one had acknowledged; not after a write
            least = max(least, await self.engine.publish(self.stream, barrier))
            self._leader = leader
        self._created = self._created or info["created"]
        if info["created"] != self._created:
            raise self.engine.error(f"the stream {self.stream} was removed, and made again")
        while self.seq < last:
            if await self._reached(last, LATE_SECONDS):
                break
            missed = await self.engine.next(self.stream, self.seq + 1, self._filters[0] if self._filters else ">")
            if missed is None or missed.seq > last:  # the last ones are gone: deleted, or their time is over
                if barrier:  # or a former leader says so: what arrives after a write tells
                    least = max(least, await self.engine.publish(self.stream, barrier))
                    break
                self.seq = max(self.seq, last)
            elif not await self._reached(missed.seq, ANSWER_SECONDS):
                raise self.engine.error(f"the stream {self.stream} cannot be read now")
        if self.seq < least and not await self._reached(least, ANSWER_SECONDS):
            raise self.engine.error(f"the stream {self.stream} cannot be read now")

    async def _reached(self, seq: int, seconds: float) -> bool:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while self.seq < seq:
                    arrived = self._arrived
                    await arrived.wait()
        return self.seq >= seq

    # ------------------------------------------------------------------------------------------------- consumers

    async def _keep(self) -> None:
        while True:
            try:
                await self._follow()
            except (StoreError, OSError, TimeoutError, nats.errors.Error):
                pass
            except Exception as error:  # nobody waits for this task: it goes on, or nothing would be read any more
                await self._complain("the reading of a stream ended", error)
            await asyncio.sleep(RETRY_SECONDS)

    async def _follow(self) -> None:
        """Read from one consumer until it loses its way."""
        client = await self.engine.client()
        inbox = client.new_inbox()
        listening = await client.subscribe(inbox, pending_bytes_limit=1 << 30)
        try:
            pending = await self._consume(inbox)
            self._following.set()
            if not pending:
                self._heard = time.monotonic()
                self._complete.set()
            expected, goal = 1, None
            while True:
                message = await heeding(listening.next_msg(timeout=3 * HEARTBEAT_SECONDS))
                if message.headers is not None and message.headers.get("Status") == "100":
                    if answer := message.reply or message.headers.get("Nats-Consumer-Stalled"):
                        await client.publish(answer)  # the consumer waits for it
                    self._heard = time.monotonic()
                    continue
                place = message.metadata
                if place.sequence.consumer != expected:
                    return
                expected += 1
                try:
                    self._taken(message, place.sequence.stream, place.timestamp.timestamp())
                except Exception as error:
                    await self._complain("a message cannot be read", error)
                if not self._complete.is_set():
                    if expected > pending and goal is None:
                        # All that was there at first has been read, and others write as fast as this reads. What they have
                        # overwritten meanwhile, before it arrived, is not complete without the later message.
                        goal = int((await self.engine.info(self.stream))["state"]["last_seq"])
                    if not place.num_pending or (goal is not None and self.seq >= goal):
                        self._complete.set()
                if self._hold is not None:
                    await self._hold()
        finally:
            with contextlib.suppress(Exception):
                await listening.unsubscribe()

    async def _complain(self, what: str, error: Exception) -> None:
        await asyncio.to_thread(prepare)
        get_logger().error(what, stream=self.stream, sequence=self.seq, error=reason(error))

    async def _consume(self, inbox: str) -> int:
        """Make a consumer; return how many messages it has for us now."""
        if self._again and self.seq and self._heard and time.monotonic() - self._heard > MARK_SECONDS / 2:
            self.seq = self._position = 0
            self._reset()
        start: dict[str, object] = {}
        if self._position:
            start = {"deliver_policy": "by_start_sequence", "opt_start_seq": self._position + 1}
        settings = {
            "deliver_subject": inbox,
            "deliver_policy": "all",
            "ack_policy": "none",
            "max_deliver": 1,
            "idle_heartbeat": int(HEARTBEAT_SECONDS * 1e9),
            "flow_control": True,
            "mem_storage": True,
            "num_replicas": 1,
            "headers_only": self._headers_only,
            "inactive_threshold": 30_000_000_000,
            **start,
        }
        if self._filters:
            settings["filter_subjects"] = self._filters
        made = await self.engine.api(f"CONSUMER.CREATE.{self.stream}", stream_name=self.stream, config=settings)
        if "error" in made:
            raise self.engine.error(f"the stream {self.stream} is gone")
        return int(made.get("num_pending", 0))

    def _taken(self, message: Msg, seq: int, at: float) -> None:
        try:
            self._take(Message(message.subject, message.data, seq, message.headers or {}, at))
        finally:
            self._position = seq
            self.seq = max(self.seq, seq)
            self._heard = time.monotonic()
            self.changed.set()
            self._arrived.set()  # wakes those who wait now
            self._arrived = asyncio.Event()
