"""SessionFiles: closes a session's open volumes when the session ends."""

from __future__ import annotations

import asyncio
import contextlib
import errno
from collections.abc import Iterator
from typing import Protocol

import anyio

from astore.errors import StorageError

CLOSING_SECONDS = 1.0
"""Seconds that the end of a session waits for calls on its volumes."""


class Closes(Protocol):
    """An open volume, which can be closed while calls are running."""

    async def aclose(self) -> None: ...


def stopped() -> StorageError:
    """Return the error of work whose session has ended."""
    return StorageError("the pool was stopped meanwhile", errno=errno.EBADF)


class SessionFiles:
    """The open volumes of a session.

    :ivar over: whether the session has ended, so that no volume is opened any more.
    """

    def __init__(self) -> None:
        self.over = False
        self._files: set[Closes] = set()

    @contextlib.contextmanager
    def keeping(self, file: Closes) -> Iterator[None]:
        """Close the file if the session ends inside the block. :raises StorageError: EBADF: the session has ended."""
        self._files.add(file)
        try:
            self.check()
            yield
        finally:
            self._files.discard(file)

    def check(self) -> None:
        """Check that the session goes on. :raises StorageError: EBADF: it has ended."""
        if self.over:
            raise stopped()

    async def end(self) -> None:
        """Fail all work on open volumes and remove unfinished ones, in bounded time."""
        self.over = True
        files = list(self._files)
        if files:
            with anyio.move_on_after(CLOSING_SECONDS):
                await asyncio.gather(*(file.aclose() for file in files), return_exceptions=True)
