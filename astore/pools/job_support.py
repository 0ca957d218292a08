"""The common parts of work on volumes: checks before it begins, opening, progress, and refreshes after it."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Iterable, Iterator
from errno import EAGAIN
from typing import TypeVar, cast

import msgspec

from astore.backend import OpensVolumes, PoolSession, Progress
from astore.errors import PoolInaccessibleError, StorageError, VolumeInUseError
from astore.events import VolumeProgress
from astore.images import formats
from astore.model import PoolState, VolumeInfo
from astore.plugin_calls import answer, checked_record
from astore.pools import graph
from astore.pools.backing import MOST_BYTES
from astore.pools.life import Life
from astore.pools.parts import Member, Parts
from astore.pools.pool_errors import about_volume
from astore.pools.record import PoolRecord
from astore.volume_io.named_file import NamedFile

T = TypeVar("T")

PROGRESS_SECONDS = 0.25
"""The least number of seconds between two progress events of one job."""

LOOK_SECONDS = 10.0
"""How long to wait for the first refresh of another pool."""


def require_usable(pool: Parts, operation: str) -> Life:
    """Return the pool's life, to begin work with. :raises InvalidStateError: it is not active. ManagerClosedError."""
    pool.services.check_open()
    return pool.record.require_usable(operation)


async def begin_change(pool: Parts, name: str, operation: str, force: bool) -> tuple[Life, VolumeInfo]:
    """Check that a volume may be changed; return the pool's life and the volume's record.

    :raises VolumeInUseError: others need the volume, and ``force`` is False. VolumeBusyError: one is being made on it.
    """
    life = require_usable(pool, f"{operation} a volume")
    if force:
        return life, pool.volume(name)
    await _know_others(pool)
    life = require_usable(pool, f"{operation} a volume")
    info = pool.volume(name)
    pool.claims.require_not_relied_on(name, operation)
    others = pool.others()
    if dependents := graph.dependents(info, pool, others, of_snapshots=operation == "delete"):
        names = ", ".join(repr(one.name) for one in dependents[:3]) + (" …" if len(dependents) > 3 else "")
        raise VolumeInUseError(
            f"volume {name!r} of pool {pool.name!r} is what others are backed by or have data in ({names}): "
            "they would be damaged; force it if that is meant",
            pool=pool.name,
            operation=operation,
            dependents=[one.info.key for one in dependents],
        )
    if behind := [other.name for other in graph.pools_behind(info, pool, others)]:
        raise VolumeInUseError(
            f"volume {name!r} of pool {pool.name!r} is a directory with the folder of an active pool in it "
            f"({', '.join(map(repr, behind[:3]))}); force it if that is meant",
            pool=pool.name,
            operation=operation,
            dependents=[],
        )
    return life, info


async def _know_others(pool: Parts) -> None:
    """Refresh the active pools that have no snapshot yet: their images may need the volume."""
    await pool.services.registry.load((pool.definition.type,))  # the backend knows by which URLs others name the volume
    unknown = [one for one in pool.others() if one.active and not one.snapshot.taken_at]
    if unknown:
        looks = (
            one.refresher.refresh(False, LOOK_SECONDS)
            for one in unknown
            if one.record.state is not PoolState.INACCESSIBLE
        )
        await asyncio.gather(*looks, return_exceptions=True)


async def worked(pool: Parts, call: Awaitable[T]) -> T:
    """Await a backend's work on a volume. If it finds the pool inaccessible, that is the pool's state from then on.

    :raises: the backend's error, with the pool's name in it.
    """
    life = pool.record.life
    try:
        return await answer(call)
    except Exception as error:
        translated = about_volume(pool.name, error)
        same = life is not None and pool.record.life is life and not life.ending
        if same and isinstance(translated, PoolInaccessibleError):
            pool.record.set_state(PoolState.INACCESSIBLE, translated)
        raise translated from error.__cause__


@contextlib.asynccontextmanager
async def opened_volume(
    pool: Parts, session: PoolSession, info: VolumeInfo, *, write: bool = False
) -> AsyncIterator[NamedFile]:
    """Open a volume's bytes. Errors inside the context are raised unchanged."""
    stack = contextlib.AsyncExitStack()
    opening = cast(OpensVolumes, session).open_volume(info, write=write)
    file = await worked(pool, stack.enter_async_context(opening))
    try:
        yield NamedFile(file, pool.name, info.name, write=write)
    except BaseException as error:
        await stack.__aexit__(type(error), error, error.__traceback__)
        raise
    await worked(pool, stack.aclose())


@contextlib.asynccontextmanager
async def making(pool: Parts, life: Life, session: PoolSession, name: str) -> AsyncIterator[None]:
    """Surround the creation of a volume. If it fails, refresh the name: a concurrent refresh may have seen the volume."""
    generation = pool.record.generation
    try:
        yield
    except BaseException:
        if life.session is session and (pool.refresher.running or pool.record.generation != generation):
            await pool.refresher.look_again(name)
        raise


@contextlib.asynccontextmanager
async def seeing_change(pool: Parts, name: str) -> AsyncIterator[None]:
    """Surround the reading of a volume. If it has changed meanwhile (EAGAIN), refresh it."""
    try:
        yield
    except StorageError as error:
        if error.errno == EAGAIN:
            await pool.refresher.look_again(name)
        raise


@contextlib.asynccontextmanager
async def looking_again(pool: Parts, *names: str) -> AsyncIterator[None]:
    """Surround work on volumes. If it fails, refresh them."""
    try:
        yield
    except BaseException:
        await pool.refresher.look_again(*names)
        raise


def take_new_volume(pool: Parts, life: Life, session: PoolSession, info: VolumeInfo) -> VolumeInfo:
    """Add a new volume to the snapshot. :raises InvalidStateError: the pool was stopped meanwhile."""
    life.check("create", session)
    pool.refresher.apply({checked_record(info).name: info})
    return info


async def look_again_at(others: Iterable[Member]) -> None:
    """Refresh these volumes, because their references may lead elsewhere now. Bounded; never raises."""
    for other in others:
        await other.pool.refresher.look_again(other.name)


def keep_raw(pool: Parts, name: str) -> None:
    """Record that a volume was made raw, even if its storage keeps no notes."""
    info = pool.snapshot.get(name)
    if info is not None and info.made is None and formats.is_raw(info.format):
        pool.refresher.apply({name: msgspec.structs.replace(info, made="raw")})


def check_range(offset: int, length: int | None) -> None:
    """Check a range of bytes. :raises ValueError: no file has it."""
    if not 0 <= offset <= MOST_BYTES or not 0 <= (length or 0) <= MOST_BYTES - offset:
        raise ValueError(f"no volume has {'all' if length is None else length} bytes from byte {offset} on")


@contextlib.contextmanager
def reporting(record: PoolRecord, name: str, operation: str, on_progress: Progress | None) -> Iterator[Progress]:
    """Yield the callback that work on a volume calls with its progress. If it lasted, the last step is an event too."""
    told = time.monotonic()
    last: tuple[int, int | None] | None = None

    def publish(done: int, total: int | None) -> None:
        record.publish(VolumeProgress, name=name, operation=operation, done=done, total=total)

    def tell(done: int, total: int | None) -> None:
        nonlocal told, last
        if on_progress is not None:
            on_progress(done, total)
        now = time.monotonic()
        if now - told >= PROGRESS_SECONDS:
            told = now
            last = None
            publish(done, total)
            return
        last = done, total

    began = told
    yield tell
    if last is not None and told > began:
        publish(*last)
