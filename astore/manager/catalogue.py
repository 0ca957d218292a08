"""The catalogue: the pools of one state folder, by name, and what may be defined beside them. Lookups never wait."""

from __future__ import annotations

import uuid as uuid_module
from collections.abc import Collection

from astore.backend import Backend
from astore.errors import (
    AstoreError,
    BackendError,
    DefinitionError,
    LibvirtCode,
    PoolNotFoundError,
    SourceConflictError,
    VolumeNotFoundError,
    reason,
)
from astore.manager.keeper import StateFolder
from astore.model import PoolDef, PoolState
from astore.names import check_uuid, normal_path
from astore.plugin_calls import checked
from astore.pools import graph
from astore.pools.pool import Pool
from astore.pools.volume import Volume
from astore.registry import BackendRegistry
from astore.store import local_definitions as storage

INLINE_XML = 16_384
"""Documents longer than this are parsed in a thread."""


class Catalogue(StateFolder):
    """The part of :class:`~astore.manager.Manager` that knows the pools."""

    @property
    def registry(self) -> BackendRegistry:
        """The backends."""
        return self._registry

    @property
    def damaged(self) -> tuple[storage.DamagedFile, ...]:
        """Definition files that could not be read, and why. They are left as they are."""
        return self._loaded.damaged

    def pool(self, name: str) -> Pool:
        """The pool of this name. :raises PoolNotFoundError: there is none."""
        pool = self._pools.get(name)
        if pool is None:
            raise PoolNotFoundError(f"there is no pool {name!r}", what=name)
        return pool

    def pool_by_uuid(self, uuid: str) -> Pool:
        """The pool with this UUID, however it is written. :raises PoolNotFoundError: there is none."""
        try:
            wanted = check_uuid(uuid)
        except DefinitionError:
            raise PoolNotFoundError(
                f"there is no pool with uuid {uuid!r}: it is none", what=uuid, libvirt_code=LibvirtCode.INVALID_ARG
            ) from None
        for pool in self._pools.values():
            if pool.uuid == wanted:
                return pool
        raise PoolNotFoundError(f"there is no pool with uuid {uuid!r}", what=uuid)

    def pool_by_target(self, path: str) -> Pool:
        """The active pool whose target is this path. :raises PoolNotFoundError: there is none."""
        wanted = normal_path(path)
        for pool in self._sorted():
            if pool.active and pool.definition.target.path == wanted:
                return pool
        raise PoolNotFoundError(f"no active pool has the target {path!r}", what=path)

    def pools(
        self,
        *,
        active: bool | None = None,
        persistent: bool | None = None,
        autostart: bool | None = None,
        types: Collection[str] | None = None,
        states: Collection[PoolState | str] | None = None,
    ) -> list[Pool]:
        """Pools in name order, by libvirt's filters; None does not filter."""
        wanted = None if states is None else {PoolState(state) for state in states}
        return [
            pool
            for pool in self._sorted()
            if (active is None or pool.active == active)
            and (persistent is None or pool.persistent == persistent)
            and (autostart is None or pool.autostart == autostart)
            and (types is None or pool.type in types)
            and (wanted is None or pool.state in wanted)
        ]

    def volume_by_key(self, key: str) -> Volume:
        """The volume with this key, over all active pools. :raises VolumeNotFoundError: there is none."""
        return self._volume_by("key", key)

    def volume_by_path(self, path: str) -> Volume:
        """The volume with this path, over all active pools. :raises VolumeNotFoundError: there is none."""
        return self._volume_by("path", normal_path(path))

    def _volume_by(self, field: str, value: str) -> Volume:
        pools = self._sorted()
        name = value.rstrip("/").rpartition("/")[2]
        for pool in pools:
            # most keys and paths end in the name, so that few need a walk through all volumes
            info = pool.snapshot.get(name)
            if info is not None and getattr(info, field) == value:
                return Volume(pool, name)
        for pool in pools:
            for info in pool.volumes:
                if getattr(info, field) == value:
                    return Volume(pool, info.name)
        raise VolumeNotFoundError(f"no active pool has a volume with the {field} {value!r}", what=value)

    def dependents(self, volume: Volume) -> list[Volume]:
        """The volumes, over all active pools, that need this one, in the order of pools and names.

        They are backed by it, or have data in it; if it is a directory, they need a file that lies behind it.

        :raises VolumeNotFoundError: it is not there.
        """
        return graph.dependents(volume.info, volume.pool, self._sorted())

    def _sorted(self) -> list[Pool]:
        return [pool for _, pool in sorted(self._pools.items())]

    async def _accepted(self, definition: str | bytes | PoolDef) -> PoolDef:
        """The definition, checked by the XML rules, wherever it came from, and by its backend, if there is one."""
        self._check_open()
        from astore.xml import pool_from_xml, pool_to_xml

        if isinstance(definition, PoolDef):
            try:
                text: str | bytes = pool_to_xml(definition)
            except (TypeError, ValueError, AttributeError) as error:
                raise DefinitionError(f"this is no definition of a pool: {reason(error)}") from error
        else:
            text = definition
        wanted = pool_from_xml(text) if len(text) <= INLINE_XML else await self._in_store(pool_from_xml, text)
        try:
            backend = await self._registry.get(wanted.type)
        except BackendError:
            return wanted
        try:
            return checked(backend, wanted)
        except AstoreError:
            raise
        except Exception as error:  # plugin code: it may raise anything
            raise BackendError(
                f"the backend of pool type {wanted.type!r} cannot check pool {wanted.name!r}: "
                f"{type(error).__name__}: {reason(error)}",
                type=wanted.type,
            ) from error

    def _same_pool(self, wanted: PoolDef) -> Pool | None:
        """The pool that a definition is about, by libvirt's rule: one name is one uuid, both ways."""
        by_name = self._pools.get(wanted.name)
        if by_name is not None:
            if wanted.uuid is not None and by_name.uuid != wanted.uuid:
                raise SourceConflictError(
                    f"pool {wanted.name!r} exists already with the uuid {by_name.uuid}",
                    other=by_name.name,
                    field="name",
                )
            return by_name
        for pool in self._pools.values():
            if wanted.uuid is not None and pool.uuid == wanted.uuid:
                raise SourceConflictError(
                    f"the uuid {wanted.uuid} belongs to pool {pool.name!r} already", other=pool.name, field="uuid"
                )
        for file in self._loaded.damaged:
            if file.name == wanted.name:
                raise DefinitionError(
                    f"there is a damaged definition of pool {wanted.name!r}: repair or remove {file.path} first"
                )
        return None

    def _check_source(self, wanted: PoolDef, known: Pool | None) -> None:
        """No two pools of one type have the same source."""
        backend = self._registry.loaded(wanted.type)
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
        for pool in self._pools.values():
            if pool is known:
                continue
            for theirs in {id(d): d for d in (pool.definition, pool._definition) if d.type == wanted.type}.values():
                if self._source_key(pool, theirs, backend) == mine:
                    fields = ", ".join(f"{field} {value!r}" for field, value in mine)
                    raise SourceConflictError(
                        f"pool {pool.name!r} has the same source: {fields}", other=pool.name, field=mine[0][0]
                    )

    @staticmethod
    def _source_key(pool: Pool, definition: PoolDef, backend: Backend) -> object:
        """What identifies the source of one of a pool's definitions; kept, since every new pool is compared with all."""
        kept = pool._source_keys.get(id(definition))
        if kept is None or kept[0] is not definition or kept[1] is not backend:
            try:
                key = backend.source_key(checked(backend, definition))
            except Exception:  # it is not acceptable, or its backend has a fault: no source that is known
                key = ()
            current = {id(pool.definition), id(pool._definition)}
            pool._source_keys = {at: one for at, one in pool._source_keys.items() if at in current}
            kept = pool._source_keys[id(definition)] = (definition, backend, key)
        return kept[2]


def new_uuid() -> str:
    """A random UUID, as libvirt writes it."""
    return str(uuid_module.uuid4())
