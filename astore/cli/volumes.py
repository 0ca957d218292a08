"""``astore vol``: the commands that show what the last refresh found in the pools."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from stat import filemode
from typing import TYPE_CHECKING

import click

from astore.cli import shapes
from astore.cli.exits import CliError, Exit, shell_word
from astore.cli.output import Answer, Cell, Column, Output, size, when
from astore.cli.parameters import pool_argument, pool_option, volume_argument
from astore.cli.session import Session, command
from astore.errors import printable
from astore.model import ReferenceKind, VolumeInfo

if TYPE_CHECKING:
    from astore.pools.pool import Pool
    from astore.pools.volume import Volume

ANSWER_SECONDS = 5.0
"""How long storage may take to tell what a volume is like now."""


def shown_format(info: VolumeInfo) -> str:
    """A volume's format, and what it looks like where that is something else."""
    return info.format or "-" if info.header_format is None else f"{info.format} (looks like {info.header_format})"


@command("list")
@pool_argument("name")
@click.option("--details", is_flag=True, help="With types, times and paths.")
@click.option("--name", "names_only", is_flag=True, help="Names alone, one in a line.")
async def list_volumes(session: Session, name: str, details: bool, names_only: bool) -> Answer:
    """List a pool's volumes, as the last refresh found them."""
    pool = await looked_at(session, name)
    volumes = pool.volumes
    document = None
    if session.settings.json:  # ten thousand records are not made for nothing
        document = shapes.VolumeList(
            pool.name, pool.snapshot.taken_at or None, tuple(shapes.volume(pool.name, info) for info in volumes)
        )

    def show(output: Output) -> None:
        if names_only:
            for volume in volumes:
                output.value(volume.name)
            return
        columns = [Column("Name", folds=True), Column("Format"), Column("Capacity", right=True)]
        columns += [Column("Allocation", right=True), Column("Backing file", folds=True)]
        rows: list[list[Cell | str]] = [
            [info.name, shown_format(info), size(info.capacity), size(info.allocation), info.backing or "-"]
            for info in volumes
        ]
        if details:
            columns += [Column("Type"), Column("Changed"), Column("Path", folds=True)]
            rows = [
                [*row, info.type, when(info.mtime_ns / 1e9), info.path] for row, info in zip(rows, volumes, strict=True)
            ]
        looks = f"`astore pool refresh {shell_word(pool.name)}` looks for new ones"
        output.table(columns, rows, empty=f"pool {printable(pool.name)!r} has no volumes: {looks}")

    return Answer(document, show)


@command("info")
@volume_argument
@pool_option
@click.option("--bytes", "in_bytes", is_flag=True, help="Sizes in bytes.")
async def info(session: Session, volume: str, pool: str | None, in_bytes: bool) -> Answer:
    """Show one volume as it is now: format, sizes, backing file."""
    found = await _looked_at_anew(session, await find_volume(session, volume, pool))
    record = found.info
    write = str if in_bytes else size

    def show(output: Output) -> None:
        pairs: list[tuple[str, str | None]] = [
            ("Name", record.name),
            ("Pool", found.pool.name),
            ("Type", record.type),
            ("Format", shown_format(record)),
            ("Capacity", write(record.capacity)),
            ("Allocation", write(record.allocation)),
            ("Physical", write(record.physical)),
            ("Backing file", record.backing),
            ("Backing path", record.backing_path),
            ("Backing format", record.backing_format),
            ("Compat", record.compat),
            ("Features", ", ".join(record.features)),
            ("Encryption", record.encryption),
            ("Cluster size", write(record.cluster_size) if record.cluster_size else None),
            *(
                (str(one.kind).capitalize(), f"{one.location or one.name}: {one.doubt}" if one.doubt else one.location)
                for one in record.references
                if one.kind is not ReferenceKind.BACKING or one.doubt
            ),
            ("Extras", ", ".join(record.extras)),
            ("Permissions", f"{filemode(record.mode)} {record.uid}:{record.gid}"),
            ("Changed", when(record.mtime_ns / 1e9)),
            ("Path", record.path),
        ]
        output.fields([(label, text) for label, text in pairs if text])

    return Answer(shapes.volume(found.pool.name, record), show)


