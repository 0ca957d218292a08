"""Every code block of README, docs/ and the plugins' pages is executed, in order, one folder a page.

A block that begins with ``# file: PATH`` has the whole text of that file, one with ``# from: PATH`` a part of it: there
they are compared, and the file is executed by its own test (see EXECUTED). Commands that need a server, another machine or
an environment of their own are executed by tests that have one (see ELSEWHERE).
"""

from __future__ import annotations

import configparser
import json
import re
import shlex
import sys
import tomllib
from pathlib import Path

import pytest
from doc_blocks import FENCE, PAGES, QUOTED, ROOT, Block, blocks, commands, run

import astore
from astore.backend import BACKEND_ABILITIES
from astore.xml import secret_from_xml

EXECUTED = {
    "examples/backup_pool.py": "tests/test_documentation.py",
    "examples/from_proxmox.py": "tests/test_documentation.py",
    "examples/refresh_all.py": "tests/test_examples.py",
    "examples/watch_events.py": "tests/test_examples.py",
    "examples/astore-zip/": "tests/conformance/test_sample_backend.py",
    "examples/blocks/memory.py": "tests/conformance/test_block_memory.py",
    "examples/blocks/nbd.py": "tests/blocks/test_block_nbd.py",
    "examples/porting/": "tests/test_porting.py",
    "examples/fleet/": "tests/fleet/test_fleet_command.py",
}
ELSEWHERE = {
    ("README.md", "$ pip install "): "tests/test_packages.py",
    ("docs/start.md", "$ python3 -m venv "): "tests/test_packages.py",
    ("docs/fleet.md", "$ nats-server "): "tests/fleet/test_fleet_command.py",
    ("plugins/fleet/README.md", "$ nats-server "): "tests/fleet/test_fleet_command.py",
    ("docs/moving.md", "$ ssh "): "tests/test_documented_sessions.py",
    ("docs/pools.md", "$ astore pool discover "): "tests/test_documented_sessions.py",
}
"""The blocks of commands that another test executes: the page and how the block begins, and that test."""

SHOWN = {
    ("docs/architecture.md", "__main__"): "a drawing; test_architecture_draws_the_contract compares it",
    ("docs/at-boot.md", "# systemctl "): "for a booted systemd; tests/test_documented_sessions.py looks for its words",
    ("docs/cli.md", "$ astore watch"): "a picture of a terminal",
    ("docs/cli.md", "2026-01-31 "): "lines that a command writes",
    ("docs/concepts.md", "              start"): "a drawing",
    ("docs/secrets.md", "pool 'images': start: "): "an error; tests/secrets/test_context_secret.py compares its text",
}
"""The blocks that nothing executes: the page and how the block begins, and why."""

LINK = re.compile(r"\]\(([^)\s]+)\)")
PATH = re.compile(r"`([\w.-]+/[\w./-]*|[\w.-]+\.(?:py|md|toml))`")


def compare(block: Block, where: str) -> None:
    """A quotation is the file that it names, or part of it."""
    quoted = QUOTED.match(block.text)
    assert quoted is not None
    how, name = quoted.groups()
    assert any(name.startswith(known) for known in EXECUTED), f"{where}: no test executes {name}"
    text, source = block.text[quoted.end() :], (ROOT / name).read_text()
    assert text.strip(), f"{where}: nothing is quoted"
    if how == "file":
        assert text == source, f"{where}: this is not the text of {name}"
    else:
        assert f"\n{text}" in f"\n{source}", f"{where}: this is no part of {name}"


def execute(block: Block, folder: Path, where: str) -> None:
    """What the block's kind asks for."""
    kind, text, _ = block
    if QUOTED.match(text):
        compare(block, where)
    elif kind == "python":
        compile(text, where, "exec")
        run([sys.executable, "-W", "error", "-c", text], folder, where)
    elif kind == "console":
        assert commands(text), f"{where}: there is no command"
        for command in commands(text):
            if command.startswith("make "):
                run(["make", "-n", "-C", str(ROOT), *shlex.split(command)[1:]], folder, where)
            else:
                run(["bash", "-euo", "pipefail", "-c", command], folder, where)
    elif kind == "xml" and text.lstrip().startswith("<pool"):
        astore.PoolDef.from_xml(text)
    elif kind == "xml" and text.lstrip().startswith("<volume"):
        astore.VolumeDef.from_xml(text)
    elif kind == "xml" and text.lstrip().startswith("<secret"):
        secret_from_xml(text)
    elif kind == "json":
        json.loads(text)
    elif kind == "toml":
        tomllib.loads(text)
    elif kind == "ini":
        configparser.ConfigParser().read_string(text)  # tests/test_documented_sessions.py asks systemd
    else:
        assert kind == "text", f"{where}: nobody executes {kind or 'nameless'} blocks"


def begins(page: Path, block: Block, name: str, text: str) -> bool:
    """Whether this is the block of the page ``name`` that begins with ``text``."""
    return str(page.relative_to(ROOT)) == name and block.text.startswith(text)


