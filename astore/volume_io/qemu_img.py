"""Run the program qemu-img for all work inside image formats. Without it only such work fails."""

from __future__ import annotations

import errno
import json
import re
from collections.abc import Callable, Sequence
from typing import TypeVar, cast

from astore.backend import CommandResult, Lane, Limits, QemuNode
from astore.commands import LaneCommandRunner
from astore.errors import CommandError, DefinitionError, LibvirtCode, printable
from astore.images import formats
from astore.lanes.own_thread import on_own_thread
from astore.model import VolumeDef, VolumeType
from astore.model.formats import PARTITION_FORMATS

T = TypeVar("T")

CREATE_SECONDS = 120.0
CONVERT_SECONDS = 24 * 3600.0

_PROGRAM = "qemu-img"
_FEATURES = ("lazy_refcounts", "extended_l2")

MEMORY = 2 << 30
"""The most bytes of qemu-img's address space; its threads take a quarter of it, an image's tables tens of MiB."""

PROCESSOR_SECONDS = 60.0
"""The most seconds of processor time for an image's metadata."""

BYTES_A_SECOND = 2 << 20
"""Stored bytes per further second of processor time. An image that needs more is an attack, not a disk."""

LONGEST_NAME = 1023
"""The most bytes of a backing file's name in a qcow2 header."""


def limits(stored: int = 0) -> Limits:
    """Return qemu-img's resource limits for images of ``stored`` bytes in total."""
    return Limits(MEMORY, min(PROCESSOR_SECONDS + stored / BYTES_A_SECOND, CONVERT_SECONDS))


def node(format: str | None, storage: QemuNode, backing: QemuNode | None = None) -> QemuNode:
    """Return an image as a node of QEMU's block layer, over the node ``storage`` and the backing image's node.

    Without ``backing`` the image is read without one, whatever its header says.
    """
    made: QemuNode = {"driver": formats.driver_of(format), "file": storage}
    if formats.can_be_backed(format):
        made["backing"] = backing
    return made


def file_node(path: str, type: VolumeType = VolumeType.FILE) -> QemuNode:
    """Return a local file or device as a node of QEMU's block layer."""
    return {"driver": "host_device" if type is VolumeType.BLOCK else "file", "filename": path}


def descriptor_node(descriptor: int, type: VolumeType = VolumeType.FILE) -> QemuNode:
    """Return an open file that qemu-img inherits as a node of QEMU's block layer."""
    return file_node(f"/proc/self/fd/{descriptor}", type)


def descriptors(*nodes: QemuNode) -> list[int]:
    """Return the descriptors of the open files in these nodes."""
    found: list[int] = []
    for one in nodes:
        path = one.get("filename", "")
        if isinstance(path, str) and path.startswith("/proc/self/fd/"):
            found.append(int(path.rpartition("/")[2]))
        found += descriptors(*(child for child in one.values() if isinstance(child, dict)))
    return found


def filename(node: QemuNode) -> str:
    """Return a node in the form in which qemu-img takes it as a file name."""
    return f"json:{json.dumps(node)}"


def check_definition(definition: VolumeDef) -> None:
    """Check that a volume can be created by its definition. :raises DefinitionError: it cannot."""
    kind = definition.format or "raw"
    if kind in PARTITION_FORMATS:
        raise DefinitionError(
            f"only the volumes of disk pools have the format {kind!r}",
            element="format",
            libvirt_code=LibvirtCode.CONFIG_UNSUPPORTED,
        )
    if kind != "raw" and not formats.can_be_made(kind):
        raise DefinitionError(_cannot_be_made(kind), element="format")
    if definition.encryption is not None or kind == "luks":
        raise DefinitionError(
            "encrypted volumes are not made: astore's secrets are those that pools are reached with",
            element="encryption",
        )
    if definition.compat is not None and not re.fullmatch(r"[0-9]+\.[0-9]+", definition.compat):
        raise DefinitionError(f"compat {definition.compat!r} is no version", element="compat")
    for feature in definition.features or ():
        if feature not in _FEATURES:
            raise DefinitionError(f"unknown feature {feature!r}", element="features")
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
    if definition.backing is not None and formats.opens_backing(kind):
        raise DefinitionError(
            f"volumes of format {kind!r} are not made on others: qemu-img would open whatever files the other one names; "
            "qcow2 and qed volumes can be",
            element="backingStore",
        )


