"""qemu-img, for whatever has to do with the inside of image formats. As a program; absent, only that fails."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import threading
from collections.abc import Callable, Sequence
from typing import TypeVar, cast

from astore.backend import CommandResult, Lane, Limits, QemuNode
from astore.commands import LaneCommandRunner
from astore.errors import CommandError, DefinitionError
from astore.images import formats
from astore.model import VolumeDef, VolumeType

T = TypeVar("T")

CREATE_SECONDS = 120.0
CONVERT_SECONDS = 24 * 3600.0

_PROGRAM = "qemu-img"
_FEATURES = ("lazy_refcounts", "extended_l2")

MEMORY = 2 << 30
"""Bytes of address space that qemu-img may take: its own threads take a quarter of it, an image's tables tens of MiB."""

PROCESSOR_SECONDS = 60.0
"""Seconds of processor time that it may take for what is in an image beside data."""

BYTES_A_SECOND = 2 << 20
"""Stored bytes for each further second: an image that unfolds to more work than that is not a disk, but an attack."""

LONGEST_NAME = 1023
"""Bytes of the name of a backing file in a qcow2 header."""


def limits(stored: int = 0) -> Limits:
    """What qemu-img may use for images of so many stored bytes in all."""
    return Limits(MEMORY, min(PROCESSOR_SECONDS + stored / BYTES_A_SECOND, CONVERT_SECONDS))


def node(format: str | None, storage: QemuNode, backing: QemuNode | None = None) -> QemuNode:
    """An image of a format as a node of QEMU's block layer, over the node ``storage`` and the image that backs it.

    Without one there is none, whatever its header says.
    """
    made: QemuNode = {"driver": formats.driver_of(format), "file": storage}
    if formats.can_be_backed(format):
        made["backing"] = backing
    return made


def file_node(path: str, type: VolumeType = VolumeType.FILE) -> QemuNode:
    """A file or device of this machine as a node of QEMU's block layer."""
    return {"driver": "host_device" if type is VolumeType.BLOCK else "file", "filename": path}


def descriptor_node(descriptor: int, type: VolumeType = VolumeType.FILE) -> QemuNode:
    """An open file that qemu-img inherits, as a node of QEMU's block layer: the very file, whatever its name leads to."""
    return file_node(f"/proc/self/fd/{descriptor}", type)


def descriptors(*nodes: QemuNode) -> list[int]:
    """The numbers of the open files that are in these nodes."""
    found: list[int] = []
    for one in nodes:
        path = one.get("filename", "")
        if isinstance(path, str) and path.startswith("/proc/self/fd/"):
            found.append(int(path.rpartition("/")[2]))
        found += descriptors(*(child for child in one.values() if isinstance(child, dict)))
    return found


def filename(node: QemuNode) -> str:
    """A node as qemu-img takes it instead of the name of a file."""
    return f"json:{json.dumps(node)}"


def check_definition(definition: VolumeDef) -> None:
    """:raises DefinitionError: qemu-img cannot make this volume."""
    kind = definition.format or "raw"
    if kind != "raw" and not formats.can_be_made(kind):
        able = ", ".join(("raw", "dir", *(one for one in formats.WRITTEN if one != "luks")))
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
    if definition.backing is not None and not formats.can_be_backed(kind):
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
        argv += ["-u", "-b", definition.backing.path, "-F", formats.driver_of(definition.backing.format)]
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
        argv += ["-B", definition.backing.path, "-F", formats.driver_of(definition.backing.format)]
    return [*argv, "-O", formats.driver_of(definition.format), filename(source), filename(target)]


def rebase_arguments(definition: VolumeDef, target: QemuNode) -> list[str]:
    """The arguments of ``qemu-img rebase`` that write the backing file's name into the header, and nothing else."""
    assert definition.backing is not None
    backing = definition.backing
    return ["rebase", "-q", "-u", "-b", backing.path, "-F", formats.driver_of(backing.format), filename(target)]


async def run(
    *arguments: str, timeout: float, operation: str, limits: Limits, descriptors: Sequence[int] = ()
) -> CommandResult:
    """Run qemu-img, on a thread beside those of the pool's lane, which it may need to get on.

    :param descriptors: open files that it is given.
    :raises CommandError: it is not installed, or what it said.
    """
    runner = LaneCommandRunner(cast(Lane, _OwnThread()))
    try:
        return await runner([_PROGRAM, *arguments], timeout=timeout, limits=limits, descriptors=descriptors)
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


def is_served(node: QemuNode | None) -> bool:
    """Whether QEMU gets an image from this process, and so waits for its lanes."""
    return node is not None and node["file"]["driver"] == "nbd"


def needed_capacity(definition: VolumeDef) -> int:
    """:raises DefinitionError: it has none."""
    if definition.capacity is None:
        raise DefinitionError(f"volume {definition.name!r} needs a capacity", element="capacity")
    return definition.capacity


def image_end(said: CommandResult) -> int:
    """Where an image ends, by what ``qemu-img check --output=json`` said. :raises CommandError: it did not say."""
    try:
        return int(json.loads(said.stdout)["image-end-offset"])
    except (ValueError, TypeError, LookupError) as error:
        raise CommandError(
            "qemu-img check does not say where the image ends", argv=said.argv, returncode=said.returncode, stderr=""
        ) from error
