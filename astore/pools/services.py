"""Services: what all pools of a Manager share, such as threads, backends and the event bus."""

from __future__ import annotations

from astore.backend import Backend
from astore.errors import InvalidStateError, ManagerClosedError
from astore.events import EventBus
from astore.lanes import Lanes
from astore.lanes.lane import PoolLane
from astore.logs import get_logger
from astore.registry import BackendRegistry


class Services:
    """The threads, the backends, the event bus and the log of one Manager.

    :param max_threads: how many blocking calls may run at once. :param call_timeout: seconds that one of them may take.
    """

    def __init__(self, registry: BackendRegistry, bus: EventBus, *, max_threads: int, call_timeout: float) -> None:
        self.registry = registry
        self.bus = bus
        self.log = get_logger()
        self.call_timeout = call_timeout
        self._max_threads = max_threads
        self._lanes: Lanes | None = None
        self.closing = False

    def open(self) -> Lanes:
        """Start the threads and the bus. :raises InvalidStateError: they are there already."""
        if self._lanes is not None:
            raise InvalidStateError("this Manager is open already", operation="open")
        self.bus.open()
        self.registry.listen(self.bus.publish)
        self._lanes = Lanes(self._max_threads)
        return self._lanes

    def close(self, lanes: Lanes) -> None:
        """End what :meth:`open` returned ``lanes`` for; do nothing where that has been done."""
        if self._lanes is lanes:
            self._lanes = None
            self.closing = False
            self.registry.unlisten(self.bus.publish)
            lanes.close()
            self.bus.close()

    @property
    def lanes(self) -> Lanes | None:
        """The threads; None while the Manager is closed. They are other ones each time it is opened."""
        return self._lanes

    def check_open(self, since: Lanes | None = None) -> Lanes:
        """Return the threads.

        :param since: those that were there when the work began.
        :raises ManagerClosedError: the Manager is closed, or was closed since (and opened anew).
        """
        if self._lanes is None or self.closing or since not in (None, self._lanes):
            raise ManagerClosedError
        return self._lanes

    def pool_lane(self, name: str, backend: Backend) -> PoolLane:
        """Return a new lane for a pool. :raises ManagerClosedError: the Manager is closed."""
        return self.check_open().lane(f"pool {name!r}", limit=backend.lane_threads, timeout=self.call_timeout)
