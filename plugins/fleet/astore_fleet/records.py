"""The records of a fleet: hosts, owners, pools and volumes as they were last seen, and events with their host."""

from __future__ import annotations

import msgspec

from astore.events import Event
from astore.model import PoolDef, VolumeInfo

HOST_SECONDS = 10.0
"""Seconds that a host's lease lasts, unless its agent says otherwise."""


PARTIAL = "Astore-Partial"
"""The header of an event without the references of its volume, which are too many for one message."""


class Placement(msgspec.Struct, frozen=True):
    """Where a pool may run: on one of these hosts, on hosts with all of these labels; without both, see
    :func:`astore_fleet.placement.owning.confined_to`."""

    hosts: tuple[str, ...] = ()
    labels: dict[str, str] = {}


class HostInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A host whose agent is there.

    :ivar session: names this run of the agent. :ivar labels: what placements ask for.
    :ivar seconds: how long its lease lasts after each renewal.
    """

    host: str
    session: str
    labels: dict[str, str] = {}
    seconds: float = HOST_SECONDS


class Owner(msgspec.Struct, frozen=True):
    """The host that looks after a pool, and the run of its agent that took it."""

    host: str
    session: str


class FleetPoolInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A pool of the fleet as it was last seen, without asking any host.

    :ivar owner: the host that looks after it; None: nobody does. :ivar reachable: whether the owner is there.
    :ivar state: ``running``, ``degraded``, ``inaccessible``, ``inactive``, or ``unreachable``: its host is not there.
    :ivar age: seconds since the snapshot was kept, by the server's clock; None: there is none.
    :ivar volumes: how many the snapshot has. :ivar errors: how many entries cannot be read. :ivar error: why the pool is
        inaccessible. :ivar taken_at: when the snapshot was taken. :ivar since: when the pool entered its state. Both in seconds
        since the epoch, by the host's clock; 0: unknown.
    """

    name: str
    uuid: str
    type: str
    owner: str | None
    reachable: bool
    state: str
    autostart: bool
    definition: PoolDef
    volumes: int = 0
    capacity: int = 0
    allocation: int = 0
    available: int = 0
    age: float | None = None
    error: str | None = None
    errors: int = 0
    taken_at: float = 0.0
    since: float = 0.0


class FleetVolume(msgspec.Struct, frozen=True):
    """A volume of a pool of the fleet, and the age of the snapshot that has it, in seconds."""

    pool: str
    host: str
    info: VolumeInfo
    age: float


class FleetEvent(msgspec.Struct, frozen=True):
    """An event of a host. ``seq`` is the engine's: pass it as ``since`` to go on after it.

    :ivar time: when the engine kept it, by the server's clock, in seconds since the epoch.
    :ivar partial: its volume's references are too many for one message, and were left out; the pool's snapshot has them.
    """

    seq: int
    host: str
    time: float
    event: Event
    partial: bool = False
