"""``astore vol``: the commands that show volumes."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from stat import filemode
from typing import TYPE_CHECKING, NamedTuple

import click

from astore.cli import documents
from astore.cli.command_line import argument, option
from astore.cli.completion import complete_pool
from astore.cli.exits import REFRESH_FIRST, CliError, Exit, shell_word
from astore.cli.output import Answer, Cell, Column, Output, size, when
from astore.cli.parameters import LIMIT, pool_option, volume_argument
from astore.cli.pool_list import stale
from astore.cli.session import OnSession, Session, Work, command, view, without_folder
from astore.cli.xpath import filtered, xpath_options
from astore.errors import StorageError, printable
from astore.model import ReferenceKind, VolumeInfo

if TYPE_CHECKING:
    from typing import TypeAlias

    from astore.cli.standing import Standing, StandingPool
    from astore.pools.pool import Pool
    from astore.pools.volume import Volume

    Listed: TypeAlias = Pool | StandingPool

ANSWER_SECONDS = 5.0
"""Seconds that a refresh of one volume may take without --timeout."""


def shown_format(info: VolumeInfo) -> str:
    """Return a volume's format, with the format of its header if that differs."""
    return info.format or "-" if info.header_format is None else f"{info.format} (looks like {info.header_format})"


@view("list")
@argument("name", required=False, metavar="POOL", help="A pool's name or UUID.", shell_complete=complete_pool)
@option("--details", is_flag=True, help="With types, times and paths.")
@option("--bytes", "in_bytes", is_flag=True, help="Sizes in bytes.")
@option("--name", "names_only", is_flag=True, help="Names alone, one in a line; POOL/NAME for all pools.")
def list_volumes(
    standing: Standing, name: str | None, details: bool, in_bytes: bool, names_only: bool
) -> Answer | OnSession:
    """List the volumes of a pool, or of all active pools, as the last refreshes found them."""
    shown = _Shown(details, str if in_bytes else size, names_only)
    if name is None:
        return _list_all(standing.pools(active=True), shown)
    pool = standing.pool(name)
    if pool.info.active and pool.snapshot.generation:
        return _list(pool, shown)

    async def refreshed(session: Session) -> Answer:
        return _list(await looked_at(session, name), shown)

    return refreshed


class _Shown(NamedTuple):
    """What a list shows of its volumes. ``write`` writes a size."""

    details: bool
    write: Callable[[int], str]
    names_only: bool


def _list(pool: Listed, shown: _Shown) -> Answer:
    info, snapshot = pool.info, pool.snapshot
    volumes = [(info.name, volume) for volume in snapshot.volumes]
    taken_at = snapshot.taken_at or None

    def document() -> documents.Document:  # a large pool has ten thousand records: made only if needed
        found = [documents.volume(pool, info) for pool, info in volumes]
        return {"pool": info.name, "refreshed_at": taken_at, "volumes": found}

    def show(output: Output) -> None:
        if shown.names_only:
            for _, volume in volumes:
                output.value(volume.name)
            return
        word = shell_word(info.name)
        empty = f"`astore vol create {word} NAME 10G` makes one, `astore pool refresh {word}` looks for new ones"
        _show_table(output, volumes, shown, empty=f"pool {printable(info.name)!r} has no volumes: {empty}")

    return Answer(document, show, stale(info))


def _list_all(pools: Sequence[Listed], shown: _Shown) -> Answer:
    """List the volumes of all active pools. Those that have no snapshot yet are left as they are."""
    volumes = [(pool.info.name, volume) for pool in pools for volume in pool.snapshot.volumes]

    def document() -> documents.Document:
        return {"pool": None, "refreshed_at": None, "volumes": [documents.volume(pool, info) for pool, info in volumes]}

    def show(output: Output) -> None:
        if shown.names_only:
            for pool, volume in volumes:
                output.value(f"{pool}/{volume.name}")
            return
        empty = (
            "no active pool has volumes: `astore pool list --all` shows the pools, `astore pool start POOL` starts one"
        )
        _show_table(output, volumes, shown, with_pools=True, empty=empty)

    problems = [] if shown.names_only else without_folder()
    return Answer(document, show, [*problems, *(line for pool in pools for line in stale(pool.info))])


