"""The one list of image formats: their names, and what libvirt, QEMU and astore do with each."""

from __future__ import annotations

from typing import NamedTuple


class Format(NamedTuple):
    """A format.

    :ivar name: libvirt's word. :ivar driver: QEMU's, None where it has none.
    :ivar listed: libvirt accepts the name as a volume's format.
    :ivar raw: an image's bytes are the disk's own.
    :ivar made: qemu-img creates such images.
    :ivar converted: astore reads such images through QEMU, to convert them.
    :ivar backed: QEMU's driver takes a ``backing`` child.
    :ivar backed_later: an image can be given the name of a backing file after it was made.
    :ivar opens_backing: qemu-img opens the backing file by its name, and what that names, to make such an image.
    :ivar grows: QEMU writes at the file's end, so the file must have its true size, and be able to grow.
    """

    name: str
    driver: str | None
    listed: bool = True
    raw: bool = False
    made: bool = False
    converted: bool = False
    backed: bool = False
    backed_later: bool = False
    opens_backing: bool = False
    grows: bool = False


FORMATS = (
    Format("raw", "raw", raw=True, made=True, converted=True),
    Format("dir", None),
    Format("bochs", "bochs"),
    Format("cloop", "cloop"),
    Format("dmg", "dmg"),
    Format("iso", "raw", raw=True, converted=True),
    Format("vpc", "vpc", made=True, converted=True),
    Format("vdi", "vdi", made=True, converted=True),
    Format("fat", None),
    Format("vhd", "vpc", converted=True),
    Format("ploop", "parallels", converted=True),
    Format("cow", None),
    Format("qcow", "qcow", made=True, converted=True, backed=True, grows=True),
    Format("qcow2", "qcow2", made=True, converted=True, backed=True, backed_later=True),
    Format("qed", "qed", made=True, converted=True, backed=True, backed_later=True, grows=True),
    Format("vmdk", "vmdk", made=True, converted=True, backed=True, opens_backing=True, grows=True),
    Format("luks", "luks", listed=False, made=True),
    Format("vhdx", "vhdx", listed=False, converted=True),
)
"""In libvirt's order (virStorageFileFormat), then the others.

``vhd`` is another word for ``vpc``. QEMU has no driver for ``cow``, and none for ``fat``, a folder that is shown as a disk.
A LUKS volume is ``raw`` with an ``<encryption>`` in libvirt's documents; libvirt 9 has no word for VHDX.
"""

FILE_FORMATS = ("raw", "none", *(one.name for one in FORMATS[1:] if one.listed))
"""The formats that a volume in a pool of files may have, the default first."""

PARTITION_FORMATS = ("none", "linux", "fat16", "fat32", "linux-swap", "linux-lvm", "linux-raid", "extended")
"""The formats that a volume in a disk pool may have (virStorageVolFormatDisk), the default first."""
