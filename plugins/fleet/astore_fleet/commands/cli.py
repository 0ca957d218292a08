"""``astore fleet``: look at a fleet, work on its pools, and be one of its hosts. Needs astore's extra ``cli``."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import click
import msgspec

from astore.cli import documents
from astore.cli.exits import CliError, Exit, code_of_all, explain
from astore.cli.interruptions import interruptions_raise, run
from astore.cli.output import Answer, Cell, Column, Output, duration, size, state_cell, yes_no
from astore.cli.session import Settings, common_options, logs, present, reported
from astore.events import VolumeEvent
from astore_fleet.engine import Access
from astore_fleet.client.fleet import Fleet
from astore_fleet.records import HOST_SECONDS, FleetPoolInfo

Work = Callable[..., Coroutine[Any, Any, Answer]]


class _Place(msgspec.Struct):
    """Where the fleet is, and how to be let in."""

    url: str
    name: str
    host: str | None
    access: Access

    async def connect(self) -> Fleet:
        """Connect. :raises StoreError: that failed."""
        return await Fleet.connect(self.url, self.name, host=self.host, access=self.access)


@click.group("fleet", no_args_is_help=True)
@click.option("--url", envvar="ASTORE_FLEET_URL", show_envvar=True, metavar="URL", help="nats://HOST:4222[,…]")
@click.option(
    "--name", envvar="ASTORE_FLEET", show_envvar=True, default="default", show_default=True, help="The fleet's."
)
@click.option("--host", envvar="ASTORE_FLEET_HOST", show_envvar=True, help="This host's name (else the machine's).")
@click.option(
    "--user", envvar="ASTORE_FLEET_USER", show_envvar=True, help="A user; the password is in the environment."
)
@click.option("--credentials", type=click.Path(exists=True), help="A file of credentials, as nsc writes it.")
@click.pass_context
def fleet(
    context: click.Context, url: str | None, name: str, host: str | None, user: str | None, credentials: str | None
) -> None:
    """Look at a fleet of hosts, and work on their pools (NATS JetStream)."""
    if not url:
        raise CliError("which fleet? Give --url nats://HOST:4222, or set ASTORE_FLEET_URL", Exit.USAGE)
    access = Access(user=user, password=os.environ.get("ASTORE_FLEET_PASSWORD"), credentials=credentials)
    context.meta["fleet"] = _Place(url, name, host, access)


def command(name: str, *params: click.Parameter) -> Callable[[Work], Work]:
    """Make a command of a coroutine function whose first parameters are a Fleet and the settings."""

    def made(work: Work) -> Work:
        def entry(**arguments: Any) -> None:
            context = click.get_current_context()
            settings, place = context.ensure_object(Settings), context.meta["fleet"]

            async def act() -> Answer:
                async with await place.connect() as opened:
                    return await work(opened, settings, **arguments)

            with logs(settings.verbose), reported(settings), interruptions_raise():
                answer = run(act)
                present(answer, settings)

        fleet.add_command(click.Command(name, callback=entry, params=[*params, *common_options()], help=work.__doc__))
        return work

    return made


def _argument(name: str, **settings: Any) -> click.Argument:
    return click.Argument([name], **settings)


def _option(*names: str, **settings: Any) -> click.Option:
    return click.Option(list(names), **settings)


# ------------------------------------------------------------------------------------------------------- looking


@command("status")
async def status(opened: Fleet, settings: Settings) -> Answer:
    """Show how many hosts and pools there are, and which pools need attention."""
    pools, hosts = opened.pools(), opened.hosts()
    bad = [one for one in pools if one.state in ("unreachable", "inaccessible", "degraded")]
    states = {state: sum(one.state == state for one in pools) for state in sorted({one.state for one in pools})}
    counts = {"hosts": len(hosts), "pools": len(pools), "volumes": sum(one.volumes for one in pools)}

    def show(output: Output) -> None:
        output.fields([(name.capitalize(), str(count)) for name, count in counts.items()])
        output.fields([(f"Pools {state}", Cell(str(count), _cell(state).style)) for state, count in states.items()])
        if bad:
            _pools(output, bad)

    return Answer({**counts, "states": states, "attention": [_document(one) for one in bad]}, show)


@command("hosts")
async def hosts(opened: Fleet, settings: Settings) -> Answer:
    """List the hosts that are there."""
    owned = [host for host, _ in opened.leases().values()]
    drained = opened.drained()
    found = [
        {"host": one.host, "labels": one.labels, "pools": owned.count(one.host), "drained": one.host in drained}
        for one in opened.hosts()
    ]
    rows = [
        [
            str(one["host"]),
            str(one["pools"]),
            yes_no(bool(one["drained"])),
            ", ".join(f"{name}={value}" for name, value in dict(one["labels"]).items()) or "-",  # type: ignore[call-overload]
        ]
        for one in found
    ]
    columns = [Column("Host"), Column("Pools", right=True), Column("Drained"), Column("Labels", folds=True)]
    return Answer({"hosts": found}, lambda output: output.table(columns, rows, empty="no host is there"))


@command("leases")
async def leases(opened: Fleet, settings: Settings) -> Answer:
    """List which host looks after each pool, and its fencing token."""
    found = [{"pool": pool, "host": host, "token": token} for pool, (host, token) in opened.leases().items()]
    rows = [[str(one["pool"]), str(one["host"]), str(one["token"])] for one in found]
    columns = [Column("Pool", folds=True), Column("Host"), Column("Token", right=True)]
    return Answer({"leases": found}, lambda output: output.table(columns, rows, empty="no pool has an owner"))


@command("pools")
async def pools(opened: Fleet, settings: Settings) -> Answer:
    """List the pools as they were last seen."""
    found = opened.pools()
    return Answer({"pools": [_document(one) for one in found]}, lambda output: _pools(output, found))


def _document(info: FleetPoolInfo) -> documents.Document:
    found: documents.Document = msgspec.structs.asdict(info)
    del found["definition"]
    return found


def _cell(state: str) -> Cell:
    return Cell(state, "red") if state == "unreachable" else state_cell(state)


def _pools(output: Output, found: list[FleetPoolInfo]) -> None:
    columns = [
        Column("Pool", folds=True),
        Column("State"),
        Column("Type"),
        Column("Host"),
        Column("Volumes", right=True),
    ]
    columns += [Column("Used", right=True), Column("Capacity", right=True), Column("Seen", right=True)]
    rows: list[list[Cell | str]] = [
        [
            one.name,
            _cell(one.state),
            one.type,
            one.owner or "-",
            str(one.volumes),
            size(one.allocation),
            size(one.capacity),
            "never" if one.age is None else f"{duration(one.age)} ago",
        ]
        for one in found
    ]
    output.table(columns, rows, empty="there is no pool")


@command(
    "volumes",
    _option("--matching", metavar="TEXT", help="A part of the name."),
    _option("--format", metavar="FORMAT", help="Such as qcow2."),
    _option("--backing", metavar="PATH", help="The path of the backing file."),
    _option("--bigger-than", type=int, metavar="BYTES", help="The least capacity, exclusive."),
)
async def volumes(
    opened: Fleet,
    settings: Settings,
    matching: str | None,
    format: str | None,
    backing: str | None,
    bigger_than: int | None,
) -> Answer:
    """Search the volumes of all pools as they were last seen."""
    found = await opened.search(name=matching, format=format, backing=backing, bigger_than=bigger_than)
    rows = [[one.pool, one.info.name, size(one.info.capacity), one.info.format or "-", one.info.path] for one in found]
    columns = [Column("Pool", folds=True), Column("Name", folds=True), Column("Capacity", right=True), Column("Format")]
    columns += [Column("Path", folds=True)]
    return Answer(
        lambda: {
            "volumes": [{**documents.volume(one.pool, one.info), "host": one.host, "age": one.age} for one in found]
        },
        lambda output: output.table(columns, rows, empty="no volume matches"),
    )


@command("events", _option("--since", type=int, metavar="NUMBER", help="Begin after this event; 0: with the first."))
async def events(opened: Fleet, settings: Settings, since: int | None) -> Answer:
    """Print the events of all hosts as they come, until Ctrl-C."""
    async with opened.events(since) as reading:
        async for one in reading:
            if settings.json:
                found = {"number": one.seq, "host": one.host, **msgspec.to_builtins(one.event), "seq": one.seq}
                print(documents.line(found), flush=True)
            else:
                about = getattr(one.event, "pool", "-")
                name = f"/{one.event.name}" if isinstance(one.event, VolumeEvent) else ""
                Output().line(f"{one.seq} {one.host} {type(one.event).__name__} {about}{name}")
                sys.stdout.flush()
    return Answer(None, lambda output: None)


# ------------------------------------------------------------------------------------------------------- working


@command(
    "define",
    _argument("file", type=click.Path(exists=True, dir_okay=False)),
    _option("--on", "hosts", multiple=True, metavar="HOST", help="Where it may run; may be given again."),
    _option("--label", "labels", multiple=True, metavar="NAME=VALUE", help="On hosts with this; may be given again."),
)
async def define(
    opened: Fleet, settings: Settings, file: str, hosts: tuple[str, ...], labels: tuple[str, ...]
) -> Answer:
    """Define a pool from libvirt's XML; the host that looks after it starts it."""
    text = await asyncio.to_thread(Path(file).read_bytes)
    wanted = dict(label.partition("=")[::2] for label in labels)
    pool = await opened.define(text, hosts=hosts, labels=wanted)
    return Answer(_document(pool.info), lambda output: output.line(f"Pool {pool.name} defined"))


