"""What tests of volume work on real servers share: volumes in memory, pools on them, and what is really on a brick."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from core_fakes import eventually

from astore.manager import Manager
from astore.model import Host, PoolDef, Source, Target
from beds import namespace

if TYPE_CHECKING:
    from beds.gluster import GlusterBed

MIB = 1 << 20

PATIENCE = 200.0
"""Seconds in which everything here must come to its end, on a loaded machine too."""


@contextlib.contextmanager
def volume_in_memory(
    bed: GlusterBed, name: str, size: int, options: Mapping[str, str | int] | None = None
) -> Iterator[Path]:
    """A started Gluster volume whose one brick is a file system of ``size`` MiB in memory; gives the brick's folder."""
    brick = bed.folder / "node1" / "bricks" / f"{name}.0"
    with contextlib.ExitStack() as stack:
        brick.mkdir()
        stack.callback(brick.rmdir)
        namespace.mount("tmpfs", brick, "tmpfs", data=f"size={size}m")
        stack.callback(namespace.unmount, brick)
        # or Gluster keeps 1 % for itself and looks every 5 s whether there is more, and writes a file every 30 s
        settings = {"storage.reserve": 0, "storage.health-check-interval": 0, **(options or {})}
        bed.create_volume(name, options=settings)
        stack.callback(bed.delete_volume, name)
        yield brick


@contextlib.contextmanager
def volume_on_disk(bed: GlusterBed, name: str, image: Path, size: int = 64) -> Iterator[Path]:
    """As :func:`volume_in_memory`, on an ext4 in the file ``image``, as on a disk of its own: it may be remounted."""
    with image.open("wb") as file:
        file.truncate(size * MIB)
    subprocess.run(["mkfs.ext4", "-q", image], check=True)
    brick = bed.folder / "node1" / "bricks" / f"{name}.0"
    with contextlib.ExitStack() as stack:
        brick.mkdir()
        stack.callback(brick.rmdir)
        subprocess.run(["mount", "-o", "loop", image, brick], check=True)
        stack.callback(subprocess.run, ["umount", brick], check=True)
        (brick / "lost+found").rmdir()
        bed.create_volume(name, options={"storage.reserve": 0})
        stack.callback(bed.delete_volume, name)
        yield brick


def gluster_pool(bed: GlusterBed, volume: str, name: str = "p") -> PoolDef:
    """A pool on a whole volume, through libgfapi."""
    return PoolDef(type="gluster", name=name, source=Source(hosts=(Host(bed.host),), directory="/", name=volume))


def netfs_pool(bed: GlusterBed, volume: str, target: Path, name: str = "p") -> PoolDef:
    """A pool on a whole volume, through a FUSE mount at ``target``."""
    return PoolDef(
        type="netfs",
        name=name,
        source=Source(hosts=(Host(bed.host),), directory=volume, format="glusterfs"),
        target=Target(path=str(target)),
    )


def dir_pool(folder: Path, name: str = "p") -> PoolDef:
    """A pool on a folder."""
    return PoolDef(type="dir", name=name, target=Target(path=str(folder)))


def names_on(brick: Path) -> list[str]:
    """The files of a volume, hidden ones too, as its brick has them."""
    return sorted(name for name in os.listdir(brick) if name != ".glusterfs")


def used_of(folder: Path) -> int:
    """Bytes that are used of a file system."""
    vfs = os.statvfs(folder)
    return (vfs.f_blocks - vfs.f_bfree) * vfs.f_frsize


def idle(manager: Manager) -> bool:
    """Whether no thread is in a call, or stuck in one."""
    return not any(lane.running or lane.stuck or lane.queued for lane in manager.statistics().lanes.lanes)


async def come_to_rest(manager: Manager) -> None:
    """Wait until no thread is in a call any more."""
    await eventually(lambda: idle(manager), "an end of all calls")
