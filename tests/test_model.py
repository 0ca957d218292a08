"""The records: frozen, comparable, small, and snapshots that never change."""

from __future__ import annotations

import copy
import errno
import gc
import tracemalloc
from pathlib import Path
from typing import Any

import msgspec
import pytest
from core_fakes import run_python, snapshot, volume
from hypothesis import given, settings
from hypothesis import strategies as st

import astore
from astore import model
from astore.model import (
    Changes,
    EntryError,
    Place,
    PoolState,
    Reference,
    ReferenceKind,
    RefreshOutcome,
    RefreshReport,
    Snapshot,
    VolumeInfo,
)
from astore.testing.conformance.source import qcow2

STRUCTS = [
    value
    for value in vars(model).values()
    if isinstance(value, type) and value.__module__.startswith("astore.model.")
    if issubclass(value, msgspec.Struct)
]


@pytest.mark.parametrize("record", STRUCTS, ids=lambda record: record.__name__)
def test_records_are_frozen(record: type[msgspec.Struct]) -> None:
    """No field of any public record can be set, and no field is a list or a dictionary that could be changed."""
    assert record.__struct_config__.frozen
    assert record.__doc__
    for field in msgspec.structs.fields(record):
        assert getattr(field.type, "__origin__", field.type) not in (list, dict, set, bytearray), field.name


def test_records_cannot_be_changed() -> None:
    """Setting a field is an AttributeError; replacing gives another record."""
    definition = astore.PoolDef(type="dir", name="a")
    with pytest.raises(AttributeError):
        definition.name = "b"  # type: ignore[misc]
    other = msgspec.structs.replace(definition, name="b")
    assert (definition.name, other.name) == ("a", "b")
    assert len({definition, other, astore.PoolDef(type="dir", name="a")}) == 2


def test_model_imports_nothing_of_astore() -> None:
    """The records can be had without the rest."""
    code = "import sys, astore.model as m, inspect; print([n for n in vars(m) if n == 'Manager'])"
    assert run_python(code).stdout == "[]\n"
    for file in Path(model.__file__).parent.glob("*.py"):
        for line in file.read_text().splitlines():
            if line.startswith(("import astore", "from astore")):
                assert line.startswith("from astore.model."), (file.name, line)


def test_states() -> None:
    """Running, degraded and inaccessible pools are active."""
    assert {state for state in PoolState if state.active} == {"running", "degraded", "inaccessible"}


def test_same_as() -> None:
    """Nothing but the time of the last access, and how files are identified, may differ; all else counts."""
    one = volume("a")
    assert one.same_as(volume("a"))
    assert one.same_as(volume("a", atime_ns=99))
    for field in msgspec.structs.fields(VolumeInfo):
        if field.name in ("atime_ns", "type", "features", "references", "device", "made"):
            continue
        other: Any = 99 if isinstance(getattr(one, field.name), int) else "other"
        assert not one.same_as(msgspec.structs.replace(one, **{field.name: other})), field.name
    there, elsewhere = (Reference(ReferenceKind.BACKING, "b", place=Place("/b", 1, inode)) for inode in (2, 3))
    assert volume("a", references=(there,), device=1).same_as(volume("a", references=(elsewhere,), device=2))
    assert not volume("a", references=(there,)).same_as(one)
    assert not volume("a", references=(there,)).same_as(volume("a", references=(Reference(there.kind, "c"),)))


@pytest.mark.parametrize(
    ("error", "stays"),
    [
        (EntryError("b", "Input/output error", errno.EIO), True),
        (EntryError("b", "Permission denied", errno.EACCES, skipped=True), True),
        (EntryError("b", "its header is truncated"), False),
        (EntryError("b", "its header is malformed", errno.EINVAL), False),
        (EntryError("b", "it is a dangling link", errno.ENOENT, skipped=True), False),
        (EntryError("b", "it is a FIFO", skipped=True), False),
    ],
)
def test_what_cannot_be_read_stays(error: EntryError, stays: bool) -> None:
    """A volume that is there and cannot be read keeps its record, and is read again; what is no volume any more goes."""
    before = snapshot("a", "b", "c")
    for after in (snapshot("a", "c", "d", errors=(error,)).keeping(before), before.patched({"b": error}, 1)):
        assert ("b" in after.by_name, after.get("b") is before.get("b")) == (stays, stays)
        assert list(after.by_name) == sorted(after.by_name)
        assert after.errors == (error,)
        assert ("b" in after.unsettled) is stays
        assert after.changes_since(before).removed == (() if stays else ("b",))
    assert snapshot("a", errors=(error,)).keeping(snapshot("a")).get("b") is None, "it was never read"


