"""``astore vol``: the commands that make, change and remove volumes."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click
import msgspec

from astore.cli import documents
from astore.cli.command_line import argument, option
from astore.cli.completion import complete_algorithm, complete_format, complete_volume
from astore.cli.exits import CliError, Exit, explain, shell_word
from astore.cli.many import Outcome, answer
from astore.cli.output import Answer, Column, Output, size, xml_answer
from astore.cli.ownership import permissions_for
from astore.cli.parameters import backing_format_option, force_option, pool_argument, pool_option
from astore.cli.pools import read_definition
from astore.cli.schemas import validate_option, validated
from astore.cli.session import Session, command
from astore.cli.virsh_text import new_volume_document
from astore.cli.volumes import find_volume, new_address, parted_address, volume_command
from astore.errors import DefinitionError, printable, reason
from astore.model.formats import FORMATS

if TYPE_CHECKING:
    from astore.model import VolumeDef
    from astore.pools.volume import Volume

_MOST = 2**63 - 1
"""The largest off_t."""

format_option = option(
    "--format", metavar="FORMAT", help="raw, qcow2, vmdk, vdi, vpc, qcow or qed.", shell_complete=complete_format
)
prealloc_metadata_option = option("--prealloc-metadata", is_flag=True, help="qcow2: write all metadata now.")


class _Size(click.ParamType[int]):
    """A size in bytes, or with one of libvirt's units."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Parse a size. :raises CliError: it is no size."""
        assert param is not None
        what = param.opts[0] if isinstance(param, click.Option) else f"the {param.name}"
        return value if isinstance(value, int) else parse_size(value, what)


SIZE = _Size()


def parse_size(text: str, what: str) -> int:
    """Parse a size with one of libvirt's units into bytes. :raises CliError: it is no size."""
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


@command("create")
@pool_argument("pool")
@argument("name", metavar="NAME", help="The new volume's name.")
@argument(
    "capacity", type=SIZE, required=False, metavar="CAPACITY", help="10G, 512MiB ...; by default the backing volume's."
)
@option(
    "--allocation",
    type=SIZE,
    metavar="SIZE",
    help="How much space to take at once (raw): none by default; vol-create-as takes all.",
)
@format_option
@option(
    "--backing-vol", "backing", metavar="NAME", help="The volume, or file, behind it.", shell_complete=complete_volume
)
@backing_format_option
@prealloc_metadata_option
@option("--mode", metavar="OCTAL", help="Permissions (default 0600).")
@option("--owner", metavar="USER", help="A name or a number (default: the pool's <permissions>, else who makes it).")
@option("--group", metavar="GROUP", help="A name or a number (default: as for the owner).")
@option("--print-xml", is_flag=True, help="Only print the XML of what would be made.")
async def create(
    session: Session,
    pool: str,
    name: str,
    backing: str | None,
    backing_format: str | None,
    prealloc_metadata: bool,
    print_xml: bool,
    **given: Any,
) -> Answer:
    """Make a volume: complete, or not at all."""
    from astore.model import BackingStore

    definition = await _definition(session, pool, name, backed=backing is not None, **given)
    if definition.capacity is None and backing is None and definition.format != "dir":
        typed = click.get_current_context().command_path
        raise CliError(f"say how large to make {name!r}: `{typed} POOL NAME CAPACITY`", Exit.USAGE)
    if backing is not None:
        place = BackingStore(_backing_path(session, pool, backing), backing_format)
        definition = msgspec.structs.replace(definition, backing=place)
    if print_xml:
        return xml_answer(new_volume_document(definition, given) if session.settings.virsh else definition.to_xml())
    as_what, problems = "", list[str]()
    if not given["format"]:
        as_what = f" (format {definition.format})"
        problems = [] if session.settings.virsh else misleading(name, definition.format)
    try:
        return await _create(session, pool, definition, prealloc_metadata, as_what, problems)
    except DefinitionError as error:
        if error.element != "backingStore" or backing is None or backing_format is not None:
            raise
        if session.pool(pool).snapshot.get(backing) is not None:
            raise
        raise CliError(f"{explain(error)}: {_where_backing_is(session, backing)}", Exit.USAGE) from error


def misleading(name: str, format: str | None) -> list[str]:
    """Return a warning if a new volume's name ends like one of another format; else none."""
    end = name.rpartition(".")[2].lower()
    if end == format or end not in {one.name for one in FORMATS if one.made and one.listed}:
        return []
    return [f"volume {name!r} is {format}, whatever its name says: --format {end} makes {end}"]


async def _definition(
    session: Session,
    pool: str,
    name: str,
    *,
    backed: bool,
    capacity: int | None,
    allocation: int | None,
    format: str | None,
    mode: str | None,
    owner: str | None,
    group: str | None,
) -> VolumeDef:
    """Return the definition of a new volume, without its backing file."""
    from astore.model import VolumeDef

    if session.settings.virsh and allocation is None:  # as in a document without one
        allocation = capacity
    format = format or ("qcow2" if backed else "raw")
    permissions = await permissions_for(session, pool, mode, owner, group)
    return VolumeDef(name, capacity=capacity, allocation=allocation, format=format, permissions=permissions)


