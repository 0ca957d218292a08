"""Make disk images by the ten thousand: qemu-img makes each kind once, and its bytes are then written repeatedly.

Images are written sparse: only blocks that are not zero reach the file system, so 10,000 images of 10 GiB take seconds.
The same arguments give the same bytes: qemu-img's random ids (a VMDK's CID, a VDI's UUIDs) are overwritten.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from functools import lru_cache, partial

from astore.images import blank
from astore.images.blank import Template
from beds import BedUnavailable

_BLOCK = 4096


@lru_cache(maxsize=64)
def template(kind: str, size: int, backing: str | None = None, backing_format: str | None = None) -> Template:
    """Return the bytes of one image, made by qemu-img if it is installed, otherwise (qcow2 and raw) by hand.

    :param kind: qemu-img's name of the format. :param size: virtual size in bytes.
    :param backing: the backing file's name for the header; the file need not exist.
    :raises BedUnavailable: the format needs qemu-img, which is missing. :raises RuntimeError: qemu-img failed.
    """
    if kind != "raw" and shutil.which("qemu-img") is not None:
        return _by_qemu_img(kind, size, backing, backing_format)
    try:
        return blank.by_hand(kind, size, backing, backing_format)
    except ValueError:
        raise BedUnavailable(f"making {kind} images takes qemu-img (Debian package qemu-utils)") from None


make_images = partial(blank.make_images, template=template)
"""Make many images, with qemu-img if it is installed; see :func:`astore.images.blank.make_images`."""


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
    """Overwrite qemu-img's random ids."""
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
    """Split an image into runs of blocks that are not zero."""
    parts: list[tuple[int, bytes]] = []
    zero = bytes(_BLOCK)
    start: int | None = None
    for offset in range(0, len(data) + _BLOCK, _BLOCK):
        block = data[offset : offset + _BLOCK]
        empty = not block or block == zero[: len(block)]
        if not empty and start is None:
            start = offset
        elif empty and start is not None:
            # Zeros at the end of a run need not be written.
            parts.append((start, data[start:offset].rstrip(b"\0")))
            start = None
    return Template(tuple(parts), len(data))
