"""Output for people: tables, sizes and times, coloured on a terminal and plain elsewhere.

Names are untrusted. Unprintable characters are escaped, and nothing is interpreted as markup.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Literal, NamedTuple, TextIO

from astore.cli.exits import CliError, Exit
from astore.errors import printable
from astore.errors import size as size

if TYPE_CHECKING:
    from rich.console import Console

    from astore.cli.documents import Document

BAR_WIDTH = 8
FOLDED_WIDTH = 10
"""The smallest width, in characters, to which a narrow terminal folds a column."""

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
"""Colours by state."""


class Cell(NamedTuple):
    """A cell of a table. ``style`` is a style of rich."""

    text: str
    style: str = ""


class Column(NamedTuple):
    """A column of a table. ``right`` aligns its cells to the right; ``folds`` lets them break into several lines."""

    title: str
    right: bool = False
    folds: bool = False


class Answer(NamedTuple):
    """The result of a command, for programs and for people.

    :ivar document: the document for ``--json``, or a function that makes it. :ivar show: writes the same for people.
    :ivar problems: lines for stderr. :ivar code: the exit code. :ivar facts: what else virsh's sentence says.
    """

    document: Document | Callable[[], Document] | None
    show: Callable[[Output], None]
    problems: Sequence[str] = ()
    code: Exit = Exit.OK
    facts: Mapping[str, str] = {}


def xml_answer(text: str) -> Answer:
    """Make the answer that is an XML document."""
    return Answer({"xml": text}, lambda output: output.xml(text))


# ---------------------------------------------------------------------------------------------------- words for things


def escaped_xml(text: str) -> str:
    """Write control characters of an XML document as character references, which mean the same."""
    return "".join(c if c.isprintable() or c == "\n" else f"&#{ord(c)};" for c in text)


def yes_no(value: bool) -> str:
    """Return ``yes`` or ``no``."""
    return "yes" if value else "no"


def when(seconds: float | None) -> str:
    """Format seconds since the epoch in local time; None and 0 are ``never``."""
    if not seconds:
        return "never"
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def duration(seconds: float) -> str:
    """Format seconds: ``0.153 s``."""
    return f"{seconds:.3f} s"


def state_cell(state: str, *, backend: bool = True) -> Cell:
    """Return a cell with a state in its colour."""
    return Cell(state if backend else f"{state} (no backend)", STATE_STYLES.get(state, "") if backend else "red")


def bar(used: int, total: int, *, full: str = "█", empty: str = "░") -> Cell:
    """Return a cell with a bar of the used share; ``-`` if the capacity is unknown."""
    if total <= 0:
        return Cell("-")
    share = min(max(used / total, 0.0), 1.0)
    filled = round(share * BAR_WIDTH)
    style = "red" if share >= 0.9 else "yellow" if share >= 0.75 else "green"
    return Cell(f"{full * filled}{empty * (BAR_WIDTH - filled)} {share * 100:3.0f}%", style)


# ------------------------------------------------------------------------------------------------------------ writing


class Output:
    """Write answers to a stream.

    :param stream: None is standard output. :param terminal: whether the stream is a terminal; None asks the stream.
    """

    def __init__(self, stream: TextIO | None = None, *, terminal: bool | None = None) -> None:
        self._stream = sys.stdout if stream is None else stream
        self.terminal: bool = self._stream.isatty() if terminal is None else terminal
        self._console: Console | None = None

    def raw(self, text: str) -> None:
        """Write a line that needs no escaping, such as JSON."""
        self._stream.write(text + "\n")

    def value(self, text: str) -> None:
        """Write a name or a path on its own line: escaped for a terminal, as it is for anything else."""
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
        """Write a sentence, with unprintable characters escaped."""
        if not self.terminal:
            self._stream.write(f"{self.encodable(printable(text))}\n")
            return
        from rich.text import Text

        self.console.print(Text(printable(text), style=style), soft_wrap=True)

    def xml(self, text: str) -> None:
        """Write an XML document. Control characters become character references, which mean the same."""
        self.raw(escaped_xml(text.rstrip("\n")))

    def bar(self, used: int, total: int, *, drawn: bool | None = None) -> Cell:
        """Return a cell with the used share of a capacity: a bar on a terminal (or as ``drawn`` says), else a percentage."""
        if self.terminal if drawn is None else drawn:
            return bar(used, total) if self.can("█░") else bar(used, total, full="#", empty=".")
        return Cell("-" if total <= 0 else f"{used / total * 100:.0f}%")

    def table(self, columns: Sequence[Column], rows: Sequence[Sequence[Cell | str]], *, empty: str = "") -> None:
        """Write a table. Nothing is cut off: on a terminal that is too narrow, each row becomes a paragraph.

        :param empty: the sentence that a terminal gets if there are no rows. Elsewhere the headings are written, and the
            sentence to a stderr that is a terminal.
        """
        cells = [[cell if isinstance(cell, Cell) else Cell(cell) for cell in row] for row in rows]
        if not self.terminal:
            self._plain_table(columns, cells)
            if empty and not rows and sys.stderr.isatty():
                complain(empty)
        elif empty and not rows:
            self.line(empty)
        elif self._fits(columns, cells):
            self._rich_table(columns, cells)
        else:
            self._paragraphs(columns, cells)

    def fields(self, pairs: Sequence[tuple[str, Cell | str]]) -> None:
        """Write names with values, one pair in each line."""
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
        """The rich console on this stream."""
        if self._console is None:
            from rich.console import Console

            self._console = Console(file=self._stream, highlight=False, markup=False, emoji=False)
        return self._console

    def _fits(self, columns: Sequence[Column], rows: Sequence[Sequence[Cell]]) -> bool:
        """Return whether the terminal is wide enough once columns are folded."""
        needed = 2 * (len(columns) - 1)
        for index, column in enumerate(columns):
            width = max(text_width(column.title), *(text_width(printable(row[index].text)) for row in rows), 0)
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
        widths = [max(text_width(texts[index]) for texts in lines) for index in range(len(columns))]
        for texts in lines:
            padded = [
                " " * (width - text_width(text)) + text if column.right else text + " " * (width - text_width(text))
                for text, width, column in zip(texts, widths, columns, strict=True)
            ]
            self._stream.write(self.encodable("  ".join(padded).rstrip()) + "\n")

    def can(self, text: str) -> bool:
        """Return whether the stream's encoding has these characters."""
        try:
            text.encode(getattr(self._stream, "encoding", None) or "ascii")
        except UnicodeError:
            return False
        return True

    def encodable(self, text: str) -> str:
        """Escape the characters that the stream's encoding lacks."""
        encoding = getattr(self._stream, "encoding", None) or "ascii"
        return text.encode(encoding, "backslashreplace").decode(encoding)


