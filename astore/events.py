"""Events: every change of a definition, a state, a volume list or the registry is one.

They are published after the fact, on the bus of :mod:`astore.event_bus`, which numbers them in one sequence.
"""

from __future__ import annotations

from astore.model import PoolState, VolumeInfo
from astore.model.record import Record


class Event(Record, frozen=True, kw_only=True, tag=True, tag_field="event"):
    """The base of all events: ``seq`` grows by one from event to event; ``time`` is in seconds since the epoch."""

    seq: int = 0
    time: float = 0.0


class PoolEvent(Event, frozen=True, kw_only=True):
    """The base of events about one pool: ``pool`` is its name."""

    pool: str
    uuid: str


class PoolDefined(PoolEvent, frozen=True, kw_only=True):
    """A pool was defined or redefined."""


class PoolUndefined(PoolEvent, frozen=True, kw_only=True):
    """A pool's definition was removed."""


class PoolAutostartChanged(PoolEvent, frozen=True, kw_only=True):
    """The autostart mark of a pool was set or cleared."""

    autostart: bool


class PoolBuilt(PoolEvent, frozen=True, kw_only=True):
    """A pool's storage was built (libvirt's event: created)."""


class PoolDeleted(PoolEvent, frozen=True, kw_only=True):
    """A pool's storage was deleted."""


class PoolStarted(PoolEvent, frozen=True, kw_only=True):
    """A pool became active."""


class PoolStartFailed(PoolEvent, frozen=True, kw_only=True):
    """A pool could not be started, for ``reason``."""

    reason: str


class PoolStopped(PoolEvent, frozen=True, kw_only=True):
    """A pool became inactive."""


class PoolStateChanged(PoolEvent, frozen=True, kw_only=True):
    """A pool went from state ``old`` to ``new``; ``reason`` tells why, if ``new`` is a bad one."""

    old: PoolState
    new: PoolState
    reason: str | None = None


class PoolRetry(PoolEvent, frozen=True, kw_only=True):
    """A try to start or refresh a pool failed for ``reason``; ``attempt`` counts them.

    The next try is ``at``, in seconds since the epoch.
    """

    attempt: int
    at: float
    reason: str


class PoolRefreshed(PoolEvent, frozen=True, kw_only=True):
    """A refresh ended, with these counts of volumes; ``generation`` is the snapshot's."""

    generation: int
    added: int = 0
    changed: int = 0
    removed: int = 0
    unchanged: int = 0
    errors: int = 0


class VolumeEvent(PoolEvent, frozen=True, kw_only=True):
    """The base of events about the volume ``name`` of a pool."""

    name: str


class VolumeAdded(VolumeEvent, frozen=True, kw_only=True):
    """A volume appeared; ``volume`` is its record."""

    volume: VolumeInfo


class VolumeChanged(VolumeEvent, frozen=True, kw_only=True):
    """A volume changed; ``volume`` is its new record."""

    volume: VolumeInfo


class VolumeRemoved(VolumeEvent, frozen=True, kw_only=True):
    """A volume disappeared."""


class VolumeProgress(VolumeEvent, frozen=True, kw_only=True):
    """An ``operation`` has done ``done`` bytes of ``total`` (None: unknown). Published a few times a second at most."""

    operation: str
    done: int
    total: int | None = None


class BackendRegistered(Event, frozen=True, kw_only=True):
    """Pools of ``type`` can be started now."""

    type: str


class BackendUnregistered(Event, frozen=True, kw_only=True):
    """Pools of ``type`` cannot be started any more."""

    type: str


class Lagged(Event, frozen=True, kw_only=True):
    """This reader missed ``missed`` events: it was too slow, or asked for events that are no longer kept.

    ``seq`` is the number of the last event missed.
    """

    missed: int
