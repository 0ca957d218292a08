"""``astore pool``: the commands that change pools."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from astore.cli.command_line import argument, option
from astore.cli.exits import CliError, Exit, shell_word, transient, why_unread, without_plugin
from astore.cli.many import Outcome, answer, chosen, each
from astore.cli.output import Answer
from astore.cli.parameters import limit_option, pool_arguments
from astore.cli.schemas import validate_option, validated
from astore.cli.session import Session, command

if TYPE_CHECKING:
    from astore.model import PoolDef
    from astore.pools.pool import Pool

definition_files = argument(
    "files", nargs=-1, required=True, metavar="FILE", help="libvirt pool XML; `-` is standard input."
)
allow_option = option(
    "--allow-option",
    "allowed",
    multiple=True,
    metavar="OPTION",
    help="Allow a mount option that is refused by default, such as suid; may be given again.",
)

F = TypeVar("F", bound=Callable[..., Any])


def overwrite_options(command: F) -> F:
    """Add virsh's options --overwrite and --no-overwrite to a command."""
    no = option("--no-overwrite", is_flag=True, help="Overwrite no data. It is never done.")
    return no(option("--overwrite", is_flag=True, hidden=True, help="Overwrite data. It is never done.")(command))


def build_options(command: F) -> F:
    """Add the options of a command that may make storage."""
    return option("--build", is_flag=True, help="Make the storage first.")(overwrite_options(command))


def check_overwriting(overwrite: bool, no_overwrite: bool) -> None:
    """Refuse --overwrite. :raises CliError: it was given."""
    if overwrite and no_overwrite:
        raise CliError("--overwrite and --no-overwrite: say one of them", Exit.USAGE)
    if overwrite:
        raise CliError("--overwrite: building a pool never overwrites data: leave it out", Exit.USAGE)


_LARGEST = 1 << 20
"""The largest size of a definition, in bytes."""


@command("define")
@definition_files
@validate_option
@allow_option
async def define(session: Session, files: tuple[str, ...], validate: bool, allowed: tuple[str, ...]) -> Answer:
    """Define pools, or define them anew, from libvirt XML."""

    async def act(xml: bytes) -> Pool:
        document = await validated(xml, "pool") if validate else xml
        return await session.manager.define(await _allowing(document, allowed))

    outcomes = await _from_files(session, files, "defining", act)
    warnings = without_backend(session, [one.pool for one in outcomes if one.pool is not None])
    return answer("define", outcomes, "pool {name} defined from {file}", warnings=warnings, more=when_taken)


@command("create")
@definition_files
@build_options
@allow_option
async def create(
    session: Session,
    files: tuple[str, ...],
    build: bool,
    overwrite: bool,
    no_overwrite: bool,
    allowed: tuple[str, ...],
) -> Answer:
    """Start transient pools: they are gone when they are stopped."""
    check_overwriting(overwrite, no_overwrite)
    timeout = session.settings.timeout

    async def act(xml: bytes) -> Pool:
        with transient():
            return await session.manager.create(await _allowing(xml, allowed), build=build, timeout=timeout)

    outcomes = await _from_files(session, files, "creating", act)
    return answer("create", outcomes, "pool {name} created from {file}")


@command("start")
@pool_arguments
@option("--all", "everything", is_flag=True, help="All that are defined and inactive.")
@option("--autostart", is_flag=True, help="All that are marked for it.")
@build_options
@limit_option
async def start(
    session: Session,
    names: tuple[str, ...],
    everything: bool,
    autostart: bool,
    build: bool,
    overwrite: bool,
    no_overwrite: bool,
    limit: int,
) -> Answer:
    """Start pools: connect or mount, and look at their volumes."""
    check_overwriting(overwrite, no_overwrite)
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
@option("--all", "everything", is_flag=True, help="All that are active.")
@option("--force", is_flag=True, help="Stop them even if their storage hangs.")
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
@overwrite_options
async def build(session: Session, names: tuple[str, ...], overwrite: bool, no_overwrite: bool) -> Answer:
    """Make pools' storage: a target directory."""
    check_overwriting(overwrite, no_overwrite)
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
@option("--disable", is_flag=True, help="Remove the mark.")
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


def without_backend(session: Session, pools: Sequence[Pool]) -> list[str]:
    """Return a line for each new definition by which no pool can be started here, since its type has no backend."""
    types = [(pool.name, _stored(pool).type) for pool in pools]
    lacking = [(name, type) for name, type in types if type not in session.manager.registry]
    return [f"pool {name!r} cannot be started yet: {without_plugin(type)}" for name, type in lacking]


def when_taken(pool: Pool) -> str:
    """Return the end of a line about a new definition that an active pool does not run by."""
    if not pool.active or _stored(pool) == pool.definition:
        return ""
    return f": its next start takes it (`astore pool stop {shell_word(pool.name)}` first)"


def _stored(pool: Pool) -> PoolDef:
    """Return the definition that a pool's next start takes."""
    from astore.model import PoolDef

    return PoolDef.from_xml(pool.to_xml(inactive=True)) if pool.active else pool.definition


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
        raise CliError(f"cannot be read: {why_unread(file, error)}") from error


if TYPE_CHECKING:
    from collections.abc import Awaitable

    DefineCall = Callable[[bytes], Awaitable[Pool]]
