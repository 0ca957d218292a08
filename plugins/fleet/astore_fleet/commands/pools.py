"""``astore --fleet URL pool``: the pools of a fleet."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import NamedTuple

import click
import msgspec

from astore.cli import documents
from astore.cli.command_line import argument, option
from astore.cli.exits import CliError, Exit, code_of_all, explain
from astore.cli.output import Answer, Cell, Column, Output, duration, size, state_cell, when, xml_answer, yes_no
from astore.cli.parameters import LIMIT, limit_option
from astore.cli.pool_refresh import refresh_document, show_refresh
from astore.cli.pool_views import show_entries
from astore.cli.pools import definition_files, read_definition
from astore.errors import PoolNotFoundError
from astore.model import PoolState
from astore.pools.glance import definition_as_found, pool_info
from astore_fleet.client.fleet_pool import FleetPool
from astore_fleet.commands.place import Opened, assigned, fleet_command
from astore_fleet.records import FleetPoolInfo

pool_argument = argument("name", metavar="POOL", help="A pool's name or UUID.")
pool_arguments = argument("names", nargs=-1, metavar="POOL", help="Names or UUIDs.")
placement_options = (
    option("--on", "hosts", multiple=True, metavar="HOST", help="Where it may run; may be given again."),
    option("--label", "labels", multiple=True, metavar="NAME=VALUE", help="On hosts with this; may be given again."),
)

_NOT_ACTIVE = {"inactive", "unreachable"}


# ------------------------------------------------------------------------------------------------------- looking


def pool_document(info: FleetPoolInfo) -> documents.Document:
    """Return the document of a pool."""
    found: documents.Document = msgspec.structs.asdict(info)
    definition = found.pop("definition")
    found["host"] = found.pop("owner")
    found["refreshed_at"] = found.pop("taken_at") or None
    found["since"] = info.since or None
    return {**found, "active": info.state not in _NOT_ACTIVE, "target_path": definition.target.path}


def shown_state(state: str) -> Cell:
    """Return a cell with a state in its colour."""
    return Cell(state, "red") if state == "unreachable" else state_cell(state)


def age_of(seconds: float | None) -> str:
    """Return how old a snapshot is, in words."""
    return "never" if seconds is None else f"{duration(seconds)} ago"


def show_pools(
    output: Output,
    found: Sequence[FleetPoolInfo],
    empty: str = "there is no pool",
    write: Callable[[int], str] = size,
) -> None:
    """Write a table of pools. :param write: writes sizes."""
    columns = [Column("Name", folds=True), Column("Type"), Column("State", folds=True), Column("Host", folds=True)]
    columns += [Column("Autostart"), Column("Volumes", right=True), Column("Capacity", right=True), Column("Used")]
    columns.append(Column("Seen", right=True))
    rows: list[list[Cell | str]] = [
        [
            one.name,
            one.type,
            shown_state(one.state),
            one.owner or "-",
            yes_no(one.autostart),
            str(one.volumes),
            write(one.capacity),
            output.bar(one.allocation, one.capacity),
            age_of(one.age),
        ]
        for one in found
    ]
    output.table(columns, rows, empty=empty)


@fleet_command("list")
@option("--all", "everything", is_flag=True, help="Active and inactive ones.")
@option("--inactive", is_flag=True, help="Only inactive ones.")
@option("--autostart/--no-autostart", default=None, help="Only those with, or without, that mark.")
@option("--type", "types", multiple=True, metavar="TYPE", help="Only these types (also T1,T2).")
@option("--host", metavar="HOST", help="Only those that this host looks after.")
@option("--bytes", "in_bytes", is_flag=True, help="Sizes in bytes.")
@option("--name", "names_only", is_flag=True, help="Names alone, one in a line.")
@option("--uuid", "uuids_only", is_flag=True, help="UUIDs alone, one in a line.")
async def list_pools(
    opened: Opened,
    everything: bool,
    inactive: bool,
    autostart: bool | None,
    types: tuple[str, ...],
    host: str | None,
    in_bytes: bool,
    names_only: bool,
    uuids_only: bool,
) -> Answer:
    """List pools as they were last seen: those that are active or unreachable, unless told otherwise."""
    kinds = {name for part in types for name in part.split(",")}
    pools = [
        one
        for one in opened.fleet.pools()
        if (everything or (one.state == "inactive") == inactive)
        and (autostart is None or one.autostart == autostart)
        and (not kinds or one.type in kinds)
        and (host is None or one.owner == host)
    ]

    def show(output: Output) -> None:
        if names_only or uuids_only:
            for one in pools:
                output.value(" ".join(([one.uuid] if uuids_only else []) + ([one.name] if names_only else [])))
        else:
            empty = "no such pools: `astore --fleet URL pool list --all` shows all there are"
            show_pools(output, pools, empty, str if in_bytes else size)

    return Answer(lambda: {"pools": [pool_document(one) for one in pools], "damaged": []}, show)


@fleet_command("info")
@pool_argument
@option("--bytes", "in_bytes", is_flag=True, help="Sizes in bytes.")
async def show_info(opened: Opened, name: str, in_bytes: bool) -> Answer:
    """Show one pool as it was last seen: its host, state, sizes, entries that are no volumes."""
    pool = opened.pool(name)
    info, entries = pool.info, (await pool.snapshot()).errors
    write, place = str if in_bytes else size, pool.placement
    target = info.definition.target.path

    def show(output: Output) -> None:
        where = [*place.hosts, *(f"{label}={value}" for label, value in place.labels.items())]
        pairs: list[tuple[str, Cell | str]] = [
            ("Name", info.name),
            ("UUID", info.uuid),
            ("Type", info.type),
            ("State", shown_state(info.state)),
            ("Host", info.owner or "-"),
            ("May run on", ", ".join(where) or ("any host" if info.definition.source.hosts else "the host it is of")),
            ("Autostart", yes_no(info.autostart)),
            *([("Target", target)] if target else []),
            ("Capacity", write(info.capacity)),
            ("Allocation", write(info.allocation)),
            ("Available", write(info.available)),
            ("Used", output.bar(info.allocation, info.capacity)),
            ("Volumes", str(info.volumes)),
            ("Refreshed", when(info.taken_at)),
            ("Seen", age_of(info.age)),
            *([("Error", Cell(info.error, "red"))] if info.error else []),
        ]
        output.fields(pairs)
        show_entries(output, entries)

    return Answer({"pool": pool_document(info), "entries": entries}, show)


@fleet_command("dumpxml")
@pool_argument
@option("--inactive", is_flag=True, help="The definition alone, without sizes.")
async def dumpxml(opened: Opened, name: str, inactive: bool) -> Answer:
    """Print a pool's libvirt XML, with the sizes that were last seen."""
    pool = opened.pool(name)
    info = pool.info
    if inactive:
        return xml_answer(info.definition.to_xml())
    snapshot = await pool.snapshot()
    sizes = pool_info(
        info.definition,
        uuid=info.uuid,
        state=PoolState.INACTIVE if info.state in _NOT_ACTIVE else PoolState(info.state),
        persistent=True,
        autostart=info.autostart,
        backend=True,
        snapshot=snapshot,
        since=info.since,
        error=info.error,
    )
    return xml_answer(definition_as_found(info.definition, snapshot).to_xml(sizes))


