"""Every code block of README and docs/ is executed, in order, one folder a page."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

import astore

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted(ROOT.glob("plugins/*/README.md"))]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    kind: str
    text: str
    line: int


def blocks(page: Path) -> list[Block]:
    text = page.read_text()
    return [Block(m[1], m[2], text.count("\n", 0, m.start()) + 1) for m in FENCE.finditer(text)]


def commands(text: str) -> list[str]:
    """The commands of a console block: lines after `$ `, with their `> ` continuations."""
    found: list[str] = []
    for line in text.splitlines():
        if line.startswith("$ "):
            found.append(line[2:])
        elif line.startswith("> "):
            found[-1] += "\n" + line[2:]
    return found


def run(argv: list[str], folder: Path, where: str) -> str:
    environment = {
        **os.environ,
        "ASTORE_STATE_DIR": str(folder / "astore-state"),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": "",
        "TERM": "dumb",
    }
    done = subprocess.run(
        argv,
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        stdin=subprocess.DEVNULL,
        check=False,
    )
    assert done.returncode == 0, f"{where}: {argv[-1]}\n{done.stdout}{done.stderr}"
    return done.stdout


@pytest.mark.qemu
@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_code_block_works(page: Path, tmp_path: Path) -> None:
    """Python runs, commands return 0, XML is accepted, and excerpts equal the file they name."""
    for kind, text, line in blocks(page):
        where = f"{page.name}:{line}"
        if kind == "python" and text.startswith("# file: "):
            name, _, excerpt = text.removeprefix("# file: ").partition("\n")
            source = (ROOT / name.strip()).read_text()
            assert excerpt.strip() in source, f"{where}: differs from {name}"
        elif kind == "python":
            compile(text, where, "exec")
            run([sys.executable, "-W", "error", "-c", text], tmp_path, where)
        elif kind == "console":
            for command in commands(text):
                if command.startswith("make "):
                    run(["make", "-n", "-C", str(ROOT), *command.split()[1:]], tmp_path, where)
                else:
                    run(["bash", "-euc", command], tmp_path, where)
        elif kind == "xml" and text.lstrip().startswith("<pool"):
            astore.PoolDef.from_xml(text)
        else:
            assert kind in {"text", "json", "xml", "toml", ""}, f"{where}: nobody executes {kind} blocks"


def test_pages_link_to_what_there_is() -> None:
    """Every relative link of the pages leads to a file."""
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name}: {target}"
