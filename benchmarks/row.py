"""A row of the table."""

from __future__ import annotations

import math
from typing import NamedTuple


class Row(NamedTuple):
    """A line of the table; seconds, or None where that side was not measured.

    :ivar ratio: what the bar is compared with; NaN if the side that the bar names was not measured.
    :ivar unit: what astore's value is in, or "" for a number of things.
    """

    work: str
    libvirt: float | None
    limit: float | None
    astore: float
    bar: str
    ratio: float
    met: bool
    unit: str = "s"

    @property
    def measured(self) -> bool:
        """Whether there was something to compare with."""
        return not math.isnan(self.ratio)

    @property
    def verdict(self) -> str:
        """Whether the bar is met, in words."""
        if not self.measured:
            return "not measured"
        return "met" if self.met else "**not met**"

    @property
    def amount(self) -> str:
        """Astore's value with its unit."""
        return seconds(self.astore) if self.unit == "s" else f"{self.astore:.3g} {self.unit}".rstrip()


def seconds(value: float | None) -> str:
    """Format a time; a dash where there is none."""
    if value is None:
        return "–"
    return f"{value:.2f} s" if value >= 1 else f"{value * 1000:.3g} ms"
