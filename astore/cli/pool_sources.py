"""``astore pool discover`` and ``astore pool capabilities``: find sources, and list the supported pool types."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

from astore.cli.command_line import Whole, argument, complete_files, option
from astore.cli.completion import complete_type
from astore.cli.exits import CliError, Exit
from astore.cli.many import Outcome, answer
from astore.cli.output import Answer, Cell, Column, Output, xml_answer, yes_no
from astore.cli.pool_as import without_lines
from astore.cli.pools import read_definition
from astore.cli.session import Session, command
from astore.errors import DefinitionError, printable
from astore.model import DiscoveredSource, PoolDef, Source, Target

if TYPE_CHECKING:
    from astore.xml.documents import DiscoveredSources

SHOWN = 5
"""The number of sources that an error names."""

_SPEC_HELP = "A file with libvirt's <source> document, which names host and port; - is standard input."

type_argument = argument("type", metavar="TYPE", help="A pool type.", shell_complete=complete_type)
host_argument = argument("host", required=False, metavar="HOST", help="The host to ask.")
initiator_option = option("--initiator", metavar="IQN", help="The initiator's name to ask under.")
port_argument = argument("port", required=False, type=Whole(min=1, max=65535), metavar="PORT", help="Its port.")


@command("discover")
@type_argument
@host_argument
@port_argument
@option("--spec", metavar="FILE", help=_SPEC_HELP)
@initiator_option
@option("--xml", is_flag=True, help="libvirt's <sources> document.")
@option("--define", "new", metavar="NAME", help="Define a pool of this name with the source that was found.")
@option("--source", "wanted", metavar="SOURCE", help="With --define: which one, by its directory, name or device.")
@option("--target", metavar="PATH", help="With --define: where to mount it.", shell_complete=complete_files)
async def discover(
    session: Session,
    type: str,
    host: str | None,
    port: int | None,
    spec: str | None,
    initiator: str | None,
    xml: bool,
    new: str | None,
    wanted: str | None,
    target: str | None,
) -> Answer:
    """Ask a host which sources it offers for pools of a type."""
    if new is None and (wanted or target):
        raise CliError("--source and --target describe a new pool: say its name with --define", Exit.USAGE)
    found = await _discovered(session, type, host, port, spec, initiator)
    if new is not None:
        return await _defined(session, PoolDef(type, new, target=Target(target)), found, wanted)
    return xml_answer(found.to_xml()) if xml else _sources(type, [item.source for item in found])


async def _defined(session: Session, new: PoolDef, found: Sequence[DiscoveredSource], wanted: str | None) -> Answer:
    """Define a pool with the only source that was found, or with the one of this directory, name or device."""
    chosen = [one.source for one in found if wanted is None or wanted in _names(one.source)]
    if len(chosen) != 1:
        names = ", ".join(printable((*_names(one.source), "-")[0]) for one in found[:SHOWN])
        more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
        if not found:
            raise CliError("nothing was found: no pool is defined", Exit.NOT_FOUND)
        raise CliError(f"say which one to define with --source: {names}{more}", Exit.USAGE)
    with without_lines("`--help` names the options, such as --target and --initiator"):
        pool = await session.manager.define(msgspec.structs.replace(new, source=chosen[0]))
    return answer("define", [Outcome(new.name, pool, None)], "pool {name} defined")


def _names(source: Source) -> list[str]:
    """Return what tells a source from the others of its host."""
    return [name for name in (source.directory, source.name, *(one.path for one in source.devices)) if name]


async def _discovered(
    session: Session,
    type: str,
    host: str | None = None,
    port: int | None = None,
    spec: str | None = None,
    initiator: str | None = None,
) -> DiscoveredSources:
    document_ = None if spec is None else await read_definition(spec)
    session.ticker.begin("asking")
    try:
        return await session.in_time(
            session.manager.discover(type, host, port=port, spec=document_, initiator=initiator)
        )
    except DefinitionError as error:
        if host is None and spec is None and error.element == "host":
            raise CliError(f"say which host to ask: `astore pool discover {type} HOST`", Exit.USAGE) from error
        raise


def _sources(type: str, sources: Sequence[Source]) -> Answer:
    fields = ("hosts", "directory", "name", "format", "initiator")
    found = [
        {**{name: getattr(one, name) for name in fields}, "devices": [device.path for device in one.devices]}
        for one in sources
    ]
    return Answer({"type": type, "sources": found}, lambda output: _show_sources(output, type, sources))


def _show_sources(output: Output, type: str, sources: Sequence[Source]) -> None:
    if not sources:
        output.line(f"nothing found for pools of type {type!r}")
        return
    rows = [
        [
            ", ".join(host.name if host.port is None else f"{host.name}:{host.port}" for host in source.hosts) or "-",
            source.name or ", ".join(one.path for one in source.devices) or "-",
            source.directory or "-",
            source.format or "-",
        ]
        for source in sources
    ]
    columns = [Column(title, folds=True) for title in ("Host", "Name", "Directory")]
    output.table([*columns, Column("Format")], rows)


@command("capabilities")
@option("--xml", is_flag=True, help="libvirt's <storagepoolCapabilities> document.")
async def capabilities(session: Session, xml: bool) -> Answer:
    """Show which pool types can be used here, and their formats."""
    session.ticker.begin("loading backends")
    if xml:
        return xml_answer(await session.manager.capabilities())
    from astore.xml.known_types import POOL_TYPES

    registry = session.manager.registry
    await registry.load_all()
    types = []
    for type_ in dict.fromkeys((*POOL_TYPES, *registry.types())):
        backend = registry.loaded(type_)
        formats = (backend.source_formats, backend.volume_formats) if backend is not None else ((), ())
        types.append((type_, backend is not None, *formats))

    def show(output: Output) -> None:
        rows: list[list[Cell | str]] = [
            [
                type_,
                Cell(yes_no(supported), "green" if supported else "dim"),
                " ".join(source_formats) or "-",
                " ".join(volume_formats) or "-",
            ]
            for type_, supported, source_formats, volume_formats in types
        ]
        columns = [Column("Type"), Column("Supported"), Column("Source formats", folds=True)]
        output.table([*columns, Column("Volume formats", folds=True)], rows)

    fields = ("type", "supported", "source_formats", "volume_formats")
    return Answer({"types": [dict(zip(fields, one, strict=True)) for one in types]}, show)


@command("find-storage-pool-sources")
@type_argument
@argument("spec", required=False, metavar="FILE", help=_SPEC_HELP)
async def find_sources_by_file(session: Session, type: str, spec: str | None) -> Answer:
    """Print libvirt's <sources> document for the host that a <source> document names."""
    return xml_answer((await _discovered(session, type, spec=spec)).to_xml())


@command("find-storage-pool-sources-as")
@type_argument
@host_argument
@port_argument
@initiator_option
async def find_sources(
    session: Session, type: str, host: str | None, port: int | None, initiator: str | None
) -> Answer:
    """Print libvirt's <sources> document for a host."""
    return xml_answer((await _discovered(session, type, host, port, initiator=initiator)).to_xml())


@command("pool-capabilities")
async def capabilities_xml(session: Session) -> Answer:
    """Print libvirt's <storagepoolCapabilities> document."""
    session.ticker.begin("loading backends")
    return xml_answer(await session.manager.capabilities())
