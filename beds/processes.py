"""Find the processes of a bed, wait for them, and end them: by pid, never by name alone.

A daemon is no child of ours, so waiting uses a pidfd (pidfd_open(2)): it becomes readable when its process ends, and
never comes to mean another process.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path


def arguments(pid: int) -> tuple[str, ...]:
    """Return a process's command line; empty for a process that is gone, a zombie or a kernel thread."""
    try:
        data = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return ()
    return tuple(os.fsdecode(part) for part in data.rstrip(b"\0").split(b"\0")) if data else ()


def state(pid: int) -> str:
    """Return a process's state letter of proc(5): R, S, D, T (stopped), Z (zombie); empty if it is gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return ""
    return text.rpartition(")")[2].split()[0]


def stopped(pid: int) -> bool:
    """Return whether every thread of a process is stopped: after SIGSTOP, each goes on until it has a processor again."""
    try:
        threads = [int(name) for name in os.listdir(f"/proc/{pid}/task")]
    except OSError:
        return True
    return all(state(thread) in ("T", "") for thread in threads)


def in_another_container(pid: int) -> bool:
    """Return whether a process has another PID namespace than this one: its paths mean other files.

    A process that is gone, or that this user may not inspect, counts as such.
    """
    try:
        return os.stat(f"/proc/{pid}/ns/pid").st_ino != os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        return True


def mentioning(folder: str | os.PathLike[str], programs: Collection[str]) -> list[int]:
    """Return the pids of processes of these programs (names without a folder) with ``folder`` in their command line.

    Processes of containers are skipped: /proc lists them too, and their paths mean other files.
    """
    found = []
    needle = os.fspath(folder)
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            pid, argv = int(entry), arguments(int(entry))
            if not argv or os.path.basename(argv[0]) not in programs or not any(_within(word, needle) for word in argv):
                continue
            if not in_another_container(pid):
                found.append(pid)
    return sorted(found)


def _within(word: str, folder: str) -> bool:
    """Return whether an argument names the folder or something in it, not a sibling with the same beginning."""
    start = word.find(folder)
    while start >= 0:
        end = start + len(folder)
        if end == len(word) or word[end] in "/,: ":
            return True
        start = word.find(folder, start + 1)
    return False


def alive(pid: int) -> bool:
    """Return whether the process exists and is not a zombie."""
    return state(pid) not in ("", "Z", "X")


def wait_gone(pids: Iterable[int], timeout: float) -> list[int]:
    """Wait at most ``timeout`` seconds until all these processes have ended; return those that have not."""
    deadline = time.monotonic() + timeout
    left = []
    for pid in pids:
        try:
            fd = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        try:
            poll = select.poll()
            poll.register(fd, select.POLLIN)
            if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
                left.append(pid)
        finally:
            os.close(fd)
    return left


def send(pids: Iterable[int], number: signal.Signals) -> None:
    """Send a signal to each process that still exists."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def end(find: Callable[[], Sequence[int]], *, timeout: float = 10.0, grace: float = 0.0) -> None:
    """End the processes that ``find`` finds, until it finds none.

    :param grace: seconds for them to end after SIGTERM; 0: SIGKILL at once.
    :raises RuntimeError: some still run after ``timeout`` seconds.
    """
    deadline = time.monotonic() + timeout
    if grace:
        pids = find()
        send(pids, signal.SIGTERM)
        send(pids, signal.SIGCONT)
        wait_gone(pids, grace)
    while pids := [pid for pid in find() if alive(pid)]:
        send(pids, signal.SIGKILL)
        wait_gone(pids, max(0.1, deadline - time.monotonic()))
        if time.monotonic() > deadline:
            raise RuntimeError(f"processes do not end: {pids}")


def wait_until(condition: Callable[[], bool], timeout: float, what: str, *, every: float = 0.02) -> None:
    """Poll until ``condition`` is true.

    :raises TimeoutError: naming ``what``, after ``timeout`` seconds.
    """
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not so after {timeout:g} s")
        time.sleep(every)
