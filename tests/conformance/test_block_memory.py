"""The pool types of examples/blocks, volumes in memory by blocking calls and by coroutines, and the conformance suite."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from memory_blocks import memory

from astore.model import PoolDef, Source
from astore.registry import BackendRegistry
from astore.testing.conformance import BackendConformance, SourceUnderTest
from astore.testing.conformance.source import BREAK, CONTROL


class MemorySource(SourceUnderTest):
    """A storage in memory."""

    can = frozenset({CONTROL, BREAK})

    def __init__(self, type: str, name: str, source: str) -> None:
        self.definition = PoolDef(type=type, name=name, source=Source(name=source))
        self.storage = memory.STORAGES.setdefault(source, memory.Storage(source))

    async def put(self, name: str, data: bytes) -> None:
        """Make a volume with this content, and another in the place of one that is there."""
        with self.storage.lock:
            self.storage.images.pop(name, None)
            image = self.storage.create(name, len(data))
            image.write(memoryview(data), 0)

    async def remove(self, name: str) -> None:
        """Remove a volume."""
        with self.storage.lock:
            del self.storage.images[name]

    async def names(self) -> set[str]:
        """All names."""
        return set(self.storage.images)

    async def content(self, name: str) -> bytes:
        """What is in a volume."""
        with self.storage.lock:
            image = self.storage.images[name]
            buffer = bytearray(image.size)
            image.read_into(memoryview(buffer), 0)
            return bytes(buffer)

    async def break_(self) -> None:
        """No call is answered any more but by an error."""
        self.storage.broken = True

    async def mend(self) -> None:
        """All are."""
        self.storage.broken = False

    async def aclose(self) -> None:
        """Forget the storage."""
        memory.STORAGES.pop(self.storage.name, None)


class TestBlockingCalls(BackendConformance):
    """A backend whose calls block."""

    source_class = MemorySource
    backend_class: ClassVar[Any] = memory.MemoryBackend
    many = 1000

    def make_source(self, folder: Path) -> MemorySource:
        """An empty storage."""
        return MemorySource("memory", folder.name, str(folder))

    def make_registry(self) -> BackendRegistry:
        """One that knows the backend."""
        registry = BackendRegistry()
        registry.register(self.backend_class())
        return registry


class TestCoroutines(TestBlockingCalls):
    """A backend whose calls are coroutines."""

    backend_class = memory.MemoryOnTheLoopBackend
