"""What people see: tables, sizes and times; coloured on a terminal, plain columns anywhere else.

Names come from strangers. On a terminal, whatever it would not show as a character is written as an escape, and nothing is ever
taken for markup.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Literal, NamedTuple, TextIO

import msgspec

from astore.cli.exits import CliError, Exit
from astore.errors import printable

if TYPE_CHECKING:
    from rich.console import Console

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")
BAR_WIDTH = 8
FOLDED_WIDTH = 10
"""Characters to which a column may be folded where the terminal is narrow."""

STATE_STYLES = {
    "running": "green",
    "degraded": "yellow",
    "inaccessible": "red",
    "damaged": "red",
    "building": "cyan",
    "inactive": "dim",
    "failed": "red",
    "ready": "green",
}
"""Colours by the word for a state."""


class Cell(NamedTuple):
    """A cell of a table, with rich's name of its style."""

    text: str
    style: str = ""


class Column(NamedTuple):
    """A column's heading, whether its cells stand at the right, and whether they may be folded into several lines."""

    title: str
    right: bool = False
    folds: bool = False


class Answer(NamedTuple):
    """What a command has to say when it is done, for programs and for people.

    :ivar document: the shape for ``--json``, or what makes it if it is wanted. :ivar show: writes the same for people.
    :ivar problems: lines for stderr. :ivar code: the exit code.
    """

    document: msgspec.Struct | Callable[[], msgspec.Struct] | None
    show: Callable[[Output], None]
    problems: Sequence[str] = ()
    code: Exit = Exit.OK


# ---------------------------------------------------------------------------------------------------- words for things


def size(value: int) -> str:
    """``10.00 GiB``; bytes without decimals."""
    amount = float(value)
    for unit in _UNITS:
        if amount < 1024 or unit == _UNITS[-1]:
            break
        amount /= 1024
    return f"{value} B" if unit == "B" else f"{amount:.2f} {unit}"


def yes_no(value: bool) -> str:
    """The word."""
    return "yes" if value else "no"


def when(seconds: float | None) -> str:
    """A moment in local time, or ``never``."""
    if not seconds:
        return "never"
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def duration(seconds: float) -> str:
    """``0.153 s``."""
    return f"{seconds:.3f} s"


def state_cell(state: str, *, backend: bool = True) -> Cell:
    """A pool's state in its colour."""
    return Cell(state if backend else f"{state} (no backend)", STATE_STYLES.get(state, "") if backend else "red")


def bar(used: int, total: int, *, full: str = "█", empty: str = "░") -> Cell:
    """How much of a capacity is used; ``-`` where that is not known."""
    if total <= 0:
        return Cell("-")
    share = min(max(used / total, 0.0), 1.0)
    filled = round(share * BAR_WIDTH)
    style = "red" if share >= 0.9 else "yellow" if share >= 0.75 else "green"
    return Cell(f"{full * filled}{empty * (BAR_WIDTH - filled)} {share * 100:3.0f}%", style)


# ------------------------------------------------------------------------------------------------------------ writing


