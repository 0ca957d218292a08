"""Snapshot: everything that a refresh found in a pool; and Changes, the difference of two snapshots."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Collection, Mapping
from operator import attrgetter
from types import MappingProxyType
from typing import Any, ClassVar

from astore.model.definitions import Permissions
from astore.model.name_order import in_order
from astore.model.record import Record
from astore.model.records import EntryError, Place, VolumeInfo


class Changes(Record, frozen=True):
    """The difference of two snapshots; names in name order, ``unchanged`` a count."""

    added: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    unchanged: int = 0

    def __bool__(self) -> bool:
        return bool(self.added or self.changed or self.removed)

    def without(self, names: Collection[str], size: int) -> Changes:
        """Return the changes of all other names. :param size: how many volumes the newer snapshot has."""
        added, changed, removed = (
            tuple(name for name in some if name not in names) if any(name in names for name in some) else some
            for some in (self.added, self.changed, self.removed)
        )
        return Changes(added, changed, removed, size - len(added) - len(changed))


MOST_LATE = 64
"""How many changes of single volumes a snapshot keeps apart before it adds them to the earlier ones."""

FEW = 16
"""A snapshot whose records are all but one in FEW those of an earlier one shares that one's memory."""

Later = dict[str, VolumeInfo | None]
"""Records that replace earlier ones, by name; None: the volume is gone."""


class Whole:
    """All records of a refresh, shared by the snapshots that differ from it in a few."""

    __slots__ = ("_referring", "_volumes", "by_name")

    def __init__(self, by_name: dict[str, VolumeInfo]) -> None:
        self.by_name: Mapping[str, VolumeInfo] = by_name
        self._volumes: tuple[VolumeInfo, ...] | None = None
        self._referring: tuple[VolumeInfo, ...] | None = None

    @property
    def volumes(self) -> tuple[VolumeInfo, ...]:
        """The records in name order."""
        if self._volumes is None:
            self._volumes = tuple(in_order(self.by_name))
        return self._volumes

    @property
    def referring(self) -> tuple[VolumeInfo, ...]:
        """The records of the volumes whose headers name other files."""
        if self._referring is None:
            self._referring = tuple(one for one in self.volumes if one.references)
        return self._referring

    def prepare(self) -> None:
        """Compute both."""
        self._volumes, self._referring = self.volumes, self.referring


