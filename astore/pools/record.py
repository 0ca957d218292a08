"""What a pool shows: its reads, which never wait, and its states.

The rest of a pool is in :mod:`astore.pools.refresher` and :mod:`astore.pools.pool`.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

import anyio
import msgspec

from astore.backend import (
    Backend,
    PoolSession,
    abilities,
)
from astore.errors import (
    AstoreError,
    BackendError,
    DefinitionError,
    InvalidStateError,
    LaneTimeoutError,
    LibvirtCode,
    ManagerClosedError,
    PoolInaccessibleError,
    PoolNotFoundError,
    StorageError,
    StoreError,
    UnsupportedOperationError,
    VolumeNotFoundError,
    from_os_error,
    reason,
)
from astore.events import (
    Event,
    PoolStateChanged,
    VolumeAdded,
    VolumeChanged,
    VolumeRemoved,
)
from astore.model import (
    Changes,
    PoolDef,
    PoolInfo,
    PoolState,
    Snapshot,
    VolumeInfo,
)
from astore.pools.volume import Volume
from astore.store.local_runs import LastSeen

if TYPE_CHECKING:
    from astore.lanes.lane import PoolLane
    from astore.manager.catalogue import Catalogue
    from astore.pools.pool import Pool
    from astore.pools.refresher import Refreshing

_PASSED_ON = (
    InvalidStateError,
    BackendError,
    DefinitionError,
    UnsupportedOperationError,
    ManagerClosedError,
    StoreError,
)
"""Errors that are as good to a pool's user as they are to whoever raised them."""