def test_snapshots_cannot_be_changed() -> None:
    """Neither fields nor mapping nor tuple of a snapshot can be changed; it is true though it is empty."""
    held = snapshot("a", "b")
    for field in ("generation", "volumes", "errors", "taken_at", "anything"):
        with pytest.raises(AttributeError):
            setattr(held, field, ())
    with pytest.raises(TypeError):
        held.by_name["c"] = volume("c")  # type: ignore[index]
    assert isinstance(held.volumes, tuple)
    assert held.volumes is held.volumes
    assert Snapshot.EMPTY
    assert len(Snapshot.EMPTY) == 0
    assert Snapshot.EMPTY.volumes == ()


def test_patched() -> None:
    """A patch adds, replaces and removes records and errors, in name order, and leaves the snapshot it was made from."""
    before = snapshot("a", "c", errors=(EntryError("x", "bad"), EntryError("y", "bad")), capacity=5, allocation=3)
    held = dict(before.by_name)
    changed, new = volume("c", capacity=9), volume("b")
    after = before.patched({"c": changed, "b": new, "a": None, "x": volume("x"), "z": EntryError("z", "worse")}, 7)
    assert list(after.by_name) == ["b", "c", "x"]
    assert after.by_name["c"] is changed
    assert {error.name for error in after.errors} == {"y", "z"}
    assert (after.generation, after.capacity, after.allocation, after.taken_at) == (7, 5, 3, before.taken_at)
    assert after.unsettled == {"b", "c", "x"}
    assert dict(before.by_name) == held
    assert before.generation == 0
    again = after.patched({"z": EntryError("z", "still"), "b": EntryError("b", "gone bad")}, 8)
    assert {error.name: error.message for error in again.errors} == {"y": "bad", "z": "still", "b": "gone bad"}
    assert list(again.by_name) == ["c", "x"]
    assert before.numbered(3).by_name == before.by_name


@given(
    st.lists(
        st.dictionaries(
            st.sampled_from([f"v{number}" for number in range(12)]),
            st.sampled_from(["volume", "error", "gone"]),
            min_size=1,
            max_size=3,
        ),
        max_size=90,
    ),
    st.integers(1, 90),
)
@settings(max_examples=40)
def test_patched_many_times(steps: list[dict[str, str]], every: int) -> None:
    """However many changes come before somebody looks, each snapshot is what its changes make of the first."""
    now = snapshot("v1", "v5")
    volumes = dict(now.by_name)
    unsettled: set[str] = set()
    errors: dict[str, EntryError] = {}
    looked_at: list[tuple[Snapshot, dict[str, VolumeInfo]]] = []
    for number, step in enumerate(steps):
        made = {"volume": lambda name, n=number: volume(name, capacity=n), "gone": lambda name: None}
        made["error"] = lambda name, n=number: EntryError(name, str(n))
        patch = {name: made[kind](name) for name, kind in step.items()}
        now = now.patched(patch, number)
        for name, item in patch.items():
            errors.pop(name, None)
            volumes.pop(name, None)
            unsettled.discard(name) if not isinstance(item, VolumeInfo) else unsettled.add(name)
            if isinstance(item, VolumeInfo):
                volumes[name] = item
            elif item is not None:
                errors[name] = item
        assert all(now.get(name) is volumes.get(name) for name in (*volumes, "v0", "v11"))
        if number % every == 0:
            looked_at.append((now, dict(volumes)))
        if number % (every + 3) == 0:
            assert list(now.by_name) == sorted(volumes)
    assert {name: now.by_name[name] for name in now.by_name} == volumes
    assert list(now.by_name) == sorted(volumes)
    assert now.unsettled >= unsettled
    assert {error.name: error for error in now.errors} == errors
    assert (now.numbered(7).volumes, now.numbered(7).generation) == (now.volumes, 7)
    for before, records in looked_at:
        assert dict(before.by_name) == records


