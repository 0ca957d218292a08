"""What threads have from the kernel and the C library: a name, and memory that is not reserved in vain."""

from __future__ import annotations

import contextlib
import os
import resource

NAME = "astore-lane"
"""The name of the threads in the kernel, as ``ps -T`` and ``top -H`` show it."""

M_ARENA_MAX = -8
"""See mallopt(3)."""


def take_name() -> None:
    """Give this thread its name (proc(5)). Few of the calls release the interpreter, for which the thread would wait again.

    The threads that it starts have the name, too.
    """
    with contextlib.suppress(OSError):
        comm = os.open("/proc/thread-self/comm", os.O_WRONLY)
        try:
            os.write(comm, NAME.encode())
        finally:
            os.close(comm)


def save_address_space() -> None:
    """Where the address space is limited, have malloc not reserve 64 MiB of it for each thread.

    Without memory for the smallest object, CPython 3.11 does not raise MemoryError but may loop for ever in a ``finally``.
    """
    if resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY:
        import ctypes

        with contextlib.suppress(AttributeError, OSError):  # no glibc
            ctypes.CDLL(None).mallopt(M_ARENA_MAX, 1)
