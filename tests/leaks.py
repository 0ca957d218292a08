"""What a test, or the whole session, left behind: tasks, threads, descriptors, processes, mounts.

Things that end by themselves are given a moment; what is there after it is reported by name.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable

from astore.lanes.thread_setup import NAME
from beds import fuse, processes
from beds.namespace import in_private_namespaces


def open_files() -> Counter[str]:
    """This process's descriptors by what they are: paths, and the kinds of sockets, pipes and the like."""
    found: Counter[str] = Counter()
    for name in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{name}")
        except OSError:
            continue  # the descriptor of this very listing
        found[target if target.startswith("/") else target.partition(":[")[0]] += 1
    return found


def descriptors() -> frozenset[str]:
    """This process's descriptors with what each is.

    Compare with :func:`new_descriptors`: an earlier test's connection may end meanwhile in a thread of libgfapi.
    """
    found = set()
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # the descriptor of this very listing
            found.add(f"{name}: {os.readlink(f'/proc/self/fd/{name}')}")
    return frozenset(found)


def new_descriptors(before: frozenset[str], grace: float = 60.0) -> frozenset[str]:
    """Return the descriptors that were not there before, after up to ``grace`` seconds in which they may be closed.

    An earlier test's connection may just be ending: glfs_fini opens a pipe for a while, to wake its own threads
    (gf_event_dispatch_destroy in glusterfs's event.c).
    """
    return frozenset() if settle(lambda: descriptors() <= before, grace) else descriptors() - before


def threads() -> Counter[str]:
    """Python's threads and those of lanes by name (libgfapi's own are not among them)."""
    found = Counter(thread.name for thread in threading.enumerate() if not thread.name.startswith("Dummy-"))
    for task in os.listdir("/proc/self/task"):
        with contextlib.suppress(OSError), open(f"/proc/self/task/{task}/comm") as name:
            if name.read().strip() == NAME:
                found[NAME] += 1
    return found


def native_threads() -> int:
    """All threads of this process, Python's and others'."""
    return len(os.listdir("/proc/self/task"))


def tasks() -> Counter[str]:
    """The running loop's tasks, except the one that asks; empty where no loop runs."""
    try:
        current = asyncio.current_task()
    except RuntimeError:
        return Counter()
    return Counter(str(task.get_coro()) for task in asyncio.all_tasks() if task is not current)


class LeakCheck:
    """Counts on making, compares on :meth:`problems`.

    :ivar grace: seconds that the rest is given to go away, on a busy machine too.
    :ivar native: also count the threads that are not Python's. (A Gluster connection's end some 10 s after it.)
    :ivar files: count descriptors.
    """

    def __init__(self, *, grace: float = 30.0, native: bool = False, files: bool = True) -> None:
        self.grace = grace
        self.native = native
        self.files = files
        self._tasks, self._threads, self._files = tasks(), threads(), open_files()
        self._native = native_threads()

    def problems(self) -> list[str]:
        """What there is more of than before, in words."""
        found = [f"task: {name}" for name in (tasks() - self._tasks).elements()]
        found += [f"thread: {name}" for name in (threads() - self._threads).elements()]
        if self.files:
            found += [f"descriptor: {name}" for name in (open_files() - self._files).elements()]
        if self.native and (more := native_threads() - self._native) > 0:
            found.append(f"{more} more threads in all")
        return found


def _others() -> set[int]:
    """Processes in this process's mount namespace, if that is private; its children otherwise."""
    if in_private_namespaces():
        mine = os.stat("/proc/self/ns/mnt").st_ino
        pids = {int(name) for name in os.listdir("/proc") if name.isdigit()}
        return {pid for pid in pids if pid != os.getpid() and processes.alive(pid) and _namespace(pid) == mine}
    return {pid for pid in children_of(os.getpid()) if processes.alive(pid)}


def children_of(pid: int) -> set[int]:
    """The children of a process, zombies too. Threads that end meanwhile have none."""
    children: set[int] = set()
    for task in os.listdir(f"/proc/{pid}/task"):
        try:
            with open(f"/proc/{pid}/task/{task}/children") as file:
                children |= {int(word) for word in file.read().split()}
        except OSError:
            continue
    return children


def _namespace(pid: int) -> int:
    try:
        return os.stat(f"/proc/{pid}/ns/mnt").st_ino
    except OSError:
        return 0


class SessionCheck:
    """The same for the whole session: processes, mounts and threads. What is left is named, and then ended.

    :ivar grace: seconds that everything is given to end: a thread that finalises a Gluster connection takes 10.
    """

    def __init__(self, grace: float = 60.0) -> None:
        self.grace = grace
        self._processes = _others()
        self._mounts = Counter(mount.target for mount in fuse.mounts())
        self._threads = frozenset(threading.enumerate())

    def left(self) -> list[str]:
        """What is there that was not, in words."""
        found = [f"process {pid}: {' '.join(processes.arguments(pid))}" for pid in sorted(self._new_processes())]
        found += [f"mount: {target}" for target in sorted(self._new_mounts())]
        frames = sys._current_frames()
        for thread in self._new_threads():
            stack = traceback.format_stack(frames[thread.ident])[-3:] if thread.ident in frames else []
            found.append(f"thread {thread.name}:\n{''.join(stack)}".rstrip())
        return found

    def _new_processes(self) -> set[int]:
        return _others() - self._processes

    def _new_mounts(self) -> set[str]:
        return set(Counter(mount.target for mount in fuse.mounts()) - self._mounts)

    def _new_threads(self) -> list[threading.Thread]:
        others = [thread for thread in threading.enumerate() if thread not in self._threads]
        return [thread for thread in others if not thread.name.startswith("Dummy-")]  # lanes' threads, also ended ones

    def finish(self) -> list[str]:
        """Wait, report, and end what is left: nothing outlives the session."""
        settle(lambda: not (self._new_processes() or self._new_mounts() or self._new_threads()), self.grace)
        found = self.left()
        for pid in self._new_processes():
            processes.send([pid], signal.SIGKILL)
        for target in sorted(self._new_mounts(), reverse=True):
            fuse.release(target)
        return found


def settle(condition: Callable[[], object], grace: float) -> bool:
    """Poll until ``condition`` is true, for ``grace`` seconds at most; whether it is."""
    deadline = time.monotonic() + grace
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True