@command("dumpxml")
@volume_argument
@pool_option
async def dumpxml(session: Session, volume: str, pool: str | None) -> Answer:
    """Print a volume's libvirt XML, as it is now."""
    xml = (await _looked_at_anew(session, await find_volume(session, volume, pool))).to_xml()
    return Answer(shapes.Xml(xml), lambda output: output.xml(xml))


@command("path")
@volume_argument
@pool_option
async def path(session: Session, volume: str, pool: str | None) -> Answer:
    """Print where a volume is: an absolute path, or a URL."""
    return await _identity(session, volume, pool, lambda found: found.path)


@command("vol-key")
@volume_argument
@pool_option
async def vol_key(session: Session, volume: str, pool: str | None) -> Answer:
    """Print a volume's key."""
    return await _identity(session, volume, pool, lambda found: found.key)


@command("vol-name")
@volume_argument
@pool_option
async def vol_name(session: Session, volume: str, pool: str | None) -> Answer:
    """Print the name of the volume with a key or a path."""
    return await _identity(session, volume, pool, lambda found: found.name)


@command("vol-pool")
@volume_argument
@pool_option
async def vol_pool(session: Session, volume: str, pool: str | None) -> Answer:
    """Print the name of the pool that a volume is in."""
    return await _identity(session, volume, pool, lambda found: found.pool)


async def _identity(
    session: Session, volume: str, pool: str | None, shown: Callable[[shapes.VolumePath], str]
) -> Answer:
    found = await find_volume(session, volume, pool)
    document = shapes.VolumePath(found.pool.name, found.name, found.key, found.path)
    return Answer(document, lambda output: output.value(shown(document)))


async def looked_at(session: Session, name: str) -> Pool:
    """An active pool that has been looked at. :raises InvalidStateError: it is inactive."""
    pool = session.pool(name)
    if not pool.active or not pool.snapshot.generation:
        session.ticker.begin("refreshing")
        await pool.refresh(timeout=session.settings.timeout)
    return pool


async def find_volume(session: Session, text: str, pool: str | None) -> Volume:
    """A volume by its name in a pool, by its key or path, or by a name that only one pool has."""
    from astore.errors import VolumeNotFoundError

    text = await _whole_path(text)
    if pool is not None:
        home = await looked_at(session, pool)
        for info in home.volumes if "/" in text else ():
            if text in (info.key, info.path):
                return home.volume(info.name)
        return home.volume(text)
    try:
        return session.manager.volume_by_path(text)
    except VolumeNotFoundError:
        homes = [one for one in session.manager.pools(active=True) if one.snapshot.get(text) is not None]
    return _only_home(homes, text).volume(text)


async def _whole_path(text: str) -> str:
    """A path as people type it, from here or with detours, as it is in records; anything else as it is."""
    if not text.startswith(("/", "./", "../")):
        return text
    from anyio import to_thread

    return await to_thread.run_sync(os.path.abspath, text)


async def _looked_at_anew(session: Session, volume: Volume) -> Volume:
    """The volume as its storage has it now; where that does not answer, as the last refresh found it."""
    try:
        await volume.refresh(timeout=session.settings.timeout or ANSWER_SECONDS)
    except Exception:
        if volume.pool.snapshot.get(volume.name) is None:
            raise
    return volume


def _only_home(homes: Sequence[Pool], name: str) -> Pool:
    from astore.errors import VolumeNotFoundError

    if not homes:
        raise VolumeNotFoundError(f"no active pool has a volume {name!r}", what=name)
    if len(homes) > 1:
        names = ", ".join(printable(pool.name) for pool in homes)
        raise CliError(
            f"several pools have a volume {name!r} ({names}): say --pool {shell_word(homes[0].name)}", Exit.USAGE
        )
    return homes[0]
