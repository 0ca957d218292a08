"""Headers without the names of other files."""

from __future__ import annotations

from astore.images import vmdk


def without_references(format: str | None, head: bytes) -> bytes:
    """Take the name of the backing file out of an image's first bytes, and change nothing else.

    QEMU takes what it is told of a backing file together with the name in the header, where there is one, which is wrong.
    qcow2's name keeps its place, for the header's extensions may end there; it has no length then. qcow2's data file and
    VMDK's extents stay: an image without them is none.

    :param format: libvirt's word. :param head: the first HEADER_SIZE bytes, or all of a shorter file.
    """
    if format == "qcow2":
        return head[:16] + bytes(len(head[16:20])) + head[20:]
    if format == "qcow":
        return head[:8] + bytes(len(head[8:20])) + head[20:]
    if format == "qed" and len(head) > 16:
        return head[:16] + bytes((head[16] & ~1,)) + head[17:]
    return vmdk.without_parent(head) if format == "vmdk" else head
