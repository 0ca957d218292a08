"""Answer questions about an image format by its name; the list is :data:`astore.model.formats.FORMATS`."""

from __future__ import annotations

from astore.model.formats import FORMATS, Format

_BY_NAME = {one.name: one for one in FORMATS}
_BY_DRIVER = {one.driver: one.name for one in reversed(FORMATS) if one.driver is not None}
WRITTEN = tuple(one.name for one in FORMATS if one.made and not one.raw)
"""The formats that qemu-img makes, except raw."""


def format_of(name: str | None) -> Format:
    """Look up a format by libvirt's word; None means raw. An unknown word is a format that nothing is known of."""
    return _BY_NAME.get(name or "raw") or Format(name or "raw", None)


def is_known(name: str) -> bool:
    """Return whether there is a format of this name."""
    return name in _BY_NAME


def driver_of(name: str | None) -> str:
    """Return QEMU's name of the format that libvirt calls ``name``; an unknown word unchanged, which QEMU will refuse."""
    return format_of(name).driver or name or "raw"


def name_of_driver(driver: str) -> str | None:
    """Return libvirt's word for the format that QEMU calls ``driver``; None if no format has that driver."""
    return _BY_DRIVER.get(driver)


def is_raw(name: str | None) -> bool:
    """Return whether the bytes of such a volume are those of the disk."""
    return format_of(name).raw


def can_be_read(name: str | None) -> bool:
    """Return whether astore reads such images through QEMU."""
    return format_of(name).converted


def can_be_made(name: str | None) -> bool:
    """Return whether qemu-img creates such images."""
    return format_of(name).made


def can_be_backed(name: str | None) -> bool:
    """Return whether such images can be backed by others."""
    return format_of(name).backed


def can_be_backed_later(name: str | None) -> bool:
    """Return whether such images can be given the name of a backing file after they were made."""
    return format_of(name).backed_later


def opens_backing(name: str | None) -> bool:
    """Return whether qemu-img opens the backing file by its name to make such an image."""
    return format_of(name).opens_backing


def grows(name: str | None) -> bool:
    """Return whether QEMU writes at the end of such files, so that they must have their true size."""
    return format_of(name).grows
