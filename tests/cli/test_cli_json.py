"""docs/cli-json.md says of ``--json`` what the command does: commands, values, events, exit codes.

The tests of the commands compare its shapes with what is printed.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Iterator

import click
import pytest
from json_page import SHAPES, rows

from astore import events as kinds
from astore.cli.app import app
from astore.cli.documents import failure
from astore.cli.exits import Exit
from astore.cli.virsh import VERBS
from astore.errors import PoolNotFoundError
from astore.model import PoolState, VolumeType


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
    """By astore's name and by virsh's, with a document that there is; those of a fleet are in docs/fleet.md."""
    table = rows("What each command prints", 3)
    ours = {name.strip("`").partition(" --")[0] for name, _, _ in table if name}
    others = ("demo", "help", "shell", "fleet")
    assert ours == {f"astore {name}" for name in commands(app) if name.partition(" ")[0] not in others}
    assert {name for _, cell, _ in table for name in re.findall(r"`([\w-]+)`", cell)} == set(VERBS)
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
    assert failure(PoolNotFoundError("no pool 'x'")) == {
        "type": "PoolNotFoundError",
        "message": "no pool 'x': `astore pool list --all` shows those there are",
        "errno": None,
        "libvirt_code": 49,
    }
    other = failure(PermissionError(13, "no"))
    assert other == {"type": "PermissionError", "message": "no", "errno": 13, "libvirt_code": None}
