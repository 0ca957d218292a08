"""Files that exist nowhere, for folders of any length. Part of the server: it runs on Debian's Python."""

from __future__ import annotations

import stat
from typing import Any

_TIME_NS = 1_700_000_000 * 10**9


class Generated:
    """Files that exist nowhere: ``disk0000000.img`` and so on, in the root. All have the same size and content."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self.count: int = settings["entries"]
        self._head = bytes.fromhex(settings["head"])
        self._size: int = settings["size"]

    def name(self, index: int) -> str:
        return f"disk{index:07d}.img"

    def index(self, name: str) -> int:
        """Return the number of the file with this name; -1 if there is none."""
        digits = name[4:-4]
        if digits.isascii() and digits.isdigit() and int(digits) < self.count and self.name(int(digits)) == name:
            return int(digits)
        return -1

    def read(self, offset: int, length: int) -> bytes:
        length = max(0, min(length, self._size - offset))
        return self._head[offset : offset + length].ljust(length, b"\0")

    def fill(self, attributes: Any) -> None:
        """Set the attributes that all files share."""
        attributes.st_mode, attributes.st_nlink, attributes.st_size = stat.S_IFREG | 0o644, 1, self._size
        attributes.st_mtime_ns = attributes.st_ctime_ns = attributes.st_atime_ns = _TIME_NS
