"""What an image's first bytes say: its format, virtual size, the files that it names and what belongs to them.

:func:`probe` looks at no more than the first 33,280 bytes, and nothing but :class:`ImageError` comes out of it. Every
format has a module of its own, written from the format's own document, named there. Only VHDX has its size further back,
for which there is a reader. Where the named files are, :func:`astore.images.references.located` says.

A format is recognised by its magic *and* a known version, as in libvirt: what has neither, or ends before its version,
is raw. VMDK, Bochs and cloop, which libvirt 9 takes for raw, wholly or in part, are recognised as in QEMU; dmg is not, which
QEMU tells by the file's name. What is recognised must then be sound. libvirt 9 lists an image with a malformed header as if it
had no backing file; here that is an error, since a backing file that nobody sees is one that nobody protects.

A magic at the beginning decides before VDI's at 64 and ISO 9660's at 32,769, so that most images are told by their first
page. (libvirt asks for those two first; only a file made to be two things at once shows the difference.)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from astore.images import bochs, cloop, cow, iso, luks, ploop, qcow, qcow2, qed, vdi, vhdx, vmdk, vpc
from astore.images.errors import ImageError
from astore.images.fields import HEADER_SIZE
from astore.images.vhdx import Reader
from astore.model import ImageInfo

FIRST_PAGE = 4096
"""Bytes that tell most images."""


class _Format(NamedTuple):
    """How one format is read.

    ``read`` returns None, and raises nothing, for what it does not recognise. ``reaches_beyond`` says whether a header's
    first page leaves out what ``read`` would look at, and None where ``read`` would return None; a format has none if its
    header fits in a page. ``read_on`` tells by a reader what ``read`` cannot,
    and ``longer`` gives more of a header that does not end within what was read.
    """

    read: Callable[[bytes], ImageInfo | None]
    reaches_beyond: Callable[[bytes], bool | None] | None = None
    read_on: Callable[[Reader], ImageInfo] | None = None
    longer: Callable[[bytes, Reader], bytes | None] | None = None


_DESCRIPTOR = _Format(vmdk.read_descriptor, vmdk.descriptor_reaches_beyond)
_BY_MAGIC: dict[bytes, tuple[_Format, ...]] = {
    b"QFI\xfb": (
        _Format(qcow2.read, qcow2.reaches_beyond, longer=qcow2.first_cluster),
        _Format(qcow.read, qcow.reaches_beyond),
    ),
    b"QED\0": (_Format(qed.read, qed.reaches_beyond),),
    b"KDMV": (_Format(vmdk.read, vmdk.reaches_beyond),),
    b"COWD": (_Format(vmdk.read_cowd, vmdk.cowd_reaches_beyond),),
    b"cone": (_Format(vpc.read, vpc.reaches_beyond),),
    b"vhdx": (_Format(vhdx.read, read_on=vhdx.read_on),),
    b"With": (_Format(ploop.read),),
    b"OOOM": (_Format(cow.read),),
    b"LUKS": (_Format(luks.read, luks.reaches_beyond),),
    b"Boch": (_Format(bochs.read),),
    b"#!/b": (_DESCRIPTOR, _Format(cloop.read)),
}
"""Formats with a magic at offset 0, by its first four bytes."""
_BY_CHARACTER = dict.fromkeys((b"#", b" ", b"v"), (_DESCRIPTOR,))
"""A descriptor of VMDK begins with comments, or blank lines, or its version."""

_VDI = _Format(vdi.read)


def probe(head: bytes, read: Reader | None = None) -> ImageInfo | None:
    """What the beginning of a file says.

    :param head: the first HEADER_SIZE bytes of the file, or all of it if it is shorter; more are ignored.
    :param read: returns what a file has at an offset, up to a length, both in bytes. It is asked for VHDX, some six times and
        for 64 KiB at most, and for a qcow2 header that does not end within ``head``: its first cluster, of 2 MiB at most. What
        it raises is passed on. Without it the capacity of a VHDX image is None: it is not the file's size.
    :return: None for what has no known magic, or an unknown version: raw.
    :raises ImageError: it has a format's magic and version, but the header is malformed or cut off.
    """
    formats = _BY_MAGIC.get(head[:4]) or _BY_CHARACTER.get(head[:1])
    if formats is not None:
        if len(head) > HEADER_SIZE:
            head = head[:HEADER_SIZE]
        for format in formats:
            try:
                info = format.read(head)
            except ImageError:
                whole = None if read is None or format.longer is None else format.longer(head, read)
                if whole is None:
                    raise
                info = format.read(whole)
            if info is not None:
                return info if read is None or format.read_on is None else format.read_on(read)
    if head[0x40:0x44] == vdi.MAGIC:
        info = vdi.read(head)
        if info is not None:
            return info
    return iso.INFO if head[iso.MAGIC_OFFSET : iso.MAGIC_END] == iso.MAGIC else None


def needs_full_header(head: bytes) -> bool:
    """Whether the first page of a file leaves open what it is.

    If not, :func:`probe` says of ``head`` what it would say of HEADER_SIZE bytes. What has no magic may still be an ISO
    image; a qcow2 image's backing name may lie anywhere in its first cluster.

    :param head: the first FIRST_PAGE bytes of the file or more; fewer never tell. A file that is no longer than what was
        read of it needs no more, whatever this says.
    """
    if len(head) < FIRST_PAGE:
        return True
    for format in _BY_MAGIC.get(head[:4]) or _BY_CHARACTER.get(head[:1]) or ():
        beyond = _reaches_beyond(format, head)
        if beyond is not None:
            return beyond
    return head[0x40:0x44] != vdi.MAGIC or _reaches_beyond(_VDI, head) is None


def _reaches_beyond(format: _Format, head: bytes) -> bool | None:
    if format.reaches_beyond is not None:
        return format.reaches_beyond(head)
    try:
        return None if format.read(head) is None else False
    except ImageError:  # all that it looks at is there already
        return False


__all__ = ["FIRST_PAGE", "HEADER_SIZE", "ImageError", "needs_full_header", "probe"]