def _cannot_be_made(kind: str) -> str:
    """Return why there can be no new volume of a format, and in which formats there can be."""
    able = ("raw", "dir", *(one for one in formats.WRITTEN if one != "luks"))
    if formats.is_known(kind):
        return f"volumes of format {kind!r} can be kept but not created; formats that can: {', '.join(able)}"
    from difflib import get_close_matches

    near = sorted(get_close_matches(kind.lower(), able), key=lambda one: abs(len(one) - len(kind)))
    meant = f" (did you mean {near[0]}?)" if near else ""
    return f"there is no format {printable(kind)!r}{meant}; formats that can be made: {', '.join(able)}"


def create_arguments(definition: VolumeDef, *, prealloc_metadata: bool = False) -> list[str]:
    """Return the arguments of ``qemu-img create``, up to the path and the size."""
    options: list[str] = []
    kind = definition.format or "raw"
    if kind == "qcow2":
        compat = definition.compat or ("1.1" if definition.features is not None else None)
        if compat is not None:
            options.append(f"compat={compat}")
        options += [f"{feature}=on" for feature in definition.features or ()]
        if definition.cluster_size:
            options.append(f"cluster_size={definition.cluster_size}")
        if prealloc_metadata:
            # not "falloc", as libvirt does for full allocation: it would allocate the space in the private folder
            options.append("preallocation=metadata")
    argv = ["create", "-q", "-f", kind]
    if definition.backing is not None:
        # -u: do not open the backing image, whose name may mean nothing in the private folder
        argv += ["-u", "-b", definition.backing.path, "-F", formats.driver_of(definition.backing.format)]
    if options:
        argv += ["-o", ",".join(options)]
    return argv


def convert_arguments(definition: VolumeDef, source: QemuNode, target: QemuNode, *, thin: bool = False) -> list[str]:
    """Return the arguments of ``qemu-img convert``.

    They convert into an existing image (-n). Otherwise a qemu-img that was killed at its start, and runs on for a moment,
    could create the image again after its removal.

    :param thin: leave to the target's backing image what the source leaves to its own.
    """
    argv = ["convert", "-q", "-n"]
    if definition.backing is None:
        argv.append("--target-is-zero")
    elif thin:
        argv += ["-B", definition.backing.path, "-F", formats.driver_of(definition.backing.format)]
    return [*argv, "-O", formats.driver_of(definition.format), filename(source), filename(target)]


def rebase_arguments(definition: VolumeDef, target: QemuNode) -> list[str]:
    """Return the arguments of ``qemu-img rebase`` that only write the backing file's name into the header."""
    assert definition.backing is not None
    backing = definition.backing
    return ["rebase", "-q", "-u", "-b", backing.path, "-F", formats.driver_of(backing.format), filename(target)]


async def run(
    *arguments: str, timeout: float, operation: str, limits: Limits, descriptors: Sequence[int] = ()
) -> CommandResult:
    """Run qemu-img on a thread outside the pool's lane, because it may itself wait for the lane.

    :param descriptors: open files that it inherits.
    :raises CommandError: it is not installed, or failed.
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
    """Stands in for a lane and runs each program on a new thread.

    On the pool's lane, programs that wait for its reads and writes could occupy all its threads and deadlock. The program
    ends itself at its deadline.
    """

    async def run(self, func: Callable[[], T], *, timeout: float) -> T:
        return await on_own_thread(func, name="astore-program")


_FULL = {"No space left on device": errno.ENOSPC, "Disk quota exceeded": errno.EDQUOT}


def storage_error(error: CommandError) -> OSError | None:
    """Return the storage's error that made qemu-img fail, if that is what it says: the storage is full.

    QEMU ends such a message with the text of strerror(3) (error_setg_errno in util/error.c), in English by LC_ALL.
    """
    for line in error.stderr.splitlines():
        said, _, text = line.rpartition(": ")
        if said.startswith("qemu-img: ") and text in _FULL:
            return OSError(_FULL[text], line)
    return None


def is_served(node: QemuNode | None) -> bool:
    """Return whether this process serves an image to QEMU, which then waits for its lanes."""
    return node is not None and node["file"]["driver"] == "nbd"


def needed_capacity(definition: VolumeDef) -> int:
    """Return a definition's capacity. :raises DefinitionError: it has none."""
    if definition.capacity is None:
        raise DefinitionError(f"volume {definition.name!r} needs a capacity", element="capacity")
    return definition.capacity


def image_end(said: CommandResult) -> int:
    """Return where an image ends, from the output of ``qemu-img check --output=json``. :raises CommandError: it is missing."""
    try:
        return int(json.loads(said.stdout)["image-end-offset"])
    except (ValueError, TypeError, LookupError) as error:
        raise CommandError(
            "qemu-img check does not say where the image ends", argv=said.argv, returncode=said.returncode, stderr=""
        ) from error