def _backing_path(session: Session, pool: str, text: str) -> str:
    """Return what a new image's header shall say of a backing volume.

    A volume of the same pool stays a name, but is a path as in libvirt under virsh's names.
    """
    home = session.pool(pool)
    if (info := home.snapshot.get(text)) is not None:
        return info.path if session.settings.virsh else text
    address = None if os.path.isabs(text) else parted_address(session, text)
    if address is None:
        return text
    other, name = address
    found = other.snapshot.get(name)
    return text if found is None else found.path


def _where_backing_is(session: Session, backing: str) -> str:
    """Return a hint for a backing volume that is not in the new volume's pool."""
    elsewhere = [one for one in session.manager.pools(active=True) if one.snapshot.get(backing) is not None]
    if not elsewhere:
        return "no active pool has it; for a file outside all pools, say --backing-vol-format"
    there = printable(elsewhere[0].volume(backing).info.path)
    return f"pool {printable(elsewhere[0].name)!r} has one of this name: say its path, {there}"


@command("create-xml")
@pool_argument("pool")
@argument("file", metavar="FILE", help="libvirt volume XML; `-` is standard input.")
@prealloc_metadata_option
@validate_option
async def create_xml(session: Session, pool: str, file: str, prealloc_metadata: bool, validate: bool) -> Answer:
    """Make a volume as libvirt's XML says."""
    definition = await definition_from(file, validate=validate)
    return await _create(session, pool, definition, prealloc_metadata)


async def definition_from(file: str, *, validate: bool, copied: bool = False) -> VolumeDef:
    """Read the definition of a volume.

    :param validate: check it by libvirt's schema. :param copied: of a copy, which needs no capacity.
    :raises CliError: it cannot be read, or is not acceptable.
    """
    from astore.model import VolumeDef

    try:
        xml = await read_definition(file)
        return VolumeDef.from_xml(await validated(xml, "volume") if validate else xml, copied=copied)
    except (CliError, DefinitionError) as error:
        raise CliError(f"{'standard input' if file == '-' else file}: {explain(error)}") from error


async def _create(
    session: Session,
    pool: str,
    definition: VolumeDef,
    prealloc_metadata: bool,
    as_what: str = "",
    problems: Sequence[str] = (),
) -> Answer:
    session.ticker.begin("creating")
    home = session.pool(pool)
    volume = await session.in_time(home.create_volume(definition, prealloc_metadata=prealloc_metadata))
    return told(volume, f"created{as_what}", problems)


@volume_command("resize", signed=True)
@argument("capacity", metavar="CAPACITY", help="Bytes, or with a unit: 10G, 512MiB, 20GB.")
@option("--delta", is_flag=True, help="Add CAPACITY to what it has (with --shrink: subtract it).")
@option("--shrink", is_flag=True, help="Allow a smaller capacity; data beyond it is lost.")
@option("--allocate", is_flag=True, help="Take the space at once.")
@force_option
async def resize(
    session: Session, volume: Volume, capacity: str, delta: bool, shrink: bool, allocate: bool, force: bool
) -> Answer:
    """Give a volume another capacity."""
    if capacity.startswith("-"):  # virsh accepts this as well
        if not (delta and shrink):
            raise CliError(f"the capacity {printable(capacity)!r}: to shrink, say --delta --shrink", Exit.USAGE)
        capacity = capacity[1:]
    if capacity.startswith("+"):
        raise CliError(f"the capacity {printable(capacity)!r}: to add to what it has, say --delta", Exit.USAGE)
    amount = parse_size(capacity, "the capacity")
    session.ticker.begin("resizing")
    try:
        await session.in_time(volume.resize(amount, delta=delta, shrink=shrink, allocate=allocate, force=force))
    except DefinitionError as error:
        if shrink or delta or amount >= volume.info.capacity:
            raise
        raise CliError(f"{explain(error)} with --shrink", Exit.USAGE) from error
    return told(volume, f"resized to {size(volume.info.capacity)}")


@volume_command("wipe")
@option(
    "--algorithm",
    default="zero",
    show_default=True,
    metavar="NAME",
    help="zero, nnsa, dod, bsi, gutmann, schneier, pfitzner7, pfitzner33, random or trim.",
    shell_complete=complete_algorithm,
)
@force_option
async def wipe(session: Session, volume: Volume, algorithm: str, force: bool) -> Answer:
    """Overwrite a volume's data."""
    session.ticker.begin_bytes(f"wiping {volume.name}")
    with how_far(session, volume):
        await session.in_time(volume.wipe(algorithm, on_progress=session.ticker.progress, force=force))
    return told(volume, "wiped")


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
    while len(waiting) != refused:  # try again: a volume backed by a refused one may be deleted by now
        refused = len(waiting)
        for text in waiting:
            outcomes[text] = await _deleted(session, text, pool, force)
            session.ticker.step(len(outcomes))
        waiting = [text for text in waiting if isinstance(outcomes[text].error, VolumeInUseError)]
    return answer("delete", list(outcomes.values()), "volume {name} deleted")


