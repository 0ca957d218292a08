"""Checks of volumes' definitions and capacities, and the defaults that they take from their backing files."""

from __future__ import annotations

import contextlib

import msgspec

from astore.errors import DefinitionError, LibvirtCode, sizes
from astore.images import formats
from astore.images.paths import named_beside
from astore.images.references import located
from astore.model import BackingStore, Reference, ReferenceKind, VolumeDef, VolumeInfo
from astore.model.field_types import check_fields
from astore.names import check_volume_name
from astore.places import place_here
from astore.pools import graph
from astore.pools.naming import unloaded_types
from astore.pools.parts import Member, Parts

MOST_BYTES = 2**63 - 1
"""The largest size of a file (off_t)."""


def accepted(definition: VolumeDef | str | bytes, *, copied: bool = False) -> VolumeDef:
    """Read and check a definition.

    :param copied: the volume is a copy, which may take its capacity from the source.
    :raises DefinitionError: it is not acceptable.
    """
    wanted = definition if isinstance(definition, VolumeDef) else VolumeDef.from_xml(definition, copied=copied)
    check_fields(wanted)
    check_volume_name(wanted.name)
    for what, value in (("capacity", wanted.capacity), ("allocation", wanted.allocation)):
        if value is not None and not 0 <= value <= MOST_BYTES:
            raise DefinitionError(
                f"{value} bytes cannot be a volume's {what}", element=what, libvirt_code=LibvirtCode.OVERFLOW
            )
    directory = wanted.format == "dir" or (wanted.type is not None and wanted.type.value in ("dir", "netdir"))
    if wanted.capacity is None and wanted.backing is None and not copied and not directory:
        raise DefinitionError(f"volume {wanted.name!r} needs a capacity", element="capacity")
    return wanted


def no_capacity(asked: int, target: int, info: VolumeInfo, shrink: bool) -> str | None:
    """Return why a volume cannot get the capacity ``target``; None if it can. ``asked`` is what the caller gave."""
    if asked < 0 or target > MOST_BYTES:
        return f"{min(asked, target)} bytes cannot be a volume's capacity"
    less, more = sizes(max(target, 0), info.capacity)
    if target < info.capacity and not shrink:
        return f"{less} are less than the {more} that volume {info.name!r} has: shrinking must be asked for"
    if target < 0:
        less, more = sizes(asked, info.capacity)
        return f"volume {info.name!r} has {more}, and cannot become {less} smaller"
    if target == 0 and shrink and not formats.is_raw(info.format):
        return f"a volume of format {info.format!r} cannot be shrunk to nothing"
    return None


def relying_on(base: Member | None) -> contextlib.AbstractContextManager[None]:
    """Protect a backing file while a volume is being made on it. :raises VolumeBusyError: it is being changed."""
    return contextlib.nullcontext() if base is None else base.pool.claims.relied_on(base.name)


async def backing_volume(pool: Parts, backing: BackingStore | None) -> Member | None:
    """Return the volume of an active pool that a backing file's name means, however its path is spelled."""
    if backing is None:
        return None
    snapshot = pool.snapshot
    if snapshot.get(backing.path) is not None:
        return Member(pool, backing.path)
    sample = next(iter(snapshot.by_name.values()), None)
    folder = pool.definition.target.path
    here = sample.key if sample is not None else "/" if folder is None else f"{folder}/any"
    (reference, *_) = located((Reference(ReferenceKind.BACKING, backing.path),), here)
    location, life = reference.location, pool.record.life
    if location is None:
        return None
    if location.startswith("/") and life is not None and life.lane is not None:
        place = await life.lane.run(place_here, location, snapshot.folder)
        reference = msgspec.structs.replace(reference, place=place)
    await pool.services.registry.load(unloaded_types((location,), pool.others()))
    return graph.volume_at(reference, pool.others())


def with_backing(pool: Parts, wanted: VolumeDef, base: Member | None) -> VolumeDef:
    """Complete a definition by its backing file: the name for QEMU, the format, and the capacity.

    :param base: the backing file's volume, if an active pool has it.
    :raises DefinitionError: the format or the capacity is unknown, or the volume cannot be backed by it.
    """
    backing = wanted.backing
    if backing is None:
        return wanted
    info = None if base is None else base.info
    path, format = backing.path, backing.format
    if base is not None and base.pool is pool and base.name == path:
        path = named_beside(path, base.info.path)
    if format is None:
        if info is None or info.format is None:
            raise DefinitionError(f"say which format the backing file {path!r} has", element="backingStore")
        format = info.format
    says_raw = formats.is_raw(format) and formats.can_be_backed_later(wanted.format)
    says_raw = says_raw or not formats.can_be_backed(wanted.format)  # refused elsewhere, with a better message
    if info is not None and (info.made == "raw" or info.header_format is not None) and not says_raw:
        looks = "" if info.header_format is None else f" and looks like {info.header_format} now"
        raise DefinitionError(
            f"volume {info.name!r} was made raw{looks}: it can back qcow2 and qed volumes, which say that it is raw; "
            "if it is meant to be an image, set its format first",
            element="backingStore",
        )
    capacity = wanted.capacity
    if capacity is None:
        if info is None:
            raise DefinitionError(
                f"no active pool has the backing file {path!r}: say which capacity the volume is to have",
                element="capacity",
            )
        capacity = info.capacity
    backing = BackingStore(path, format, backing.permissions)
    return msgspec.structs.replace(wanted, backing=backing, capacity=capacity)
