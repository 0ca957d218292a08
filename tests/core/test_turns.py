"""Turns at computing: one at a time, in order, and nobody waits for a thread that hangs."""

from __future__ import annotations

import os
import resource
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from astore.lanes import gil_turns as module
from astore.lanes.gil_turns import Aside, Turn, Turns
from astore.trees.local import LocalTree

PATIENCE = 60.0


@pytest.fixture
def spawn() -> Iterator[Callable[[Callable[[], object]], threading.Thread]]:
    """Runs functions in threads, and waits for them in the end; what one raises fails the test."""
    threads: list[threading.Thread] = []
    wrong: list[BaseException] = []

    def start(function: Callable[[], object]) -> threading.Thread:
        def run() -> None:
            try:
                function()
            except BaseException as error:
                wrong.append(error)

        thread = threading.Thread(target=run)
        threads.append(thread)
        thread.start()
        return thread

    yield start
    for thread in threads:
        thread.join(PATIENCE)
        assert not thread.is_alive()
    assert wrong == []


def spin(turn: Turn, until: Callable[[], bool]) -> None:
    """Compute, and say so, as a listing does."""
    deadline = time.monotonic() + PATIENCE
    while not until():
        for _ in range(50):
            sum(range(20))
        turn.step()
        assert time.monotonic() < deadline


def test_free_at_once() -> None:
    """A turn that nobody has is had at once, and again."""
    turns = Turns()
    for _ in range(3):
        turn = Turn(turns)
        with turn:
            assert turn.held
            turn.step()
            assert turn.held
        assert not turn.held


def test_one_turn_entered_again() -> None:
    """One Turn may be entered any number of times, one after the other."""
    turn = Turn(Turns())
    for _ in range(3):
        with turn:
            assert turn.held


def test_given_back_after_an_error() -> None:
    """What is raised inside passes, and the turn is free again."""
    turns = Turns()
    with pytest.raises(RuntimeError), Turn(turns):
        raise RuntimeError
    with Turn(turns) as turn:
        assert turn.held


def test_one_computes(
    monkeypatch: pytest.MonkeyPatch, spawn: Callable[[Callable[[], object]], threading.Thread]
) -> None:
    """However many threads want a turn, one at most has it, and each gets its own."""
    monkeypatch.setattr(module, "LEASE", PATIENCE)  # no thread that merely waits for a processor loses its turn
    monkeypatch.setattr(module, "SLICE", 0.001)
    turns = Turns()
    inside, most, done, lock = 0, 0, 0, threading.Lock()

    def work() -> None:
        nonlocal inside, most, done
        for _ in range(5):
            with Turn(turns):
                with lock:
                    inside += 1
                    most = max(most, inside)
                sum(range(3000))
                with lock:
                    inside -= 1
        with lock:
            done += 1

    for thread in [spawn(work) for _ in range(8)]:
        thread.join(PATIENCE)
    assert (most, inside, done) == (1, 0, 8)
    assert turns._holder is None
    assert not turns.wanted


def test_passed_on_after_a_slice(spawn: Callable[[Callable[[], object]], threading.Thread]) -> None:
    """Who computes for long lets those who wait have theirs, and goes on afterwards."""
    turns = Turns()
    had = threading.Event()

    def short() -> None:
        with Turn(turns):
            had.set()

    with Turn(turns) as turn:
        spawn(short)
        spin(turn, had.is_set)
        spin(turn, lambda: turn.held or turn._without)


def test_who_hangs_loses_it(spawn: Callable[[Callable[[], object]], threading.Thread]) -> None:
    """Turns that are not confirmed go to those who wait, and come back in the next step of who is heard of again."""
    turns = Turns()
    over, entered = threading.Event(), threading.Semaphore(0)
    lost: list[Turn] = []

    def hang() -> None:
        with Turn(turns) as turn:
            lost.append(turn)
            first = turn.began
            entered.release()
            over.wait(PATIENCE)
            turn._count()  # what it waited for was this test, not its storage
            turn.step()
            assert turn.began > first, "it was granted anew"

    for _ in range(3):  # each takes it from the one before
        spawn(hang)
        assert entered.acquire(timeout=PATIENCE)
    with Turn(turns) as mine:
        assert mine.held
        assert not any(turn.held for turn in lost)
    over.set()


