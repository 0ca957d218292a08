"""docs/porting-from-libvirt.md: its two programs print the same, and its tables leave nothing out."""

from __future__ import annotations

import inspect
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import astore
from beds.libvirt import LibvirtBed

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "porting-from-libvirt.md").read_text()
PROGRAMS = ROOT / "examples" / "porting"
DEBIANS_PYTHON = "/usr/bin/python3"
"""The one that has libvirt's bindings."""
TOLD = 10
"""How many lines the programs print, at least."""


def rows(heading: str) -> dict[str, str]:
    """The table below a heading, or with it at its head: what stands first in each line, and the rest of the line."""
    body = PAGE[PAGE.index(heading) + len(heading) :]
    lines = re.search(r"^\|-.*\n((?:\|.*\n)+)", body, re.MULTILINE)
    assert lines is not None
    return {cells[0]: cells[1] for line in lines[1].splitlines() if (cells := line.strip("|").split("|", 1))}


def words(text: str) -> list[str]:
    """What is set as code."""
    return re.findall(r"`([^`]+)`", text)


def run(python: str, program: str, *arguments: str) -> list[str]:
    argv = [python, "-W", "error", str(PROGRAMS / program), *arguments]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=200, check=False)
    assert (done.returncode, done.stderr) == (0, ""), program
    return done.stdout.splitlines()


@pytest.mark.root
@pytest.mark.libvirt
@pytest.mark.qemu
def test_both_programs_print_the_same(libvirt_bed: LibvirtBed, tmp_path: Path) -> None:
    """One after the other, in the same folder, of which nothing is left."""
    folder = tmp_path / "images"
    theirs = run(DEBIANS_PYTHON, "with_libvirt.py", libvirt_bed.uri, str(folder))
    assert not folder.exists()
    assert libvirt_bed.virsh("pool-list", "--all", "--name").split().count("porting") == 0
    ours = run(sys.executable, "with_astore.py", str(tmp_path / "state"), str(folder))
    assert not folder.exists()
    assert ours == theirs
    assert len(ours) >= TOLD
    assert f"porting: persistent True, {folder}" in ours
    assert "the copy is the same: True" in ours
    assert f"disk.qcow2: {2 << 30} bytes, qcow2, backed by {folder}/base.raw" in ours
    assert "refused: 90 False" in ours
    assert ours[-1] == "defined built started stopped deleted undefined"


def test_programs_are_of_one_size() -> None:
    """Some 60 lines each, so that they can be read side by side."""
    for program in PROGRAMS.glob("*.py"):
        assert f"# file: {program.relative_to(ROOT)}\n{program.read_text()}```" in PAGE
        assert len([line for line in program.read_text().splitlines() if line.strip()]) <= 80


@pytest.fixture(scope="module")
def bindings() -> dict[str, list[str]]:
    """The names that libvirt's bindings have for storage: of each class, and of the module."""
    program = (
        "import json, libvirt\n"
        "names = lambda kind: [n for n, v in vars(kind).items() if callable(v) and not n.startswith('_')]\n"
        "found = {c.__name__: names(c) for c in (libvirt.virConnect, libvirt.virStoragePool, libvirt.virStorageVol)}\n"
        "found['virConnect'] = [n for n in found['virConnect'] if 'torage' in n]\n"
        "print(json.dumps({**found, '': list(vars(libvirt))}))"
    )
    done = subprocess.run([DEBIANS_PYTHON, "-c", program], capture_output=True, check=True, timeout=200)
    names: dict[str, list[str]] = json.loads(done.stdout)
    return names


@pytest.mark.libvirt
@pytest.mark.parametrize("kind", ["virConnect", "virStoragePool", "virStorageVol"])
def test_every_call_has_its_row(kind: str, bindings: dict[str, list[str]]) -> None:
    """Each method of libvirt's bindings is in the table, and no other."""
    listed = [name for left in rows(f"| `{kind}` |") for name in words(left)]
    assert sorted(listed) == sorted(set(bindings[kind]) - {"c_pointer"})


@pytest.mark.parametrize("kind", ["virConnect", "virStoragePool", "virStorageVol"])
def test_what_calls_become_is_there(kind: str) -> None:
    """The names on astore's side exist, and those marked (a) are the ones to await."""
    owners = {"manager": astore.Manager, "pool": astore.Pool, "volume": astore.Volume}
    for right in rows(f"| `{kind}` |").values():
        cell = right.split("|")[0]
        for name in words(cell):
            owner, _, attribute = name.partition(".")
            member = inspect.getattr_static(owners[owner], attribute)
            assert inspect.iscoroutinefunction(member) == ("(a)" in cell), name
        for name in re.findall(r"`((?:manager|pool)\.\w+)`", right):
            assert hasattr(owners[name.partition(".")[0]], name.partition(".")[2]), name


@pytest.mark.libvirt
def test_every_flag_and_event_has_its_row(bindings: dict[str, list[str]]) -> None:
    """All of libvirt's filters and events, by astore's arguments and classes."""
    for heading, prefix in (
        ("| `VIR_CONNECT_LIST_STORAGE_POOLS_` |", "VIR_CONNECT_LIST_STORAGE_POOLS_"),
        ("| `VIR_STORAGE_POOL_EVENT_` |", "VIR_STORAGE_POOL_EVENT_"),
    ):
        listed = {name for left in rows(heading) for name in words(left)}
        known = {name.removeprefix(prefix) for name in bindings[""] if name.startswith(prefix)}
        assert listed == known - {"ID_LIFECYCLE", "ID_LAST"}
    parameters = inspect.signature(astore.Manager.pools).parameters
    for right in rows("| `VIR_CONNECT_LIST_STORAGE_POOLS_` |").values():
        assert {word.partition("=")[0] for word in words(right)} <= parameters.keys()
    for right in rows("| `VIR_STORAGE_POOL_EVENT_` |").values():
        for name in words(right):
            assert issubclass(getattr(astore, name), astore.Event)


def test_every_error_has_its_row() -> None:
    """The classes have the numbers that stand beside them."""
    seen = set()
    for left, right in rows("| `VIR_ERR_` |").items():
        numbers, cell = right.split("|")[:2]
        codes = [astore.LibvirtCode[name] for name in words(left)]
        assert [int(number) for number in numbers.split(",")] == codes
        classes = [getattr(astore, name) for name in words(cell) if name.endswith("Error") and hasattr(astore, name)]
        assert classes
        for error in classes:
            assert error.libvirt_code is codes[0]
        seen.update(codes)
    assert seen == set(astore.LibvirtCode)