@command("undefine", _argument("pool"))
async def undefine(opened: Fleet, settings: Settings, pool: str) -> Answer:
    """Remove a pool's definition."""
    await opened.undefine(pool)
    return Answer({"name": pool}, lambda output: output.line(f"Pool {pool} undefined"))


@command(
    "refresh",
    _argument("pools", nargs=-1),
    _option("--all", "everything", is_flag=True, help="All that are active."),
    _option("--full", is_flag=True, help="Read every header anew."),
)
async def refresh(opened: Fleet, settings: Settings, pools: tuple[str, ...], everything: bool, full: bool) -> Answer:
    """Refresh pools, each on its host."""
    if bool(pools) == everything:
        raise CliError("name the pools, or give --all", Exit.USAGE)
    report = await opened.refresh_all(None if everything else pools, full=full, timeout=settings.timeout)
    errors = [one.error for one in report.failed if one.error is not None]
    found = [
        {**msgspec.structs.asdict(one), "error": documents.failure(one.error), "ok": one.error is None}
        for one in report.pools
    ]
    good = len(report.pools) - len(errors)
    return Answer(
        {"seconds": report.seconds, "pools": found},
        lambda output: output.line(f"{good} pools refreshed in {duration(report.seconds)}"),
        [explain(error) for error in errors],
        code_of_all(errors, good),
    )


