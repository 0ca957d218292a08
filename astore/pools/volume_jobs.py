"""Work on a pool's volumes: what is checked, locked and told around what the backend does.

A volume that is being written is locked against other writers of that volume, and nobody else: refreshes, lookups and
work on other volumes go on beside it. What a job made is taken into the snapshot the moment it is there, and into a
refresh that runs beside it.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from errno import EOPNOTSUPP, EPERM
from typing import TYPE_CHECKING, Any, TypeVar, cast

import msgspec

from astore.backend import (
    ConvertsVolumes,
    CopiesVolumes,
    CreatesVolumes,
    DeletesVolumes,
    PoolSession,
    Progress,
    QemuNode,
    ReceivesVolumes,
    RenamesVolumes,
    ResizesVolumes,
    VolumeFile,
    WipesVolumes,
)
from astore.cancellation import bounded, shielded
from astore.errors import (
    DefinitionError,
    LibvirtCode,
    StorageError,
    TransferError,
    UnsupportedOperationError,
    VolumeExistsError,
    printable,
)
from astore.images import ImageError, formats, probe
from astore.images.paths import named_beside
from astore.images.references import are_relative, located
from astore.model import (
    BackingStore,
    ImageInfo,
    KeptPermissions,
    Permissions,
    Reference,
    ReferenceKind,
    VolumeDef,
    VolumeInfo,
)
from astore.names import check_volume_name
from astore.places import place_here
from astore.plugin_calls import record
from astore.pools import graph
from astore.pools.claims import PoolAtWork
from astore.pools.graph import Layer
from astore.pools.volume import Volume
from astore.volume_io import wiping
from astore.volume_io.copying import Count
from astore.volume_io.downloads import Download, downloading
from astore.volume_io.export import whole_sectors
from astore.volume_io.headers import elsewhere
from astore.volume_io.qemu_img import is_served
from astore.volume_io.transfer import upload
from astore.volume_io.uploads import Beginning, Source, beginning, chunks_of

if TYPE_CHECKING:
    from astore.pools.pool import Pool

T = TypeVar("T")

MOST_BYTES = 2**63 - 1
"""No file is larger (off_t)."""


class WorkingPool(PoolAtWork):
    """The part of :class:`~astore.pools.pool.Pool` that changes volumes."""

    async def create_volume(self, definition: VolumeDef | str | bytes, *, prealloc_metadata: bool = False) -> Volume:
        """Make a volume: complete, or not at all.

        :param definition: a record, or libvirt volume XML. Without a capacity it gets that of the volume it is backed by.
        :param prealloc_metadata: qcow2: write all metadata now.
        :raises DefinitionError: there can be no such volume. VolumeExistsError: there is something of this name.
            CommandError: qemu-img is missing, or what it said. StorageError: ENOSPC, EDQUOT …
        """
        self._require_workable("create a volume")
        wanted = _accepted(definition)
        base = await self._backing_volume(wanted.backing)
        wanted = self._with_backing(wanted, base)
        with self._relying_on(base), self._claim(wanted.name, "created"):
            session = await self._able("create-volume")
            call = cast(CreatesVolumes, session).create_volume(wanted, prealloc_metadata=prealloc_metadata)
            async with self._making(session, wanted.name):
                return self._made(session, await self._worked(call))

    async def copy_volume(
        self, source: Volume, definition: VolumeDef | str | bytes, *, on_progress: Progress | None = None
    ) -> Volume:
        """Make a volume out of another, of this pool or of any other: complete, or not at all.

        Within a pool the storage copies; from pool to pool the data are streamed, holes kept; into another format, or
        with another backing file, qemu-img converts. On a backing file that is the source itself, or what the source is
        backed by, a copy is thin; on any other it holds all data.

        :param definition: format and capacity are the source's where it does not say; of a record (not of a document) mode,
            owner and group are too, the latter two only where the storage lets us.
        :param on_progress: called with bytes done and in all.
        :raises: what :meth:`create_volume` raises; VolumeNotFoundError: the source is not there. StorageError: EPERM: it
            would have to be converted, and needs a file that is no volume of an active pool.
        """
        self._require_workable("copy a volume")
        wanted = _accepted(definition, copied=True)
        old = source.info
        if wanted.format is None:
            wanted = msgspec.structs.replace(wanted, format=old.format)
        if wanted.capacity is not None and wanted.capacity < old.capacity:
            raise DefinitionError(
                f"{wanted.capacity} bytes are less than the {old.capacity} of volume {old.name!r}", element="capacity"
            )
        if (other := elsewhere(old)) is not None:
            raise StorageError(
                f"volume {old.name!r} has its data in another file, {printable(other.location or other.name)}: "
                "it cannot be copied",
                errno=EOPNOTSUPP,
                pool=source.pool.name,
            )
        if wanted.permissions != Permissions():  # which says: the defaults
            wanted = msgspec.structs.replace(wanted, permissions=_permissions_of(old, wanted.permissions))
        giver = source.pool
        base = await self._backing_volume(wanted.backing)
        with self._relying_on(base), self._claim(wanted.name, "created"):
            taking = await self._able("copy-volume" if giver is self else "receive-volume")
            giving = taking if giver is self else await giver._able("open-volume")
            async with self._making(taking, wanted.name), giver._seeing_change(source.name):
                with self._reporting(wanted.name, "copy", on_progress) as tell:
                    if _is_conversion(old, wanted, within=giver is self):
                        info = await self._convert(giving, source, taking, wanted, base, tell)
                    elif giver is self:
                        async with self._backing_for(source, wanted.capacity, "copying") as backed:
                            copying = cast(CopiesVolumes, taking).copy_volume(old, wanted, progress=tell, **backed)
                            info = await self._worked(copying)
                    else:
                        info = await self._receive(giving, source, cast(ReceivesVolumes, taking), wanted, tell)
                return self._made(taking, info)

    async def _convert(
        self,
        giving: PoolSession,
        source: Volume,
        taking: PoolSession,
        wanted: VolumeDef,
        base: Volume | None,
        tell: Progress,
    ) -> VolumeInfo:
        old = source.info
        for side, pool in ((giving, source.pool), (taking, self)):
            if not isinstance(side, ConvertsVolumes):
                raise UnsupportedOperationError(pool=pool.name, type=pool.type, operation="convert-volume")
        taker = cast(ConvertsVolumes, taking)
        if wanted.capacity is None:
            wanted = msgspec.structs.replace(wanted, capacity=old.capacity)
        if wanted.backing is not None and not formats.can_be_backed_later(wanted.format):
            raise DefinitionError(
                f"nothing can be converted into a {wanted.format} volume that is backed", element="backingStore"
            )
        wanted = self._with_backing(wanted, base)
        chain = await self._layers(source)
        if wanted.backing is not None and wanted.capacity is not None and wanted.capacity > old.capacity:
            if base is not None:
                await base.pool._look_at_same(base.name)
            if base is None or _length(base.info, wanted.backing.format) > old.capacity:
                raise DefinitionError(
                    f"a copy that is larger than volume {old.name!r} would show there what its backing file has: "
                    "make it as large as that, and resize it then",
                    element="capacity",
                )
        left_out = sorted({extra for layer in chain for extra in layer.volume.info.extras})
        if left_out:
            self._log.warning("a conversion leaves out what is no part of the disk", volume=old.name, left_out=left_out)
        total = whole_sectors(wanted.capacity or 0)
        count = Count(total, tell)

        def on_bytes(done: int) -> None:  # tables are no part of the capacity
            count.add(min(done, total - count.done))

        info: VolumeInfo | None = None
        try:
            async with contextlib.AsyncExitStack() as stack:
                nodes = await _nodes(stack, chain, f"converting from {old.format}", on_bytes)
                backing = _shared(chain[:2], nodes, wanted, base)
                told = is_served(nodes[0])  # what is read; else what is written, if that can be told
                converting = taker.convert_volume(
                    nodes[0],
                    wanted,
                    backing=backing,
                    stored=sum(_stored(layer.volume.info) for layer in chain),
                    on_bytes=None if told else on_bytes,
                )
                info = await self._worked(converting)
            count.add(total - count.done)
        except BaseException:
            if info is not None and isinstance(taking, DeletesVolumes):  # it was cancelled in the very last moment
                await shielded(bounded(taking.delete_volume(info)))
            raise
        return info

    async def _layers(self, volume: Volume) -> list[Layer]:
        """The volumes of which an image is read, as they are now: no file is taken for another that it was before.

        :raises: as :func:`astore.pools.graph.layers`.
        """
        for layer in graph.layers(volume, self._manager.pools()):
            await layer.volume.pool._look_at_same(layer.volume.name)
        return graph.layers(volume, self._manager.pools())

    @contextlib.asynccontextmanager
    async def _backing_for(self, volume: Volume, capacity: int | None, operation: str) -> AsyncIterator[dict[str, Any]]:
        """Yield the capacity of the backing file of a volume that grows, and its node if it is longer than the volume.

        Where they are not known, yield nothing of them.
        """
        info = volume.info
        if info.backing is None or capacity is None or capacity <= info.capacity:
            yield {}
            return
        try:
            below = (await self._layers(volume))[1:]
        except StorageError:
            below = []
        if not below:
            yield {}
            return
        backed = _length(below[0].volume.info, below[0].format)
        if backed <= info.capacity:
            yield {"backed": backed}
            return
        async with contextlib.AsyncExitStack() as stack:
            nodes = await _nodes(stack, below, operation, None)
            yield {"backed": backed, "backing": nodes[0]}

    async def _receive(
        self, giving: PoolSession, source: Volume, taking: ReceivesVolumes, wanted: VolumeDef, tell: Progress
    ) -> VolumeInfo:
        info: VolumeInfo | None = None
        like: dict[str, Any] = {} if formats.is_raw(source.info.format) else {"like": source.info}
        try:
            async with source.pool._opened(giving, source.info) as file:
                size = (await file.stat()).size
                async with self._backing_for(source, wanted.capacity, "copying") as backed:
                    receiving = taking.receive_volume(file, size, wanted, progress=tell, **like, **backed)
                    info = await self._worked(receiving)
        except BaseException:
            if info is not None and isinstance(taking, DeletesVolumes):  # it was cancelled in the very last moment
                await shielded(bounded(taking.delete_volume(info)))
            raise
        return info

    # ----------------------------------------------------------------------------- for Volume, whose methods these are

    async def _upload(
        self,
        name: str,
        source: Source,
        *,
        offset: int,
        length: int | None,
        sparse: bool,
        on_progress: Progress | None,
        force: bool,
        allow_references: bool,
    ) -> int:
        info = await self._volume_to_change(name, "upload", force)
        _check_range(offset, length)
        anew, made = False, None
        with self._claim(name, "uploaded to"):
            session = await self._able("open-volume")
            try:
                async with (
                    chunks_of(source, self._lane, sparse=sparse) as (chunks, size),
                    self._opened(session, info, write=True) as file,
                    beginning(file, chunks, offset, length) as (given, start),
                ):
                    anew, made = _new_format(info, start, allow_references)
                    with self._reporting(name, "upload", on_progress) as tell:
                        count = Count(length if size is None else size, tell)
                        if anew and made is not None:  # also of one that breaks off
                            await file.note_format(made)
                        own = isinstance(chunks, Download)
                        end = await upload(file, given, offset, length, sparse, count, own=own)
                    if anew and made is None:
                        await file.note_format(None)
            except TransferError as error:
                raise self._named(error) from error.__cause__
            finally:
                await self._look_again(name)
                if anew and made is not None:
                    self._keep_raw(name)
            self._check_same(session, "upload")
            return end - offset

    @contextlib.asynccontextmanager
    async def _download(
        self, name: str, *, offset: int, length: int | None, sparse: bool, on_progress: Progress | None
    ) -> AsyncIterator[Download]:
        self._require_workable("download a volume")
        info = Volume(cast("Pool", self), name).info
        _check_range(offset, length)
        session = await self._able("open-volume")
        async with self._opened(session, info) as file:
            size = (await file.stat()).size
            end = size if length is None else min(size, offset + length)
            with self._reporting(name, "download", on_progress) as tell:
                count = Count(max(end - offset, 0), tell)
                async with downloading(file, min(offset, end), end, sparse, count) as blocks:
                    yield blocks

    @contextlib.asynccontextmanager
    async def _open_volume(self, name: str, *, write: bool, force: bool) -> AsyncIterator[VolumeFile]:
        self._require_workable("open a volume")
        info = Volume(cast("Pool", self), name).info
        if write:
            info = await self._volume_to_change(name, "write", force)
        with self._claim(name, "written") if write else contextlib.nullcontext():
            session = await self._able("open-volume")
            try:
                async with self._opened(session, info, write=write) as file:
                    yield file
            finally:
                if write:
                    await self._look_again(name)

    async def _resize(
        self, name: str, capacity: int, *, delta: bool, shrink: bool, allocate: bool, force: bool
    ) -> VolumeInfo:
        info = await self._volume_to_change(name, "resize", force)
        target = info.capacity + (-capacity if shrink else capacity) if delta else capacity
        if not 0 < target <= MOST_BYTES or capacity < 0:
            raise DefinitionError(
                f"{target} bytes cannot be a volume's capacity",
                element="capacity",
                libvirt_code=LibvirtCode.INVALID_ARG,
            )
        if target < info.capacity and not shrink:
            raise DefinitionError(
                f"{target} bytes are less than the {info.capacity} that volume {name!r} has: shrinking must be asked for",
                element="capacity",
                libvirt_code=LibvirtCode.INVALID_ARG,
            )
        with self._claim(name, "resized"):
            session = await self._able("resize-volume")
            volume = Volume(cast("Pool", self), name)
            try:
                async with self._backing_for(volume, target, "resizing") as backed:
                    call = cast(ResizesVolumes, session).resize_volume(info, target, allocate=allocate, **backed)
                    changed = record(await self._worked(call))
            except BaseException:
                await self._look_again(name)
                raise
            self._check_same(session, "resize")
            self._apply({name: changed})
            return changed

    async def _wipe(self, name: str, algorithm: str, *, on_progress: Progress | None, force: bool) -> None:
        wiping.check_algorithm(algorithm)
        info = await self._volume_to_change(name, "wipe", force)
        with self._claim(name, "wiped"):
            session = await self._able("wipe-volume")
            try:
                with self._reporting(name, "wipe", on_progress) as tell:
                    await self._worked(cast(WipesVolumes, session).wipe_volume(info, algorithm, progress=tell))
            finally:
                await self._look_again(name)
            self._check_same(session, "wipe")
            self._keep_raw(name)

    async def _delete(self, name: str, *, force: bool) -> None:
        info = await self._volume_to_change(name, "delete", force)
        others = graph.dependents(info, cast("Pool", self), self._manager.pools())
        with self._claim(name, "deleted"):
            session = await self._able("delete-volume")
            try:
                await self._worked(cast(DeletesVolumes, session).delete_volume(info))
            except BaseException:
                await self._look_again(name)
                raise
            self._check_same(session, "delete")
            self._apply({name: None})
            await _look_again_at(others)

    def _keep_raw(self, name: str) -> None:
        """Know that a volume was made raw, also where its storage keeps no notes."""
        info = self._snapshot.get(name)
        if info is not None and info.made is None and formats.is_raw(info.format):
            self._apply({name: msgspec.structs.replace(info, made="raw")})

    async def _set_format(self, name: str, format: str) -> VolumeInfo:
        info = await self._volume_to_change(name, "set the format of", True)
        said = info.header_format or info.format or "raw"
        if format not in ("raw", said):
            raise DefinitionError(
                f"volume {name!r} can be raw or {said}, by its header, and not {format}", element="format"
            )
        with self._claim(name, "given a format"):
            session = await self._able("open-volume")
            try:
                async with self._opened(session, info, write=True) as file:
                    noted = await file.note_format("raw" if format == "raw" else None)
                if not noted and format == "raw":
                    raise UnsupportedOperationError(pool=self.name, type=self.type, operation="set-format")
                if not noted:  # this process alone knew it
                    self._apply({name: msgspec.structs.replace(info, made=None)})
            finally:
                await self._look_again(name)
        return Volume(cast("Pool", self), name).info

    async def _rename(self, name: str, new: str, *, force: bool) -> Volume:
        check_volume_name(new)
        info = await self._volume_to_change(name, "rename", force)
        if new == name:
            raise VolumeExistsError(f"volume {name!r} of pool {self.name!r} has this name already", pool=self.name)
        others = graph.dependents(info, cast("Pool", self), self._manager.pools())
        with self._claim(name, "renamed"), self._claim(new, "created"):
            session = await self._able("rename-volume")
            try:
                renamed = record(await self._worked(cast(RenamesVolumes, session).rename_volume(info, new)))
            except BaseException:
                await self._look_again(name, new)
                raise
            self._check_same(session, "rename")
            self._apply({name: None, new: renamed})
            await _look_again_at(others)
            return Volume(cast("Pool", self), new)

    def _with_backing(self, wanted: VolumeDef, volume: Volume | None) -> VolumeDef:
        """The definition with what is known of its backing file: name for QEMU, format, and a capacity if it has none.

        :param volume: the volume that the backing file is.
        """
        backing = wanted.backing
        if backing is None:
            return wanted
        info = None if volume is None else volume.info
        path, format = backing.path, backing.format
        if volume is not None and volume.pool is self and volume.name == path:
            path = named_beside(path, volume.info.path)
        if format is None:
            if info is None or info.format is None:
                raise DefinitionError(f"say which format the backing file {path!r} has", element="backingStore")
            format = info.format
        says_raw = formats.is_raw(format) and formats.can_be_backed_later(wanted.format)
        says_raw = says_raw or not formats.can_be_backed(wanted.format)  # which is refused for itself
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

    async def _backing_volume(self, backing: BackingStore | None) -> Volume | None:
        """The volume of an active pool that a backing file's name means, however its path is spelled."""
        if backing is None:
            return None
        if self._snapshot.get(backing.path) is not None:
            return Volume(cast("Pool", self), backing.path)
        sample = next(iter(self._snapshot.by_name.values()), None)
        folder = self.definition.target.path
        here = sample.key if sample is not None else "/" if folder is None else f"{folder}/any"
        (reference, *_) = located((Reference(ReferenceKind.BACKING, backing.path),), here)
        location, lane = reference.location, self._lane
        if location is not None and location.startswith("/") and lane is not None:
            place = await lane.run(place_here, location, self._snapshot.folder)
            reference = msgspec.structs.replace(reference, place=place)
        return graph.volume_at(reference, self._manager.pools())


