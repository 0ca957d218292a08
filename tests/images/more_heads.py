"""Headers of the formats that libvirt leaves out, and of images that consist of several files."""

from __future__ import annotations

import json
import struct
import uuid

from image_heads import VALID, qcow2, vpc

from astore.images import probe
from astore.images.vhdx import Reader
from astore.model import ImageInfo

HEAD = 4096


def probed(head: bytes, read: Reader | None = None) -> ImageInfo:
    """What is said of a header that is recognised."""
    info = probe(head, read)
    assert info is not None
    return info


def split_vmdk(
    kind: str = "monolithicFlat", extents: bytes = b'RW 2048 FLAT "a-flat.vmdk" 0\n', more: bytes = b""
) -> bytes:
    """A descriptor file."""
    return (
        b'# Disk DescriptorFile\nversion=1\nCID=1\nparentCID=ffffffff\ncreateType="%s"\n' % kind.encode()
        + more
        + extents
    )


def sparse_vmdk(text: bytes, *, capacity: int = 2048, offset: int = 1, version: int = 1) -> bytes:
    """A sparse file with a text behind its first sector; its descriptorSize is 0, which QEMU passes over."""
    return struct.pack("<4sIIQQQQ", b"KDMV", version, 3, capacity, 128, offset, 0).ljust(512, b"\0") + text


def bochs(version: int = 0x0002_0000, size: int = 1 << 30) -> bytes:
    head = b"Bochs Virtual HD Image".ljust(32, b"\0") + b"Redolog".ljust(16, b"\0") + b"Growing".ljust(16, b"\0")
    head += struct.pack("<IIIII", version, 512, 128, 1, 1 << 23) + bytes(4 if version == 0x0002_0000 else 0)
    return (head + struct.pack("<Q", size)).ljust(512, b"\0")


def cloop(block: int = 1 << 16, count: int = 3) -> bytes:
    script = b"#!/bin/sh\n#V2.0 Format\nmodprobe cloop file=$0 && mount -r -t iso9660 /dev/cloop $1\n"
    return script.ljust(128, b"\0") + struct.pack(">II", block, count)


def differencing_vhd(name: str = "parent.vhd") -> bytes:
    """With the dynamic header that has the parent's name behind the footer."""
    head = bytearray(vpc(b"win ", kind=4))
    head[16:24] = struct.pack(">Q", 512)
    return bytes(head) + b"cxsparse".ljust(64, b"\0") + name.encode("utf-16-be").ljust(512, b"\0").ljust(960, b"\0")


def luks2(offset: str = "16777216", hdr_size: int = 16_384) -> bytes:
    """With its JSON area."""
    text = json.dumps({"keyslots": {}, "segments": {"0": {"type": "crypt", "offset": offset, "size": "dynamic"}}})
    return (
        (b"LUKS\xba\xbe\0\2" + struct.pack(">Q", hdr_size)).ljust(4096, b"\0") + text.encode().ljust(64, b"\0") + b"\0"
    )


def with_data_file(name: bytes = b"data") -> bytes:
    """A qcow2 image whose data is in another file, with no backing file."""
    head = bytearray(qcow2(3, backing=b""))
    head[72:80] = struct.pack(">Q", 1 << 2)
    return bytes(head[:120]) + struct.pack(">II", 0x44415441, len(name)) + name.ljust(8, b"\0") + bytes(4096 - 136)


METADATA_AT = 2 << 20
REGIONS_AT = 192 << 10


def vhdx(size: int = 1 << 30, *, parent: dict[str, str] | None = None, extra_regions: int = 0) -> dict[int, bytes]:
    """The parts of a VHDX image that matter, by their offset."""
    region = struct.Struct("<16sQII")
    regions = struct.pack("<4sIII", b"regi", 0, 2 + extra_regions, 0)
    regions += region.pack(uuid.UUID("2dc27766-f623-4200-9d64-115e9bfd4a08").bytes_le, 3 << 20, 1 << 20, 1)
    regions += region.pack(bytes(16), 4 << 20, 1 << 20, 0) * extra_regions
    regions += region.pack(uuid.UUID("8b7ca206-4790-4b9a-b8fe-575f050f886e").bytes_le, METADATA_AT, 1 << 20, 1)
    locator = struct.pack("<16sHH", bytes(16), 0, len(parent or {}))
    at = len(locator) + 12 * len(parent or {})
    texts = b""
    for key, value in (parent or {}).items():
        pair = key.encode("utf-16-le"), value.encode("utf-16-le")
        locator += struct.pack("<IIHH", at, at + len(pair[0]), len(pair[0]), len(pair[1]))
        texts += pair[0] + pair[1]
        at += len(pair[0]) + len(pair[1])
    locator += texts
    items = [
        ("caa16737-fa36-4d43-b3b6-33f0aa44e76b", struct.pack("<II", 1 << 25, 2 if parent is not None else 0)),
        ("2fa54224-cd1b-4876-b211-5dbed83bf4b8", struct.pack("<Q", size)),
        ("a8d35f2d-b30b-454d-abf7-d3d84834ab0c", locator),
    ]
    table, data = struct.pack("<8sHH20x", b"metadata", 0, len(items)), b""
    for kind, raw in items:
        table += struct.pack("<16sIIII", uuid.UUID(kind).bytes_le, (64 << 10) + len(data), len(raw), 4, 0)
        data += raw
    return {
        REGIONS_AT: regions.ljust(HEAD, b"\0"),
        METADATA_AT: table.ljust(HEAD, b"\0"),
        METADATA_AT + (64 << 10): data,
    }


VHDX = vhdx(parent={"relative_path": ".\\parent.vhdx", "absolute_win32_path": "C:\\parent.vhdx"})

MORE: dict[str, bytes] = {
    "vhdx": b"vhdxfile".ljust(HEAD, b"\0"),
    "bochs": bochs(),
    "bochs-1": bochs(0x0001_0000),
    "cloop": cloop(),
    "vpc-4": differencing_vhd(),
    "luks2-json": luks2(),
    "qcow2-data": with_data_file(),
    "vmdk-split": split_vmdk(),
    "vmdk-text": sparse_vmdk(b'x parentFileNameHint="base.vmdk"\nRW 1 VMFS "a"\n'.ljust(1024, b"\0"), capacity=0),
    "vmdk-cowd-parent": VALID["vmdk-cowd"] + b'CID=1\nparentFileNameHint="base.vmdk"\n'.ljust(512, b"\0"),
}
"""By a name of its own; what comes before the hyphen is the format."""
