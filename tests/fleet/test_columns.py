"""Records of volumes as columns: what is written is read again, and old and new readers get along."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from astore.model import Reference, ReferenceKind, Snapshot, VolumeInfo, VolumeType
from astore.store.contract import LastSeen
from astore_fleet.store.columns import FEW, Column, columns_of, records_of
from astore_fleet.store.snapshots import pack, unpack


def made(number: int, **changes: object) -> VolumeInfo:
    """A volume of a folder. :param changes: fields that have other values."""
    path = f"/srv/images/{number}.qcow2"
    info = VolumeInfo(
        f"{number}.qcow2",
        VolumeType.FILE,
        path,
        path,
        number << 30,
        4096,
        number,
        "qcow2",
        0o100644,
        0,
        0,
        number,
        1,
        2,
        3,
    )
    return msgspec.structs.replace(info, **changes)


BACKED = (Reference(ReferenceKind.BACKING, "base", "qcow2", "/srv/base"),)
SOME = {
    "none": [],
    "one": [made(1)],
    "alike": [made(1), made(1)],
    "many": [made(number) for number in range(FEW + 44)],
    "few formats": [made(number, format=["raw", "qcow2", None][number % 3]) for number in range(600)],
    "late variety": [made(number, capacity=max(number, 600)) for number in range(1200)],
    "other keys": [made(1), made(2, key="10.0.0.1:3260,iqn,2", path="/dev/sdb")],
    "other paths": [made(1, path="/a"), made(2, path="/b")],
    "references": [made(1, references=BACKED, features=("lazy_refcounts",)), made(2, device="vol-1")],
}


@pytest.mark.parametrize("what", SOME)
def test_records_are_the_same_again(what: str) -> None:
    """Whatever the records have, they are equal after both ways; keys and paths that are equal are one object."""
    records = SOME[what]
    again = records_of(columns_of(records))
    assert again == records
    assert [one.path is one.key for one in again] == [one.path == one.key for one in records]


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(st.text(min_size=1), st.text(), st.integers(0, 2**63), st.sampled_from(["raw", None]))))
def test_any_records(rows: list[tuple[str, str, int, str | None]]) -> None:
    """Any names, keys and sizes."""
    records = [made(1, name=name, key=key, path=key, capacity=size, format=format) for name, key, size, format in rows]
    assert records_of(columns_of(records)) == records


def test_columns_that_are_missing_or_unknown() -> None:
    """What another version does not write has its default; what it writes besides is passed over."""
    columns = columns_of([made(1, extras=("bitmaps",)), made(2)])
    del columns["extras"]
    columns["colour"] = Column(msgspec.Raw(msgspec.msgpack.encode(["red", "blue"])))
    assert records_of(columns) == [made(1), made(2)]


def test_a_snapshot_is_small_and_read_again() -> None:
    """Repeated values are written once, and shared by the records that are read."""
    records = {one.name: one for one in SOME["many"]}
    head, bodies = pack("uuid", 1.0, LastSeen(Snapshot(records, taken_at=2.0, capacity=3), 4.0, None))
    assert sum(map(len, bodies)) < 20 * len(records)
    seen = unpack(head, bodies)
    assert seen is not None
    assert seen.snapshot.by_name == records
    assert len({id(one.format) for one in seen.snapshot.volumes}) == 1
    assert unpack(head, [bodies[0][:-8]]) is None
