"""Catalogue: the pools of a Manager by name, and the checks of new definitions against them. Lookups never wait."""

from __future__ import annotations

from collections.abc import Iterable

from astore.backend import Backend
from astore.errors import (
    BackendError,
    DefinitionError,
    LibvirtCode,
    PoolNotFoundError,
    SourceConflictError,
    VolumeNotFoundError,
    reason,
)
from astore.model import PoolDef
from astore.names import check_uuid, normal_path
from astore.plugin_calls import checked_definition
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
        self._source_keys: dict[int, tuple[PoolDef, Backend, object]] = {}  # by the id of the definition
        self.damaged: tuple[Damaged, ...] = ()

    # --------------------------------------------------------------------------------------------- the pools' parts

    def get(self, name: str) -> Parts | None:
        """Return the parts of the pool of this name, or None."""
        pool = self._pools.get(name)
        return None if pool is None else pool.parts

    def all(self) -> list[Parts]:
        """Return the parts of all pools in name order."""
        return [pool.parts for pool in self.pools()]

    def add(self, definition: PoolDef, host: Host, *, persistent: bool, autostart: bool = False) -> Parts:
        """Add a pool, and return its parts."""
        services = self._services
        record = PoolRecord(services.bus, services.log, definition, persistent=persistent, autostart=autostart)
        parts = Parts(record, services, host, self.all)
        self._pools[record.name] = Pool(parts, self.handle)
        return parts

    def remove(self, record: PoolRecord) -> None:
        """Remove a pool, if it is still here."""
        record.gone = True
        parts = self.get(record.name)
        if parts is not None and parts.record is record:
            del self._pools[record.name]

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
        for pool in self._pools.values():
            if pool.uuid == wanted:
                return pool
        raise PoolNotFoundError(f"there is no pool with uuid {uuid!r}", what=uuid)

    def pool_by_target(self, path: str) -> Pool:
        """See :meth:`astore.Manager.pool_by_target`."""
        wanted = normal_path(path)
        for pool in self.pools():
            if pool.active and pool.definition.target.path == wanted:
                return pool
        raise PoolNotFoundError(f"no active pool has the target {path!r}", what=path)

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
        for pool in self._pools.values():
            if wanted.uuid is not None and pool.uuid == wanted.uuid:
                raise SourceConflictError(
                    f"the uuid {wanted.uuid} belongs to pool {pool.name!r} already", other=pool.name, field="uuid"
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
            mine = backend.source_key(wanted)
        except Exception as error:  # plugin code: it may raise anything
            raise BackendError(
                f"the backend of pool type {wanted.type!r} cannot tell the source of pool {wanted.name!r}: "
                f"{type(error).__name__}: {reason(error)}",
                type=wanted.type,
            ) from error
        if not mine:
            return
        for other in self.all():
            if other is known:
                continue
            for theirs in _definitions(other):
                if theirs.type == wanted.type and self._source_key(theirs, backend) == mine:
                    fields = ", ".join(f"{field} {value!r}" for field, value in mine)
                    raise SourceConflictError(
                        f"pool {other.name!r} has the same source: {fields}", other=other.name, field=mine[0][0]
                    )

    def _source_key(self, definition: PoolDef, backend: Backend) -> object:
        """Return the source key of a pool's definition. Cached, since every new pool is compared with all others."""
        kept = self._source_keys.get(id(definition))
        if kept is None or kept[0] is not definition or kept[1] is not backend:
            try:
                key = backend.source_key(checked_definition(backend, definition))
            except Exception:  # the definition is not acceptable, or the backend at fault: the source is unknown
                key = ()
            if len(self._source_keys) > 2 * len(self._pools) + 16:  # forget old definitions
                current = {id(one) for pool in self.all() for one in _definitions(pool)}
                self._source_keys = {at: one for at, one in self._source_keys.items() if at in current}
            kept = self._source_keys[id(definition)] = (definition, backend, key)
        return kept[2]


def _definitions(pool: Parts) -> Iterable[PoolDef]:
    """Return a pool's definitions: the one that it runs by, and the one for its next start."""
    return {id(one): one for one in (pool.definition, pool.record.definition)}.values()
