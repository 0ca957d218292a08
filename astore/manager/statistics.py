"""Statistics: the counts of a Manager."""

from __future__ import annotations

from astore.event_bus import EventsStatistics
from astore.lanes import LanesStatistics
from astore.model.record import Record


class Statistics(Record, frozen=True):
    """Counts of a Manager at one moment.

    :ivar cleanups: clean-ups of this process that go on although their callers, which were cancelled, have returned.
    """

    pools: int
    active: int
    volumes: int
    events: EventsStatistics
    lanes: LanesStatistics
    cleanups: int
