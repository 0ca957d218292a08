"""Parts that headers have in common. Every read of a name is checked against the bytes that there are."""

from __future__ import annotations

import re

from astore.images.errors import ImageError
from astore.images.formats import name_of_driver
from astore.model import Reference, ReferenceKind

HEADER_SIZE = 33_280
"""Bytes that tell every format; no more are looked at."""

LARGEST = (1 << 63) - 1
"""off_t's: no file can be larger."""

LONGEST_BACKING_NAME = 1023
"""qcow's and qcow2's documents: a backing file name has 1,023 bytes at most."""

_UNSPEAKABLE = re.compile("[\0-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")
# XML 1.0, 2.2 "Characters": what no document can hold, nor any name that is to be reported in one


def name_at(head: bytes, offset: int, length: int, format: str, what: str = "backing file name") -> str:
    """A name within the header, up to a NUL.

    :raises ImageError: it reaches beyond the header, or is no text.
    """
    end = offset + length
    if end > len(head):
        raise ImageError(f"the {what} at {offset}, {length} bytes, lies beyond the header", format=format)
    return text_of(head[offset:end], format, what)


def text_of(raw: bytes, format: str, what: str) -> str:
    """Bytes as text, up to a NUL. :raises ImageError: they are not UTF-8, or have control characters in them."""
    try:
        text = raw.partition(b"\0")[0].decode()
    except UnicodeDecodeError:
        raise ImageError(f"the {what} is not UTF-8", format=format) from None
    return speakable(text, what, format)


def speakable(text: str, what: str, format: str = "") -> str:
    """``text`` itself. :raises ImageError: it has characters that no name should have and no XML document can hold."""
    if not text.isprintable() and _UNSPEAKABLE.search(text) is not None:
        raise ImageError(f"the {what} has control characters", format=format)
    return text


def backing(name: str, format: str | None = None) -> tuple[Reference, ...]:
    """The reference to a backing file, or none if it has no name.

    :param format: QEMU's word for its format, as the header has it.
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
    """A virtual size in bytes. :raises ImageError: no file can be so large."""
    if size > LARGEST:
        raise ImageError(f"its size of {size} bytes is more than any file's", format=format)
    return size


def checked_name_length(length: int, limit: int, format: str) -> int:
    """The length of a backing file name in bytes. :raises ImageError: it is more than ``limit``."""
    if length > limit:
        raise ImageError(f"its backing file name has {length:,} bytes, more than {limit:,}", format=format)
    return length


def cut_off(head: bytes, needed: int, format: str) -> None:
    """:raises ImageError: the header ends before ``needed`` bytes."""
    if len(head) < needed:
        raise ImageError(f"the header ends after {len(head)} bytes of {needed}", format=format)
