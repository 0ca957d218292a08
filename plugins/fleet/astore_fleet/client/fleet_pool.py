"""FleetPool: the handle of a pool that lives on another host."""

from __future__ import annotations

from astore.backend import Progress
from astore.errors import PoolNotFoundError
from astore.model import RefreshOutcome, Snapshot, VolumeDef, VolumeInfo
from astore_fleet.client.reading import Reader
from astore_fleet.jobs.job_client import JobClient
from astore_fleet.jobs.job_records import JobRecord
from astore_fleet.records import FleetPoolInfo, Placement
from astore_fleet.store.nats_store import NatsStore


class FleetPool:
    """A pool of a fleet. Its work is done on the host that looks after it, and raises here what it raises there.

    All work raises PoolInaccessibleError if that host is not there, JobUnknownError if it went away meanwhile (never for a
    refresh, which is done again), TimeoutError, and StoreError if the engine does not answer. A cancelled caller cancels its
    work.
    """

    def __init__(self, name: str, store: NatsStore, reader: Reader, jobs: JobClient) -> None:
        self.name = name
        self._store = store
        self._reader = reader
        self._jobs = jobs

    def __repr__(self) -> str:
        return f"<FleetPool {self.name!r}>"

    # ------------------------------------------------------------------------------------- reads that ask no host

    @property
    def info(self) -> FleetPoolInfo:
        """The pool as it was last seen. :raises PoolNotFoundError: it is gone, or its definition cannot be read."""
        held = self._store.table.definitions.get(self.name)
        found = None if held is None else self._reader.pool(self.name, held)
        if found is None:
            raise PoolNotFoundError(f"there is no pool {self.name!r} any more", what=self.name)
        return found

    @property
    def placement(self) -> Placement:
        """Where it may run."""
        held = self._store.table.definitions.get(self.name)
        return Placement() if held is None else held.placement

    async def snapshot(self) -> Snapshot:
        """Return its last snapshot; an empty one if there is none."""
        found = await self._reader.snapshot(self.name)
        return Snapshot.EMPTY if found is None else found[1]

    async def volumes(self) -> tuple[VolumeInfo, ...]:
        """Return the records of its last snapshot, in name order."""
        return (await self.snapshot()).volumes

    # ------------------------------------------------------------------------------------------------------ work

    async def place(self, *, hosts: tuple[str, ...] = (), labels: dict[str, str] | None = None) -> None:
        """Say where it may run: on one of these hosts, on hosts with all of these labels."""
        await self._store.place(self.name, Placement(hosts, labels or {}))

    async def refresh(self, *, full: bool = False, timeout: float | None = None) -> RefreshOutcome:
        """Refresh it. Requests for a pool that wait or run share one refresh.

        :param full: read every header anew. :param timeout: seconds.
        """
        kind = "refresh-full" if full else "refresh"
        record = await self._jobs.run(self.name, kind, timeout=timeout)
        return record.outcome if record.outcome is not None else RefreshOutcome(pool=self.name)

    async def start(self, *, build: bool = False, timeout: float | None = None) -> None:
        """Start it; see :meth:`astore.Pool.start`."""
        await self._jobs.run(self.name, "start", {"build": build}, timeout=timeout)

    async def stop(self, *, force: bool = False, timeout: float | None = None) -> None:
        """Stop it; see :meth:`astore.Pool.stop`."""
        await self._jobs.run(self.name, "stop", {"force": force}, timeout=timeout)

    async def create_volume(
        self, definition: VolumeDef | str, *, prealloc_metadata: bool = False, timeout: float | None = None
    ) -> VolumeInfo:
        """Create a volume; see :meth:`astore.Pool.create_volume`."""
        arguments = {"xml": _xml(definition), "prealloc_metadata": prealloc_metadata}
        return _volume(await self._jobs.run(self.name, "create", arguments, timeout=timeout))

    async def copy_volume(
        self,
        source: str,
        definition: VolumeDef | str,
        *,
        source_pool: str | None = None,
        timeout: float | None = None,
        on_progress: Progress | None = None,
    ) -> VolumeInfo:
        """Copy, or convert, a volume into a new one of this pool; see :meth:`astore.Pool.copy_volume`.

        :param source: the volume's name. :param source_pool: None: this pool. Else one that is active on the same host.
        """
        arguments = {"source": source, "source_pool": source_pool or self.name, "xml": _xml(definition)}
        record = await self._jobs.run(self.name, "copy", arguments, timeout=timeout, on_progress=on_progress)
        return _volume(record)

    async def resize_volume(
        self,
        volume: str,
        capacity: int,
        *,
        delta: bool = False,
        shrink: bool = False,
        allocate: bool = False,
        force: bool = False,
        timeout: float | None = None,
    ) -> VolumeInfo:
        """Set a volume's capacity, in bytes; see :meth:`astore.Volume.resize`."""
        flags = {"delta": delta, "shrink": shrink, "allocate": allocate, "force": force}
        arguments = {"volume": volume, "capacity": capacity, **flags}
        return _volume(await self._jobs.run(self.name, "resize", arguments, timeout=timeout))

    async def wipe_volume(
        self,
        volume: str,
        algorithm: str = "zero",
        *,
        force: bool = False,
        timeout: float | None = None,
        on_progress: Progress | None = None,
    ) -> None:
        """Overwrite a volume; see :meth:`astore.Volume.wipe`."""
        arguments = {"volume": volume, "algorithm": algorithm, "force": force}
        await self._jobs.run(self.name, "wipe", arguments, timeout=timeout, on_progress=on_progress)

    async def delete_volume(self, volume: str, *, force: bool = False, timeout: float | None = None) -> None:
        """Remove a volume; see :meth:`astore.Volume.delete`."""
        await self._jobs.run(self.name, "delete", {"volume": volume, "force": force}, timeout=timeout)


def _xml(definition: VolumeDef | str) -> str:
    return definition if isinstance(definition, str) else definition.to_xml()


def _volume(record: JobRecord) -> VolumeInfo:
    assert record.volume is not None
    return record.volume
