"""``astore pool``: the commands that look at one pool in the state folder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from astore.cli import shapes
from astore.cli.output import Answer, Cell, Output, size, state_cell, when, yes_no
from astore.cli.parameters import argument, pool_argument
from astore.cli.session import view

if TYPE_CHECKING:
    from astore.cli.standing import Standing, StandingPool

ENTRIES_SHOWN = 10
"""How many of a pool's bad entries are named to people; --json names all."""


@view("info")
@pool_argument("name")
@click.option("--bytes", "in_bytes", is_flag=True, help="Sizes in bytes.")
def info(standing: Standing, name: str, in_bytes: bool) -> Answer:
    """Show one pool: state, sizes, entries that are no volumes."""
    pool = standing.pool(name)
    shape = pool_shape(pool)
    entries = shapes.entries(pool.snapshot.errors)
    write = str if in_bytes else size

    def show(output: Output) -> None:
        pairs: list[tuple[str, Cell | str]] = [
            ("Name", shape.name),
            ("UUID", shape.uuid),
            ("Type", shape.type),
            ("State", state_cell(shape.state, backend=shape.has_backend)),
            *([("Since", when(shape.since))] if shape.since else []),
            ("Persistent", yes_no(shape.persistent)),
            ("Autostart", yes_no(shape.autostart)),
        ]
        if shape.target_path:
            pairs.append(("Target", shape.target_path))
        if shape.active:
            pairs += [
                ("Capacity", write(shape.capacity)),
                ("Allocation", write(shape.allocation)),
                ("Available", write(shape.available)),
                ("Used", output.bar(shape.allocation, shape.capacity)),
                ("Volumes", str(shape.volumes)),
                ("Refreshed", when(shape.refreshed_at)),
            ]
        if shape.error:
            pairs.append(("Error", Cell(shape.error, "red")))
        output.fields(pairs)
        show_entries(output, entries)

    return Answer(shapes.PoolInfo(shape, entries), show)


def show_entries(output: Output, entries: Sequence[shapes.Entry], pool: str = "") -> None:
    """The bad ones first: what is merely skipped matters less."""
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
@click.option("--inactive", is_flag=True, help="The definition that the next start takes.")
def dumpxml(standing: Standing, name: str, inactive: bool) -> Answer:
    """Print a pool's libvirt XML."""
    xml = standing.pool(name).to_xml(inactive)
    return Answer(shapes.Xml(xml), lambda output: output.xml(xml))


@view("pool-name")
@argument("uuid", metavar="UUID")
def pool_name(standing: Standing, uuid: str) -> Answer:
    """Print the name of the pool with a UUID."""
    pool = standing.pool(uuid)
    return Answer(shapes.PoolIdentity(pool.info.name, pool.info.uuid), lambda output: output.value(pool.info.name))


@view("pool-uuid")
@pool_argument("name")
def pool_uuid(standing: Standing, name: str) -> Answer:
    """Print a pool's UUID."""
    pool = standing.pool(name)
    return Answer(shapes.PoolIdentity(pool.info.name, pool.info.uuid), lambda output: output.value(pool.info.uuid))


def pool_shape(pool: StandingPool) -> shapes.Pool:
    """A pool as ``--json`` shows it."""
    info = pool.info
    return shapes.Pool(
        name=info.name,
        uuid=info.uuid,
        type=info.type,
        state=info.state,
        active=info.active,
        persistent=info.persistent,
        autostart=info.autostart,
        has_backend=info.backend,
        target_path=pool.definition.target.path,
        capacity=info.capacity,
        allocation=info.allocation,
        available=info.available,
        volumes=info.volumes,
        errors=info.errors,
        generation=info.generation,
        refreshed_at=info.taken_at or None,
        since=info.since or None,
        error=info.error,
    )
