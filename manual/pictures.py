"""The pictures of the site, as SVG: the floors that import-linter checks, and the terminal of the demonstration."""

from __future__ import annotations

import fcntl
import html
import io
import os
import pty
import re
import struct
import sys
import termios
import tomllib
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parent.parent

COLUMNS = 110
"""The width of the terminal, in characters."""

WIDTH, FLOOR, ROOM, GAP = 760, 56, 36, 10
"""The width of the drawing, the heights of a floor and a room, and the space between rooms, in pixels."""


def floors() -> list[list[str]]:
    """Return the rooms of each floor, the upper floors first, as import-linter's contract has them."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (layers,) = [one["layers"] for one in contracts if one.get("containers") == ["astore"]]
    return [[room.strip() for room in layer.split("|")] for layer in layers]


def draw_floors() -> str:
    """Return a drawing of the floors."""
    rows = floors()
    height = FLOOR * len(rows) + 2 * GAP
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" font-size="14">',
        "<title>The packages of astore by floors: imports run down</title>",
        f'<rect width="{WIDTH}" height="{height}" rx="8" fill="#f7f9fc"/>',
        '<defs><marker id="tip" viewBox="0 0 10 10" refX="5" refY="5" markerWidth="8" markerHeight="8" orient="auto">',
        '<path d="M0 0 L10 5 L0 10 z" fill="#5b7083"/></marker></defs>',
        f'<path d="M30 {GAP + 10} V{height - GAP - 10}" stroke="#5b7083" stroke-width="2" marker-end="url(#tip)"/>',
        f'<text x="20" y="{height // 2}" transform="rotate(-90 20 {height // 2})" text-anchor="middle" fill="#5b7083">',
        "imports run down</text>",
    ]
    for number, rooms in enumerate(rows):
        parts += _floor(rooms, GAP + number * FLOOR)
    return "\n".join([*parts, "</svg>\n"])


def _floor(rooms: Sequence[str], top: int) -> list[str]:
    """Draw one floor. All its rooms have the same width."""
    left = 50
    width = (WIDTH - left - GAP - GAP * (len(rooms) - 1)) / len(rooms)
    parts = [f'<path d="M{left} {top + FLOOR - 5} H{WIDTH - GAP}" stroke="#d5dde6"/>'] if top > GAP else []
    for number, room in enumerate(rooms):
        x, y = left + number * (width + GAP), top + (FLOOR - ROOM) / 2 - 5
        parts.append(
            f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{ROOM}" rx="5" fill="#ffffff" stroke="#3f6ea3"/>'
            f'<text x="{x + width / 2:.1f}" y="{y + ROOM / 2 + 5:.1f}" text-anchor="middle" fill="#1d2b3a">'
            f"{html.escape(room)}</text>"
        )
    return parts


def draw_terminal(argv: Sequence[str], title: str) -> str:
    """Run a program on a terminal, and return a picture of all that it printed.

    :param argv: the program and its arguments. :param title: what the window's bar says.
    :raises RuntimeError: it failed.
    """
    from rich.console import Console
    from rich.text import Text

    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    console.print(Text.from_ansi(last_lines(run_on_terminal(argv))))
    # rich's template asks a server for its font; every system has some monospaced one
    picture = re.sub(r"@font-face \{.*?\}\s*", "", console.export_svg(title=title), flags=re.DOTALL)
    return picture.replace("Fira Code, monospace", "monospace")


def demo_terminal() -> str:
    """Return a picture of ``astore demo``."""
    argv = [sys.executable, "-m", "astore", "demo", "--pools", "4", "--images", "20"]
    return draw_terminal(argv, "astore demo --pools 4 --images 20")


def run_on_terminal(argv: Sequence[str]) -> str:
    """Run a program on a terminal of COLUMNS characters, and return what it wrote. :raises RuntimeError: it failed."""
    pid, terminal = pty.fork()
    if pid == 0:
        try:
            fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", 40, COLUMNS, 0, 0))
            environment = {**os.environ, "TERM": "xterm-256color", "LC_ALL": "C.UTF-8"}
            for name in ("NO_COLOR", "COLUMNS", "LINES"):
                environment.pop(name, None)
            os.execvpe(argv[0], list(argv), environment)
        finally:
            os._exit(127)
    written = bytearray()
    with open(terminal, "rb", buffering=0) as stream:
        try:
            while chunk := stream.read(65536):
                written += chunk
        except OSError:  # EIO: the program has ended
            pass
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if code:
        raise RuntimeError(f"{' '.join(argv)} ended with {code}:\n{written.decode(errors='replace')}")
    return written.decode()


def last_lines(text: str) -> str:
    """Return what a terminal shows in the end: lines that were overwritten, such as progress bars, are left out."""
    shown = []
    for line in text.replace("\r\n", "\n").split("\n"):
        last = line.rstrip("\r").rpartition("\r")[2]
        shown.append(re.sub(r"\x1b\[[0-9;?]*[A-LN-Za-ln-z]", "", last))
    return "\n".join(shown).strip("\n")
