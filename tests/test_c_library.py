"""C libraries: declared, refused where functions are missing, loaded once."""

from __future__ import annotations

import ctypes
import errno
import os
import threading
from collections.abc import Callable

import pytest

from astore.c_library import CLibrary, Loaded, quick, waits
from astore.errors import BackendLoadError


class Libc(CLibrary, type="packed", name="libc", product="POSIX", oldest="1988"):
    """Two functions of every C library."""

    close: Callable[[int], int] = waits("1988", ctypes.c_int, ctypes.c_int)
    labs: Callable[[int], int] = quick("1988", ctypes.c_long, ctypes.c_long)


def of_libc() -> Libc:
    """The functions of this process's own C library."""
    return Libc(lambda name: (ctypes.CDLL(None), name))


def test_calls() -> None:
    """Functions are called with the types that they are declared with; one that waits leaves its errno."""
    libc = of_libc()
    assert libc.labs(-(2**40)) == 2**40
    assert libc.close(-1) == -1
    assert ctypes.get_errno() == errno.EBADF
    with pytest.raises(ctypes.ArgumentError):
        libc.labs("text")  # type: ignore[arg-type]


def test_missing() -> None:
    """A library without a function is refused with the function's name, and what has it."""

    class Newer(CLibrary, type="packed", name="libc", product="POSIX", oldest="2124"):
        is_not_there: Callable[[], int] = quick("2124", ctypes.c_int)

    with pytest.raises(BackendLoadError) as caught:
        Newer(lambda name: (ctypes.CDLL(None), f"c_{name}"))
    assert "libc has no c_is_not_there, which POSIX 2124 has: 2124 or later is needed" in str(caught.value)
    assert caught.value.type == "packed"


def test_loaded_once() -> None:
    """However many threads ask, a library is made once; after a failure the next call tries again."""
    made: list[Libc] = []

    def make() -> Libc:
        if not failed:
            failed.append(True)
            raise BackendLoadError("install it", type="packed")
        made.append(of_libc())
        return made[-1]

    failed: list[bool] = []
    load = Loaded(make)
    with pytest.raises(BackendLoadError):
        load()
    found: list[Libc] = []
    threads = [threading.Thread(target=lambda: found.append(load())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1
    assert found == made * 8


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # there is another thread: that is the point
def test_in_a_child_process() -> None:
    """A process that was forked while another thread was loading can load."""
    entered, leave = threading.Event(), threading.Event()

    def make() -> Libc:
        if threading.current_thread() is not threading.main_thread():
            entered.set()
            leave.wait()
        return of_libc()

    load = Loaded(make)
    thread = threading.Thread(target=load)
    thread.start()
    entered.wait()
    pid = os.fork()
    if pid == 0:
        os._exit(7 if load().labs(-1) == 1 else 1)
    leave.set()
    thread.join()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