# ------------------------------------------------------------------------------------------------------- working


class Outcome(NamedTuple):
    """The outcome for one pool, definition file or volume. Fields that do not apply are None."""

    pool: str | None
    error: Exception | None
    info: FleetPoolInfo | None = None
    file: str | None = None
    volume: str | None = None


def told(action: str, outcomes: Sequence[Outcome], done: str, nothing: str = "no pool to do that to") -> Answer:
    """Make the answer for several outcomes, as for the pools of one machine.

    :param done: the sentence for a success, with ``{name}`` and ``{file}``. :param nothing: that for no outcome at all.
    """
    results = [
        {
            "ok": one.error is None,
            "pool": one.pool,
            "uuid": None if one.info is None else one.info.uuid,
            "state": None if one.info is None else one.info.state,
            "file": one.file,
            "volume": one.volume,
            "error": documents.failure(one.error),
        }
        for one in outcomes
    ]

    def show(output: Output) -> None:
        for one in outcomes:
            if one.error is None:
                output.line(done.format(name=repr(one.volume or one.pool), file=one.file))
        if not outcomes:
            output.line(nothing)

    failed = [(one.file, one.error) for one in outcomes if one.error is not None]
    problems = [f"{file}: {explain(error)}" if file else explain(error) for file, error in failed]
    code = code_of_all([error for _, error in failed], len(outcomes) - len(failed))
    return Answer({"action": action, "results": results}, show, problems, code)


async def each(
    opened: Opened, names: Sequence[str], act: Callable[[FleetPool], Awaitable[object]], label: str, limit: int = LIMIT
) -> list[Outcome]:
    """Call ``act`` for each pool, ``limit`` at a time. Return the outcomes in the order of ``names``."""
    opened.ticker.begin(label, len(names))
    turn = asyncio.Semaphore(limit)

    async def one(name: str) -> Outcome:
        async with turn:
            try:
                pool = opened.pool(name)
                info = pool.info
                await act(pool)
                with suppress(PoolNotFoundError):  # it was undefined
                    info = pool.info
            except Exception as error:
                return Outcome(name, error)
            finally:
                opened.ticker.step()
            return Outcome(info.name, None, info)

    return await asyncio.gather(*(one(name) for name in dict.fromkeys(names)))


def _chosen(opened: Opened, names: tuple[str, ...], everything: bool, *, active: bool) -> Sequence[str]:
    if bool(names) == everything:
        raise CliError("name the pools, or say --all (not both)", Exit.USAGE)
    if not everything:
        return names
    return [one.name for one in opened.fleet.pools() if one.reachable and (one.state not in _NOT_ACTIVE) == active]


