"""Answer questions about an image format by its name; the list is :data:`astore.model.formats.FORMATS`."""

from __future__ import annotations

from astore.model.formats import FORMATS, Format

_BY_NAME = {one.name: one for one in FORMATS}
_BY_DRIVER = {one.driver: one.name for one in reversed(FORMATS) if one.driver is not None}
WRITTEN = tuple(one.name for one in FORMATS if one.made and not one.raw)
"""The formats that qemu-img makes, except raw."""


def format_of(name: str | None) -> Format | None:
    """Look up a format by libvirt's word; None means raw. Return None for an unknown word."""
    return _BY_NAME.get(name or "raw")


def driver_of(name: str | None) -> str:
    """Return QEMU's name of the format that libvirt calls ``name``; an unknown word unchanged, which QEMU will refuse."""
    found = format_of(name)
    return (found.driver if found is not None else None) or name or "raw"


def name_of_driver(driver: str) -> str | None:
    """Return libvirt's word for the format that QEMU calls ``driver``; None if no format has that driver."""
    return _BY_DRIVER.get(driver)


def is_raw(name: str | None) -> bool:
    """Return whether the bytes of such a volume are those of the disk."""
    found = format_of(name)
    return found is not None and found.raw


def can_be_read(name: str | None) -> bool:
    """Return whether astore reads such images through QEMU."""
    found = format_of(name)
    return found is not None and found.converted


def can_be_made(name: str | None) -> bool:
    """Return whether qemu-img creates such images."""
    found = format_of(name)
    return found is not None and found.made


def can_be_backed(name: str | None) -> bool:
    """Return whether such images can be backed by others."""
    found = format_of(name)
    return found is not None and found.backed


def can_be_backed_later(name: str | None) -> bool:
    """Return whether such images can be given the name of a backing file after they were made."""
    found = format_of(name)
    return found is not None and found.backed_later


def grows(name: str | None) -> bool:
    """Return whether QEMU writes at the end of such files, so that they must have their true size."""
    found = format_of(name)
    return found is not None and found.grows
