"""Work on volumes as images: what qemu-img says of them, and in which format they are read.

qemu-img opens no file. The volume is served to it, with the header that was checked, and with no backing file. An image that
has its data in other files is not looked at. So nothing is opened because a header names it.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from errno import EIO, EOPNOTSUPP, ESTALE
from typing import Any, cast

import msgspec

from astore.backend import QemuNode, ServesVolumes
from astore.cancellation import shielded
from astore.commands import Command
from astore.errors import DefinitionError, StorageError, UnsupportedOperationError, VolumeBusyError
from astore.images import HEADER_SIZE, ImageError, probe
from astore.images.headers import without_references
from astore.lanes.own_thread import on_own_thread
from astore.model import ImageCheck, ImageSnapshot, VolumeInfo, VolumeType
from astore.pools.job_support import begin_change, opened_volume, require_usable, seeing_change, worked
from astore.pools.parts import Member
from astore.volume_io import qemu_img
from astore.volume_io.export import Export
from astore.volume_io.headers import check_format, elsewhere
from astore.volume_io.qemu_worker import QemuWorker

_CHECKED = frozenset({"qcow2", "qed", "vdi", "vmdk", "vhdx", "ploop"})
"""The formats that qemu-img can check."""

_VERDICTS = {0: "ok", 2: "damaged", 3: "leaks"}
"""The meaning of the exit codes of ``qemu-img check``."""


async def check(member: Member, refresh: Callable[[], Awaitable[VolumeInfo]]) -> ImageCheck:
    """See :meth:`astore.Volume.check`. :param refresh: reads the volume's header anew."""
    why = _why_unchecked(member.info)
    if why is None:
        info = await refresh()
        why = _why_unchecked(info)
    if why is not None:
        return ImageCheck("skipped", note=why)
    try:
        async with member.pool.services.programs:
            code, document, said = await _asked("check", info, _unused(member, info))
    except VolumeBusyError:
        return ImageCheck("skipped", note="it is in use")
    verdict = _VERDICTS.get(code, "failed")
    note = None if verdict != "failed" else _failure(code, said)
    return ImageCheck(
        verdict, document.get("corruptions", 0) + document.get("check-errors", 0), document.get("leaks", 0), note
    )


async def snapshots(member: Member, info: VolumeInfo) -> tuple[ImageSnapshot, ...]:
    """See :meth:`astore.Volume.image_snapshots`. :param info: the volume's record, just refreshed."""
    pool, name = member
    if info.format != "qcow2":
        raise StorageError(
            f"volume {name!r} is {info.format}: only qcow2 images have snapshots inside",
            errno=EOPNOTSUPP,
            pool=pool.name,
        )
    if (why := _why_unread(info)) is not None:
        raise StorageError(f"volume {name!r}: {why}", errno=EOPNOTSUPP, pool=pool.name)
    async with pool.services.programs:
        code, document, said = await _asked("info", info, _used_too(member, info))
    if code:
        raise StorageError(f"volume {name!r}: {_failure(code, said)}", errno=EIO, pool=pool.name)
    return tuple(
        ImageSnapshot(one["id"], one["name"], one["vm-state-size"], one["date-sec"] + one["date-nsec"] / 1e9)
        for one in document.get("snapshots", ())
    )


async def set_format(member: Member, format: str) -> None:
    """See :meth:`astore.Volume.set_format`."""
    pool, name = member
    life, info = await begin_change(pool, name, "set the format of", True)
    said = info.header_format or info.format or "raw"
    if format not in ("raw", said):
        can = "raw" if said == "raw" else f"raw or {said}"
        raise DefinitionError(f"volume {name!r} can be {can}, by its header, and not {format}", element="format")
    with pool.claims.claim(name, "given a format"):
        session = await life.able("open-volume")
        try:
            async with opened_volume(pool, session, info, write=True) as file:
                if format != "raw":
                    await check_format(file, format)
                noted = await file.note_format("raw" if format == "raw" else None)
            if not noted and format == "raw":
                raise UnsupportedOperationError(pool=pool.name, type=pool.definition.type, operation="set-format")
            life.check("set the format of", session)
            if not noted:  # this process alone knew it
                pool.refresher.apply({name: msgspec.structs.replace(info, made=None)})
        finally:
            await pool.refresher.look_again(name)


