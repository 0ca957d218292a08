"""Services: the threads, backends, events and log that all pools of a Manager share."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import TYPE_CHECKING

from astore.backend import Backend, Context, CutsConnections, Secrets
from astore.cancellation import bounded
from astore.commands import LaneCommandRunner
from astore.commands.starter import STARTER
from astore.errors import InvalidStateError, ManagerClosedError
from astore.event_bus import EventBus
from astore.lanes import Lanes
from astore.lanes.lane import PoolLane
from astore.logs import get_logger
from astore.model import PoolDef
from astore.plugin_calls import asked
from astore.registry import BackendRegistry

if TYPE_CHECKING:
    from structlog.stdlib import BoundLogger


def running_loop() -> asyncio.AbstractEventLoop | None:
    """Return asyncio's event loop that runs in this thread, or None."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


PROGRAMS = 4
"""How many programs at once look into images for callers."""


class Services:
    """The threads, the backends, the event bus and the log of one Manager.

    :ivar lanes: None while the Manager is closed; each opening makes new ones. :ivar watched: whether a watch is on.
    :ivar programs: for those that look into images.
    :param max_threads: how many blocking calls may run at once. :param call_timeout: their default deadline in seconds.
    :param secrets: has the values of secrets.
    """

    def __init__(
        self,
        registry: BackendRegistry,
        bus: EventBus,
        *,
        max_threads: int,
        call_timeout: float,
        secrets: Secrets | None = None,
    ) -> None:
        self.registry = registry
        self.bus = bus
        self.log: BoundLogger = get_logger()
        self.call_timeout = call_timeout
        self.secrets = secrets
        self._max_threads = max_threads
        self.lanes: Lanes | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self.watched = False
        self.programs: asyncio.Semaphore = asyncio.Semaphore(PROGRAMS)
        self._closing = False
        self._left_busy: list[tuple[PoolDef, str, PoolLane]] = []

    def open(self) -> Lanes:
        """Open the lanes and the bus. :raises InvalidStateError: they are open already, or asyncio is not running."""
        if self.lanes is not None:
            raise InvalidStateError("this Manager is open already", operation="open")
        self._loop = running_loop()
        if self._loop is None:
            raise InvalidStateError("astore works in asyncio's event loop, and not under trio", operation="open")
        self.bus.open()
        self.registry.listen(self.bus.publish)
        self.lanes = Lanes(self._max_threads)
        self.programs = asyncio.Semaphore(PROGRAMS)  # it belongs to an event loop
        STARTER.acquire()
        return self.lanes

    def begin_closing(self) -> Lanes | None:
        """Refuse new work from here on; return the lanes, or None if the Manager is closed."""
        self.check_loop()
        self._closing = self.lanes is not None
        return self.lanes

    def close(self, lanes: Lanes) -> None:
        """Close these lanes and the bus; do nothing if the lanes are not the current ones."""
        if self.lanes is lanes:
            self.lanes = None
            self._closing = False
            self.registry.unlisten(self.bus.publish)
            STARTER.release(keep=lanes.busy)
            lanes.close()
            self.bus.close()

    def leave_busy(self, definition: PoolDef, uuid: str, lane: PoolLane) -> None:
        """Remember a pool that was left while calls on its lane go on, for :meth:`cut_connections`."""
        self._left_busy = [*self._still_busy(), (definition, uuid, lane)]

    def _still_busy(self) -> list[tuple[PoolDef, str, PoolLane]]:
        return [left for left in self._left_busy if left[2].busy]

    async def cut_connections(self, until: float) -> None:
        """Cut the connections of pools that were left and whose calls hang, where the backend can. Bounded; never raises.

        :param until: how long the calls may take to end by themselves, on the monotonic clock.
        """
        busy = self._still_busy()
        while busy and time.monotonic() < until:
            await asyncio.sleep(0.01)
            busy = self._still_busy()
        await asyncio.gather(*(bounded(self._cut_connection(*left)) for left in busy))

    async def _cut_connection(self, definition: PoolDef, uuid: str, lane: PoolLane) -> None:
        backend = self.registry.loaded(definition.type)
        if isinstance(backend, CutsConnections):
            context = self.context(definition.name, uuid, lane)
            try:
                await asked(backend.cut_connection, definition, context)
            except Exception as error:  # plugin code: it may raise anything
                context.log.warning("the connection of a pool that hangs is not cut", error=str(error))

    def check_loop(self) -> None:
        """Check that this is the event loop of an open Manager. :raises InvalidStateError: it is another, or another thread."""
        if self.lanes is not None and running_loop() is not self._loop:
            raise InvalidStateError(
                "a Manager and its pools are used in the event loop in which the Manager was entered, and this is "
                f"another loop or thread ({threading.current_thread().name}): asyncio.run_coroutine_threadsafe() "
                "runs a call in that loop"
            )

    def check_open(self, since: Lanes | None = None) -> Lanes:
        """Return the lanes.

        :param since: the lanes at the time when the work began.
        :raises ManagerClosedError: the Manager is closed, or was closed (and reopened) since.
        :raises InvalidStateError: this is not the Manager's event loop.
        """
        if self.lanes is None or self._closing or since not in (None, self.lanes):
            raise ManagerClosedError
        self.check_loop()
        return self.lanes

    def pool_lane(self, name: str, backend: Backend) -> PoolLane:
        """Return a new lane for a pool. :raises ManagerClosedError: the Manager is closed."""
        return self.check_open().lane(f"pool {name!r}", limit=backend.lane_threads, timeout=self.call_timeout)

    def context(self, name: str, uuid: str, lane: PoolLane) -> Context:
        """Return the context that a backend gets for its work on a pool."""
        return Context(
            name=name,
            uuid=uuid,
            lane=lane,
            run_command=LaneCommandRunner(lane),
            log=self.log.bind(pool=name),
            timeout=lane.timeout,
            secrets=self.secrets,
        )