def test_who_waits_goes_on_without_one() -> None:
    """A thread that finds itself waiting for its storage needs no turn, and takes none from others."""
    turns = Turns()
    with Turn(turns) as turn:
        for _ in range(2 * module.WAITS):
            time.sleep(0.0001)
        turn.step()
        assert not turn.held
        with Turn(turns) as other:
            assert other.held
            turn.step()
            assert (turn.held, other.held) == (False, True)
    with turn:
        assert turn.held


def test_who_waits_for_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Work on a device waits for it only if it has read from it: waits for the interpreter's lock are no waits for storage."""
    monkeypatch.setattr(module, "BREATH", PATIENCE)
    real = resource.getrusage
    read = [0]
    monkeypatch.setattr(
        resource, "getrusage", lambda who: SimpleNamespace(ru_nvcsw=real(who).ru_nvcsw, ru_inblock=read[0])
    )
    turns = Turns()
    with Turn(turns, device=True) as turn:
        for read[0], held in (
            (0, True),
            (module.WAITS * module.READ - 1, True),
            (3 * module.WAITS * module.READ, False),
        ):
            for _ in range(2 * module.WAITS):
                time.sleep(0.0001)
            turn.step()
            assert turn.held == held


def test_reads_of_a_device_are_counted(tmp_path: Path) -> None:
    """The kernel counts what a thread reads from a device, where a folder says that it is on one."""
    if not LocalTree(str(tmp_path)).on_device:
        pytest.skip("the folder for tests is on no device")
    path = tmp_path / "file"
    path.write_bytes(b"x" * (1 << 20))
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        before = resource.getrusage(resource.RUSAGE_THREAD).ru_inblock
        os.pread(file.fileno(), 4096, 0)
        assert resource.getrusage(resource.RUSAGE_THREAD).ru_inblock - before >= module.READ


def test_in_order(spawn: Callable[[Callable[[], object]], threading.Thread], monkeypatch: pytest.MonkeyPatch) -> None:
    """First come, first served."""
    monkeypatch.setattr(module, "LEASE", PATIENCE)
    turns = Turns()
    served: list[int] = []

    def work(number: int) -> None:
        with Turn(turns):
            served.append(number)

    with Turn(turns):
        for number in range(6):
            spawn(lambda number=number: work(number))  # type: ignore[misc]
            deadline = time.monotonic() + PATIENCE
            while turns.wanted <= number:
                assert time.monotonic() < deadline
                time.sleep(0.001)
    deadline = time.monotonic() + PATIENCE
    while len(served) < 6:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    assert served == list(range(6))


def test_give_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """Work without haste waits while somebody computes, but not for long, and not for who was not heard of."""
    monkeypatch.setattr(module, "LEASE", 60.0)
    turns = Turns()
    assert turns.give_way(10.0) < 5.0
    with Turn(turns):
        assert turns.give_way(0.02) >= 0.02
        monkeypatch.setattr(module, "LEASE", 0.0)
        assert turns.give_way(10.0) < 5.0
    monkeypatch.setattr(module, "LEASE", 60.0)
    assert turns.give_way(10.0) < 5.0


def test_company(monkeypatch: pytest.MonkeyPatch) -> None:
    """Turns are expected while there is one, and for a while after one; a short one tells nothing."""
    monkeypatch.setattr(module, "LEASE", 60.0)
    monkeypatch.setattr(module, "SHORT", 60.0)
    turns = Turns()
    assert not turns.in_company
    with Turn(turns):
        assert turns.in_company
    assert not turns.in_company
    monkeypatch.setattr(module, "SHORT", -1.0)
    monkeypatch.setattr(module, "COMPANY", 60.0)
    with Turn(turns):
        pass
    assert turns.in_company
    hung = Turns()
    monkeypatch.setattr(module, "LEASE", 0.0)
    with Turn(hung):
        assert not hung.in_company  # it was not heard of


