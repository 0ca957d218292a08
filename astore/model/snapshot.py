"""Snapshot: everything that a refresh found in a pool; and Changes, the difference of two snapshots."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar

import msgspec

from astore.model.definitions import Permissions
from astore.model.records import EntryError, Place, VolumeInfo


class Changes(msgspec.Struct, frozen=True):
    """The difference of two snapshots; names in name order, ``unchanged`` a count."""

    added: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    unchanged: int = 0

    def __bool__(self) -> bool:
        return bool(self.added or self.changed or self.removed)


MOST_LATE = 64
"""How many changes of single volumes a snapshot keeps apart before it merges them."""

_NOTHING_LATE: tuple[dict[str, VolumeInfo], frozenset[str], dict[str, VolumeInfo | None]] = ({}, frozenset(), {})


class Snapshot:
    """Everything that a refresh found. Immutable.

    :param by_name: the records by name, **in name order**; the snapshot keeps the dict, so do not change it any more.
    :param capacity: the pool's size in bytes; ``allocation`` and ``available`` likewise.
    :param taken_at: when the scan began, in seconds since the epoch.
    :param unsettled: names whose identity cannot be trusted yet, because they changed while they were being read
        (git's "racily clean" entries): the next refresh reads their headers again.
    :param permissions: the permissions of the pool's folder, if it has a path on this machine.
    :param folder: the resolved place of the pool's folder, if it is known.
    """

    generation: int
    taken_at: float
    capacity: int
    allocation: int
    available: int
    errors: tuple[EntryError, ...]
    permissions: Permissions | None
    folder: Place | None

    def __init__(
        self,
        by_name: dict[str, VolumeInfo] | None = None,
        *,
        generation: int = 0,
        taken_at: float = 0.0,
        capacity: int = 0,
        allocation: int = 0,
        available: int = 0,
        errors: tuple[EntryError, ...] = (),
        unsettled: frozenset[str] = frozenset(),
        permissions: Permissions | None = None,
        folder: Place | None = None,
    ) -> None:
        vars(self).update(
            _merged={} if by_name is None else by_name,
            _late=_NOTHING_LATE,
            _volumes=None,
            _referring=None,
            _unsettled=unsettled,
            generation=generation,
            taken_at=taken_at,
            capacity=capacity,
            allocation=allocation,
            available=available,
            errors=errors,
            permissions=permissions,
            folder=folder,
        )

    # Changes of single volumes are merged when the whole is needed: else a thousand volumes made one after the other
    # would cost a thousand copies of all records. (Any thread may merge; all get the same result.)
    _late: tuple[dict[str, VolumeInfo], frozenset[str], dict[str, VolumeInfo | None]]
    _merged: dict[str, VolumeInfo] | None
    _unsettled: frozenset[str] | None
    _volumes: tuple[VolumeInfo, ...] | None
    _referring: tuple[VolumeInfo, ...] | None
    EMPTY: ClassVar[Snapshot]

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"a Snapshot is immutable: {name} cannot be set")

    def __repr__(self) -> str:
        return f"<Snapshot generation={self.generation} volumes={len(self._by_name)} errors={len(self.errors)}>"

    @property
    def _by_name(self) -> dict[str, VolumeInfo]:
        merged = self._merged
        if merged is None:
            merged, _, late = self._late
            grown = not late.keys() <= merged.keys()
            merged = {name: info for name, info in {**merged, **late}.items() if info is not None}
            if grown:
                merged = {name: merged[name] for name in sorted(merged)}
            vars(self)["_merged"] = merged
        return merged

    @property
    def unsettled(self) -> frozenset[str]:
        """The names whose headers the next refresh reads again in any case."""
        unsettled = self._unsettled
        if unsettled is None:
            # a volume that was read on its own may have changed again without showing it in its times
            unsettled = self._late[1] | {name for name, info in self._late[2].items() if info is not None}
            vars(self)["_unsettled"] = unsettled
        return unsettled

    @property
    def volumes(self) -> tuple[VolumeInfo, ...]:
        """The records in name order."""
        volumes = self._volumes
        if volumes is None:
            volumes = tuple(self._by_name.values())
            vars(self)["_volumes"] = volumes
        return volumes

    @property
    def referring(self) -> tuple[VolumeInfo, ...]:
        """The records of the volumes whose headers name other files."""
        referring = self._referring
        if referring is None:
            referring = tuple(one for one in self._by_name.values() if one.references)
            vars(self)["_referring"] = referring
        return referring

    @property
    def by_name(self) -> MappingProxyType[str, VolumeInfo]:
        """The records by name (a read-only view), in name order."""
        return MappingProxyType(self._by_name)

    def get(self, name: str) -> VolumeInfo | None:
        """Return the record of the volume ``name``, or None."""
        merged = self._merged
        if merged is not None:
            return merged.get(name)
        before, _, late = self._late
        return late[name] if name in late else before.get(name)

    def __len__(self) -> int:
        return len(self._by_name)

    def __bool__(self) -> bool:
        return True

    def numbered(self, generation: int) -> Snapshot:
        """Return this snapshot with another generation number."""
        return self._but(generation=generation)

    def keeping(self, previous: Snapshot) -> Snapshot:
        """Return this snapshot with the records that volumes which cannot be read had in ``previous``.

        They are there, so they are not removed. The next refresh tries to read them again.
        """
        unreadable = (error.name for error in self.errors if error.unreadable and self.get(error.name) is None)
        kept = {name: record for name in unreadable if (record := previous.get(name)) is not None}
        if not kept:
            return self
        merged = {**self._by_name, **kept}
        return self._but(
            _merged={name: merged[name] for name in sorted(merged)},
            _unsettled=self.unsettled | kept.keys(),
            _volumes=None,
            _referring=None,
            _late=_NOTHING_LATE,
        )

    def patched(self, patch: Mapping[str, VolumeInfo | EntryError | None], generation: int) -> Snapshot:
        """Return a snapshot in which each name of ``patch`` has this record, is this error, or is gone (None).

        A volume that cannot be read keeps its record.
        """
        errors = self.errors
        if errors or any(isinstance(item, EntryError) for item in patch.values()):
            others = [error for error in errors if error.name not in patch]
            errors = (*others, *(item for item in patch.values() if isinstance(item, EntryError)))
        before, unsettled, late = self._late
        if self._merged is not None or len(late) >= MOST_LATE:
            before, unsettled, late = self._by_name, self.unsettled, {}
        late = {**late, **{name: self._patched(name, item) for name, item in patch.items()}}
        return self._but(
            errors=errors,
            generation=generation,
            _merged=None,
            _unsettled=None,
            _volumes=None,
            _referring=None,
            _late=(before, unsettled, late),
        )

    def _patched(self, name: str, item: VolumeInfo | EntryError | None) -> VolumeInfo | None:
        if isinstance(item, EntryError):
            return self.get(name) if item.unreadable else None
        return item

    def _but(self, **changes: Any) -> Snapshot:
        """Return a copy with other attributes."""
        other = object.__new__(Snapshot)
        vars(other).update({**vars(self), **changes})
        return other

    def changes_since(self, previous: Snapshot) -> Changes:
        """Return the changes from ``previous`` to this snapshot."""
        old, new = previous.by_name.copy(), self._by_name  # a copy is quicker than 10,000 reads through the view
        if not old:
            return Changes(added=tuple(new))
        added: list[str] = []
        changed: list[str] = []
        kept = 0
        for name, record in new.items():
            before = old.get(name)
            if before is record:
                kept += 1
            elif before is None:
                added.append(name)
            elif record.same_as(before):
                kept += 1
            else:
                changed.append(name)
        removed: tuple[str, ...] = ()
        if kept + len(changed) != len(old):
            removed = tuple(name for name in old if name not in new)
        return Changes(tuple(added), tuple(changed), removed, kept)


Snapshot.EMPTY = Snapshot()
