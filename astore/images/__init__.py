"""Read an image's header: its format, virtual size, and the other files that it names.

:func:`probe` reads at most the first 33,280 bytes and raises only :class:`ImageError`. Every format has a module of its
own, written from the document that the module names. VHDX stores its size further back, and some VMDK at the file's end:
they need a reader for it. :func:`astore.images.references.located` says where the named files are.

A format is recognised by its magic *and* a known version, as in libvirt; a file without both is raw. VMDK, Bochs and
cloop, which libvirt 9 takes for raw, wholly or in part, are recognised as in QEMU, and so is VHD of any version. dmg is
not: QEMU recognises it by the file's name. qcow2, VDI and VMDK of an unknown version are errors: QEMU knows them by their
magic, and refuses them. A recognised header must be sound. libvirt 9 lists an image with a malformed header as if it had no
backing file; here that is an error, since a backing file that nobody sees is not protected.

A file made to be two formats at once is what QEMU 7.2 takes it for, since the copies that astore makes must have the
bytes that QEMU reads. Only VDI's magic, at 64, leaves room for another one: VDI comes before all formats except QED and
Parallels. (libvirt prefers VDI to these two also, but VHD and ISO 9660 to VDI.) The files that the other header names
stay references, so that they are protected, since an image above may say that this one is of the other format. They have a
doubt, so that nothing is read. Both headers must be sound. ISO 9660's magic, at 32,769, comes last: QEMU does not know it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import msgspec

from astore.images import bochs, cloop, cow, iso, luks, ploop, qcow, qcow2, qed, vdi, vhdx, vmdk, vpc
from astore.images.errors import ImageError
from astore.images.fields import HEADER_SIZE, doubted
from astore.images.vhdx import Reader
from astore.model import ImageInfo

FIRST_PAGE = 4096
"""The bytes that are enough to recognise most images."""


class _Format(NamedTuple):
    """The functions that read one format.

    ``read`` returns None for a header that it does not recognise. ``reaches_beyond`` returns whether ``read`` would
    need more than a header's first page, and None where ``read`` would return None; it is None if the header fits in a
    page. ``read_on`` reads through a reader what ``read`` cannot reach. ``longer`` returns more of a header that does
    not end within the bytes that were read. ``footed`` returns the header with what stands at the file's end instead,
    given the file's size. ``before_vdi`` says that QEMU prefers this format to VDI.
    """

    read: Callable[[bytes], ImageInfo | None]
    reaches_beyond: Callable[[bytes], bool | None] | None = None
    read_on: Callable[[Reader], ImageInfo] | None = None
    longer: Callable[[bytes, Reader], bytes | None] | None = None
    footed: Callable[[bytes, Reader, int], bytes] | None = None
    before_vdi: bool = False


_DESCRIPTOR = _Format(vmdk.read_descriptor, vmdk.descriptor_reaches_beyond, longer=vmdk.whole_descriptor)
_BY_MAGIC: dict[bytes, tuple[_Format, ...]] = {
    b"QFI\xfb": (
        _Format(qcow2.read, qcow2.reaches_beyond, longer=qcow2.first_cluster),
        _Format(qcow.read, qcow.reaches_beyond, longer=qcow.with_far_name),
    ),
    b"QED\0": (_Format(qed.read, qed.reaches_beyond, longer=qed.with_far_name, before_vdi=True),),
    b"KDMV": (_Format(vmdk.read, vmdk.reaches_beyond, longer=vmdk.with_whole_descriptor, footed=vmdk.with_footer),),
    b"COWD": (_Format(vmdk.read_cowd, vmdk.cowd_reaches_beyond),),
    b"cone": (_Format(vpc.read, vpc.reaches_beyond),),
    b"vhdx": (_Format(vhdx.read, read_on=vhdx.read_on),),
    b"With": (_Format(ploop.read, before_vdi=True),),
    b"OOOM": (_Format(cow.read),),
    b"LUKS": (_Format(luks.read, luks.reaches_beyond),),
    b"Boch": (_Format(bochs.read),),
    b"#!/b": (_DESCRIPTOR, _Format(cloop.read)),
}
"""Formats with a magic at offset 0, by its first four bytes."""
_BY_CHARACTER = dict.fromkeys((b"#", b" ", b"v"), (_DESCRIPTOR,))
"""A VMDK descriptor begins with a comment, a blank line or its version."""

_VDI = _Format(vdi.read)


def probe(head: bytes, read: Reader | None = None, size: int | None = None) -> ImageInfo | None:
    """Recognise an image by the beginning of its file.

    :param head: the first HEADER_SIZE bytes of the file, or all of a shorter file; further bytes are ignored.
    :param read: returns the file's bytes at an offset, up to a length, both in bytes. It is called for VHDX, about six
        times and for at most 64 KiB, and for what does not end within ``head``: a qcow2's first cluster, at most 2 MiB,
        a backing name of qcow or QED, and a VMDK's descriptor, at most 1 MiB. Its errors are passed on. Without it the
        capacity of a VHDX image is None: it is not the file's size.
    :param size: the file's, in bytes. Without it a VMDK's footer is not read, and its capacity is the one that its first
        header says.
    :return: None for raw: an unknown magic.
    :raises ImageError: the header has a format's magic and version, but is malformed or cut off.
    """
    formats = _BY_MAGIC.get(head[:4]) or _BY_CHARACTER.get(head[:1])
    if formats is not None:
        if len(head) > HEADER_SIZE:
            head = head[:HEADER_SIZE]
        for format in formats:
            info = format.read(head) if read is None else _read(format, head, read, size)
            if info is not None:
                if head[0x40:0x44] != vdi.MAGIC or format.before_vdi:
                    return info
                return _as_vdi(head, info)
    if head[0x40:0x44] == vdi.MAGIC:
        info = vdi.read(head)
        if info is not None:
            return info
    return iso.INFO if head[iso.MAGIC_OFFSET : iso.MAGIC_END] == iso.MAGIC else None


def _read(format: _Format, head: bytes, read: Reader, size: int | None) -> ImageInfo | None:
    """Read one format's header, and through the reader what lies beyond ``head``."""
    if format.footed is not None and size is not None:
        head = format.footed(head, read, size)
    try:
        info = format.read(head)
    except ImageError:
        whole = None if format.longer is None else format.longer(head, read)
        if whole is None:
            raise
        info = format.read(whole)
    return info if info is None or format.read_on is None else format.read_on(read)


def _as_vdi(head: bytes, other: ImageInfo) -> ImageInfo:
    """Return what QEMU reads of a file that is VDI and begins as ``other``, with that header's references, doubted."""
    info = vdi.read(head)
    if info is None:
        raise ImageError("the header ends before its version", format="vdi")
    if not other.references:
        return info
    doubt = f"is named by a header of {other.format} in an image that QEMU takes for VDI"
    return msgspec.structs.replace(info, references=doubted(other.references, doubt))


def needs_full_header(head: bytes) -> bool:
    """Return whether the first page of a file is too little to recognise its format.

    If it is enough, :func:`probe` returns the same for ``head`` as for HEADER_SIZE bytes. A file without a magic may
    still be an ISO image; a qcow2 image's backing name may lie anywhere in its first cluster.

    :param head: the first FIRST_PAGE bytes of the file or more; fewer are never enough. For a file that ends within
        ``head``, ignore the answer: there is no more to read.
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
    except ImageError:  # the whole header is there already
        return False


__all__ = ["FIRST_PAGE", "HEADER_SIZE", "ImageError", "needs_full_header", "probe"]
