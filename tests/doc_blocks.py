"""The pages of the documentation, the code blocks in them, and the environment in which a reader's commands are run."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
PAGES = [
    *sorted(ROOT.glob("*.md")),
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted(ROOT.glob("plugins/*/README.md")),
    *sorted(ROOT.glob("examples/*/README.md")),
]
FENCE = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
QUOTED = re.compile(r"# (file|from): (\S+)\n")


class Block(NamedTuple):
    kind: str
    text: str
    line: int


def blocks(page: Path) -> list[Block]:
    text = page.read_text()
    return [Block(m[1].strip(), m[2], text.count("\n", 0, m.start()) + 1) for m in FENCE.finditer(text)]


def write_examples(folder: Path) -> list[Path]:
    """Write the Python blocks that are no quotations as files, named by page and line."""
    found = []
    for page in PAGES:
        for kind, text, line in blocks(page):
            if kind == "python" and not QUOTED.match(text):
                name = re.sub(r"\W+", "_", str(page.relative_to(ROOT).with_suffix(""))).lower()
                found.append(folder / f"{name}_{line}.py")
                found[-1].write_text(text)
    return found


def commands(text: str) -> list[str]:
    """The commands of a console block: lines after `$ `, with their `> ` continuations."""
    found: list[str] = []
    for line in text.splitlines():
        if line.startswith("$ "):
            found.append(line[2:])
        elif line.startswith("> "):
            found[-1] += "\n" + line[2:]
    return found


def run(argv: list[str], folder: Path, where: str, **more: str) -> str:
    """Run a program in a page's folder, where pip installs into the folder ``packages``, from this repository alone.

    :param where: what a failure is told with. :param more: more of its environment.
    :return: its standard output.
    """
    environment = {
        **os.environ,
        "ASTORE_STATE_DIR": str(folder / "astore-state"),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(folder / "packages"),
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTEST_ADDOPTS": "-p no:cacheprovider",
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "PIP_NO_INDEX": "1",
        "PIP_NO_DEPS": "1",
        "PIP_NO_BUILD_ISOLATION": "0",  # pip reads it backwards: this says --no-build-isolation
        "PIP_TARGET": str(folder / "packages"),
        "TERM": "dumb",
        **more,
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
