"""Parts that headers have in common."""

from __future__ import annotations

from astore.images.errors import ImageError

LARGEST = (1 << 63) - 1
"""off_t's: no file can be larger."""


def name_at(head: bytes, offset: int, length: int, format: str, what: str = "backing file name") -> str:
    """A name within the header.

    :raises ImageError: it reaches beyond the header, or has a NUL or what is not UTF-8.
    """
    end = offset + length
    if end > len(head):
        raise ImageError(f"the {what} at {offset}, {length} bytes, lies beyond the header", format=format)
    return text_of(head[offset:end], format, what)


def text_of(raw: bytes, format: str, what: str) -> str:
    """Bytes as text, up to a NUL. :raises ImageError: they are no UTF-8."""
    try:
        return raw.partition(b"\0")[0].decode()
    except UnicodeDecodeError:
        raise ImageError(f"the {what} is not UTF-8", format=format) from None


def checked_size(size: int, format: str) -> int:
    """A virtual size in bytes. :raises ImageError: no file can be so large."""
    if size > LARGEST:
        raise ImageError(f"its size of {size} bytes is more than any file's", format=format)
    return size


def cut_off(head: bytes, needed: int, format: str) -> None:
    """:raises ImageError: the header ends before ``needed`` bytes."""
    if len(head) < needed:
        raise ImageError(f"the header ends after {len(head)} bytes of {needed}", format=format)
