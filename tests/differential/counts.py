"""What the tests that compare astore with libvirt have counted; conftest.py prints it when the session ends."""

from __future__ import annotations

import os
import secrets
from collections import Counter

DOCUMENTS = "ASTORE_DIFFERENTIAL_DOCUMENTS"
"""How many documents to compare: of pools, and as many of volumes."""
SEED = "ASTORE_DIFFERENTIAL_SEED"
"""The seed that a run printed, to have its documents again."""


class Comparison:
    """The counts of one kind of thing, such as ``pool documents``."""

    def __init__(self, what: str) -> None:
        self.what = what
        self.outcomes: Counter[str] = Counter()
        """How comparisons came out: ``accepted by both``, ``refused by both``, …"""
        self.differences: Counter[str] = Counter()
        """The deliberate differences that were met, by name."""

    @property
    def compared(self) -> int:
        """All comparisons."""
        return self.outcomes.total()

    def came_out(self, outcome: str) -> None:
        """Count one comparison."""
        self.outcomes[outcome] += 1

    def differed(self, *names: str) -> None:
        """Count one comparison that found differences which are meant to be."""
        self.outcomes["different on purpose"] += 1
        self.differences.update(names)

    def met(self, name: str) -> None:
        """Count a difference that is meant to be beside what came of the comparison."""
        self.differences[name] += 1

    def lines(self) -> list[str]:
        """The counts, to print."""
        outcomes = ", ".join(f"{number:,} {outcome}" for outcome, number in sorted(self.outcomes.items()))
        names = [f"  {number:>8,}  {name}" for name, number in self.differences.most_common()]
        return [f"{self.what}: {self.compared:,} compared: {outcomes or 'none'}", *names]


_comparisons: dict[str, Comparison] = {}


def counting(what: str) -> Comparison:
    """The session's counts of this kind, from nought at first."""
    return _comparisons.setdefault(what, Comparison(what))


def documents_wanted(usual: int = 1_000) -> int:
    """How many documents to compare."""
    return int(os.environ.get(DOCUMENTS, usual))


SEED_OF_SESSION = int(os.environ.get(SEED) or (secrets.randbits(32) if DOCUMENTS in os.environ else 1))
"""The same in every usual session, so that a change is judged by what it changes; new documents for who asks for more."""


def summary() -> list[str]:
    """All that was counted, and how to have it again; nothing if nothing was."""
    lines = [line for comparison in _comparisons.values() if comparison.compared for line in comparison.lines()]
    again = f"the same documents again: {SEED}={SEED_OF_SESSION} {DOCUMENTS}={documents_wanted()}"
    return [*lines, again] if lines else []
