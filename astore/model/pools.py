"""The state and the summary of a pool."""

from __future__ import annotations

import enum

from astore.model.record import Record


class PoolState(enum.StrEnum):
    """The state of a pool. Running, degraded and inaccessible pools are *active*."""

    INACTIVE = "inactive"
    BUILDING = "building"
    RUNNING = "running"
    DEGRADED = "degraded"
    INACCESSIBLE = "inaccessible"

    @property
    def active(self) -> bool:
        """Whether the pool was started and not stopped since."""
        return self in _ACTIVE


_ACTIVE = frozenset({PoolState.RUNNING, PoolState.DEGRADED, PoolState.INACCESSIBLE})


class Freshness(Record, frozen=True):
    """How a watched pool learns of changes; see :meth:`astore.Manager.watch`.

    :ivar way: ``inotify``, ``upcalls``, or ``polled``: refreshed every so often.
    :ivar pushed: whether the storage tells of changes. :ivar bound: seconds after which a change is seen at the latest.
    :ivar note: why the pool is not pushed, and what would make it so; or what is seen no sooner than ``bound`` says; or why
        it cannot be refreshed.
    :ivar next_try: when a pool that failed is tried again, in seconds since the epoch.
    """

    way: str
    pushed: bool
    bound: float
    note: str = ""
    next_try: float | None = None


class PoolInfo(Record, frozen=True):
    """The summary of a pool. Sizes in bytes.

    ``taken_at`` is when the snapshot was taken (0: never) and ``since`` when the pool entered its state (0: unknown), in
    seconds since the epoch. ``error`` tells why the pool is degraded, inaccessible or unusable. ``backend`` is False if no
    backend is registered for the pool's type. ``freshness`` is None if this Manager does not watch the pool.
    """

    name: str
    uuid: str
    type: str
    state: PoolState
    persistent: bool
    autostart: bool
    backend: bool = True
    capacity: int = 0
    allocation: int = 0
    available: int = 0
    volumes: int = 0
    errors: int = 0
    generation: int = 0
    taken_at: float = 0.0
    since: float = 0.0
    error: str | None = None
    freshness: Freshness | None = None

    @property
    def active(self) -> bool:
        """Whether the pool was started and not stopped since."""
        return self.state.active
