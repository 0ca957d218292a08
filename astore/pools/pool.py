"""Pool: the public handle of a storage pool."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

from astore.backend import CreatesVolumes, Progress, abilities
from astore.errors import reason
from astore.model import PoolDef, PoolInfo, PoolState, RefreshOutcome, Snapshot, VolumeDef, VolumeInfo
from astore.pools import copies
from astore.pools.backing import accepted, backing_volume, relying_on, with_backing
from astore.pools.glance import definition_as_found, pool_info
from astore.pools.job_support import making, require_usable, take_new_volume, worked
from astore.pools.parts import Member, Parts
from astore.pools.volume import Volume


class Pool:
    """A storage pool. A :class:`~astore.Manager` creates the handles.

    :ivar parts: internal; may change at any time.
    """

    def __init__(self, parts: Parts, handle: Callable[[Parts], Pool]) -> None:
        self.parts = parts
        self._handle = handle

    def __repr__(self) -> str:
        return f"<Pool {self.name!r} ({self.type}, {self.state})>"

    # ------------------------------------------------------------------------------------- reads, which never wait

    @property
    def name(self) -> str:
        """Its name."""
        return self.parts.name

    @property
    def uuid(self) -> str:
        """Its UUID, in lower case with hyphens."""
        return self.parts.record.uuid

    @property
    def type(self) -> str:
        """Its type: ``dir``, ``fs``, ``logical`` …"""
        return self.definition.type

    @property
    def definition(self) -> PoolDef:
        """The definition that it runs by; of an inactive pool, the one for its next start."""
        return self.parts.definition

    @property
    def state(self) -> PoolState:
        """Its state."""
        return self.parts.record.state

    @property
    def active(self) -> bool:
        """Whether it was started and not stopped since."""
        return self.parts.active

    @property
    def persistent(self) -> bool:
        """Whether its definition stays when it is stopped."""
        return self.parts.record.persistent

    @property
    def autostart(self) -> bool:
        """Whether ``start_all`` starts it."""
        return self.parts.record.autostart

    @property
    def error(self) -> Exception | None:
        """Why it is inaccessible, or why its last start failed; None while all is well."""
        return self.parts.record.error

    @property
    def snapshot(self) -> Snapshot:
        """The result of the last good refresh."""
        return self.parts.snapshot

    @property
    def volumes(self) -> tuple[VolumeInfo, ...]:
        """The volumes' records in name order, as the last good refresh found them."""
        return self.parts.snapshot.volumes

    @property
    def info(self) -> PoolInfo:
        """The summary of the pool."""
        record = self.parts.record
        return pool_info(
            record.running,
            uuid=record.uuid,
            state=record.state,
            persistent=record.persistent,
            autostart=record.autostart,
            backend=self.type in self.parts.services.registry,
            snapshot=record.snapshot,
            since=record.since,
            error=None if record.error is None else reason(record.error),
            freshness=record.freshness,
        )

    def volume(self, name: str) -> Volume:
        """Return the volume of this name.

        :raises VolumeNotFoundError: the last snapshot has none of this name (an inactive pool's is empty).
        """
        self.parts.volume(name)
        return Volume(self, name)

    async def find(self, name: str, *, timeout: float | None = None) -> Volume:
        """Return the volume of this name. If the snapshot lacks it, look for it alone, without a refresh of the pool.

        :param timeout: seconds. :raises VolumeNotFoundError: there is none. What :meth:`refresh` raises.
        """
        if self.parts.snapshot.get(name) is None:
            await self.parts.refresher.refresh_volume(name, timeout)
        return self.volume(name)

    def to_xml(self, inactive: bool = False) -> str:
        """Return libvirt's ``<pool>`` document.

        :param inactive: of the definition for the next start, instead of the one that the pool runs by.
        """
        record = self.parts.record
        if inactive:
            return record.definition.to_xml()
        return definition_as_found(record.running, record.snapshot).to_xml(self.info)

    def abilities(self) -> tuple[str, ...]:
        """Return the operations that this pool supports beyond those that all do, as far as they are known.

        Those of a session are known once it is open.
        """
        life = self.parts.record.life
        backend = self.parts.backend
        session = life.session if life is not None else None
        return tuple(sorted({one for part in (backend, session) if part is not None for one in abilities(part)}))

    async def wait_state(self, *states: PoolState | str, timeout: float | None = None) -> PoolState:
        """Wait until the pool is in one of these states; return its state.

        :param timeout: seconds. :raises TimeoutError: they passed.
        """
        self.parts.services.check_loop()
        return await self.parts.record.wait_state({PoolState(state) for state in states}, timeout)

    # -------------------------------------------------------------------------------------------------- its life

    async def start(self, build: bool = False, *, refresh: bool = True, timeout: float | None = None) -> None:
        """Start the pool: connect or mount, and refresh.

        :param build: build its storage first. :param refresh: False skips the refresh.
        :param timeout: seconds for connecting or mounting, and again for the refresh.
        :raises InvalidStateError: it is active. BackendError: its backend is missing or unusable.
            OSError: the source does not answer. TimeoutError: not in time.
        """
        await self.parts.lifecycle.start(build=build, refresh=refresh, timeout=timeout)

    async def stop(self, force: bool = False) -> None:
        """Stop the pool (virsh: pool-destroy): unmount, disconnect. A transient pool is gone then.

        :param force: stop the pool even if its storage hangs; hung calls on a FUSE mount are made to return.
        :raises InvalidStateError: it is not active. VolumeBusyError: volumes of it are being written (with ``force``, their
            writers fail instead). OSError, CommandError, TimeoutError: it could not be stopped, and stays active (never
            with ``force``).
        """
        await self.parts.lifecycle.stop(force)

    async def build(self) -> None:
        """Build the pool's storage: a target directory, with the permissions of its definition or 0711.

        :raises InvalidStateError: it is active. UnsupportedOperationError: its backend cannot. OSError: it failed.
        """
        await self.parts.lifecycle.build()

    async def delete(self) -> None:
        """Delete the pool's storage (an empty target directory); the definition stays.

        :raises InvalidStateError: it is active. UnsupportedOperationError: its backend cannot. OSError: it failed.
        """
        await self.parts.lifecycle.delete()

    async def undefine(self) -> None:
        """Remove the pool's definition. :raises InvalidStateError: it is active, or transient."""
        await self.parts.lifecycle.undefine()

    async def set_autostart(self, autostart: bool) -> None:
        """Set or clear the autostart mark. :raises InvalidStateError: it is transient."""
        await self.parts.lifecycle.set_autostart(autostart)

    async def refresh(
        self, name: str | None = None, full: bool = False, timeout: float | None = None
    ) -> RefreshOutcome:
        """Refresh the snapshot. Concurrent callers share one refresh and its outcome.

        :param name: refresh this volume only. :param full: read every header anew.
        :param timeout: seconds. If they pass, the refresh goes on for as long again, for the next caller.
        :raises InvalidStateError: the pool is not active. OSError: the source cannot be read; the pool is inaccessible,
            its last good snapshot stays. TimeoutError: not in time.
        """
        if name is not None:
            return await self.parts.refresher.refresh_volume(name, timeout)
        return await self.parts.refresher.refresh(full, timeout)

    # ------------------------------------------------------------------------------------------------ new volumes

    async def create_volume(self, definition: VolumeDef | str | bytes, *, prealloc_metadata: bool = False) -> Volume:
        """Create a volume, complete or not at all.

        :param definition: a record, or libvirt volume XML. The default capacity is that of the backing file.
        :param prealloc_metadata: qcow2: write all metadata now.
        :raises DefinitionError: it is not acceptable. VolumeExistsError: the name is taken. CommandError: qemu-img is
            missing, or failed. StorageError: ENOSPC, EDQUOT …
        """
        pool = self.parts
        life = require_usable(pool, "create a volume")
        wanted = accepted(definition)
        base = await backing_volume(pool, wanted.backing)
        wanted = with_backing(pool, wanted, base)
        with relying_on(base), pool.claims.claim(wanted.name, "created"):
            session = await life.able("create-volume")
            call = cast(CreatesVolumes, session).create_volume(wanted, prealloc_metadata=prealloc_metadata)
            async with making(pool, life, session, wanted.name):
                info = take_new_volume(pool, life, session, await worked(pool, call))
        return Volume(self, info.name)

    async def copy_volume(
        self, source: Volume, definition: VolumeDef | str | bytes, *, on_progress: Progress | None = None
    ) -> Volume:
        """Copy a volume, of this pool or of any other, into a new volume, complete or not at all.

        Within a pool the storage copies. From pool to pool the data are streamed, and holes kept. For another format, or
        another backing file, qemu-img converts. A copy is thin if its backing file is the source or the source's own backing
        file; with any other it holds all data.

        :param definition: format and capacity default to the source's. In a record (not in a document), mode, owner and group
            do as well; owner and group only if the storage permits.
        :param on_progress: called with bytes done and in all.
        :raises: what :meth:`create_volume` raises. VolumeNotFoundError: the source is gone. StorageError: EPERM: the copy
            needs a conversion, and the source a file that is no volume of an active pool.
        """
        member = Member(source.pool.parts, source.name)
        info = await copies.copy_volume(self.parts, member, definition, on_progress)
        return Volume(self, info.name)

    def handle_of(self, member: Member) -> Volume:
        """Return the handle of a volume of any pool of the same Manager."""
        return Volume(self._handle(member.pool), member.name)
