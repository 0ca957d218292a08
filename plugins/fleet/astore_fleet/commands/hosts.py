"""``astore fleet``: the hosts of a fleet, and being one of them; ``events``: what happens on all."""

from __future__ import annotations

import sys
from collections.abc import Mapping

import click
import msgspec

from astore.cli import documents
from astore.cli.command_line import Command, Number, Option, argument, option
from astore.cli.output import Answer, Cell, Column, Output, yes_no
from astore.events import VolumeEvent
from astore_fleet.commands.place import PLACE, Opened, Place, assigned, fleet_command, place_options
from astore_fleet.commands.pools import pool_document, show_pools, shown_state
from astore_fleet.records import HOST_SECONDS

BAD = ("unreachable", "inaccessible", "degraded")
"""The states of pools that need attention."""


@click.group("fleet", no_args_is_help=True)
def fleet() -> None:
    """Look at the hosts of a fleet, or be one (NATS JetStream)."""


def _keep_host(context: click.Context, option: click.Parameter, value: str | None) -> None:
    context.meta.setdefault(PLACE, Place()).host = value


fleet.params += place_options("")
fleet.params.append(
    Option(
        ["--host"],
        envvar="ASTORE_FLEET_HOST",
        show_envvar=True,
        metavar="HOST",
        help="This host's name (else the machine's).",
        expose_value=False,
        callback=_keep_host,
    )
)


@fleet_command("status")
async def status(opened: Opened) -> Answer:
    """Show how many hosts and pools there are, and which pools need attention."""
    pools, hosts = opened.fleet.pools(), opened.fleet.hosts()
    bad = [one for one in pools if one.state in BAD]
    states = {state: sum(one.state == state for one in pools) for state in sorted({one.state for one in pools})}
    counts = {"hosts": len(hosts), "pools": len(pools), "volumes": sum(one.volumes for one in pools)}

    def show(output: Output) -> None:
        output.fields([(name.capitalize(), str(count)) for name, count in counts.items()])
        output.fields(
            [(f"Pools {state}", Cell(str(count), shown_state(state).style)) for state, count in states.items()]
        )
        if bad:
            show_pools(output, bad)

    return Answer({**counts, "states": states, "attention": [pool_document(one) for one in bad]}, show)


@fleet_command("hosts")
async def list_hosts(opened: Opened) -> Answer:
    """List the hosts that are there."""
    owned = [host for host, _ in opened.fleet.leases().values()]
    drained = opened.fleet.drained()
    found = opened.fleet.hosts()
    rows = [
        [
            one.host,
            str(owned.count(one.host)),
            yes_no(one.host in drained),
            ", ".join(f"{name}={value}" for name, value in one.labels.items()) or "-",
        ]
        for one in found
    ]
    document = [
        {"host": one.host, "labels": one.labels, "pools": owned.count(one.host), "drained": one.host in drained}
        for one in found
    ]
    columns = [Column("Host", folds=True), Column("Pools", right=True), Column("Drained"), Column("Labels", folds=True)]
    return Answer({"hosts": document}, lambda output: output.table(columns, rows, empty="no host is there"))


@fleet_command("leases")
async def leases(opened: Opened) -> Answer:
    """List which host looks after each pool, and its fencing token."""
    found = opened.fleet.leases().items()
    rows = [[pool, host, str(token)] for pool, (host, token) in found]
    document = [{"pool": pool, "host": host, "token": token} for pool, (host, token) in found]
    columns = [Column("Pool", folds=True), Column("Host"), Column("Token", right=True)]
    return Answer({"leases": document}, lambda output: output.table(columns, rows, empty="no pool has an owner"))


@fleet_command("drain")
@argument("host", metavar="HOST")
async def drain(opened: Opened, host: str) -> Answer:
    """Have a host hand its pools to others, and take no more."""
    await opened.fleet.drain(host)
    return Answer({"host": host}, lambda output: output.line(f"host {host!r} is being drained"))


@fleet_command("undrain")
@argument("host", metavar="HOST")
async def undrain(opened: Opened, host: str) -> Answer:
    """Let a host take pools again."""
    await opened.fleet.undrain(host)
    return Answer({"host": host}, lambda output: output.line(f"host {host!r} takes pools again"))


@fleet_command("agent")
@option("--label", "labels", multiple=True, metavar="NAME=VALUE", help="What placements ask for.")
@option("--lease", type=Number(min=2), default=HOST_SECONDS, show_default=True, help="Seconds of the lease.")
async def agent(opened: Opened, labels: tuple[str, ...], lease: float) -> Answer:
    """Be a host of the fleet, until Ctrl-C or SIGTERM; then hand the pools over. It ends by itself if it cannot go on."""
    async with opened.fleet.agent(labels=assigned(labels), seconds=lease) as here:
        Output().line(f"host {here.store.host!r} is there")
        sys.stdout.flush()
        await here.wait()


@fleet_command("events")
@option("--since", type=int, metavar="NUMBER", help="Begin after this event; 0: with the first that is kept.")
async def events(opened: Opened, since: int | None) -> Answer:
    """Print the events of all hosts as they come, until Ctrl-C."""
    async with opened.fleet.events(since) as reading:
        async for one in reading:
            if opened.settings.json:
                found = {"number": one.seq, "host": one.host, **msgspec.to_builtins(one.event), "seq": one.seq}
                print(documents.line(found), flush=True)
            else:
                about = getattr(one.event, "pool", "-")
                name = f"/{one.event.name}" if isinstance(one.event, VolumeEvent) else ""
                Output().line(f"{one.seq} {one.host} {type(one.event).__name__} {about}{name}")
                sys.stdout.flush()
    return Answer(None, lambda output: None)


EXAMPLES: Mapping[click.Command, tuple[str, str]] = {
    status: ("astore fleet status", "astore fleet --url nats://nats1:4222 --name prod status --json"),
    list_hosts: ("astore fleet hosts", "astore fleet hosts --json"),
    leases: ("astore fleet leases", "astore fleet leases --json"),
    drain: ("astore fleet drain kvm7", "astore fleet drain kvm7 --json"),
    undrain: ("astore fleet undrain kvm7", "astore fleet undrain kvm7 --json"),
    agent: ("astore fleet --url nats://nats1:4222 agent", "astore fleet --host kvm7 agent --label rack=r2"),
    events: ("astore fleet events", "astore fleet events --since 0 --json"),
}
"""What the help of each command shows, in the order of the group's help."""

for _command, _lines in EXAMPLES.items():
    assert isinstance(_command, Command)
    _command.examples = _lines
    fleet.add_command(_command)
