"""Turns at computing: threads that would fight over the interpreter's lock take it one after the other.

A thread that lists a warm local folder makes a system call every two microseconds, and has the interpreter's lock back
before a waiting thread is awake: it holds the lock for a whole switch interval (5 ms, ``sys.getswitchinterval``).
Sixteen such threads make the event loop wait for sixteen intervals, and because of the lock are no faster than one.
So each takes a :class:`Turn`, and the loop has one rival.

Turns limit computing, not waiting. A thread that mostly waits for its storage goes on without a turn. If that is long work,
it lets short work of other pools go first, for two thirds of the time at most: its storage may be served by this machine's
processors, too.
A thread that has not confirmed its turn for LEASE seconds, because its storage hangs, loses it to the next: no thread waits
longer than that for another's storage.
"""

from __future__ import annotations

import resource
import threading
import time
from collections import deque
from typing import Self

LEASE = 0.005
"""Seconds after which a turn that was not confirmed goes to the next thread that waits."""

SLICE = 0.020
"""Seconds after which a turn is passed on if a thread waits for it."""

STARVED = 0.1
"""Seconds for which long work lets short work go first."""

BREATH = 0.002
"""Seconds of computing after which a thread releases the interpreter's lock for as long as another takes to wake."""

STEP = 64
"""Small pieces of work (one entry of a folder) between two steps."""

WAITS = 16
"""Voluntary context switches (getrusage(2)) between two steps that show a thread to be waiting more than computing."""

READ = 8
"""Blocks (getrusage(2)) of the least that is read from a device. A thread that works on one must have read so much for each of
those WAITS: waiting for the interpreter's lock is a voluntary switch too, and one thread without a turn would make others so.
"""

PATIENT = 0.2
"""Seconds after which work is long: if it waits for its storage, it lets other pools' shorter work go first."""

RESTS = 2.0
"""For how many times as long as it worked it lets others go first, at most."""

LOST = 3
"""How many turns in a row a thread loses for want of a sign before it goes on without one: it waits for something."""

COMPANY = 0.1
"""Seconds after a turn in which more are expected: refreshes come in many calls, and often one after the other."""

SHORT = 0.0005
"""Seconds; after a turn that was shorter no more are expected."""

ASIDE = 0.00005
"""Seconds after which background work releases the interpreter's lock in company: a thread that is about to take a turn, or
that tells the loop of its end, waits for the lock and has no turn yet, or no longer.
"""


class Turn:
    """One thread's turn: a context manager that waits on entering.

    Use it only on the thread that created it, except ``held``. Fields without an underscore change only under the lock of
    :class:`Turns`, except ``confirmed``, which the thread writes.

    One that is not entered goes without a turn: its steps only let it rest.

    :param pool: whose work it is. :param device: see :meth:`astore.backend.Lane.turn`.
    :ivar held: whether the thread has the turn now. :ivar entered: when it was entered, or made.
    :ivar long: whether it has been at work for more than SLICE seconds. :ivar since: since when it waits.
    :ivar starved: whether it was passed over for STARVED seconds before its present turn.
    """

    __slots__ = (
        *("_blocks", "_breathed", "_device", "_lost", "_rested", "_switches", "_turns", "_without"),
        *("began", "confirmed", "entered", "granted", "held", "long", "pool", "starved", "since"),
    )

    def __init__(self, turns: Turns, pool: object = None, *, device: bool = False) -> None:
        self.pool = pool
        self.granted: threading.Event = threading.Event()
        self.held = False
        self.began: float = 0.0
        self.confirmed: float = 0.0
        self.long: bool = False
        self.starved = False
        self.since: float = 0.0
        self._turns = turns
        self.entered: float = time.monotonic()
        self._rested = self.entered
        self._lost = 0  # how often, one time after the other, another thread had its turn meanwhile
        self._without = True  # whether it goes on without a turn, because it mostly waits
        self._breathed = 0.0
        self._device = device
        self._switches = self._blocks = 0

    def __enter__(self) -> Self:
        self._without = self.long = False
        self.entered = self._rested = time.monotonic()
        self._lost = 0
        self._turns.at_work.add(self)
        self._take()
        return self

    def __exit__(self, *error: object) -> None:
        self._without = True
        self._turns.at_work.discard(self)
        self._turns.release(self)

    def step(self) -> None:
        """Confirm the turn, or pass it on after SLICE seconds; or at once, if it is long work and short work waits.

        Call it after about STEP small pieces of work.
        """
        if self._without:
            self._rest()
            return
        turns = self._turns
        self._lost = 0 if self.held else self._lost + 1
        if self._waits() or self._lost >= LOST:
            self._without = True
            turns.release(self)
            return
        now = time.monotonic()
        self.confirmed = now
        self.long = now - self.entered > SLICE
        over = now - self.began > SLICE and turns.wanted
        if not self.held or over or (self.long and not self.starved and turns.short_wanted):
            turns.release(self)
            self._take()
            return
        if now - self._breathed > BREATH:
            self._breathed = _breathe()
        self._count()

    def _waits(self) -> bool:
        """Return whether it has mostly waited for its storage since the last step."""
        used = resource.getrusage(resource.RUSAGE_THREAD)
        if used.ru_nvcsw - self._switches < WAITS:
            return False
        return not self._device or used.ru_inblock - self._blocks >= WAITS * READ

    def _count(self) -> None:
        used = resource.getrusage(resource.RUSAGE_THREAD)
        self._switches, self._blocks = used.ru_nvcsw, used.ru_inblock

    def _rest(self) -> None:
        """If this is long work, let other pools' short work go first, for RESTS times as long as the last step took at most."""
        now = time.monotonic()
        if now - self.entered > PATIENT:
            until = now + min(RESTS * (now - self._rested), SLICE)
            while now < until and self._turns.short_work_of_others(self.pool, now):
                time.sleep(min(BREATH, until - now))
                now = time.monotonic()
        self._rested = now

    def _take(self) -> None:
        self._turns.take(self)
        self._breathed = self.began
        self._count()


