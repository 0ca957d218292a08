"""qemu-img, for whatever has to do with the inside of image formats. As a program; absent, only that fails."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import re
import threading
from collections.abc import Callable
from typing import TypeVar, cast

from astore.backend import CommandResult, Context, Lane, QemuNode
from astore.commands import LaneCommandRunner
from astore.errors import CommandError, DefinitionError, StorageError
from astore.model import VolumeDef, VolumeType

T = TypeVar("T")

WRITTEN = ("qcow2", "qcow", "qed", "vmdk", "vdi", "vpc", "luks")
"""Formats whose images qemu-img makes, in libvirt's words, raw apart."""

CREATE_SECONDS = 120.0
CONVERT_SECONDS = 24 * 3600.0

HEAD = 16 << 10
"""Bytes of an image that :func:`check_head` and :func:`without_backing` look at."""

BY_LENGTH = ("qcow", "qed", "vmdk")
"""Formats that QEMU writes at the file's end, for which the file must have its true size, and be able to grow."""

BACKED_LATER = ("qcow2", "qed")
"""Formats whose images can be given a backing file by name after they were made."""

_PROGRAM = "qemu-img"
_BACKED = ("qcow2", "qcow", "qed", "vmdk")
_DRIVERS = {"iso": "raw", "vhd": "vpc", "ploop": "parallels"}
_FEATURES = ("lazy_refcounts", "extended_l2")


def driver(format: str | None) -> str:
    """QEMU's name of a format that libvirt calls ``format``."""
    return "raw" if format is None else _DRIVERS.get(format, format)


def is_raw(format: str | None) -> bool:
    """Whether the bytes of such a volume are those of the disk."""
    return driver(format) == "raw"


def is_whole_vmdk(head: bytes) -> bool:
    """Whether a VMDK image has its data in itself, rather than in files that a descriptor names (see QEMU's block/vmdk.c)."""
    if head.startswith(b"KDMV"):
        return head[12:20] != bytes(8)  # with a capacity of 0 QEMU goes by the embedded descriptor
    return head.startswith(b"COWD")


def check_head(format: str | None, head: bytes, what: str) -> None:
    """Look at an image's first bytes. :raises StorageError: EPERM: it has its data in files that it names."""
    split = format == "vmdk" and not is_whole_vmdk(head)
    if format == "qcow2" and head[4:8] != b"\0\0\0\2":
        split = bool(
            head[79:80] and head[79] & 4
        )  # incompatible feature 2: external data file (QEMU's docs/interop/qcow2)
    if split:
        raise StorageError(f"{what} has its data in other files", errno=errno.EPERM)


def without_backing(format: str | None, head: bytes) -> bytes:
    """An image's first bytes without the name of its backing file.

    QEMU takes what it is told of a backing file together with the name in the header, where there is one, which is wrong.
    (See QEMU's docs/interop/qcow2 and qed_spec, and block/vmdk.c, which looks for the word in the descriptor.)
    """
    if format in ("qcow2", "qcow"):
        return head[:8] + bytes(12) + head[20:]
    if format == "qed":
        return head[:16] + bytes([head[16] & ~1]) + head[17:]
    return head.replace(b"parentFileNameHint", b"parentFileNameGone") if format == "vmdk" else head


def node(format: str | None, storage: QemuNode, backing: QemuNode | None = None) -> QemuNode:
    """An image of a format as a node of QEMU's block layer, over the node ``storage`` and the image that backs it.

    Without one there is none, whatever its header says.
    """
    kind = driver(format)
    made: QemuNode = {"driver": kind, "file": storage}
    if kind in _BACKED:
        made["backing"] = backing
    return made


def file_node(path: str, type: VolumeType = VolumeType.FILE) -> QemuNode:
    """A file or device of this machine as a node of QEMU's block layer."""
    return {"driver": "host_device" if type is VolumeType.BLOCK else "file", "filename": path}


def filename(node: QemuNode) -> str:
    """A node as qemu-img takes it instead of the name of a file."""
    return f"json:{json.dumps(node)}"


