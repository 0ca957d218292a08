"""A store in memory, for tests. Managers of one event loop may share it."""

from __future__ import annotations

import errno
from collections.abc import Mapping

import anyio.lowlevel
import msgspec

from astore.backend import Lane
from astore.errors import StoreError
from astore.model import PoolDef
from astore.store.contract import (
    Contents,
    Current,
    KeepsSnapshots,
    LastSeen,
    OutdatedError,
    Revision,
    Run,
    Store,
    StoredPool,
    Version,
    merged,
)


class MemoryStore(Store, KeepsSnapshots):
    """Keeps definitions, runs and snapshots in dicts.

    Every call begins with a checkpoint, then does its work without another await.
    """

    name = "store in memory"

    def __init__(self) -> None:
        self._pools: dict[str, StoredPool] = {}
        self._runs: dict[str, Run] = {}
        self._snapshots: dict[str, tuple[float, LastSeen]] = {}
        self._changes = 0
        self._definition_changes = 0

    async def open(self, lane: Lane) -> None:
        """Do nothing: no call blocks, so the lane is not used."""

    async def aclose(self) -> None:
        """Do nothing: the contents stay."""

    async def read(self, since: Revision | None = None) -> Contents | None:
        await anyio.lowlevel.checkpoint()
        revision = Revision((self._changes, self._definition_changes))
        if since == revision:
            return None
        return Contents(revision, tuple(stored for _, stored in sorted(self._pools.items())), runs=dict(self._runs))

    async def current(self, name: str) -> Current:
        await anyio.lowlevel.checkpoint()
        stored, run = self._pools.get(name), self._runs.get(name)
        return Current(None if stored is None else stored.version, None if run is None else run.started_at)

    async def put(self, definition: PoolDef, expected: Revision) -> Version:
        await anyio.lowlevel.checkpoint()
        name = definition.name
        run, stored = self._runs.get(name), self._pools.get(name)
        same = isinstance(expected, tuple) and expected[1:] == (self._definition_changes,)
        if not same or (run is not None and run.uuid != definition.uuid):
            raise OutdatedError("definitions were changed meanwhile", errno=errno.EAGAIN)
        version = Version(self._changed(definitions=True))
        self._pools[name] = StoredPool(definition, stored is not None and stored.autostart, version)
        return version

    async def remove(self, name: str, expected: Version) -> None:
        await anyio.lowlevel.checkpoint()
        stored = self._pools.get(name)
        if stored is None or stored.version != expected or name in self._runs:
            raise OutdatedError(f"pool {name!r} was changed meanwhile", errno=errno.EAGAIN)
        del self._pools[name]
        self._changed(definitions=True)

    async def set_autostart(self, name: str, on: bool) -> None:
        await anyio.lowlevel.checkpoint()
        stored = self._pools.get(name)
        if stored is not None:
            self._pools[name] = msgspec.structs.replace(stored, autostart=on)
            self._changed()
        elif on:
            raise StoreError(f"pool {name!r} is not defined", errno=errno.ENOENT)

    async def begin_run(self, run: Run, *, persistent: bool) -> None:
        await anyio.lowlevel.checkpoint()
        theirs, stored = self._runs.get(run.name), self._pools.get(run.name)
        if theirs is not None and theirs.started_at != run.started_at:
            raise OutdatedError(f"pool {run.name!r} was started meanwhile", errno=errno.EAGAIN)
        if (persistent and stored is None) or (stored is not None and stored.definition.uuid != run.uuid):
            raise OutdatedError(f"pool {run.name!r} was undefined meanwhile", errno=errno.EAGAIN)
        self._runs[run.name] = run
        self._changed()

    async def end_run(self, name: str, started_at: float) -> None:
        await anyio.lowlevel.checkpoint()
        run = self._runs.get(name)
        if run is not None and run.started_at == started_at:
            del self._runs[name]
            self._snapshots.pop(name, None)
            self._changed()

    async def check_end_run(self, name: str) -> None:
        """Do nothing: ending a run cannot fail."""
        await anyio.lowlevel.checkpoint()

    async def save_snapshot(self, name: str, started_at: float, seen: LastSeen) -> None:
        await anyio.lowlevel.checkpoint()
        run = self._runs.get(name)
        if run is None:
            return
        same_run = run.started_at == started_at
        if same_run or (run.definition == seen.definition and seen.recent):
            kept = self._snapshots.get(name)
            now = merged(None if kept is None else kept[1], seen, same_run=same_run)
            self._snapshots[name] = run.started_at, now

    async def load_snapshots(self, runs: Mapping[str, float]) -> dict[str, LastSeen]:
        await anyio.lowlevel.checkpoint()
        return {name: seen for name, (started_at, seen) in self._snapshots.items() if runs.get(name) == started_at}

    def _changed(self, *, definitions: bool = False) -> int:
        self._changes += 1
        self._definition_changes += definitions
        return self._changes