def _shared(
    chain: Sequence[Layer], nodes: Sequence[QemuNode], wanted: VolumeDef, base: Volume | None
) -> QemuNode | None:
    """Return the node of the new volume's backing file, if that is the source or the source's own backing file."""
    if wanted.backing is not None and base is not None:
        for layer, node in zip(chain, nodes, strict=False):
            if layer.volume == base and formats.driver_of(layer.format) == formats.driver_of(wanted.backing.format):
                return node
    return None


def _length(info: VolumeInfo, format: str | None) -> int:
    """How many bytes a volume has that is read in a format."""
    return info.physical if formats.is_raw(format) else info.capacity


def _stored(info: VolumeInfo) -> int:
    """How many bytes a volume takes on its storage, which are no more than its file has."""
    return min(info.physical, info.allocation or info.physical)


def _is_conversion(old: VolumeInfo, wanted: VolumeDef, *, within: bool) -> bool:
    """Whether a copy is more than a copy of the volume's bytes."""
    if (wanted.format or "raw") != (old.format or "raw") or wanted.backing is not None:
        return True
    if wanted.compat is not None and wanted.compat != old.compat:
        return True
    if wanted.cluster_size is not None and wanted.cluster_size != old.cluster_size:
        return True
    if set(wanted.features) - set(old.features):
        return True
    return not within and are_relative(old.references)


