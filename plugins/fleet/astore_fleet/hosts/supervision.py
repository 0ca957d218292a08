"""Keeping the tasks of an agent up, and waking them: one that fails begins again; if that does not help, the agent ends."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import TYPE_CHECKING

import nats.errors

from astore.errors import StoreError, reason
from astore_fleet.engine import Closed

if TYPE_CHECKING:
    from structlog.stdlib import BoundLogger

FIRST_SECONDS = 0.5
"""Seconds before a task begins again that has failed once; twice as many after each further failure."""

MOST_FAILURES = 5
"""How often a task may fail in a row."""

CALM_SECONDS = 60.0
"""Seconds after which a failure is not in a row with the one before."""


async def keep_up(call: Callable[[], Awaitable[None]], name: str, log: BoundLogger) -> None:
    """Run ``call()`` until it returns. While the engine is away, it is tried again for as long as that takes.

    :raises Exception: it has failed MOST_FAILURES times in a row.
    """
    failures = 0
    while True:
        began = time.monotonic()
        try:
            return await call()
        except Exception as error:
            if isinstance(error, StoreError | OSError | nats.errors.Error) and not isinstance(error, Closed):
                log.warning("a task of the agent begins again", task=name, error=reason(error))
                await asyncio.sleep(FIRST_SECONDS)
                continue
            failures = 1 if time.monotonic() - began > CALM_SECONDS else failures + 1
            log.error(
                "a task of the agent failed", task=name, failures=failures, error=f"{type(error).__name__}: {error}"
            )
            if failures >= MOST_FAILURES:
                raise
            await asyncio.sleep(FIRST_SECONDS * 2 ** (failures - 1))


async def any_set(signs: Iterable[asyncio.Event], seconds: float) -> None:
    """Wait until one of these is set, for so many seconds at most; then clear them all."""
    woken = {asyncio.ensure_future(sign.wait()): sign for sign in signs}
    try:
        await asyncio.wait(woken, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for one in woken:
            one.cancel()
    for sign in woken.values():
        sign.clear()
