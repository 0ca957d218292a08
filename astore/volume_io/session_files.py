"""SessionFiles: what is open in a session, and ends with it."""

from __future__ import annotations

import asyncio
import contextlib
import errno
from collections.abc import Iterator
from typing import Protocol

import anyio

from astore.errors import StorageError

CLOSING_SECONDS = 1.0
"""How long the end of a session waits for calls on its volumes."""


class Closes(Protocol):
    """What can be closed, also while calls are in it."""

    async def aclose(self) -> None: ...


def stopped() -> StorageError:
    """The error of work whose session ended."""
    return StorageError("the pool was stopped meanwhile", errno=errno.EBADF)


class SessionFiles:
    """The volumes that are open in a session.

    :ivar over: the session has ended, and nothing is opened any more.
    """

    def __init__(self) -> None:
        self.over = False
        self._files: set[Closes] = set()

    @contextlib.contextmanager
    def keeping(self, file: Closes) -> Iterator[None]:
        """The file is open inside, and closed if the session ends meanwhile. :raises StorageError: EBADF: it has ended."""
        self._files.add(file)
        try:
            self.check()
            yield
        finally:
            self._files.discard(file)

    def check(self) -> None:
        """:raises StorageError: EBADF: the session has ended."""
        if self.over:
            raise stopped()

    async def end(self) -> None:
        """Have all work on open volumes fail, and what was being made be removed. Bounded."""
        self.over = True
        files = list(self._files)
        if files:
            with anyio.move_on_after(CLOSING_SECONDS):
                await asyncio.gather(*(file.aclose() for file in files), return_exceptions=True)
