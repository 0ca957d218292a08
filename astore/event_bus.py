"""The bus that numbers, keeps and delivers events.

It keeps the last events for replay. Publishing is safe from any thread and never waits. One event costs as much as the ten
thousand of a first refresh: those are kept as one batch, and built when they are read.
"""

from __future__ import annotations

import asyncio
import bisect
import threading
import time
from collections import deque
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, Self, TypeVar, cast

import msgspec

from astore.events import Event, Lagged
from astore.model.record import Record

if TYPE_CHECKING:
    import typing_extensions

    E = typing_extensions.TypeVar("E", bound=Event, default=Event)
else:
    E = TypeVar("E", bound=Event)  # its default needs Python 3.13

DEFAULT_CAPACITY = 32_768
"""How many events the bus keeps."""


class EventsStatistics(Record, frozen=True):
    """Counts of the bus at one moment: the last number, the events kept, and the subscribers."""

    last_seq: int
    kept: int
    subscribers: int


class _Batch(NamedTuple):
    """``size`` events numbered from ``first`` on, built when they are read. ``kind`` None: they are of several kinds."""

    first: int
    size: int
    time: float
    pool: str | None
    kind: type[Event] | None
    build: Callable[[int], Event]


class _Cursor:
    """One reader's place among the events. Its fields change only under the lock of the bus, except ``loop``.

    :ivar position: the number of the next event to read. :ivar batch: the batch that was read last.
    :ivar waiting: whether the next event wakes the reader. :ivar loop: the reader's event loop while it reads.
    """

    __slots__ = ("batch", "kinds", "loop", "pools", "position", "signal", "waiting")

    def __init__(self, position: int, pools: Collection[str] | None, kinds: Collection[type[Event]] | None) -> None:
        self.position: int = position
        self.pools: frozenset[str] | None = None if pools is None else frozenset(pools)
        self.kinds: tuple[type[Event], ...] | None = None if kinds is None else tuple(kinds)
        self.batch: _Batch | None = None
        self.waiting: bool = False
        self.loop: asyncio.AbstractEventLoop | None = None
        self.signal: asyncio.Event = asyncio.Event()

    def wants(self, batch: _Batch) -> bool:
        """Return whether the reader asked for such events, or for some of them."""
        if self.pools is not None and batch.pool not in self.pools:
            return False
        return self.kinds is None or batch.kind is None or issubclass(batch.kind, self.kinds)

    def wake(self) -> bool:
        """Wake the reader, from any thread. Return False if its loop is closed."""
        loop = self.loop
        if loop is None:
            return True
        try:
            running = asyncio.get_running_loop()
        except RuntimeError:
            running = None
        if running is loop:
            self.signal.set()
            return True
        try:
            loop.call_soon_threadsafe(self.signal.set)
        except RuntimeError:
            return False
        return True


