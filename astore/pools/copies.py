"""Copies of volumes: within a pool, from pool to pool, and converted by qemu-img."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import AsyncIterator, Callable, Sequence
from errno import EOPNOTSUPP
from typing import Any, cast

import msgspec

from astore.backend import (
    BackingFile,
    ConvertsVolumes,
    CopiesVolumes,
    DeletesVolumes,
    PoolSession,
    Progress,
    QemuNode,
    ReceivesVolumes,
    ServesVolumes,
)
from astore.cancellation import bounded, shielded
from astore.errors import DefinitionError, StorageError, printable, sizes
from astore.images import formats
from astore.images.references import are_relative
from astore.model import KeptPermissions, Permissions, VolumeDef, VolumeInfo
from astore.pools import graph
from astore.pools.backing import accepted, backing_volume, relying_on, with_backing
from astore.pools.graph import Layer
from astore.pools.job_support import (
    making,
    opened_volume,
    reporting,
    require_usable,
    seeing_change,
    take_new_volume,
    worked,
)
from astore.pools.naming import unloaded_types
from astore.pools.parts import Member, Parts
from astore.volume_io.copying import Count
from astore.volume_io.export import whole_sectors
from astore.volume_io.headers import elsewhere
from astore.volume_io.qemu_img import is_served


async def copy_volume(
    pool: Parts, source: Member, definition: VolumeDef | str | bytes, on_progress: Progress | None
) -> VolumeInfo:
    """Copy a volume into ``pool``; see :meth:`astore.Pool.copy_volume`."""
    life = require_usable(pool, "copy a volume")
    wanted = accepted(definition, copied=True)
    old, giver = source.info, source.pool
    wanted = _copy_definition(old, wanted)
    if (other := elsewhere(old)) is not None:
        raise StorageError(
            f"volume {old.name!r} has its data in another file, {printable(other.location or other.name)}: "
            "it cannot be copied",
            errno=EOPNOTSUPP,
            pool=giver.name,
        )
    within = giver is pool
    base = await backing_volume(pool, wanted.backing)
    with relying_on(base), pool.claims.claim(wanted.name, "created"):
        taking = await life.able("copy-volume" if within else "receive-volume")
        lender = life if within else giver.record.require_active("use")
        giving = taking if within else await lender.able("open-volume")
        async with making(pool, life, taking, wanted.name), seeing_change(giver, source.name):
            with reporting(pool.record, wanted.name, "copy", on_progress) as tell:
                if _is_conversion(old, wanted, within=within):
                    await lender.able("serve-volume")
                    converting = cast(ConvertsVolumes, await life.able("convert-volume"))
                    info = await _Conversion(pool, source, wanted, base).run(converting, tell)
                elif within:
                    async with backing_for(source, wanted.capacity, "copying") as backing:
                        copying = cast(CopiesVolumes, taking).copy_volume(old, wanted, progress=tell, backing=backing)
                        info = await worked(pool, copying)
                else:
                    info = await _receive(giving, source, pool, taking, wanted, tell)
            return take_new_volume(pool, life, taking, info)


def _copy_definition(old: VolumeInfo, wanted: VolumeDef) -> VolumeDef:
    """Complete the definition of a copy by the source's format and permissions."""
    if wanted.format is None:
        wanted = msgspec.structs.replace(wanted, format=old.format)
    if wanted.capacity is not None and wanted.capacity < old.capacity:
        less, more = sizes(wanted.capacity, old.capacity)
        raise DefinitionError(f"{less} are less than the {more} of volume {old.name!r}", element="capacity")
    if wanted.permissions != Permissions():  # an empty element asks for the defaults
        wanted = msgspec.structs.replace(wanted, permissions=_permissions_of(old, wanted.permissions))
    return wanted


