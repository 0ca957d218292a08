"""A row of the table."""

from __future__ import annotations

from typing import NamedTuple


class Row(NamedTuple):
    """A line of the table; seconds, or None where that side was not measured."""

    work: str
    libvirt: float | None
    limit: float | None
    astore: float
    bar: str
    ratio: float
    met: bool
