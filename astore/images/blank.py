"""Write empty qcow2 and raw images without qemu-img, thousands at a time, for tests and demonstrations."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Sequence
from typing import NamedTuple

_CLUSTER = 65536


class Template(NamedTuple):
    """The bytes of an image: ``parts`` are the (offset, bytes) that are not zero, ``length`` is the file's size."""

    parts: tuple[tuple[int, bytes], ...]
    length: int

    def write(self, path: str | os.PathLike[str], *, dir_fd: int | None = None) -> None:
        """Create the sparse file. :raises OSError: FileExistsError if it exists, or another error of the file system."""
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644, dir_fd=dir_fd)
        try:
            for offset, data in self.parts:
                os.pwrite(fd, data, offset)
            if not self.parts or self.parts[-1][0] + len(self.parts[-1][1]) < self.length:
                os.ftruncate(fd, self.length)
        finally:
            os.close(fd)


MakeTemplate = Callable[[str, int, str | None, str | None], Template]
"""A function that makes an image: of a format (qemu-img's name), a size in bytes, a backing file's name and its format.
"""


def make_images(
    folder: str | os.PathLike[str],
    count: int,
    *,
    prefix: str = "vm",
    size: int = 10 << 30,
    backing_every: int = 0,
    formats: Sequence[str] = ("qcow2",),
    template: MakeTemplate | None = None,
) -> tuple[str, ...]:
    """Make ``count`` images in an existing folder: ``vm00000.qcow2``, ``vm00001.qcow2``, …

    :param size: the virtual size of each, in bytes (a multiple of 512).
    :param backing_every: back every n-th image by the first one, if it is qcow2 (0: none).
    :param formats: the formats, taken in turn; qemu-img's names, which are also the files' suffixes.
    :param template: makes an image; None: :func:`by_hand`.
    :returns: the file names, in order.
    :raises FileExistsError: one of the files exists.
    """
    make = template if template is not None else by_hand
    names = tuple(f"{prefix}{number:05d}.{formats[number % len(formats)]}" for number in range(count))
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for number, name in enumerate(names):
            kind = formats[number % len(formats)]
            backed = number > 0 and backing_every > 0 and kind == "qcow2" and number % backing_every == 0
            backing = (names[0], formats[0]) if backed else (None, None)
            make(kind, size, *backing).write(name, dir_fd=fd)
    finally:
        os.close(fd)
    return names


def by_hand(kind: str, size: int, backing: str | None = None, backing_format: str | None = None) -> Template:
    """Return an empty qcow2 or raw image. :param size: in bytes. :raises ValueError: ``kind`` is another format."""
    if kind == "raw":
        return Template((), size)
    if kind == "qcow2":
        return qcow2_by_hand(size, backing, backing_format)
    raise ValueError(f"{kind} images are made by qemu-img only")


def qcow2_by_hand(size: int, backing: str | None = None, backing_format: str | None = None) -> Template:
    """Return a valid, empty qcow2 version 3 image with 64 KiB clusters (QEMU's docs/interop/qcow2.txt).

    It has at least four clusters: header, refcount table, one refcount block, L1 table.

    :param size: the virtual size, in bytes.
    :param backing: the backing file's name for the header; the file need not exist.
    :param backing_format: the backing file's format for the header; None: the header names none.
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
