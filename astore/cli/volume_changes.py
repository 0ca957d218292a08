"""``astore vol``: the commands that make, change and remove volumes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from astore.cli import shapes
from astore.cli.completion import complete_algorithm, complete_format, complete_pool, complete_volume
from astore.cli.exits import CliError, Exit, explain
from astore.cli.many import Outcome, answer
from astore.cli.output import Answer, Column, Output, size
from astore.cli.parameters import argument, force_option, pool_argument, pool_option, volume_argument
from astore.cli.pools import read_definition
from astore.cli.session import Session, command
from astore.cli.volumes import find_volume
from astore.errors import DefinitionError, printable, reason

if TYPE_CHECKING:
    from astore.model import Permissions, VolumeDef
    from astore.pools.volume import Volume

_MOST = 2**63 - 1
"""off_t's largest."""

format_option = click.option("--format", metavar="FORMAT", help="raw, qcow2, vmdk ...", shell_complete=complete_format)
prealloc_metadata_option = click.option("--prealloc-metadata", is_flag=True, help="qcow2: write all metadata now.")


def parse_size(text: str, what: str) -> int:
    """Bytes, from a number with libvirt's units. :raises CliError: it is no size."""
    from astore.xml.reading import parse_size as with_unit

    number = text.strip()
    digits = number.rstrip("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ ")
    if not digits.isdigit():
        raise CliError(f"{what} {printable(text)!r} is no size: a whole number, with a unit or without", Exit.USAGE)
    try:
        found = with_unit(digits, number[len(digits) :].strip() or None)
    except DefinitionError as error:
        raise CliError(f"{what} {printable(text)!r}: {error}", Exit.USAGE) from error
    if found > _MOST:
        raise CliError(f"{what} {printable(text)!r}: no file is so large", Exit.USAGE)
    return found


def _optional_size(text: str | None, what: str) -> int | None:
    return None if text is None else parse_size(text, what)


@command("create")
@pool_argument("pool")
@argument("name", metavar="NAME", help="The new volume's name.")
@argument("capacity", required=False, metavar="CAPACITY", help="10G, 512MiB ...; by default the backing volume's.")
@click.option("--allocation", metavar="SIZE", help="Take so much space at once (raw).")
@format_option
@click.option("--backing-vol", "backing", metavar="NAME", help="The volume, or file, that it is backed by.")
@click.option("--backing-vol-format", "backing_format", metavar="FORMAT", help="If no pool knows it.")
@prealloc_metadata_option
@click.option("--mode", metavar="OCTAL", help="Permissions (default 0600).")
@click.option("--print-xml", is_flag=True, help="Only print the XML of what would be made.")
async def create(
    session: Session,
    pool: str,
    name: str,
    capacity: str | None,
    allocation: str | None,
    format: str | None,
    backing: str | None,
    backing_format: str | None,
    prealloc_metadata: bool,
    mode: str | None,
    print_xml: bool,
) -> Answer:
    """Make a volume: complete, or not at all."""
    from astore.model import BackingStore, VolumeDef

    permissions = _permissions(mode)
    definition = VolumeDef(
        name,
        capacity=_optional_size(capacity, "the capacity"),
        allocation=_optional_size(allocation, "--allocation"),
        format=format or ("qcow2" if backing else "raw"),
        permissions=permissions,
        backing=None if backing is None else BackingStore(backing, backing_format),
    )
    if definition.capacity is None and backing is None and definition.format != "dir":
        raise CliError(f"say how large {name!r} is to be: `astore vol create POOL NAME CAPACITY`", Exit.USAGE)
    if print_xml:
        text = definition.to_xml()
        return Answer(shapes.Xml(text), lambda output: output.xml(text))
    try:
        return await _create(session, pool, definition, prealloc_metadata)
    except DefinitionError as error:
        if error.element != "backingStore" or backing is None or backing_format is not None:
            raise
        if session.pool(pool).snapshot.get(backing) is not None:
            raise
        raise CliError(f"{explain(error)}: {_where_backing_is(session, backing)}", Exit.USAGE) from error


def _permissions(mode: str | None) -> Permissions | None:
    from astore.model import Permissions

    if mode is None:
        return None
    if not (mode.isdigit() and set(mode) <= set("01234567") and int(mode, 8) <= 0o777):
        raise CliError(f"--mode {printable(mode)!r} is no octal number up to 0777", Exit.USAGE)
    return Permissions(int(mode, 8))


def _where_backing_is(session: Session, backing: str) -> str:
    """A hint for a backing volume that is not in the pool of the new one."""
    elsewhere = [one for one in session.manager.pools(active=True) if one.snapshot.get(backing) is not None]
    if not elsewhere:
        return "no active pool has it; for a file that is none of a pool's, say --backing-vol-format"
    there = printable(elsewhere[0].volume(backing).info.path)
    return f"pool {printable(elsewhere[0].name)!r} has one of this name: say its path, {there}"


