"""Run astore's conformance suite on the pool type ``zip``: a backend is finished when it passes."""

import asyncio
import os
import time
import zipfile
from collections.abc import Mapping
from pathlib import Path

from astore import Device, PoolDef, Source
from astore.testing.conformance import BackendConformance, SourceUnderTest


class ArchiveSource(SourceUnderTest):
    """An archive that is changed without astore: it is written again and renamed into place."""

    can = frozenset({"images", "directories", "control", "break"})

    def __init__(self, folder: Path) -> None:
        self.archive, self.away = folder / "images.zip", folder / "images.away"
        self.definition = PoolDef("zip", folder.name, source=Source(devices=(Device(str(self.archive)),)))
        self.members: dict[str, tuple[time.struct_time, bytes]] = {}
        self._write()

    async def put(self, name: str, data: bytes) -> None:
        await self.put_all({name: data})

    async def put_all(self, files: Mapping[str, bytes]) -> None:
        now = time.localtime()
        self.members.update((name, (now, data)) for name, data in files.items())
        await asyncio.to_thread(self._write)

    async def mkdir(self, name: str) -> None:
        await self.put(f"{name}/", b"")

    async def remove(self, name: str) -> None:
        del self.members[name if name in self.members else f"{name}/"]
        await asyncio.to_thread(self._write)

    async def break_(self) -> None:
        await asyncio.to_thread(os.rename, self.archive, self.away)

    async def mend(self) -> None:
        if await asyncio.to_thread(self.away.exists):
            await asyncio.to_thread(os.rename, self.away, self.archive)

    def _write(self) -> None:
        new = self.archive.with_suffix(".new")
        with zipfile.ZipFile(new, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, (at, data) in self.members.items():
                archive.writestr(zipfile.ZipInfo(name, at[:6]), data)
        os.rename(new, self.archive)


class TestZip(BackendConformance):
    """Run the conformance suite on archives of this machine."""

    source_class = ArchiveSource

    def make_source(self, folder: Path) -> ArchiveSource:
        """Make an empty archive."""
        return ArchiveSource(folder)
