"""The pool type ``netfs`` and the conformance suite, on FUSE mounts of a real Gluster volume."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from astore.model import Host, PoolDef, Source, Target
from astore.testing.conformance import BackendConformance, FolderSource
from astore.testing.conformance.source import EVERYTHING
from beds import fuse
from beds.gluster import UNCACHED, GlusterBed

VOLUME = "netfs-conformance"

UNCACHED_BY_FUSE = ("attribute-timeout=0", "entry-timeout=0", "negative-timeout=0")
"""Mount options with which the kernel asks the client each time."""


class SharedVolume:
    """A Gluster volume of whose folders each is a source, with a mount of its own for the other side."""

    def __init__(self, bed: GlusterBed) -> None:
        self.bed = bed
        bed.create_volume(VOLUME, options=UNCACHED)
        bed.mount(VOLUME)

    def make_folder(self, name: str) -> Path:
        """A fresh folder of the volume, as the other side sees it."""
        folder = self.bed.mount(VOLUME) / name
        folder.mkdir()
        return folder

    def break_(self) -> None:
        """Kill the brick: clients stay, and say that they are not connected."""
        self.bed.unmount(VOLUME)
        self.bed.kill_brick(VOLUME)

    def mend(self) -> None:
        """Start the brick again, and wait until it takes whoever connects; those that were there take some seconds."""
        if self.bed.brick_pids(VOLUME):
            return
        self.bed.start_volume(VOLUME, force=True)
        deadline = time.monotonic() + 120
        while True:
            try:
                self.bed.mount(VOLUME)
                return
            except RuntimeError:
                if time.monotonic() > deadline:
                    raise
            time.sleep(0.1)


class FolderOfVolume(FolderSource):
    """A folder of the shared volume, mounted by the pool for itself."""

    can = EVERYTHING

    def __init__(self, definition: PoolDef, folder: Path, shared: SharedVolume) -> None:
        super().__init__(definition, folder)
        self.shared = shared

    async def break_(self) -> None:
        """Nothing of the volume answers any more."""
        await asyncio.to_thread(self.shared.break_)

    async def mend(self) -> None:
        """The volume answers again."""
        await asyncio.to_thread(self.shared.mend)

    async def aclose(self) -> None:
        """Unmount what a failed test has left. The folder goes with the volume."""
        assert self.definition.target.path is not None
        await asyncio.to_thread(fuse.release, self.definition.target.path)


@pytest.fixture(scope="module")
def shared_volume(gluster: GlusterBed) -> Iterator[SharedVolume]:
    """The volume of all these tests."""
    shared = SharedVolume(gluster)
    try:
        yield shared
    finally:
        gluster.delete_volume(VOLUME)


@pytest.mark.root
@pytest.mark.gluster
@pytest.mark.fuse
class TestNetfs(BackendConformance):
    """Folders of a Gluster volume, each mounted for itself."""

    source_class = FolderOfVolume
    many = 1000

    @pytest.fixture(autouse=True)
    def _use(self, shared_volume: SharedVolume) -> None:
        self.shared = shared_volume

    def make_source(self, folder: Path) -> FolderOfVolume:
        """A fresh folder of the volume, and one to mount it on."""
        name = f"{folder.parent.name}.{folder.name}"
        target = folder / "pool"
        target.mkdir()
        definition = PoolDef(
            type="netfs",
            name=folder.name,
            source=Source(hosts=(Host(self.shared.bed.host),), directory=f"{VOLUME}/{name}", format="glusterfs"),
            target=Target(path=str(target)),
            mount_options=UNCACHED_BY_FUSE,
        )
        return FolderOfVolume(definition, self.shared.make_folder(name), self.shared)