class PoolView:
    """The part of :class:`~astore.pools.pool.Pool` that is not about doing."""

    def __init__(self, manager: Catalogue, definition: PoolDef, *, persistent: bool, autostart: bool = False) -> None:
        assert definition.uuid is not None
        self._manager = manager
        self._uuid = definition.uuid
        self._definition = definition  # the persistent one; of a transient pool, the one it runs by
        self._active_definition: PoolDef | None = None
        self._persistent = persistent
        self._autostart = autostart
        self._state = PoolState.INACTIVE
        self._since = 0.0  # not known of a pool that was found inactive
        self._started_at = 0.0  # by whichever process
        self._error: Exception | None = None
        self._snapshot = Snapshot.EMPTY
        self._saved: LastSeen | None = None
        self._generation = 0
        self._session: PoolSession | None = None
        self._backend: Backend | None = None
        self._lane: PoolLane | None = None
        self._lifecycle = anyio.Lock()
        self._attaching = anyio.Lock()
        self._stopping = False
        self._life = 0  # grows when it turns inactive: what was begun in an earlier life must not end in this one
        self._written: dict[str, str] = {}  # the volumes that are being written, and what is done to them
        self._relied_on: Counter[str] = Counter()  # the volumes on which others are being made
        self._refresh: Refreshing | None = None
        self._state_waiters: set[asyncio.Event] = set()
        self._source_keys: dict[int, tuple[PoolDef, Backend, object]] = {}  # by the id of the definition
        self._log = manager.log.bind(pool=definition.name)

    def __repr__(self) -> str:
        return f"<Pool {self.name!r} ({self.type}, {self.state})>"

    # ------------------------------------------------------------------------------------- reads: they never wait

    @property
    def name(self) -> str:
        """Its name."""
        return self._definition.name

    @property
    def uuid(self) -> str:
        """Its UUID, in lower case with hyphens."""
        return self._uuid

    @property
    def type(self) -> str:
        """Its type: ``dir``, ``fs``, ``logical`` …"""
        return self.definition.type

    @property
    def backend(self) -> Backend | None:
        """What drives it; None until this process has loaded the backend of its type."""
        return self._backend or self._manager.registry.loaded(self.type)

    @property
    def definition(self) -> PoolDef:
        """What it runs by, if it is active; else its definition."""
        return self._active_definition or self._definition

    @property
    def state(self) -> PoolState:
        """What it is doing."""
        return self._state

    @property
    def active(self) -> bool:
        """Whether it was started and not stopped since."""
        return self._state.active

    @property
    def persistent(self) -> bool:
        """Whether its definition stays when it is stopped."""
        return self._persistent

    @property
    def autostart(self) -> bool:
        """Whether ``start_all`` starts it."""
        return self._autostart

    @property
    def error(self) -> Exception | None:
        """Why it is inaccessible, or why its last start failed; None while all is well."""
        return self._error

    @property
    def snapshot(self) -> Snapshot:
        """What the last good refresh found."""
        return self._snapshot

    @property
    def volumes(self) -> tuple[VolumeInfo, ...]:
        """The volumes' records in name order, as the last good refresh found them."""
        return self._snapshot.volumes

    @property
    def info(self) -> PoolInfo:
        """The pool at a glance."""
        snapshot = self._snapshot
        wrong = [error for error in snapshot.errors if not error.skipped]
        why = reason(self._error) if self._error is not None else None
        if why is None and self._state is PoolState.DEGRADED and wrong:
            first = f"{wrong[0].name}: {wrong[0].message}"
            why = (
                f"cannot be read: {first}"
                if len(wrong) == 1
                else f"{len(wrong)} entries cannot be read; the first: {first}"
            )
        return PoolInfo(
            name=self.name,
            uuid=self.uuid,
            type=self.type,
            state=self._state,
            persistent=self._persistent,
            autostart=self._autostart,
            backend=self.type in self._manager.registry,
            capacity=snapshot.capacity,
            allocation=snapshot.allocation,
            available=snapshot.available,
            volumes=len(snapshot),
            errors=len(snapshot.errors),
            generation=snapshot.generation,
            taken_at=snapshot.taken_at,
            since=self._since,
            error=why,
        )

    def volume(self, name: str) -> Volume:
        """A volume by its name.

        :raises VolumeNotFoundError: the last snapshot has none of this name (an inactive pool's is empty).
        """
        if self._snapshot.get(name) is None:
            raise VolumeNotFoundError(
                f"pool {self.name!r} has no volume {name!r}",
                what=name,
                libvirt_code=None if self.active else LibvirtCode.OPERATION_INVALID,
            )
        return Volume(cast("Pool", self), name)

    def to_xml(self, inactive: bool = False) -> str:
        """libvirt's ``<pool>`` document.

        :param inactive: the definition that the next start takes, instead of the one the pool runs by.
        """
        if inactive:
            return self._definition.to_xml()
        definition, found = self.definition, self._snapshot.permissions
        if found is not None:  # the folder's are what an active pool has, whatever was asked for when it was made
            said = definition.target.permissions
            found = msgspec.structs.replace(found, label=None if said is None else said.label)
            target = msgspec.structs.replace(definition.target, permissions=found)
            definition = msgspec.structs.replace(definition, target=target)
        return definition.to_xml(self.info)

    def abilities(self) -> tuple[str, ...]:
        """The operations this pool supports beyond those that all do, as far as is known before it is started."""
        found: set[str] = set()
        if (backend := self.backend) is not None:
            found.update(abilities(backend))
        if self._session is not None:
            found.update(abilities(self._session))
        return tuple(sorted(found))

    async def wait_state(self, *states: PoolState | str, timeout: float | None = None) -> PoolState:
        """Wait until the pool is in one of these states; say which.

        :param timeout: seconds; TimeoutError when they pass.
        """
        wanted = {PoolState(state) for state in states}
        changed = asyncio.Event()
        self._state_waiters.add(changed)
        try:
            async with asyncio.timeout(timeout):
                while self._state not in wanted:
                    changed.clear()
                    await changed.wait()
        finally:
            self._state_waiters.discard(changed)
        return self._state

    # ---------------------------------------------------------------------------------------------- inner works

    def _translate(self, error: Exception, operation: str) -> Exception:
        """The error with the pool's name in it, of astore's own tree."""
        if isinstance(error, _PASSED_ON):
            return error
        what = f"pool {self.name!r}: {operation}"
        if isinstance(error, StorageError):
            if error.pool is not None:
                return error
            return PoolInaccessibleError(
                f"{what}: {reason(error)}", errno=error.errno, pool=self.name, libvirt_code=error.libvirt_code
            )
        if isinstance(error, TimeoutError):
            return LaneTimeoutError(f"{what}: {reason(error) if str(error) else 'not in time'}", lane=self.name)
        if isinstance(error, OSError):
            return from_os_error(error, what, pool=self.name, inaccessible=True)
        if isinstance(error, AstoreError):
            return PoolInaccessibleError(f"{what}: {reason(error)}", pool=self.name, libvirt_code=error.libvirt_code)
        return PoolInaccessibleError(
            f"{what}: the backend failed with {type(error).__name__}: {reason(error)}", pool=self.name
        )

    @property
    def _last_seen(self) -> LastSeen:
        """What the next process is to know of an active pool."""
        error = self._error if self._state is PoolState.INACCESSIBLE else None
        return LastSeen(self._snapshot, self._since, None if error is None else reason(error))

    def _require_known(self) -> None:
        if self._manager._pools.get(self.name) is not self:
            raise PoolNotFoundError(f"there is no pool {self.name!r} any more", what=self.name)

    def _require_active(self, operation: str) -> None:
        if not self._state.active:
            self._require_known()
            raise InvalidStateError(
                f"pool {self.name!r} is {self._state}: start it first",
                pool=self.name,
                state=self._state,
                operation=operation,
            )

    def _stopped_meanwhile(self, operation: str) -> InvalidStateError:
        return InvalidStateError(
            f"pool {self.name!r} was stopped meanwhile", pool=self.name, state=self._state, operation=operation
        )

    def _set_state(self, new: PoolState, error: Exception | None) -> None:
        old = self._state
        self._error = error
        if old is new:
            return
        self._state = new
        self._since = time.time()
        why = reason(error) if error is not None else None
        self._publish(PoolStateChanged, old=old, new=new, reason=why)
        if new is PoolState.INACCESSIBLE:
            self._log.warning("pool inaccessible", reason=why)
        for waiter in self._state_waiters:
            waiter.set()

    def _publish(self, kind: Callable[..., Event], **fields: Any) -> None:
        self._manager._bus.publish(cast("type[Event]", kind), pool=self.name, uuid=self.uuid, **fields)

    def _publish_changes(self, snapshot: Snapshot, changes: Changes) -> None:
        added, changed, removed = changes.added, changes.changed, changes.removed
        pool, uuid = self.name, self.uuid
        # the records alone: the bus keeps what is published, and is not to keep a whole snapshot for one change of it
        records = tuple(info for name in (*added, *changed) if (info := snapshot.get(name)) is not None)

        def build(index: int) -> Event:
            if index < len(added):
                return VolumeAdded(pool=pool, uuid=uuid, name=records[index].name, volume=records[index])
            if index < len(records):
                return VolumeChanged(pool=pool, uuid=uuid, name=records[index].name, volume=records[index])
            return VolumeRemoved(pool=pool, uuid=uuid, name=removed[index - len(records)])

        self._manager._bus.publish_batch(len(added) + len(changed) + len(removed), build, pool=pool)