class Snapshot:
    """Everything that a refresh found. Immutable.

    :param by_name: the records by name, **in name order**; the snapshot keeps the dict, so do not change it any more.
    :param capacity: the pool's size in bytes; ``allocation`` and ``available`` likewise.
    :param taken_at: when the scan began, in seconds since the epoch.
    :param unsettled: names whose identity cannot be trusted yet, because they changed while they were being read
        (git's "racily clean" entries): the next refresh reads their headers again.
    :param permissions: the permissions of the pool's folder, if it has a path on this machine.
    :param folder: the resolved place of the pool's folder, if it is known.
    :ivar whole: the records of a whole refresh, which snapshots share. Internal.
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
        whole = Whole({} if by_name is None else by_name)
        vars(self).update(
            whole=whole,
            _later={},
            _latest={},
            _size=len(whole.by_name),
            _volumes=None,
            _by_name=None,
            _unsettled=(unsettled,),
            generation=generation,
            taken_at=taken_at,
            capacity=capacity,
            allocation=allocation,
            available=available,
            errors=errors,
            permissions=permissions,
            folder=folder,
        )

    # The records of a whole refresh, and those that replace them, so that neither one changed volume nor a thousand volumes
    # made one after the other cost a copy of all records. What is computed when it is asked for may be computed by any
    # thread: all get the same result.
    whole: Whole
    _later: Later
    _latest: Later  # of single volumes, MOST_LATE at most; they replace both
    _size: int
    _volumes: tuple[VolumeInfo, ...] | None
    _by_name: dict[str, VolumeInfo] | None
    _unsettled: tuple[frozenset[str], ...]
    EMPTY: ClassVar[Snapshot]

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"a Snapshot is immutable: {name} cannot be set")

    def __repr__(self) -> str:
        return f"<Snapshot generation={self.generation} volumes={self._size} errors={len(self.errors)}>"

    @property
    def unsettled(self) -> frozenset[str]:
        """The names whose headers the next refresh reads again in any case."""
        # a volume that was read on its own may have changed again without showing it in its times
        latest = [name for name, info in self._latest.items() if info is not None]
        first, *others = self._unsettled
        return first.union(*others, latest) if others or latest else first

    @property
    def volumes(self) -> tuple[VolumeInfo, ...]:
        """The records in name order."""
        if not self._later and not self._latest:
            return self.whole.volumes
        volumes = self._volumes
        if volumes is None:
            volumes = vars(self)["_volumes"] = _merged(self.whole.volumes, {**self._later, **self._latest})
        return volumes

    @property
    def referring(self) -> tuple[VolumeInfo, ...]:
        """The records of the volumes whose headers name other files."""
        found = self.whole.referring
        if self._later or self._latest:
            later = {**self._later, **self._latest}
            found = _merged(found, {name: info if info and info.references else None for name, info in later.items()})
        return found

    @property
    def by_name(self) -> MappingProxyType[str, VolumeInfo]:
        """The records by name (a read-only view), in name order."""
        if not self._later and not self._latest:
            return MappingProxyType(self.whole.by_name)
        by_name = self._by_name
        if by_name is None:
            by_name = vars(self)["_by_name"] = {one.name: one for one in self.volumes}
        return MappingProxyType(by_name)

    def get(self, name: str) -> VolumeInfo | None:
        """Return the record of the volume ``name``, or None."""
        for later in (self._latest, self._later):
            if name in later:
                return later[name]
        return self.whole.by_name.get(name)

    @property
    def getter(self) -> Callable[[str], VolumeInfo | None]:
        """The quickest function that does what :meth:`get` does, for many calls."""
        return self.get if self._later or self._latest else self.whole.by_name.get

    def __len__(self) -> int:
        return self._size

    def __bool__(self) -> bool:
        return True

    def numbered(self, generation: int) -> Snapshot:
        """Return this snapshot with another generation number."""
        return self._but(generation=generation)

    def taken_again(
        self, taken_at: float, *, capacity: int, allocation: int, available: int, permissions: Permissions | None
    ) -> Snapshot:
        """Return this snapshot as of another time, with the pool's sizes of then."""
        return self._but(
            taken_at=taken_at, capacity=capacity, allocation=allocation, available=available, permissions=permissions
        )

    def has_records_of(self, other: Snapshot) -> bool:
        """Return whether both have the same records, as far as that is known without comparing them."""
        return all(mine is theirs for mine, theirs in zip(self.layers, other.layers, strict=True))

    @property
    def layers(self) -> tuple[object, object, object]:
        """Where the records are kept. Internal."""
        return self.whole, self._later, self._latest

    def keeping(self, previous: Snapshot) -> Snapshot:
        """Return this snapshot with the records that volumes which cannot be read had in ``previous``.

        They are there, so they are not removed. The next refresh tries to read them again.
        """
        unreadable = (error.name for error in self.errors if error.unreadable and self.get(error.name) is None)
        kept = {name: record for name in unreadable if (record := previous.get(name)) is not None}
        if not kept:
            return self
        latest = frozenset(name for name, info in self._latest.items() if info is not None)
        return self._but(
            _later={**self._later, **self._latest, **kept},
            _latest={},
            _size=self._size + len(kept),
            _unsettled=(*self._unsettled, latest, frozenset(kept)),
            _volumes=None,
            _by_name=None,
        )

    def patched(self, patch: Mapping[str, VolumeInfo | EntryError | None], generation: int) -> Snapshot:
        """Return a snapshot in which each name of ``patch`` has this record, is this error, or is gone (None).

        A volume that cannot be read keeps its record.
        """
        errors = self.errors
        if errors or any(isinstance(item, EntryError) for item in patch.values()):
            others = [error for error in errors if error.name not in patch]
            errors = (*others, *(item for item in patch.values() if isinstance(item, EntryError)))
        new = {name: self._patched(name, item) for name, item in patch.items()}
        size = self._size + sum((info is not None) - (self.get(name) is not None) for name, info in new.items())
        later, latest, unsettled = self._later, {**self._latest, **new}, self._unsettled
        if len(latest) > MOST_LATE:
            unsettled = (*unsettled, frozenset(name for name, info in latest.items() if info is not None))
            whole = self.whole.by_name
            later = {name: one for name, one in {**later, **latest}.items() if one is not None or name in whole}
            latest = {}
        return self._but(
            errors=errors,
            generation=generation,
            _later=later,
            _latest=latest,
            _size=size,
            _unsettled=unsettled,
            _volumes=None,
            _by_name=None,
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
        get, mine = previous.getter, self.getter
        if not len(previous):
            return Changes(added=tuple(one.name for one in self.volumes))
        added: list[str] = []
        changed: list[str] = []
        kept = 0
        for record in self.volumes:
            before = get(record.name)
            if before is record:
                kept += 1
            elif before is None:
                added.append(record.name)
            elif record.same_as(before):
                kept += 1
            else:
                changed.append(record.name)
        removed: tuple[str, ...] = ()
        if kept + len(changed) != len(previous):
            removed = tuple(one.name for one in previous.volumes if mine(one.name) is None)
        return Changes(tuple(added), tuple(changed), removed, kept)

    def sharing(self, previous: Snapshot) -> Snapshot:
        """Return an equal snapshot. If few records differ from those of ``previous``, it shares that one's memory.

        So nothing large is freed when it takes the place of ``previous``.
        """
        whole = previous.whole
        if whole is self.whole or not whole.by_name:
            return self
        before, get = whole.by_name.get, self.getter
        later: Later = {one.name: one for one in self.volumes if before(one.name) is not one}
        new = sum(before(name) is None for name in later)
        if self._size - new != len(whole.by_name):
            later |= {name: None for name in whole.by_name if get(name) is None}
        if len(later) > len(whole.by_name) // FEW:
            return self
        return self._but(
            whole=whole, _later=later, _latest={}, _unsettled=(self.unsettled,), _volumes=None, _by_name=None
        )

    def prepared(self) -> Snapshot:
        """Return this snapshot, and compute what later reads would have to compute from all records."""
        self.whole.prepare()
        return self


def _merged(volumes: tuple[VolumeInfo, ...], later: Later) -> tuple[VolumeInfo, ...]:
    """Return records in name order with later ones in their places."""
    merged: list[VolumeInfo] = []
    begin, name_of = 0, attrgetter("name")
    for name in sorted(later):
        end = bisect_left(volumes, name, begin, key=name_of)
        merged += volumes[begin:end]
        info = later[name]
        if info is not None:
            merged.append(info)
        begin = end + 1 if end < len(volumes) and volumes[end].name == name else end
    merged += volumes[begin:]
    return tuple(merged)


Snapshot.EMPTY = Snapshot()
