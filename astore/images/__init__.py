"""What an image's first bytes say: its format, virtual size, backing file and what belongs to them.

:func:`probe` looks at no more than the first 33,280 bytes, and nothing but :class:`ImageError` comes out of it. Every
format has a module of its own, written from the format's own document, named there. What has no magic is raw.
"""

from __future__ import annotations

from collections.abc import Callable

from astore.images import cow, iso, luks, ploop, qcow, qcow2, qed, vdi, vmdk, vpc
from astore.images.errors import ImageError
from astore.model import ImageInfo

HEADER_SIZE = 33_280
"""Bytes that tell every format."""

Reader = Callable[[bytes], ImageInfo | None]

_BY_MAGIC: dict[bytes, tuple[Reader, ...]] = {
    b"QFI\xfb": (qcow2.read, qcow.read),
    b"QED\0": (qed.read,),
    b"KDMV": (vmdk.read,),
    b"COWD": (vmdk.read_cowd,),
    b"# Di": (vmdk.read_descriptor,),
    b"cone": (vpc.read,),
    b"With": (ploop.read,),
    b"OOOM": (cow.read,),
    b"LUKS": (luks.read,),
}
"""Formats with a magic at offset 0, by its first four bytes."""


def probe(head: bytes) -> ImageInfo | None:
    """What the beginning of a file says.

    :param head: the first HEADER_SIZE bytes of the file, or all of it if it is shorter; more are ignored.
    :return: None for what has no known magic, or an unknown version: raw.
    :raises ImageError: it has a format's magic, but the header is malformed or cut off.
    """
    readers = _BY_MAGIC.get(head[:4])
    if readers is not None:
        if len(head) > HEADER_SIZE:
            head = head[:HEADER_SIZE]
        for reader in readers:
            info = reader(head)
            if info is not None:
                return info
        return None
    if head[vdi.MAGIC_OFFSET : vdi.MAGIC_OFFSET + 4] == vdi.MAGIC:
        return vdi.read(head)
    if len(head) > iso.MAGIC_OFFSET:
        return iso.read(head[:HEADER_SIZE])
    return None


def needs_full_header(head: bytes) -> bool:
    """Whether the first bytes of a file (512 at least) do not tell, so that HEADER_SIZE bytes are to be read."""
    magic = head[:4]
    if magic == b"QFI\xfb":
        return qcow2.reaches_beyond(head)
    if magic in _BY_MAGIC:
        return magic not in (b"LUKS", b"cone", b"With", b"OOOM")
    return head[vdi.MAGIC_OFFSET : vdi.MAGIC_OFFSET + 4] != vdi.MAGIC


__all__ = ["HEADER_SIZE", "ImageError", "needs_full_header", "probe"]
