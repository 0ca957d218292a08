"""What surrounds all work on a pool's volumes: what is checked before it, opened for it, and looked at after it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Iterable
from errno import EAGAIN
from typing import TypeVar, cast

from astore.backend import OpensVolumes, PoolSession
from astore.errors import StorageError, VolumeInUseError
from astore.model import PoolState, VolumeInfo
from astore.plugin_calls import answer, record
from astore.pools import graph
from astore.pools.life import Life
from astore.pools.parts import Member, Parts
from astore.pools.wording import about_volume
from astore.volume_io.named_file import NamedFile

T = TypeVar("T")

LOOK_SECONDS = 10.0
"""How long a pool is waited for of which nothing is known yet."""


def begin(pool: Parts, operation: str) -> Life:
    """Return the pool's life, for work to begin. :raises InvalidStateError: it is not active. ManagerClosedError."""
    pool.services.check_open()
    return pool.record.require_usable(operation)


async def begin_change(pool: Parts, name: str, operation: str, force: bool) -> tuple[Life, VolumeInfo]:
    """Return the pool's life and the record of a volume that is about to be changed.

    :raises VolumeInUseError: others need the volume, and ``force`` is False. VolumeBusyError: one is being made on it.
    """
    life = begin(pool, f"{operation} a volume")
    if force:
        return life, pool.volume(name)
    await _know_others(pool)
    life = begin(pool, f"{operation} a volume")
    info = pool.volume(name)
    pool.claims.require_not_relied_on(name, operation)
    others = pool.others()
    if dependents := graph.dependents(info, pool, others):
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
    """Look at all active pools that nothing is known of yet: their images may need the volume."""
    unknown = [one for one in pool.others() if one.active and not one.snapshot.taken_at]
    if unknown:
        looks = (
            one.refresher.refresh(False, LOOK_SECONDS)
            for one in unknown
            if one.record.state is not PoolState.INACCESSIBLE
        )
        await asyncio.gather(*looks, return_exceptions=True)


async def worked(pool: Parts, call: Awaitable[T]) -> T:
    """Await a backend's work on a volume. What it raises gets the pool's name."""
    try:
        return await answer(call)
    except Exception as error:
        raise about_volume(pool.name, error) from error.__cause__


@contextlib.asynccontextmanager
async def opened(
    pool: Parts, session: PoolSession, info: VolumeInfo, *, write: bool = False
) -> AsyncIterator[NamedFile]:
    """Open a volume's bytes. What happens inside is the caller's, and is raised as it is."""
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
async def making(pool: Parts, life: Life, name: str) -> AsyncIterator[None]:
    """Surround the making of a volume: where it fails, a refresh beside it may have seen the volume for a moment."""
    generation = pool.record.generation
    try:
        yield
    except BaseException:
        if not life.ended and (pool.refresher.running or pool.record.generation != generation):
            await pool.refresher.look_again(name)
        raise


@contextlib.asynccontextmanager
async def seeing_change(pool: Parts, name: str) -> AsyncIterator[None]:
    """Surround the reading of a volume: where it turns out to be another by now, its record is brought up to date."""
    try:
        yield
    except StorageError as error:
        if error.errno == EAGAIN:
            await pool.refresher.look_again(name)
        raise


@contextlib.asynccontextmanager
async def looking_again(pool: Parts, *names: str) -> AsyncIterator[None]:
    """Surround work on volumes: where it fails, see what it has done to them."""
    try:
        yield
    except BaseException:
        await pool.refresher.look_again(*names)
        raise


def made(pool: Parts, life: Life, info: VolumeInfo) -> VolumeInfo:
    """Take over a volume that was made. :raises InvalidStateError: the pool was stopped meanwhile."""
    life.check("create")
    pool.refresher.apply({record(info).name: info})
    return info


async def look_again_at(others: Iterable[Member]) -> None:
    """See anew where what these volumes name leads. Bounded; never raises."""
    for other in others:
        await other.pool.refresher.look_again(other.name)