class _Conversion:
    """A copy that qemu-img makes: into another format, or with another backing file."""

    def __init__(self, pool: Parts, source: Member, wanted: VolumeDef, base: Member | None) -> None:
        self.pool = pool
        self.source = source
        self.old = source.info
        if wanted.capacity is None:
            wanted = msgspec.structs.replace(wanted, capacity=self.old.capacity)
        if wanted.backing is not None and not formats.can_be_backed_later(wanted.format):
            raise DefinitionError(
                f"nothing can be converted into a {wanted.format} volume that is backed", element="backingStore"
            )
        self.wanted = with_backing(pool, wanted, base)
        self.base = base

    async def run(self, taking: ConvertsVolumes, tell: Progress) -> VolumeInfo:
        """Convert; return the new volume's record. :raises: StorageError, DefinitionError, CommandError."""
        chain = await layers_now(self.source)
        await self._check_growth()
        if left_out := sorted({extra for layer in chain for extra in layer.volume.info.extras}):
            self.pool.record.log.warning(
                "a conversion leaves out parts of the image besides the disk", volume=self.old.name, left_out=left_out
            )
        total = whole_sectors(self.wanted.capacity or 0)
        count = Count(total, tell)

        def on_bytes(done: int) -> None:  # an image's tables are not part of the capacity
            count.add(min(done, total - count.done))

        async with _undone(taking) as result:
            async with contextlib.AsyncExitStack() as stack:
                nodes = await _nodes(stack, chain, f"converting from {self.old.format}", on_bytes)
                converting = taking.convert_volume(
                    nodes[0],
                    self.wanted,
                    backing=self._shared(chain[:2], nodes),
                    stored=sum(_stored(layer.volume.info) for layer in chain),
                    on_bytes=None if is_served(nodes[0]) else on_bytes,  # counts what is read if that is served
                )
                result.append(await worked(self.pool, converting))
            count.add(total - count.done)
        return result[0]

    async def _check_growth(self) -> None:
        """Check that the copy does not show data of its backing file beyond the source's end.

        :raises DefinitionError: it would: it is larger than the source, and so is the backing file.
        """
        backing, capacity = self.wanted.backing, self.wanted.capacity
        if backing is None or capacity is None or capacity <= self.old.capacity:
            return
        if self.base is not None:
            await self.base.pool.refresher.look_at_same(self.base.name)
        if self.base is None or _length(self.base.info, backing.format) > self.old.capacity:
            raise DefinitionError(
                f"a copy that is larger than volume {self.old.name!r} would show there what its backing file has: "
                "make it as large as that, and resize it then",
                element="capacity",
            )

    def _shared(self, chain: Sequence[Layer], nodes: Sequence[QemuNode]) -> QemuNode | None:
        """Return the node of the new volume's backing file, if that is the source or the source's own backing file."""
        backing = self.wanted.backing
        if backing is not None and self.base is not None:
            for layer, node in zip(chain, nodes, strict=False):
                if layer.volume == self.base and formats.driver_of(layer.format) == formats.driver_of(backing.format):
                    return node
        return None


async def layers_now(volume: Member) -> list[Layer]:
    """Return the volumes of which an image is read, after refreshing them.

    :raises: as :func:`astore.pools.graph.layers`.
    """
    pools = volume.pool.others()
    unknown = [link.path for link in graph.chain(volume, pools) if link.volume is None]
    await volume.pool.services.registry.load(unloaded_types(unknown, pools))
    for layer in graph.layers(volume, volume.pool.others()):
        await layer.volume.pool.refresher.look_at_same(layer.volume.name)
    return graph.layers(volume, volume.pool.others())


