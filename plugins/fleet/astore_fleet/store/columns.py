"""Records of volumes as columns: small, and quick to make records of again.

A column has the values of one field. If a field has few different values, such as a format, they are written once, with a
byte for each record: the records that are read share them. Keys that are a folder and the name are not written at all.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import repeat
from typing import Any

import msgspec

from astore.model import VolumeInfo

FEW = 256
"""The most different values of a column that are written once."""


class Column(msgspec.Struct, frozen=True, array_like=True):
    """The values of a field.

    :ivar values: a value for each record; or the different ones; or, if all are the same, that one. As msgpack.
    :ivar which: with different values, the number of each record's. :ivar before: what precedes the name in each value.
    """

    values: msgspec.Raw = msgspec.Raw(b"\x90")
    which: bytes = b""
    before: str | None = None


Columns = dict[str, Column]
"""The columns of records by field. A field that is not there has its default; fields that are not known are passed over."""

_FIELDS = {field.name: field for field in msgspec.structs.fields(VolumeInfo)}
_DECODERS = {name: msgspec.msgpack.Decoder(list[field.type]) for name, field in _FIELDS.items()}  # type: ignore[name-defined]
_encode = msgspec.msgpack.Encoder().encode


def columns_of(records: Sequence[VolumeInfo]) -> Columns:
    """Return the columns of records. Blocks for some 5 µs a record."""
    rows = [msgspec.structs.astuple(one) for one in records]
    values = dict(zip(_FIELDS, zip(*rows, strict=True), strict=True)) if rows else {"name": ()}
    found: Columns = {}
    for field, column in values.items():
        if field == "path" and column == values["key"]:
            continue
        before = _before(column, values["name"]) if field in ("key", "path") else None
        found[field] = _column(column) if before is None else Column(before=before)
    found["name"] = Column(msgspec.Raw(_encode(values["name"])))  # it says how many there are
    return found


def _column(values: Sequence[Any]) -> Column:
    different = dict.fromkeys(values[: 2 * FEW])
    if len(different) <= FEW:
        different = dict.fromkeys(values)
    if len(different) > FEW or len(different) == len(values) > 1:
        return Column(msgspec.Raw(_encode(values)))
    numbers = {value: number for number, value in enumerate(different)}
    which = bytes(map(numbers.__getitem__, values)) if len(different) > 1 else b""
    return Column(msgspec.Raw(_encode(list(different))), which)


def _before(values: Sequence[str], names: Sequence[str]) -> str | None:
    """Return what precedes the name in each value; None: not all are that and the name."""
    if not values or not values[0].endswith(names[0]):
        return None
    before = values[0].removesuffix(names[0])
    same = all(value == before + name for value, name in zip(values, names, strict=True))
    return before if same else None


def records_of(columns: Columns) -> list[VolumeInfo]:
    """Return the records again. Blocks for some 1 µs a record. :raises Exception: they are damaged."""
    names = _DECODERS["name"].decode(columns["name"].values)
    made: dict[str, Iterable[Any]] = {}
    for field, described in _FIELDS.items():
        if field == "path" and field not in columns:
            made[field] = made["key"]
        elif (column := columns.get(field)) is None:
            made[field] = repeat(described.default, len(names))
        elif column.before is not None:
            made[field] = [column.before + name for name in names]
        else:
            made[field] = _values(column, _DECODERS[field].decode(column.values), len(names))
    if "path" in columns:  # what is equal is one object
        pairs = zip(made["key"], made["path"], strict=True)
        made["path"] = [key if key == path else path for key, path in pairs]
    return list(map(VolumeInfo, *made.values()))


def _values(column: Column, values: list[Any], count: int) -> Sequence[Any]:
    if column.which:
        return [values[number] for number in column.which]
    return values if len(values) == count else values * count
