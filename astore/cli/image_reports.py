"""``astore vol check`` and ``vol snapshots``: what qemu-img says of an image. Nothing is changed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

from astore.cli.command_line import argument, option
from astore.cli.completion import complete_volume
from astore.cli.exits import CliError, Exit, code_of_all, explain
from astore.cli.output import Answer, Cell, Column, Output, size, when
from astore.cli.parameters import pool_option
from astore.cli.session import Session, command
from astore.cli.volumes import find_volume, volume_command
from astore.errors import AstoreError

if TYPE_CHECKING:
    from astore.pools.volume import Volume

_STYLES = {"ok": "green", "leaks": "yellow", "damaged": "red", "failed": "red"}


class _Checked(msgspec.Struct, frozen=True):
    """The outcome for one volume."""

    volume: str
    pool: str | None
    verdict: str
    errors: int = 0
    leaks: int = 0
    note: str | None = None


@command("check")
@argument("volumes", nargs=-1, metavar="VOLUME", help="Names, keys or paths.", shell_complete=complete_volume)
@pool_option
@option("--all", "everything", is_flag=True, help="All volumes of the active pools, or of --pool.")
async def check(session: Session, volumes: tuple[str, ...], pool: str | None, everything: bool) -> Answer:
    """Check the structure of images, and change nothing. Images that are in use are skipped."""
    if bool(volumes) == everything:
        raise CliError("name the volumes, or say --all (not both)", Exit.USAGE)
    wanted: list[str | Volume] = list(volumes)
    if everything:
        pools = [session.pool(pool)] if pool is not None else session.manager.pools(active=True)
        wanted = [one.volume(info.name) for one in pools for info in one.volumes]
    session.ticker.begin("checking", len(wanted))
    found: list[_Checked] = []
    errors: list[Exception] = []
    for one in wanted:
        try:
            volume = await find_volume(session, one, pool) if isinstance(one, str) else one
            found.append(await session.in_time(_checked(volume)))
        except (AstoreError, OSError, CliError) as error:
            errors.append(error)
        session.ticker.step()
    bad = [one for one in found if one.verdict in ("damaged", "failed")]
    lines = [f"volume {one.volume!r} of pool {one.pool!r} is {one.verdict}" for one in bad]
    code = code_of_all([*errors, *(CliError("") for _ in bad)], len(found) - len(bad))
    document = {"volumes": [msgspec.structs.asdict(one) for one in found]}
    problems = [*map(explain, errors), *lines]
    return Answer(document, lambda output: _show(output, found) if found or not errors else None, problems, code)


async def _checked(volume: Volume) -> _Checked:
    found = await volume.check()
    return _Checked(volume.name, volume.pool.name, found.verdict, found.errors, found.leaks, found.note)


def _verdict(one: _Checked) -> Cell:
    return Cell(one.verdict, _STYLES.get(one.verdict, "dim"))


def _show(output: Output, found: Sequence[_Checked]) -> None:
    columns = [Column("Pool", folds=True), Column("Volume", folds=True), Column("Result"), Column("Errors", right=True)]
    rows: list[list[Cell | str]] = [
        [one.pool or "-", one.volume, _verdict(one), str(one.errors), str(one.leaks), one.note or "-"] for one in found
    ]
    output.table([*columns, Column("Leaks", right=True), Column("Note", folds=True)], rows, empty="nothing to check")


@volume_command("snapshots")
async def snapshots(session: Session, volume: Volume) -> Answer:
    """List the snapshots inside an image, which QEMU made."""
    found = [one.to_dict() for one in await session.in_time(volume.image_snapshots())]

    def show(output: Output) -> None:
        columns = [Column("ID"), Column("Name", folds=True), Column("Memory", right=True), Column("Made")]
        rows = [[one["id"], one["name"], size(one["vm_state_size"]), when(one["time"])] for one in found]
        output.table(columns, rows, empty=f"volume {volume.name!r} has no snapshots")

    return Answer({"pool": volume.pool.name, "name": volume.name, "snapshots": found}, show)
