"""The storage of the soak: two hundred pools of all types on real servers, and what can go wrong with them."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import os
import random
import subprocess
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from iscsi_support import MIB
from iscsi_support import definition_of as iscsi_definition_of

from beds import fuse
from beds.ceph import CephBed, CephCommandError
from beds.gluster import GlusterBed
from beds.iscsi import IscsiBed, Target, TgtError
from tests.rbd.clients import definition_of

DIRS, SERVED, MOUNTED, SMALL, NAMESPACES, TARGETS = 120, 60, 4, 6, 6, 4
"""How many pools there are: of the types dir, gluster, netfs, dir on small file systems, rbd and iscsi-direct."""

UNITS = 3
"""LUNs of a target."""

Look = Callable[[], dict[str, int]]


def on_disk(kept: Path) -> dict[str, int]:
    return {one.name: one.stat().st_size for one in os.scandir(kept) if one.name != ".glusterfs"}


def uncover(target: Path) -> None:
    """Take the cover away, and what a pool that was started at the same moment has mounted on it. Blocks."""

    def covered() -> bool:
        lines = Path("/proc/self/mountinfo").read_text().splitlines()
        return any(f" {target} " in line and " tmpfs cover " in line for line in lines)

    while covered():
        subprocess.run(["umount", "-l", os.fspath(target)], check=True, timeout=200)


class Storage:
    """The definitions of the pools, and what can go wrong with them.

    :ivar documents: the definitions, each with what tells the names and sizes in bytes that are there, without astore.
    """

    def __init__(self, gluster: GlusterBed, ceph: CephBed, iscsi: IscsiBed, folder: Path) -> None:
        self.gluster = gluster
        self.ceph = ceph
        self.iscsi = iscsi
        self.folder = folder
        self.documents: list[tuple[str, Look]] = []
        self.targets: list[Target] = []
        self.mounts: list[Path] = []
        self.small: list[Path] = []

    def prepare(self) -> None:
        """Make folders, small file systems and volumes. Blocks."""
        for number in range(DIRS + SMALL):
            folder = self.folder / f"d{number}"
            folder.mkdir()
            if number >= DIRS:
                self.small.append(folder)
                subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "small", folder], check=True)
                folder = folder / "images"  # what fills the file system is no volume
                folder.mkdir()
            self._document("dir", f"d{number}", f"<target><path>{folder}</path></target>", folder)
        served, mounted = "soak-served", "soak-mounted"
        for name in (served, *(f"{mounted}{number}" for number in range(MOUNTED))):
            self.gluster.create_volume(name, options={"network.ping-timeout": 5})
        root = self.gluster.mount(served)
        for number in range(SERVED):
            (root / f"g{number}").mkdir()
            source = f"<host name='{self.gluster.host}'/><dir path='/g{number}'/><name>{served}</name>"
            self._document(
                "gluster", f"g{number}", f"<source>{source}</source>", self.gluster.brick(served) / f"g{number}"
            )
        for number in range(MOUNTED):
            target = self.folder / f"n{number}"
            target.mkdir()
            self.mounts.append(target)
            source = f"<host name='{self.gluster.host}'/><dir path='{mounted}{number}'/><format type='glusterfs'/>"
            rest = f"<source>{source}</source><target><path>{target}</path></target>"
            self._document("netfs", f"n{number}", rest, self.gluster.brick(f"{mounted}{number}"))
        self._prepare_blocks()

    def _prepare_blocks(self) -> None:
        self.ceph.create_pool("soak")
        for number in range(NAMESPACES):
            where = f"soak/r{number}"
            self.ceph.rbd("namespace", "create", where)
            document = definition_of(self.ceph, where, f"r{number}").to_xml()
            self.documents.append((document, functools.partial(self._images, where)))
        for number in range(TARGETS):
            target = self.iscsi.new_target()
            self.targets.append(target)
            for unit in range(1, UNITS + 1):
                target.add_lun(unit, MIB)
            document = iscsi_definition_of(target, f"i{number}").to_xml()
            self.documents.append((document, lambda: {f"unit:0:0:{unit}": MIB for unit in range(1, UNITS + 1)}))

    def _images(self, where: str) -> dict[str, int]:
        """What is there, without images whose removal was cut off: their data may be gone, and no pool shows them."""
        found = json.loads(self.ceph.rbd("ls", "--long", "--format", "json", where))
        pool, _, namespace = where.partition("/")
        with contextlib.suppress(CephCommandError):  # nothing was ever removed
            removing = self.ceph.run("rados", "-p", pool, "-N", namespace, "listomapkeys", "rbd_trash").split()
            found = [one for one in found if f"id_{one['id']}" not in removing]
        return {one["image"]: one["size"] for one in found if "snapshot" not in one}

    def _document(self, kind: str, name: str, rest: str, kept: Path) -> None:
        self.documents.append(
            (f"<pool type='{kind}'><name>{name}</name>{rest}</pool>", functools.partial(on_disk, kept))
        )

    def end(self) -> None:
        """Take all away again. Blocks."""
        for target in self.mounts:
            fuse.release(target)
        for folder in self.small:
            subprocess.run(["umount", "-l", folder], check=True)
        for name in ("soak-served", *(f"soak-mounted{number}" for number in range(MOUNTED))):
            self.gluster.delete_volume(name)
        for target in self.targets:
            target.delete()

    # ------------------------------------------------------------------------------------------------------ faults

    @contextlib.asynccontextmanager
    async def brick_killed(self, rng: random.Random) -> AsyncIterator[None]:
        name = rng.choice(["soak-served", *(f"soak-mounted{number}" for number in range(MOUNTED))])
        await asyncio.to_thread(self.gluster.kill_brick, name)
        try:
            yield
        finally:
            await asyncio.to_thread(self.gluster.start_volume, name, force=True)

    @contextlib.asynccontextmanager
    async def client_stopped(self, rng: random.Random) -> AsyncIterator[None]:
        target = rng.choice(self.mounts)
        with contextlib.suppress(LookupError, OSError):  # it is not mounted at the moment
            await asyncio.to_thread(fuse.freeze, target)
        try:
            yield
        finally:
            with contextlib.suppress(LookupError, OSError):
                await asyncio.to_thread(fuse.thaw, target)

    @contextlib.asynccontextmanager
    async def mount_covered(self, rng: random.Random) -> AsyncIterator[None]:
        target = rng.choice(self.mounts)
        mount = ["mount", "-t", "tmpfs", "cover", os.fspath(target)]
        await asyncio.to_thread(subprocess.run, mount, check=True, timeout=200)
        try:
            yield
        finally:
            await asyncio.to_thread(uncover, target)

    @contextlib.asynccontextmanager
    async def disk_full(self, rng: random.Random) -> AsyncIterator[None]:
        filler = rng.choice(self.small) / "filler"

        def fill() -> None:
            with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
                while True:
                    file.write(bytes(1 << 16))

        await asyncio.to_thread(fill)
        try:
            yield
        finally:
            await asyncio.to_thread(filler.unlink)

    @contextlib.asynccontextmanager
    async def osd_stopped(self, rng: random.Random) -> AsyncIterator[None]:
        await asyncio.to_thread(self.ceph.pause, "osd")
        try:
            yield
        finally:
            await asyncio.to_thread(self.ceph.resume, "osd")

    @contextlib.asynccontextmanager
    async def monitor_stopped(self, rng: random.Random) -> AsyncIterator[None]:
        await asyncio.to_thread(self.ceph.pause, "mon")
        try:
            yield
        finally:
            await asyncio.to_thread(self.ceph.resume, "mon")

    @contextlib.asynccontextmanager
    async def target_stopped(self, rng: random.Random) -> AsyncIterator[None]:
        self.iscsi.freeze()
        try:
            yield
        finally:
            self.iscsi.thaw()

    @contextlib.asynccontextmanager
    async def target_shut(self, rng: random.Random) -> AsyncIterator[None]:
        target = rng.choice(self.targets)
        try:
            with contextlib.suppress(TgtError):  # a connection that ended by itself
                await asyncio.to_thread(target.shut)
            yield
        finally:
            await asyncio.to_thread(target.open)

    @property
    def faults(self) -> list[Callable[[random.Random], contextlib.AbstractAsyncContextManager[None]]]:
        """What can go wrong, and is right again after the block."""
        return [
            self.brick_killed,
            self.client_stopped,
            self.mount_covered,
            self.disk_full,
            self.osd_stopped,
            self.monitor_stopped,
            self.target_stopped,
            self.target_shut,
        ]