class EventBus:
    """Numbers events, keeps the last ``capacity`` and wakes the readers. Publishing is safe from any thread.

    :ivar closed: it takes no more events, and readers end once they have read what is kept.
    """

    def __init__(self, capacity: int = DEFAULT_CAPACITY) -> None:
        if capacity < 1:
            raise ValueError("capacity must be at least 1")
        self.capacity = capacity
        self._lock = threading.Lock()
        self._batches: deque[_Batch] = deque()
        self._next = 1
        self._cursors: set[_Cursor] = set()
        self.closed: bool = False

    @property
    def last_seq(self) -> int:
        """The number of the last event published (0: none yet)."""
        return self._next - 1

    def publish(self, kind: type[Event], **fields: Any) -> None:
        """Publish one event of a kind. Never waits."""
        self.publish_batch(1, lambda _: kind(**fields), pool=fields.get("pool"), kind=kind)

    def publish_batch(
        self, count: int, build: Callable[[int], Event], *, pool: str | None = None, kind: type[Event] | None = None
    ) -> None:
        """Publish ``count`` events at once; ``build(i)`` builds the i-th when it is read, if ever.

        :param kind: what they all are. Readers of other kinds then pass over them together.
        """
        if count < 1:
            return
        with self._lock:
            if self.closed:
                return
            self._batches.append(_Batch(self._next, count, time.time(), pool, kind, build))
            self._next += count
            oldest = self._next - self.capacity
            while self._batches[0].first + self._batches[0].size <= oldest:
                self._batches.popleft()
            waiting = [cursor for cursor in self._cursors if cursor.waiting]
        self._wake(waiting)

    def subscribe(
        self,
        since: int | None = None,
        *,
        pools: Collection[str] | None = None,
        kinds: Collection[type[E]] | None = None,
    ) -> Subscription[E]:
        """Return a subscription; enter it with ``async with``.

        :param since: replay the events after this number; None replays none.
        :param pools: only events about pools of these names. :param kinds: only events of these classes, and ``Lagged``.
        :raises ValueError: no event has the number ``since`` yet.
        """
        with self._lock:
            if since is not None and not 0 <= since < self._next:
                raise ValueError(f"since={since}: the last event has number {self._next - 1}")
            position = self._next if since is None else since + 1
        return Subscription(self, _Cursor(position, pools, kinds))

    def statistics(self) -> EventsStatistics:
        """Counts at this moment."""
        with self._lock:
            return EventsStatistics(self._next - 1, min(self._next - 1, self.capacity), len(self._cursors))

    def open(self) -> None:
        """Accept events again after :meth:`close`; the numbers go on."""
        with self._lock:
            self.closed = False

    def close(self) -> None:
        """Accept no more events; readers end once they have read what is kept."""
        with self._lock:
            self.closed = True
            cursors = list(self._cursors)
        self._wake(cursors)

    # ------------------------------------------------------------------------------------------ for subscriptions

    def attach(self, cursor: _Cursor) -> None:
        """Add a reader."""
        with self._lock:
            self._cursors.add(cursor)

    def detach(self, cursor: _Cursor) -> None:
        """Remove a reader."""
        with self._lock:
            self._cursors.discard(cursor)

    def advance(self, cursor: _Cursor) -> tuple[_Batch, int] | Lagged | None:
        """Return the batch and the number of the reader's next event, or None if there is none yet.

        After None, the next event wakes the reader.
        """
        while True:
            with self._lock:  # released after each batch that is skipped: publishing does not wait for a reader
                cursor.waiting = False
                seq, oldest = cursor.position, max(self._next - self.capacity, 1)
                if seq < oldest:
                    cursor.position = oldest
                    return Lagged(seq=oldest - 1, time=time.time(), missed=oldest - seq)
                if seq >= self._next:
                    cursor.waiting = True
                    cursor.batch = None
                    return None
                batch = cursor.batch
                if batch is None or not batch.first <= seq < batch.first + batch.size:
                    batch = cursor.batch = self._find(seq)
                if cursor.wants(batch):
                    cursor.position += 1
                    return batch, seq
                cursor.position = batch.first + batch.size

    def _find(self, seq: int) -> _Batch:
        """Return the batch that holds a number. The caller holds the lock and knows that there is one."""
        return self._batches[bisect.bisect_right(self._batches, seq, key=lambda batch: batch.first) - 1]

    def _wake(self, cursors: list[_Cursor]) -> None:
        for cursor in cursors:
            if not cursor.wake():
                self.detach(cursor)


class Subscription(Generic[E]):
    """An async iterator over events of one type. Each subscription reads at its own pace.

    A :class:`~astore.Lagged` stands for events that were missed, whatever the type.
    """

    CHECKPOINT_EVERY = 64  # events delivered without waiting before other tasks get a turn

    def __init__(self, bus: EventBus, cursor: _Cursor) -> None:
        self._bus = bus
        self._cursor = cursor
        self._entered = False
        self._run = 0

    async def __aenter__(self) -> Self:
        self._cursor.loop = asyncio.get_running_loop()
        self._entered = True
        self._bus.attach(self._cursor)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Stop reading; a running iteration ends. May be called twice."""
        self._bus.detach(self._cursor)
        self._cursor.loop = None
        self._cursor.signal.set()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> E | Lagged:
        signal = self._cursor.signal
        while True:
            if self._cursor.loop is None:
                if not self._entered:
                    raise RuntimeError("enter the subscription first: async with manager.events() as events")
                raise StopAsyncIteration
            if self._run >= self.CHECKPOINT_EVERY:
                self._run = 0
                await asyncio.sleep(0)  # before an event is taken, so that a cancellation here loses none
                continue
            event = self.receive_nowait()
            if event is not None:
                self._run += 1
                return event
            if self._bus.closed:
                raise StopAsyncIteration
            self._run = 0
            await signal.wait()
            signal.clear()

    def receive_nowait(self) -> E | Lagged | None:
        """Return the next event, or None if there is none yet."""
        while True:
            found = self._bus.advance(self._cursor)
            if not isinstance(found, tuple):
                return found
            batch, seq = found
            event = batch.build(seq - batch.first)
            if self._cursor.kinds is None or isinstance(event, self._cursor.kinds):
                return cast("E", msgspec.structs.replace(event, seq=seq, time=batch.time))
