"""Life: what a started pool works with, from the start to the stop or to the closing of the Manager."""

from __future__ import annotations

import time

import anyio

from astore.backend import SESSION_ABILITIES, Backend, Context, PoolSession
from astore.cancellation import CLEANUP_SECONDS, bounded, shielded
from astore.commands import LaneCommandRunner
from astore.errors import InvalidStateError, UnsupportedOperationError
from astore.lanes.lane import PoolLane
from astore.model import PoolDef, PoolState
from astore.plugin_calls import asked, opened
from astore.pools.services import Services
from astore.pools.wording import about_pool


class Life:
    """Backend, session and lane of an active pool: one object for each life, so that late work finds out that it is late.

    A pool that another process started, or this one earlier, has a life without a session until something needs one.

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

    def again(self) -> Life:
        """Return a life of the same run without a session, for when the Manager is opened anew."""
        return Life(self._services, self.uuid, self.definition, self.started_at)

    def check(self, operation: str) -> None:
        """:raises InvalidStateError: this life has ended: the result of the operation concerns nobody any more."""
        if self.ended:
            raise InvalidStateError(
                f"pool {self.name!r} was stopped meanwhile",
                pool=self.name,
                state=PoolState.INACTIVE,
                operation=operation,
            )

    async def open(self, backend: Backend) -> None:
        """Open the session. Failed or cancelled, it leaves the backend as it was; the lane stays until :meth:`close`."""
        self._services.registry.acquire(backend)
        try:
            if self.lane is None:
                self.lane = self._services.pool_lane(self.name, backend)
            self.session = await opened(backend, self.definition, self.context(self.lane))
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
                await self.open(await self._services.registry.get(self.definition.type))
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

    def context(self, lane: PoolLane) -> Context:
        """Return what the backend is lent for this pool."""
        return Context(
            name=self.name,
            uuid=self.uuid,
            lane=lane,
            run_command=LaneCommandRunner(lane),
            log=self._services.log.bind(pool=self.name),
            timeout=lane.timeout,
        )


def seconds_until(until: float | None) -> float:
    """Return how long a clean-up may last: CLEANUP_SECONDS, or until a moment of the monotonic clock."""
    return CLEANUP_SECONDS if until is None else max(until - time.monotonic(), 0.05)