@contextlib.asynccontextmanager
async def backing_for(volume: Member, capacity: int | None, operation: str) -> AsyncIterator[BackingFile | None]:
    """Yield a growing volume's backing file, with its node if it is longer than the volume; None if it is not known."""
    info = volume.info
    below: list[Layer] = []
    if info.backing is not None and capacity is not None and capacity > info.capacity:
        with contextlib.suppress(StorageError):
            below = (await layers_now(volume))[1:]
    if not below:
        yield None
        return
    capacity_below = _length(below[0].volume.info, below[0].format)
    async with contextlib.AsyncExitStack() as stack:
        longer = capacity_below > info.capacity
        node = (await _nodes(stack, below, operation, None))[0] if longer else None
        yield BackingFile(capacity_below, node)


async def _receive(
    giving: PoolSession, source: Member, pool: Parts, taking: PoolSession, wanted: VolumeDef, tell: Progress
) -> VolumeInfo:
    like = None if formats.is_raw(source.info.format) else source.info
    async with _undone(taking) as result, opened_volume(source.pool, giving, source.info) as file:
        size = (await file.stat()).size
        async with backing_for(source, wanted.capacity, "copying") as backing:
            receiving = cast(ReceivesVolumes, taking).receive_volume(
                file, size, wanted, progress=tell, like=like, backing=backing
            )
            result.append(await worked(pool, receiving))
    return result[0]


@contextlib.asynccontextmanager
async def _undone(taking: object) -> AsyncIterator[list[VolumeInfo]]:
    """Yield a list; if the work is cancelled after it has put its new volume there, delete the volume."""
    result: list[VolumeInfo] = []
    try:
        yield result
    except BaseException:
        if result and isinstance(taking, DeletesVolumes):
            await shielded(bounded(taking.delete_volume(result[0])))
        raise


async def _nodes(
    stack: contextlib.AsyncExitStack, chain: Sequence[Layer], operation: str, on_bytes: Callable[[int], None] | None
) -> list[QemuNode]:
    """Return the QEMU nodes of a chain's images, from the top down. They are valid until the stack closes."""
    nodes: list[QemuNode] = []
    for (pool, name), format in reversed(chain):  # each needs the node of its backing file
        session = cast(ServesVolumes, await pool.record.require_active("use").able("serve-volume"))
        info = pool.volume(name)
        read_as: dict[str, Any] = {}
        if formats.driver_of(format) != formats.driver_of(info.format):
            read_as = {"format": format}
        below = nodes[0] if nodes else None
        opening = session.qemu_node(info, operation, below, on_bytes=on_bytes, **read_as)
        nodes.insert(0, await worked(pool, stack.enter_async_context(opening)))
    return nodes


def _length(info: VolumeInfo, format: str | None) -> int:
    """Return the length in bytes of a volume that is read in a format."""
    return info.physical if formats.is_raw(format) else info.capacity


def _stored(info: VolumeInfo) -> int:
    """Return how many bytes a volume takes on its storage, at most the size of its file."""
    return min(info.physical, info.allocation or info.physical)


def _is_conversion(old: VolumeInfo, wanted: VolumeDef, *, within: bool) -> bool:
    """Return whether a copy needs more than the volume's bytes."""
    if (wanted.format or "raw") != (old.format or "raw") or wanted.backing is not None:
        return True
    if wanted.compat is not None and wanted.compat != old.compat:
        return True
    if wanted.cluster_size is not None and wanted.cluster_size != old.cluster_size:
        return True
    if set(wanted.features or ()) - set(old.features):
        return True
    return not within and are_relative(old.references)


def _permissions_of(info: VolumeInfo, said: Permissions | None) -> Permissions:
    """Return the permissions of a copy: the source's by default. Only root may keep the owner."""
    said = said or Permissions()
    owner, group = (info.uid, info.gid) if os.geteuid() == 0 else (None, None)
    if said.mode is not None and said.owner is not None and said.group is not None:
        return said
    kind = KeptPermissions if said.owner is None and said.group is None else Permissions
    return kind(
        stat.S_IMODE(info.mode) & 0o777 if said.mode is None else said.mode,
        owner if said.owner is None else said.owner,
        group if said.group is None else said.group,
        said.label,
    )