async def _work(opened: Fleet, settings: Settings, pool: str, verb: str) -> Answer:
    handle = opened.pool(pool)
    await (handle.start(timeout=settings.timeout) if verb == "start" else handle.stop(timeout=settings.timeout))
    return Answer({"name": pool}, lambda output: output.line(f"Pool {pool}: {verb} done"))


@command("start", _argument("pool"))
async def start(opened: Fleet, settings: Settings, pool: str) -> Answer:
    """Start a pool on its host."""
    return await _work(opened, settings, pool, "start")


@command("stop", _argument("pool"))
async def stop(opened: Fleet, settings: Settings, pool: str) -> Answer:
    """Stop a pool on its host."""
    return await _work(opened, settings, pool, "stop")


@command("drain", _argument("host"))
async def drain(opened: Fleet, settings: Settings, host: str) -> Answer:
    """Have a host hand its pools to others, and take no more."""
    await opened.drain(host)
    return Answer({"host": host}, lambda output: output.line(f"Host {host} is being drained"))


@command("undrain", _argument("host"))
async def undrain(opened: Fleet, settings: Settings, host: str) -> Answer:
    """Let a host take pools again."""
    await opened.undrain(host)
    return Answer({"host": host}, lambda output: output.line(f"Host {host} takes pools again"))


@command(
    "agent",
    _option("--label", "labels", multiple=True, metavar="NAME=VALUE", help="What placements ask for."),
    _option(
        "--lease", type=click.FloatRange(min=2), default=HOST_SECONDS, show_default=True, help="Seconds of the lease."
    ),
)
async def agent(opened: Fleet, settings: Settings, labels: tuple[str, ...], lease: float) -> Answer:
    """Be a host of the fleet, until Ctrl-C or SIGTERM; then hand the pools over."""
    told = dict(label.partition("=")[::2] for label in labels)
    async with opened.agent(labels=told, seconds=lease) as here:
        Output().line(f"Host {here.store.host} is there")
        sys.stdout.flush()
        await asyncio.Event().wait()
    return Answer(None, lambda output: None)