def check_definition(definition: VolumeDef) -> None:
    """:raises DefinitionError: qemu-img cannot make this volume."""
    kind = definition.format or "raw"
    if kind != "raw" and kind not in WRITTEN:
        able = ", ".join(("raw", "dir", *(one for one in WRITTEN if one != "luks")))
        raise DefinitionError(
            f"volumes of format {kind!r} can be kept but not made; those that can: {able}", element="format"
        )
    if definition.encryption is not None or kind == "luks":
        raise DefinitionError("an encrypted volume needs its secret, and astore keeps no secrets", element="encryption")
    if definition.compat is not None and not re.fullmatch(r"[0-9]+\.[0-9]+", definition.compat):
        raise DefinitionError(f"compat {definition.compat!r} is no version", element="compat")
    for feature in definition.features:
        if feature not in _FEATURES:
            raise DefinitionError(f"there is no feature {feature!r}", element="features")
    if kind != "qcow2":
        for what, value in (
            ("compat", definition.compat),
            ("features", definition.features),
            ("clusterSize", definition.cluster_size),
        ):
            if value:
                raise DefinitionError(f"volumes of format {kind!r} have no {what}", element=what)
    if definition.backing is not None and kind not in ("qcow2", "qcow", "qed", "vmdk"):
        raise DefinitionError(f"volumes of format {kind!r} cannot be backed by others", element="backingStore")


def create_arguments(definition: VolumeDef, capacity: int, *, prealloc_metadata: bool = False) -> list[str]:
    """The arguments of ``qemu-img create``, up to the path and the size."""
    options: list[str] = []
    kind = definition.format or "raw"
    if kind == "qcow2":
        compat = definition.compat or ("1.1" if definition.features else None)
        if compat is not None:
            options.append(f"compat={compat}")
        options += [f"{feature}=on" for feature in definition.features]
        if definition.cluster_size:
            options.append(f"cluster_size={definition.cluster_size}")
        if prealloc_metadata:
            # "falloc", which libvirt asks for where all is to be allocated, would take the space where the image is made
            options.append("preallocation=metadata")
    argv = ["create", "-q", "-f", kind]
    if definition.backing is not None:
        # -u: the image that backs it need not be opened here, and its name may mean nothing in the private folder
        argv += ["-u", "-b", definition.backing.path, "-F", driver(definition.backing.format)]
    if options:
        argv += ["-o", ",".join(options)]
    return argv


def convert_arguments(definition: VolumeDef, source: QemuNode, target: QemuNode, *, thin: bool = False) -> list[str]:
    """The arguments of ``qemu-img convert``.

    -n: into an image that is there already, for a qemu-img that was killed while it started, and runs on for a moment,
    would make it again after it was removed.

    :param thin: what the source's own image leaves to the one that backs it, the target leaves to its own.
    """
    argv = ["convert", "-q", "-n"]
    if definition.backing is None:
        argv.append("--target-is-zero")
    elif thin:
        argv += ["-B", definition.backing.path, "-F", driver(definition.backing.format)]
    return [*argv, "-O", driver(definition.format), filename(source), filename(target)]


def rebase_arguments(definition: VolumeDef, target: QemuNode) -> list[str]:
    """The arguments of ``qemu-img rebase`` that write the backing file's name into the header, and nothing else."""
    assert definition.backing is not None
    backing = definition.backing
    return ["rebase", "-q", "-u", "-b", backing.path, "-F", driver(backing.format), filename(target)]


async def run(context: Context, *arguments: str, timeout: float, operation: str, beside: bool = False) -> CommandResult:
    """Run qemu-img.

    :param beside: on a thread beside those of the lane, which it may need to get on.
    :raises CommandError: it is not installed, or what it said.
    """
    runner = LaneCommandRunner(cast(Lane, _OwnThread())) if beside else context.run_command
    try:
        return await runner([_PROGRAM, *arguments], timeout=timeout)
    except CommandError as error:
        if error.returncode is not None:
            raise
        raise CommandError(
            f"{operation} needs the program qemu-img (Debian package qemu-utils): {error}",
            argv=error.argv,
            returncode=None,
            stderr="",
        ) from error


class _OwnThread:
    """As much of a lane as a program needs that waits for what the pool's lane reads and writes.

    Were it on that lane, as many programs as it has threads would wait for ever. It ends by itself, at its deadline.
    """

    async def run(self, func: Callable[[], T], *, timeout: float) -> T:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()

        def deliver(result: T | None, error: Exception | None) -> None:
            if future.done():  # it was cancelled
                return
            if error is not None:
                future.set_exception(error)
            else:
                future.set_result(cast(T, result))

        def work() -> None:
            result: T | None = None
            failure: Exception | None = None
            try:
                result = func()
            except Exception as error:
                failure = error
            with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile
                loop.call_soon_threadsafe(deliver, result, failure)

        threading.Thread(target=work, name="astore-program", daemon=True).start()
        return await future


def image_end(said: CommandResult) -> int:
    """Where an image ends, by what ``qemu-img check --output=json`` said. :raises CommandError: it did not say."""
    try:
        return int(json.loads(said.stdout)["image-end-offset"])
    except (ValueError, TypeError, LookupError) as error:
        raise CommandError(
            "qemu-img check does not say where the image ends", argv=said.argv, returncode=said.returncode, stderr=""
        ) from error
