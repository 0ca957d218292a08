"""Check that the fields of a record have their types.

Constructors do not check: records are made by the ten thousand. A record that a caller made is checked once, when it is used.
"""

from __future__ import annotations

import os
from enum import Enum
from functools import cache
from types import NoneType
from typing import TYPE_CHECKING, Any, NamedTuple, get_args, get_origin

import msgspec

if TYPE_CHECKING:
    from astore.errors import DefinitionError

_SIZES = frozenset({"capacity", "allocation", "cluster_size"})
_PATHS = frozenset({"path", "directory"})
_UNSHOWN = frozenset({"mount_options", "config_options"})
"""Fields whose values no message shows: they may have passwords."""


class _Field(NamedTuple):
    """A field. ``optional``: it may be None."""

    name: str
    kind: Any
    optional: bool


def check_fields(record: msgspec.Struct, *, paths: bool = False) -> None:
    """Check the fields of a record, and those of the records in it.

    :param paths: a path may be a :class:`pathlib.Path`, too.
    :raises DefinitionError: a field has another type; the message names it.
    """
    _check_record(record, "", paths)


def _check_record(record: msgspec.Struct, within: str, paths: bool) -> None:
    for field in _fields(type(record)):
        value = getattr(record, field.name)
        if value is not None or not field.optional:
            _check(value, field.kind, within + field.name, paths)


@cache
def _fields(kind: type[msgspec.Struct]) -> tuple[_Field, ...]:
    found = []
    for field in msgspec.structs.fields(kind):
        choices = (field.type,) if get_origin(field.type) is tuple else get_args(field.type) or (field.type,)
        (wanted,) = (one for one in choices if one is not NoneType)
        found.append(_Field(field.name, wanted, NoneType in choices))
    return tuple(found)


def _check(value: object, kind: Any, name: str, paths: bool) -> None:
    """Check a value, and what is in it. :raises DefinitionError: it has another type."""
    if get_origin(kind) is tuple:
        first, *others = get_args(kind)
        if not isinstance(value, (tuple, list)) or (others != [...] and len(value) != 1 + len(others)):
            raise _wrong(value, kind, name)
        for part in value:  # all parts of a tuple have one type here
            _check(part, first, name, paths)
    elif not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        if not (paths and kind is str and name.rpartition(".")[2] in _PATHS and isinstance(value, os.PathLike)):
            raise _wrong(value, kind, name)
    elif isinstance(value, msgspec.Struct):
        _check_record(value, f"{name}.", paths)


def _wrong(value: object, kind: Any, name: str) -> DefinitionError:
    from astore.errors import DefinitionError

    last = name.rpartition(".")[2]
    shown = repr(value)
    if last in _UNSHOWN or len(shown) > 64 or isinstance(value, msgspec.Struct):
        shown = f"of the type {type(value).__name__}"
    return DefinitionError(f"{name} is {_words(kind, last)}, not {shown}")


def _words(kind: Any, name: str) -> str:
    """Return what a field takes, for a message."""
    if get_origin(kind) is tuple:
        return "a tuple" if ... in get_args(kind) else "a tuple of pairs"
    if kind is int:
        return "a number of bytes" if name in _SIZES else "a whole number"
    if issubclass(kind, (Enum, msgspec.Struct)):
        return f"an astore.{kind.__name__}"
    return {str: "text", bool: "True or False"}[kind]
