"""``astore pool import``: take over libvirt's pools."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from astore.cli.command_line import argument
from astore.cli.documents import Document, failure
from astore.cli.exits import code_of_all, explain
from astore.cli.output import Answer, Cell, Column, Output, yes_no
from astore.cli.session import Session, command
from astore.manager.importing import LIBVIRT_FOLDER, ImportedPool, import_pools

if TYPE_CHECKING:
    from astore.manager.importing import ImportReport

_STYLES = {"imported": "green", "updated": "green", "conflict": "red", "unreadable": "red", "failed": "red"}


@command("import")
@argument(
    "folder",
    default=LIBVIRT_FOLDER,
    metavar="FOLDER",
    help="libvirt's folder of definitions, with `autostart` in it; only read.",
)
async def import_command(session: Session, folder: str) -> Answer:
    """Take over libvirt's own pools: their definitions and autostart marks. May be repeated; starts nothing."""
    session.ticker.begin("importing")

    def told(done: int, count: int, entry: ImportedPool) -> None:
        if done == 1:
            session.ticker.begin("importing", count)
        session.ticker.step()

    report = await import_pools(session.manager, folder, timeout=session.settings.timeout, on_progress=told)
    failed = [(entry, entry.error) for entry in report.entries if entry.error is not None]
    return Answer(
        {"folder": report.folder, "entries": [_document(entry) for entry in report.entries]},
        lambda output: _show(output, report),
        [f"{entry.file}: {explain(error)}" for entry, error in failed],
        code_of_all([error for _, error in failed], len(report.entries) - len(failed)),
    )


def _document(entry: ImportedPool) -> Document:
    found = msgspec.structs.asdict(entry)
    return {"has_backend": found.pop("backend"), **found, "ok": entry.error is None, "error": failure(entry.error)}


def _show(output: Output, report: ImportReport) -> None:
    if not report.entries:
        output.line(f"there are no definitions in {report.folder}")
        return
    rows: list[list[Cell | str]] = []
    for entry in report.entries:
        lacking = entry.type is not None and not entry.backend
        rows.append(
            [
                Cell(entry.action, _STYLES.get(entry.action, "")),
                entry.pool or entry.file,
                f"{entry.type} (no backend)" if lacking else entry.type or "-",
                yes_no(entry.autostart),
            ]
        )
    output.table([Column("Outcome"), Column("Pool", folds=True), Column("Type"), Column("Autostart")], rows)
