"""Read the parts that headers share. Every read of a name stays within the header's bytes."""

from __future__ import annotations

import re

from astore.images.errors import ImageError
from astore.images.formats import name_of_driver
from astore.model import Reference, ReferenceKind

HEADER_SIZE = 33_280
"""The bytes that are enough to recognise every format; the rest of a file is not read."""

LARGEST = (1 << 63) - 1
"""The largest ``off_t``, and so the largest file, in bytes."""

LONGEST_BACKING_NAME = 1023
"""The longest backing file name of qcow and qcow2, in bytes (their documents)."""

_UNSPEAKABLE = re.compile("[\0-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")
# characters that an XML document cannot hold (XML 1.0, 2.2 "Characters"), and so no name that is reported


def name_at(head: bytes, offset: int, length: int, format: str, what: str = "backing file name") -> str:
    """Return the name at an offset in the header, up to a NUL.

    :raises ImageError: the name reaches beyond the header, or is not text.
    """
    end = offset + length
    if end > len(head):
        raise ImageError(f"the {what} at {offset}, {length} bytes, lies beyond the header", format=format)
    return text_of(head[offset:end], format, what)


def text_of(raw: bytes, format: str, what: str) -> str:
    """Decode bytes up to a NUL. :raises ImageError: they are not UTF-8, or have control characters."""
    try:
        text = raw.partition(b"\0")[0].decode()
    except UnicodeDecodeError:
        raise ImageError(f"the {what} is not UTF-8", format=format) from None
    return speakable(text, what, format)


def speakable(text: str, what: str, format: str = "") -> str:
    """Return ``text``. :raises ImageError: it has control characters or others that XML cannot hold."""
    if not text.isprintable() and _UNSPEAKABLE.search(text) is not None:
        raise ImageError(f"the {what} has control characters", format=format)
    return text


def backing(name: str, format: str | None = None) -> tuple[Reference, ...]:
    """Return the reference to a backing file, or none for an empty name.

    :param format: QEMU's word for the backing file's format, from the header.
    """
    if not name:
        return ()
    if not format:
        return (Reference(ReferenceKind.BACKING, name),)
    known = name_of_driver(format)
    if known is None:
        doubt = f"is said to be of the format {format!r}, which QEMU does not have"
        return (Reference(ReferenceKind.BACKING, name, format, doubt=doubt),)
    return (Reference(ReferenceKind.BACKING, name, known),)


def checked_size(size: int, format: str) -> int:
    """Return a virtual size in bytes. :raises ImageError: no file can be so large."""
    if size > LARGEST:
        raise ImageError(f"its size of {size} bytes is more than any file's", format=format)
    return size


def checked_name_length(length: int, limit: int, format: str) -> int:
    """Return the length of a backing file name in bytes. :raises ImageError: it is more than ``limit``."""
    if length > limit:
        raise ImageError(f"its backing file name has {length:,} bytes, more than {limit:,}", format=format)
    return length


def cut_off(head: bytes, needed: int, format: str) -> None:
    """Check the header's length. :raises ImageError: the header ends before ``needed`` bytes."""
    if len(head) < needed:
        raise ImageError(f"the header ends after {len(head)} bytes of {needed}", format=format)