def _show_table(
    output: Output, volumes: Sequence[tuple[str, VolumeInfo]], shown: _Shown, *, with_pools: bool = False, empty: str
) -> None:
    columns = [Column("Name", folds=True), Column("Format"), Column("Capacity", right=True)]
    columns += [Column("Allocation", right=True), Column("Backing file", folds=True)]
    columns += [Column("Type"), Column("Changed"), Column("Path", folds=True)] if shown.details else []
    rows: list[list[Cell | str]] = []
    for pool, info in volumes:
        row: list[Cell | str] = [info.name, shown_format(info), *map(shown.write, (info.capacity, info.allocation))]
        row.append(info.backing or "-")
        row += [info.type, when(info.mtime_ns / 1e9), info.path] if shown.details else []
        rows.append([pool, *row] if with_pools else row)
    output.table([Column("Pool", folds=True), *columns] if with_pools else columns, rows, empty=empty)


def volume_command(name: str, *, signed: bool = False) -> Callable[[Work], click.Command]:
    """Turn a coroutine function of a session and a volume into a command with the argument VOLUME and the option --pool.

    :param signed: an argument may be a negative number.
    """

    def decorate(work: Work) -> click.Command:
        @functools.wraps(work)
        async def on_volume(session: Session, volume: str, pool: str | None, **arguments: object) -> Answer:
            found = await find_volume(session, volume, pool)
            try:
                return await work(session, found, **arguments)
            except StorageError as error:
                if REFRESH_FIRST in error.message:
                    error.add_note(f"`astore pool refresh {shell_word(found.pool.name)}`")
                raise

        return command(name, signed=signed)(volume_argument(pool_option(on_volume)))

    return decorate


@volume_command("info")
@option("--bytes", "in_bytes", is_flag=True, help="Sizes in bytes.")
@option("--physical", is_flag=True, help="With --virsh: the size of its file instead of its allocation.")
async def show_info(session: Session, volume: Volume, in_bytes: bool, physical: bool) -> Answer:
    """Show one volume as it is now: format, sizes, backing file."""
    users = await _users(volume) if await _look_anew(session, volume) and not session.settings.virsh else None
    record = volume.info
    write = str if in_bytes else size

    def show(output: Output) -> None:
        pairs: list[tuple[str, str | None]] = [
            ("Name", record.name),
            ("Pool", volume.pool.name),
            ("Type", record.type),
            ("Format", shown_format(record)),
            ("Capacity", write(record.capacity)),
            ("Allocation", write(record.allocation)),
            ("Physical", write(record.physical)),
            ("Backing file", record.backing),
            ("Backing path", record.backing_path),
            ("Backing format", record.backing_format),
            ("Compat", record.compat),
            ("Features", ", ".join(record.features)),
            ("Encryption", record.encryption),
            ("Cluster size", write(record.cluster_size) if record.cluster_size else None),
            *(
                (str(one.kind).capitalize(), f"{one.location or one.name}: {one.doubt}" if one.doubt else one.location)
                for one in record.references
                if one.kind is not ReferenceKind.BACKING or one.doubt
            ),
            ("Extras", ", ".join(record.extras)),
            ("Permissions", f"{filemode(record.mode)} {record.uid}:{record.gid}"),
            ("Changed", when(record.mtime_ns / 1e9)),
            ("Path", record.path),
            ("Open elsewhere", ", ".join(users or ())),
        ]
        output.fields([(label, text) for label, text in pairs if text])

    return Answer(documents.volume(volume.pool.name, record, users), show)


