"""Jobs on a pool's volumes: the checks, claims and events around the backend's work.

A claim locks a volume against other writers only: refreshes, lookups and work on other volumes go on. A job updates the
snapshot as soon as its work is done, and the journal of a running refresh. Jobs take and return records, never handles.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import cast

import msgspec

from astore.backend import (
    CreatesVolumes,
    DeletesVolumes,
    Progress,
    RenamesVolumes,
    ResizesVolumes,
    VolumeFile,
    WipesVolumes,
)
from astore.errors import DefinitionError, LibvirtCode, UnsupportedOperationError, VolumeExistsError
from astore.images import formats
from astore.model import VolumeDef, VolumeInfo
from astore.names import check_volume_name
from astore.plugin_calls import checked_record
from astore.pools import graph
from astore.pools.backing import MOST_BYTES, accepted, backing_volume, relying_on, with_backing
from astore.pools.copies import backing_for
from astore.pools.job_support import (
    begin_change,
    look_again_at,
    looking_again,
    making,
    opened_volume,
    require_usable,
    take_new_volume,
    worked,
)
from astore.pools.parts import Member, Parts
from astore.pools.progress import reporting
from astore.volume_io import wiping
from astore.volume_io.copying import Count
from astore.volume_io.downloads import Download, downloading


async def create_volume(
    pool: Parts, definition: VolumeDef | str | bytes, *, prealloc_metadata: bool = False
) -> VolumeInfo:
    """See :meth:`astore.Pool.create_volume`."""
    life = require_usable(pool, "create a volume")
    wanted = accepted(definition)
    base = await backing_volume(pool, wanted.backing)
    wanted = with_backing(pool, wanted, base)
    with relying_on(base), pool.claims.claim(wanted.name, "created"):
        session = await life.able("create-volume")
        call = cast(CreatesVolumes, session).create_volume(wanted, prealloc_metadata=prealloc_metadata)
        async with making(pool, life, session, wanted.name):
            return take_new_volume(pool, life, session, await worked(pool, call))


@contextlib.asynccontextmanager
async def download(
    pool: Parts, name: str, *, offset: int, length: int | None, sparse: bool, on_progress: Progress | None
) -> AsyncIterator[Download]:
    """See :meth:`astore.Volume.download`."""
    life = require_usable(pool, "download a volume")
    info = pool.volume(name)
    check_range(offset, length)
    session = await life.able("open-volume")
    async with opened_volume(pool, session, info) as file:
        size = (await file.stat()).size
        end = size if length is None else min(size, offset + length)
        with reporting(pool.record, name, "download", on_progress) as tell:
            count = Count(max(end - offset, 0), tell)
            async with downloading(file, min(offset, end), end, sparse, count) as blocks:
                yield blocks


@contextlib.asynccontextmanager
async def open_volume(pool: Parts, name: str, *, write: bool, force: bool) -> AsyncIterator[VolumeFile]:
    """See :meth:`astore.Volume.open`."""
    life = require_usable(pool, "open a volume")
    info = pool.volume(name)
    if write:
        life, info = await begin_change(pool, name, "write", force)
    with pool.claims.claim(name, "written") if write else contextlib.nullcontext():
        session = await life.able("open-volume")
        try:
            async with opened_volume(pool, session, info, write=write) as file:
                yield file
        finally:
            if write:
                await pool.refresher.look_again(name)


async def resize_volume(
    pool: Parts, name: str, capacity: int, *, delta: bool, shrink: bool, allocate: bool, force: bool
) -> VolumeInfo:
    """See :meth:`astore.Volume.resize`."""
    life, info = await begin_change(pool, name, "resize", force)
    target = info.capacity + (-capacity if shrink else capacity) if delta else capacity
    if not 0 < target <= MOST_BYTES or capacity < 0:
        raise DefinitionError(
            f"{target} bytes cannot be a volume's capacity", element="capacity", libvirt_code=LibvirtCode.INVALID_ARG
        )
    if target < info.capacity and not shrink:
        raise DefinitionError(
            f"{target} bytes are less than the {info.capacity} that volume {name!r} has: shrinking must be asked for",
            element="capacity",
            libvirt_code=LibvirtCode.INVALID_ARG,
        )
    with pool.claims.claim(name, "resized"):
        session = await life.able("resize-volume")
        async with looking_again(pool, name), backing_for(Member(pool, name), target, "resizing") as backing:
            call = cast(ResizesVolumes, session).resize_volume(info, target, allocate=allocate, backing=backing)
            changed = checked_record(await worked(pool, call))
        life.check("resize", session)
        pool.refresher.apply({name: changed})
        return changed


async def wipe_volume(pool: Parts, name: str, algorithm: str, on_progress: Progress | None, *, force: bool) -> None:
    """See :meth:`astore.Volume.wipe`."""
    wiping.check_algorithm(algorithm)
    life, info = await begin_change(pool, name, "wipe", force)
    with pool.claims.claim(name, "wiped"):
        session = await life.able("wipe-volume")
        try:
            with reporting(pool.record, name, "wipe", on_progress) as tell:
                await worked(pool, cast(WipesVolumes, session).wipe_volume(info, algorithm, progress=tell))
        finally:
            await pool.refresher.look_again(name)
        life.check("wipe", session)
        keep_raw(pool, name)


async def delete_volume(pool: Parts, name: str, *, force: bool) -> None:
    """See :meth:`astore.Volume.delete`."""
    life, info = await begin_change(pool, name, "delete", force)
    others = graph.dependents(info, pool, pool.others())
    with pool.claims.claim(name, "deleted"):
        session = await life.able("delete-volume")
        async with looking_again(pool, name):
            await worked(pool, cast(DeletesVolumes, session).delete_volume(info))
        life.check("delete", session)
        pool.refresher.apply({name: None})
        await look_again_at(others)


async def rename_volume(pool: Parts, name: str, new: str, *, force: bool) -> VolumeInfo:
    """See :meth:`astore.Volume.rename`."""
    check_volume_name(new)
    life, info = await begin_change(pool, name, "rename", force)
    if new == name:
        raise VolumeExistsError(f"volume {name!r} of pool {pool.name!r} has this name already", pool=pool.name)
    others = graph.dependents(info, pool, pool.others())
    with pool.claims.claim(name, "renamed"), pool.claims.claim(new, "created"):
        session = await life.able("rename-volume")
        async with looking_again(pool, name, new):
            renamed = checked_record(await worked(pool, cast(RenamesVolumes, session).rename_volume(info, new)))
        life.check("rename", session)
        pool.refresher.apply({name: None, new: renamed})
        await look_again_at(others)
        return renamed


async def set_volume_format(pool: Parts, name: str, format: str) -> VolumeInfo:
    """See :meth:`astore.Volume.set_format`."""
    life, info = await begin_change(pool, name, "set the format of", True)
    said = info.header_format or info.format or "raw"
    if format not in ("raw", said):
        raise DefinitionError(
            f"volume {name!r} can be raw or {said}, by its header, and not {format}", element="format"
        )
    with pool.claims.claim(name, "given a format"):
        session = await life.able("open-volume")
        try:
            async with opened_volume(pool, session, info, write=True) as file:
                noted = await file.note_format("raw" if format == "raw" else None)
            if not noted and format == "raw":
                raise UnsupportedOperationError(pool=pool.name, type=pool.definition.type, operation="set-format")
            life.check("set the format of", session)
            if not noted:  # this process alone knew it
                pool.refresher.apply({name: msgspec.structs.replace(info, made=None)})
        finally:
            await pool.refresher.look_again(name)
    return pool.volume(name)


def keep_raw(pool: Parts, name: str) -> None:
    """Record that a volume was made raw, even if its storage keeps no notes."""
    info = pool.snapshot.get(name)
    if info is not None and info.made is None and formats.is_raw(info.format):
        pool.refresher.apply({name: msgspec.structs.replace(info, made="raw")})


def check_range(offset: int, length: int | None) -> None:
    """Check a range of bytes. :raises ValueError: no file has it."""
    if not 0 <= offset <= MOST_BYTES or not 0 <= (length or 0) <= MOST_BYTES - offset:
        raise ValueError(f"no volume has {'all' if length is None else length} bytes from byte {offset} on")