@command("create-xml")
@pool_argument("pool")
@argument("file", metavar="FILE", help="libvirt volume XML; `-` is standard input.")
@prealloc_metadata_option
async def create_xml(session: Session, pool: str, file: str, prealloc_metadata: bool) -> Answer:
    """Make a volume as libvirt's XML says."""
    from astore.model import VolumeDef

    try:
        definition = VolumeDef.from_xml(await read_definition(file))
    except (CliError, DefinitionError) as error:
        raise CliError(f"{'standard input' if file == '-' else file}: {explain(error)}") from error
    return await _create(session, pool, definition, prealloc_metadata)


async def _create(session: Session, pool: str, definition: VolumeDef, prealloc_metadata: bool) -> Answer:
    session.ticker.begin("creating")
    home = session.pool(pool)
    volume = await session.in_time(home.create_volume(definition, prealloc_metadata=prealloc_metadata))
    return _told(volume, "created")


@command("clone")
@volume_argument
@argument("name", metavar="NAME", help="The new volume's name.")
@pool_option
@click.option("--to", metavar="POOL", help="The pool of the new one, if it is another.", shell_complete=complete_pool)
@format_option
@click.option("--capacity", metavar="SIZE", help="If it is to be larger.")
async def clone(
    session: Session, volume: str, name: str, pool: str | None, to: str | None, format: str | None, capacity: str | None
) -> Answer:
    """Make a volume out of another, in any pool and format."""
    from astore.model import VolumeDef

    source = await find_volume(session, volume, pool)
    definition = VolumeDef(name, capacity=_optional_size(capacity, "--capacity"), format=format)
    target = source.pool if to is None else session.pool(to)
    session.ticker.begin_bytes(f"copying {source.name}")
    made = await session.in_time(target.copy_volume(source, definition, on_progress=session.ticker.progress))
    left_out = [extra for extra in source.info.extras if extra not in made.info.extras]
    problems = [f"volume {made.name!r} does not have its source's {' and '.join(left_out)}"] if left_out else []
    return _told(made, f"cloned from {source.name!r}", problems)


@command("resize", signed=True)
@volume_argument
@argument("capacity", metavar="CAPACITY", help="Bytes, or with a unit: 10G, 512MiB, 20GB.")
@pool_option
@click.option("--delta", is_flag=True, help="CAPACITY is what it is to have more (or less).")
@click.option("--shrink", is_flag=True, help="It may become smaller: what is beyond is lost.")
@click.option("--allocate", is_flag=True, help="Take the space at once.")
@force_option
async def resize(
    session: Session,
    volume: str,
    capacity: str,
    pool: str | None,
    delta: bool,
    shrink: bool,
    allocate: bool,
    force: bool,
) -> Answer:
    """Give a volume another capacity."""
    if capacity.startswith("-"):  # which virsh takes too
        if not (delta and shrink):
            raise CliError(f"the capacity {printable(capacity)!r}: less is said by --delta --shrink", Exit.USAGE)
        capacity = capacity[1:]
    amount = parse_size(capacity, "the capacity")
    found = await find_volume(session, volume, pool)
    session.ticker.begin("resizing")
    try:
        await session.in_time(found.resize(amount, delta=delta, shrink=shrink, allocate=allocate, force=force))
    except DefinitionError as error:
        if shrink or delta or not 0 < amount < found.info.capacity:
            raise
        raise CliError(f"{explain(error)} with --shrink", Exit.USAGE) from error
    return _told(found, f"resized to {size(found.info.capacity)}")


@command("wipe")
@volume_argument
@pool_option
@click.option(
    "--algorithm",
    default="zero",
    show_default=True,
    metavar="NAME",
    help="zero, nnsa, dod, bsi, gutmann, schneier, pfitzner7, pfitzner33, random or trim.",
    shell_complete=complete_algorithm,
)
@force_option
async def wipe(session: Session, volume: str, pool: str | None, algorithm: str, force: bool) -> Answer:
    """Overwrite a volume's data."""
    found = await find_volume(session, volume, pool)
    session.ticker.begin_bytes(f"wiping {found.name}")
    with how_far(session, found):
        await session.in_time(found.wipe(algorithm, on_progress=session.ticker.progress, force=force))
    return _told(found, "wiped")


