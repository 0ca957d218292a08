"""NatsStore: the definitions, runs and snapshots of a fleet in NATS JetStream.

::

    KV_astore-FLEET-pools    NAME.def            libvirt's document; headers: version, autostart mark
                             NAME.run.HOST       the pool is active on that host, since its boot
    KV_astore-FLEET-state    NAME.snap.HOST      the last snapshot that the host took of it
                             NAME.own            who looks after it: see placement/owning.py

Definitions are all hosts'. A run is one host's: a pool may be active on several. Each client follows the whole stream of
definitions and runs. Before it answers it asks the leader how far that is, so that it never answers from an old state. A
change is written on the condition that nothing of its pool (a definition: nothing at all) has changed since.
"""

from __future__ import annotations

import asyncio
import errno
import secrets
import socket
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from typing import Self, TypeVar

from astore.backend import Lane
from astore.cancellation import bounded, retrieved, shielded
from astore.errors import InvalidStateError, PoolNotFoundError, SourceConflictError
from astore.model import PoolDef
from astore.store.contract import (
    Contents,
    Current,
    LastSeen,
    Lease,
    OutdatedError,
    Revision,
    Run,
    Store,
    Version,
)
from astore.store.run_files import boot_id
from astore_fleet.access import Access
from astore_fleet.engine import Engine, Message
from astore_fleet.leases import acquire, release, renew
from astore_fleet.mirror import MARK_SECONDS, Mirror
from astore_fleet.records import Placement
from astore_fleet.store.definition_headers import AUTOSTART, BY, PLACE, SAME, VERSION, New, as_json, kept_headers
from astore_fleet.store.pool_table import Held, PoolTable, encoded
from astore_fleet.store.snapshots import SnapshotShelf

T = TypeVar("T")

RETRY_SECONDS = 10.0
"""How long a change is tried again because something else of the stream has changed."""

FEW = 32
"""So many new definitions are parsed in the event loop's thread, more in another."""


