"""The output of ``astore demo``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from astore.cli.demo_storage import Change
from astore.cli.events import in_words
from astore.cli.output import Cell, Column, Output, duration, size, state_cell
from astore.model import RefreshOutcome, RefreshReport

if TYPE_CHECKING:
    from astore.events import Event
    from astore.pools.pool import Pool

POOLS_SHOWN = 16
VOLUMES_SHOWN = 5
EVENTS_OF_A_KIND = 2


def heading(output: Output, text: str) -> None:
    """Print the heading of a part."""
    output.line("")
    output.line(f"── {text}", "bold cyan")


def show_pools(output: Output, pools: Sequence[Pool], report: RefreshReport) -> None:
    """Print a table of the pools with their capacity and the time of each refresh."""
    seconds = {outcome.pool: outcome.seconds for outcome in report.pools}
    rows: list[list[Cell | str]] = [
        [
            pool.name,
            pool.type,
            state_cell(pool.state),
            str(len(pool.volumes)),
            size(pool.info.capacity),
            output.bar(pool.info.allocation, pool.info.capacity, drawn=True),
            duration(seconds.get(pool.name, 0.0)),
        ]
        for pool in _spread(pools)
    ]
    output.line("")
    columns = [Column("Pool"), Column("Type"), Column("State"), Column("Volumes", right=True)]
    output.table([*columns, Column("Capacity", right=True), Column("Used"), Column("Refresh", right=True)], rows)
    if len(pools) > len(rows):
        output.line(f"… and {len(pools) - len(rows)} more")


def _spread(pools: Sequence[Pool]) -> list[Pool]:
    """Return at most POOLS_SHOWN pools, with each type represented."""
    by_type: dict[str, list[Pool]] = {}
    for pool in pools:
        by_type.setdefault(pool.type, []).append(pool)
    share = max(POOLS_SHOWN // max(len(by_type), 1), 1)
    return list(pools) if len(pools) <= POOLS_SHOWN else [pool for some in by_type.values() for pool in some[:share]]


def show_volumes(output: Output, pools: Iterable[Pool]) -> None:
    """Print the first volumes of one pool of each type."""
    shown: dict[str, Pool] = {}
    for pool in pools:
        shown.setdefault(pool.type, pool)
    rows = [
        [pool.name, info.name, info.format or "-", size(info.capacity), size(info.allocation), info.backing or "-"]
        for pool in shown.values()
        for info in pool.volumes[:VOLUMES_SHOWN]
    ]
    output.line("")
    columns = [Column("Pool"), Column("Volume"), Column("Format")]
    columns += [Column("Capacity", right=True), Column("Allocation", right=True), Column("Backing file")]
    output.table(columns, rows)


def show_events(output: Output, events: Sequence[Event]) -> None:
    """Print the first events of each kind in their order, then the number of each kind."""
    counts: Counter[str] = Counter()
    for event in events:
        kind = type(event).__name__
        counts[kind] += 1
        if counts[kind] <= EVENTS_OF_A_KIND:
            output.line(f"{event.seq:>6}  {in_words(event)}")
    summary = ", ".join(f"{count:,} {kind}" for kind, count in counts.most_common())
    shown = f"shown: the first {EVENTS_OF_A_KIND} of each kind"
    output.line(f"{len(events):,} events in all ({shown}): {summary}", "bold")


def show_failures(output: Output, errors: Iterable[tuple[str, str]]) -> None:
    """Print one line for each failure: the pool and the reason."""
    for pool, why in errors:
        output.line(f"{pool}: {why}", "red")


def show_change(output: Output, pools: Sequence[str], change: Change) -> None:
    """Print a change that was made, and the pools that will see it."""
    where = f"In {pools[0]}" if len(pools) == 1 else f"In {' and '.join(pools)}, the same volume"
    output.line(f"{where}: {change.added} added, {change.grown} grown by 1 GiB, {change.removed} removed")


def show_changes(output: Output, again: RefreshReport, first: RefreshReport, changed: Sequence[str]) -> None:
    """Print the results of the second refresh, with the times of both."""
    before = {outcome.pool: outcome.seconds for outcome in first.pools}
    rows = [
        [
            outcome.pool,
            _names("+", outcome.added),
            _names("~", outcome.changed),
            _names("-", outcome.removed),
            str(outcome.unchanged),
            duration(outcome.seconds),
            duration(before.get(outcome.pool, 0.0)),
        ]
        for outcome in again.pools
        if outcome.pool in changed
    ]
    rows.append(["all pools", *_totals(again.pools), duration(again.seconds), duration(first.seconds)])
    output.line("")
    columns = [Column("Pool"), *(Column(title, folds=True) for title in ("Added", "Changed", "Removed"))]
    columns += [Column(title, right=True) for title in ("Unchanged", "Time", "Before")]
    output.table(columns, rows)
    output.line("")


def _names(sign: str, names: Sequence[str]) -> str:
    return ", ".join(f"{sign}{name}" for name in names[:2]) + (" …" if len(names) > 2 else "") or "-"


def _totals(outcomes: Sequence[RefreshOutcome]) -> list[str]:
    return [
        str(sum(len(outcome.added) for outcome in outcomes)),
        str(sum(len(outcome.changed) for outcome in outcomes)),
        str(sum(len(outcome.removed) for outcome in outcomes)),
        f"{sum(outcome.unchanged for outcome in outcomes):,}",
    ]
