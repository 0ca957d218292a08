"""``astore backend``: what drives the pools."""

from __future__ import annotations

from astore.cli import shapes
from astore.cli.output import Answer, Cell, Column, Output, state_cell
from astore.cli.session import Session, command


@command("list")
async def list_backends(session: Session) -> Answer:
    """Load every backend and show what came of it."""
    session.ticker.begin("loading backends")
    found = await session.manager.registry.load_all()
    backends = tuple(
        shapes.Backend(
            type=info.type,
            status=info.status,
            distribution=info.distribution,
            version=info.version,
            api_version=info.api_version,
            abilities=info.abilities,
            error=info.error,
            pools=len(session.manager.pools(active=True, types=[info.type])),
        )
        for info in found
    )

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

    return Answer(shapes.Backends(backends), show)
