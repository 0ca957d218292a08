"""``astore vol check`` and ``vol snapshots``: what qemu-img says of an image. Nothing is changed.

qemu-img opens the file of the volume alone: through a descriptor that is open here, and with no backing file. So it opens
nothing because a header names it.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from astore.cli.command_line import argument, option
from astore.cli.completion import complete_volume
from astore.cli.exits import CliError, Exit, code_of_all, explain
from astore.cli.output import Answer, Cell, Column, Output, size, when
from astore.cli.parameters import pool_option
from astore.cli.session import Session, command
from astore.cli.volumes import find_volume, volume_command
from astore.commands import Command
from astore.errors import AstoreError, CommandError
from astore.model import VolumeType
from astore.model.formats import FORMATS

if TYPE_CHECKING:
    from astore.pools.volume import Volume

_CHECKED = frozenset({"qcow2", "qed", "vdi", "vmdk", "vhdx", "ploop"})
"""The formats that qemu-img can check."""

_STYLES = {"ok": "green", "leaks": "yellow", "damaged": "red", "failed": "red"}
_VERDICTS = {0: "ok", 2: "damaged", 3: "leaks"}
"""The meaning of the exit codes of ``qemu-img check``."""


class _Skipped(CliError):
    """A volume is not looked at."""


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
            found.append(await _checked(session, volume))
        except (AstoreError, OSError, CliError) as error:
            errors.append(error)
        session.ticker.step()
    bad = [one for one in found if one.verdict in ("damaged", "failed")]
    lines = [f"volume {one.volume!r} of pool {one.pool!r} is {one.verdict}" for one in bad]
    code = code_of_all([*errors, *(CliError("") for _ in bad)], len(found) - len(bad))
    document = {"volumes": [msgspec.structs.asdict(one) for one in found]}
    problems = [*map(explain, errors), *lines]
    return Answer(document, lambda output: _show(output, found) if found or not errors else None, problems, code)


async def _checked(session: Session, volume: Volume) -> _Checked:
    """Check a volume."""
    name, pool = volume.name, volume.pool.name
    if volume.info.format not in _CHECKED:
        return _Checked(name, pool, "skipped", note=f"a {volume.info.format} image has no structure to check")
    try:
        code, document, said = await _asked(session, volume, "check")
    except _Skipped as error:
        return _Checked(name, pool, "skipped", note=str(error))
    if code == 1 and "lock" in said:
        return _Checked(name, pool, "skipped", note="it is in use")
    verdict = _VERDICTS.get(code, "failed")
    note = None if verdict != "failed" else " ".join(said.split()) or f"qemu-img failed with exit code {code}"
    counts = (document.get("corruptions", 0) + document.get("check-errors", 0), document.get("leaks", 0))
    return _Checked(name, pool, verdict, *counts, note)


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
    if volume.info.format != "qcow2":
        raise CliError(f"volume {volume.name!r} is {volume.info.format}: only qcow2 images have snapshots inside")
    code, document, said = await _asked(session, volume, "info", "-U")
    if code:
        raise CliError(f"volume {volume.name!r}: {' '.join(said.split())}")
    found = [
        {
            "id": one["id"],
            "name": one["name"],
            "vm_state_size": one["vm-state-size"],
            "time": one["date-sec"] + one["date-nsec"] / 1e9,
        }
        for one in document.get("snapshots", ())
    ]

    def show(output: Output) -> None:
        columns = [Column("ID"), Column("Name", folds=True), Column("Memory", right=True), Column("Made")]
        rows = [[one["id"], one["name"], size(one["vm_state_size"]), when(one["time"])] for one in found]
        output.table(columns, rows, empty=f"volume {volume.name!r} has no snapshots")

    return Answer({"pool": volume.pool.name, "name": volume.name, "snapshots": found}, show)


async def _asked(session: Session, volume: Volume, verb: str, *options: str) -> tuple[int, dict[str, Any], str]:
    """Run qemu-img. Return its exit code, its document and what it said.

    :raises CliError: the volume is no file of this machine, or qemu-img is missing.
    """
    from anyio import to_thread

    if volume.info.data_file is not None:
        raise _Skipped("its data are in another file")
    if volume.info.type != VolumeType.FILE or not os.path.isabs(volume.path):
        raise _Skipped("only files on this machine are looked at")
    driver = next((one.driver for one in FORMATS if one.name == volume.info.format), None) or "raw"
    arguments = ["qemu-img", verb, "--output=json", *options]
    begun: list[Command] = []
    call = to_thread.run_sync(_run, arguments, volume.path, driver, begun, abandon_on_cancel=True)
    try:
        return await session.in_time(call)
    finally:
        for one in begun:
            one.kill()


def _run(arguments: list[str], path: str, driver: str, begun: list[Command]) -> tuple[int, dict[str, Any], str]:
    try:
        number = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise CliError(f"{path}: {error.strerror}") from error
    try:
        if not stat.S_ISREG(os.fstat(number).st_mode):
            raise _Skipped("it is no file any more")
        node: dict[str, Any] = {"driver": driver, "file": {"driver": "file", "filename": f"/dev/fd/{number}"}}
        if any(one.backed for one in FORMATS if one.driver == driver):
            node["backing"] = None
        begun.append(Command((*arguments, f"json:{json.dumps(node)}"), descriptors=[number]))
        done = begun[0].run()
    except CommandError as error:
        raise CliError(f"{error}: install it" if error.returncode is None else str(error)) from error
    finally:
        os.close(number)
    try:
        document = json.loads(done.stdout or b"{}")
    except ValueError:
        document = {}
    return done.returncode, document, done.stderr.decode("utf-8", "replace")
