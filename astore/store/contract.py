"""The page for authors of stores: where definitions, autostart marks, runs and last snapshots are kept.

A :class:`Store` is shared. Other Managers change it at the same time: in this process, in others, on other hosts. A Manager
reads all of it, decides, and makes its change on the condition that what it decided by has not changed since. The suite
:class:`astore.testing.stores.StoreConformance` checks all that is promised here:

* A change is made whole or not at all, whoever is killed. When the call returns, it is kept.
* A change is refused with :class:`OutdatedError` if somebody else was faster. The Manager then reads again and decides anew.
* A change whose caller is cancelled is decided when the call raises: it was made, or it will never be. :meth:`Store.read`
  tells which. (A store gives a hung storage ``CLEANUP_SECONDS`` for that. Later changes are found like other processes'.)
* A definition that cannot be read is reported and left as it is. It hides none of the others.
* Every failure is a :class:`~astore.errors.StoreError`, and a call that waits for others has a deadline of its own.

Revisions and versions mean something to the store that made them. A Manager compares them for equality and passes them back.

What a store can do beyond that is a Protocol of its own: :class:`KeepsSnapshots`, :class:`WatchesStore`, :class:`Leases`.
"""

from __future__ import annotations

import abc
from collections.abc import AsyncIterator, Mapping
from typing import TYPE_CHECKING, NewType, Protocol, runtime_checkable

import msgspec

from astore.errors import StoreError
from astore.model import PoolDef, Snapshot

if TYPE_CHECKING:
    from astore.backend import Lane

Revision = NewType("Revision", object)
"""All that a store held at one moment. Opaque."""

Version = NewType("Version", object)
"""One definition as it was at one moment. Opaque; it changes whenever the definition is put, or removed and put again."""


class OutdatedError(StoreError):
    """Somebody else changed the store since it was read: read it again, and decide anew."""


class StoredPool(msgspec.Struct, frozen=True):
    """A definition, whether ``start_all`` starts its pool, and its version."""

    definition: PoolDef
    autostart: bool
    version: Version


class Damaged(msgspec.Struct, frozen=True):
    """A definition that cannot be read.

    :ivar name: the pool it is kept for. :ivar path: where it is kept, for messages. :ivar error: what is wrong with it.
    """

    name: str
    path: str
    error: str
    version: Version


class Run(msgspec.Struct, frozen=True):
    """An active pool: the definition it runs by, its uuid, and when it was started, in seconds since the epoch.

    The pool's name and ``started_at`` name the run: whoever starts a pool chooses the time once and keeps it.
    """

    definition: PoolDef
    uuid: str
    started_at: float

    @property
    def name(self) -> str:
        """The pool's name."""
        return self.definition.name


class Contents(msgspec.Struct, frozen=True):
    """All that a store holds.

    :ivar pools: the definitions in name order. :ivar damaged: those that cannot be read.
    :ivar runs: the active pools by name. A machine that was started anew has none.
    :ivar unknown: pools of which cannot be told now whether they are active.
    :ivar lost: the store itself is gone, such as a state folder that was removed (or not made yet). What it lacks then says
        nothing: active pools go on.
    """

    revision: Revision
    pools: tuple[StoredPool, ...] = ()
    damaged: tuple[Damaged, ...] = ()
    runs: dict[str, Run] = {}
    unknown: frozenset[str] = frozenset()
    lost: bool = False


class Current(msgspec.Struct, frozen=True):
    """One pool as the store has it now.

    :ivar version: of its definition, damaged or not; None: there is none.
    :ivar started_at: of its run; None: it is not active. :ivar lost: as in :class:`Contents`.
    """

    version: Version | None
    started_at: float | None
    lost: bool = False


class LastSeen(msgspec.Struct, frozen=True):
    """What a process knew of an active pool when it left: the snapshot, and why the pool was inaccessible, if it was.

    ``since`` tells when the pool entered its state, in seconds since the epoch.
    """

    snapshot: Snapshot
    since: float
    error: str | None


