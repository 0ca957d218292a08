"""What the demonstration works on: real images in a temporary folder and, as root, on a private Gluster. Blocking code.

Everything is made inside a ``with`` and gone after it, also after Ctrl-C.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from astore.cli.interruptions import interruptions_wait
from astore.cli.output import Output
from astore.cli.progress import Ticker
from astore.errors import reason
from astore.model import Host, PoolDef, Source, Target
from beds import BedUnavailable, fuse, gluster, namespace
from beds.images import make_images, template

IMAGE_SIZE = 10 << 30
GROWTH = 1 << 30
GLUSTER_VOLUMES = 2
SETTLE_SECONDS = 1.1


class Change(NamedTuple):
    """What was done to a folder: the names of the image added, the one grown, the one removed."""

    added: str
    grown: str
    removed: str


class DemoStorage:
    """A temporary folder with images, and the pools that are to be defined on them.

    :param output: where to say what is being done. :param gluster: whether to try. :param pools: how many folders.
    :param images: how many images in each folder and on each Gluster volume.

    :ivar definitions: what to define. :ivar folders: where to change something, by the names of the pools that will see it.
    """

    def __init__(self, output: Output, *, gluster: bool, pools: int, images: int) -> None:
        self._output = output
        self._gluster_wanted = gluster
        self._pools = pools
        self._images = images
        self._stack = contextlib.ExitStack()
        self.definitions: list[PoolDef] = []
        self.folders: dict[tuple[str, ...], Path] = {}
        self._made = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with Ticker() as ticker:
            ticker.begin("taking everything away")
            self._stack.close()

    def make(self) -> None:
        """Make it all. Whatever was made before this raised, or was interrupted, is taken away by ``__exit__``."""
        # before anything else: namespaces are for a process with one thread, and a progress display has its own
        problem = _private_machine() if self._gluster_wanted else "left out, as asked for"
        with interruptions_wait():  # there is no moment at which it is there and nobody knows of it
            self.folder = Path(tempfile.mkdtemp(prefix="astore-demo-"))
            self._stack.callback(shutil.rmtree, self.folder, ignore_errors=True)
        self._make_dir_pools()
        if problem is None:
            problem = self._make_gluster_pools()
        if problem is not None:
            self._output.line(f"Gluster: {problem}.", "yellow" if self._gluster_wanted else "dim")
        self._made = time.monotonic()

    def seconds_to_settle(self) -> float:
        """How long to wait yet: images younger than a second are not trusted, and would be read again."""
        return max(0.0, self._made + SETTLE_SECONDS - time.monotonic())

    @property
    def state_dir(self) -> Path:
        """The demonstration's own state folder."""
        return self.folder / "state"

    def _make_dir_pools(self) -> None:
        with Ticker() as ticker:
            ticker.begin("making images", self._pools)
            for number in range(1, self._pools + 1):
                folder = self.folder / f"images{number:02}"
                folder.mkdir()
                _fill(folder, self._images)
                self.definitions.append(PoolDef(type="dir", name=folder.name, target=Target(path=str(folder))))
                self.folders[(folder.name,)] = folder
                ticker.step()
        self._output.line(f"{self._pools} folders with {self._images} images each, in {self.folder}")

    def _make_gluster_pools(self) -> str | None:
        """Volumes of a private Gluster, each as two pools: over gfapi without a mount, and mounted by FUSE.

        :returns: why there are none, if it does not work; nothing of it is left then.
        """
        made: list[tuple[Path, PoolDef, PoolDef]] = []
        with Ticker() as ticker, contextlib.ExitStack() as own:
            ticker.begin("starting a private Gluster", GLUSTER_VOLUMES)
            try:
                bed = own.enter_context(gluster.GlusterBed(self.folder / "gluster"))
                own.callback(_release_mounts, self.folder)  # what was mounted from it must go before it does
                for number in range(1, GLUSTER_VOLUMES + 1):
                    made.append(self._make_volume(bed, f"vol{number}"))
                    ticker.step()
            except (RuntimeError, OSError) as error:
                return f"{reason(error).rstrip('.')}; so dir pools alone"
            self._stack.push(own.pop_all())
        for mounted, *pools in made:
            self.definitions += pools
            self.folders[tuple(pool.name for pool in pools)] = mounted
        self._output.line(
            f"A private Gluster with {GLUSTER_VOLUMES} volumes, {self._images} images on each (put there through a FUSE mount)"
        )
        return None

    def _make_volume(self, bed: gluster.GlusterBed, volume: str) -> tuple[Path, PoolDef, PoolDef]:
        bed.create_volume(volume)
        mounted = bed.mount(volume)
        _fill(mounted, self._images)
        over_gfapi = PoolDef(
            type="gluster", name=f"{volume}-gfapi", source=Source(hosts=(Host(bed.host),), name=volume, directory="/")
        )
        over_fuse = PoolDef(
            type="netfs",
            name=f"{volume}-fuse",
            source=Source(hosts=(Host(bed.host),), directory=volume, format="glusterfs"),
            target=Target(path=str(self.folder / "mounts" / volume)),
        )
        return mounted, over_gfapi, over_fuse


def change(folder: Path) -> Change:
    """Add an image, grow one, remove one."""
    names = sorted(os.listdir(folder))
    grown = next(name for name in names if name.endswith(".raw"))
    done = Change("new.qcow2", grown, names[-1])
    template("qcow2", IMAGE_SIZE, names[0], "qcow2").write(folder / done.added)
    os.truncate(folder / done.grown, IMAGE_SIZE + GROWTH)
    (folder / done.removed).unlink()
    return done


def _fill(folder: Path, images: int) -> None:
    formats = ("qcow2", "raw", "qcow2", "vmdk", "vdi") if shutil.which("qemu-img") else ("qcow2", "raw", "qcow2")
    make_images(folder, images, size=IMAGE_SIZE, backing_every=2, formats=formats, undisturbed=interruptions_wait)


def _private_machine() -> str | None:
    """Enter private namespaces for a Gluster; else say in a sentence why there is none."""
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


def _release_mounts(folder: Path) -> None:
    """Unmount what is still mounted there: an interrupted demonstration may not have stopped its pools."""
    for mounted in reversed(fuse.mounts(folder)):
        fuse.release(mounted.target)
