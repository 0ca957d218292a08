"""The one list of image formats: their names, and what astore and QEMU do with each."""

from __future__ import annotations

from typing import NamedTuple


class Format(NamedTuple):
    """A format.

    :ivar name: libvirt's word. :ivar driver: QEMU's, None where it has none.
    :ivar raw: an image's bytes are the disk's own.
    :ivar made: qemu-img creates such images.
    :ivar converted: astore reads such images through QEMU, to convert them.
    :ivar backed: QEMU's driver takes a ``backing`` child.
    :ivar backed_later: an image can be given the name of a backing file after it was made.
    :ivar grows: QEMU writes at the file's end, so the file must have its true size, and be able to grow.
    :ivar refused: the format is known, QEMU only reads it, and astore does not convert it.
    """

    name: str
    driver: str | None
    raw: bool = False
    made: bool = False
    converted: bool = False
    backed: bool = False
    backed_later: bool = False
    grows: bool = False
    refused: bool = False


FORMATS = (
    Format("raw", "raw", raw=True, made=True, converted=True),
    Format("iso", "raw", raw=True, converted=True),
    Format("qcow2", "qcow2", made=True, converted=True, backed=True, backed_later=True),
    Format("qcow", "qcow", made=True, converted=True, backed=True, grows=True),
    Format("qed", "qed", made=True, converted=True, backed=True, backed_later=True, grows=True),
    Format("vmdk", "vmdk", made=True, converted=True, backed=True, grows=True),
    Format("vdi", "vdi", made=True, converted=True),
    Format("vpc", "vpc", made=True, converted=True),
    Format("vhd", "vpc", converted=True),
    Format("luks", "luks", made=True),
    Format("ploop", "parallels", converted=True),
    Format("vhdx", "vhdx", converted=True),
    Format("cow", None, refused=True),
    Format("dmg", "dmg", refused=True),
    Format("bochs", "bochs", refused=True),
    Format("cloop", "cloop", refused=True),
    Format("fat", None, refused=True),
    Format("dir", None),
)
"""``vhd`` is another word for ``vpc``. libvirt 9 has no word for VHDX. QEMU has no driver for cow, and none for ``fat``, which
means a folder that is shown as a disk."""

_BY_NAME = {one.name: one for one in FORMATS}
_BY_DRIVER = {one.driver: one.name for one in reversed(FORMATS) if one.driver is not None}
WRITTEN = tuple(one.name for one in FORMATS if one.made and not one.raw)
"""The formats that qemu-img makes, raw apart."""


def format_of(name: str | None) -> Format | None:
    """Look a format up by libvirt's word; None is raw. Returns None for an unknown word."""
    return _BY_NAME.get(name or "raw")


def driver_of(name: str | None) -> str:
    """Return QEMU's name of a format that libvirt calls ``name``. An unknown word stays as it is, and QEMU will refuse it."""
    found = format_of(name)
    return (found.driver if found is not None else None) or name or "raw"


def name_of_driver(driver: str) -> str | None:
    """Return libvirt's word for a format that QEMU calls ``driver``; None if it is no driver of a format."""
    return _BY_DRIVER.get(driver)


def is_raw(name: str | None) -> bool:
    """Whether the bytes of such a volume are those of the disk."""
    found = format_of(name)
    return found is not None and found.raw


def can_be_read(name: str | None) -> bool:
    """Whether astore reads such images through QEMU."""
    found = format_of(name)
    return found is not None and found.converted


def can_be_made(name: str | None) -> bool:
    """Whether qemu-img creates such images."""
    found = format_of(name)
    return found is not None and found.made


def can_be_backed(name: str | None) -> bool:
    """Whether such images can be backed by others."""
    found = format_of(name)
    return found is not None and found.backed


def can_be_backed_later(name: str | None) -> bool:
    """Whether such images can be given the name of a backing file after they were made."""
    found = format_of(name)
    return found is not None and found.backed_later


def grows(name: str | None) -> bool:
    """Whether QEMU writes at the end of such files, so that they must have their true size."""
    found = format_of(name)
    return found is not None and found.grows
