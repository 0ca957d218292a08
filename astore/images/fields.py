"""Read the parts that headers share. Every read of a name stays within the header's bytes."""

from __future__ import annotations

import re
from collections.abc import Callable
from urllib.parse import quote

from astore.images.errors import ImageError
from astore.images.formats import name_of_driver
from astore.images.paths import URL_SAFE
from astore.model import Reference, ReferenceKind

HEADER_SIZE = 33_280
"""The bytes that are enough to recognise every format; the rest of a file is not read."""

LARGEST = (1 << 63) - 1
"""The largest ``off_t``, and so the largest file, in bytes."""

LONGEST_BACKING_NAME = 1023
"""The longest backing file name of qcow and qcow2, in bytes (their documents)."""

_UNSPEAKABLE = re.compile("[\0-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")
# characters that an XML document cannot hold (XML 1.0, 2.2 "Characters"), and so no name that is reported

_FARTHEST = LARGEST - (1 << 30) + 1
"""The largest file that QEMU reads, in bytes (its BDRV_MAX_LENGTH)."""

ENCODED = "is named with bytes that are not text (written as % and two digits)"
"""The doubt of a reference whose name is percent-encoded, since records are text. Linux and QEMU take any bytes."""


def name_at(head: bytes, offset: int, length: int, format: str) -> bytes:
    """Return a backing file's name at an offset, up to a NUL. :raises ImageError: it reaches beyond the header."""
    end = offset + length
    if end > len(head):
        raise ImageError(f"the backing file name at {offset}, {length} bytes, lies beyond the header", format=format)
    return head[offset:end].partition(b"\0")[0]


def far_name(offset: int, length: int, read: Callable[[int, int], bytes]) -> bytes | None:
    """Read a backing file's name anywhere in a file, as QEMU does: NULs follow the file's end. None if it is too far."""
    return None if offset + length > _FARTHEST else read(offset, length).ljust(length, b"\0")


def whole_sectors(size: int) -> int:
    """Round a virtual size down to sectors of 512 bytes: a QEMU disk ends there."""
    return size & ~511


def named(
    kind: ReferenceKind, raw: bytes, format: str | None = None, doubt: str | None = None
) -> tuple[Reference, ...]:
    """Return the reference to a file, named by bytes up to a NUL, or none for an empty name.

    A name that is not text is percent-encoded and has the doubt ENCODED.
    """
    raw = raw.partition(b"\0")[0]
    if not raw:
        return ()
    try:
        name = speakable(raw.decode(), "name")
    except (UnicodeDecodeError, ImageError):
        return (Reference(kind, quote(raw, safe=URL_SAFE), format, doubt=ENCODED),)
    return (Reference(kind, name, format, doubt=doubt),)


def text_of(raw: bytes, format: str, what: str) -> str:
    """Decode bytes up to a NUL. :raises ImageError: they are not UTF-8, or have control characters."""
    try:
        text = raw.partition(b"\0")[0].decode()
    except UnicodeDecodeError:
        raise ImageError(f"the {what} is not UTF-8", format=format) from None
    return speakable(text, what, format)


def is_speakable(text: str) -> bool:
    """Return whether a text has only characters that XML can hold."""
    return text.isprintable() or _UNSPEAKABLE.search(text) is None


def speakable(text: str, what: str, format: str = "") -> str:
    """Return ``text``. :raises ImageError: it has control characters or others that XML cannot hold."""
    if not is_speakable(text):
        raise ImageError(f"the {what} has control characters", format=format)
    return text


def backing(name: str | bytes, format: str | None = None) -> tuple[Reference, ...]:
    """Return the reference to a backing file, or none for an empty name.

    :param name: as it is in the header. :param format: QEMU's word for the backing file's format, from the header.
    """
    raw = name if isinstance(name, bytes) else name.encode("utf-8", "surrogatepass")
    known = name_of_driver(format) if format else None
    if not format or known is not None:
        return named(ReferenceKind.BACKING, raw, known)
    doubt = f"is said to be of the format {format!r}, which QEMU does not have"
    return named(ReferenceKind.BACKING, raw, format, doubt)


def doubted(references: tuple[Reference, ...], doubt: str) -> tuple[Reference, ...]:
    """Return the references, each with a doubt: ``doubt`` if it has none yet."""
    return tuple(Reference(one.kind, one.name, one.format, doubt=one.doubt or doubt) for one in references)


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


def unknown_version(version: object, format: str) -> ImageError:
    """Return the error of an image that QEMU knows by its magic, and refuses."""
    return ImageError(f"its version {version} is one that QEMU does not read", format=format)


def cut_off(head: bytes, needed: int, format: str) -> None:
    """Check the header's length. :raises ImageError: the header ends before ``needed`` bytes."""
    if len(head) < needed:
        raise ImageError(f"the header ends after {len(head)} bytes of {needed}", format=format)
