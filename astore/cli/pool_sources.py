"""``astore pool discover`` and ``astore pool capabilities``: find sources, and list the supported pool types."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from astore.cli import shapes
from astore.cli.completion import complete_type
from astore.cli.exits import CliError, Exit
from astore.cli.output import Answer, Cell, Column, Output, yes_no
from astore.cli.parameters import argument
from astore.cli.pools import read_definition
from astore.cli.session import Session, command
from astore.errors import DefinitionError

if TYPE_CHECKING:
    from astore.model import DiscoveredSource

_SPEC_HELP = "A file with libvirt's <source> document, which names host and port; - is standard input."

type_argument = argument("type", metavar="TYPE", help="A pool type.", shell_complete=complete_type)
host_argument = argument("host", required=False, metavar="HOST", help="The host to ask.")
port_argument = argument(
    "port", required=False, type=click.IntRange(min=1, max=65535), metavar="PORT", help="Its port."
)


@command("discover")
@type_argument
@host_argument
@port_argument
@click.option("--spec", metavar="FILE", help=_SPEC_HELP)
@click.option("--xml", is_flag=True, help="libvirt's <sources> document.")
async def discover(
    session: Session, type: str, host: str | None, port: int | None, spec: str | None, xml: bool
) -> Answer:
    """Ask a host which sources it offers for pools of a type."""
    return await _discovered(session, type, host, port, spec, xml=xml)


async def _discovered(
    session: Session,
    type: str,
    host: str | None = None,
    port: int | None = None,
    spec: str | None = None,
    *,
    xml: bool,
) -> Answer:
    document_ = None if spec is None else await read_definition(spec)
    session.ticker.begin("asking")
    try:
        found = await session.in_time(session.manager.discover(type, host, port=port, spec=document_))
    except DefinitionError as error:
        if host is None and spec is None and error.element == "host":
            raise CliError(f"say which host to ask: `astore pool discover {type} HOST`", Exit.USAGE) from error
        raise
    if xml:
        text = found.to_xml()
        return Answer(shapes.Xml(text), lambda output: output.xml(text))
    document = shapes.Sources(type, tuple(_source(item) for item in found))
    return Answer(document, lambda output: _show_sources(output, document))


def _source(item: DiscoveredSource) -> shapes.Source:
    source = item.source
    hosts = tuple(shapes.SourceHost(host.name, host.port) for host in source.hosts)
    return shapes.Source(hosts, source.directory, source.name, source.format)


def _show_sources(output: Output, document: shapes.Sources) -> None:
    if not document.sources:
        output.line(f"nothing found for pools of type {document.type!r}")
        return
    rows = [
        [
            ", ".join(host.name if host.port is None else f"{host.name}:{host.port}" for host in source.hosts) or "-",
            source.name or "-",
            source.directory or "-",
            source.format or "-",
        ]
        for source in document.sources
    ]
    columns = [Column(title, folds=True) for title in ("Host", "Name", "Directory")]
    output.table([*columns, Column("Format")], rows)


@command("capabilities")
@click.option("--xml", is_flag=True, help="libvirt's <storagepoolCapabilities> document.")
async def capabilities(session: Session, xml: bool) -> Answer:
    """Show which pool types can be used here, and their formats."""
    return await _capabilities(session, xml=xml)


async def _capabilities(session: Session, *, xml: bool) -> Answer:
    from astore.xml.pool_source import POOL_TYPES

    registry = session.manager.registry
    session.ticker.begin("loading backends")
    await registry.load_all()
    found = []
    for type_ in dict.fromkeys((*POOL_TYPES, *registry.types())):
        backend = registry.loaded(type_)
        formats = (backend.source_formats, backend.volume_formats) if backend is not None else ((), ())
        found.append(shapes.Capability(type_, backend is not None, *formats))
    if xml:
        text = await session.manager.capabilities()
        return Answer(shapes.Xml(text), lambda output: output.xml(text))

    def show(output: Output) -> None:
        rows: list[list[Cell | str]] = [
            [
                item.type,
                Cell(yes_no(item.supported), "green" if item.supported else "dim"),
                " ".join(item.source_formats) or "-",
                " ".join(item.volume_formats) or "-",
            ]
            for item in found
        ]
        columns = [Column("Type"), Column("Supported"), Column("Source formats", folds=True)]
        output.table([*columns, Column("Volume formats", folds=True)], rows)

    return Answer(shapes.Capabilities(tuple(found)), show)


@command("find-storage-pool-sources")
@type_argument
@argument("spec", required=False, metavar="FILE", help=_SPEC_HELP)
async def find_sources_by_file(session: Session, type: str, spec: str | None) -> Answer:
    """Print libvirt's <sources> document for the host that a <source> document names."""
    return await _discovered(session, type, spec=spec, xml=True)


@command("find-storage-pool-sources-as")
@type_argument
@host_argument
@port_argument
async def find_sources(session: Session, type: str, host: str | None, port: int | None) -> Answer:
    """Print libvirt's <sources> document for a host."""
    return await _discovered(session, type, host, port, xml=True)


@command("pool-capabilities")
async def capabilities_xml(session: Session) -> Answer:
    """Print libvirt's <storagepoolCapabilities> document."""
    return await _capabilities(session, xml=True)