def _why_unchecked(info: VolumeInfo) -> str | None:
    """Return why an image is not checked, or None."""
    if info.format not in _CHECKED:
        return f"a {info.format} image has no structure to check"
    return _why_unread(info)


def _why_unread(info: VolumeInfo) -> str | None:
    """Return why an image is not given to qemu-img, or None."""
    if elsewhere(info) is not None:
        return "its data are in another file"
    if info.type != VolumeType.FILE or not os.path.isabs(info.path):
        return "only files on this machine are looked at"
    return None


def _failure(code: int, said: str) -> str:
    """Return why qemu-img failed."""
    if code in (-signal.SIGKILL, -signal.SIGXCPU):
        return "qemu-img was killed: the image takes more processor time or memory than it may"
    return " ".join(said.split()) or f"qemu-img failed with exit code {code}"


@contextlib.asynccontextmanager
async def _unused(member: Member, info: VolumeInfo) -> AsyncIterator[QemuNode]:
    """Serve an image that no running QEMU writes.

    :raises VolumeBusyError: one does. StorageError: EAGAIN: the header is not that of the volume's record any more.
    """
    pool, name = member
    session = await require_usable(pool, "check a volume").able("serve-volume")
    async with seeing_change(pool, name), contextlib.AsyncExitStack() as stack:
        opening = cast(ServesVolumes, session).qemu_node(info, "checking")
        yield await worked(pool, stack.enter_async_context(opening))


@contextlib.asynccontextmanager
async def _used_too(member: Member, info: VolumeInfo) -> AsyncIterator[QemuNode]:
    """Serve a qcow2 image with its present header, even if a running QEMU writes it.

    :raises StorageError: the header is malformed, of another format, or names a data file.
    """
    pool, name = member
    life = require_usable(pool, "look into a volume")
    session = await life.able("open-volume")
    async with opened_volume(pool, session, info) as file:
        head = without_references("qcow2", await file.pread(HEADER_SIZE, 0))
        try:
            image = probe(head)
        except ImageError as error:
            raise StorageError(f"volume {name!r}: {error}", errno=EIO, pool=pool.name) from error
        if image is None or image.format != "qcow2" or image.references:
            raise StorageError(f"volume {name!r}: it changed meanwhile", errno=ESTALE, pool=pool.name)
        size = (await file.stat()).size
        lane = life.lane
        assert lane is not None  # a file of the pool is open
        worker = QemuWorker(pool.services.context(pool.name, pool.record.uuid, lane))
        async with worker.serving(Export(file, size, size, head=head)) as storage:
            yield qemu_img.node("qcow2", storage)


async def _asked(
    verb: str, info: VolumeInfo, serving: AbstractAsyncContextManager[QemuNode]
) -> tuple[int, dict[str, Any], str]:
    """Run qemu-img on an image that is served. Return its exit code, its document and what it said.

    :raises CommandError: qemu-img is missing. What ``serving`` raises.
    """
    stored = min(info.physical, info.allocation or info.physical)
    async with serving as node:
        argv = ("qemu-img", verb, "--output=json", qemu_img.filename(node))
        program = Command(
            argv,
            qemu_img.CONVERT_SECONDS,
            limits=qemu_img.limits(stored),
            descriptors=qemu_img.descriptors(node),
        )
        try:
            done = await on_own_thread(program.run, name="astore-program")
        finally:
            program.kill()
            await shielded(program.gone())
    try:
        document = json.loads(done.stdout or b"{}")
    except ValueError:
        document = {}
    return done.returncode, document, done.stderr.decode("utf-8", "replace")