class Output:
    """Where the answer goes. :param stream: standard output, or a stand-in. :param terminal: None: see for yourself."""

    def __init__(self, stream: TextIO | None = None, *, terminal: bool | None = None) -> None:
        self._stream = sys.stdout if stream is None else stream
        self.terminal = self._stream.isatty() if terminal is None else terminal
        self._console: Console | None = None

    def raw(self, text: str) -> None:
        """A line that is safe already (JSON, XML, our own words)."""
        self._stream.write(text + "\n")

    def value(self, text: str) -> None:
        """A name or a path in a line of its own: as it is for a program that reads it, escaped for a terminal."""
        if self.terminal:
            self.raw(printable(text))
            return
        self._stream.flush()
        buffer = getattr(self._stream, "buffer", None)
        if buffer is None:
            self.raw(text)
        else:
            buffer.write(_bytes(text) + b"\n")
            buffer.flush()

    def line(self, text: str, style: str = "") -> None:
        """A sentence."""
        if not self.terminal:
            self._stream.write(f"{self._encodable(printable(text))}\n")
            return
        from rich.text import Text

        self.console.print(Text(printable(text), style=style), soft_wrap=True)

    def xml(self, text: str) -> None:
        """A document; characters that a terminal might obey become character references, which mean the same."""
        self.raw("".join(c if c.isprintable() or c == "\n" else f"&#{ord(c)};" for c in text.rstrip("\n")))

    def bar(self, used: int, total: int, *, drawn: bool | None = None) -> Cell:
        """How much of a capacity is used: drawn on a terminal (or as ``drawn`` says), in per cent elsewhere."""
        if self.terminal if drawn is None else drawn:
            return bar(used, total) if self._can("█░") else bar(used, total, full="#", empty=".")
        return Cell("-" if total <= 0 else f"{used / total * 100:.0f}%")

    def table(self, columns: Sequence[Column], rows: Sequence[Sequence[Cell | str]], *, empty: str = "") -> None:
        """Rows under headings. Nothing is cut off: a terminal too narrow for that gets a paragraph for each row.

        :param empty: what to tell people in place of a table without rows; programs get its headings.
        """
        cells = [[cell if isinstance(cell, Cell) else Cell(cell) for cell in row] for row in rows]
        if not self.terminal:
            self._plain_table(columns, cells)
        elif empty and not rows:
            self.line(empty)
        elif self._fits(columns, cells):
            self._rich_table(columns, cells)
        else:
            self._paragraphs(columns, cells)

    def fields(self, pairs: Sequence[tuple[str, Cell | str]]) -> None:
        """Names with values, one in a line."""
        width = max((len(name) for name, _ in pairs), default=0) + 2
        for name, value in pairs:
            cell = value if isinstance(value, Cell) else Cell(value)
            if not self.terminal:
                self.line(f"{name + ':':<{width}}{printable(cell.text)}".rstrip())
                continue
            from rich.text import Text

            shown = Text.assemble((f"{name + ':':<{width}}", "bold"), (printable(cell.text), cell.style))
            self.console.print(shown, soft_wrap=True)

    @property
    def console(self) -> Console:
        """rich's console on this stream."""
        if self._console is None:
            from rich.console import Console

            self._console = Console(file=self._stream, highlight=False, markup=False, emoji=False)
        return self._console

    def _fits(self, columns: Sequence[Column], rows: Sequence[Sequence[Cell]]) -> bool:
        """Whether the terminal is wide enough, with the columns folded that may be."""
        needed = 2 * (len(columns) - 1)
        for index, column in enumerate(columns):
            width = max(_width(column.title), *(_width(printable(row[index].text)) for row in rows), 0)
            needed += min(width, FOLDED_WIDTH) if column.folds else width
        return needed <= self.console.width

    def _paragraphs(self, columns: Sequence[Column], rows: Sequence[Sequence[Cell]]) -> None:
        for number, row in enumerate(rows):
            if number:
                self.line("")
            self.fields([(column.title, cell) for column, cell in zip(columns, row, strict=True)])

    def _rich_table(self, columns: Sequence[Column], rows: Sequence[Sequence[Cell]]) -> None:
        from rich import box
        from rich.table import Table
        from rich.text import Text

        table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
        for column in columns:
            justify: Literal["left", "right"] = "right" if column.right else "left"
            table.add_column(column.title, justify=justify, overflow="fold", no_wrap=not column.folds)
        for row in rows:
            table.add_row(*(Text(printable(cell.text), style=cell.style) for cell in row))
        self.console.print(table)

    def _plain_table(self, columns: Sequence[Column], rows: Sequence[Sequence[Cell]]) -> None:
        lines = [[column.title for column in columns], *([printable(cell.text) for cell in row] for row in rows)]
        widths = [max(_width(texts[index]) for texts in lines) for index in range(len(columns))]
        for texts in lines:
            padded = [
                " " * (width - _width(text)) + text if column.right else text + " " * (width - _width(text))
                for text, width, column in zip(texts, widths, columns, strict=True)
            ]
            self._stream.write(self._encodable("  ".join(padded).rstrip()) + "\n")

    def _can(self, text: str) -> bool:
        """Whether the stream's encoding has these characters."""
        try:
            text.encode(getattr(self._stream, "encoding", None) or "ascii")
        except UnicodeError:
            return False
        return True

    def _encodable(self, text: str) -> str:
        """What the stream can take of a text: the rest as escapes."""
        if text.isascii() or self._can(text):
            return text
        encoding = getattr(self._stream, "encoding", None) or "ascii"
        return text.encode(encoding, "backslashreplace").decode(encoding)


@contextmanager
def writing() -> Iterator[None]:
    """Around what is written to standard output. :raises CliError: it cannot be written to (a reader that is gone aside)."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        drop_stdout()
        raise CliError(f"standard output: {error.strerror}") from error


def drop_stdout() -> None:
    """Nobody takes it any more: let what is still buffered, and is flushed at exit, go nowhere."""
    try:
        target = sys.stdout.fileno()
    except (OSError, ValueError):
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, target)
    os.close(nowhere)


def _bytes(name: str) -> bytes:
    """A name as the file system has it; one from a process with another locale in UTF-8."""
    try:
        return os.fsencode(name)
    except UnicodeEncodeError:
        return name.encode("utf-8", "surrogateescape")


def _width(text: str) -> int:
    if text.isascii():
        return len(text)
    from rich.cells import cell_len

    return cell_len(text)


def complain(text: str) -> None:
    """One line on stderr, beginning with the program's name. A stderr that is gone is no error."""
    with suppress(OSError, ValueError):
        sys.stderr.write(f"astore: {printable(text)}\n")
        sys.stderr.flush()
