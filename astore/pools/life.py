"""Life: the run of a started pool, from its start to its stop."""

from __future__ import annotations

import anyio

from astore.backend import SESSION_ABILITIES, Backend, PoolSession
from astore.cancellation import CLEANUP_SECONDS, bounded, seconds_until, shielded
from astore.commands import prepare_programs
from astore.errors import InvalidStateError, UnsupportedOperationError
from astore.lanes.lane import PoolLane
from astore.model import PoolDef, PoolState
from astore.plugin_calls import asked, opened_session
from astore.pools.pool_errors import about_pool
from astore.pools.services import Services


class Life:
    """The run of an active pool, and the backend, session and lane that this process has for it.

    Work keeps the life it began with, and calls :meth:`check` before it changes the pool. The life of a pool that another
    process started has no session until one is needed.

    :ivar definition: the definition that the pool runs by.
    :ivar started_at: when the pool was started, by any process, in seconds since the epoch; it identifies the run in the store.
    :ivar ending: the pool is being stopped: no new work may begin. :ivar ended: the run is over: no work may change the pool.
    """

    def __init__(self, services: Services, uuid: str, definition: PoolDef, started_at: float) -> None:
        self.uuid = uuid
        self.definition = definition
        self.started_at = started_at
        self.ending = False
        self.ended: bool = False
        self.backend: Backend | None = None
        self.session: PoolSession | None = None
        self.lane: PoolLane | None = None
        self._services = services
        self._attaching = anyio.Lock()
        self._able_to: set[str] = set()

    @property
    def name(self) -> str:
        """The pool's name."""
        return self.definition.name

    def check(self, operation: str, session: PoolSession | None = None) -> None:
        """Check that the run goes on. :raises InvalidStateError: the pool was stopped, or this session closed, meanwhile."""
        if self.ended or (session is not None and self.session is not session):
            raise InvalidStateError(
                f"pool {self.name!r} was stopped meanwhile",
                pool=self.name,
                state=PoolState.INACTIVE if self.ended else PoolState.RUNNING,
                operation=operation,
            )

    async def open(self, backend: Backend) -> None:
        """Open the session. If that fails or is cancelled, release the backend; the lane stays until :meth:`close`."""
        self._services.registry.acquire(backend)
        try:
            if self.lane is None:
                self.lane = self._services.pool_lane(self.name, backend)
            await prepare_programs(self.lane)
            self._able_to = set()
            self.session = await opened_session(
                backend, self.definition, self._services.context(self.name, self.uuid, self.lane)
            )
            self.backend = backend
        except BaseException:
            self._services.registry.release(backend)
            raise

    async def attached(self) -> PoolSession:
        """Return the session; open it if there is none yet.

        :raises InvalidStateError: the pool was stopped meanwhile. ManagerClosedError. What the backend raises.
        """
        if self.session is not None:
            return self.session
        async with self._attaching:
            if self.session is None:
                self.check("use")
                lanes = self._services.lanes
                backend = await self._services.registry.get(self.definition.type)
                self._services.check_open(lanes)
                self.check("use")
                await self.open(backend)
                try:
                    self._services.check_open(lanes)
                    self.check("use")
                except BaseException:
                    await shielded(self._let_go(CLEANUP_SECONDS), whole=True)
                    raise
            assert self.session is not None
            return self.session

    async def able(self, operation: str) -> PoolSession:
        """Return the session. :raises UnsupportedOperationError: it lacks the ability. What opening it raises, translated."""
        try:
            session = await self.attached()
        except Exception as error:
            raise about_pool(self.name, operation, error) from error
        if operation not in self._able_to:  # isinstance() with a Protocol takes as long as creating a file
            if not isinstance(session, SESSION_ABILITIES[operation]):
                raise UnsupportedOperationError(pool=self.name, type=self.definition.type, operation=operation)
            self._able_to.add(operation)
        return session

    async def close(self, until: float | None = None) -> None:
        """End this life and release what belongs to this process. Bounded; never raises.

        :param until: the deadline on the monotonic clock; None means CLEANUP_SECONDS from now.
        """
        self.ended = True
        await self.detach(until)

    async def detach(self, until: float | None = None) -> None:
        """Release what belongs to this process. Bounded; never raises."""
        lane, self.lane = self.lane, None
        try:
            await self._let_go(seconds_until(until))
        finally:
            if lane is not None:
                lane.close()
                if lane.busy:
                    self._services.leave_busy(self.definition, self.uuid, lane)

    async def _let_go(self, seconds: float) -> None:
        session, self.session = self.session, None
        backend, self.backend = self.backend, None
        try:
            if session is not None:
                await bounded(asked(session.aclose), seconds)
        finally:
            if backend is not None:
                self._services.registry.release(backend)
