"""Shared libraries are found by the dynamic linker, and never by running programs.

``ctypes.util.find_library`` runs ldconfig, gcc and ld. Some packages call it when they are imported, and a child of this
process has copies of all its descriptors until it becomes another program: closing the copy of a file on a FUSE mount that
hangs would stop the whole process, since Python keeps its lock while it starts a program.
"""

from __future__ import annotations

import contextlib
import ctypes.util
import os
import threading
from collections.abc import Iterator

_turn = threading.Lock()


def _forget_turn() -> None:
    global _turn
    _turn = threading.Lock()  # in a child process, the thread that held it does not exist


os.register_at_fork(after_in_child=_forget_turn)


@contextlib.contextmanager
def found_by_the_linker() -> Iterator[None]:
    """Have ``find_library`` find nothing on this thread: its caller then names the library itself, and dlopen(3) finds it."""
    with _turn:
        find_library, thread = ctypes.util.find_library, threading.get_ident()

        def find_nothing(name: str) -> str | None:
            return None if threading.get_ident() == thread else find_library(name)

        ctypes.util.find_library = find_nothing
        try:
            yield
        finally:
            ctypes.util.find_library = find_library