@command("delete")
@argument(
    "volumes", nargs=-1, required=True, metavar="VOLUME", help="Names, keys or paths.", shell_complete=complete_volume
)
@pool_option
@force_option
async def delete(session: Session, volumes: tuple[str, ...], pool: str | None, force: bool) -> Answer:
    """Remove volumes; directories only if they are empty."""
    from astore.errors import VolumeInUseError

    outcomes: dict[str, Outcome] = {}
    session.ticker.begin("deleting", len(set(volumes)))
    waiting, refused = list(dict.fromkeys(volumes)), 0
    while len(waiting) != refused:  # what is backed by one of them may be among the others
        refused = len(waiting)
        for text in waiting:
            outcomes[text] = await _deleted(session, text, pool, force)
            session.ticker.step(len(outcomes))
        waiting = [text for text in waiting if isinstance(outcomes[text].error, VolumeInUseError)]
    return answer("delete", list(outcomes.values()), "volume {name} deleted")


async def _deleted(session: Session, text: str, pool: str | None, force: bool) -> Outcome:
    try:
        found = await find_volume(session, text, pool)
    except Exception as error:
        return Outcome(text, None, error, volume=text)
    try:
        await session.in_time(found.delete(force=force))
    except Exception as error:
        return Outcome(text, found.pool, error, volume=found.name)
    return Outcome(text, found.pool, None, volume=found.name)


@command("rename")
@volume_argument
@argument("name", metavar="NAME", help="Its new name, which nobody has.")
@pool_option
@force_option
async def rename(session: Session, volume: str, name: str, pool: str | None, force: bool) -> Answer:
    """Give a volume another name in its pool."""
    found = await find_volume(session, volume, pool)
    renamed = await session.in_time(found.rename(name, force=force))
    return _told(renamed, f"renamed from {found.name!r}")


@command("set-format")
@volume_argument
@argument("format", metavar="FORMAT", help="`raw`, or what its header says.")
@pool_option
async def set_format(session: Session, volume: str, format: str, pool: str | None) -> Answer:
    """Say what a volume is that was made raw, and whose content says that it is something else."""
    found = await find_volume(session, volume, pool)
    await session.in_time(found.set_format(format))
    return _told(found, f"is {format}")


@command("chain")
@volume_argument
@pool_option
async def chain(session: Session, volume: str, pool: str | None) -> Answer:
    """Show the files that a volume is made of: what backs it, down to the bottom, and what has data of it."""
    top = await find_volume(session, volume, pool)
    await session.manager.registry.load(one.type for one in session.manager.pools(active=True))  # who know their URLs
    links = top.backing_chain()
    found = tuple(
        shapes.ChainLink(
            link.path,
            link.format,
            None if link.volume is None else link.volume.pool.name,
            None if link.volume is None else link.volume.name,
            link.kind,
            link.doubt,
        )
        for link in links
    )

    def show(output: Output) -> None:
        columns = [Column("Image", folds=True), Column("Use"), Column("Format"), Column("Pool", folds=True)]
        rows = [[link.path, link.kind or "-", link.format or "-", link.pool or "-"] for link in found]
        output.table(columns, rows)
        for link in found:
            if link.doubt is not None:
                output.line(f"{link.path} {link.doubt}: nothing is read through it")

    return Answer(shapes.Chain(found), show)


@command("dependents")
@volume_argument
@pool_option
async def dependents(session: Session, volume: str, pool: str | None) -> Answer:
    """Show which volumes need this one."""
    found = await find_volume(session, volume, pool)
    await session.manager.registry.load((found.pool.type,))  # which knows by which URLs others name its volumes
    others = session.manager.dependents(found)
    document = shapes.Dependents(tuple(shapes.volume(one.pool.name, one.info) for one in others))

    def show(output: Output) -> None:
        rows = [[one.name, one.pool, one.path] for one in document.volumes]
        columns = [Column("Name", folds=True), Column("Pool", folds=True), Column("Path", folds=True)]
        output.table(columns, rows, empty=f"no volume of an active pool is backed by {found.name!r}")

    return Answer(document, show)


def _told(volume: Volume, what: str, problems: Sequence[str] = ()) -> Answer:
    record = volume.info
    line = f"volume {record.name!r} {what}"
    return Answer(shapes.volume(volume.pool.name, record), lambda output: output.line(line), problems)


@contextmanager
def how_far(session: Session, volume: Volume) -> Iterator[None]:
    """Who breaks off a work that cannot be taken back is told how far it came.

    :raises CliError: instead of a cancellation: the command ends with it. TimeoutError: instead of another.
    """
    import asyncio

    try:
        yield
    except (asyncio.CancelledError, TimeoutError) as error:
        done, total = session.ticker.done
        of_all = "" if total is None else f" of {size(total)}"
        far = f"{size(done)}{of_all} were written to volume {volume.name!r}"
        if isinstance(error, TimeoutError):
            raise TimeoutError(f"{reason(error)}, {far}") from error
        raise CliError(f"interrupted, {far}", Exit.INTERRUPTED) from error