async def _deleted(session: Session, text: str, pool: str | None, force: bool) -> Outcome:
    outcome = Outcome(None, None, None, volume=text)
    try:
        found = await find_volume(session, text, pool)
        outcome = Outcome(None, found.pool, None, volume=found.name)
        await session.in_time(found.delete(force=force))
    except Exception as error:
        return Outcome(None, outcome.pool, error, volume=outcome.volume)
    return outcome


@volume_command("rename")
@argument("name", metavar="NAME", help="The new name, which must be free.")
@force_option
async def rename(session: Session, volume: Volume, name: str, force: bool) -> Answer:
    """Give a volume another name in its pool."""
    pool, name = new_address(session, name) or (volume.pool, name)
    if pool is not volume.pool:
        where = shell_word(f"{pool.name}/{name}")
        raise CliError(
            f"it stays in its pool {volume.pool.name!r}: `astore vol move VOLUME {where}` moves it", Exit.USAGE
        )
    renamed = await session.in_time(volume.rename(name, force=force))
    return told(renamed, f"renamed from {volume.name!r}")


@volume_command("set-format")
@argument("format", metavar="FORMAT", help="`raw`, or what its header says.", shell_complete=complete_format)
async def set_format(session: Session, volume: Volume, format: str) -> Answer:
    """Set the format of a volume that was made raw and has the header of another format."""
    await session.in_time(volume.set_format(format))
    return told(volume, f"is {format}")


@volume_command("chain")
async def chain(session: Session, volume: Volume) -> Answer:
    """Show the files that a volume is made of: its backing chain and its data files."""
    # each backend recognises the URLs of its pools
    await session.manager.registry.load(one.type for one in session.manager.pools(active=True))
    links = [
        {
            "path": link.path,
            "format": link.format,
            "pool": None if link.volume is None else link.volume.pool.name,
            "volume": None if link.volume is None else link.volume.name,
            "kind": link.kind,
            "doubt": link.doubt,
        }
        for link in volume.backing_chain()
    ]

    def show(output: Output) -> None:
        columns = [Column("Image", folds=True), Column("Use"), Column("Format"), Column("Pool", folds=True)]
        output.table(columns, [[link[name] or "-" for name in ("path", "kind", "format", "pool")] for link in links])
        for link in links:
            if link["doubt"] is not None:
                output.line(f"{link['path']} {link['doubt']}: nothing is read through it")

    return Answer({"links": links}, show)


@volume_command("dependents")
async def dependents(session: Session, volume: Volume) -> Answer:
    """Show which volumes need this one."""
    await session.manager.registry.load((volume.pool.type,))  # the backend recognises the URLs of its pool
    others = [documents.volume(one.pool.name, one.info) for one in session.manager.dependents(volume)]

    def show(output: Output) -> None:
        columns = [Column("Name", folds=True), Column("Pool", folds=True), Column("Path", folds=True)]
        rows = [[one["name"], one["pool"], one["path"]] for one in others]
        output.table(columns, rows, empty=f"no volume of an active pool is backed by {volume.name!r}")

    return Answer({"volumes": others}, show)


def told(volume: Volume, what: str, problems: Sequence[str] = (), **facts: str) -> Answer:
    """Make the answer that is one volume. :param facts: for virsh's sentence."""
    record = volume.info
    line = f"volume {record.name!r} {what}"
    return Answer(documents.volume(volume.pool.name, record), lambda output: output.line(line), problems, facts=facts)


@contextmanager
def how_far(session: Session, volume: Volume) -> Iterator[None]:
    """Add to an interruption, a timeout, or a source's fault how many bytes were written, since they cannot be taken back.

    :raises CliError: the command was cancelled; this error replaces the cancellation. TimeoutError: it timed out.
    """
    import asyncio

    try:
        yield
    except (asyncio.CancelledError, TimeoutError, CliError) as error:
        done, total = session.ticker.done
        if isinstance(error, CliError) and not done:
            raise
        of_all = "" if total is None else f" of {size(total)}"
        far = f"{size(done)}{of_all} were written to volume {volume.name!r}"
        if isinstance(error, TimeoutError):
            raise TimeoutError(f"{reason(error)}, {far}") from error
        if isinstance(error, CliError):
            raise CliError(f"{error}; {far}", error.code) from error
        raise CliError(f"interrupted, {far}", Exit.INTERRUPTED) from error
