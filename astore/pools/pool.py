"""Pool: the handle of a storage pool that programs hold."""

from __future__ import annotations

from collections.abc import Callable

from astore.backend import Progress, abilities
from astore.model import PoolDef, PoolInfo, PoolState, RefreshOutcome, Snapshot, VolumeDef, VolumeInfo
from astore.pools import copies, volume_jobs
from astore.pools.parts import Member, Parts
from astore.pools.volume import Volume


class Pool:
    """A storage pool. Got from a :class:`~astore.Manager`; never made by hand.

    :ivar parts: what it is made of, for astore itself: nothing of it is promised to stay.
    """

    def __init__(self, parts: Parts, handle: Callable[[Parts], Pool]) -> None:
        self.parts = parts
        self._handle = handle

    def __repr__(self) -> str:
        return f"<Pool {self.name!r} ({self.type}, {self.state})>"

    # ------------------------------------------------------------------------------------- reads: they never wait

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
        """Its type: ``dir``, ``netfs``, ``gluster`` …"""
        return self.definition.type

    @property
    def definition(self) -> PoolDef:
        """What it runs by, if it is active; else its definition."""
        return self.parts.definition

    @property
    def state(self) -> PoolState:
        """What it is doing."""
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
        """What the last good refresh found."""
        return self.parts.snapshot

    @property
    def volumes(self) -> tuple[VolumeInfo, ...]:
        """The volumes' records in name order, as the last good refresh found them."""
        return self.parts.volumes

    @property
    def info(self) -> PoolInfo:
        """The pool at a glance."""
        return self.parts.record.info(backend=self.type in self.parts.services.registry)

    def volume(self, name: str) -> Volume:
        """A volume by its name.

        :raises VolumeNotFoundError: the last snapshot has none of this name (an inactive pool's is empty).
        """
        self.parts.volume(name)
        return Volume(self, name)

    def to_xml(self, inactive: bool = False) -> str:
        """libvirt's ``<pool>`` document.

        :param inactive: the definition that the next start takes, instead of the one the pool runs by.
        """
        return self.parts.record.to_xml(self.info, inactive=inactive)

    def abilities(self) -> tuple[str, ...]:
        """The operations this pool supports beyond those that all do, as far as is known before it is started."""
        life = self.parts.record.life
        backend = life.backend if life is not None else None
        backend = backend or self.parts.services.registry.loaded(self.type)
        session = life.session if life is not None else None
        return tuple(sorted({one for part in (backend, session) if part is not None for one in abilities(part)}))

    async def wait_state(self, *states: PoolState | str, timeout: float | None = None) -> PoolState:
        """Wait until the pool is in one of these states; say which.

        :param timeout: seconds; TimeoutError when they pass.
        """
        return await self.parts.record.wait_state({PoolState(state) for state in states}, timeout)

    # -------------------------------------------------------------------------------------------------- its life

    async def start(self, build: bool = False, *, refresh: bool = True, timeout: float | None = None) -> None:
        """Start the pool: connect or mount, and look at its volumes once.

        :param build: make its storage first. :param refresh: False leaves the first look to the first refresh.
        :param timeout: seconds for the connecting and mounting, and again for the refresh.
        :raises InvalidStateError: it is active. BackendError: its backend is missing or unusable.
            OSError: the source does not answer. TimeoutError: not in time.
        """
        await self.parts.lifecycle.start(build=build, refresh=refresh, timeout=timeout)

    async def stop(self, force: bool = False) -> None:
        """Stop the pool (virsh: pool-destroy): unmount, disconnect. A transient pool is gone then.

        :param force: give the pool up even where its storage hangs; calls that hang on a FUSE mount are cut loose.
        :raises InvalidStateError: it is not active. VolumeBusyError: volumes of it are being written (never with
            ``force``: that work fails then). OSError, CommandError, TimeoutError: it could not be stopped (it
            stays active; never with ``force``).
        """
        await self.parts.lifecycle.stop(force)

    async def build(self) -> None:
        """Make the pool's storage: a target directory, with the permissions of its definition or 0711.

        :raises InvalidStateError: it is active. UnsupportedOperationError: its backend cannot. OSError: it failed.
        """
        await self.parts.lifecycle.build()

    async def delete(self) -> None:
        """Destroy the pool's storage (an empty target directory); the definition stays.

        :raises InvalidStateError: it is active. UnsupportedOperationError: its backend cannot. OSError: it failed.
        """
        await self.parts.lifecycle.delete()

    async def undefine(self) -> None:
        """Remove the pool's definition. :raises InvalidStateError: it is active, or transient."""
        await self.parts.lifecycle.undefine()

    async def set_autostart(self, autostart: bool) -> None:
        """Say whether ``start_all`` starts it. :raises InvalidStateError: it is transient."""
        await self.parts.lifecycle.set_autostart(autostart)

    async def refresh(
        self, name: str | None = None, full: bool = False, timeout: float | None = None
    ) -> RefreshOutcome:
        """Look at the source again. Callers while a refresh runs share it, and its outcome.

        :param name: look at this volume only. :param full: trust nothing known; read every header anew.
        :param timeout: seconds; when they pass and nobody else waits, the pool is inaccessible.
        :raises InvalidStateError: the pool is not active. OSError: the source cannot be read; the pool is inaccessible,
            its last good snapshot stays. TimeoutError: not in time.
        """
        if name is not None:
            return await self.parts.refresher.refresh_volume(name, timeout)
        return await self.parts.refresher.refresh(full, timeout)

    # ------------------------------------------------------------------------------------------------ new volumes

    async def create_volume(self, definition: VolumeDef | str | bytes, *, prealloc_metadata: bool = False) -> Volume:
        """Make a volume: complete, or not at all.

        :param definition: a record, or libvirt volume XML. Without a capacity it gets that of the volume it is backed by.
        :param prealloc_metadata: qcow2: write all metadata now.
        :raises DefinitionError: there can be no such volume. VolumeExistsError: there is something of this name.
            CommandError: qemu-img is missing, or what it said. StorageError: ENOSPC, EDQUOT …
        """
        info = await volume_jobs.create_volume(self.parts, definition, prealloc_metadata=prealloc_metadata)
        return Volume(self, info.name)

    async def copy_volume(
        self, source: Volume, definition: VolumeDef | str | bytes, *, on_progress: Progress | None = None
    ) -> Volume:
        """Make a volume out of another, of this pool or of any other: complete, or not at all.

        Within a pool the storage copies; from pool to pool the data are streamed, holes kept; into another format, or
        with another backing file, qemu-img converts. On a backing file that is the source itself, or what the source is
        backed by, a copy is thin; on any other it holds all data.

        :param definition: format and capacity are the source's where it does not say; of a record (not of a document) mode,
            owner and group are too, the latter two only where the storage lets us.
        :param on_progress: called with bytes done and in all.
        :raises: what :meth:`create_volume` raises; VolumeNotFoundError: the source is not there. StorageError: EPERM: it
            would have to be converted, and needs a file that is no volume of an active pool.
        """
        member = Member(source.pool.parts, source.name)
        info = await copies.copy_volume(self.parts, member, definition, on_progress)
        return Volume(self, info.name)

    def handle_of(self, member: Member) -> Volume:
        """Return the handle of a volume of any pool of the same Manager."""
        return Volume(self._handle(member.pool), member.name)
