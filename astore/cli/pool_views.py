"""``astore pool``: the commands that look."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from astore.cli import shapes
from astore.cli.completion import complete_type
from astore.cli.exits import code_of_all, explain
from astore.cli.many import LIMIT, chosen
from astore.cli.output import Answer, Cell, Column, Output, duration, size, state_cell, when, yes_no
from astore.cli.pools import Limit, Name, Names, app
from astore.cli.session import VIRSH, Session, command, entry_point

if TYPE_CHECKING:
    from astore.model import RefreshOutcome
    from astore.pools.pool import Pool

ENTRIES_SHOWN = 10
"""How many of a pool's bad entries are named to people; --json names all."""


# ------------------------------------------------------------------------------------------------------------- list


@command(app, "list", virsh="pool-list")
async def list_pools(
    session: Session,
    everything: Annotated[bool, typer.Option("--all", help="Active and inactive ones.")] = False,
    inactive: Annotated[bool, typer.Option("--inactive", help="Only inactive ones.")] = False,
    autostart: Annotated[
        bool | None, typer.Option("--autostart/--no-autostart", help="By that mark.", show_default=False)
    ] = None,
    persistent: Annotated[bool, typer.Option("--persistent", help="Only those with a definition.")] = False,
    transient: Annotated[bool, typer.Option("--transient", help="Only those without.")] = False,
    types: Annotated[
        list[str] | None,
        typer.Option(
            "--type",
            metavar="TYPE",
            help="Of these types (also T1,T2).",
            autocompletion=complete_type,
            show_default=False,
        ),
    ] = None,
    details: Annotated[bool, typer.Option("--details", help="With sizes, persistence and errors.")] = False,
    names_only: Annotated[bool, typer.Option("--name", help="Names alone, one in a line.")] = False,
    uuids_only: Annotated[bool, typer.Option("--uuid", help="UUIDs alone, one in a line.")] = False,
) -> Answer:
    """List pools: the active ones, unless told otherwise."""
    manager = session.manager
    pools = manager.pools(
        active=None if everything else not inactive,
        persistent=None if persistent == transient else persistent,
        autostart=autostart,
        types=[name for part in types for name in part.split(",")] if types else None,
    )
    damaged = tuple(shapes.Damaged(file.name, file.path, file.error) for file in manager.damaged)
    problems = [f"{file.path} is damaged: {file.error}: repair it or remove it" for file in damaged]
    shown = damaged if (everything or inactive) and not (types or transient or autostart) else ()

    filtered = bool(types or autostart is not None or persistent or transient)
    wanted = "such " if filtered or everything else "inactive " if inactive else "active "
    empty = _nothing(wanted, len(manager.pools()))

    def show(output: Output) -> None:
        if names_only or uuids_only:
            for pool in pools:
                output.value(" ".join(([pool.uuid] if uuids_only else []) + ([pool.name] if names_only else [])))
        elif details:
            _detailed(output, pools, shown, empty)
        else:
            _brief(output, pools, shown, empty)

    return Answer(shapes.PoolList(tuple(_shape(pool) for pool in pools), damaged), show, problems)


def _shape(pool: Pool) -> shapes.Pool:
    info = pool.info
    return shapes.Pool(
        name=info.name,
        uuid=info.uuid,
        type=info.type,
        state=info.state,
        active=info.active,
        persistent=info.persistent,
        autostart=info.autostart,
        has_backend=info.backend,
        target_path=pool.definition.target.path,
        capacity=info.capacity,
        allocation=info.allocation,
        available=info.available,
        volumes=info.volumes,
        errors=info.errors,
        generation=info.generation,
        refreshed_at=info.taken_at or None,
        since=info.since or None,
        error=info.error,
    )


def _nothing(wanted: str, others: int) -> str:
    """What people are told in place of a list without pools."""
    if others:
        return f"no {wanted}pools: `astore pool list --all` shows all there are ({others})"
    return "no pools yet: `astore pool define FILE` makes one from libvirt's XML"


def _brief(output: Output, pools: Sequence[Pool], damaged: Sequence[shapes.Damaged], empty: str) -> None:
    columns = [Column("Name", folds=True), Column("Type"), Column("State", folds=True), Column("Autostart")]
    columns += [Column("Volumes", right=True), Column("Capacity", right=True), Column("Used")]
    rows: list[list[Cell | str]] = []
    for pool in pools:
        info = pool.info
        sizes: list[Cell | str] = ["-"] * 3
        if info.active:
            sizes = [str(info.volumes), size(info.capacity), output.bar(info.allocation, info.capacity)]
        state = state_cell(info.state, backend=info.backend)
        rows.append([info.name, info.type, state, yes_no(info.autostart), *sizes])
    rows += [[file.name, "-", state_cell("damaged"), *["-"] * 4] for file in damaged]
    output.table(columns, rows, empty=empty)