class NatsStore(Store):
    """A store that the hosts of a fleet share. It watches, keeps snapshots and grants leases.

    :param host: the name of this host: runs are kept by it. None: the machine's.
    :param replicas, access: see :class:`Engine`.
    :ivar shows: says of a definition whether it is shown to the Manager. None: all are.
    :ivar new: what definitions begin with that are put by this client. None: no placement and no mark.
    :ivar defined: set when a definition has changed; clear it.
    """

    def __init__(
        self,
        url: str | Sequence[str],
        fleet: str,
        *,
        host: str | None = None,
        replicas: int | None = None,
        access: Access | None = None,
    ) -> None:
        self.engine: Engine = Engine(url, fleet, replicas=replicas, access=access)
        self.host: str = host or socket.gethostname()
        self.name: str = self.engine.name
        self.snapshots: SnapshotShelf = SnapshotShelf(self.engine, self.host)
        self.table: PoolTable = PoolTable(self.host, self.engine.session)
        self.shows: Callable[[Held], bool] | None = None
        self.new: New | None = None
        self.defined: asyncio.Event = asyncio.Event()
        self._mirror: Mirror | None = None
        self._lane: Lane | None = None

    @classmethod
    async def connect(
        cls,
        url: str | Sequence[str],
        fleet: str,
        *,
        host: str | None = None,
        replicas: int | None = None,
        access: Access | None = None,
    ) -> Self:
        """Connect to a fleet; create it if it is new. A Manager that is given the store closes it.

        :param url: ``nats://HOST:4222``; several are separated by commas. :param fleet: letters, digits, ``-`` and ``_``.
        :raises StoreError: no server answers, none lets this client in, or it is older than 2.11.
            DefinitionError: the fleet's name has other characters.
        """
        store = cls(url, fleet, host=host, replicas=replicas, access=access)
        try:
            await store.begin()
        except BaseException:
            await store.aclose()
            raise
        return store

    async def begin(self) -> None:
        """Connect, and follow the stream of definitions, unless that was done."""
        if self._mirror is not None:
            return
        engine, names = self.engine, self.engine.names
        await asyncio.to_thread(boot_id)  # it is read once
        await engine.connect()
        await engine.make_bucket(names.pools)
        await engine.make_bucket(names.state)
        await engine.make_bucket(names.leases, subject_delete_marker_ttl=60_000_000_000)
        self.table = PoolTable(self.host, engine.session)
        mirror = Mirror(engine, names.pools, self._take, self.table.reset, barrier=names.barrier)
        await mirror.open()
        self._mirror = mirror

    def _take(self, message: Message) -> None:
        before = self.table.relevant
        self.table.take(message)
        if self.table.relevant != before:
            self.defined.set()

    async def open(self, lane: Lane) -> None:
        self._lane = lane
        try:
            await self.begin()
        except BaseException:
            await self.aclose()
            raise

    async def aclose(self) -> None:
        mirror, self._mirror = self._mirror, None
        if mirror is not None:
            await mirror.aclose()
        await self.engine.aclose()

    # ----------------------------------------------------------------------------------------------------- reads

    def mirror(self) -> Mirror:
        """Return the mirror of definitions and runs. :raises InvalidStateError: the store is not open."""
        if self._mirror is None:
            raise InvalidStateError(f"the {self.name} was not opened", operation="read")
        return self._mirror

    async def read(self, since: Revision | None = None) -> Contents | None:
        await self.mirror().sync()
        table = self.table
        if since is not None and since == self._revision():
            return None
        new = [held for held in table.definitions.values() if not held.parsed]
        if self._lane is not None and len(new) > FEW:
            await self._lane.run(lambda: [held.definition() for held in new])
        revision = self._revision()
        pools, damaged = table.pools(self._visible)
        runs = {name: run for name in table.runs if (run := table.run(name)) is not None}
        return Contents(revision, pools, damaged, runs)

    def _visible(self, held: Held) -> bool:
        """Return whether a definition is shown to the Manager. One that cannot be read always is."""
        return self.shows is None or not isinstance(held.definition(), PoolDef) or self.shows(held)

    def _revision(self) -> Revision:
        return Revision((self.table.relevant, self.table.defined))

    def advanced(self, since: Revision) -> Revision:
        """See :meth:`Store.advanced`. Changes that this client made, with nobody else's between them, are known."""
        if not isinstance(since, tuple) or self.table.advanced(since[0]) != self.table.relevant:
            return since
        return self._revision()

    async def current(self, name: str) -> Current:
        await self.mirror().sync()
        held, run = self.table.definitions.get(name), self.table.run(name)
        return Current(None if held is None else held.version, None if run is None else run.started_at)

    async def changes(self) -> AsyncGenerator[None]:
        """See :class:`astore.store.contract.WatchesStore`. Yields for each change of a definition, or of a run of this host."""
        mirror, seen = self.mirror(), self.table.relevant
        while True:
            await mirror.changed.wait()
            mirror.changed.clear()
            if self.table.relevant != seen:
                seen = self.table.relevant
                yield

    # --------------------------------------------------------------------------------------------------- changes

    async def put(self, definition: PoolDef, expected: Revision) -> Version:
        name, version, table = definition.name, secrets.token_hex(8), self.table
        text = definition.to_xml().encode()

        async def attempt(last: int) -> int:
            run, held = table.run(name), table.definitions.get(name)
            same = isinstance(expected, tuple) and expected[1] == table.defined
            if not same or (run is not None and run.uuid != definition.uuid):
                raise self._outdated("definitions were changed meanwhile")
            if held is not None and not self._visible(held):
                message = f"pool {name!r} exists already on other hosts"
                raise SourceConflictError(message, other=name, field="name")
            headers = {VERSION: version, **self._kept(held)}
            subject = self.engine.names.definition(name)
            return await self._write(name, subject, last, text, headers, at=self.mirror().seq)

        await self._change(name, attempt)
        return Version(version)

    async def remove(self, name: str, expected: Version) -> None:
        async def attempt(last: int) -> int:
            held = self.table.definitions.get(name)
            if held is None or held.version != expected or self.table.run(name) is not None:
                raise self._outdated(f"pool {name!r} was changed meanwhile")
            return await self._delete(name, self.engine.names.definition(name), last)

        await self._change(name, attempt)

    async def set_autostart(self, name: str, on: bool) -> None:
        async def attempt(last: int) -> int:
            held = self.table.definitions.get(name)
            if held is None:
                if on:
                    raise self.engine.error(f"pool {name!r} is not defined", errno.ENOENT)
            elif held.autostart != on:
                headers = {**self._kept(held), VERSION: str(held.version), AUTOSTART: str(int(on)), SAME: "1"}
                return await self._write(name, self.engine.names.definition(name), last, held.data, headers)
            return 0

        await self._change(name, attempt)

    async def place(self, name: str, placement: Placement) -> None:
        """Say where a pool may run. :raises PoolNotFoundError: it is not defined. StoreError: that failed."""

        async def attempt(last: int) -> int:
            held = self.table.definitions.get(name)
            if held is None:
                raise PoolNotFoundError(f"there is no pool {name!r}", what=name)
            if held.placement != placement:
                headers = {**self._kept(held), VERSION: str(held.version), PLACE: as_json(placement), SAME: "1"}
                return await self._write(name, self.engine.names.definition(name), last, held.data, headers)
            return 0

        await self._change(name, attempt)

    async def begin_run(self, run: Run, *, persistent: bool, ours: bool = True) -> None:
        """See :meth:`Store.begin_run`. :param ours: False: the Manager of this store learns of it by its next reload."""
        name = run.name

        async def attempt(last: int) -> int:
            theirs, held = self.table.run(name), self.table.definitions.get(name)
            if theirs is not None and theirs.started_at != run.started_at:
                raise self._outdated(f"pool {name!r} was started meanwhile")
            other = held is not None and isinstance(stored := held.definition(), PoolDef) and stored.uuid != run.uuid
            if other or (persistent and held is None):
                raise self._outdated(f"pool {name!r} was undefined meanwhile")
            if theirs != run:
                subject, by = self.engine.names.run(name, self.host), {} if ours else {BY: ""}
                return await self._write(name, subject, last, encoded(run), by)
            return 0

        await self._change(name, attempt)

    async def end_run(self, name: str, started_at: float) -> None:
        ended = False

        async def attempt(last: int) -> int:
            nonlocal ended
            run = self.table.runs.get(name, {}).get(self.host)
            if run is not None and run.started_at == started_at:
                ended = True
                return await self._delete(name, self.engine.names.run(name, self.host), last)
            return 0

        await self._change(name, attempt)
        if ended:
            await self.snapshots.remove(name)

    async def check_end_run(self, name: str) -> None:
        """See :meth:`Store.check_end_run`. It fails while no server answers."""
        await self.mirror().sync()

    def _kept(self, held: Held | None) -> dict[str, str]:
        """Return the headers that stay when a definition is written again; those of a new one."""
        if held is None:
            return kept_headers(self.host, self.new or New())
        return kept_headers(held.defined_by, New(held.placement, held.autostart))

    async def forget_run(self, name: str, host: str) -> None:
        """Remove a pool's run on another host, which is gone, and its snapshot."""

        async def attempt(last: int) -> int:
            if host in self.table.runs.get(name, {}):
                return await self._delete(name, self.engine.names.run(name, host), last)
            return 0

        await self._change(name, attempt)
        await self.snapshots.remove(name, host)

    def _outdated(self, what: str) -> OutdatedError:
        return OutdatedError(f"{self.name}: {what}", errno=errno.EAGAIN)

    async def _write(
        self, name: str, subject: str, last: int, data: bytes, headers: dict[str, str], *, at: int | None = None
    ) -> int:
        names = self.engine.names
        headers.setdefault(BY, self.engine.session)
        try:
            return await self.engine.publish(
                names.pools, subject, data, headers, after=last, among=names.of_pool(name), at=at
            )
        except OutdatedError as error:
            raise _TryAgain from error

    async def _delete(self, name: str, subject: str, last: int) -> int:
        names = self.engine.names
        headers = {"KV-Operation": "DEL", BY: self.engine.session}
        try:
            return await self.engine.publish(
                names.pools, subject, b"", headers, after=last, among=names.of_pool(name), ttl=MARK_SECONDS
            )
        except OutdatedError as error:
            raise _TryAgain from error

    async def _change(self, name: str, attempt: Callable[[int], Awaitable[int]]) -> None:
        """Make a change of a pool, and take it over. If the caller is cancelled, wait until it is settled (bounded).

        :param attempt: called with the last sequence of the pool, when all changes so far are known. It checks its conditions,
            and writes once, on the condition that nothing has changed since. It returns the sequence, or 0: nothing is to do.
        """
        given_up = asyncio.Event()
        task = asyncio.get_running_loop().create_task(self._attempts(name, attempt, given_up))
        task.add_done_callback(retrieved)
        try:
            await asyncio.shield(task)
        except BaseException:
            given_up.set()
            if not task.done():
                await shielded(bounded(asyncio.wait([task])), whole=True)
            raise

    async def _attempts(self, name: str, attempt: Callable[[int], Awaitable[int]], given_up: asyncio.Event) -> None:
        mirror, until, last = self.mirror(), time.monotonic() + RETRY_SECONDS, None
        while True:
            await mirror.sync()
            if given_up.is_set():
                return
            try:
                written = await attempt(self.table.last.get(name, 0) if last is None else last)
            except _TryAgain as error:
                if time.monotonic() > until:
                    raise self._outdated(f"pool {name!r} was changed meanwhile") from error.__cause__
                # the mark of something deleted may be gone: then the last sequence is not the one that was seen
                found = await self.engine.last(mirror.stream, self.engine.names.of_pool(name))
                last = 0 if found is None else found.seq
                continue
            await mirror.sync(written)
            return

    # --------------------------------------------------------------------------------------- snapshots and leases

    async def save_snapshot(self, name: str, started_at: float, seen: LastSeen) -> None:
        """See :class:`astore.store.contract.KeepsSnapshots`. A pool that this host owns is written by its token."""
        if name not in self.snapshots.tokens:  # else the owner has begun the run itself
            await self.mirror().sync()
        run = self.table.run(name)
        if run is None:
            return
        same_run = run.started_at == started_at
        if same_run or (run.definition == seen.definition and seen.recent):
            await self.snapshots.save(name, run.started_at, seen, same_run=same_run, lane=self._lane)

    async def load_snapshots(self, runs: Mapping[str, float]) -> dict[str, LastSeen]:
        """See :class:`astore.store.contract.KeepsSnapshots`."""
        hosts = {name: {self.host, *self.table.runs.get(name, ())} for name in runs}
        return await self.snapshots.load(runs, hosts, lane=self._lane)

    async def acquire_lease(self, name: str, holder: str, seconds: float) -> Lease:
        """See :class:`astore.store.contract.Leases`."""
        return await acquire(self.engine, name, holder, seconds)

    async def renew_lease(self, lease: Lease, seconds: float) -> Lease:
        """See :class:`astore.store.contract.Leases`."""
        return await renew(self.engine, lease, seconds)

    async def release_lease(self, lease: Lease) -> None:
        """See :class:`astore.store.contract.Leases`."""
        await release(self.engine, lease)


class _TryAgain(Exception):
    """Something of the pool, or of the stream, has changed since it was looked at."""
