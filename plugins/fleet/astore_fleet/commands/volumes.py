"""``astore --fleet URL vol``: the volumes of a fleet's pools."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import click

from astore.cli import documents
from astore.cli.command_line import argument, option
from astore.cli.exits import CliError, Exit, explain, shell_word
from astore.cli.output import Answer, Cell, Column, Output, size, when, xml_answer
from astore.cli.parameters import force_option, volume_argument
from astore.cli.volume_changes import SIZE, definition_from, format_option, parse_size, prealloc_metadata_option
from astore.cli.volumes import shown_format
from astore.errors import DefinitionError, PoolNotFoundError, VolumeNotFoundError, printable
from astore.model import BackingStore, VolumeDef, VolumeInfo
from astore.xml.volume import volume_info_to_xml
from astore_fleet.client.fleet_pool import FleetPool
from astore_fleet.commands.place import Opened, fleet_command
from astore_fleet.commands.pools import Outcome, age_of, told
from astore_fleet.records import FleetVolume

pool_option = option("--pool", metavar="POOL", help="Where to look for a name.")


# ------------------------------------------------------------------------------------------------ finding volumes


async def find_place(opened: Opened, text: str, pool: str | None) -> tuple[FleetPool, str]:
    """Return the pool and the name of a volume that is named with its pool, or that one snapshot has.

    A name in a pool need not be in a snapshot: the pool's host knows better.

    :param text: a name, POOL/NAME, a key or a path.
    :raises VolumeNotFoundError: no snapshot has it. CliError: several have it.
    """
    if pool is not None and "/" not in text:
        return opened.pool(pool), text
    homes = None if pool is None else [opened.pool(pool).name]
    if homes is None and not text.startswith("/") and "/" in text:
        begin, _, name = text.partition("/")
        try:
            return opened.pool(begin), name
        except PoolNotFoundError:  # it may be a key
            pass

    def matches(info: VolumeInfo) -> bool:
        return text in (info.name, info.key, info.path)

    found = [one for one in await opened.fleet.volumes(matches) if homes is None or one.pool in homes]
    if not found:
        raise VolumeNotFoundError(f"no pool of the fleet has a volume {text!r}", what=text)
    if len(found) > 1:
        names = ", ".join(printable(one.pool) for one in found)
        hint = f"say --pool {shell_word(found[0].pool)}"
        raise CliError(f"several pools have a volume {text!r} ({names}): {hint}", Exit.USAGE)
    return opened.fleet.pool(found[0].pool), found[0].info.name


async def find_volume(opened: Opened, text: str, pool: str | None) -> FleetVolume:
    """Return a volume as it was last seen. :raises VolumeNotFoundError, CliError: see :func:`find_place`."""
    home, name = await find_place(opened, text, pool)
    found, info = (await home.snapshot()).get(name), home.info
    if found is None:
        raise VolumeNotFoundError(f"pool {home.name!r} has no volume {name!r}", what=name)
    return FleetVolume(home.name, info.owner or "", found, info.age or 0.0)


# --------------------------------------------------------------------------------------------------------- looking


def show_volumes(
    output: Output, found: Sequence[FleetVolume], details: bool, empty: str, write: Callable[[int], str] = size
) -> None:
    """Write a table of volumes. :param write: writes sizes."""
    columns = [Column("Pool", folds=True), Column("Name", folds=True), Column("Format")]
    columns += [Column("Capacity", right=True), Column("Allocation", right=True), Column("Backing file", folds=True)]
    columns += [Column("Type"), Column("Changed"), Column("Path", folds=True)] if details else []
    rows: list[list[Cell | str]] = []
    for pool, _, info, _ in ((one.pool, one.host, one.info, one.age) for one in found):
        row: list[Cell | str] = [pool, info.name, shown_format(info), write(info.capacity), write(info.allocation)]
        row.append(info.backing or "-")
        rows.append([*row, info.type, when(info.mtime_ns / 1e9), info.path] if details else row)
    output.table(columns, rows, empty=empty)


@fleet_command("list")
@argument("name", required=False, metavar="POOL", help="A pool's name or UUID.")
@option("--details", is_flag=True, help="With types, times and paths.")
@option("--bytes", "in_bytes", is_flag=True, help="Sizes in bytes.")
@option("--name", "names_only", is_flag=True, help="Names alone, one in a line; POOL/NAME for all pools.")
@option("--matching", metavar="TEXT", help="A part of the name.")
@option("--format", metavar="FORMAT", help="Such as qcow2.")
@option("--backing", metavar="PATH", help="The path of the backing file.")
@option("--bigger-than", type=SIZE, metavar="SIZE", help="The least capacity, exclusive.")
async def list_volumes(
    opened: Opened,
    name: str | None,
    details: bool,
    in_bytes: bool,
    names_only: bool,
    matching: str | None,
    format: str | None,
    backing: str | None,
    bigger_than: int | None,
) -> Answer:
    """List the volumes of a pool, or search those of all pools, as they were last seen."""
    pool = None if name is None else opened.pool(name).info
    found = await opened.fleet.search(
        name=matching,
        format=format,
        backing=backing,
        bigger_than=bigger_than,
        pools=None if pool is None else [pool.name],
    )

    def document() -> documents.Document:
        volumes = [_document(one) for one in found]
        seen = None if pool is None else pool.taken_at or None
        return {"pool": None if pool is None else pool.name, "refreshed_at": seen, "volumes": volumes}

    def show(output: Output) -> None:
        if names_only:
            for one in found:
                output.value(one.info.name if pool is not None else f"{one.pool}/{one.info.name}")
        else:
            show_volumes(output, found, details, "no volume is known, or none matches", str if in_bytes else size)

    return Answer(document, show)


def _document(one: FleetVolume) -> documents.Document:
    return {**documents.volume(one.pool, one.info), "host": one.host, "age": one.age}


@fleet_command("info")
@volume_argument
@pool_option
@option("--bytes", "in_bytes", is_flag=True, help="Sizes in bytes.")
async def show_info(opened: Opened, volume: str, pool: str | None, in_bytes: bool) -> Answer:
    """Show one volume as it was last seen: its pool and host, format, sizes, backing file."""
    one = await find_volume(opened, volume, pool)
    info, write = one.info, str if in_bytes else size
    pairs = [
        ("Name", info.name),
        ("Pool", one.pool),
        ("Host", one.host or "-"),
        ("Type", str(info.type)),
        ("Format", shown_format(info)),
        ("Capacity", write(info.capacity)),
        ("Allocation", write(info.allocation)),
        ("Physical", write(info.physical)),
        ("Backing file", info.backing),
        ("Backing format", info.backing_format),
        ("Changed", when(info.mtime_ns / 1e9)),
        ("Path", info.path),
        ("Seen", age_of(one.age)),
    ]
    return Answer(_document(one), lambda output: output.fields([(label, text) for label, text in pairs if text]))


@fleet_command("dumpxml")
@volume_argument
@pool_option
async def dumpxml(opened: Opened, volume: str, pool: str | None) -> Answer:
    """Print a volume's libvirt XML, as it was last seen."""
    return xml_answer(volume_info_to_xml((await find_volume(opened, volume, pool)).info, None))


