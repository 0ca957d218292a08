"""``astore pool``: the commands that change pools."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from astore.cli.exits import CliError, Exit
from astore.cli.many import Outcome, answer, chosen, each
from astore.cli.output import Answer
from astore.cli.parameters import argument, limit_option, pool_arguments
from astore.cli.session import Session, command

if TYPE_CHECKING:
    from astore.model import PoolDef
    from astore.pools.pool import Pool

definition_files = argument(
    "files", nargs=-1, required=True, metavar="FILE", help="libvirt pool XML; `-` is standard input."
)
allow_option = click.option(
    "--allow-option",
    "allowed",
    multiple=True,
    metavar="OPTION",
    help="Allow a mount option that is refused by default, such as suid; may be given again.",
)

_LARGEST = 1 << 20
"""The largest size of a definition, in bytes."""


@command("define")
@definition_files
@allow_option
async def define(session: Session, files: tuple[str, ...], allowed: tuple[str, ...]) -> Answer:
    """Define pools, or define them anew, from libvirt XML."""

    async def act(xml: bytes) -> Pool:
        return await session.manager.define(await _allowing(xml, allowed))

    outcomes = await _from_files(session, files, "defining", act)
    return answer("define", outcomes, "pool {name} defined from {file}")


@command("create")
@definition_files
@click.option("--build", is_flag=True, help="Make their storage first.")
@allow_option
async def create(session: Session, files: tuple[str, ...], build: bool, allowed: tuple[str, ...]) -> Answer:
    """Start transient pools: they are gone when they are stopped."""
    timeout = session.settings.timeout

    async def act(xml: bytes) -> Pool:
        return await session.manager.create(await _allowing(xml, allowed), build=build, timeout=timeout)

    outcomes = await _from_files(session, files, "creating", act)
    return answer("create", outcomes, "pool {name} created from {file}")


@command("start")
@pool_arguments
@click.option("--all", "everything", is_flag=True, help="All that are defined and inactive.")
@click.option("--autostart", is_flag=True, help="All that are marked for it.")
@click.option("--build", is_flag=True, help="Make their storage first.")
@limit_option
async def start(
    session: Session, names: tuple[str, ...], everything: bool, autostart: bool, build: bool, limit: int
) -> Answer:
    """Start pools: connect or mount, and look at their volumes."""
    if everything and autostart:
        raise CliError("--all and --autostart: say one of them", Exit.USAGE)
    candidates = session.manager.pools(active=False, persistent=True, autostart=True if autostart else None)
    wanted = chosen(session, names, everything or autostart, candidates, "--all or --autostart")
    timeout = session.settings.timeout
    outcomes = await each(
        session, wanted, lambda pool: pool.start(build, timeout=timeout), label="starting", limit=limit
    )
    return answer("start", outcomes, "pool {name} started", nothing="no pool is waiting to be started")


@command("stop")
@pool_arguments
@click.option("--all", "everything", is_flag=True, help="All that are active.")
@click.option("--force", is_flag=True, help="Stop them even if their storage hangs.")
@limit_option
async def stop(session: Session, names: tuple[str, ...], everything: bool, force: bool, limit: int) -> Answer:
    """Stop pools: unmount, disconnect. (virsh: destroy; no volume is touched.)"""
    wanted = chosen(session, names, everything, session.manager.pools(active=True))
    outcomes = await each(
        session, wanted, lambda pool: session.in_time(pool.stop(force)), label="stopping", limit=limit
    )
    return answer("stop", outcomes, "pool {name} stopped", nothing="no pool is active")


@command("build")
@pool_arguments
async def build(session: Session, names: tuple[str, ...]) -> Answer:
    """Make pools' storage: a target directory."""
    outcomes = await each(session, _some(names), lambda pool: session.in_time(pool.build()), label="building")
    return answer("build", outcomes, "pool {name} built")


@command("delete")
@pool_arguments
async def delete(session: Session, names: tuple[str, ...]) -> Answer:
    """Destroy pools' storage: an empty target directory. Their definitions stay."""
    outcomes = await each(session, _some(names), lambda pool: session.in_time(pool.delete()), label="deleting")
    return answer("delete", outcomes, "pool {name}: its storage is deleted")


@command("undefine")
@pool_arguments
async def undefine(session: Session, names: tuple[str, ...]) -> Answer:
    """Remove pools' definitions. Their storage stays."""
    outcomes = await each(session, _some(names), lambda pool: session.in_time(pool.undefine()), label="undefining")
    return answer("undefine", outcomes, "pool {name} undefined")


@command("autostart")
@pool_arguments
@click.option("--disable", is_flag=True, help="Remove the mark.")
async def autostart(session: Session, names: tuple[str, ...], disable: bool) -> Answer:
    """Mark pools to be started by `astore pool start --autostart`."""
    outcomes = await each(
        session, _some(names), lambda pool: session.in_time(pool.set_autostart(not disable)), label="marking"
    )
    done = "pool {name} is no longer marked for autostart" if disable else "pool {name} is marked for autostart"
    return answer("autostart", outcomes, done)


def _some(names: Sequence[str]) -> Sequence[str]:
    if not names:
        raise CliError("name at least one pool: `astore pool list --all` shows those there are", Exit.USAGE)
    return names


async def _allowing(xml: bytes, options: Sequence[str]) -> bytes | PoolDef:
    """Return the definition with these mount options allowed as well."""
    if not options:
        return xml
    import msgspec
    from anyio import to_thread

    from astore.model import PoolDef

    definition = await to_thread.run_sync(PoolDef.from_xml, xml)
    allowed = tuple(dict.fromkeys((*definition.allowed_options, *options)))
    return msgspec.structs.replace(definition, allowed_options=allowed)


async def _from_files(session: Session, files: Sequence[str], label: str, act: DefineCall) -> list[Outcome]:
    """Read each file and call ``act`` with it, one by one: one definition may conflict with another."""
    session.ticker.begin(label, len(files))
    outcomes = []
    for file in files:
        shown = "standard input" if file == "-" else file
        try:
            outcomes.append(Outcome(None, await act(await read_definition(file)), None, shown))
        except Exception as error:
            outcomes.append(Outcome(None, None, error, shown))
        session.ticker.step()
    return outcomes


async def read_definition(file: str) -> bytes:
    """Read a file, or standard input (`-`), up to one byte more than a definition may have.

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
