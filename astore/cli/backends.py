"""``astore backend``: list the backends."""

from __future__ import annotations

import msgspec

from astore.cli.output import Answer, Cell, Column, Output, state_cell
from astore.cli.session import Session, command


@command("list")
async def list_backends(session: Session) -> Answer:
    """Load every backend and show what came of it."""
    session.ticker.begin("loading backends")
    manager = session.manager
    backends = [
        msgspec.structs.replace(info, pools=len(manager.pools(active=True, types=[info.type])))
        for info in await manager.registry.load_all()
    ]

    def show(output: Output) -> None:
        columns = [Column("Type"), Column("Status"), Column("Distribution", folds=True), Column("Version")]
        columns += [Column("Pools", right=True), Column("Abilities or error", folds=True)]
        rows: list[list[Cell | str]] = [
            [
                item.type,
                state_cell(item.status),
                item.distribution or "-",
                item.version or "-",
                str(item.pools),
                Cell(item.error, "red") if item.error else ", ".join(item.abilities) or "-",
            ]
            for item in backends
        ]
        output.table(columns, rows)

    return Answer({"backends": backends}, show)
