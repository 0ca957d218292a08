"""The resources that all rows share: a folder, the real servers, a Manager."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

import astore
from beds.gluster import GlusterBed
from beds.images import make_images
from benchmarks.row import Row
from benchmarks.sides import Libvirt, Limit, say


class Bench:
    """The resources that all rows share: a folder, a Gluster, a libvirt, a Manager; each made when first needed."""

    def __init__(self, folder: Path, *, pairs: int, with_libvirt: bool) -> None:
        self.folder = folder
        self.pairs = pairs
        self.with_libvirt = with_libvirt
        self.notes: list[str] = []
        self.mebibytes = 4096
        self._gluster: GlusterBed | None = None
        self._libvirt: Libvirt | None = None
        self._apart: Path | None = None
        self._limit: Limit | None = None
        self._manager: astore.Manager | None = None

    def close(self) -> None:
        if self._libvirt is not None:
            self._libvirt.close()
        if self._gluster is not None:
            self._gluster.close()
        if self._apart is not None:
            subprocess.run(["umount", str(self._apart)], check=False, capture_output=True)

    async def run(self, rows: Mapping[str, Callable[[Bench], Awaitable[list[Row]]]]) -> list[Row]:
        """Measure row by row, each with a Manager of its own."""
        done: list[Row] = []
        for name, measure in rows.items():
            say(f"— {name}")
            async with astore.Manager(self.folder / f"state-{name}") as manager:
                self._manager = manager
                done += await measure(self)
                for pool in manager.pools(active=True):
                    await pool.stop()
            for row in done[-2:]:
                say("  ", row)
        return done

    # ------------------------------------------------------------------------------------------------ the sides

    @property
    def manager(self) -> astore.Manager:
        assert self._manager is not None
        return self._manager

    @property
    def gluster(self) -> GlusterBed:
        if self._gluster is None:
            self._gluster = GlusterBed(self.folder / "gluster")
            self._gluster.start()
        return self._gluster

    def libvirt(self) -> Libvirt | None:
        if not self.with_libvirt:
            return None
        if self._libvirt is None:
            self._libvirt = Libvirt(self.folder / "lv")
            if self._libvirt.why:
                self.notes.append(f"libvirt was not measured: {self._libvirt.why}.")
        return None if self._libvirt.why else self._libvirt

    def apart(self) -> Path:
        """Make a new file system, ext4 if possible: how fast files are created depends on earlier deletions.

        (For minutes ext4 does not reuse the inodes of deleted files, but searches through all of them.)
        """
        folder = self.folder / "apart"
        if not folder.exists():
            folder.mkdir()
            image = self.folder / "apart.img"
            with image.open("wb") as file:
                file.truncate(8 << 30)
            make = ["mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0", str(image)]
            for argv in (make, ["mount", "-o", "loop", str(image), str(folder)]):
                if subprocess.run(argv, check=False, capture_output=True).returncode:
                    self.notes.append(
                        f"volumes were made on the file system of {self.folder.parent}, not on a new one."
                    )
                    break
            else:
                self._apart = folder
        return folder

    def limit(self) -> Limit | None:
        if self._limit is None:
            self._limit = Limit(self.folder)
            if self._limit.why:
                self.notes.append(f"the C limit was not measured: {self._limit.why}.")
        return None if self._limit.why else self._limit

    def fill(self, folder: Path, count: int) -> None:
        began = time.perf_counter()
        make_images(folder, count, backing_every=10)
        say(f"   made {count} images in {time.perf_counter() - began:.1f} s")
