"""FleetEvents: reads the events of all hosts."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from typing import Self

import msgspec

import astore.events as kinds
from astore.events import Event, Lagged
from astore_fleet.engine import Engine, Message
from astore_fleet.mirror import Mirror
from astore_fleet.names import unescaped
from astore_fleet.records import PARTIAL, FleetEvent

MOST_WAITING = 10_000
"""How many events wait here for a slow reader; the engine holds back the others."""

_CLASSES = {name: kind for name, kind in vars(kinds).items() if isinstance(kind, type) and issubclass(kind, Event)}


class FleetEvents:
    """Reads the events of all hosts: ``async with fleet.events() as events: async for event in events: ...``.

    A reader may be as slow as it likes: what it has not read waits in the engine. Events that are not kept any more are
    counted by a :class:`astore.Lagged` in their place.

    :param since: go on after the event of this number; 0: from the first that is kept; None: from now on.
    """

    def __init__(self, engine: Engine, since: int | None) -> None:
        self._engine = engine
        self._since = since
        self._mirror: Mirror | None = None
        self._waiting: deque[FleetEvent] = deque()
        self._room = asyncio.Event()
        self._last = 0  # the number of the last event that was taken, or counted; 0: none

    async def __aenter__(self) -> Self:
        state = (await self._engine.info(self._engine.names.events))["state"]
        self._last = since = int(state["last_seq"]) if self._since is None else self._since
        if since:
            self._count_missed(int(state["first_seq"]))
        self._mirror = Mirror(self._engine, self._engine.names.events, self._take, since=since, hold=self._hold)
        await self._mirror.open(complete=False)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """End. May be called twice."""
        if self._mirror is not None:
            await self._mirror.aclose()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> FleetEvent:
        if self._mirror is None:
            raise RuntimeError("enter the events first: async with fleet.events() as events")
        while not self._waiting:
            self._mirror.changed.clear()
            await self._mirror.changed.wait()
        if len(self._waiting) <= MOST_WAITING // 2:
            self._room.set()
        return self._waiting.popleft()

    async def _hold(self) -> None:
        """Wait while the reader is behind."""
        if len(self._waiting) >= MOST_WAITING:
            self._room.clear()
            await self._room.wait()

    def _count_missed(self, seq: int) -> None:
        """Tell the reader which events before this number it has missed, if any."""
        if seq > self._last + 1:
            lagged = Lagged(seq=seq - 1, time=time.time(), missed=seq - 1 - self._last)
            self._waiting.append(FleetEvent(seq - 1, "", lagged.time, lagged))
            self._last = seq - 1

    def _take(self, message: Message) -> None:
        if self._last:  # it has read others, or said where it begins
            self._count_missed(message.seq)
        self._last = max(self._last, message.seq)
        parts = message.subject.split(".")
        if len(parts) != 6 or (kind := _CLASSES.get(parts[5])) is None:
            return
        try:
            event = msgspec.json.decode(message.data, type=kind)
        except Exception:  # anybody may have written anything
            return
        partial = PARTIAL in message.headers
        self._waiting.append(FleetEvent(message.seq, unescaped(parts[3]), message.time, event, partial))
