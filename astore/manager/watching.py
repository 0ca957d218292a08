"""Watch: keeps the snapshots of a Manager's pools fresh, and tries pools again that failed.

Each pool has a timer, and a task only while it is being refreshed.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Coroutine, Mapping
from typing import Self

from astore.errors import InvalidStateError, ManagerClosedError, reason
from astore.events import (
    Lagged,
    PoolDefined,
    PoolEvent,
    PoolStarted,
    PoolStartFailed,
    PoolStateChanged,
    PoolStopped,
    PoolUndefined,
)
from astore.manager.catalogue import Catalogue
from astore.manager.keeper import Keeper
from astore.manager.pool_watch import FIRST_RETRY, PoolWatch
from astore.pools.services import Services

AT_ONCE = 16
"""How many refreshes are begun at once. One that takes longer than a second holds up no other."""


class Watch:
    """The watch of a Manager's pools; see :meth:`astore.Manager.watch`."""

    def __init__(
        self,
        services: Services,
        catalogue: Catalogue,
        keeper: Keeper,
        max_staleness: float | Mapping[str, float] | None,
        retry: bool,
    ) -> None:
        self.services = services
        self._retry = retry
        self._catalogue = catalogue
        self._keeper = keeper
        self._max_staleness = max_staleness
        self._pools: dict[str, PoolWatch] = {}  # by uuid
        self._ready: deque[PoolWatch] = deque()
        self._running = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._ended = True

    async def __aenter__(self) -> Self:
        self.services.check_open()
        if self.services.watched:
            raise InvalidStateError("this Manager is watched already", operation="watch")
        self.services.watched = True
        self._ended = False
        self._spawn(self._follow(), "astore watch")
        self._spawn(self._follow_store(), "astore watch of the store")
        return self

    async def __aexit__(self, *_: object) -> None:
        tasks = self._end()
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def _most_stale(self, name: str) -> float | None:
        """Return the caller's ``max_staleness`` for a pool, in seconds; None: it said nothing."""
        said = self._max_staleness
        return said.get(name) if isinstance(said, Mapping) else said

    # ------------------------------------------------------------------------------------------------ which pools

    async def _follow(self) -> None:
        """Watch the pools that there are, and those that come. Ends with the Manager."""
        kinds = (PoolDefined, PoolUndefined, PoolStarted, PoolStartFailed, PoolStopped, PoolStateChanged, Lagged)
        try:
            async with self.services.bus.subscribe(kinds=kinds) as events:
                self._look_at_all()
                async for event in events:
                    if isinstance(event, PoolEvent):
                        self._look_at(event.uuid)
                    else:
                        self._look_at_all()
        finally:
            for task in self._end():
                task.cancel()

    async def _follow_store(self) -> None:
        """Take over what other processes change in the store."""
        while not self._ended:
            try:
                await self._keeper.follow()
            except ManagerClosedError:
                return
            except Exception as error:  # a store may raise anything
                self.services.log.debug("the store cannot be watched", error=reason(error))
            await asyncio.sleep(FIRST_RETRY)

    def _look_at_all(self) -> None:
        known = {pool.record.uuid for pool in self._catalogue.all()}
        for uuid in known | self._pools.keys():
            self._look_at(uuid)

    def _look_at(self, uuid: str) -> None:
        watched = self._pools.get(uuid)
        if watched is None:
            parts = self._catalogue.by_uuid(uuid)
            if parts is None:
                return
            most_stale = self._most_stale(parts.name)
            watched = self._pools[uuid] = PoolWatch(parts, self._begin, most_stale=most_stale, retry=self._retry)
        if watched.parts.record.gone:
            watched.close()
            del self._pools[uuid]
        else:
            watched.look()

    def _end(self) -> set[asyncio.Task[None]]:
        """Listen no more; return the tasks that still run."""
        if not self._ended:
            self._ended = True
            self.services.watched = False
            for watched in self._pools.values():
                watched.close()
            self._pools.clear()
            self._ready.clear()
        return self._tasks - {asyncio.current_task()}

    # ------------------------------------------------------------------------------------------------------ tasks

    def _spawn(self, call: Coroutine[None, None, None], name: str) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(call, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _begin(self, watched: PoolWatch) -> None:
        """Have a pool looked at, now or as soon as fewer others are."""
        self._ready.append(watched)
        self._begin_next()

    def _begin_next(self) -> None:
        while self._ready and self._running < AT_ONCE and not self._ended:
            watched = self._ready.popleft()
            self._running += 1
            self._spawn(self._look_now(watched), f"astore watch of {watched.parts.name}")

    async def _look_now(self, watched: PoolWatch) -> None:
        """Look at a pool. After a second it holds up no other."""
        slot = contextlib.ExitStack()
        slot.callback(self._give_back)
        timer = asyncio.get_running_loop().call_later(1.0, slot.close)
        try:
            await watched.refresh()
        finally:
            timer.cancel()
            slot.close()

    def _give_back(self) -> None:
        self._running -= 1
        self._begin_next()
