"""The page for authors of stores, which keep definitions, autostart marks, runs and last snapshots.

A :class:`Store` is shared. Other Managers change it at the same time: in this process, in others, on other hosts. A Manager
reads everything, decides, and makes its change on the condition that what it read has not changed since. The suite
:class:`astore.testing.stores.StoreConformance` checks these promises:

* A change is made whole or not at all, even if the process is killed. It is durable when the call returns.
* A change is refused with :class:`OutdatedError` if another Manager was faster. The Manager then reads again and decides anew.
* A change whose caller is cancelled is settled when the call raises: it was made, or never will be. :meth:`Store.read`
  tells which. (A store gives a hung storage ``CLEANUP_SECONDS`` for that. Later changes are found like other processes'.)
* A definition that cannot be read is reported and left unchanged. It hides none of the others.
* A failure of the storage is a :class:`~astore.errors.StoreError`; errors of the lane are passed on. A call that waits for
  others has a deadline of its own.

Revisions and versions are opaque: a Manager compares them for equality and passes them back to the store that made them.

Optional abilities are Protocols: :class:`KeepsSnapshots`, :class:`WatchesStore`, :class:`Leases`.
"""

from __future__ import annotations

import abc
import time
from collections.abc import AsyncGenerator, Mapping
from typing import TYPE_CHECKING, NewType, Protocol, runtime_checkable

import msgspec

from astore.errors import StoreError
from astore.model import PoolDef, Snapshot, VolumeInfo

if TYPE_CHECKING:
    from astore.backend import Lane

Revision = NewType("Revision", object)
"""The state of a whole store at one moment. Opaque."""

Version = NewType("Version", object)
"""The state of one definition at one moment. Opaque; it changes whenever the definition is put, or removed and put again."""


class OutdatedError(StoreError):
    """The store was changed since it was read: read it again, and decide anew."""


class StoredPool(msgspec.Struct, frozen=True):
    """A definition with its autostart mark and its version."""

    definition: PoolDef
    autostart: bool
    version: Version


class Damaged(msgspec.Struct, frozen=True):
    """A definition that cannot be read.

    :ivar name: the pool's name. :ivar path: where the definition is kept, for messages. :ivar error: what is wrong with it.
    """

    name: str
    path: str
    error: str
    version: Version


class Run(msgspec.Struct, frozen=True):
    """An active pool: the definition it runs by, its uuid, and when it was started, in seconds since the epoch.

    The pool's name and ``started_at`` identify the run: the Manager that starts a pool chooses the time once and keeps it.
    """

    definition: PoolDef
    uuid: str
    started_at: float

    @property
    def name(self) -> str:
        """The pool's name."""
        return self.definition.name


class Contents(msgspec.Struct, frozen=True):
    """Everything that a store holds.

    :ivar pools: the definitions in name order. :ivar damaged: the definitions that cannot be read.
    :ivar runs: the active pools by name. A machine that was rebooted has none.
    :ivar unknown: pools that may or may not be active: their runs cannot be read now.
    :ivar lost: the store itself is gone, for example a state folder that was removed (or not made yet). Missing runs then
        mean nothing: active pools go on.
    """

    revision: Revision
    pools: tuple[StoredPool, ...] = ()
    damaged: tuple[Damaged, ...] = ()
    runs: dict[str, Run] = {}
    unknown: frozenset[str] = frozenset()
    lost: bool = False


class Current(msgspec.Struct, frozen=True):
    """One pool as the store has it now.

    :ivar version: the version of its definition, damaged or not; None: it has none.
    :ivar started_at: the time of its run; None: it is not active. :ivar lost: as in :class:`Contents`.
    """

    version: Version | None
    started_at: float | None
    lost: bool = False


class LastSeen(msgspec.Struct, frozen=True):
    """The state of an active pool when its last process left it.

    :ivar snapshot: the last good one. :ivar since: when the pool entered its state, in seconds since the epoch.
    :ivar error: why the pool was inaccessible; None if it was not.
    :ivar definition: the definition that the pool ran by; None: unknown.
    :ivar recent: the changes of single volumes since the snapshot was taken, by name: when each was seen, in seconds since the
        epoch, and the record; None: the volume is gone. The snapshot has them.
    """

    snapshot: Snapshot
    since: float
    error: str | None
    definition: PoolDef | None = None
    recent: dict[str, tuple[float, VolumeInfo | None]] = {}


CLOCKS_APART = 60.0
"""By how many seconds the clocks of processes that share a store may differ."""


def merged(kept: LastSeen | None, seen: LastSeen, *, same_run: bool) -> LastSeen:
    """Return what a store keeps of a pool after several processes have worked on it: nobody's changes are lost.

    :param kept: what the store has of the run of now. :param seen: what a process saves.
    :param same_run: whether that process has worked in the run of now; else only its recent changes count.
    """
    base = seen if same_run else LastSeen(Snapshot.EMPTY, seen.since, None, seen.definition)
    latest = time.time() + CLOCKS_APART  # what is later is from before the clock was set back
    if kept is not None and (not same_run or seen.snapshot.taken_at < kept.snapshot.taken_at <= latest):
        base = kept
    recent = dict(seen.recent)
    for name, change in ({} if kept is None else kept.recent).items():
        if name not in recent or recent[name][0] < change[0]:
            recent[name] = change
    recent = {name: change for name, change in recent.items() if base.snapshot.taken_at <= change[0] <= latest}
    new = {name: info for name, (_, info) in recent.items() if base.snapshot.get(name) != info}
    snapshot = base.snapshot.patched(new, base.snapshot.generation) if new else base.snapshot
    return msgspec.structs.replace(base, snapshot=snapshot, recent=recent)


