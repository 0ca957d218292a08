"""Backends are imported one at a time.

Python lets one thread import a package and another one a module of it. If each then needs what the other has begun, one of
them gets a module that is not complete, and ImportError for a plugin that is installed well.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

_importing = threading.Lock()
"""Held while a backend is imported. Replaced when its holder hangs."""

_replacing = threading.Lock()


@contextlib.contextmanager
def one_import(patience: float) -> Iterator[None]:
    """Wait until no other backend of the process is being imported. One that takes longer than ``patience`` is left behind.

    :param patience: seconds.
    """
    global _importing
    while True:
        turn = _importing
        if not turn.acquire(timeout=patience):
            with _replacing:
                if turn is _importing:
                    _importing = threading.Lock()
        elif turn is _importing:
            break
        else:
            turn.release()
    try:
        yield
    finally:
        turn.release()
