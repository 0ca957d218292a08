"""``astore pool refresh``: look at pools' volumes again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

from astore.cli.command_line import option
from astore.cli.documents import Document, failure
from astore.cli.exits import code_of_all, explain
from astore.cli.many import chosen
from astore.cli.output import Answer, Column, Output, duration
from astore.cli.parameters import limit_option, pool_arguments
from astore.cli.pool_views import show_entries
from astore.cli.session import Session, command

if TYPE_CHECKING:
    from astore.model import RefreshOutcome


@command("refresh")
@pool_arguments
@option("--all", "everything", is_flag=True, help="All that are active.")
@option("--full", is_flag=True, help="Trust nothing known: read every header anew.")
@limit_option
async def refresh(session: Session, names: tuple[str, ...], everything: bool, full: bool, limit: int) -> Answer:
    """Look at pools' volumes again, many pools at once."""
    manager = session.manager
    wanted = chosen(session, names, everything, manager.pools(active=True))
    unknown: list[Exception] = []
    known: list[str] = []
    for name in wanted:
        try:
            known.append(session.pool(name).name)
        except LookupError as error:
            unknown.append(error)
    session.ticker.begin("refreshing", len(known))
    report = await manager.refresh_all(
        known,
        limit=limit,
        timeout=session.settings.timeout,
        full=full,
        on_progress=lambda done, _total, _outcome: session.ticker.step(done),
    )
    good = [outcome for outcome in report.pools if outcome.error is None]
    errors = [*unknown, *(outcome.error for outcome in report.failed if outcome.error is not None)]
    problems = [explain(error) for error in errors]
    return Answer(
        {"seconds": report.seconds, "pools": [refresh_document(outcome) for outcome in report.pools]},
        lambda output: show_refresh(output, good, report.seconds) if good or not problems else None,
        problems,
        code_of_all(errors, len(good)),
    )


def refresh_document(outcome: RefreshOutcome) -> Document:
    """Return the document of a refresh."""
    found = msgspec.structs.asdict(outcome)
    return {"entries": found.pop("errors"), **found, "ok": outcome.error is None, "error": failure(outcome.error)}


def show_refresh(output: Output, outcomes: Sequence[RefreshOutcome], seconds: float) -> None:
    """Write a table of refreshes, then the entries that could not be read."""
    if not outcomes:
        output.line("no pool was refreshed: `astore pool list --all` shows those there are")
        return
    titles = ("Added", "Changed", "Removed", "Unchanged", "Errors", "Time")
    rows = [
        [
            outcome.pool,
            str(len(outcome.added)),
            str(len(outcome.changed)),
            str(len(outcome.removed)),
            str(outcome.unchanged),
            str(sum(not error.skipped for error in outcome.errors)),
            duration(outcome.seconds),
        ]
        for outcome in outcomes
    ]
    output.table([Column("Pool", folds=True), *(Column(title, right=True) for title in titles)], rows)
    for outcome in outcomes:
        show_entries(output, [error for error in outcome.errors if not error.skipped], outcome.pool)
    if len(outcomes) > 1:
        output.line(f"{len(outcomes)} pools in {duration(seconds)}")
