"""Remove the names of other files from headers."""

from __future__ import annotations

from astore.images import vmdk


def without_references(format: str | None, head: bytes) -> bytes:
    """Remove the backing file's name from an image's first bytes, and change nothing else.

    QEMU combines the backing file that it is given with the name in the header, which is wrong here. qcow2's name stays
    in place, with length 0: the header's extensions may end there. qcow2's data file and VMDK's extents stay: the image
    has no data without them.

    :param format: libvirt's word.
    :param head: the first HEADER_SIZE bytes, or all of a shorter file.
    """
    if format == "qcow2":
        return head[:16] + bytes(len(head[16:20])) + head[20:]
    if format == "qcow":
        return head[:8] + bytes(len(head[8:20])) + head[20:]
    if format == "qed" and len(head) > 16:
        return head[:16] + bytes((head[16] & ~1,)) + head[17:]
    return vmdk.without_parent(head) if format == "vmdk" else head