@contextmanager
def writing() -> Iterator[None]:
    """Turn errors of standard output into CliError, except a broken pipe. :raises CliError: it cannot be written to."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        drop_stdout()
        raise CliError(f"standard output: {error.strerror}") from error


def drop_stdout() -> None:
    """Redirect standard output to /dev/null, so that the flush at exit cannot fail."""
    try:
        target = sys.stdout.fileno()
    except (OSError, ValueError):
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, target)
    os.close(nowhere)


def _bytes(name: str) -> bytes:
    """Encode a name as the file system does; use UTF-8 if the locale lacks its characters."""
    try:
        return os.fsencode(name)
    except UnicodeEncodeError:
        return name.encode("utf-8", "surrogateescape")


def text_width(text: str) -> int:
    """Return how many columns a text takes on a terminal."""
    if text.isascii():
        return len(text)
    from rich.cells import cell_len

    return cell_len(text)


_place = ""
"""Where the command stands that is run now."""


@contextmanager
def complaints_of(place: str) -> Iterator[None]:
    """Have complaints begin with the place of the command that they are about, such as "line 3"."""
    global _place
    before, _place = _place, f"{place}: " if place else ""
    try:
        yield
    finally:
        _place = before


def complain(text: str) -> None:
    """Write one line to stderr, after the program's name. A closed stderr is no error."""
    with suppress(OSError, ValueError):
        sys.stderr.write(f"astore: {_place}{printable(text)}\n")
        sys.stderr.flush()
