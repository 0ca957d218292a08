"""The pool type ``gluster`` and the conformance suite, on real volumes."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import re
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from astore.model import Host, PoolDef, Source
from astore.testing.conformance import EVERYTHING, BackendConformance, FolderSource, MovableFolder
from astore.testing.conformance.base import ConformanceBase
from beds import namespace
from beds.processes import wait_until

if TYPE_CHECKING:
    from beds.gluster import GlusterBed

CACHED = 1.2
"""Seconds after which a client has forgotten where a path leads (performance.md-cache-timeout is 1 s)."""

NO_CACHE = ("--attribute-timeout=0", "--entry-timeout=0")

_numbers = itertools.count(1)


@pytest.fixture(scope="module")
def shared_volume(gluster: GlusterBed) -> Iterator[str]:
    """A volume of two bricks (in memory: removing files is slow) with a FUSE mount, a folder of which is a source."""
    name = "conformance"
    with contextlib.ExitStack() as stack:
        for brick in (gluster.folder / "node1" / "bricks" / f"{name}.{n}" for n in range(2)):
            brick.mkdir()
            stack.callback(brick.rmdir)
            namespace.mount("tmpfs", brick, "tmpfs")
            stack.callback(namespace.unmount, brick)
        gluster.create_volume(name, bricks=2)
        stack.callback(gluster.delete_volume, name)
        gluster.mount(name, options=NO_CACHE)
        yield name


def _entries(brick: Path) -> list[Path]:
    """What a brick has of a folder, less the marks that tell where else a file is (mode 1000, size 0)."""
    found = []
    for one in brick.iterdir() if brick.exists() else ():
        st = one.lstat()
        if not (stat.S_ISREG(st.st_mode) and stat.S_IMODE(st.st_mode) == stat.S_ISVTX):
            found.append(one)
    return found


class VolumeFolder(MovableFolder):
    """A folder of a volume, seen through a FUSE mount; it breaks by being moved away."""

    bricks: tuple[Path, ...]
    """The folder in each brick: there is no cache between."""

    async def names(self) -> set[str]:
        """What is in the folder."""
        return await asyncio.to_thread(lambda: {one.name for brick in self.bricks for one in _entries(brick)})

    async def content(self, name: str) -> bytes:
        """What is in a file."""
        return await asyncio.to_thread(
            lambda: next(one for brick in self.bricks for one in _entries(brick) if one.name == name).read_bytes()
        )

    async def break_(self) -> None:
        """Rename the folder, and wait until it is missed."""
        await super().break_()
        await asyncio.sleep(CACHED)


@pytest.mark.root
@pytest.mark.gluster
@pytest.mark.fuse
class TestGluster(BackendConformance):
    """Folders of one volume."""

    source_class = VolumeFolder
    many = 1000  # one takes 7 ms to be made through FUSE

    @pytest.fixture(autouse=True)
    def _volume(self, gluster: GlusterBed, shared_volume: str) -> None:
        self.bed, self.volume = gluster, shared_volume

    def make_source(self, folder: Path) -> VolumeFolder:
        """An empty folder of the volume."""
        directory = f"/source{next(_numbers)}"
        files = self.bed.mount(self.volume) / directory[1:]
        files.mkdir()
        source = Source(hosts=(Host(self.bed.host),), directory=directory, name=self.volume)
        made = VolumeFolder(PoolDef(type="gluster", name=folder.name, source=source), files)
        bricks = self.bed.folder / "node1" / "bricks"
        made.bricks = tuple(bricks / f"{self.volume}.{n}" / directory[1:] for n in range(2))
        return made


class WholeVolume(FolderSource):
    """A volume of its own, which breaks by having its brick killed.

    :param root: where the volume's root is mounted.
    """

    can = EVERYTHING

    def __init__(self, bed: GlusterBed, volume: str, definition: PoolDef, root: Path) -> None:
        super().__init__(definition, root / "files")
        self._bed = bed
        self._volume = volume

    async def break_(self) -> None:
        """Kill the brick."""
        await asyncio.to_thread(self._bed.kill_brick, self._volume)

    async def mend(self) -> None:
        """Start it again, and wait until glusterd would send a client there."""
        await asyncio.to_thread(self._mend)

    def _mend(self) -> None:
        self._bed.start_volume(self._volume, force=True)
        wait_until(self._online, 30, f"the brick of {self._volume} is online", every=0.1)

    def _online(self) -> bool:
        status = self._bed.gluster("volume", "status", self._volume)
        return re.search(r"\s\d+\s+\d+\s+Y\s+\d+", status) is not None


@pytest.mark.root
@pytest.mark.gluster
@pytest.mark.fuse
class TestGlusterWithoutBricks(ConformanceBase):
    """What the suite asks of sources that do not answer, asked of volumes whose bricks are gone."""

    source_class = WholeVolume

    @pytest.fixture(autouse=True)
    def _volume(self, gluster: GlusterBed, volume_factory: Callable[..., str]) -> None:
        self.bed, self.new_volume = gluster, volume_factory

    def make_source(self, folder: Path) -> WholeVolume:
        """A volume with an empty folder in it."""
        volume = self.new_volume()
        root = self.bed.mount(volume, options=NO_CACHE)
        (root / "files").mkdir()
        source = Source(hosts=(Host(self.bed.host),), directory="/files", name=volume)
        return WholeVolume(self.bed, volume, PoolDef(type="gluster", name=folder.name, source=source), root)

    test_source_does_not_answer = BackendConformance.test_source_does_not_answer
    test_stopped_while_it_does_not_answer = BackendConformance.test_stopped_while_it_does_not_answer
    test_attached_while_it_does_not_answer = BackendConformance.test_attached_while_it_does_not_answer
    test_start_without_an_answer = BackendConformance.test_start_without_an_answer