class Store(abc.ABC):
    """Keeps definitions, autostart marks and runs. See the top of this page for what every call promises."""

    name: str
    """For messages."""

    @abc.abstractmethod
    async def open(self, lane: Lane) -> None:
        """Get ready. Called before everything else, and again after :meth:`aclose` if the store is used again.

        :param lane: threads for blocking calls. It can be used until the store is opened anew, also after ``aclose``.
        :raises StoreError: the store cannot be used.
        """

    @abc.abstractmethod
    async def aclose(self) -> None:
        """Let go of what :meth:`open` took. May be called twice. Starts that are being undone may end their runs after it."""

    @abc.abstractmethod
    async def read(self, since: Revision | None = None) -> Contents | None:
        """Read everything. What is changed meanwhile is found by the next read.

        :param since: the revision that was read last. If nothing has changed since, this returns None, and is cheap. None
            reads everything anew, also what somebody changed by hand.
        :raises StoreError: it cannot be read, or should not be believed.
        """

    @abc.abstractmethod
    async def current(self, name: str) -> Current:
        """Look at one pool. Called before every start and stop, so it must be cheap.

        :raises StoreError: that cannot be told now.
        """

    @abc.abstractmethod
    async def put(self, definition: PoolDef, expected: Revision) -> Version:
        """Write a definition, in place of the one of its name, if there is one. It keeps its autostart mark.

        :param definition: its ``uuid`` is given. :param expected: the contents that it was checked against.
        :return: its version from now on.
        :raises OutdatedError: a definition was put or removed since, or another pool (another uuid) of this name is active.
            StoreError: it could not be written; the old one stays.
        """

    @abc.abstractmethod
    async def remove(self, name: str, expected: Version) -> None:
        """Remove a definition and its autostart mark.

        :param expected: the version that is meant.
        :raises OutdatedError: there is another one, or none any more, or the pool is active.
            StoreError: it could not be removed.
        """

    @abc.abstractmethod
    async def set_autostart(self, name: str, on: bool) -> None:
        """Set or clear the autostart mark of a definition.

        :raises StoreError: that failed; ENOENT: there is no such definition (only where it is to be set).
        """

    @abc.abstractmethod
    async def begin_run(self, run: Run, *, persistent: bool) -> None:
        """Note that a pool is active. Doing it again for the same run changes nothing.

        :param persistent: there must be a definition of the pool.
        :raises OutdatedError: the pool is active by another run, or its definition is gone, or it is another pool's by now.
            StoreError: it could not be noted.
        """

    @abc.abstractmethod
    async def end_run(self, name: str, started_at: float) -> None:
        """Note that a pool is not active any more, and forget its snapshot. Another run of the pool goes on.

        :raises StoreError: it could not be noted.
        """

    @abc.abstractmethod
    async def check_end_run(self, name: str) -> None:
        """Raise what :meth:`end_run` would raise. Called before the pool's storage is let go."""


@runtime_checkable
class KeepsSnapshots(Protocol):
    """Keeps what is known of active pools for the next Manager: a cache, so what is lost does no harm."""

    async def save_snapshot(self, name: str, started_at: float, seen: LastSeen) -> None:
        """Keep what is known of a pool, if the run of this time is still its run.

        :raises StoreError: it could not be kept.
        """
        ...

    async def load_snapshots(self, runs: Mapping[str, float]) -> dict[str, LastSeen]:
        """What was kept of these pools, by name. Pools of which nothing usable was kept are left out.

        :param runs: by pool name, ``started_at`` of the run that the snapshot must be of.
        """
        ...


@runtime_checkable
class WatchesStore(Protocol):
    """Tells of changes, whoever makes them."""

    def changes(self) -> AsyncIterator[None]:
        """Yields whenever something has changed; ``read(since=…)`` tells what. Several changes may be told of once.

        It begins at once with the first ``anext``, and is to be closed with ``aclose``.
        """
        ...


class Lease(msgspec.Struct, frozen=True):
    """What one holder has for some time, and nobody else.

    :ivar token: changes with every renewal; whoever has an older one is refused (a fencing token).
    """

    name: str
    holder: str
    token: Revision


@runtime_checkable
class Leases(Protocol):
    """Gives things to one holder at a time, for a time."""

    async def acquire_lease(self, name: str, holder: str, seconds: float) -> Lease:
        """Take what nobody has. :raises OutdatedError: somebody has it."""
        ...

    async def renew_lease(self, lease: Lease, seconds: float) -> Lease:
        """Keep it ``seconds`` from now on. :raises OutdatedError: it was lost."""
        ...

    async def release_lease(self, lease: Lease) -> None:
        """Give it back. A lease that was lost is left alone."""
        ...
