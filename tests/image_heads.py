"""A valid header of every format, made by hand."""

from __future__ import annotations

import struct

BACKING = b"base image.qcow2"


def qcow2(version: int = 3, *, backing: bytes = BACKING, bits: int = 16, size: int = 1 << 30, crypt: int = 0) -> bytes:
    """version 2 or 3, with a backing name and format, and the extension that ends them."""
    length = 104 if version == 3 else 72
    extensions = (
        struct.pack(">II", 0xE2792ACA, 5) + b"qcow2\0\0\0" + struct.pack(">II", 0x44415441, 4) + b"data\0\0\0\0"
    )
    extensions += bytes(8)
    offset = length + len(extensions) if backing else 0
    head = struct.pack(
        ">4sIQIIQIIQQIIQ", b"QFI\xfb", version, offset, len(backing), bits, size, crypt, 1, 0, 0, 0, 0, 0
    )
    if version == 3:
        head += struct.pack(">QQQII", 0, 1, 0, 4, length)
    return (head + extensions + backing).ljust(HEAD, b"\0")


HEAD = 4096
_VMDK_DESCRIPTOR = (
    b'# Disk DescriptorFile\nversion=1\nCID=12345678\nparentCID=87654321\ncreateType="monolithicSparse"\n'
    b'parentFileNameHint="base.vmdk"\n\n# Extent description\nRW 2048 SPARSE "a.vmdk"\nRW 4096 FLAT "b.vmdk" 0\n'
)


def vdi(version: int = 0x00010001, block: int = 1 << 20) -> bytes:
    head = bytearray(512)
    head[0x40:0x48] = struct.pack("<II", 0xBEDA107F, version)
    head[0x170:0x17C] = struct.pack("<QI", 1 << 30, block)
    return bytes(head)


def vpc(creator: bytes = b"qemu", kind: int = 3, version: int = 0x00010000) -> bytes:
    head = bytearray(512)
    head[:8] = b"conectix"
    head[12:16] = struct.pack(">I", version)
    head[28:32] = creator
    head[40:64] = struct.pack(">QQHBBI", 1 << 20, 1 << 20, 100, 4, 17, kind)
    return bytes(head)


VALID: dict[str, bytes] = {
    "qcow": struct.pack(">4sIQIIQBBHIQ", b"QFI\xfb", 1, 48, len(BACKING), 0, 1 << 30, 12, 9, 0, 0, 0) + BACKING,
    "qcow2-2": qcow2(2),
    "qcow2-3": qcow2(3),
    "qcow2-plain": qcow2(3, backing=b""),
    "qed": struct.pack("<4sIIIQQQQQII", b"QED\0", 1 << 16, 4, 1, 5, 0, 0, 1 << 16, 1 << 30, 64, len(BACKING)) + BACKING,
    "vmdk": struct.pack("<4sIIQQQQ", b"KDMV", 1, 3, 2048, 128, 1, 4).ljust(512, b"\0")
    + _VMDK_DESCRIPTOR.ljust(2048, b"\0"),
    "vmdk-cowd": struct.pack("<4sIIII", b"COWD", 1, 3, 2048, 16).ljust(512, b"\0"),
    "vmdk-descriptor": _VMDK_DESCRIPTOR,
    "vdi": vdi(),
    "vpc": vpc(),
    "ploop": struct.pack("<16sIIIIIQ", b"WithouFreSpacExt", 2, 16, 100, 2048, 1, 1 << 21).ljust(64, b"\0"),
    "ploop-old": struct.pack("<16sIIIIIQ", b"WithoutFreeSpace", 2, 16, 100, 2048, 1, 1 << 21).ljust(64, b"\0"),
    "cow": struct.pack(">4sI1024sIQI", b"OOOM", 2, BACKING, 0, 1 << 20, 512),
    "iso": bytes(32_769) + b"CD001\1\0",
    "luks": (b"LUKS\xba\xbe\0\1" + b"aes").ljust(592, b"\0"),
    "luks2": (b"LUKS\xba\xbe\0\2").ljust(4096, b"\0"),
}
"""By a name of its own; what comes before the hyphen is the format."""
