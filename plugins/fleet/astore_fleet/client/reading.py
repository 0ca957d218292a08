"""Reading a fleet without asking any host: pools, volumes and searches from the last snapshots, with their age."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from astore.errors import VolumeNotFoundError
from astore.model import PoolDef, PoolState, Snapshot, VolumeInfo
from astore_fleet.ending import together
from astore_fleet.placement.fleet_state import FleetState, Kept
from astore_fleet.records import FleetPoolInfo, FleetVolume
from astore_fleet.store.nats_store import NatsStore
from astore_fleet.store.pool_table import Held

AT_ONCE = 8
"""How many snapshots are fetched at once."""

TRIES = 5
"""How often a snapshot is fetched again because it was replaced meanwhile."""

Wanted = Callable[[VolumeInfo], bool]


class Reader:
    """Reads pools and volumes. Snapshots that were fetched are kept, and fetched again only if there are newer ones."""

    def __init__(self, store: NatsStore, state: FleetState) -> None:
        self._store = store
        self._state = state
        self._fetched: dict[str, tuple[int, Snapshot]] = {}

    def pool(self, name: str, held: Held) -> FleetPoolInfo | None:
        """Return a pool as it was last seen; None: its definition cannot be read."""
        definition = held.definition()
        if not isinstance(definition, PoolDef):
            return None
        kept, owner = self._state.heads.get(name), self._state.owner(name)
        reachable = self._state.present(owner)
        runs, state = self._store.table.runs.get(name, {}), "inactive"
        if owner is not None and not reachable:
            state = "unreachable"
        elif kept is not None and kept.host in runs:
            state = _state_of(kept)
        elif owner is not None and owner.host in runs:  # it was started a moment ago
            state = str(PoolState.RUNNING)
        head = None if kept is None else kept.head
        return FleetPoolInfo(
            name=name,
            uuid=definition.uuid or "",
            type=definition.type,
            owner=None if owner is None else owner.host,
            reachable=reachable,
            state=state,
            autostart=held.autostart,
            definition=definition,
            volumes=0 if head is None else head.volumes,
            capacity=0 if head is None else head.capacity,
            allocation=0 if head is None else head.allocation,
            available=0 if head is None else head.available,
            age=None if kept is None else self._state.age(kept),
            error=None if head is None else head.error,
            errors=0 if head is None else head.errors,
            taken_at=0.0 if head is None else head.taken_at,
            since=0.0 if head is None else head.since,
        )

    def pools(self) -> list[FleetPoolInfo]:
        """Return all pools in name order."""
        found = (self.pool(name, held) for name, held in sorted(self._store.table.definitions.items()))
        return [one for one in found if one is not None]

    async def snapshot(self, pool: str) -> tuple[Kept, Snapshot] | None:
        """Return the last snapshot of a pool, and its head; None: there is none."""
        engine, shelf = self._store.engine, self._store.snapshots
        for _ in range(TRIES):
            kept = self._state.heads.get(pool)
            if kept is None:
                return None
            fetched = self._fetched.get(pool)
            if fetched is not None and fetched[0] >= kept.seq:
                return kept, fetched[1]
            subject = engine.names.snapshot(pool, kept.host)
            message = await engine.fetch(engine.names.state, subject)
            if message is None or message.seq < kept.seq:
                message = await engine.last(engine.names.state, subject)
            seen = None if message is None or message.deleted else await shelf.read(message)
            if message is not None and seen is not None:
                self._fetched[pool] = message.seq, seen.snapshot
                return kept, seen.snapshot
        return None

    async def each(self, pools: Iterable[str] | None = None) -> dict[str, tuple[Kept, Snapshot]]:
        """Return the last snapshots of these pools, or of all, that have one."""
        names = iter(sorted(self._state.heads.keys() if pools is None else self._state.heads.keys() & set(pools)))
        found: dict[str, tuple[Kept, Snapshot]] = {}

        async def fetch() -> None:
            for name in names:
                one = await self.snapshot(name)
                if one is not None:
                    found[name] = one

        await together(fetch() for _ in range(AT_ONCE))
        for gone in self._fetched.keys() - self._state.heads.keys():
            del self._fetched[gone]
        return dict(sorted(found.items()))

    async def volumes(self, wanted: Wanted | None, pools: Iterable[str] | None = None) -> list[FleetVolume]:
        """Return the volumes of these pools, or of all, in the order of pools and names."""
        return [
            FleetVolume(pool, kept.host, info, self._state.age(kept))
            for pool, (kept, snapshot) in (await self.each(pools)).items()
            for info in snapshot.volumes
            if wanted is None or wanted(info)
        ]

    async def find(self, field: str, value: str) -> FleetVolume:
        """Return the volume whose ``key``, ``path`` or ``name`` this is. :raises VolumeNotFoundError: no pool has one."""
        for pool, (kept, snapshot) in (await self.each()).items():
            for info in _likely(snapshot, field, value):
                if getattr(info, field) == value:
                    return FleetVolume(pool, kept.host, info, self._state.age(kept))
        raise VolumeNotFoundError(f"no pool of the fleet has a volume with the {field} {value!r}", what=value)


def _likely(snapshot: Snapshot, field: str, value: str) -> Iterator[VolumeInfo]:
    """Yield the volumes that may have a value; first the one whose name it ends in."""
    found = snapshot.get(value if field == "name" else value.rstrip("/").rpartition("/")[2])
    if found is not None:
        yield found
    if field != "name":
        yield from snapshot.volumes


def _state_of(kept: Kept) -> str:
    if kept.head.error is not None:
        return str(PoolState.INACCESSIBLE)
    return str(PoolState.DEGRADED if kept.head.errors else PoolState.RUNNING)