# Aside and in_company exist for one row of the benchmarks, "another pool's refresh while volumes are created" (at most 1.2
# times as long as alone): without them it was 1.29 on a local folder and 1.35 on a network storage, with them 1.16 to
# 1.20 and 1.08 to 1.13.
class Aside:
    """One thread's background work, which lets the threads that take turns go first.

    Use it only on the thread that created it.

    :param most: seconds that it waits for them at most, in all.
    """

    __slots__ = ("_breathed", "_left", "_turns")

    def __init__(self, turns: Turns, most: float) -> None:
        self._turns = turns
        self._left = most
        self._breathed = time.monotonic()

    def step(self) -> None:
        """Let threads with turns go first. Call it before each small piece of work."""
        turns = self._turns
        now = time.monotonic()
        if now - self._breathed > ASIDE:
            self._breathed = _breathe() if turns.in_company else now
        if self._left > 0:
            self._left -= turns.give_way(self._left)


class Turns:
    """The turns of a process's threads. One thread has a turn at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._holder: Turn | None = None
        self._waiting: deque[Turn] = deque()
        self._long_waiting: deque[Turn] = deque()  # they let the others go first, for STARVED seconds
        self._calm = threading.Condition(self._lock)  # notified when no thread has a turn
        self._company = float("-inf")  # until when more turns are expected
        self.at_work: set[Turn] = set()
        """The turns that are entered, of threads that have them, wait for them, or go on without. Copied before it is read."""

    @property
    def wanted(self) -> int:
        """How many threads wait for a turn."""
        return len(self._waiting) + len(self._long_waiting)

    @property
    def short_wanted(self) -> bool:
        """Whether a thread waits whose work has been short so far."""
        return bool(self._waiting)

    @property
    def in_company(self) -> bool:
        """Whether a thread has a turn, or had one that was not short within the last COMPANY seconds."""
        now = time.monotonic()
        if now < self._company:
            return True
        with self._lock:
            return self._heard_of(now)

    def short_work_of_others(self, pool: object, now: float) -> bool:
        """Return whether work of another pool is under way that began less than PATIENT seconds ago."""
        return any(turn.pool is not pool and now - turn.entered < PATIENT for turn in self.at_work.copy())

    def give_way(self, most: float) -> float:
        """Wait while a thread has a turn, ``most`` seconds at most; return the seconds waited. For :class:`Aside`."""
        began = now = time.monotonic()
        with self._lock:
            while now - began < most and self._heard_of(now):
                # a hung thread loses its turn after LEASE; looking more often would disturb the threads that compute
                self._calm.wait(min(LEASE, began + most - now))
                now = time.monotonic()
        return now - began

    def take(self, turn: Turn) -> None:
        """Wait until the turn is granted. For :class:`Turn`."""
        with self._lock:
            turn.since = time.monotonic()
            if self._holder is None and not self.wanted:
                self._grant(turn)
                return
            turn.granted.clear()
            waiting = self._long_waiting if turn.long else self._waiting
            waiting.append(turn)
            place = self.wanted
        while not turn.granted.wait(LEASE * place):
            with self._lock:
                self._revoke()
                if turn.granted.is_set():  # perhaps granted, and even revoked, before we had the lock: see Turn.step
                    return
                place = waiting.index(turn) + 1

    def release(self, turn: Turn) -> None:
        """Give a turn back, if it is still held. For :class:`Turn`."""
        with self._lock:
            if turn.held:
                turn.held = False
                now = time.monotonic()
                if now - turn.began > SHORT:
                    self._company = now + COMPANY
                self._holder = None
            self._pass_on()
            if self._holder is None:
                self._calm.notify_all()

    # ------------------------------------------------------------------------------------- with the lock held

    def _heard_of(self, now: float) -> bool:
        return self._holder is not None and self._holder.confirmed > now - LEASE

    def _grant(self, turn: Turn) -> None:
        turn.began = turn.confirmed = time.monotonic()
        turn.starved = turn.began - turn.since > STARVED
        turn.held = True
        self._holder = turn

    def _pass_on(self) -> None:
        if self._holder is None and self.wanted:
            long = self._long_waiting
            starving = long and time.monotonic() - long[0].since > STARVED
            turn = long.popleft() if starving or not self._waiting else self._waiting.popleft()
            self._grant(turn)
            turn.granted.set()

    def _revoke(self) -> None:
        """Revoke a turn that was not confirmed for LEASE seconds."""
        if self._holder is not None and not self._heard_of(time.monotonic()):
            self._holder.held = False
            self._holder = None
        self._pass_on()


def _breathe() -> float:
    """Release the interpreter's lock for as long as another thread takes to wake; return the time after it."""
    time.sleep(1e-6)
    return time.monotonic()