def _some(names: tuple[str, ...]) -> tuple[str, ...]:
    if not names:
        raise CliError("name at least one pool: `astore --fleet URL pool list --all` shows those there are", Exit.USAGE)
    return names


@fleet_command("define")
@definition_files
@placement_options[0]
@placement_options[1]
@option("--no-autostart", is_flag=True, help="The host that looks after it does not start it.")
async def define(
    opened: Opened, files: tuple[str, ...], hosts: tuple[str, ...], labels: tuple[str, ...], no_autostart: bool
) -> Answer:
    """Define pools from libvirt's XML, and say where they may run. The host that looks after one starts it."""
    opened.ticker.begin("defining", len(files))
    outcomes = []
    for file in files:
        shown = "standard input" if file == "-" else file
        try:
            text = await read_definition(file)
            pool = await opened.fleet.define(text, hosts=hosts, labels=assigned(labels), autostart=not no_autostart)
            outcomes.append(Outcome(pool.name, None, pool.info, shown))
        except Exception as error:
            outcomes.append(Outcome(None, error, file=shown))
        opened.ticker.step()
    return told("define", outcomes, "pool {name} defined from {file}")


@fleet_command("undefine")
@pool_arguments
async def undefine(opened: Opened, names: tuple[str, ...]) -> Answer:
    """Remove pools' definitions. Their storage stays."""
    outcomes = await each(opened, _some(names), lambda pool: opened.fleet.undefine(pool.name), "undefining", 1)
    return told("undefine", outcomes, "pool {name} undefined")


@fleet_command("autostart")
@pool_arguments
@option("--disable", is_flag=True, help="Remove the mark.")
async def autostart(opened: Opened, names: tuple[str, ...], disable: bool) -> Answer:
    """Mark pools to be started by the host that looks after them."""
    act = opened.fleet.set_autostart
    outcomes = await each(opened, _some(names), lambda pool: act(pool.name, not disable), "marking")
    done = "pool {name} is no longer marked for autostart" if disable else "pool {name} is marked for autostart"
    return told("autostart", outcomes, done)


@fleet_command("start")
@pool_arguments
@option("--all", "everything", is_flag=True, help="All that are inactive, and have a host.")
@option("--build", is_flag=True, help="Make the storage first.")
@limit_option
async def start(opened: Opened, names: tuple[str, ...], everything: bool, build: bool, limit: int) -> Answer:
    """Start pools, each on its host."""
    wanted, timeout = _chosen(opened, names, everything, active=False), opened.settings.timeout
    outcomes = await each(opened, wanted, lambda pool: pool.start(build=build, timeout=timeout), "starting", limit)
    return told("start", outcomes, "pool {name} started", "no pool is waiting to be started")


@fleet_command("stop")
@pool_arguments
@option("--all", "everything", is_flag=True, help="All that are active.")
@option("--force", is_flag=True, help="Stop them even if their storage hangs.")
@limit_option
async def stop(opened: Opened, names: tuple[str, ...], everything: bool, force: bool, limit: int) -> Answer:
    """Stop pools, each on its host: unmount, disconnect."""
    wanted, timeout = _chosen(opened, names, everything, active=True), opened.settings.timeout
    outcomes = await each(opened, wanted, lambda pool: pool.stop(force=force, timeout=timeout), "stopping", limit)
    return told("stop", outcomes, "pool {name} stopped", "no pool is active")


@fleet_command("refresh")
@pool_arguments
@option("--all", "everything", is_flag=True, help="All that are active.")
@option("--full", is_flag=True, help="Trust nothing known: read every header anew.")
async def refresh(opened: Opened, names: tuple[str, ...], everything: bool, full: bool) -> Answer:
    """Look at pools' volumes again, each pool on its host."""
    if bool(names) == everything:
        raise CliError("name the pools, or say --all (not both)", Exit.USAGE)
    known, errors = list[str](), list[Exception]()
    for name in names:
        try:
            known.append(opened.pool(name).name)
        except LookupError as error:
            errors.append(error)
    opened.ticker.begin("refreshing", len(known))
    report = await opened.fleet.refresh_all(
        None if everything else known,
        full=full,
        timeout=opened.settings.timeout,
        on_progress=lambda done, _total, _outcome: opened.ticker.step(done),
    )
    good = [one for one in report.pools if one.error is None]
    errors += [one.error for one in report.failed if one.error is not None]
    return Answer(
        {"seconds": report.seconds, "pools": [refresh_document(one) for one in report.pools]},
        lambda output: show_refresh(output, good, report.seconds) if good or not errors else None,
        [explain(error) for error in errors],
        code_of_all(errors, len(good)),
    )


COMMANDS: dict[str, click.Command] = {
    "define": define,
    "start": start,
    "stop": stop,
    "destroy": stop,
    "undefine": undefine,
    "autostart": autostart,
    "list": list_pools,
    "info": show_info,
    "dumpxml": dumpxml,
    "refresh": refresh,
}
