"""Which hidden volumes of a pool may be leftovers: of work that ended without removing them.

A hidden volume of work in progress is locked, but one without a lock may be one too: a server that was restarted has forgotten
its locks, and a client that loses its network for a while may lose them. So a process never removes a volume that it is working
on itself, and removes one that another process may have made only if it has not changed for an hour. A pool's first look goes
by the locks alone, where there are any.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

from astore.volume_io.volume_names import IN_PROGRESS, is_leftover, made_here

EVERY = 3600.0
"""Seconds from one look at all hidden volumes to the next, and how long a volume must stay unchanged."""

State = TypeVar("State")
"""What a volume is like: equal while it is unchanged."""


class Suspects(Generic[State]):
    """The hidden volumes of one pool that may be leftovers.

    :ivar clock: returns a time in seconds; for tests.
    """

    def __init__(self) -> None:
        self.clock: Callable[[], float] = time.monotonic
        self._looked: float | None = None  # when all hidden volumes were looked at last
        self._due = self._first = True
        self._seen: dict[str, tuple[State, float]] = {}  # others' volumes, and since when they are unchanged

    def look_again(self) -> None:
        """Have the next refresh look at all hidden volumes: work may have ended while the storage did not answer."""
        self._due = True

    def among(self, hidden: Iterable[str]) -> list[str]:
        """Return the names that a refresh is to look at.

        Volumes that this process left are looked at every time, others at the first time, after :meth:`look_again`, and every
        hour.
        """
        now = self.clock()
        all_of_them = self._due or self._looked is None or now >= self._looked + EVERY
        self._first = self._looked is None
        names = [name for name in hidden if is_leftover(name) and (all_of_them or made_here(name))]
        if all_of_them:
            self._looked, self._due = now, False
            there = set(names)
            # a thread that was late may still add to it
            self._seen = {name: seen for name, seen in tuple(self._seen.items()) if name in there}
        return [name for name in names if name not in IN_PROGRESS]

    def may_go(self, name: str, state: State, *, locks: bool = True) -> bool:
        """Return whether a volume that is like this now may be removed if nobody has it locked. Any thread may call this.

        :param locks: False: such a volume cannot be locked, which says nothing about its maker.
        """
        now = self.clock()
        before, since = self._seen.get(name, (None, now))
        if before != state:
            since = now
        self._seen[name] = (state, since)
        return (self._first and locks) or made_here(name) or now >= since + EVERY
