"""The stores that astore ships, and the suite for stores."""

from __future__ import annotations

import asyncio
from pathlib import Path

from astore.store.contract import KeepsSnapshots, Store
from astore.store.local import LocalStore
from astore.store.memory import MemoryStore
from astore.testing.stores import StoreConformance


class TestLocalStore(StoreConformance):
    """A folder of files."""

    async def make_store(self, place: Path) -> Store:
        """Each client has files of its own open."""
        store = LocalStore(place / "state")
        assert isinstance(store, KeepsSnapshots)
        return store

    def damage(self, place: Path, name: str) -> bool:
        """Cut the file."""
        (place / "state" / "pools" / f"{name}.xml").write_text("<pool")
        return True

    async def settle(self) -> None:
        """A folder's time is as fine as a tick of the kernel."""
        await asyncio.sleep(0.01)


class TestMemoryStore(StoreConformance):
    """Dicts."""

    async def make_store(self, place: Path) -> Store:
        """The clients are one object."""
        self.shared = getattr(self, "shared", None) or MemoryStore()
        assert isinstance(self.shared, KeepsSnapshots)
        return self.shared
