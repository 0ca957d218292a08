"""The events of all hosts as one stream: forwarding a Manager's.

A forwarder publishes the events of the pools that its host looks after, and then keeps their snapshots: a snapshot never has
what was not told. If the host dies between the two, the next one finds the same changes, and tells them again: an event has an
id made of what changed, by which the engine drops the second one.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import time
from collections.abc import Callable
from hashlib import blake2b

import msgspec
import nats.errors

import astore.events as kinds
from astore.errors import AstoreError, StoreError, reason
from astore.event_bus import Subscription
from astore.events import (
    Event,
    PoolEvent,
    VolumeAdded,
    VolumeChanged,
    VolumeEvent,
    VolumeProgress,
    VolumeRemoved,
)
from astore.logs import get_logger
from astore.manager import Manager
from astore.model import Snapshot, VolumeInfo
from astore.pools.pool import Pool
from astore_fleet.engine import Refused
from astore_fleet.records import PARTIAL
from astore_fleet.store.nats_store import NatsStore

WINDOW = 128
"""How many events are on the way at once."""

SAVE_SECONDS = 1.0
"""Seconds between two snapshots of one pool that are kept, at least."""

SAME_SECONDS = 10.0
"""Seconds after which a snapshot is kept in which only times and sizes of the pool have changed."""

SETTLE_SECONDS = 2.0
"""Seconds to wait for that at the end."""

RETRY_SECONDS = 0.5
"""Seconds before the engine is tried again."""

REFUSED_SECONDS = 60.0
"""Seconds for which the engine may refuse all events of a kind before they are passed over."""

MOST_HELD = 1 << 20
"""How many events of pools wait until it is known whether this host has them, at most."""

_DEFINITIONS = (kinds.PoolDefined, kinds.PoolUndefined, kinds.PoolAutostartChanged)


def identity(info: VolumeInfo) -> str:
    """Return what tells this state of a volume from any other."""
    return (
        f"{info.inode}:{info.ctime_ns}:{info.mtime_ns}:{info.physical}:{info.capacity}:{info.allocation}:{info.format}"
    )


class EventIds:
    """Makes the ids of one host's events.

    :param session: names this run of the agent.
    """

    def __init__(self, session: str) -> None:
        self._session = session
        self._saved: set[str] = set()  # uuids
        self._known: dict[tuple[str, str], str] = {}  # since the snapshot was kept: what was told of volumes last
        self._removed: set[tuple[str, str]] = set()  # since then: which were told to be gone

    def saved(self, uuid: str) -> None:
        """Note that a pool's snapshot has been kept."""
        self.forget(uuid)
        self._saved.add(uuid)

    def knows(self, uuid: str) -> bool:
        """Return whether a snapshot of this pool has been kept."""
        return uuid in self._saved

    def save_again(self, uuid: str) -> None:
        """Have a pool's next snapshot kept in any case."""
        self._saved.discard(uuid)

    def forget(self, uuid: str) -> None:
        """Forget a pool that this host looks after no more."""
        self.save_again(uuid)
        self._known = {one: state for one, state in self._known.items() if one[0] != uuid}
        self._removed = {one for one in self._removed if one[0] != uuid}

    def is_news(self, event: Event, kept: Snapshot) -> bool:
        """Return whether an event is not what the last host has told already of a pool that went from it to this one."""
        if not isinstance(event, VolumeAdded):
            return True
        one = (event.uuid, event.name)
        if one in self._known or one in self._removed:
            return True
        before = kept.get(event.name)
        return before is None or identity(before) != identity(event.volume)

    def of(self, event: Event, kept: Snapshot, run: float | None) -> str:
        """Return the id of an event: the same for the same change in a run, also if another host finds it.

        :param kept: the pool's last snapshot that the engine has, which another host would compare with.
        :param run: when the pool was started; None: it is not active any more.
        """
        if run is None:
            return f"{self._session}:{event.seq}"
        if isinstance(event, VolumeAdded | VolumeChanged):
            state = self._known[event.uuid, event.name] = identity(event.volume)
            return _digest(event.uuid, f"{run}", type(event).__name__, event.name, state)
        if isinstance(event, VolumeRemoved):
            before = kept.get(event.name)
            self._removed.add((event.uuid, event.name))
            known = self._known.get((event.uuid, event.name)) or (None if before is None else identity(before))
            if known is not None:
                return _digest(event.uuid, f"{run}", "removed", event.name, known)
        return f"{self._session}:{event.seq}"


def encoded(event: Event, largest: int) -> tuple[bytes, bool]:
    """Return an event's body, and whether the references of its volume were left out because there were too many.

    :param largest: the most bytes. A larger body is returned if nothing can be left out.
    """
    data = msgspec.json.encode(event)
    if len(data) <= largest or not isinstance(event, VolumeAdded | VolumeChanged):
        return data, False
    lighter = msgspec.structs.replace(event.volume, references=())
    return msgspec.json.encode(msgspec.structs.replace(event, volume=lighter)), True


