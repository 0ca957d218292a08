"""``astore pool``: the commands that change something."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from astore.cli.completion import complete_pool
from astore.cli.exits import CliError, Exit
from astore.cli.many import LIMIT, Outcome, answer, chosen, each
from astore.cli.output import Answer
from astore.cli.session import Session, command

if TYPE_CHECKING:
    from astore.model import PoolDef
    from astore.pools.pool import Pool

app = typer.Typer(help="Define, start, refresh and look at pools.", no_args_is_help=True, rich_markup_mode=None)

Name = Annotated[str, typer.Argument(metavar="POOL", help="A pool's name or UUID.", autocompletion=complete_pool)]
Names = Annotated[
    list[str] | None,
    typer.Argument(metavar="POOL", help="Names or UUIDs.", autocompletion=complete_pool, show_default=False),
]
Files = Annotated[list[str], typer.Argument(metavar="FILE", help="libvirt pool XML; `-` is standard input.")]
AllowOption = Annotated[
    list[str] | None,
    typer.Option(
        "--allow-option",
        metavar="OPTION",
        help="A mount option that is refused unless it is meant, such as suid; may be given again.",
        show_default=False,
    ),
]
Limit = Annotated[int, typer.Option("--limit", min=1, metavar="N", help="How many pools at a time.")]

_LARGEST = 1 << 20
"""Bytes that a definition may be long."""


@command(app, "define", virsh="pool-define")
async def define(session: Session, files: Files, allow_option: AllowOption = None) -> Answer:
    """Define pools, or define them anew, from libvirt XML."""

    async def act(xml: bytes) -> Pool:
        return await session.manager.define(await _allowing(xml, allow_option))

    outcomes = await _from_files(session, files, "defining", act)
    return answer("define", outcomes, "pool {name} defined from {file}")


@command(app, "create", virsh="pool-create")
async def create(
    session: Session,
    files: Files,
    build: Annotated[bool, typer.Option("--build", help="Make their storage first.")] = False,
    allow_option: AllowOption = None,
) -> Answer:
    """Start transient pools: they are gone when they are stopped."""
    timeout = session.settings.timeout

    async def act(xml: bytes) -> Pool:
        return await session.manager.create(await _allowing(xml, allow_option), build=build, timeout=timeout)

    outcomes = await _from_files(session, files, "creating", act)
    return answer("create", outcomes, "pool {name} created from {file}")


@command(app, "start", virsh="pool-start")
async def start(
    session: Session,
    names: Names = None,
    everything: Annotated[bool, typer.Option("--all", help="All that are defined and inactive.")] = False,
    autostart: Annotated[bool, typer.Option("--autostart", help="All that are marked for it.")] = False,
    build: Annotated[bool, typer.Option("--build", help="Make their storage first.")] = False,
    limit: Limit = LIMIT,
) -> Answer:
    """Start pools: connect or mount, and look at their volumes."""
    if everything and autostart:
        raise CliError("--all and --autostart: say one of them", Exit.USAGE)
    candidates = session.manager.pools(active=False, persistent=True, autostart=True if autostart else None)
    wanted = chosen(session, names or (), everything or autostart, candidates, "--all or --autostart")
    timeout = session.settings.timeout
    outcomes = await each(
        session, wanted, lambda pool: pool.start(build, timeout=timeout), label="starting", limit=limit
    )
    return answer("start", outcomes, "pool {name} started", nothing="no pool is waiting to be started")


@command(app, "stop", virsh="pool-destroy", also="destroy")
async def stop(
    session: Session,
    names: Names = None,
    everything: Annotated[bool, typer.Option("--all", help="All that are active.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Give them up even where their storage hangs.")] = False,
    limit: Limit = LIMIT,
) -> Answer:
    """Stop pools: unmount, disconnect. (virsh: destroy; no volume is touched.)"""
    wanted = chosen(session, names or (), everything, session.manager.pools(active=True))
    outcomes = await each(
        session, wanted, lambda pool: session.in_time(pool.stop(force)), label="stopping", limit=limit
    )
    return answer("stop", outcomes, "pool {name} stopped", nothing="no pool is active")


@command(app, "build", virsh="pool-build")
async def build(session: Session, names: Names = None) -> Answer:
    """Make pools' storage: a target directory."""
    outcomes = await each(session, _some(names), lambda pool: session.in_time(pool.build()), label="building")
    return answer("build", outcomes, "pool {name} built")


@command(app, "delete", virsh="pool-delete")
async def delete(session: Session, names: Names = None) -> Answer:
    """Destroy pools' storage: an empty target directory. Their definitions stay."""
    outcomes = await each(session, _some(names), lambda pool: session.in_time(pool.delete()), label="deleting")
    return answer("delete", outcomes, "pool {name}: its storage is deleted")


@command(app, "undefine", virsh="pool-undefine")
async def undefine(session: Session, names: Names = None) -> Answer:
    """Remove pools' definitions. Their storage stays."""
    outcomes = await each(session, _some(names), lambda pool: session.in_time(pool.undefine()), label="undefining")
    return answer("undefine", outcomes, "pool {name} undefined")


@command(app, "autostart", virsh="pool-autostart")
async def autostart(
    session: Session,
    names: Names = None,
    disable: Annotated[bool, typer.Option("--disable", help="Not any more.")] = False,
) -> Answer:
    """Mark pools to be started by `astore pool start --autostart`."""
    outcomes = await each(
        session, _some(names), lambda pool: session.in_time(pool.set_autostart(not disable)), label="marking"
    )
    done = "pool {name} is no longer marked for autostart" if disable else "pool {name} is marked for autostart"
    return answer("autostart", outcomes, done)


def _some(names: list[str] | None) -> list[str]:
    if not names:
        raise CliError("name at least one pool: `astore pool list --all` shows those there are", Exit.USAGE)
    return names


async def _allowing(xml: bytes, options: list[str] | None) -> bytes | PoolDef:
    """The definition, with these mount options allowed as well."""
    if not options:
        return xml
    import msgspec
    from anyio import to_thread

    from astore.model import PoolDef

    definition = await to_thread.run_sync(PoolDef.from_xml, xml)
    allowed = tuple(dict.fromkeys((*definition.allowed_options, *options)))
    return msgspec.structs.replace(definition, allowed_options=allowed)


async def _from_files(session: Session, files: list[str], label: str, act: DefineCall) -> list[Outcome]:
    """Read each file and hand it on; in order, since one pool's definition may stand in another's way."""
    session.ticker.begin(label, len(files))
    outcomes = []
    for file in files:
        shown = "standard input" if file == "-" else file
        try:
            pool = await act(await read_definition(file))
        except Exception as error:
            outcomes.append(Outcome(file, None, error, shown))
        else:
            outcomes.append(Outcome(file, pool, None, shown))
        session.ticker.step()
    return outcomes


async def read_definition(file: str) -> bytes:
    """What a file holds, or standard input (`-`); as much as a definition may be long, and one byte more.

    :raises CliError: it cannot be read.
    """
    from anyio import to_thread

    return await to_thread.run_sync(_read, file, abandon_on_cancel=True)


def _read(file: str) -> bytes:
    try:
        if file == "-":
            return sys.stdin.buffer.read(_LARGEST + 1)
        with open(file, "rb") as stream:
            return stream.read(_LARGEST + 1)
    except OSError as error:
        raise CliError(f"cannot be read: {error.strerror}") from error


if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    DefineCall = Callable[[bytes], Awaitable[Pool]]