@given(
    st.dictionaries(st.integers(0, 99), st.sampled_from(["same", "changed", "gone", "new"]), max_size=12),
    st.dictionaries(st.integers(0, 99), st.sampled_from(["changed", "gone", "error"]), max_size=4),
)
@settings(max_examples=60)
def test_sharing(whole: dict[int, str], single: dict[int, str]) -> None:
    """A snapshot that shares the memory of the one before it holds the same as it did, whatever has changed in between."""
    first = snapshot(*(f"v{number:02d}" for number in range(100)))
    patch: dict[str, VolumeInfo | EntryError | None] = {}
    for number, kind in single.items():
        name = f"v{number:02d}"
        other = EntryError(name, "bad") if kind == "error" else None
        patch[name] = volume(name, capacity=7) if kind == "changed" else other
    before = first.patched(patch, 2)
    found = {one.name: one for one in before.volumes}
    for number, kind in whole.items():
        name = f"v{number:02d}"
        if kind == "gone":
            found.pop(name, None)
        elif kind != "same":
            found[name + ("+" if kind == "new" else "")] = volume(name + ("+" if kind == "new" else ""), capacity=9)
    fresh = Snapshot({name: found[name] for name in sorted(found)}, taken_at=2.0, unsettled=frozenset({"v01"}))
    shared = fresh.sharing(before).prepared()
    assert shared.volumes == fresh.volumes
    assert (len(shared), dict(shared.by_name)) == (len(found), found)
    assert all(shared.get(name) is info for name, info in found.items())
    assert (shared.taken_at, shared.unsettled, shared.errors) == (2.0, fresh.unsettled, ())
    assert shared.changes_since(before) == fresh.changes_since(before)
    again = shared.patched({"v50": None, "v99+": volume("v99+")}, 3)
    assert len(again) == len(again.volumes) == len(again.by_name)


def test_what_is_shared() -> None:
    """A refresh that found little new frees nothing large: it keeps the records of the one before, and adds its own."""
    before = snapshot(*(f"v{number:05d}" for number in range(20_000))).prepared()
    whole = before.volumes
    again = Snapshot(dict(before.by_name), taken_at=2.0).sharing(before)
    assert again.volumes is whole
    changed = volume("v00007", capacity=9)
    once = Snapshot(dict(before.by_name) | {"v00007": changed}).sharing(again)
    assert Snapshot(dict(before.by_name)).sharing(once).volumes is whole
    assert once.volumes == (*whole[:7], changed, *whole[8:])


def test_records_in_any_order() -> None:
    """A snapshot tells its volumes in name order, even if its backend does not, and however many they are."""
    names = [f"v{number * 7919 % 20_011}" for number in range(20_011)]
    mixed = Snapshot({name: volume(name) for name in names})
    assert [one.name for one in mixed.volumes] == sorted(names)
    assert [one.name for one in mixed.patched({"v5+": volume("v5+")}, 1).volumes] == sorted([*names, "v5+"])


def test_changes() -> None:
    """What was added, changed and removed, by names in order; records that are equal, or the same, are unchanged."""
    before = snapshot("a", "b", "c", "d")
    after = Snapshot(
        {
            "b": before.by_name["b"],
            "c": copy.copy(before.by_name["c"]),
            "d": volume("d", capacity=9),
            "e": volume("e"),
            "f": volume("f"),
        }
    )
    assert after.changes_since(before) == Changes(("e", "f"), ("d",), ("a",), 2)
    assert after.changes_since(Snapshot.EMPTY) == Changes(added=("b", "c", "d", "e", "f"))
    assert Snapshot.EMPTY.changes_since(before) == Changes(removed=("a", "b", "c", "d"))
    assert not before.changes_since(before)
    assert after.changes_since(before)
    assert after.changes_since(before).without({"e", "a"}, 5) == Changes(("f",), ("d",), (), 3)


def test_reports() -> None:
    """The pools that failed are those with an error."""
    good, bad = RefreshOutcome(pool="a"), RefreshOutcome(pool="b", error=OSError(5, "broken"))
    report = RefreshReport((good, bad), 1.0)
    assert report.failed == (bad,)
    assert RefreshReport().failed == ()


def test_definitions_as_documents() -> None:
    """Volume and pool definitions are read from libvirt's XML and written as it."""
    wanted = astore.VolumeDef(name="a.qcow2", capacity=1 << 30, format="qcow2")
    again = astore.VolumeDef.from_xml(wanted.to_xml())
    assert (again.name, again.capacity, again.format) == ("a.qcow2", 1 << 30, "qcow2")


async def test_memory_of_a_kept_volume(tmp_path: Path) -> None:
    """What is kept of each of 3,000 qcow2 images, in the pool and in the bus, is 1 KiB at the most."""
    folder = tmp_path / "images"
    folder.mkdir()
    for n in range(3000):
        (folder / f"vm-{n:05d}.qcow2").write_bytes(qcow2((n + 1) << 20, "base.qcow2", "qcow2"))
    async with astore.Manager(tmp_path / "state") as manager:
        pool = await manager.define(
            f"<pool type='dir'><name>images</name><target><path>{folder}</path></target></pool>"
        )
        await pool.start(refresh=False)
        gc.collect()
        tracemalloc.start()
        try:
            before = tracemalloc.get_traced_memory()[0]
            await pool.refresh()
            assert len(pool.volumes) == 3000
            gc.collect()
            each = (tracemalloc.get_traced_memory()[0] - before) / 3000
        finally:
            tracemalloc.stop()
    assert each <= 1024, f"{each:.0f} bytes"