@volume_command("dumpxml")
@xpath_options
async def dumpxml(session: Session, volume: Volume, xpath: str | None, wrap: bool) -> Answer:
    """Print a volume's libvirt XML, as it is now."""
    await _look_anew(session, volume)
    return filtered(volume.to_xml(), xpath, wrap)


def _identity(name: str, shown: str, help: str) -> click.Command:
    async def identify(session: Session, volume: Volume) -> Answer:
        document = _place_of(volume)
        return Answer(document, lambda output: output.value(document[shown]))

    identify.__doc__ = help
    return volume_command(name)(identify)


def _place_of(volume: Volume) -> documents.Document:
    return {"pool": volume.pool.name, "name": volume.name, "key": volume.key, "path": volume.path}


path = _identity("path", "path", "Print where a volume is: an absolute path, or a URL.")
vol_key = _identity("vol-key", "key", "Print a volume's key.")
vol_name = _identity("vol-name", "name", "Print the name of the volume with a key or a path.")


@volume_command("vol-pool")
@option("--uuid", is_flag=True, help="Its UUID instead.")
async def vol_pool(session: Session, volume: Volume, uuid: bool) -> Answer:
    """Print the name of the pool that a volume is in."""
    shown = volume.pool.uuid if uuid else volume.pool.name
    return Answer(_place_of(volume), lambda output: output.value(shown))


async def looked_at(session: Session, name: str) -> Pool:
    """Return a pool that has a snapshot, after a refresh if need be. :raises InvalidStateError: it is inactive."""
    pool = session.pool(name)
    if not pool.active or not pool.snapshot.generation:
        session.ticker.begin("refreshing")
        await pool.refresh(timeout=session.settings.timeout)
    return pool


async def find_volume(session: Session, text: str, pool: str | None) -> Volume:
    """Find a volume by its key or path, by its name in a pool, or by a name that only one pool has.

    ``POOL/NAME`` and ``POOL:NAME`` are the name in a pool. What the last refreshes did not see is looked for in the storage.
    """
    from astore.errors import VolumeNotFoundError

    try:
        return await _found(session, text, pool)
    except VolumeNotFoundError as error:
        from astore.cli.similar import suggest

        suggest(error, _meant(session, error.what, text, pool))
        raise


def _meant(session: Session, what: str, text: str, pool: str | None) -> str | None:
    """Return what a user may have meant by a path, a ``POOL/NAME`` or a name that leads to no volume.

    :param what: the part that was not found of what was typed, ``text``.
    """
    from astore.cli.similar import closest

    pools = session.manager.pools(active=True)
    if os.path.isabs(what):
        folder, name = os.path.split(what)
        paths = (info.path for one in pools for info in one.snapshot.volumes)
        found = closest(name, (os.path.basename(path) for path in paths if os.path.dirname(path) == folder))
        return None if found is None else os.path.join(folder, found)
    address = None if pool is not None else parted_address(session, text)
    homes = [session.pool(pool)] if pool is not None else pools if address is None else [address[0]]
    if pool is None and address is None and "/" in text:
        typed, _, name = text.partition("/")
        found = closest(typed, (one.name for one in homes if one.snapshot.get(name) is not None))
        return None if found is None else f"{found}/{name}"
    return closest(what, (info.name for one in homes for info in one.snapshot.volumes))


