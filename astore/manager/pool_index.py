"""PoolIndex: finds pools by uuid, target path and source, however many there are. Lookups never wait."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable

from astore.backend import Backend
from astore.model import PoolDef
from astore.plugin_calls import checked_definition
from astore.pools.record import PoolRecord
from astore.registry import BackendRegistry

Source = tuple[tuple[str, str], ...]


class PoolIndex:
    """An index of pool records.

    A record is indexed at the first lookup after it has changed. What is found is compared with the record itself, so an
    entry that is out of date finds nothing.
    """

    def __init__(self, registry: BackendRegistry) -> None:
        self._registry = registry
        self._records: dict[str, PoolRecord] = {}
        self._by_uuid: dict[str, list[PoolRecord]] = {}
        self._by_target: dict[str, set[str]] = {}
        self._by_source: dict[str, tuple[Backend, dict[Source, set[str]]]] = {}  # by pool type
        self._unseen: dict[str, PoolRecord] = {}  # changed since the last lookup by target
        self._unsourced: dict[str, dict[str, PoolRecord]] = {}  # by type: changed since the last lookup by source

    def add(self, record: PoolRecord) -> None:
        """Add a record. The caller has removed the one of the same name before."""
        self._records[record.name] = record
        self._by_uuid.setdefault(record.uuid, []).append(record)
        record.redefined = self._look_again
        self._look_again(record)

    def remove(self, record: PoolRecord) -> None:
        """Remove a record that was added."""
        record.redefined = None
        del self._records[record.name]
        same = self._by_uuid[record.uuid]
        same.remove(record)
        if not same:
            del self._by_uuid[record.uuid]
        self._unseen.pop(record.name, None)
        for changed in self._unsourced.values():
            changed.pop(record.name, None)

    def named(self, uuid: str) -> str | None:
        """Return the name of the pool with this uuid, in lower case with hyphens; or None."""
        found = self._by_uuid.get(uuid)
        return None if found is None else found[0].name

    def at(self, path: str) -> str | None:
        """Return the name of the active pool whose target is this path, the first in name order; or None."""
        for name in self._unseen:
            for definition in _definitions(self._records.get(name)):
                if definition.target.path is not None:
                    self._by_target.setdefault(definition.target.path, set()).add(name)
        self._unseen.clear()
        names = self._by_target.get(path, set())
        for name in sorted(names):
            record = self._records.get(name)
            if record is not None and record.active and record.running.target.path == path:
                return name
            if all(one.target.path != path for one in _definitions(record)):
                names.discard(name)
        return None

    def sharing(self, backend: Backend, source: Source, but: str | None) -> str | None:
        """Return the name of another pool of the backend's type with this source, the first in name order; or None.

        :param but: the name of the pool that does not count.
        """
        type = backend.type
        kept = self._by_source.get(type)
        if kept is None or kept[0] is not backend:  # another backend may tell other sources
            kept = self._by_source[type] = (backend, {})
            new: Iterable[PoolRecord] = self._records.values()
        else:
            new = self._unsourced.get(type, {}).values()
        by_source = kept[1]
        for record in new:
            for key in _sources(record, backend):
                by_source.setdefault(key, set()).add(record.name)
        self._unsourced.pop(type, None)
        names = by_source.get(source, set())
        for name in sorted(names):
            record_now = self._records.get(name)
            if record_now is None or source not in _sources(record_now, backend):
                names.discard(name)
            elif name != but:
                return name
        return None

    def _look_again(self, record: PoolRecord) -> None:
        self._unseen[record.name] = record
        for definition in _definitions(record):
            self._unsourced.setdefault(definition.type, {})[record.name] = record


def _definitions(record: PoolRecord | None) -> tuple[PoolDef, ...]:
    """Return a pool's definitions: the one that it runs by, and the one for its next start."""
    if record is None:
        return ()
    if record.running is record.definition:
        return (record.definition,)
    return record.running, record.definition


def _sources(record: PoolRecord, backend: Backend) -> list[Source]:
    """Return the sources of a pool's definitions of the backend's type."""
    found: list[Source] = []
    for definition in _definitions(record):
        if definition.type == backend.type:
            with contextlib.suppress(Exception):  # not acceptable, or the backend at fault: the source is unknown
                pairs = backend.source_key(checked_definition(backend, definition))
                found.append(tuple((field, value) for field, value in pairs))
    return found
