"""What jobs do with a pool on its host: the verbs of :class:`astore.Pool` and :class:`astore.Volume` by name."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from astore.backend import Progress
from astore.errors import DefinitionError
from astore.manager import Manager
from astore.model import VolumeInfo
from astore.pools.pool import Pool

Verb = Callable[[Manager, Pool, Mapping[str, Any], Progress], Awaitable[VolumeInfo | None]]


async def _start(manager: Manager, pool: Pool, given: Mapping[str, Any], tell: Progress) -> None:
    await pool.start(bool(given.get("build")))


async def _stop(manager: Manager, pool: Pool, given: Mapping[str, Any], tell: Progress) -> None:
    await pool.stop(bool(given.get("force")))


async def _create(manager: Manager, pool: Pool, given: Mapping[str, Any], tell: Progress) -> VolumeInfo:
    made = await pool.create_volume(given["xml"], prealloc_metadata=bool(given.get("prealloc_metadata")))
    return made.info


async def _copy(manager: Manager, pool: Pool, given: Mapping[str, Any], tell: Progress) -> VolumeInfo:
    source = manager.pool(given["source_pool"]).volume(given["source"])
    made = await pool.copy_volume(source, given["xml"], on_progress=tell)
    return made.info


async def _resize(manager: Manager, pool: Pool, given: Mapping[str, Any], tell: Progress) -> VolumeInfo:
    options = {name: bool(given.get(name)) for name in ("delta", "shrink", "allocate", "force")}
    return await pool.volume(given["volume"]).resize(int(given["capacity"]), **options)


async def _wipe(manager: Manager, pool: Pool, given: Mapping[str, Any], tell: Progress) -> None:
    volume = pool.volume(given["volume"])
    await volume.wipe(given.get("algorithm", "zero"), on_progress=tell, force=bool(given.get("force")))


async def _delete(manager: Manager, pool: Pool, given: Mapping[str, Any], tell: Progress) -> None:
    await pool.volume(given["volume"]).delete(force=bool(given.get("force")))


VERBS: dict[str, Verb] = {
    "start": _start,
    "stop": _stop,
    "create": _create,
    "copy": _copy,
    "convert": _copy,
    "resize": _resize,
    "wipe": _wipe,
    "delete": _delete,
}


async def act(kind: str, manager: Manager, pool: Pool, given: Mapping[str, Any], tell: Progress) -> VolumeInfo | None:
    """Do the work of a job. :raises DefinitionError: there is no such kind, or an argument is missing."""
    verb = VERBS.get(kind)
    if verb is None:
        raise DefinitionError(f"there is no job {kind!r}")
    try:
        return await verb(manager, pool, given, tell)
    except KeyError as error:
        if error.args and error.args[0] in given:
            raise
        raise DefinitionError(f"job {kind!r} lacks {error}") from error