async def _found(session: Session, text: str, pool: str | None) -> Volume:
    from astore.errors import PoolNotFoundError, VolumeNotFoundError

    text = await _whole_path(text)
    limit = session.settings.timeout or ANSWER_SECONDS
    if pool is not None:
        home = await looked_at(session, pool)
        for info in home.volumes if "/" in text else ():
            if text in (info.key, info.path):
                return home.volume(info.name)
        try:
            return await home.find(text, timeout=limit)
        except VolumeNotFoundError:
            address = parted_address(session, text)
            if address is None:
                raise
        if address[0] is not home:
            raise CliError(f"{printable(text)!r} is not in pool {home.name!r}: leave out --pool", Exit.USAGE)
        return await home.find(address[1], timeout=limit)
    try:
        return session.manager.volume_by_path(text)
    except VolumeNotFoundError:
        homes = [one for one in session.manager.pools(active=True) if one.snapshot.get(text) is not None]
    if not homes and (address := parted_address(session, text)) is not None:
        home, name = address
        return await (await looked_at(session, home.name)).find(name, timeout=limit)
    if not homes and os.path.isabs(text):
        with suppress(PoolNotFoundError, VolumeNotFoundError):
            return await session.manager.pool_by_target(os.path.dirname(text)).find(
                os.path.basename(text), timeout=limit
            )
    unanswered: list[Pool] = []
    if not homes and "/" not in text:
        homes, unanswered = await _asked(session.manager.pools(active=True), text, limit)
    if not homes:
        doubt = f"; no answer from {', '.join(printable(one.name) for one in unanswered)}" if unanswered else ""
        raise VolumeNotFoundError(f"no active pool has a volume {text!r}{doubt}", what=text)
    if len(homes) > 1:
        names = ", ".join(printable(one.name) for one in homes)
        hint = f"say --pool {shell_word(homes[0].name)}"
        raise CliError(f"several pools have a volume {text!r} ({names}): {hint}", Exit.USAGE)
    return homes[0].volume(text)


def parted_address(session: Session, text: str) -> tuple[Pool, str] | None:
    """Return the pool and the name that ``POOL/NAME`` or ``POOL:NAME`` means; None if it begins with no pool's name."""
    from astore.errors import PoolNotFoundError

    for mark in "/", ":":
        pool, found, name = text.partition(mark)
        if found and pool and name:
            with suppress(PoolNotFoundError):
                return session.pool(pool), name
    return None


def new_address(session: Session, text: str) -> tuple[Pool, str] | None:
    """Return the pool and the name of a volume that is to be made; None if the text is its name alone, as in virsh.

    :raises PoolNotFoundError: it begins with the name of no pool and a slash.
    """
    if session.settings.virsh:
        return None
    found = parted_address(session, text)
    pool, slash, _ = text.partition("/")
    if found is None and slash and pool.strip("."):  # and not a path
        session.pool(pool)
    return found


async def _asked(pools: Sequence[Pool], name: str, limit: float) -> tuple[list[Pool], list[Pool]]:
    """Look for a volume in the storage of pools. Return those that have it, and those that did not answer.

    :param limit: seconds for all of them.
    """
    import asyncio

    from astore.errors import VolumeNotFoundError

    turn = asyncio.Semaphore(LIMIT)
    answers: dict[str, bool] = {}

    async def ask(pool: Pool) -> None:
        async with turn:
            try:
                await pool.find(name)
            except VolumeNotFoundError:
                answers[pool.name] = False
            except Exception:  # its storage fails, which `pool list` shows
                return
            else:
                answers[pool.name] = True

    with suppress(TimeoutError):
        async with asyncio.timeout(limit):
            await asyncio.gather(*map(ask, pools))
    return [one for one in pools if answers.get(one.name)], [one for one in pools if one.name not in answers]


async def _whole_path(text: str) -> str:
    """Return a path as absolute and normalised, and any other text unchanged."""
    if not text.startswith(("/", "./", "../")):
        return text
    from anyio import to_thread

    return await to_thread.run_sync(os.path.abspath, text)


async def _look_anew(session: Session, volume: Volume) -> bool:
    """Refresh a volume, and return whether its storage answers. If not, the volume stays as the last refresh found it."""
    try:
        await volume.refresh(timeout=session.settings.timeout or ANSWER_SECONDS)
    except Exception:
        if volume.pool.snapshot.get(volume.name) is None:
            raise
        return False
    return True


async def _users(volume: Volume) -> tuple[str, ...] | None:
    """Return who else has a volume open; None: its storage does not tell, or not soon."""
    import asyncio

    with suppress(Exception):
        return await asyncio.wait_for(volume.users(), ANSWER_SECONDS)
    return None