async def _look_again_at(others: Iterable[Volume]) -> None:
    """What these volumes name leads elsewhere by now, or nowhere. Bounded; never raises."""
    for other in others:
        await other.pool._look_again(other.name)


async def _nodes(
    stack: contextlib.AsyncExitStack, chain: Sequence[Layer], operation: str, on_bytes: Callable[[int], None] | None
) -> list[QemuNode]:
    """How QEMU is told of the images of a chain, from the top down, for as long as the stack lasts."""
    nodes: list[QemuNode] = []
    for volume, format in reversed(chain):  # each needs the node of what it is backed by
        session = cast(ConvertsVolumes, await volume.pool._able("convert-volume"))
        read_as: dict[str, Any] = {}
        if formats.driver_of(format) != formats.driver_of(volume.info.format):
            read_as = {"format": format}
        below = nodes[0] if nodes else None
        opening = session.qemu_node(volume.info, operation, below, on_bytes=on_bytes, **read_as)
        nodes.insert(0, await volume.pool._worked(stack.enter_async_context(opening)))
    return nodes


def _permissions_of(info: VolumeInfo, said: Permissions | None) -> Permissions:
    """Those that a copy of a volume gets: its own, where nothing else is said. Only root may give files away."""
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


def _new_format(info: VolumeInfo, given: Beginning, allow_references: bool) -> tuple[bool, str | None]:
    """Whether an upload says anew what the volume is, and what is noted then: ``raw``, or None if it is an image.

    Only the upload's own bytes say that, from the first one on: what is there already may be a guest's.

    :raises StorageError: EPERM: the header would name other files than now, or cannot be read, and that is not allowed.
    """
    if given.head is None or (info.made == "raw" and given.offset):
        return False, None
    said = _image(given.own) if not given.offset else None
    if not given.offset and said is None:
        return True, "raw"
    image = _image(given.head)
    known = {(one.kind, one.name, one.format) for one in info.references}
    what = f"what is to be uploaded to volume {info.name!r} is an image"
    if isinstance(image, ImageError) or isinstance(said, ImageError):
        if not allow_references:
            raise StorageError(
                f"{what} whose header cannot be read, and may name other files: nothing was written; allow its references "
                "(--allow-references) if that is meant",
                errno=EPERM,
            )
        return True, "raw"
    for one in () if image is None or allow_references else image.references:
        if (one.kind, one.name, one.format) not in known:
            raise StorageError(
                f"{what} whose header names another file, {printable(one.name) or one.doubt}: nothing was written; allow its "
                "references (--allow-references) if that is meant",
                errno=EPERM,
            )
    return not given.offset, None


def _image(head: bytes) -> ImageInfo | ImageError | None:
    """What a header says, or why it cannot be read."""
    try:
        return probe(head)
    except ImageError as error:
        return error


def _check_range(offset: int, length: int | None) -> None:
    if not 0 <= offset <= MOST_BYTES or not 0 <= (length or 0) <= MOST_BYTES - offset:
        raise ValueError(f"no volume has {'all' if length is None else length} bytes from byte {offset} on")


def _accepted(definition: VolumeDef | str | bytes, *, copied: bool = False) -> VolumeDef:
    """The definition, checked, wherever it came from."""
    wanted = definition if isinstance(definition, VolumeDef) else VolumeDef.from_xml(definition, copied=copied)
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
