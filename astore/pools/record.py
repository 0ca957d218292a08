"""PoolRecord: the definition, state and snapshot of a pool. It publishes all changes, and never waits for I/O."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import msgspec

from astore.errors import InvalidStateError, PoolInaccessibleError, PoolNotFoundError, reason
from astore.event_bus import EventBus
from astore.events import (
    Event,
    PoolAutostartChanged,
    PoolRefreshed,
    PoolStarted,
    PoolStateChanged,
    PoolUndefined,
    VolumeAdded,
    VolumeChanged,
    VolumeRemoved,
)
from astore.model import Changes, EntryError, Freshness, PoolDef, PoolState, RefreshOutcome, Snapshot, VolumeInfo
from astore.pools.glance import state_when_last_seen
from astore.pools.life import Life
from astore.store.contract import LastSeen

if TYPE_CHECKING:
    from structlog.stdlib import BoundLogger


MOST_RECENT = 10_000
"""How many changes of single volumes are kept for other processes, until the next whole refresh. Half of them remain then."""


class PoolRecord:
    """Definition, state and snapshot of one pool.

    :ivar definition: the persistent one; of a transient pool, the one that it runs by.
    :ivar life: its run while it is active, else None. :ivar gone: whether the Manager has removed the pool.
    :ivar since: when it entered its state, in seconds since the epoch (0: unknown).
    :ivar error: why it is inaccessible, or why its last start failed.
    :ivar saved: the state that was saved for the next process last.
    :ivar wanted: whether ``start_all`` was to start it, and nobody has stopped it since.
    :ivar freshness: how it learns of changes while it is watched.
    :ivar redefined: called with the record after it has taken over another definition; set by who keeps an index of them.
    """

    def __init__(
        self, bus: EventBus, log: BoundLogger, definition: PoolDef, *, persistent: bool, autostart: bool = False
    ) -> None:
        assert definition.uuid is not None
        self.uuid: str = definition.uuid
        self.definition: PoolDef = definition
        self.persistent: bool = persistent
        self.autostart: bool = autostart
        self.state: PoolState = PoolState.INACTIVE
        self.since: float = 0.0
        self.error: Exception | None = None
        self.snapshot: Snapshot = Snapshot.EMPTY
        self.generation: int = 0
        self.life: Life | None = None
        self.gone = False
        self.saved: LastSeen | None = None
        self.wanted = False
        self.freshness: Freshness | None = None
        self.redefined: Callable[[PoolRecord], None] | None = None
        self.log: BoundLogger = log.bind(pool=definition.name)
        self._bus = bus
        self._recent: dict[str, tuple[float, VolumeInfo | None]] = {}  # changes since the snapshot was taken
        self._state_waiters: set[asyncio.Event] = set()

    @property
    def name(self) -> str:
        """The pool's name."""
        return self.definition.name

    @property
    def running(self) -> PoolDef:
        """The definition that the pool runs by; of an inactive pool, the one for its next start."""
        return self.definition if self.life is None else self.life.definition

    @property
    def active(self) -> bool:
        """Whether the pool was started and not stopped since."""
        return self.life is not None

    @property
    def last_seen(self) -> LastSeen:
        """The state of an active pool to save for the next process."""
        error = self.error if self.state is PoolState.INACCESSIBLE else None
        why = None if error is None else reason(error)
        definition = None if self.life is None else self.life.definition
        return LastSeen(self.snapshot, self.since, why, definition, dict(self._recent))

    async def wait_state(self, wanted: set[PoolState], timeout: float | None) -> PoolState:
        """Wait until the pool is in one of these states; return it. :raises TimeoutError: after ``timeout`` seconds."""
        changed = asyncio.Event()
        self._state_waiters.add(changed)
        try:
            async with asyncio.timeout(timeout):
                while self.state not in wanted:
                    changed.clear()
                    await changed.wait()
        finally:
            self._state_waiters.discard(changed)
        return self.state

    # ----------------------------------------------------------------------------------------- guards

    def require_known(self) -> None:
        """Check that the pool exists. :raises PoolNotFoundError: it was undefined, or was transient and has been stopped."""
        if self.gone:
            raise PoolNotFoundError(f"there is no pool {self.name!r} any more", what=self.name)

    def require_active(self, operation: str) -> Life:
        """Return the pool's life. :raises InvalidStateError: it is not active. PoolNotFoundError: as :meth:`require_known`."""
        if self.life is None:
            self.require_known()
            raise self.wrong_state(f"is {self.state}: start it first", operation)
        return self.life

    def require_usable(self, operation: str) -> Life:
        """Return the pool's life, to begin work with. :raises InvalidStateError: it is not active, or is being stopped."""
        life = self.require_active(operation)
        if life.ending:
            raise self.wrong_state("is being stopped", operation)
        return life

    def require_inactive(self, operation: str) -> None:
        """Check that the pool is inactive. :raises InvalidStateError: it is not. PoolNotFoundError: it is gone."""
        self.require_known()
        if self.state is not PoolState.INACTIVE:
            hint = "; stop it first" if self.active and operation != "start" else ""
            raise self.wrong_state(f"is {self.state}: cannot {operation} it now{hint}", operation)

    def wrong_state(self, what: str, operation: str) -> InvalidStateError:
        """Return the error of an operation that the pool's state does not allow."""
        return InvalidStateError(f"pool {self.name!r} {what}", pool=self.name, state=self.state, operation=operation)

    # -------------------------------------------------------------------- changes: published after they have happened

    def publish(self, kind: Callable[..., Event], **fields: Any) -> None:
        """Publish an event about this pool."""
        self._bus.publish(cast("type[Event]", kind), pool=self.name, uuid=self.uuid, **fields)

    def set_state(self, new: PoolState, error: Exception | None = None) -> None:
        """Enter a state. :param error: the reason for a bad one."""
        old = self.state
        self.error = error
        if old is new:
            return
        self.state = new
        self.since = time.time()
        why = reason(error) if error is not None else None
        self.publish(PoolStateChanged, old=old, new=new, reason=why)
        if new is PoolState.INACCESSIBLE:
            self.log.warning("pool inaccessible", reason=why)
        for waiter in self._state_waiters:
            waiter.set()

    def _take_life(self, life: Life) -> None:
        self.life = life
        if self.redefined is not None:
            self.redefined(self)

    def begin(self, life: Life) -> None:
        """Note that the pool was started here."""
        self._take_life(life)
        self.set_state(PoolState.RUNNING)
        self.publish(PoolStarted)
        self.log.debug("pool started")

    def restore(self, life: Life, seen: LastSeen | None, *, tell: bool) -> None:
        """Take over the run of a pool that another process, or this one earlier, has started.

        :param tell: publish the change.
        """
        self._take_life(life)
        state, since, error = state_when_last_seen(seen), life.started_at, None
        if seen is not None:
            since = seen.since
            self.snapshot = seen.snapshot
            self.generation = max(self.generation, seen.snapshot.generation)
            if seen.error is not None:
                error = PoolInaccessibleError(seen.error, pool=self.name)
        if tell:
            self.set_state(state, error)
            self.publish(PoolStarted)
            self._publish_volumes(VolumeAdded, [one.name for one in self.snapshot.volumes])
        self.state, self.error, self.since = state, error, since
        self.saved = self.last_seen

    def end(self) -> None:
        """Note that the pool was stopped. The caller closes the life."""
        if self.life is not None:
            self.life.ended = True
        self.life = self.saved = None
        self.snapshot = Snapshot.EMPTY
        self._recent = {}
        self.set_state(PoolState.INACTIVE)

    def redefine(self, definition: PoolDef, *, autostart: bool) -> bool:
        """Take over a persistent definition; return whether it differs. An active pool still runs by the old one."""
        same = self.persistent and self.definition == definition and self.autostart == autostart
        self.definition, self.autostart, self.persistent = definition, autostart, True
        if not same and self.redefined is not None:
            self.redefined(self)
        return not same

    def set_autostart(self, autostart: bool) -> None:
        """Take over the autostart mark."""
        if self.autostart != autostart:
            self.autostart = autostart
            self.publish(PoolAutostartChanged, autostart=autostart)

    def become_transient(self) -> None:
        """Note that another process undefined the active pool."""
        self.persistent = self.autostart = False
        self.publish(PoolUndefined)

    def take(self, snapshot: Snapshot, changes: Changes, seconds: float) -> RefreshOutcome:
        """Take over the snapshot of a whole refresh. :param changes: the changes since the current snapshot.

        :raises InvalidStateError: the pool is not active.
        """
        self.require_active("refresh")
        self.generation += 1
        self.snapshot = snapshot = snapshot.numbered(self.generation)
        now = time.time()  # what is later is from before the clock was set back
        self._recent = {name: one for name, one in self._recent.items() if snapshot.taken_at <= one[0] <= now}
        self._publish_changes(changes)
        self.publish(
            PoolRefreshed,
            generation=snapshot.generation,
            added=len(changes.added),
            changed=len(changes.changed),
            removed=len(changes.removed),
            unchanged=changes.unchanged,
            errors=sum(not error.skipped for error in snapshot.errors),
        )
        self._set_state_by(snapshot)
        return self._outcome(changes, snapshot.errors, seconds)

    def apply(self, patch: Mapping[str, VolumeInfo | EntryError | None], seconds: float = 0.0) -> RefreshOutcome:
        """Take over the state of single volumes: a record, an error, or None if the volume is gone.

        :raises InvalidStateError: the pool is not active.
        """
        self.require_active("refresh")
        before = self.snapshot
        self.generation += 1
        self.snapshot = before.patched(patch, self.generation)
        self._note_recent(patch)
        pairs = {name: (before.get(name), self.snapshot.get(name)) for name in patch}
        both = {name: new.same_as(old) for name, (old, new) in pairs.items() if old is not None and new is not None}
        changes = Changes(
            added=tuple(sorted(name for name, (old, new) in pairs.items() if old is None and new is not None)),
            changed=tuple(sorted(name for name, same in both.items() if not same)),
            removed=tuple(sorted(name for name, (old, new) in pairs.items() if old is not None and new is None)),
            unchanged=sum(both.values()),
        )
        self._publish_changes(changes)
        if self.state is not PoolState.INACCESSIBLE:
            self._set_state_by(self.snapshot)
        return self._outcome(changes, tuple(item for item in patch.values() if isinstance(item, EntryError)), seconds)

    def _note_recent(self, patch: Mapping[str, VolumeInfo | EntryError | None]) -> None:
        """Note what other processes must not lose. A volume that cannot be read is as it was."""
        now = time.time()
        for name, item in patch.items():
            if not isinstance(item, EntryError):
                self._recent[name] = (now, item)
            elif not item.unreadable:
                self._recent[name] = (now, None)
        if len(self._recent) > MOST_RECENT:
            latest = sorted(self._recent.items(), key=lambda one: one[1][0])[-MOST_RECENT // 2 :]
            self._recent = dict(latest)

    def _set_state_by(self, snapshot: Snapshot) -> None:
        wrong = any(not error.skipped for error in snapshot.errors)
        self.set_state(PoolState.DEGRADED if wrong else PoolState.RUNNING)

    def _outcome(self, changes: Changes, errors: tuple[EntryError, ...], seconds: float) -> RefreshOutcome:
        return RefreshOutcome(
            pool=self.name,
            uuid=self.uuid,
            **msgspec.structs.asdict(changes),
            errors=errors,
            seconds=seconds,
            generation=self.snapshot.generation,
        )

    def _publish_changes(self, changes: Changes) -> None:
        self._publish_volumes(VolumeAdded, changes.added)
        self._publish_volumes(VolumeChanged, changes.changed)
        pool, uuid, removed = self.name, self.uuid, changes.removed

        def build(index: int) -> Event:
            return VolumeRemoved(pool=pool, uuid=uuid, name=removed[index])

        self._bus.publish_batch(len(removed), build, pool=pool, kind=VolumeRemoved)

    def _publish_volumes(self, kind: type[VolumeAdded | VolumeChanged], names: Sequence[str]) -> None:
        pool, uuid, get = self.name, self.uuid, self.snapshot.getter
        first = max(0, len(names) - self._bus.capacity)  # no one can read more than the bus keeps
        # keep the records alone: the bus keeps the batch, and must not keep a whole snapshot alive for it
        records = [get(name) for name in names[first:]]

        def build(index: int) -> Event:
            volume = records[index - first]
            assert volume is not None
            return kind(pool=pool, uuid=uuid, name=volume.name, volume=volume)

        self._bus.publish_batch(len(names), build, pool=pool, kind=kind)
