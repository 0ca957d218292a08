"""The only exception that reading headers raises."""

from __future__ import annotations

from astore.errors import AstoreError


class ImageError(AstoreError, ValueError):
    """A header has a format's magic and is malformed or cut off, or a backing name is nonsense."""

    def __init__(self, message: str, *, format: str = "") -> None:
        super().__init__(f"{format}: {message}" if format else message)
        self.format = format