def _digest(*parts: str) -> str:
    return blake2b("\0".join(parts).encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()


class Forwarder:
    """Publishes a Manager's events, and keeps the snapshots of its pools.

    :param owns: returns whether this host looks after a pool, by name; None: it did, and its lease is over, or its run is from
        before another host had it. Then what is told of the pool waits until that is known; other pools do not wait.
    """

    def __init__(self, manager: Manager, store: NatsStore, session: str, owns: Callable[[str], bool | None]) -> None:
        self._manager = manager
        self._store = store
        self._owns = owns
        self._ids = EventIds(session)
        self._dirty: dict[str, float] = {}  # by pool name: when its snapshot is to be kept
        self._kept: dict[str, float] = {}  # by pool name: when it was kept last
        self._moved: dict[str, int] = {}  # by uuid: the last event before the pool came or went
        self._refused: dict[type[Event], float] = {}  # by kind: since when the engine has refused all
        self._seq = 0
        self._batch: list[Event] = []  # what has to be told first
        self._held: dict[str, list[Event]] = {}  # by pool name: what waits until it is known whose the pool is
        self._held_count = 0
        self._log = get_logger().bind(host=store.host)
        self._pause: asyncio.Timeout | None = None  # while it waits for events

    async def run(self) -> None:
        """Forward until the Manager is closed, or the task is cancelled. If it failed, it goes on where it was."""
        async with self._manager.events(since=self._seq) as events:
            while True:
                self._batch = self._decided() + self._batch
                while self._batch:
                    again = await self._publish(self._batch[:WINDOW])
                    self._batch = again + self._batch[WINDOW:]
                await self._save()
                batch = await self._next(events)
                if batch is None:
                    return
                self._batch = batch

    def moved(self, uuid: str) -> None:
        """Note that a pool came: earlier events are another host's, and its next snapshot is kept in any case."""
        self._ids.forget(uuid)
        self._moved[uuid] = self._manager.statistics().events.last_seq

    def came_back(self, uuid: str) -> None:
        """Note that a pool that goes on came back: its next snapshot is kept in any case."""
        self._ids.save_again(uuid)

    async def settle(self) -> None:
        """Wait until what has happened so far has been told, and the snapshots are kept. Bounded."""
        now = time.monotonic()
        self._dirty = dict.fromkeys(self._dirty, now)
        if self._pause is not None and not self._pause.expired():
            self._pause.reschedule(now)
        while time.monotonic() < now + SETTLE_SECONDS:
            told = not self._batch and self._manager.statistics().events.last_seq <= self._seq
            if told and all(self._owns(name) is None for name in (*self._dirty, *self._held)):
                return
            await asyncio.sleep(0.02)

    async def _next(self, events: Subscription) -> list[Event] | None:
        """Return the next events; none of them if a snapshot waits to be kept; None: the Manager is closed."""
        batch: list[Event] = []
        again = [time.monotonic() + RETRY_SECONDS] if self._held else []
        due = min([*self._dirty.values(), *again], default=None)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(None if due is None else max(due - time.monotonic(), 0.001)) as self._pause:
                try:
                    batch.append(await anext(events))
                except StopAsyncIteration:
                    return None
                finally:
                    self._pause = None
        while batch and len(batch) < WINDOW and (event := events.receive_nowait()) is not None:
            batch.append(event)
        if batch:
            self._seq = batch[-1].seq
        return batch

    def _decided(self) -> list[Event]:
        """Return the events that were held of pools of which it is known by now whether this host has them."""
        known = [name for name in self._held if self._owns(name) is not None]
        decided = [event for name in known for event in self._held.pop(name)]
        self._held_count -= len(decided)
        return decided

    def _hold(self, event: PoolEvent) -> None:
        """Hold an event. If there are too many, a :class:`Lagged` takes the place of those of the pool that has most."""
        if self._held_count >= MOST_HELD:
            longest = max(self._held.values(), key=len)
            missed = sum(one.missed if isinstance(one, kinds.Lagged) else 1 for one in longest)
            self._held_count -= len(longest) - 1
            longest[:] = [kinds.Lagged(seq=longest[-1].seq, time=longest[-1].time, missed=missed)]
        self._held.setdefault(event.pool, []).append(event)
        self._held_count += 1

    async def _publish(self, batch: list[Event]) -> list[Event]:
        """Publish events; return those that have to be tried again. Those of pools that wait are held."""
        ours = {event.seq: self._is_ours(event) for event in batch}
        told = [one for one in batch if ours[one.seq] and self._ids.is_news(one, self._before(one))]
        outcomes = await asyncio.gather(*(self._tell(event) for event in told), return_exceptions=True)
        again = set[int]()
        for event, outcome in zip(told, outcomes, strict=True):
            if outcome is None:
                self._refused.pop(type(event), None)
            elif not isinstance(outcome, Exception):
                raise outcome
            elif self._is_hopeless(event, outcome):
                self._log.error("an event cannot be told", kind=type(event).__name__, error=reason(outcome))
                self._make_dirty(event)
            else:
                again.add(event.seq)
        for event in batch:
            if ours[event.seq] is None and isinstance(event, PoolEvent):
                self._hold(event)
        if again:
            await asyncio.sleep(RETRY_SECONDS)
        return [event for event in batch if event.seq in again]

    def _is_hopeless(self, event: Event, error: Exception) -> bool:
        """Return whether an event is passed over: no engine takes it, or this one has refused its kind for long."""
        if not isinstance(error, Refused):
            return not isinstance(error, StoreError | OSError | nats.errors.Error)
        if error.errno == errno.EMSGSIZE:
            return True
        return time.monotonic() - self._refused.setdefault(type(event), time.monotonic()) >= REFUSED_SECONDS

    def _is_ours(self, event: Event) -> bool | None:
        if isinstance(event, VolumeProgress):
            return False
        if isinstance(event, _DEFINITIONS):
            return self._store.table.written_by.get(event.pool) == self._store.engine.session
        if not isinstance(event, PoolEvent):
            return True
        return event.seq > self._moved.get(event.uuid, 0) and (
            None if event.pool in self._held else self._owns(event.pool)
        )

    async def _tell(self, event: Event) -> None:
        engine = self._store.engine
        uuid = event.uuid if isinstance(event, PoolEvent) else "-"
        subject = engine.names.event(self._store.host, uuid, type(event).__name__)
        id = self._ids.of(event, self._before(event), self._run_of(event))
        data, partial = encoded(event, engine.largest)
        headers = {PARTIAL: "1"} if partial else None
        seq = await engine.publish(engine.names.events, subject, data, headers, id=id)
        if isinstance(event, PoolEvent):
            told = self._store.snapshots.told
            told[event.pool] = max(seq, told.get(event.pool, 0))
        self._make_dirty(event)

    def _make_dirty(self, event: Event) -> None:
        """Have the snapshot kept of the pool that an event has changed."""
        if isinstance(event, VolumeEvent | kinds.PoolRefreshed | kinds.PoolStateChanged | kinds.PoolStarted):
            due = max(time.monotonic(), self._kept.get(event.pool, 0.0) + SAVE_SECONDS)
            if self._changes_nothing(event):
                due += SAME_SECONDS
            self._dirty[event.pool] = min(self._dirty.get(event.pool, due), due)

    def _changes_nothing(self, event: PoolEvent) -> bool:
        """Return whether an event tells of a refresh that found what the engine has."""
        found = isinstance(event, kinds.PoolRefreshed) and not (event.added or event.changed or event.removed)
        return found and self._ids.knows(event.uuid)

    async def _save(self) -> None:
        """Keep the snapshots of pools that changed, if everything in them has been told."""
        for name, due in list(self._dirty.items()):
            if time.monotonic() < due:
                continue
            if self._manager.statistics().events.last_seq != self._seq:
                return  # there are others to tell first
            try:
                pool, ours = self._manager.pool(name), self._owns(name)
                if ours is None or name in self._held:
                    self._dirty[name] = time.monotonic() + RETRY_SECONDS
                    continue
                if pool.active and ours:
                    await self._keep(pool)
                else:
                    self._kept.pop(name, None)
                self._dirty.pop(name, None)
            except LookupError:
                self._dirty.pop(name, None)
                self._kept.pop(name, None)
            except (AstoreError, OSError) as error:
                if isinstance(error, Refused):
                    self._log.error("a snapshot was refused", pool=name, error=reason(error))
                self._dirty[name] = time.monotonic() + SAVE_SECONDS
            except Exception as error:  # of one pool: the others go on
                self._log.error("a snapshot cannot be kept", pool=name, error=f"{type(error).__name__}: {error}")
                self._dirty[name] = time.monotonic() + SAME_SECONDS

    async def _keep(self, pool: Pool) -> None:
        record = pool.parts.record
        seen, life = record.last_seen, record.life
        if life is None or (seen == record.saved and self._ids.knows(pool.uuid)):
            return
        await self._store.save_snapshot(pool.name, life.started_at, seen)
        record.saved = seen
        self._kept[pool.name] = time.monotonic()
        self._ids.saved(pool.uuid)

    def _run_of(self, event: Event) -> float | None:
        """Return when an event's pool was started; None: it is not active any more."""
        with contextlib.suppress(LookupError):
            if isinstance(event, PoolEvent) and (life := self._manager.pool(event.pool).parts.record.life) is not None:
                return life.started_at
        return None

    def _before(self, event: Event) -> Snapshot:
        """Return the last snapshot of an event's pool that the engine has."""
        saved = None
        if isinstance(event, PoolEvent):
            with contextlib.suppress(LookupError):
                saved = self._manager.pool(event.pool).parts.record.saved
        return Snapshot.EMPTY if saved is None else saved.snapshot
