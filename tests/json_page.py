"""docs/cli-json.md, read by the tests of ``--json``: its tables, and a class for each document that it describes.

A command's document must have the fields of its table exactly, with values of their types: see ``Ran.shape`` in tests/cli.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

import msgspec

PAGE = (Path(__file__).parents[1] / "docs" / "cli-json.md").read_text()
SECTIONS = {
    match[1]: match[2] for match in re.finditer(r"^###? ([^\n]+)\n(.*?)(?=^##|\Z)", PAGE, re.MULTILINE | re.DOTALL)
}
SHAPES = re.findall(r"^### (.+)$", PAGE, re.MULTILINE)
TYPES = {"string": str, "integer": int, "number": float, "bool": bool}


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


def kind(words: str) -> Any:
    """The type that the page writes so."""
    if words.endswith(" or null"):
        return kind(words.removesuffix(" or null")) | None
    if words.startswith("list of "):
        return tuple[kind(words.removeprefix("list of ")), ...]
    link = re.fullmatch(r"\[(\w+)\]\(#(\w+)\)", words)
    assert link is None or link[1].lower() == link[2]
    return TYPES[words] if link is None else shape(link[1])


@cache
def shape(name: str) -> type[msgspec.Struct]:
    """The class of a document."""
    fields = [(field.strip("`"), kind(words)) for field, words, _ in rows(name, 3)]
    return msgspec.defstruct(name, fields, frozen=True)


def __getattr__(name: str) -> type[msgspec.Struct]:
    if name not in SHAPES:
        raise AttributeError(name)
    return shape(name)
