"""The pools of a state folder, read once without an event loop or a Manager, for commands that change nothing."""

from __future__ import annotations

import threading
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import msgspec

from astore.entry_points import ENTRY_POINT_GROUP, installed_types
from astore.errors import DefinitionError, PoolNotFoundError
from astore.model import PoolDef, PoolInfo, PoolState, Snapshot
from astore.names import check_uuid
from astore.pools.glance import definition_as_found, pool_info, state_when_last_seen
from astore.store.contract import Damaged, LastSeen, Run, StoredPool
from astore.store.definition_files import DefinitionFiles
from astore.store.local_files import LockedFolder, default_state_dir
from astore.store.run_files import RunFiles, SnapshotFiles

READ_SECONDS = 60.0
"""Seconds that reading the state folder may take: a Manager's limit for one call to it."""


class StandingPool(NamedTuple):
    """A pool as the state folder has it.

    :ivar definition: what it runs by. :ivar stored: what its next start takes. :ivar snapshot: its last known volumes.
    """

    info: PoolInfo
    definition: PoolDef
    stored: PoolDef
    snapshot: Snapshot

    def to_xml(self, inactive: bool) -> str:
        """Return libvirt's ``<pool>`` document, as :meth:`astore.Pool.to_xml` does."""
        if inactive:
            return self.stored.to_xml()
        return definition_as_found(self.definition, self.snapshot).to_xml(self.info)


class Standing(NamedTuple):
    """The content of a state folder.

    :ivar all: the pools in name order. :ivar damaged: the definition files that cannot be read.
    :ivar unknown: by pool name, why it cannot be told now whether a pool is active.
    """

    all: tuple[StandingPool, ...]
    damaged: tuple[Damaged, ...]
    unknown: dict[str, str]

    def pools(
        self,
        *,
        active: bool | None = None,
        persistent: bool | None = None,
        autostart: bool | None = None,
        types: Collection[str] | None = None,
    ) -> list[StandingPool]:
        """Return the pools that match libvirt's filters, in name order. None does not filter."""
        return [
            pool
            for pool in self.all
            if (active is None or pool.info.active == active)
            and (persistent is None or pool.info.persistent == persistent)
            and (autostart is None or pool.info.autostart == autostart)
            and (types is None or pool.info.type in types)
        ]

    def pool(self, name: str) -> StandingPool:
        """Return a pool by its name or UUID. :raises PoolNotFoundError: there is none."""
        uuid = None
        with suppress(DefinitionError):
            uuid = check_uuid(name)
        by_name = [pool for pool in self.all if pool.info.name == name]
        by_uuid = [pool for pool in self.all if pool.info.uuid == uuid]
        for pool in by_name or by_uuid:
            return pool
        from astore.cli.similar import closest, suggest

        error = PoolNotFoundError(f"there is no pool {name!r}", what=name)
        suggest(error, closest(name, (pool.info.name for pool in self.all)))
        raise error


def standing(state_dir: str | None, timeout: float | None = None) -> Standing:
    """Read a state folder on a thread, so that an interruption does not wait for a hung file system.

    :param state_dir: None is the default: root's /var/lib/astore, or the user's own.
    :param timeout: in seconds; None is READ_SECONDS.
    :raises StoreError: the folder cannot be read, or other users may have written to it.
    :raises TimeoutError: the folder was not read in time.
    """
    found: list[Standing | Exception] = []

    def read() -> None:
        try:
            found.append(_read(LockedFolder(default_state_dir() if state_dir is None else Path(state_dir))))
        except Exception as error:
            found.append(error)

    thread = threading.Thread(target=read, name="astore-state-folder", daemon=True)
    thread.start()
    limit = READ_SECONDS if timeout is None else timeout
    thread.join(limit)
    if not found:
        raise TimeoutError(f"the state folder was not read within {limit:g} s")
    if isinstance(found[0], Exception):
        raise found[0]
    return found[0]


def _read(folder: LockedFolder) -> Standing:
    folder.check()
    definitions, (runs, unknown) = DefinitionFiles(folder).read(), RunFiles(folder).read()
    snapshots = SnapshotFiles(folder)
    types = installed_types(ENTRY_POINT_GROUP)
    stored = {item.definition.name: item for item in definitions.good}
    pools = []
    for name in sorted(stored.keys() | runs.keys()):
        run = runs.get(name)
        seen = None if run is None else snapshots.read(name, run.started_at)
        pools.append(_pool(stored.get(name), run, seen, types))
    return Standing(tuple(pools), definitions.damaged, unknown)


def _pool(stored: StoredPool | None, run: Run | None, seen: LastSeen | None, types: Collection[str]) -> StandingPool:
    """Make the record of a pool. A stored definition with another UUID belongs to another pool of that name."""
    if run is None:
        assert stored is not None
        definition, state, since = stored.definition, PoolState.INACTIVE, 0.0
    else:
        definition, state = msgspec.structs.replace(run.definition, uuid=run.uuid), state_when_last_seen(seen)
        since = run.started_at if seen is None else seen.since
        if stored is not None and stored.definition.uuid != run.uuid:
            stored = None
    assert definition.uuid is not None
    snapshot = Snapshot.EMPTY if seen is None else seen.snapshot
    info = pool_info(
        definition,
        uuid=definition.uuid,
        state=state,
        persistent=stored is not None,
        autostart=stored is not None and stored.autostart,
        backend=definition.type in types,
        snapshot=snapshot,
        since=since,
        error=None if seen is None else seen.error,
    )
    return StandingPool(info, definition, definition if stored is None else stored.definition, snapshot)
