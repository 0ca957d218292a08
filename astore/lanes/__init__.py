"""Lanes: worker threads for blocking calls, a few for each pool, with deadlines."""

from astore.lanes.threads import DEFAULT_MAX_THREADS, DEFAULT_TIMEOUT, Lanes, LanesStatistics, LaneStatistics

__all__ = ["DEFAULT_MAX_THREADS", "DEFAULT_TIMEOUT", "LaneStatistics", "Lanes", "LanesStatistics"]