def _detailed(output: Output, pools: Sequence[Pool], damaged: Sequence[shapes.Damaged], empty: str) -> None:
    columns = [Column("Name", folds=True), Column("Type"), Column("State", folds=True)]
    columns += [Column("Autostart"), Column("Persistent")]
    columns += [Column(title, right=True) for title in ("Volumes", "Capacity", "Allocation", "Available")]
    columns += [Column("Used"), Column("Refreshed"), Column("Error", folds=True)]
    rows: list[list[Cell | str]] = []
    for pool in pools:
        info = pool.info
        sizes: list[Cell | str] = ["-"] * 6
        if info.active:
            sizes = [str(info.volumes), size(info.capacity), size(info.allocation), size(info.available)]
            sizes += [output.bar(info.allocation, info.capacity), when(info.taken_at)]
        state = state_cell(info.state, backend=info.backend)
        rows.append(
            [info.name, info.type, state, yes_no(info.autostart), yes_no(info.persistent), *sizes, info.error or "-"]
        )
    rows += [[file.name, "-", state_cell("damaged"), "-", "yes", *["-"] * 6, file.error] for file in damaged]
    output.table(columns, rows, empty=empty)


# ---------------------------------------------------------------------------------------------------- one pool: info


@command(app, "info", virsh="pool-info")
async def info(
    session: Session,
    name: Name,
    in_bytes: Annotated[bool, typer.Option("--bytes", help="Sizes in bytes.")] = False,
) -> Answer:
    """Show one pool: state, sizes, entries that are no volumes."""
    pool = session.pool(name)
    shape = _shape(pool)
    entries = shapes.entries(pool.snapshot.errors)
    write = str if in_bytes else size

    def show(output: Output) -> None:
        pairs: list[tuple[str, Cell | str]] = [
            ("Name", shape.name),
            ("UUID", shape.uuid),
            ("Type", shape.type),
            ("State", state_cell(shape.state, backend=shape.has_backend)),
            *([("Since", when(shape.since))] if shape.since else []),
            ("Persistent", yes_no(shape.persistent)),
            ("Autostart", yes_no(shape.autostart)),
        ]
        if shape.target_path:
            pairs.append(("Target", shape.target_path))
        if shape.active:
            pairs += [
                ("Capacity", write(shape.capacity)),
                ("Allocation", write(shape.allocation)),
                ("Available", write(shape.available)),
                ("Used", output.bar(shape.allocation, shape.capacity)),
                ("Volumes", str(shape.volumes)),
                ("Refreshed", when(shape.refreshed_at)),
            ]
        if shape.error:
            pairs.append(("Error", Cell(shape.error, "red")))
        output.fields(pairs)
        _show_entries(output, entries)

    return Answer(shapes.PoolInfo(shape, entries), show)


def _show_entries(output: Output, entries: Sequence[shapes.Entry], pool: str = "") -> None:
    """The bad ones first: what is merely skipped matters less."""
    ordered = sorted(entries, key=lambda entry: entry.skipped)
    for entry in ordered[:ENTRIES_SHOWN]:
        what = "skipped" if entry.skipped else "cannot be read"
        output.line(
            f"{pool + ': ' if pool else ''}{entry.name} {what}: {entry.message}", "dim" if entry.skipped else "yellow"
        )
    if len(ordered) > ENTRIES_SHOWN:
        output.line(f"… and {len(ordered) - ENTRIES_SHOWN} more: --json names all")


@command(app, "dumpxml", virsh="pool-dumpxml")
async def dumpxml(
    session: Session,
    name: Name,
    inactive: Annotated[bool, typer.Option("--inactive", help="The definition that the next start takes.")] = False,
) -> Answer:
    """Print a pool's libvirt XML."""
    xml = session.pool(name).to_xml(inactive)
    return Answer(shapes.Xml(xml), lambda output: output.xml(xml))


async def pool_name(session: Session, uuid: Annotated[str, typer.Argument(metavar="UUID")]) -> Answer:
    """Print the name of the pool with a UUID."""
    pool = session.pool(uuid)
    return Answer(shapes.PoolIdentity(pool.name, pool.uuid), lambda output: output.value(pool.name))


async def pool_uuid(session: Session, name: Name) -> Answer:
    """Print a pool's UUID."""
    pool = session.pool(name)
    return Answer(shapes.PoolIdentity(pool.name, pool.uuid), lambda output: output.value(pool.uuid))


VIRSH["pool-name"] = entry_point(pool_name)
VIRSH["pool-uuid"] = entry_point(pool_uuid)


# ---------------------------------------------------------------------------------------------------------- refresh


@command(app, "refresh", virsh="pool-refresh")
async def refresh(
    session: Session,
    names: Names = None,
    everything: Annotated[bool, typer.Option("--all", help="All that are active.")] = False,
    full: Annotated[bool, typer.Option("--full", help="Trust nothing known: read every header anew.")] = False,
    limit: Limit = LIMIT,
) -> Answer:
    """Look at pools' volumes again, many pools at once."""
    manager = session.manager
    wanted = chosen(session, names or (), everything, manager.pools(active=True))
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
    document = shapes.Refresh(
        seconds=report.seconds,
        pools=tuple(
            shapes.refreshed(outcome, explain(outcome.error) if outcome.error is not None else None)
            for outcome in report.pools
        ),
    )
    return Answer(
        document,
        lambda output: show_refresh(output, good, report.seconds) if good or not problems else None,
        problems,
        code_of_all(errors, len(good)),
    )


def show_refresh(output: Output, outcomes: Sequence[RefreshOutcome], seconds: float) -> None:
    """What refreshes found, pool by pool, and the entries that could not be read."""
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
        bad = tuple(error for error in outcome.errors if not error.skipped)
        _show_entries(output, shapes.entries(bad), outcome.pool)
    if len(outcomes) > 1:
        output.line(f"{len(outcomes)} pools in {duration(seconds)}")
