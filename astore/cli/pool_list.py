"""``astore pool list``. This is the most frequent command, so it imports as little as possible."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from astore.cli.command_line import option
from astore.cli.completion import complete_type
from astore.cli.exits import explain, shell_word
from astore.cli.output import Answer, Cell, Column, Output, size, state_cell, when, yes_no
from astore.cli.session import view, without_folder
from astore.errors import PoolInaccessibleError
from astore.model import PoolState

if TYPE_CHECKING:
    from astore.cli.documents import Document
    from astore.cli.standing import Standing, StandingPool
    from astore.model import PoolInfo
    from astore.store.contract import Damaged


@view("list")
@option("--all", "everything", is_flag=True, help="Active and inactive ones.")
@option("--inactive", is_flag=True, help="Only inactive ones.")
@option("--autostart/--no-autostart", default=None, help="Only those with, or without, that mark.")
@option("--persistent", is_flag=True, help="Only those with a definition.")
@option("--transient", is_flag=True, help="Only those without.")
@option(
    "--type",
    "types",
    multiple=True,
    metavar="TYPE",
    help="Only these types (also T1,T2).",
    shell_complete=complete_type,
)
@option("--details", is_flag=True, help="With sizes, persistence and errors.")
@option("--bytes", "in_bytes", is_flag=True, help="Sizes in bytes.")
@option("--name", "names_only", is_flag=True, help="Names alone, one in a line.")
@option("--uuid", "uuids_only", is_flag=True, help="UUIDs alone, one in a line.")
def list_pools(
    standing: Standing,
    everything: bool,
    inactive: bool,
    autostart: bool | None,
    persistent: bool,
    transient: bool,
    types: tuple[str, ...],
    details: bool,
    in_bytes: bool,
    names_only: bool,
    uuids_only: bool,
) -> Answer:
    """List pools: the active ones, unless told otherwise."""
    pools = standing.pools(
        active=None if everything else not inactive,
        persistent=None if persistent == transient else persistent,
        autostart=autostart,
        types=[name for part in types for name in part.split(",")] if types else None,
    )
    damaged = standing.damaged
    problems = [f"{file.path} is damaged: {file.error}: repair it or remove it" for file in damaged]
    problems += [f"pool {name!r} may be active: {why}" for name, why in sorted(standing.unknown.items())]
    problems += [line for pool in pools for line in stale(pool.info)]
    problems += [] if names_only or uuids_only else without_folder()
    shown = damaged if (everything or inactive) and not (types or transient or autostart) else ()

    filtered = bool(types or autostart is not None or persistent or transient)
    write = str if in_bytes else size
    empty = _empty(standing, "such" if filtered or everything else "inactive" if inactive else "active")

    def show(output: Output) -> None:
        if names_only or uuids_only:
            for pool in pools:
                output.value(
                    " ".join(([pool.info.uuid] if uuids_only else []) + ([pool.info.name] if names_only else []))
                )
        elif details:
            _detailed(output, pools, shown, empty, write)
        else:
            _brief(output, pools, shown, empty, write)

    def document() -> Document:
        from astore.cli.pool_views import pool_document

        bad = [{"name": file.name, "path": file.path, "error": file.error} for file in damaged]
        return {"pools": [pool_document(pool) for pool in pools], "damaged": bad}

    return Answer(document, show, problems)


def _empty(standing: Standing, wanted: str) -> str:
    """Return the sentence for a list without pools. :param wanted: which are listed."""
    if not standing.all:
        return "no pools yet: `astore pool define FILE` makes one from libvirt's XML"
    return f"no {wanted} pools: `astore pool list --all` shows all there are ({len(standing.all)})"


def stale(info: PoolInfo) -> list[str]:
    """Return the line that says since when a pool is inaccessible, and how old its list is; none if it is not."""
    if info.state != PoolState.INACCESSIBLE:
        return []
    age = f"what is shown is of {when(info.taken_at)}" if info.taken_at else "it was never seen"
    since = f" since {when(info.since)}" if info.since else ""
    word = shell_word(info.name)
    return [f"pool {info.name!r} is inaccessible{since}, {age}: `astore pool refresh {word}` tries again"]


def _brief(
    output: Output, pools: Sequence[StandingPool], damaged: Sequence[Damaged], empty: str, write: Callable[[int], str]
) -> None:
    columns = [Column("Name", folds=True), Column("Type"), Column("State", folds=True), Column("Autostart")]
    columns += [Column("Volumes", right=True), Column("Capacity", right=True), Column("Used")]
    rows: list[list[Cell | str]] = []
    for pool in pools:
        info = pool.info
        sizes: list[Cell | str] = ["-"] * 3
        if info.active:
            sizes = [str(info.volumes), write(info.capacity), output.bar(info.allocation, info.capacity)]
        state = state_cell(info.state, backend=info.backend)
        rows.append([info.name, info.type, state, yes_no(info.autostart), *sizes])
    rows += [[file.name, "-", state_cell("damaged"), *["-"] * 4] for file in damaged]
    output.table(columns, rows, empty=empty)


def _detailed(
    output: Output, pools: Sequence[StandingPool], damaged: Sequence[Damaged], empty: str, write: Callable[[int], str]
) -> None:
    columns = [Column("Name", folds=True), Column("Type"), Column("State", folds=True)]
    columns += [Column("Autostart"), Column("Persistent")]
    columns += [Column(title, right=True) for title in ("Volumes", "Capacity", "Allocation", "Available")]
    columns += [Column("Used"), Column("Refreshed"), Column("Error", folds=True)]
    rows: list[list[Cell | str]] = []
    for pool in pools:
        info = pool.info
        sizes: list[Cell | str] = ["-"] * 6
        if info.active:
            sizes = [str(info.volumes), write(info.capacity), write(info.allocation), write(info.available)]
            sizes += [output.bar(info.allocation, info.capacity), when(info.taken_at)]
        state = state_cell(info.state, backend=info.backend)
        error = "-" if info.error is None else explain(PoolInaccessibleError(info.error, pool=info.name))
        rows.append([info.name, info.type, state, yes_no(info.autostart), yes_no(info.persistent), *sizes, error])
    rows += [[file.name, "-", state_cell("damaged"), "-", "yes", *["-"] * 6, file.error] for file in damaged]
    output.table(columns, rows, empty=empty)
