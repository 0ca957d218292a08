"""``astore pool``: the commands that look at one pool in the state folder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

from astore.cli.command_line import argument, option
from astore.cli.completion import complete_pool_uuid
from astore.cli.output import Answer, Cell, Output, size, state_cell, when, yes_no
from astore.cli.parameters import pool_argument
from astore.cli.session import view
from astore.cli.xpath import filtered, xpath_options

if TYPE_CHECKING:
    from astore.cli.documents import Document
    from astore.cli.standing import Standing, StandingPool
    from astore.model import EntryError

ENTRIES_SHOWN = 10
"""The number of a pool's bad entries to print; --json has all of them."""


@view("info")
@pool_argument("name")
@option("--bytes", "in_bytes", is_flag=True, help="Sizes in bytes.")
def show_info(standing: Standing, name: str, in_bytes: bool) -> Answer:
    """Show one pool: state, sizes, entries that are no volumes."""
    pool = standing.pool(name)
    info, target = pool.info, pool.definition.target.path
    entries = pool.snapshot.errors
    write = str if in_bytes else size

    def show(output: Output) -> None:
        pairs: list[tuple[str, Cell | str]] = [
            ("Name", info.name),
            ("UUID", info.uuid),
            ("Type", info.type),
            ("State", state_cell(info.state, backend=info.backend)),
            *([("Since", when(info.since))] if info.since else []),
            ("Persistent", yes_no(info.persistent)),
            ("Autostart", yes_no(info.autostart)),
        ]
        if target:
            pairs.append(("Target", target))
        if info.active:
            pairs += [
                ("Capacity", write(info.capacity)),
                ("Allocation", write(info.allocation)),
                ("Available", write(info.available)),
                ("Used", output.bar(info.allocation, info.capacity)),
                ("Volumes", str(info.volumes)),
                ("Refreshed", when(info.taken_at)),
            ]
        if info.error:
            pairs.append(("Error", Cell(info.error, "red")))
        output.fields(pairs)
        show_entries(output, entries)

    return Answer({"pool": pool_document(pool), "entries": entries}, show)


def show_entries(output: Output, entries: Sequence[EntryError], pool: str = "") -> None:
    """Write a pool's bad entries, then the skipped ones, which matter less."""
    ordered = sorted(entries, key=lambda entry: entry.skipped)
    for entry in ordered[:ENTRIES_SHOWN]:
        what = "skipped" if entry.skipped else "cannot be read"
        output.line(
            f"{pool + ': ' if pool else ''}{entry.name} {what}: {entry.message}", "dim" if entry.skipped else "yellow"
        )
    if len(ordered) > ENTRIES_SHOWN:
        output.line(f"… and {len(ordered) - ENTRIES_SHOWN} more: --json names all")


@view("dumpxml")
@pool_argument("name")
@option("--inactive", is_flag=True, help="The definition that the next start takes.")
@xpath_options
def dumpxml(standing: Standing, name: str, inactive: bool, xpath: str | None, wrap: bool) -> Answer:
    """Print a pool's libvirt XML."""
    return filtered(standing.pool(name).to_xml(inactive), xpath, wrap)


@view("pool-name")
@argument("uuid", metavar="UUID", shell_complete=complete_pool_uuid)
def pool_name(standing: Standing, uuid: str) -> Answer:
    """Print the name of the pool with a UUID."""
    return _identity(standing.pool(uuid), "name")


@view("pool-uuid")
@pool_argument("name")
def pool_uuid(standing: Standing, name: str) -> Answer:
    """Print a pool's UUID."""
    return _identity(standing.pool(name), "uuid")


def _identity(pool: StandingPool, shown: str) -> Answer:
    document = {"name": pool.info.name, "uuid": pool.info.uuid}
    return Answer(document, lambda output: output.value(document[shown]))


def pool_document(pool: StandingPool) -> Document:
    """Return the document of a pool."""
    found: Document = msgspec.structs.asdict(pool.info)
    found["has_backend"] = found.pop("backend")
    found["refreshed_at"] = found.pop("taken_at") or None
    found["since"] = pool.info.since or None
    del found["freshness"]  # this process watches nothing
    return {**found, "active": pool.info.active, "target_path": pool.definition.target.path}
