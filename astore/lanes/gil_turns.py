"""Turns at computing: threads that would fight over the interpreter's lock take it one after the other.

A thread that lists a warm local folder makes a system call every two microseconds, and has the interpreter's lock back
before a thread that waits for it is awake: it holds the lock for a whole switch interval (5 ms, ``sys.getswitchinterval``).
Sixteen such threads keep the event loop waiting for sixteen intervals, and on the lock's account are no faster than one.
So each takes a :class:`Turn`, and the loop has one rival.

A turn is about computing and not about waiting. Who turns out to wait for storage most of the time goes on without
one, and who has not been heard of for a while, since its storage hangs, loses it to the next: nobody waits for storage that
is not its own for longer than LEASE.
"""

from __future__ import annotations

import resource
import threading
import time
from collections import deque
from types import TracebackType
from typing import Self

LEASE = 0.005
"""Seconds after which a turn that was not confirmed goes to who waits for it."""

SLICE = 0.020
"""Seconds after which a turn is passed on if somebody waits for it."""

BREATH = 0.002
"""Seconds of computing after which the interpreter's lock is let go of for as long as it takes another thread to wake."""

STEP = 64
"""Small pieces of work (one entry of a folder) between two steps."""

WAITS = 16
"""Voluntary context switches (getrusage(2)) between two steps that show a thread to be waiting more than computing."""

COMPANY = 0.1
"""Seconds after a turn in which more are expected: refreshes come in many calls, and often one after the other."""

SHORT = 0.0005
"""Seconds; a shorter turn was a look at little, and gives no reason to expect more."""

ASIDE = 0.00005
"""Seconds after which work without haste lets go of the interpreter's lock, in company: who is about to take a turn, or tells
the loop of its end, waits for the lock and has no turn yet, or none any more.
"""


class Turn:
    """One thread's turn: a context manager that waits on entering. For the thread that made it only, but for what is said."""

    __slots__ = ("_began", "_breathed", "_confirmed", "_free", "_granted", "_switches", "_turns", "held")

    def __init__(self, turns: Turns) -> None:
        self._turns = turns
        self._granted = threading.Event()
        self._free = False
        self._began = self._breathed = self._confirmed = 0.0
        self._switches = 0
        self.held = False  # changed under the lock of Turns only, also by others

    def __enter__(self) -> Self:
        self._free = False
        self._turns._take(self)
        self._switches = _switches()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._turns._release(self)

    def step(self) -> None:
        """Confirm the turn; pass it on if it has lasted. To be called after about STEP small pieces of work."""
        if self._free:
            return
        turns = self._turns
        if _switches() - self._switches >= WAITS:
            self._free = True
            turns._release(self)
            return
        now = time.monotonic()
        self._confirmed = now
        if not self.held or (turns._waiting and now - self._began > SLICE):
            turns._release(self)
            turns._take(self)
        elif now - self._breathed > BREATH:
            self._breathed = _breathe()
        self._switches = _switches()


class Aside:
    """One thread's work without haste: it lets go first whoever takes turns. For the thread that made it only.

    :param most: seconds that it waits for them at most, all in all.
    """

    __slots__ = ("_breathed", "_left", "_turns")

    def __init__(self, turns: Turns, most: float) -> None:
        self._turns = turns
        self._left = most
        self._breathed = time.monotonic()

    def step(self) -> None:
        """Let others go first. To be called before each small piece of work."""
        turns = self._turns
        now = time.monotonic()
        if now - self._breathed > ASIDE:
            self._breathed = _breathe() if turns.in_company else now
        if self._left > 0:
            self._left -= turns.give_way(self._left)


class Turns:
    """The turns of a process's threads.

    :param count: how many may compute at once.
    """

    def __init__(self, count: int = 1) -> None:
        self._lock = threading.Lock()
        self._free = count
        self._holders: set[Turn] = set()
        self._waiting: deque[Turn] = deque()
        self._calm = threading.Condition(self._lock)  # for those who give way
        self._company = float("-inf")  # until when more turns are expected

    def turn(self) -> Turn:
        """A turn, to be entered."""
        return Turn(self)

    def aside(self, most: float) -> Aside:
        """Work beside those who take turns, that gives way for ``most`` seconds at most."""
        return Aside(self, most)

    @property
    def in_company(self) -> bool:
        """Whether anybody has a turn, or had one that was not short within the last COMPANY seconds."""
        now = time.monotonic()
        if now < self._company:
            return True
        with self._lock:
            return self._heard_of(now)

    def give_way(self, most: float) -> float:
        """Wait while anybody has a turn, ``most`` seconds at most; returns how many it were. For work without haste."""
        began = now = time.monotonic()
        with self._lock:
            while now - began < most and self._heard_of(now):
                # who hangs is found out after LEASE; to look more often would be in the way of who computes
                self._calm.wait(min(LEASE, began + most - now))
                now = time.monotonic()
        return now - began

    def _take(self, turn: Turn) -> None:
        with self._lock:
            if self._free and not self._waiting:
                self._grant(turn)
                return
            turn._granted.clear()
            self._waiting.append(turn)
            place = len(self._waiting)
        while not turn._granted.wait(LEASE * place):
            with self._lock:
                self._revoke()
                if turn._granted.is_set():  # now, or before the lock was had (and perhaps revoked since: see step)
                    return
                place = self._waiting.index(turn) + 1

    def _release(self, turn: Turn) -> None:
        with self._lock:
            if turn.held:
                turn.held = False
                now = time.monotonic()
                if now - turn._began > SHORT:
                    self._company = now + COMPANY
                self._holders.discard(turn)
                self._free += 1
            self._pass_on()
            if not self._holders:
                self._calm.notify_all()

    # ------------------------------------------------------------------------------------- with the lock held

    def _heard_of(self, now: float) -> bool:
        return any(turn._confirmed > now - LEASE for turn in self._holders)

    def _grant(self, turn: Turn) -> None:
        self._free -= 1
        turn._began = turn._breathed = turn._confirmed = time.monotonic()
        turn.held = True
        self._holders.add(turn)

    def _pass_on(self) -> None:
        while self._free and self._waiting:
            turn = self._waiting.popleft()
            self._grant(turn)
            turn._granted.set()

    def _revoke(self) -> None:
        """Take their turns from those that have not been heard of."""
        limit = time.monotonic() - LEASE
        for turn in [turn for turn in self._holders if turn._confirmed < limit]:
            turn.held = False
            self._holders.discard(turn)
            self._free += 1
        self._pass_on()


def _breathe() -> float:
    """Let go of the interpreter's lock for as long as it takes another thread to wake; returns the time after it."""
    time.sleep(1e-6)
    return time.monotonic()


def _switches() -> int:
    return resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw
