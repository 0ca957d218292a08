"""``astore vol clone``, ``create-from`` and ``move``: the commands that make volumes of volumes."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar

from msgspec.structs import replace

from astore.cancellation import shielded
from astore.cli.command_line import argument, option
from astore.cli.completion import complete_new_volume, complete_pool
from astore.cli.exits import CliError, Exit, code_of, explain, shell_word
from astore.cli.output import Answer, xml_answer
from astore.cli.parameters import force_option, pool_argument, pool_option, volume_argument
from astore.cli.same_content import same_content
from astore.cli.schemas import validate_option
from astore.cli.session import Session, command
from astore.cli.volume_changes import SIZE, definition_from, format_option, misleading, told
from astore.cli.volumes import ANSWER_SECONDS, find_volume, new_address, volume_command
from astore.errors import DefinitionError, PoolNotFoundError, VolumeExistsError, VolumeNotFoundError, printable, sizes
from astore.images.references import are_relative

if TYPE_CHECKING:
    from astore.model import VolumeDef
    from astore.pools.pool import Pool
    from astore.pools.volume import Volume

F = TypeVar("F", bound=Callable[..., Any])


def virsh_copy_options(command: F) -> F:
    """Add virsh's options of a copy, which change nothing here."""
    reflink = option("--reflink", is_flag=True, help="Share blocks. It is always done where the storage can.")
    return reflink(
        option("--prealloc-metadata", is_flag=True, help="Has no effect on a copy, which has its source's data.")(
            command
        )
    )


def _no_effect(prealloc_metadata: bool) -> list[str]:
    return ["--prealloc-metadata has no effect on a copy: it has its source's data"] if prealloc_metadata else []


to_option = option(
    "--to", metavar="POOL", help="The pool of the new one, if it is another.", shell_complete=complete_pool
)


@volume_command("clone")
@argument("name", metavar="NAME", help="The new volume's name, also as POOL/NAME.", shell_complete=complete_new_volume)
@to_option
@format_option
@option("--capacity", type=SIZE, metavar="SIZE", help="The new volume's capacity, if larger.")
@virsh_copy_options
@option("--print-xml", is_flag=True, help="Only print the XML of what would be made.")
async def clone(
    session: Session,
    volume: Volume,
    name: str,
    to: str | None,
    format: str | None,
    capacity: int | None,
    reflink: bool,
    prealloc_metadata: bool,
    print_xml: bool,
) -> Answer:
    """Make a volume out of another, in any pool and format."""
    from astore.model import VolumeDef

    target, name = _goal(session, volume, name, to)
    wanted = VolumeDef(name, capacity=capacity, format=format)
    if print_xml and session.settings.virsh:
        return xml_answer(_with_name(volume.to_xml(), name))
    if print_xml:
        return xml_answer((await _meant(session, volume, target, wanted)).to_xml())
    session.ticker.begin_bytes(f"copying {volume.name}")
    made = await session.in_time(target.copy_volume(volume, wanted, on_progress=session.ticker.progress))
    problems = [*_left_out(volume, made), *_no_effect(prealloc_metadata)]
    if not (format or session.settings.virsh):
        problems += misleading(name, made.info.format)
    return told(made, f"cloned from {volume.name!r}", problems, source=volume.name)


def _goal(session: Session, volume: Volume, name: str, to: str | None) -> tuple[Pool, str]:
    """Return the pool and the name of a new volume, which may be given as ``POOL/NAME``."""
    if to is not None:
        return session.pool(to), name
    return new_address(session, name) or (volume.pool, name)


async def _meant(session: Session, volume: Volume, target: Pool, wanted: VolumeDef) -> VolumeDef:
    """Return the whole definition of a copy. :raises VolumeExistsError: the pool has such a volume. DefinitionError."""
    from astore.model import VolumeDef

    with suppress(VolumeNotFoundError):
        await target.find(wanted.name, timeout=session.settings.timeout or ANSWER_SECONDS)
        raise VolumeExistsError(f"pool {target.name!r}: there is a volume {printable(wanted.name)!r} already")
    source = VolumeDef.from_xml(volume.to_xml())
    capacity = volume.info.capacity if wanted.capacity is None else wanted.capacity
    if capacity < volume.info.capacity:
        less, more = sizes(capacity, volume.info.capacity)
        raise DefinitionError(f"{less} are less than the {more} of volume {volume.name!r}", element="capacity")
    if wanted.format not in (None, source.format) or (
        target.name != volume.pool.name and are_relative(volume.info.references)
    ):
        format = wanted.format or source.format
        return VolumeDef(wanted.name, capacity=capacity, format=format, permissions=source.permissions)
    return replace(source, name=wanted.name, capacity=capacity, timestamps=None)


