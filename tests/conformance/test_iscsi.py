"""The pool type ``iscsi-direct`` on a real target, and the conformance suite.

The suite's volumes have names, those of a target only numbers. So the pools of these tests have the names that the source gave
to the numbers; everything else is the backend's.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest

from astore.backend import Context, DiskSource, PoolSession, QemuNode
from astore.blocks import Block, BlockPool, BlockVolume, block_session
from astore.model import Device, EntryError, Host, PoolDef, Source, VolumeInfo
from astore.registry import BackendRegistry
from astore.testing.conformance import BackendConformance, SourceUnderTest
from astore.testing.conformance.source import BREAK, CONTROL
from astore_iscsi.backend import IscsiBackend
from astore_iscsi.naming import PREFIX
from beds.iscsi import ADDRESS, IscsiBed, Target

pytestmark = pytest.mark.iscsi

SOURCES: dict[str, LunSource] = {}
"""The sources of this process, by the names of their targets."""


class LunSource(SourceUnderTest):
    """A target whose LUNs have names."""

    can = frozenset({CONTROL, BREAK})

    def __init__(self, bed: IscsiBed, name: str, folder: Path) -> None:
        self.target: Target = bed.new_target()
        self.folder = folder
        self.luns: dict[str, int] = {}
        self.numbers = itertools.count(1)
        self.definition = PoolDef(
            type="iscsi-direct",
            name=name,
            source=Source(
                hosts=(Host(ADDRESS, bed.port),),
                devices=(Device(self.target.iqn),),
                initiator="iqn.2026-01.test.astore:conformance",
            ),
        )
        SOURCES[self.target.iqn] = self

    def name_of(self, number: int) -> str | None:
        return next((name for name, lun in self.luns.items() if lun == number), None)

    def _put(self, name: str, data: bytes) -> None:
        lun = self.luns.get(name)
        if lun is None:
            lun = next(self.numbers)
        else:
            self.target.remove_lun(lun)
        path = self.folder / f"{lun}.img"
        path.write_bytes(data)
        self.target.add_lun(lun, path)
        self.luns[name] = lun

    async def put(self, name: str, data: bytes) -> None:
        """Make a LUN with this content, and another in the place of one that is there."""
        await asyncio.to_thread(self._put, name, data)

    async def remove(self, name: str) -> None:
        """Remove a LUN."""
        await asyncio.to_thread(self.target.remove_lun, self.luns.pop(name))

    async def names(self) -> set[str]:
        """All names."""
        return set(self.luns)

    async def content(self, name: str) -> bytes:
        """What is in a LUN."""
        return await asyncio.to_thread((self.folder / f"{self.luns[name]}.img").read_bytes)

    async def break_(self) -> None:
        """Nobody may log in any more."""
        await asyncio.to_thread(self.target.shut)

    async def mend(self) -> None:
        """Everybody may."""
        await asyncio.to_thread(self.target.open)

    async def aclose(self) -> None:
        """Delete the target."""
        SOURCES.pop(self.target.iqn, None)
        await asyncio.to_thread(self.target.delete)


class NamedPool(BlockPool):
    """A pool with the names of its source in place of numbers."""

    def __init__(self, pool: BlockPool, source: LunSource) -> None:
        self.pool, self.source, self.device = pool, source, pool.device

    def _number(self, name: str) -> str:
        return f"{PREFIX}{self.source.luns.get(name, 9999)}"

    def _named(self, found: Any) -> Any:
        if not isinstance(found, (Block, EntryError)):
            return found
        name = self.source.name_of(int(found.name.removeprefix(PREFIX)))
        return None if name is None else msgspec.structs.replace(found, name=name)

    def key(self, name: str) -> str:
        return self.pool.key(self._number(name))

    async def list(self, known: Mapping[str, Block]) -> list[Block | EntryError]:
        answer: Any = self.pool.list({})
        return [named for one in await answer if (named := self._named(one)) is not None]

    async def look(self, name: str) -> Block | EntryError | None:
        answer: Any = self.pool.look(self._number(name))
        return self._named(await answer)  # type: ignore[no-any-return]

    async def open(self, name: str, write: bool) -> BlockVolume:
        answer: Any = self.pool.open(self._number(name), write)
        return await answer  # type: ignore[no-any-return]

    async def sizes(self) -> tuple[int, int]:
        answer: Any = self.pool.sizes()
        return await answer  # type: ignore[no-any-return]

    async def close(self) -> None:
        answer: Any = self.pool.close()
        await answer


class NamedBackend(IscsiBackend):
    """The backend, with the names of its sources in place of numbers."""

    async def open(self, definition: PoolDef, context: Context) -> PoolSession:
        session: Any = await super().open(definition, context)
        return block_session(NamedPool(session.pool, _source(definition)), context)

    def disk_source(self, definition: PoolDef, volume: VolumeInfo) -> DiskSource:  # type: ignore[override]
        return IscsiBackend.disk_source(definition, _numbered(definition, volume))

    def blockdev(self, definition: PoolDef, volume: VolumeInfo) -> QemuNode:  # type: ignore[override]
        return IscsiBackend.blockdev(definition, _numbered(definition, volume))

    def volume_named(self, definition: PoolDef, location: str) -> str | None:  # type: ignore[override]
        found = IscsiBackend.volume_named(definition, location)
        return None if found is None else _source(definition).name_of(int(found.removeprefix(PREFIX)))


def _source(definition: PoolDef) -> LunSource:
    return SOURCES[definition.source.devices[0].path]


def _numbered(definition: PoolDef, volume: VolumeInfo) -> VolumeInfo:
    return msgspec.structs.replace(volume, name=f"{PREFIX}{_source(definition).luns[volume.name]}")


class TestIscsi(BackendConformance):
    """The disks of a target."""

    source_class = LunSource
    many = 250
    bed: IscsiBed

    @pytest.fixture(autouse=True)
    def _bed(self, iscsi: IscsiBed) -> None:
        self.bed = iscsi

    def make_source(self, folder: Path) -> LunSource:
        """An empty target."""
        return LunSource(self.bed, folder.name, folder)

    def make_registry(self) -> BackendRegistry:
        """One that knows the backend with names."""
        registry = BackendRegistry()
        registry.register(NamedBackend(), replace=True)
        return registry
