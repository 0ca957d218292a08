"""The names of parents' snapshots: asked for once, but not for ever."""

from __future__ import annotations

import errno
import struct
from typing import Any

import pytest

from astore_rbd.images import listing
from astore_rbd.images.headers import Parent
from astore_rbd.images.reading import Answer

PARENT = Parent(1, "", "abc", 7)


class OurCluster:
    """A pool in a cluster that answers."""

    pool = "vms"
    device = "rbd:cluster/1/"

    def device_of(self, pool: str, namespace: str) -> str:
        """Return what tells images with one number in two pools apart."""
        return f"rbd:cluster/{pool}/{namespace}"

    def context_of(self, pool: int, namespace: str) -> int:
        """Return an I/O context."""
        return 1


def test_asked_again_after_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that could not be asked for is asked for again; one that is known is not."""
    names: list[Any] = [OSError(errno.ETIMEDOUT, "slow"), b"base"]

    def ask(*_: object) -> Answer:
        found = names.pop(0)
        if isinstance(found, OSError):
            raise found
        return Answer(0, 1, (struct.pack("<I", len(found)) + found,))

    monkeypatch.setattr(listing, "ask", ask)
    made = listing.Listing(OurCluster(), allocation=False)
    told = [made.references(PARENT, {"abc": "gold"})[0].snapshot for _ in range(3)]
    assert told == ["7", "base", "base"]
