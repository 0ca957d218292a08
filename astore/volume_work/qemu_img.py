"""qemu-img, for whatever has to do with the inside of image formats. As a program; absent, only that fails."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile
import threading
from collections.abc import AsyncIterator

from astore.backend import CommandResult, Context
from astore.errors import CommandError, DefinitionError
from astore.model import VolumeDef
from astore.shield import shielded
from astore.volume_work.calls import bounded, in_a_thread, to_the_end

WRITTEN = ("qcow2", "qcow", "qed", "vmdk", "vdi", "vpc", "luks")
"""Formats whose images qemu-img makes, in libvirt's words, raw apart."""

CREATE_SECONDS = 120.0
CONVERT_SECONDS = 24 * 3600.0

VMDK_HEAD = 24
"""Bytes of a VMDK image that :func:`is_whole_vmdk` looks at."""

_PROGRAM = "qemu-img"
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


def check_definition(definition: VolumeDef) -> None:
    """:raises DefinitionError: qemu-img cannot make this volume."""
    kind = definition.format or "raw"
    if kind != "raw" and kind not in WRITTEN:
        raise DefinitionError(f"volumes of format {kind!r} can be kept but not made", element="format")
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


def convert_arguments(format: str, definition: VolumeDef) -> list[str]:
    """The arguments of ``qemu-img convert``, up to the two paths.

    -n: into an image that is there already, for a qemu-img that was killed while it started, and runs on for a moment,
    would make it again after it was removed.
    """
    argv = ["convert", "-q", "-n", "-f", driver(format), "-O", driver(definition.format)]
    if definition.backing is not None:
        return [*argv, "-B", definition.backing.path, "-F", driver(definition.backing.format)]
    return [*argv, "--target-is-zero"]


@contextlib.asynccontextmanager
async def private_folder(context: Context) -> AsyncIterator[str]:
    """A folder of this machine that only this user may look into; gone afterwards."""
    folder = await to_the_end(context.lane, tempfile.mkdtemp, None, "astore-", undo=os.rmdir)
    begun = threading.Event()

    def remove() -> None:
        begun.set()
        shutil.rmtree(folder, ignore_errors=True)

    try:
        yield folder
    finally:
        try:
            await shielded(bounded(context.lane.run(remove)))
        finally:
            if not begun.is_set():  # the lane has no thread for it
                in_a_thread(remove)


async def run(context: Context, *arguments: str, timeout: float, operation: str) -> None:
    """Run qemu-img. :raises CommandError: it is not installed, or what it said."""
    await _run(context, arguments, timeout, operation)


async def protocols(context: Context, operation: str) -> frozenset[str]:
    """The formats and protocols that this machine's qemu-img knows; ``gluster`` comes with Debian's qemu-block-extra."""
    result = await _run(context, ("--help",), 10.0, operation)
    _, _, words = result.stdout.decode("utf-8", "replace").partition("Supported formats:")
    return frozenset(words.partition("\n")[0].split())


async def _run(context: Context, arguments: tuple[str, ...], timeout: float, operation: str) -> CommandResult:
    try:
        return await context.run_command([_PROGRAM, *arguments], timeout=timeout)
    except CommandError as error:
        if error.returncode is not None:
            raise
        raise CommandError(
            f"{operation} needs the program qemu-img (Debian package qemu-utils): {error}",
            argv=error.argv,
            returncode=None,
            stderr="",
        ) from error
