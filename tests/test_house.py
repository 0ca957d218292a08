"""The rules of the house: no module reaches into another object, and files and functions fit on what people read at once.

Which way imports run is checked by import-linter; its contracts are in pyproject.toml.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

LONGEST_FILE = 400
LONGEST_FUNCTION = 50
MOST_REACHES = 10

REACHES: frozenset[str] = frozenset()
"""Uses of another object's private names that are meant: "path: expression"."""

LONG_FILES = frozenset({"astore/backend.py"})
"""The contract with a backend is one page, however long."""

OWN = {"self", "cls", "os", "sys"}
"""Names whose private attributes are one's own, or have no other name (os._exit, sys._getframe)."""


@cache
def sources() -> dict[str, ast.Module]:
    """The syntax trees of the core and of the plugins, by path."""
    files = [*ROOT.glob("astore/**/*.py"), *ROOT.glob("plugins/*/astore_*/**/*.py")]
    assert len(files) > 100
    return {str(file.relative_to(ROOT)): ast.parse(file.read_text()) for file in sorted(files)}


def reaches(tree: ast.Module) -> Iterator[str]:
    """The uses of private names of other objects, and of other modules."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and re.match("_[a-z]", node.attr):
            value = node.value
            own = isinstance(value, ast.Name) and value.id in OWN
            inherited = isinstance(value, ast.Call) and ast.unparse(value.func) == "super"
            if not own and not inherited:
                yield ast.unparse(node)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"import {node.module}.{name.name}" for name in node.names if re.match("_[a-z]", name.name))


def casts_of_self(tree: ast.Module) -> Iterator[str]:
    """The calls of ``cast`` by which an object says that it is something else."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("cast", "typing.cast"):
            yield from (ast.unparse(node) for value in node.args[1:] if ast.unparse(value) == "self")


def long_functions(tree: ast.Module) -> Iterator[str]:
    """The functions that have too many lines, from their ``def`` on."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            if node.end_lineno - node.lineno + 1 > LONGEST_FUNCTION:
                yield node.name


def test_nobody_uses_another_objects_private_names() -> None:
    """An object's private names are used by its own methods only; exceptions are declared, and few."""
    found = {f"{path}: {reach}" for path, tree in sources().items() for reach in reaches(tree)}
    assert found == REACHES
    assert len(REACHES) <= MOST_REACHES


def test_no_object_says_that_it_is_another() -> None:
    """No class is sawn into parts that have to cast themselves to the whole."""
    assert [f"{path}: {call}" for path, tree in sources().items() for call in casts_of_self(tree)] == []


def test_files_can_be_read_in_one_sitting() -> None:
    """No file is longer than it may be."""
    found = {path for path in sources() if len((ROOT / path).read_text().splitlines()) > LONGEST_FILE}
    assert found == LONG_FILES


def test_functions_fit_on_a_screen() -> None:
    """No function is longer than it may be."""
    assert [f"{path}: {name}" for path, tree in sources().items() for name in long_functions(tree)] == []


def test_definitions_know_xml_only_when_they_are_asked_for_it() -> None:
    """The one import that runs upward runs when it is called, not when its module is imported."""
    tree = sources()["astore/model/definitions.py"]
    upward = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("astore.xml")
    ]
    called = [
        node
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef)
        for node in ast.walk(function)
        if isinstance(node, ast.ImportFrom)
    ]
    assert upward
    assert all(node in called for node in upward)


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("pool._lane", ["pool._lane"]),
        ("self.pool._lane", ["self.pool._lane"]),
        ("self._pool._lane.limit", ["self._pool._lane"]),
        ("type(self)._made", ["type(self)._made"]),
        ("found._replace(size=0)", ["found._replace"]),
        ("from a.b import _c, d", ["import a.b._c"]),
        ("self._lane; cls._made; super()._begin(); os._exit(1); a.__class__; a.b_", []),
    ],
)
def test_reaches_are_found(code: str, found: list[str]) -> None:
    """What counts as reaching into another object, and what does not."""
    assert list(reaches(ast.parse(code))) == found


def test_casts_and_long_functions_are_found() -> None:
    """What the other two rules look for."""
    assert list(casts_of_self(ast.parse('cast("Pool", self).stop(); cast(int, other)'))) == ["cast('Pool', self)"]
    short, long = ("def f():\n" + "    pass\n" * lines for lines in (LONGEST_FUNCTION - 1, LONGEST_FUNCTION))
    assert (list(long_functions(ast.parse(short))), list(long_functions(ast.parse(long)))) == ([], ["f"])
