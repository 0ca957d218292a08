"""Lanes: worker threads for blocking calls, a few for each pool, with deadlines."""

from astore.lanes.lane import DEFAULT_MAX_THREADS, DEFAULT_TIMEOUT, Lanes
from astore.lanes.threads import LanesStatistics, LaneStatistics

__all__ = ["DEFAULT_MAX_THREADS", "DEFAULT_TIMEOUT", "LaneStatistics", "Lanes", "LanesStatistics"]