class Store(abc.ABC):
    """Keeps definitions, autostart marks and runs. The top of this page lists the promises of every call."""

    name: str
    """For messages."""

    @abc.abstractmethod
    async def open(self, lane: Lane) -> None:
        """Open the store. Called before all other methods, and again after :meth:`aclose` if the store is used again.

        :param lane: threads for blocking calls, usable until the store is opened anew, even after ``aclose``.
        :raises StoreError: the store cannot be used.
        """

    @abc.abstractmethod
    async def aclose(self) -> None:
        """Release what :meth:`open` took. May be called twice. A start that is being undone may still call :meth:`end_run`."""

    @abc.abstractmethod
    async def read(self, since: Revision | None = None) -> Contents | None:
        """Read everything. The next read finds changes that are made meanwhile.

        :param since: the revision that was read last. If nothing has changed since, this returns None, and is cheap. None
            reads everything anew, including changes made by hand.
        :raises StoreError: the store cannot be read, or cannot be trusted.
        """

    def advanced(self, since: Revision) -> Revision:
        """Return the revision that ``since`` has become by changes of this client alone. Never waits.

        A Manager, which has taken over its own changes itself, then reads the store only if others changed it. The default
        returns ``since``: then the Manager reads everything after each of its own changes.
        """
        return since

    @abc.abstractmethod
    async def current(self, name: str) -> Current:
        """Read the state of one pool. Called before every start and stop, so it must be cheap.

        :raises StoreError: it cannot be read now.
        """

    @abc.abstractmethod
    async def put(self, definition: PoolDef, expected: Revision) -> Version:
        """Write a definition; replace the one of its name. The autostart mark stays.

        :param definition: has a ``uuid``. :param expected: the revision that the definition was checked against.
        :return: its new version.
        :raises OutdatedError: a definition was put or removed since, or another pool (another uuid) of this name is active.
            StoreError: it could not be written; the old one stays.
        """

    @abc.abstractmethod
    async def remove(self, name: str, expected: Version) -> None:
        """Remove a definition and its autostart mark.

        :param expected: the version to remove.
        :raises OutdatedError: the definition has another version, is gone, or its pool is active.
            StoreError: it could not be removed.
        """

    @abc.abstractmethod
    async def set_autostart(self, name: str, on: bool) -> None:
        """Set or clear the autostart mark of a definition.

        :raises StoreError: that failed. ENOENT: the mark cannot be set, because there is no such definition.
        """

    @abc.abstractmethod
    async def begin_run(self, run: Run, *, persistent: bool) -> None:
        """Record that a pool is active. Recording the same run again changes nothing.

        :param persistent: the pool must have a definition.
        :raises OutdatedError: the pool has another run, or its definition is gone or has another uuid.
            StoreError: the run could not be recorded.
        """

    @abc.abstractmethod
    async def end_run(self, name: str, started_at: float) -> None:
        """Remove a pool's run and its snapshot. Another run of the pool stays.

        :raises StoreError: the run could not be removed.
        """

    @abc.abstractmethod
    async def check_end_run(self, name: str) -> None:
        """Raise what :meth:`end_run` would raise. Called before the pool's storage is released."""


@runtime_checkable
class KeepsSnapshots(Protocol):
    """Keeps the last snapshots of active pools for the next Manager. This is a cache: losing one does no harm."""

    async def save_snapshot(self, name: str, started_at: float, seen: LastSeen) -> None:
        """Keep a pool's snapshot, :func:`merged` with the one that is kept.

        If the pool has another run by now, of the same definition, only the recent changes are kept.

        :raises StoreError: it could not be kept.
        """
        ...

    async def load_snapshots(self, runs: Mapping[str, float]) -> dict[str, LastSeen]:
        """Return the usable snapshots of these pools, by name.

        :param runs: by pool name, the ``started_at`` of the run that the snapshot must belong to.
        """
        ...


@runtime_checkable
class WatchesStore(Protocol):
    """Announces changes that any Manager makes."""

    def changes(self) -> AsyncGenerator[None]:
        """Yield whenever something has changed; ``read(since=…)`` tells what. Several changes may yield once.

        Watching begins with the first ``anext``. Close it with ``aclose``.
        """
        ...


class Lease(msgspec.Struct, frozen=True):
    """A name that one holder owns for a limited time.

    :ivar token: changes with every renewal; older ones are refused (a fencing token).
    """

    name: str
    holder: str
    token: Revision


@runtime_checkable
class Leases(Protocol):
    """Grants leases."""

    async def acquire_lease(self, name: str, holder: str, seconds: float) -> Lease:
        """Take a lease on a name. :raises OutdatedError: another holder has it."""
        ...

    async def renew_lease(self, lease: Lease, seconds: float) -> Lease:
        """Extend a lease to ``seconds`` from now. :raises OutdatedError: it was lost."""
        ...

    async def release_lease(self, lease: Lease) -> None:
        """Give a lease back. Do nothing if it was lost."""
        ...