def test_long_waiting_lets_short_work_go_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Work that waits for its storage, for long, pauses while another pool's short work is under way, and no longer."""
    pauses: list[float] = []
    monkeypatch.setattr(module.time, "sleep", pauses.append)
    monkeypatch.setattr(module, "PATIENT", PATIENCE)
    turns = Turns()
    listing, own, other, old = (Turn(turns, pool) for pool in ("slow", "slow", "fast", "another"))

    def paused() -> bool:
        pauses.clear()
        listing._rested = time.monotonic() - 1.0
        listing.step()
        return bool(pauses)

    with other:
        assert not paused(), "it is short itself"
    listing.entered -= 2 * PATIENCE
    assert not paused()
    with own:
        assert not paused(), "it is the same pool's"
    with other:
        assert paused()
        assert all(0 < pause <= module.BREATH for pause in pauses)
        other._without = True
        assert paused(), "who mostly waits is at work, too"
    assert not paused()
    with old:
        old.entered -= 2 * PATIENCE
        assert not paused(), "long work does not go first"


def test_who_loses_every_turn_goes_on_without_one() -> None:
    """A thread that waits for something that the kernel does not count, while others wait for it, does not stay among them."""
    turns = Turns()
    turn = Turn(turns, device=True)
    with turn:
        for number in range(module.LOST):
            assert not turn._without
            turn.confirmed = float("-inf")
            with turns._lock:
                turns._revoke()
            turn.step()
            assert turn.held == (number < module.LOST - 1)
        assert turn._without


def test_aside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Work without haste waits for others no longer than it may, all in all; and lets go of the lock in company only."""
    breaths = 0

    def breathe() -> float:
        nonlocal breaths
        breaths += 1
        return 0.0

    monkeypatch.setattr(module, "LEASE", 60.0)
    monkeypatch.setattr(module, "ASIDE", -1.0)
    monkeypatch.setattr(module, "_breathe", breathe)
    turns = Turns()
    aside = Aside(turns, 0.02)
    aside.step()
    assert breaths == 0
    with Turn(turns):
        began = time.monotonic()
        aside.step()
        assert time.monotonic() - began >= 0.02
        assert breaths == 1
        monkeypatch.setattr(turns, "give_way", lambda most: pytest.fail("it has waited for as long as it may"))
        aside.step()
        assert breaths == 2


def test_long_work_lets_short_work_go_first(
    spawn: Callable[[Callable[[], object]], threading.Thread], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Work that has had its slice passes the turn on at once to work that has not, and has it back afterwards."""
    monkeypatch.setattr(module, "SLICE", 0.0)
    monkeypatch.setattr(module, "LEASE", PATIENCE)
    monkeypatch.setattr(module, "STARVED", PATIENCE)
    turns = Turns()
    told: list[str] = []
    long = Turn(turns)
    with long:
        long.step()
        assert long.long
        monkeypatch.setattr(module, "SLICE", PATIENCE)  # from here on no turn ends because its slice is over
        long.entered -= 2 * PATIENCE

        def short() -> None:
            with Turn(turns) as turn:
                told.append("short")
                turn.step()
                assert turn.held, "long work waits for it"

        for _ in range(3):
            thread = spawn(short)
            spin(long, lambda thread=thread: not thread.is_alive())  # type: ignore[misc]
            told.append("long")
    assert told == ["short", "long"] * 3


def test_long_work_does_not_starve(
    spawn: Callable[[Callable[[], object]], threading.Thread], monkeypatch: pytest.MonkeyPatch
) -> None:
    """After STARVED seconds it is first in the queue, and keeps the turn for a slice."""
    monkeypatch.setattr(module, "LEASE", PATIENCE)
    monkeypatch.setattr(module, "STARVED", 0.0)
    turns = Turns()
    ended = threading.Event()

    def short() -> None:
        while not ended.is_set():
            with Turn(turns) as turn:
                turn.step()

    for _ in range(3):
        spawn(short)
    long = Turn(turns)
    with long:
        long.entered -= PATIENCE
        began = time.monotonic()
        for _ in range(5):
            monkeypatch.setattr(module, "SLICE", 0.0)
            spin(long, lambda: long.starved)
            monkeypatch.setattr(module, "SLICE", PATIENCE)
            long.step()
            assert long.held
            long.starved = False
        assert time.monotonic() - began < PATIENCE
    ended.set()
