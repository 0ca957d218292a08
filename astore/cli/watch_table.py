"""The table of ``astore watch``: a line for each pool, or three on a narrow terminal, and no more than the window has."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, NamedTuple

from astore import events as kinds
from astore.cli.events import is_no_news, what_happened
from astore.cli.output import Cell, Output, state_cell, when
from astore.errors import printable
from astore.model import Freshness, PoolInfo

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text

    from astore.manager import Manager

NARROW = 90
"""A terminal of fewer columns gets three lines for a pool."""

JUST = 5.0
"""For so many seconds what has changed is bold."""

NAME_WIDTH = 30
"""The largest width of the names' column."""


class Row(NamedTuple):
    """What the table shows of a pool.

    :ivar fresh: how soon its changes are seen. :ivar last: its last event, with the time.
    :ivar rank: if not all pools fit, those of the highest rank are shown.
    """

    name: str
    state: Cell
    volumes: str
    fresh: str
    last: Cell
    rank: tuple[bool, float]


def in_words(pool: str, freshness: Freshness | None) -> str:
    """Return how a pool learns of changes: ``inotify, within 1 s``; ``-`` as long as it is not known."""
    if freshness is None:
        return "-"
    note = f": {freshness.note.removeprefix(f'pool {pool!r}: ')}" if freshness.note else ""
    if freshness.next_try is not None:
        return f"next try at {when(freshness.next_try)}{note}"
    return f"{freshness.way}, within {math.ceil(freshness.bound * 10) / 10:g} s{note}"


class Board:
    """The pools of a Manager and their last events.

    :param chosen: the names of the pools to show; None: all. :param output: the terminal.
    """

    def __init__(self, manager: Manager, chosen: Collection[str] | None, output: Output) -> None:
        self._manager = manager
        self._chosen = chosen
        self._output = output
        self._last: dict[str, kinds.PoolEvent] = {}
        self._tries: dict[str, Freshness] = {}

    def note(self, event: kinds.Event) -> None:
        """Note an event."""
        if not isinstance(event, kinds.PoolEvent) or is_no_news(event):
            return
        name = event.pool
        self._tries.pop(name, None)
        if isinstance(event, kinds.PoolUndefined):
            self._last.pop(name, None)
        elif isinstance(event, kinds.PoolRetry):
            self._tries[name] = Freshness("polled", pushed=False, bound=0.0, note=event.reason, next_try=event.at)
        if not isinstance(event, kinds.PoolRefreshed):  # the volumes' own events say more
            self._last[name] = event

    def rows(self) -> list[Row]:
        """Return the rows of all pools that are to be shown, in name order."""
        now = time.time()
        pools = (pool.info for pool in self._manager.pools() if self._chosen is None or pool.name in self._chosen)
        return [self._row(info, now) for info in pools]

    def _row(self, info: PoolInfo, now: float) -> Row:
        event = self._last.get(info.name)
        last, at = Cell("-"), 0.0
        if event is not None:
            at = event.time
            last = Cell(f"{when(at)} {what_happened(event)}", "bold" if now - at < JUST else "")
        fresh = in_words(info.name, info.freshness or self._tries.get(info.name))  # an inactive pool is not watched
        state = state_cell(info.state, backend=info.backend)
        return Row(info.name, state, str(info.volumes), fresh, last, (info.error is not None, at))

    # ---------------------------------------------------------------------------------------------------- drawing

    def drawn(self, rows: Sequence[Row]) -> RenderableType:
        """Return what fits into the terminal.

        If there are lines enough, how fresh the pools are is written out, and on a narrow terminal their last events, too.
        If there are too few for all pools, those that failed or changed last are shown.
        """
        console = self._output.console
        width, height = console.size
        room = max((height - 1) // 3 if width < NARROW else height - 3, 1)
        if len(rows) <= room:
            whole = self._page(rows, rows, folds=True)
            if len(console.render_lines(whole)) <= height:
                return whole
        ranked = sorted(range(len(rows)), key=lambda index: rows[index].rank, reverse=True)
        return self._page(rows, [rows[index] for index in sorted(ranked[:room])], folds=False)

    def _page(self, rows: Sequence[Row], shown: Sequence[Row], *, folds: bool) -> RenderableType:
        """Return some of the rows, and the line about all of them. :param folds: write out how fresh they are."""
        from rich.console import Group

        draw = self._paragraphs if self._output.console.width < NARROW else self._table
        return Group(draw(shown, folds), self._text(Cell(_summary(rows, len(shown)), "dim")))

    def _table(self, rows: Sequence[Row], folds: bool) -> RenderableType:
        from rich import box
        from rich.table import Table

        table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0), expand=True)
        table.add_column("Pool", no_wrap=True, max_width=NAME_WIDTH)
        table.add_column("State", no_wrap=True)
        table.add_column("Volumes", no_wrap=True, justify="right")
        table.add_column("Fresh", no_wrap=not folds, ratio=2)
        table.add_column("Last event", no_wrap=True, ratio=3)
        for row in rows:
            fresh, last = self._text(row.fresh, folds=folds), self._text(row.last)
            table.add_row(self._text(row.name), self._text(row.state), self._text(row.volumes), fresh, last)
        return table

    def _paragraphs(self, rows: Sequence[Row], folds: bool) -> RenderableType:
        from rich.console import Group
        from rich.padding import Padding
        from rich.text import Text

        lines: list[RenderableType] = []
        for row in rows:
            words = (self._text(Cell(row.name, "bold")), self._text(row.state), self._text(f"{row.volumes} volumes"))
            lines.append(Text("  ", no_wrap=True, overflow=words[0].overflow).join(words))
            lines += [Padding(self._text(cell, folds=folds), (0, 0, 0, 2)) for cell in (row.fresh, row.last)]
        return Group(*lines)

    def _text(self, cell: Cell | str, *, folds: bool = False) -> Text:
        """Return a text in characters that the terminal has; unless it ``folds``, it is cut off where its line ends."""
        from rich.text import Text

        text, style = cell if isinstance(cell, Cell) else (cell, "")
        shown = self._output.encodable(printable(text))
        if folds:
            return Text(shown, style, overflow="fold")
        return Text(shown, style, no_wrap=True, overflow="ellipsis" if self._output.can("…") else "crop")


def _summary(rows: Sequence[Row], shown: int) -> str:
    """Return the last line: how many pools there are in each state."""
    if not rows:
        return "no pools yet; Ctrl-C ends"
    states = ", ".join(f"{count} {state}" for state, count in sorted(Counter(row.state.text for row in rows).items()))
    of_all = f"{len(rows)} pool{'s' if len(rows) > 1 else ''}"
    if shown < len(rows):
        of_all = f"{shown} of {of_all} are shown"
    return f"{of_all}: {states}; Ctrl-C ends"
