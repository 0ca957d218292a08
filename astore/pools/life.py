"""Life: what a started pool works with, from the start to the stop or to the closing of the Manager."""

from __future__ import annotations

import anyio

from astore.backend import SESSION_ABILITIES, Backend, PoolSession
from astore.cancellation import CLEANUP_SECONDS, bounded, seconds_until, shielded
from astore.errors import InvalidStateError, UnsupportedOperationError
from astore.lanes.lane import PoolLane
from astore.model import PoolDef, PoolState
from astore.plugin_calls import asked, opened_session
from astore.pools.pool_errors import about_pool
from astore.pools.services import Services


class Life:
    """The run of an active pool, and the backend, session and lane that this process has for it.

    Work keeps the life it began with, and calls :meth:`check` before it changes the pool. A pool that another process started
    has a life without a session until something needs one.

    :ivar definition: what the pool runs by. :ivar started_at: when it was started, in seconds since the epoch, by
        whichever process: this names the run in the store.
    :ivar ending: the pool is being stopped: no work begins. :ivar ended: it is over, and no work may change the pool.
    """

    def __init__(self, services: Services, uuid: str, definition: PoolDef, started_at: float) -> None:
        self.uuid = uuid
        self.definition = definition
        self.started_at = started_at
        self.ending = False
        self.ended = False
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
        """:raises InvalidStateError: the pool was stopped, or this session was closed, since the operation began."""
        if self.ended or (session is not None and self.session is not session):
            raise InvalidStateError(
                f"pool {self.name!r} was stopped meanwhile",
                pool=self.name,
                state=PoolState.INACTIVE if self.ended else PoolState.RUNNING,
                operation=operation,
            )

    async def open(self, backend: Backend) -> None:
        """Open the session. Failed or cancelled, it leaves the backend as it was; the lane stays until :meth:`close`."""
        self._services.registry.acquire(backend)
        try:
            if self.lane is None:
                self.lane = self._services.pool_lane(self.name, backend)
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
                    await shielded(self._let_go(CLEANUP_SECONDS))
                    raise
            assert self.session is not None
            return self.session

    async def able(self, operation: str) -> PoolSession:
        """Return the session. :raises UnsupportedOperationError: it cannot do this. What opening it raises, in words."""
        try:
            session = await self.attached()
        except Exception as error:
            raise about_pool(self.name, operation, error) from error
        if operation not in self._able_to:  # to ask a protocol takes as long as to make a file
            if not isinstance(session, SESSION_ABILITIES[operation]):
                raise UnsupportedOperationError(pool=self.name, type=self.definition.type, operation=operation)
            self._able_to.add(operation)
        return session

    async def close(self, until: float | None = None) -> None:
        """End this life and let go of what belongs to this process. Bounded; never raises.

        :param until: the moment of the monotonic clock at which it is to be over.
        """
        self.ended = True
        await self.detach(until)

    async def detach(self, until: float | None = None) -> None:
        """Let go of what belongs to this process. Bounded; never raises."""
        lane, self.lane = self.lane, None
        try:
            await self._let_go(seconds_until(until))
        finally:
            if lane is not None:
                lane.close()

    async def _let_go(self, seconds: float) -> None:
        session, self.session = self.session, None
        backend, self.backend = self.backend, None
        try:
            if session is not None:
                await bounded(asked(session.aclose), seconds)
        finally:
            if backend is not None:
                self._services.registry.release(backend)
