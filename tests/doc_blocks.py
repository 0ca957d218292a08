"""The pages of the documentation, and the code blocks in them. As a program: write the Python ones into a folder."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
PAGES = [
    ROOT / "README.md",
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
                found.append(folder / f"{page.stem.replace('-', '_').lower()}_{line}.py")
                found[-1].write_text(text)
    return found


if __name__ == "__main__":
    write_examples(Path(sys.argv[1]))
