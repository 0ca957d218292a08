"""Catalogue: the pools of a Manager by name, and the checks of new definitions against them. Lookups never wait."""

from __future__ import annotations

from astore.errors import (
    BackendError,
    DefinitionError,
    LibvirtCode,
    PoolNotFoundError,
    SourceConflictError,
    VolumeNotFoundError,
    reason,
)
from astore.manager.pool_index import PoolIndex
from astore.model import PoolDef
from astore.names import check_uuid, normal_path
from astore.pools.lifecycle import Host
from astore.pools.parts import Parts
from astore.pools.pool import Pool
from astore.pools.record import PoolRecord
from astore.pools.services import Services
from astore.pools.volume import Volume
from astore.store.contract import Damaged


class Catalogue:
    """The pools, by name.

    :ivar damaged: the definitions that cannot be read.
    """

    def __init__(self, services: Services) -> None:
        self._services = services
        self._pools: dict[str, Pool] = {}
        self._index = PoolIndex(services.registry)
        self.damaged: tuple[Damaged, ...] = ()

    # --------------------------------------------------------------------------------------------- the pools' parts

    def get(self, name: str) -> Parts | None:
        """Return the parts of the pool of this name, or None."""
        pool = self._pools.get(name)
        return None if pool is None else pool.parts

    def by_uuid(self, uuid: str) -> Parts | None:
        """Return the parts of the pool with this UUID, as it is written in records, or None."""
        name = self._index.named(uuid)
        return None if name is None else self.get(name)

    def all(self) -> list[Parts]:
        """Return the parts of all pools in name order."""
        return [pool.parts for pool in self.pools()]

    def add(self, definition: PoolDef, host: Host, *, persistent: bool, autostart: bool = False) -> Parts:
        """Add a pool, and return its parts."""
        services = self._services
        record = PoolRecord(services.bus, services.log, definition, persistent=persistent, autostart=autostart)
        parts = Parts(record, services, host, self.all)
        self._pools[record.name] = Pool(parts, self.handle)
        self._index.add(record)
        return parts

    def remove(self, record: PoolRecord) -> None:
        """Remove a pool, if it is still here."""
        record.gone = True
        parts = self.get(record.name)
        if parts is not None and parts.record is record:
            del self._pools[record.name]
            self._index.remove(record)

    def handle(self, parts: Parts) -> Pool:
        """Return the handle of a pool. :raises PoolNotFoundError: the pool is gone."""
        parts.record.require_known()
        return self.pool(parts.name)

    # --------------------------------------------------------------------------------- lookups: see astore.Manager

    def pool(self, name: str) -> Pool:
        """See :meth:`astore.Manager.pool`."""
        pool = self._pools.get(name)
        if pool is None:
            raise PoolNotFoundError(f"there is no pool {name!r}", what=name)
        return pool

    def pool_by_uuid(self, uuid: str) -> Pool:
        """See :meth:`astore.Manager.pool_by_uuid`."""
        try:
            wanted = check_uuid(uuid)
        except DefinitionError:
            raise PoolNotFoundError(
                f"there is no pool with uuid {uuid!r}: it is not a UUID",
                what=uuid,
                libvirt_code=LibvirtCode.INVALID_ARG,
            ) from None
        name = self._index.named(wanted)
        if name is None:
            raise PoolNotFoundError(f"there is no pool with uuid {uuid!r}", what=uuid)
        return self._pools[name]

    def pool_by_target(self, path: str) -> Pool:
        """See :meth:`astore.Manager.pool_by_target`."""
        name = self._index.at(normal_path(path))
        if name is None:
            raise PoolNotFoundError(f"no active pool has the target {path!r}", what=path)
        return self._pools[name]

    def pools(self) -> list[Pool]:
        """Return the pools in name order."""
        return [pool for _, pool in sorted(self._pools.items())]

    def volume_by(self, field: str, value: str) -> Volume:
        """Return the volume of an active pool by its ``key`` or ``path``. :raises VolumeNotFoundError: there is none."""
        pools = self.pools()
        name = value.rstrip("/").rpartition("/")[2]
        for pool in pools:
            # most keys and paths end in the name: then no walk through all volumes is needed
            info = pool.snapshot.get(name)
            if info is not None and getattr(info, field) == value:
                return Volume(pool, name)
        for pool in pools:
            for info in pool.volumes:
                if getattr(info, field) == value:
                    return Volume(pool, info.name)
        raise VolumeNotFoundError(f"no active pool has a volume with the {field} {value!r}", what=value)

    # ------------------------------------------------------------------------------------ checks of new definitions

    def same_pool(self, wanted: PoolDef) -> Parts | None:
        """Return the pool that a definition redefines, or None. libvirt's rule: one name has one uuid, and one uuid one name.

        :raises SourceConflictError: another pool has the name or the uuid. DefinitionError: the pool's old definition is
            damaged.
        """
        by_name = self.get(wanted.name)
        if by_name is not None:
            if wanted.uuid is not None and by_name.record.uuid != wanted.uuid:
                raise SourceConflictError(
                    f"pool {wanted.name!r} exists already with the uuid {by_name.record.uuid}",
                    other=by_name.name,
                    field="name",
                )
            return by_name
        other = None if wanted.uuid is None else self._index.named(wanted.uuid)
        if other is not None:
            raise SourceConflictError(
                f"the uuid {wanted.uuid} belongs to pool {other!r} already", other=other, field="uuid"
            )
        for damaged in self.damaged:
            if damaged.name == wanted.name:
                raise DefinitionError(
                    f"there is a damaged definition of pool {wanted.name!r}: repair or remove {damaged.path} first"
                )
        return None

    def check_source(self, wanted: PoolDef, known: Parts | None) -> None:
        """Check that no other pool has the same source. :param known: the pool that is redefined.

        :raises SourceConflictError: another pool has it. BackendError: the backend cannot tell the source.
        """
        backend = self._services.registry.loaded(wanted.type)
        if backend is None:
            return
        try:
            mine = tuple((field, value) for field, value in backend.source_key(wanted))
        except Exception as error:  # plugin code: it may raise anything
            raise BackendError(
                f"the backend of pool type {wanted.type!r} cannot tell the source of pool {wanted.name!r}: "
                f"{type(error).__name__}: {reason(error)}",
                type=wanted.type,
            ) from error
        if not mine:
            return
        other = self._index.sharing(backend, mine, None if known is None else known.name)
        if other is not None:
            fields = ", ".join(f"{field} {value!r}" for field, value in mine)
            raise SourceConflictError(f"pool {other!r} has the same source: {fields}", other=other, field=mine[0][0])