def _left_out(volume: Volume, made: Volume) -> list[str]:
    extras = [extra for extra in volume.info.extras if extra not in made.info.extras]
    return [f"volume {made.name!r} does not have its source's {' and '.join(extras)}"] if extras else []


def _with_name(xml: str, name: str) -> str:
    """Return a volume's document with another name, as virsh writes it."""
    from lxml import etree

    root = etree.fromstring(xml)
    element = root.find("name")
    assert element is not None
    element.text = name
    return etree.tostring(root, encoding="unicode")


@command("create-from")
@pool_argument("to")
@argument("file", metavar="FILE", help="libvirt volume XML of the new volume; `-` is standard input.")
@volume_argument
@option("--inputpool", "pool", metavar="POOL", help="The pool of the old one.", shell_complete=complete_pool)
@virsh_copy_options
@validate_option
async def create_from(
    session: Session,
    to: str,
    file: str,
    volume: str,
    pool: str | None,
    reflink: bool,
    prealloc_metadata: bool,
    validate: bool,
) -> Answer:
    """Make a volume as libvirt's XML says, with the data of another."""
    source = await find_volume(session, volume, pool)
    definition = await definition_from(file, validate=validate, copied=True)
    session.ticker.begin_bytes(f"copying {source.name}")
    call = session.pool(to).copy_volume(source, definition, on_progress=session.ticker.progress)
    made = await session.in_time(call)
    problems = [*_left_out(source, made), *_no_effect(prealloc_metadata)]
    return told(made, f"created from volume {source.name!r}", problems, source=source.name)


@command("move")
@volume_argument
@argument("to", metavar="POOL", help="Its new pool, also as POOL/NAME for another name.", shell_complete=complete_pool)
@pool_option
@force_option
async def move(session: Session, volume: str, to: str, pool: str | None, force: bool) -> Answer:
    """Move a volume to another pool: copy it, compare the copy with it, and delete it."""
    from astore.model import VolumeDef

    source = await find_volume(session, volume, pool)
    try:
        target, name = session.pool(to), source.name
    except PoolNotFoundError:
        address = new_address(session, to)
        if address is None:
            raise
        target, name = address
    if target.name == source.pool.name:
        raise CliError(
            f"volume {source.name!r} is in pool {target.name!r} already: `astore vol rename` gives it another name",
            Exit.USAGE,
        )
    await session.manager.registry.load((source.pool.type,))  # the backend recognises the URLs of its pool
    if not force and (others := session.manager.dependents(source)):
        names = ", ".join(printable(other.name) for other in others[:3])
        raise CliError(f"volume {source.name!r} is what others are backed by ({names}): --force moves it nevertheless")
    if are_relative(source.info.references):  # a copy elsewhere is another image, and nothing tells that it is whole
        word, goal = shell_word(f"{source.pool.name}/{source.name}"), shell_word(f"{target.name}/{name}")
        raise CliError(
            f"volume {source.name!r} names other files of its folder, which are not in pool {target.name!r}: "
            f"`astore vol clone {word} {goal}` makes a copy that needs none, `astore vol delete {word}` deletes this one"
        )
    session.ticker.begin_bytes(f"copying {source.name}")
    made = await session.in_time(target.copy_volume(source, VolumeDef(name), on_progress=session.ticker.progress))
    left_out = _left_out(source, made)
    try:
        session.ticker.begin_bytes(f"comparing {source.name}", made.info.physical)
        if not await session.in_time(same_content(source, made, session.ticker.progress)):
            raise CliError(f"the copy of volume {source.name!r} differs from it (is it in use?): it stays where it is")
    except BaseException:
        await shielded(made.delete())
        raise
    try:
        await session.in_time(source.delete(force=force))
    except Exception as error:
        raise CliError(
            f"volume {source.name!r} is in both pools now, since it could not be deleted: {explain(error)}",
            code_of(error),
        ) from error
    return told(made, f"moved from pool {source.pool.name!r} to {target.name!r}", left_out)
