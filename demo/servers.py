"""Pools on a private Gluster, each volume once by gfapi and once by FUSE, and images of more formats."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
from pathlib import Path

from astore.cli.demo_storage import IMAGE_SIZE, DemoStorage
from astore.cli.interruptions import interruptions_wait
from astore.cli.progress import Ticker
from astore.errors import reason
from astore.images.blank import Template, make_images
from astore.model import Host, PoolDef, Source, Target
from beds import BedUnavailable, fuse, gluster, images, namespace
from demo.ceph import make_ceph_pool

GLUSTER_VOLUMES = 2


def make_everything(storage: DemoStorage, pools: int, *, with_gluster: bool, with_ceph: bool) -> None:
    """Create folders and, if possible, volumes of a private Gluster and images of a private Ceph; say why there are none.

    :param pools: how many folders. :param with_gluster: whether to try. :param with_ceph: the same.
    """
    # first: namespaces need a process with one thread, and a progress display starts another
    problem = private_machine() if with_gluster else "left out, as asked for"
    storage.make_folders(pools)
    if problem is None:
        problem = make_gluster_pools(storage)
    if problem is not None:
        storage.output.line(f"Gluster: {problem}.", "yellow" if with_gluster else "dim")
    if with_ceph and (problem := make_ceph_pool(storage)) is not None:
        storage.output.line(f"Ceph: {problem}.", "yellow")


def fill(folder: Path, count: int) -> None:
    """Make images in a folder; with qemu-img, of more formats than ``astore demo``."""
    formats = ("qcow2", "raw", "qcow2", "vmdk", "vdi") if shutil.which("qemu-img") else ("qcow2", "raw", "qcow2")
    make_images(folder, count, size=IMAGE_SIZE, backing_every=2, formats=formats, template=_undisturbed)


def _undisturbed(kind: str, size: int, backing: str | None, backing_format: str | None) -> Template:
    with interruptions_wait():  # qemu-img works in a temporary folder
        return images.template(kind, size, backing, backing_format)


def private_machine() -> str | None:
    """Enter private namespaces for a Gluster; return a sentence if that is impossible."""
    if os.geteuid() != 0:
        return (
            "as root this demonstration also starts a private Gluster and refreshes the same volumes over gfapi "
            "and over a FUSE mount"
        )
    lacking = [name for name in ("astore_gluster", "astore_netfs") if importlib.util.find_spec(name) is None]
    if lacking:
        return (
            f"its plugins are not installed: pip install 'astore[gluster,netfs]' (there is no {', no '.join(lacking)})"
        )
    if why := gluster.missing():
        return f"{why}, so dir pools alone"
    if not os.path.exists("/dev/fuse"):
        return "there is no /dev/fuse, so dir pools alone"
    try:
        namespace.enter_private_namespaces()
    except (BedUnavailable, OSError) as error:
        return f"{reason(error).rstrip('.')}; so dir pools alone"
    return None


def make_gluster_pools(storage: DemoStorage) -> str | None:
    """Create volumes of a private Gluster, each as two pools: by gfapi without a mount, and mounted by FUSE.

    :returns: why there are none; a failed attempt leaves nothing behind.
    """
    made: list[tuple[Path, PoolDef, PoolDef]] = []
    with Ticker() as ticker, contextlib.ExitStack() as own:
        ticker.begin("starting a private Gluster", GLUSTER_VOLUMES)
        try:
            bed = own.enter_context(gluster.GlusterBed(storage.folder / "gluster"))
            own.callback(_release_mounts, storage.folder)  # unmount its volumes before it stops
            for number in range(1, GLUSTER_VOLUMES + 1):
                made.append(_make_volume(storage, bed, f"vol{number}"))
                ticker.step()
        except (RuntimeError, OSError) as error:
            return f"{reason(error).rstrip('.')}; so dir pools alone"
        storage.stack.push(own.pop_all())
    for mounted, *pools in made:
        storage.add(mounted, *pools)
    storage.output.line(
        f"A private Gluster with {GLUSTER_VOLUMES} volumes, {storage.images} images on each "
        "(put there through a FUSE mount)"
    )
    return None


def _make_volume(storage: DemoStorage, bed: gluster.GlusterBed, volume: str) -> tuple[Path, PoolDef, PoolDef]:
    bed.create_volume(volume)
    mounted = bed.mount(volume)
    storage.fill(mounted)
    over_gfapi = PoolDef(
        type="gluster", name=f"{volume}-gfapi", source=Source(hosts=(Host(bed.host),), name=volume, directory="/")
    )
    over_fuse = PoolDef(
        type="netfs",
        name=f"{volume}-fuse",
        source=Source(hosts=(Host(bed.host),), directory=volume, format="glusterfs"),
        target=Target(path=str(storage.folder / "mounts" / volume)),
    )
    return mounted, over_gfapi, over_fuse


def _release_mounts(folder: Path) -> None:
    """Unmount the mounts that are left: an interrupted demonstration may not have stopped its pools."""
    for mounted in reversed(fuse.mounts(folder)):
        fuse.release(mounted.target)
