"""``astore vol check`` and ``vol snapshots``: what qemu-img says of an image. Nothing is changed.

qemu-img opens no file. The volume is served to it, with the header that was checked, and with no backing file. An image that
has its data in other files is not looked at. So nothing is opened because a header names it.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any, cast

import msgspec

from astore.cli.command_line import argument, option
from astore.cli.completion import complete_volume
from astore.cli.exits import CliError, Exit, code_of_all, explain
from astore.cli.output import Answer, Cell, Column, Output, size, when
from astore.cli.parameters import pool_option
from astore.cli.session import Session, command
from astore.cli.volumes import find_volume, volume_command
from astore.commands import Command
from astore.errors import AstoreError, CommandError, VolumeBusyError
from astore.model import VolumeInfo, VolumeType

if TYPE_CHECKING:
    from astore.backend import QemuNode, ServesVolumes
    from astore.pools.volume import Volume

_CHECKED = frozenset({"qcow2", "qed", "vdi", "vmdk", "vhdx", "ploop"})
"""The formats that qemu-img can check."""

_STYLES = {"ok": "green", "leaks": "yellow", "damaged": "red", "failed": "red"}
_VERDICTS = {0: "ok", 2: "damaged", 3: "leaks"}
"""The meaning of the exit codes of ``qemu-img check``."""


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
    """Check a volume."""
    name, pool = volume.name, volume.pool.name
    why = _why_unchecked(volume.info) or _why_unchecked(await volume.refresh())
    if why is not None:
        return _Checked(name, pool, "skipped", note=why)
    try:
        code, document, said = await _asked("check", volume.info, _unused(volume))
    except VolumeBusyError:
        return _Checked(name, pool, "skipped", note="it is in use")
    verdict = _VERDICTS.get(code, "failed")
    note = None if verdict != "failed" else _failure(code, said)
    counts = (document.get("corruptions", 0) + document.get("check-errors", 0), document.get("leaks", 0))
    return _Checked(name, pool, verdict, *counts, note)


def _why_unchecked(info: VolumeInfo) -> str | None:
    """Return why a volume is not checked, or None."""
    if info.format not in _CHECKED:
        return f"a {info.format} image has no structure to check"
    return _why_unread(info)


def _why_unread(info: VolumeInfo) -> str | None:
    """Return why an image is not given to qemu-img, or None."""
    from astore.volume_io.headers import elsewhere

    if elsewhere(info) is not None:
        return "its data are in another file"
    if info.type != VolumeType.FILE or not os.path.isabs(info.path):
        return "only files on this machine are looked at"
    return None


def _failure(code: int, said: str) -> str:
    """Return why qemu-img failed."""
    if code in (-signal.SIGKILL, -signal.SIGXCPU):
        return "qemu-img was killed: the image takes more processor time or memory than it may"
    return " ".join(said.split()) or f"qemu-img failed with exit code {code}"


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
    document = await session.in_time(_described(volume))
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


async def _described(volume: Volume) -> dict[str, Any]:
    """Return what ``qemu-img info`` says of a qcow2 image. :raises CliError: it is none, or cannot be read."""
    info = await volume.refresh()
    if info.format != "qcow2":
        raise CliError(f"volume {volume.name!r} is {info.format}: only qcow2 images have snapshots inside")
    if (why := _why_unread(info)) is not None:
        raise CliError(f"volume {volume.name!r}: {why}")
    code, document, said = await _asked("info", info, _used_too(volume))
    if code:
        raise CliError(f"volume {volume.name!r}: {_failure(code, said)}")
    return document


@contextlib.asynccontextmanager
async def _unused(volume: Volume) -> AsyncIterator[QemuNode]:
    """Serve an image that no running QEMU writes.

    :raises VolumeBusyError: one does. StorageError: EAGAIN: the header is not that of the volume's record any more.
    """
    from astore.pools.job_support import require_usable, seeing_change, worked

    parts = volume.pool.parts
    session = await require_usable(parts, "check a volume").able("serve-volume")
    async with seeing_change(parts, volume.name), contextlib.AsyncExitStack() as stack:
        opening = cast("ServesVolumes", session).qemu_node(volume.info, "checking")
        yield await worked(parts, stack.enter_async_context(opening))


@contextlib.asynccontextmanager
async def _used_too(volume: Volume) -> AsyncIterator[QemuNode]:
    """Serve a qcow2 image with its present header, even if a running QEMU writes it.

    :raises CliError: the header is malformed, of another format, or names a data file.
    """
    from astore.images import HEADER_SIZE, ImageError, probe
    from astore.images.headers import without_references
    from astore.pools.job_support import require_usable
    from astore.volume_io import qemu_img
    from astore.volume_io.export import Export
    from astore.volume_io.qemu_worker import QemuWorker

    async with volume.open() as file:
        head = without_references("qcow2", await file.pread(HEADER_SIZE, 0))
        try:
            image = probe(head)
        except ImageError as error:
            raise CliError(f"volume {volume.name!r}: {error}") from error
        if image is None or image.format != "qcow2" or image.references:
            raise CliError(f"volume {volume.name!r}: it changed meanwhile")
        size = (await file.stat()).size
        parts = volume.pool.parts
        lane = require_usable(parts, "look into a volume").lane
        assert lane is not None  # a file of the pool is open
        worker = QemuWorker(parts.services.context(parts.name, volume.pool.uuid, lane))
        async with worker.serving(Export(file, size, size, head=head)) as storage:
            yield qemu_img.node("qcow2", storage)


async def _asked(
    verb: str, info: VolumeInfo, serving: AbstractAsyncContextManager[QemuNode]
) -> tuple[int, dict[str, Any], str]:
    """Run qemu-img on an image that is served. Return its exit code, its document and what it said.

    :raises CliError: qemu-img is missing. :raises: what ``serving`` raises.
    """
    from astore.cancellation import shielded
    from astore.lanes.own_thread import on_own_thread
    from astore.volume_io import qemu_img

    stored = min(info.physical, info.allocation or info.physical)
    async with serving as node:
        argv = ("qemu-img", verb, "--output=json", qemu_img.filename(node))
        program = Command(
            argv,
            qemu_img.CONVERT_SECONDS,
            limits=qemu_img.limits(stored),
            descriptors=qemu_img.descriptors(node),
        )
        try:
            done = await on_own_thread(program.run, name="astore-program")
        except CommandError as error:
            raise CliError(f"{error}: install it" if error.returncode is None else str(error)) from error
        finally:
            program.kill()
            await shielded(program.gone())
    try:
        document = json.loads(done.stdout or b"{}")
    except ValueError:
        document = {}
    return done.returncode, document, done.stderr.decode("utf-8", "replace")
