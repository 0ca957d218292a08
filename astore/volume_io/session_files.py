"""SessionFiles: closes a session's open volumes when the session ends."""

from __future__ import annotations

import asyncio
import contextlib
import errno
from collections.abc import AsyncIterator
from typing import Protocol

import anyio

from astore.cancellation import bounded, shielded
from astore.errors import StorageError
from astore.volume_io.wording import worded

CLOSING_SECONDS = 1.0
"""Seconds that the end of a session waits for calls on its volumes."""

LOCK_TRIES = 10
"""How many times a volume's lock is tried, LOCK_PAUSE apart, before it counts as busy."""

LOCK_PAUSE = 0.02
"""Seconds. A network may be slow to report that the last writer has gone."""


class Closes(Protocol):
    """An open volume, which can be closed while calls are running."""

    async def aclose(self) -> None: ...


class Unfinished(Closes, Protocol):
    """A new, open volume. Closing it before it is ``placed`` removes it."""

    placed: bool

    async def place(self) -> None:
        """Give it its name and close it. :raises OSError: EEXIST: the name was taken meanwhile."""

    async def remove(self) -> None:
        """Remove it although it is placed."""


def stopped() -> StorageError:
    """Return the error of work whose session has ended."""
    return StorageError("the pool was stopped meanwhile", errno=errno.EBADF)


class SessionFiles:
    """The open volumes of a session.

    :ivar over: whether the session has ended, so that no volume is opened any more.
    """

    def __init__(self) -> None:
        self.over: bool = False
        self._files: set[Closes] = set()

    @contextlib.asynccontextmanager
    async def using(self, file: Closes, name: str) -> AsyncIterator[None]:
        """Close an open volume at the end of the block, or when the session ends. :param name: the volume's."""
        async with self._kept(file):
            yield
        with worded(name, "close"):
            await shielded(file.aclose())

    @contextlib.asynccontextmanager
    async def making(self, new: Unfinished, name: str) -> AsyncIterator[None]:
        """Place a new volume at the end of the block; remove it if the block fails or the session ends.

        :param name: the volume's.
        """
        try:
            async with self._kept(new):
                yield
                with worded(name, "create"):
                    await new.place()
                self._check()  # the session may have ended, and closed and removed it, just now
        except BaseException:
            if new.placed:  # closing no longer removes it
                await shielded(bounded(new.remove()))
            raise

    @contextlib.asynccontextmanager
    async def _kept(self, file: Closes) -> AsyncIterator[None]:
        self._files.add(file)
        try:
            self._check()
            yield
        except BaseException:
            with contextlib.suppress(Exception):
                await shielded(file.aclose())
            raise
        finally:
            self._files.discard(file)

    def _check(self) -> None:
        if self.over:
            raise stopped()

    async def end(self) -> None:
        """Fail all work on open volumes and remove unfinished ones, in bounded time."""
        self.over = True
        files = list(self._files)
        if files:
            with anyio.move_on_after(CLOSING_SECONDS):
                await asyncio.gather(*(file.aclose() for file in files), return_exceptions=True)