@fleet_command("path")
@volume_argument
@pool_option
async def path(opened: Opened, volume: str, pool: str | None) -> Answer:
    """Print where a volume is: an absolute path on its host, or a URL."""
    one = await find_volume(opened, volume, pool)
    document = {"pool": one.pool, "name": one.info.name, "key": one.info.key, "path": one.info.path}
    return Answer(document, lambda output: output.value(one.info.path))


# --------------------------------------------------------------------------------------------------------- working


def _made(pool: str, info: VolumeInfo, what: str) -> Answer:
    return Answer(documents.volume(pool, info), lambda output: output.line(f"volume {info.name!r} {what}"))


@fleet_command("create")
@argument("pool", metavar="POOL", help="A pool's name or UUID.")
@argument("name", metavar="NAME", help="The new volume's name.")
@argument("capacity", type=SIZE, required=False, metavar="CAPACITY", help="10G, 512MiB ...")
@option("--allocation", type=SIZE, metavar="SIZE", help="How much space to take at once (raw).")
@format_option
@option("--backing-vol", "backing", metavar="NAME", help="The volume, or file, that it is backed by.")
@option("--backing-vol-format", "backing_format", metavar="FORMAT", help="Its format, if no pool knows it.")
@prealloc_metadata_option
async def create(
    opened: Opened,
    pool: str,
    name: str,
    capacity: int | None,
    allocation: int | None,
    format: str | None,
    backing: str | None,
    backing_format: str | None,
    prealloc_metadata: bool,
) -> Answer:
    """Make a volume on the pool's host: complete, or not at all."""
    if capacity is None and backing is None and format != "dir":
        raise CliError(f"say how large to make {name!r}: `astore vol create POOL NAME CAPACITY`", Exit.USAGE)
    definition = VolumeDef(
        name,
        capacity=capacity,
        allocation=allocation,
        format=format or ("raw" if backing is None else "qcow2"),
        backing=None if backing is None else BackingStore(backing, backing_format),
    )
    return await _create(opened, pool, definition, prealloc_metadata)


@fleet_command("create-xml")
@argument("pool", metavar="POOL", help="A pool's name or UUID.")
@argument("file", metavar="FILE", help="libvirt volume XML; `-` is standard input.")
@prealloc_metadata_option
async def create_xml(opened: Opened, pool: str, file: str, prealloc_metadata: bool) -> Answer:
    """Make a volume on the pool's host, as libvirt's XML says."""
    return await _create(opened, pool, await definition_from(file, validate=False), prealloc_metadata)


async def _create(opened: Opened, pool: str, definition: VolumeDef, prealloc_metadata: bool) -> Answer:
    opened.ticker.begin("creating")
    home = opened.pool(pool)
    made = await home.create_volume(definition, prealloc_metadata=prealloc_metadata, timeout=opened.settings.timeout)
    return _made(home.name, made, "created")


