"""Agent: a host of a fleet. It looks after the pools that are given to it.

A host is there as long as its lease is renewed; a pool's owner is a record of the engine, whose sequence is the token with
which the owner writes. A host that was away renews its lease first, and then sees which pools are others' by now. A lease
guards no storage: mounts and locks are guarded as on a host alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import NoReturn, Self

import msgspec

from astore.cancellation import bounded
from astore.errors import AstoreError, InvalidStateError, StoreError, reason
from astore.logs import get_logger
from astore.manager import Manager
from astore.registry import BackendRegistry
from astore.store.contract import Lease, OutdatedError
from astore_fleet import leases
from astore_fleet.ending import end
from astore_fleet.engine import Closed
from astore_fleet.hosts.event_stream import Forwarder
from astore_fleet.hosts.handover import Handover
from astore_fleet.hosts.supervision import any_set, keep_up
from astore_fleet.jobs.worker import Worker
from astore_fleet.placement import owning
from astore_fleet.placement.fleet_state import HOST, FleetState
from astore_fleet.records import HOST_SECONDS, HostInfo, Owner
from astore_fleet.store.nats_store import NatsStore

EVENTS = 1 << 20
"""How many events a host keeps while the engine is away."""

MOST_MOVED = 16
"""How many pools a host hands to others at once, to even out."""


class Agent:
    """One host's part in a fleet: ``async with fleet.agent() as agent: await agent.wait()``. It ends with its block.

    :param store: not open yet; the Manager opens it. :param labels: what placements may ask for.
    :param seconds: how long the host's lease lasts; it is renewed three times as often.
    :param max_staleness: see :meth:`astore.Manager.watch`.
    :ivar manager: the Manager of this host's pools.
    """

    def __init__(
        self,
        store: NatsStore,
        *,
        labels: Mapping[str, str] | None = None,
        seconds: float = HOST_SECONDS,
        registry: BackendRegistry | None = None,
        max_staleness: float | None = None,
    ) -> None:
        self.me: Owner = Owner(store.host, uuid.uuid4().hex)
        self.store = store
        info = HostInfo(host=store.host, session=self.me.session, labels=dict(labels or {}), seconds=seconds)
        self.info = info
        store.shows = lambda held: bool(owning.candidates(held, [info]))
        self.manager: Manager = Manager(store=store, registry=registry, event_capacity=EVENTS)
        self.state: FleetState = FleetState(store.engine, snapshots=False)
        self._seconds = seconds
        self._max_staleness = max_staleness
        self._lease: Lease | None = None
        self._until = 0.0
        self._tokens = store.snapshots.tokens
        self._stack = contextlib.AsyncExitStack()
        self._tasks: set[asyncio.Task[None]] = set()
        self._leaving = False  # it takes no pools any more
        self._left = False  # it renews its lease no more
        self._untold = False  # nobody tells what happens any more
        self._failure: Exception | None = None
        self._failed = asyncio.Event()
        self._forwarder = Forwarder(self.manager, store, self.me.session, self.owns)
        self._log = get_logger().bind(host=store.host)
        self._handover = Handover(
            self.manager, store, self.me, self.state, self._tokens, self._forwarder, self._spawn, self._log
        )
        store.snapshots.withheld = self._withheld
        self._worker = self._handover.worker = Worker(self.manager, store, self.me, self._ready, self.state)

    async def __aenter__(self) -> Self:
        try:
            await self._stack.enter_async_context(self.manager)
            await self.state.open()
            self._stack.push_async_callback(self.state.aclose)
            await self._come()
            self._stack.push_async_callback(self._end_tasks)
            await self._place_once()  # before pools that are active still tell what has changed in them
            await self._stack.enter_async_context(self.manager.watch(max_staleness=self._max_staleness))
            for name, call in (
                ("lease", self._renew),
                ("places", self._place),
                ("events", self._forwarder.run),
                ("jobs", self._worker.run),
            ):
                self._spawn(self._keep_up(call, name), f"astore fleet {name}")
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def wait(self) -> NoReturn:
        """Wait until the agent can do its work no more: it has handed its pools over, and has no lease.

        :raises AstoreError: always; its cause is why a task of the agent failed again and again.
        """
        await self._failed.wait()
        raise AstoreError(f"the agent of host {self.store.host!r} has ended: {self._failure}") from self._failure

    async def aclose(self) -> None:
        """Hand back what others can take over, and leave. Pools stay active. May be called twice."""
        self._leaving = True
        await bounded(self._hand_over(), 7.0)
        await self._stack.aclose()

    async def _end_tasks(self) -> None:
        try:
            await self._worker.aclose()
        finally:
            await end(set(self._tasks))
            self._untold = True

    async def _keep_up(self, call: Callable[[], Awaitable[None]], name: str) -> None:
        try:
            await keep_up(call, name, self._log)
        except Exception as error:  # a host that has no lease is better than one that only looks healthy
            self._leaving, self._failure = True, error
            self._log.error("the agent ends: a task of it fails again and again", task=name, error=reason(error))
            try:
                await bounded(self._hand_over(), 7.0)
            finally:
                self._left, self._until = True, 0.0
                self._failed.set()

    def _spawn(self, call: Coroutine[None, None, None], name: str) -> None:
        task = asyncio.get_running_loop().create_task(call, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._log.error("a task of the agent failed", task=task.get_name(), error=reason(error))

    # ------------------------------------------------------------------------------------------------ the lease

    @property
    def valid(self) -> bool:
        """Whether this host's lease holds, by its own monotonic clock, which no other clock can put off."""
        return time.monotonic() < self._until

    def holds(self, pool: str) -> bool:
        """Return whether this host looks after a pool, and its lease holds."""
        return self.valid and pool in self._tokens

    def owns(self, pool: str) -> bool | None:
        """Return whether this host looks after a pool; None: it did, and its lease is over, or its run is outdated."""
        if self._handover.outdated(pool):
            return None
        return (self.valid or None) if pool in self._tokens else False

    def _withheld(self, pool: str) -> bool:
        return self._untold or self._handover.outdated(pool)

    def _ready(self, pool: str) -> bool:
        return self.holds(pool) and self._handover.ready(pool)

    async def _come(self) -> None:
        """Take the host's lease. :raises InvalidStateError: another agent of this host has it."""
        until = time.monotonic() + 1.5 * self._seconds + 1.0
        while True:
            try:
                return await self._take_lease()
            except OutdatedError:
                self._lease = None
                if time.monotonic() > until:
                    raise InvalidStateError(
                        f"host {self.store.host!r} has an agent already", operation="agent"
                    ) from None
            except StoreError:  # an engine that has much to do answers late
                if time.monotonic() > until:
                    raise
            await asyncio.sleep(0.2)

    async def _take_lease(self) -> None:
        began, data = time.monotonic(), msgspec.json.encode(self.info)
        engine, name = self.store.engine, f"{HOST}{self.store.host}"
        if self._lease is None:
            lease = await leases.acquire(engine, name, self.me.session, self._seconds, data)
        else:
            lease = await leases.renew(engine, self._lease, self._seconds, data)
        self._lease = lease
        if not self.valid:  # it is new, or was over: first see what this host has, and what others have taken
            assert isinstance(lease.token, int)
            await self.state.leases.sync(lease.token)
            await self.state.ownership.sync()
            self._lose_taken()
        if self._left:  # it was given back meanwhile
            self._lease = None
            await leases.release(engine, lease)
            return
        self._until = began + self._seconds

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(self._seconds / 3 if self.valid else 0.2)
            if self._left:
                return
            try:
                await self._take_lease()
            except OutdatedError:  # it was away for too long
                self._lease = None
                self._until = 0.0
            except Closed:  # it cannot be renewed any more
                raise
            except StoreError as error:
                self._log.debug("the lease was not renewed", error=reason(error))

    # ------------------------------------------------------------------------------------------------- the pools

    async def _place(self) -> None:
        """Take and hand back pools as hosts, owners and definitions change."""
        while True:
            await any_set((self.state.changed, self.state.ownership.changed, self.store.defined), self._seconds / 3)
            await asyncio.sleep(0.02)  # several changes at once
            try:
                await self._place_once()
            except StoreError as error:
                self._log.debug("pools were not placed", error=reason(error))

    async def _place_once(self) -> None:
        """Take over who owns what; then hand back and take."""
        self._lose_taken()
        if not self.valid or self._leaving:
            return
        for name, owned in self.state.owners.items():
            if owned.owner == self.me and name not in self._tokens:  # the answer to taking it was lost
                self._taken(name, owned.token)
        self._handover.go_on()
        definitions, engine = self.store.table.definitions, self.store.engine
        wrong = owning.lent_wrongly(self.me, self.state, definitions)
        wrong += [
            name
            for name in owning.to_even_out(self.me, self.state, definitions, MOST_MOVED)
            if name not in wrong and not self._worker.busy(name)
        ]
        tokens = {name: self.state.owners[name].token for name in wrong}  # the owners may be read anew meanwhile
        if wrong:
            await self._forwarder.settle()
        for name, token in tokens.items():
            seq = await owning.hand_back(engine, name, token)
            if seq is not None:
                self.state.note(name, None, seq)
                self._lose(name)
        for name in owning.free_for(self.me.host, self.state, definitions):
            if name in self._tokens or not self.valid:
                continue
            seen = self.state.owners.get(name)
            taken = await owning.take(engine, name, self.me, 0 if seen is None else seen.token)
            if taken is not None:
                self.state.note(name, self.me, taken)
                self._taken(name, taken)

    def _lose_taken(self) -> None:
        """Take note of the pools that are other hosts' by now, or nobody's."""
        for name, token in list(self._tokens.items()):
            seen = self.state.owners.get(name)
            if seen is not None and seen.owner != self.me and seen.token > token:
                self._lose(name)

    def _taken(self, name: str, token: int) -> None:
        self._tokens[name] = token
        self._handover.taken(name)

    def _lose(self, name: str) -> None:
        if self._tokens.pop(name, None) is not None:
            self._handover.lost(name)

    async def _hand_over(self) -> None:
        """End the jobs, hand back the pools, and give the lease back."""
        # first: no work goes on without a lease, and what came of it is told by a host that has one
        await self._worker.aclose()
        engine, tokens = self.store.engine, dict(self._tokens)
        if self.valid and self._lease is not None:
            await self._forwarder.settle()
            for name, token in tokens.items():
                others = [one for one in self.state.hosts.values() if one.host != self.me.host]
                held = self.store.table.definitions.get(name)
                if held is not None and owning.candidates(held, others):
                    self._tokens.pop(name, None)
                    await owning.hand_back(engine, name, token)
            lease, self._lease, self._left = self._lease, None, True
            await leases.release(engine, lease)
        self._until = 0.0
