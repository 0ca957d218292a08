"""Disk images by the ten thousand: each kind is made once by qemu-img, and its bytes are written as often as wanted.

Written sparse: only blocks that are not zero reach the file system, so that 10,000 images of 10 GiB take seconds. The
same arguments give the same bytes: what qemu-img draws by lot (a VMDK's CID, a VDI's UUIDs) is overwritten.
"""

from __future__ import annotations

import os
import re
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from typing import NamedTuple

from beds import BedUnavailable

_BLOCK = 4096
_CLUSTER = 65536
_OWN_FORMATS = ("qcow2", "raw")
"""What can be made without qemu-img."""


class Template(NamedTuple):
    """The bytes of an image: ``parts`` are (offset, bytes) of all that is not zero, ``length`` the file's size."""

    parts: tuple[tuple[int, bytes], ...]
    length: int

    def write(self, path: str | os.PathLike[str], *, dir_fd: int | None = None) -> None:
        """Make the file, which must not exist. :raises OSError: as the file system says."""
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644, dir_fd=dir_fd)
        try:
            for offset, data in self.parts:
                os.pwrite(fd, data, offset)
            if not self.parts or self.parts[-1][0] + len(self.parts[-1][1]) < self.length:
                os.ftruncate(fd, self.length)
        finally:
            os.close(fd)


def make_images(
    folder: str | os.PathLike[str],
    count: int,
    *,
    prefix: str = "vm",
    size: int = 10 << 30,
    backing_every: int = 0,
    formats: Sequence[str] = ("qcow2",),
    undisturbed: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> tuple[str, ...]:
    """Make ``count`` images in an existing folder: ``vm00000.qcow2``, ``vm00001.qcow2``, …

    :param size: the virtual size of each, in bytes (a multiple of 512).
    :param backing_every: every so many-th image that is qcow2 is backed by the first image (0: none is).
    :param formats: taken in turn; qemu-img's names, which also are the files' suffixes.
    :param undisturbed: makes a context in which no signal interrupts; qemu-img works in a temporary folder.
    :returns: their names, in order.
    :raises BedUnavailable: a format other than qcow2 and raw is wanted, and there is no qemu-img.
    :raises FileExistsError: one is there already.
    """
    names = tuple(f"{prefix}{number:05d}.{formats[number % len(formats)]}" for number in range(count))
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for number, name in enumerate(names):
            kind = formats[number % len(formats)]
            backed = number > 0 and backing_every > 0 and kind == "qcow2" and number % backing_every == 0
            with undisturbed():
                make = template(kind, size, names[0], formats[0]) if backed else template(kind, size)
            make.write(name, dir_fd=fd)
    finally:
        os.close(fd)
    return names


@lru_cache(maxsize=64)
def template(kind: str, size: int, backing: str | None = None, backing_format: str | None = None) -> Template:
    """The bytes of one image, by qemu-img where there is one, else (qcow2 and raw) by hand.

    :param kind: qemu-img's name of the format. :param size: virtual size in bytes.
    :param backing: a backing file's name as the header is to have it; it need not exist.
    :raises BedUnavailable: there is no qemu-img, and it takes one. :raises RuntimeError: qemu-img refused.
    """
    if kind == "raw":
        return Template((), size)
    if shutil.which("qemu-img") is not None:
        return _by_qemu_img(kind, size, backing, backing_format)
    if kind not in _OWN_FORMATS:
        raise BedUnavailable(f"making {kind} images takes qemu-img (Debian package qemu-utils)")
    return qcow2_by_hand(size, backing, backing_format)


def _by_qemu_img(kind: str, size: int, backing: str | None, backing_format: str | None) -> Template:
    with tempfile.TemporaryDirectory(prefix="astore-images-") as folder:
        path = os.path.join(folder, "image")
        argv = ["qemu-img", "create", "-q", "-f", kind]
        if backing is not None:
            argv += ["-u", "-b", backing, "-F", backing_format or "raw"]
        done = subprocess.run(
            [*argv, path, str(size)], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            raise RuntimeError(f"{' '.join(argv)}: {done.stderr.strip()}")
        with open(path, "rb") as file:
            return _sparse(_without_chance(kind, file.read()))


def _without_chance(kind: str, data: bytes) -> bytes:
    """Overwrite what qemu-img draws by lot."""
    if kind == "vmdk":
        # VMDK 1.1 descriptor: a text within the first 64 KiB, NUL behind it; its CID has eight hexadecimal digits, or fewer.
        told = re.search(rb"\nCID=([0-9a-f]+)[^\0]*", data)
        if told is None:
            return data
        text = told[0].replace(told[1], b"1" * 8, 1)
        return data[: told.start()] + text + data[told.start() + len(text) :]
    if kind == "vdi":
        # VdiHeader in QEMU's block/vdi.c: uuid_image and uuid_last_snap at 392, 16 bytes each.
        return data[:392] + bytes(range(32)) + data[424:]
    return data


def _sparse(data: bytes) -> Template:
    """Split into runs of blocks that hold anything."""
    parts: list[tuple[int, bytes]] = []
    zero = bytes(_BLOCK)
    start: int | None = None
    for offset in range(0, len(data) + _BLOCK, _BLOCK):
        block = data[offset : offset + _BLOCK]
        empty = not block or block == zero[: len(block)]
        if not empty and start is None:
            start = offset
        elif empty and start is not None:
            # The end of a run matters as little as its last zeros do.
            parts.append((start, data[start:offset].rstrip(b"\0")))
            start = None
    return Template(tuple(parts), len(data))


def qcow2_by_hand(size: int, backing: str | None = None, backing_format: str | None = None) -> Template:
    """A valid, empty qcow2 version 3 image with 64 KiB clusters (QEMU's docs/interop/qcow2.txt).

    Four clusters or more: header, refcount table, one refcount block, L1 table.
    """
    l1_entries = -(-size // (_CLUSTER * _CLUSTER // 8))
    l1_clusters = -(-l1_entries * 8 // _CLUSTER) or 1
    extensions = b""
    if backing is not None and backing_format is not None:
        name = backing_format.encode()
        extensions += struct.pack(">II", 0xE2792ACA, len(name)) + name + bytes(-len(name) % 8)
    extensions += bytes(8)
    backing_name = b"" if backing is None else os.fsencode(backing)
    header = struct.pack(
        ">4sIQIIQIIQQIIQQQQII",
        b"QFI\xfb",
        3,
        104 + len(extensions) if backing_name else 0,
        len(backing_name),
        _CLUSTER.bit_length() - 1,
        size,
        0,  # no encryption
        l1_entries,
        3 * _CLUSTER,
        1 * _CLUSTER,
        1,  # clusters of the refcount table
        0,  # snapshots …
        0,
        0,  # incompatible, compatible and autoclear features
        0,
        0,
        4,  # refcounts of 1 << 4 bits
        104,
    )
    used = 3 + l1_clusters
    return Template(
        (
            (0, header + extensions + backing_name),
            (_CLUSTER, struct.pack(">Q", 2 * _CLUSTER)),
            (2 * _CLUSTER, struct.pack(">H", 1) * used),
        ),
        used * _CLUSTER,
    )
