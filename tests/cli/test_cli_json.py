"""docs/cli-json.md says of ``--json`` what the command does: shapes, commands, events, exit codes."""

from __future__ import annotations

import enum
import re
import types
import typing
from collections.abc import Iterator
from pathlib import Path

import click
import msgspec
import pytest

from astore import events as kinds
from astore.cli import shapes
from astore.cli.app import VIRSH, app
from astore.cli.exits import Exit
from astore.errors import PoolNotFoundError
from astore.model import PoolState, VolumeType

PAGE = (Path(__file__).parents[2] / "docs" / "cli-json.md").read_text()
SECTIONS = {
    match[1]: match[2] for match in re.finditer(r"^###? ([^\n]+)\n(.*?)(?=^##|\Z)", PAGE, re.MULTILINE | re.DOTALL)
}
SHAPES = {
    name: kind
    for name, kind in vars(shapes).items()
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct) and kind.__module__ == shapes.__name__
}
WORDS = {str: "string", int: "integer", float: "number", bool: "bool"}


def rows(section: str, columns: int) -> list[tuple[str, ...]]:
    """The rows of the tables with so many columns, without their headings and the backquotes around names."""
    found = []
    for line in SECTIONS[section].splitlines():
        cells = tuple(cell.strip() for cell in line.strip("|").split("|"))
        if line.startswith("|") and len(cells) == columns and not set(cells[0]) <= {"-"} | set("|"):
            found.append(cells)
        elif line.startswith("| |"):
            found.append(("", *cells[1:]))
    return [row for row in found if row[0] not in {"field", "command", "event", "code"}]


def in_words(annotation: object) -> str:
    """A field's type as the page writes it."""
    if isinstance(annotation, types.UnionType):
        inner, nothing = typing.get_args(annotation)
        assert nothing is type(None)
        return f"{in_words(inner)} or null"
    if typing.get_origin(annotation) is tuple:
        return f"list of {in_words(typing.get_args(annotation)[0])}"
    assert isinstance(annotation, type)
    if issubclass(annotation, enum.StrEnum):
        return "string"
    if issubclass(annotation, msgspec.Struct):
        return f"[{annotation.__name__}](#{annotation.__name__.lower()})"
    return WORDS[annotation]


@pytest.mark.parametrize("name", SHAPES)
def test_every_shape_is_documented(name: str) -> None:
    """Its fields, in order, with their types."""
    hints = typing.get_type_hints(SHAPES[name])
    written = [(field.strip("`"), kind) for field, kind, _ in rows(name, 3)]
    assert written == [(field, in_words(hints[field])) for field in SHAPES[name].__struct_fields__]


def test_no_shape_is_documented_that_is_none() -> None:
    """Each section about a shape has one."""
    assert set(re.findall(r"^### (.+)$", PAGE, re.MULTILINE)) == set(SHAPES)


@pytest.mark.parametrize(("section", "field", "kind"), [("Pool", "state", PoolState), ("Volume", "type", VolumeType)])
def test_every_value_is_documented(section: str, field: str, kind: type[enum.StrEnum]) -> None:
    """Those of states and types, too."""
    (meaning,) = [meaning for name, _, meaning in rows(section, 3) if name == f"`{field}`"]
    assert set(re.findall(r"`(\w+)`", meaning)) == {member.value for member in kind}


def commands(group: click.Group, prefix: str = "") -> Iterator[str]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if isinstance(command, click.Group):
            yield from commands(command, f"{prefix}{name} ")
        else:
            yield f"{prefix}{name}"


def test_every_command_is_documented() -> None:
    """By astore's name and by virsh's, with a document that there is."""
    table = rows("What each command prints", 3)
    ours = {name.strip("`").partition(" --")[0] for name, _, _ in table if name}
    assert ours == {f"astore {name}" for name in commands(app) if name != "demo"}
    assert {name for _, cell, _ in table for name in re.findall(r"`([\w-]+)`", cell)} == set(VIRSH)
    documents = {anchor for _, _, cell in table for anchor in re.findall(r"#(\w+)", cell)}
    assert documents <= {name.lower() for name in SHAPES} | {"events"}


def concrete(kind: type[kinds.Event]) -> Iterator[type[kinds.Event]]:
    for child in kind.__subclasses__():
        yield from concrete(child)
        if not child.__subclasses__():
            yield child


def test_every_event_is_documented() -> None:
    """With its fields; those that all have, and those that all about a pool have, are said once."""
    common = {field.strip("`") for field, _, _ in rows("Events", 3)}
    assert common == {"event", *kinds.Event.__struct_fields__}
    pool = set(kinds.PoolEvent.__struct_fields__)
    written = {
        name.strip("`"): set(re.findall(r"`(\w+)`", re.sub(r"\(.*?\)+", "", fields)))
        for name, fields in rows("Events", 2)
    }
    assert written == {
        kind.__name__: set(kind.__struct_fields__)
        - (pool if issubclass(kind, kinds.PoolEvent) else set(kinds.Event.__struct_fields__))
        for kind in concrete(kinds.Event)
        if kind.__module__ == kinds.__name__
    }
    assert [name for name in written if "Pool" not in name and "Volume" not in name] == list(written)[-3:]


def test_every_exit_code_is_documented() -> None:
    """With its name."""
    assert {(int(code), name) for code, name, _ in rows("Exit codes", 3)} == {(code.value, code.name) for code in Exit}


def test_failure_has_libvirts_code() -> None:
    """Programs that knew libvirt's numbers find them; what is no error of astore has none."""
    found = shapes.failure(PoolNotFoundError("no pool 'x'"))
    assert found is not None
    assert (found.type, found.message, found.errno, found.libvirt_code) == (
        "PoolNotFoundError",
        "no pool 'x'",
        None,
        49,
    )
    other = shapes.failure(PermissionError(13, "no"), "said so")
    assert other == shapes.Failure("PermissionError", "said so", 13, None)