@fleet_command("clone")
@volume_argument
@argument("name", metavar="NAME", help="The new volume's name, also as POOL/NAME.")
@pool_option
@option("--to", metavar="POOL", help="The pool of the new one, if it is another on the same host.")
@format_option
@option("--capacity", type=SIZE, metavar="SIZE", help="The new volume's capacity, if larger.")
async def clone(
    opened: Opened, volume: str, name: str, pool: str | None, to: str | None, format: str | None, capacity: int | None
) -> Answer:
    """Make a volume out of another, in any format."""
    home, source = await find_place(opened, volume, pool)
    target = home if to is None else opened.pool(to)
    if to is None and "/" in name:
        begin, _, name = name.partition("/")
        target = opened.pool(begin)
    return await _copy(opened, home, source, target, VolumeDef(name, capacity=capacity, format=format))


@fleet_command("create-from")
@argument("to", metavar="POOL", help="The pool of the new one.")
@argument("file", metavar="FILE", help="libvirt volume XML of the new volume; `-` is standard input.")
@volume_argument
@option("--inputpool", "pool", metavar="POOL", help="The pool of the old one, on the same host.")
async def create_from(opened: Opened, to: str, file: str, volume: str, pool: str | None) -> Answer:
    """Make a volume as libvirt's XML says, with the data of another."""
    home, source = await find_place(opened, volume, pool)
    definition = await definition_from(file, validate=False, copied=True)
    return await _copy(opened, home, source, opened.pool(to), definition)


async def _copy(opened: Opened, home: FleetPool, source: str, target: FleetPool, definition: VolumeDef) -> Answer:
    opened.ticker.begin_bytes(f"copying {source}")
    made = await target.copy_volume(
        source,
        definition,
        source_pool=home.name,
        timeout=opened.settings.timeout,
        on_progress=opened.ticker.progress,
    )
    return _made(target.name, made, f"cloned from {source!r}")


@fleet_command("resize", signed=True)
@volume_argument
@argument("capacity", metavar="CAPACITY", help="Bytes, or with a unit: 10G, 512MiB, 20GB.")
@pool_option
@option("--delta", is_flag=True, help="Add CAPACITY to what it has (with --shrink: subtract it).")
@option("--shrink", is_flag=True, help="Allow a smaller capacity; data beyond it is lost.")
@option("--allocate", is_flag=True, help="Take the space at once.")
@force_option
async def resize(
    opened: Opened,
    volume: str,
    capacity: str,
    pool: str | None,
    delta: bool,
    shrink: bool,
    allocate: bool,
    force: bool,
) -> Answer:
    """Give a volume another capacity."""
    if capacity.startswith("-") and not (delta and shrink):
        raise CliError(f"the capacity {printable(capacity)!r}: to shrink, say --delta --shrink", Exit.USAGE)
    amount = parse_size(capacity.removeprefix("-"), "the capacity")
    opened.ticker.begin("resizing")
    home, name = await find_place(opened, volume, pool)
    flags = {"delta": delta, "shrink": shrink, "allocate": allocate, "force": force}
    try:
        info = await home.resize_volume(name, amount, timeout=opened.settings.timeout, **flags)
    except DefinitionError as error:
        if shrink or delta:
            raise
        raise CliError(f"{explain(error)} with --shrink", Exit.USAGE) from error
    return _made(home.name, info, f"resized to {size(info.capacity)}")


@fleet_command("wipe")
@volume_argument
@pool_option
@option("--algorithm", default="zero", show_default=True, metavar="NAME", help="zero, nnsa, dod, random, trim ...")
@force_option
async def wipe(opened: Opened, volume: str, pool: str | None, algorithm: str, force: bool) -> Answer:
    """Overwrite a volume's data."""
    home, name = await find_place(opened, volume, pool)
    opened.ticker.begin_bytes(f"wiping {name}")
    timeout, progress = opened.settings.timeout, opened.ticker.progress
    await home.wipe_volume(name, algorithm, force=force, timeout=timeout, on_progress=progress)
    return told("wipe", [Outcome(home.name, None, home.info, volume=name)], "volume {name} wiped")


@fleet_command("delete")
@argument("volumes", nargs=-1, required=True, metavar="VOLUME", help="Names, keys or paths.")
@pool_option
@force_option
async def delete(opened: Opened, volumes: tuple[str, ...], pool: str | None, force: bool) -> Answer:
    """Remove volumes; directories only if they are empty."""
    opened.ticker.begin("deleting", len(set(volumes)))
    outcomes = []
    for text in dict.fromkeys(volumes):
        try:
            home, name = await find_place(opened, text, pool)
            await home.delete_volume(name, force=force, timeout=opened.settings.timeout)
            outcomes.append(Outcome(home.name, None, home.info, volume=name))
        except Exception as error:
            outcomes.append(Outcome(pool, error, volume=text))
        opened.ticker.step()
    return told("delete", outcomes, "volume {name} deleted")


COMMANDS: dict[str, click.Command] = {
    "list": list_volumes,
    "info": show_info,
    "dumpxml": dumpxml,
    "path": path,
    "create": create,
    "create-as": create,
    "create-xml": create_xml,
    "create-from": create_from,
    "clone": clone,
    "resize": resize,
    "wipe": wipe,
    "delete": delete,
}