@pytest.mark.qemu
@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_code_block_works(page: Path, tmp_path: Path) -> None:
    """Python runs, commands return 0, documents can be read, and quotations are what their files say."""
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    for block in blocks(page):
        if not any(begins(page, block, *key) for key in ELSEWHERE):
            execute(block, tmp_path, f"{page.name}:{block.line}")
    assert page.read_text().count("\n```") == 2 * len(blocks(page)), f"{page.name} has fences that nobody looks into"


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("python", "raise SystemExit(3)"),
        ("python", "import warnings; warnings.warn('old')"),
        ("python", "# file: examples/refresh_all.py\nimport asyncio\n"),
        ("python", "# from: examples/refresh_all.py\nasync def elsewhere() -> None:\n"),
        ("python", "# from: examples/refresh_all.py\n\n"),
        ("python", "# file: scripts/setup.sh\n" + (ROOT / "scripts" / "setup.sh").read_text()),
        ("console", "$ true\n$ false | true\n"),
        ("console", "there is no prompt\n"),
        ("console", "$ make no-such-target\n"),
        ("xml", "<pool type='dir'><name>a/b</name><target><path>/a</path></target></pool>"),
        ("toml", "a = "),
        ("json", "{,}"),
        ("ini", "User=astore\n"),
        ("sh", "true\n"),
        ("", "true\n"),
    ],
)
def test_broken_block_is_noticed(kind: str, text: str, tmp_path: Path) -> None:
    """A block that does not work, differs from its file, or would not be executed, fails."""
    with pytest.raises((AssertionError, ValueError, configparser.Error)):
        execute(Block(kind, text, 1), tmp_path, "here")


def test_every_block_is_executed_somewhere() -> None:
    """Each exception is one block; its test names the page. Text that is not executed is declared as such."""
    found = [(page, block) for page in PAGES for block in blocks(page)]
    for key, test in ELSEWHERE.items():
        assert [block.kind for page, block in found if begins(page, block, *key)] == ["console"], key
        assert Path(key[0]).name in (ROOT / test).read_text(), key
    shown = [[key for key in SHOWN if begins(page, block, *key)] for page, block in found if block.kind == "text"]
    assert sorted(shown) == sorted([key] for key in SHOWN)


def test_readme_has_the_whole_program() -> None:
    """Who reads README sees the program itself, of some 20 lines."""
    (program,) = [text for kind, text, _ in blocks(ROOT / "README.md") if kind == "python"]
    assert program.startswith("# file: examples/refresh_all.py\n")
    lines = [line for line in program.splitlines() if line.strip()]
    assert len(lines) <= 25


def test_quoted_files_are_executed() -> None:
    """Each file that may be quoted instead of executed is there, as is the test that executes it."""
    for name, test in EXECUTED.items():
        assert (ROOT / name).exists()
        assert (ROOT / test).is_file()


def test_backend_page_names_every_ability() -> None:
    """Whoever writes a backend is told of each ability that a backend may have."""
    page = (ROOT / "docs" / "writing-a-backend.md").read_text()
    for protocol in (*BACKEND_ABILITIES.values(), astore.backend.RefreshesVolume, astore.backend.CutsLoose):
        assert f"`{protocol.__name__}`" in page


def test_pages_link_to_what_there_is() -> None:
    """Every relative link of the pages leads to a file, and to a heading of it where it names one."""
    for page in PAGES:
        for target in LINK.findall(page.read_text()):
            if "://" in target:
                continue
            name, _, heading = target.partition("#")
            file = page.parent / name if name else page
            assert file.exists(), f"{page.name}: {target}"
            if heading:
                assert heading in headings(file), f"{page.name}: {target}"


def test_architecture_names_what_there_is() -> None:
    """Every file and folder that docs/architecture.md names is in the checkout."""
    named = set(PATH.findall((ROOT / "docs" / "architecture.md").read_text()))
    assert len(named) > 50
    assert sorted(name for name in named if not (ROOT / name).exists()) == []


def test_architecture_names_every_package() -> None:
    """docs/architecture.md has a line about each package and each module at the top of astore."""
    page = (ROOT / "docs" / "architecture.md").read_text()
    top = [*(ROOT / "astore").glob("[!_]*.py"), *(file.parent for file in (ROOT / "astore").glob("*/__init__.py"))]
    names = {f"astore/{one.name}" + "/" * one.is_dir() for one in top}
    assert sorted(name for name in names if f"\n| `{name}` |" not in page) == []


def test_architecture_draws_the_contract() -> None:
    """The floors in docs/architecture.md are the layers that import-linter checks."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (layers,) = [one["layers"] for one in contracts if one.get("containers") == ["astore"]]
    (drawing,) = [text for kind, text, _ in blocks(ROOT / "docs" / "architecture.md") if kind == "text"]
    assert [set(re.findall(r"\w+", floor)) for floor in drawing.splitlines()] == [
        set(re.findall(r"\w+", layer)) for layer in layers
    ]


def test_every_fault_has_its_test() -> None:
    """Each line of the table of faults in docs/concepts.md names tests, and they are there."""
    (table,) = re.findall(r"\n\| fault .*\n\|[-|]+\n((?:\|.*\n)+)", (ROOT / "docs" / "concepts.md").read_text())
    rows = [row.strip("|").split("|") for row in table.splitlines()]
    assert len(rows) > 20
    for row in rows:
        assert len(row) == 5, row
        named = re.findall(r"`(tests/[\w/]+\.py)::(?:\w+::)?(test_\w+)`", row[-1])
        assert named, row
        for file, test in named:
            assert re.search(rf"^ *(async )?def {test}\(", (ROOT / file).read_text(), re.MULTILINE), f"{file}::{test}"


def test_paths_are_told_from_other_code() -> None:
    """What counts as a path of the checkout, and what does not."""
    text = "`astore/a.py`, `beds/`, `pyproject.toml`, `.ci/run`, `Pool`, `pool.refresh()`, `life.check`, `/srv/x y`, a/b.py"
    assert PATH.findall(text) == ["astore/a.py", "beds/", "pyproject.toml", ".ci/run"]


def headings(page: Path) -> set[str]:
    """The anchors that GitHub makes of a page's headings."""
    found = re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-") for text in found}
