"""The storage of ``astore demo``: a temporary folder with images, and definitions of pools on it. Blocking code.

Leaving the ``with`` block of :class:`DemoStorage` removes everything, also after Ctrl-C.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, Self

from astore.cli.interruptions import interruptions_wait
from astore.cli.output import Output
from astore.cli.progress import Ticker
from astore.images.blank import make_images, qcow2_by_hand
from astore.model import PoolDef, Target

IMAGE_SIZE = 10 << 30
GROWTH = 1 << 30
SETTLE_SECONDS = 1.1


class Change(NamedTuple):
    """A change to a folder: the names of the image added, the image grown and the image removed."""

    added: str
    grown: str
    removed: str


def fill_by_hand(folder: Path, images: int) -> None:
    """Make qcow2 and raw images in a folder, every fourth on top of the first."""
    make_images(folder, images, size=IMAGE_SIZE, backing_every=2, formats=("qcow2", "raw", "qcow2"))


class DemoStorage:
    """A temporary folder with images, and the definitions of pools on them.

    :param output: where to report progress. :param images: how many images each folder gets.
    :param fill: makes that many images in a folder.

    :ivar folder: the temporary folder. :ivar stack: undoes everything, in reverse order.
    :ivar definitions: the pools to define. :ivar folders: the folders of images, by the names of the pools on them.
    """

    folder: Path

    def __init__(self, output: Output, images: int, fill: Callable[[Path, int], None] = fill_by_hand) -> None:
        self.output = output
        self.images = images
        self.stack: contextlib.ExitStack = contextlib.ExitStack()
        self.definitions: list[PoolDef] = []
        self.folders: dict[tuple[str, ...], Path] = {}
        self._fill = fill
        self._filled = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with interruptions_wait(), Ticker() as ticker:
            ticker.begin("taking everything away")
            self.stack.close()

    def make_place(self) -> None:
        """Make the temporary folder."""
        with interruptions_wait():  # an interruption in between would leave the folder behind
            self.folder = Path(tempfile.mkdtemp(prefix="astore-demo-"))
            self.stack.callback(shutil.rmtree, self.folder, ignore_errors=True)

    def make_folders(self, count: int) -> None:
        """Make folders of images, and define a dir pool on each."""
        with Ticker() as ticker:
            ticker.begin("making images", count)
            for number in range(1, count + 1):
                folder = self.folder / f"images{number:02}"
                folder.mkdir()
                self.fill(folder)
                self.add(folder, PoolDef(type="dir", name=folder.name, target=Target(path=str(folder))))
                ticker.step()
        self.output.line(f"{count} folders with {self.images} images each, in {self.folder}")

    def fill(self, folder: Path) -> None:
        """Make the images in a folder."""
        self._fill(folder, self.images)
        self._filled = time.monotonic()

    def add(self, folder: Path, *pools: PoolDef) -> None:
        """Add definitions of pools that all show the same folder."""
        self.definitions += pools
        self.folders[tuple(pool.name for pool in pools)] = folder

    def seconds_to_settle(self) -> float:
        """Return the seconds left until all images are a second old. A refresh reads younger ones again."""
        return max(0.0, self._filled + SETTLE_SECONDS - time.monotonic())


def change(folder: Path) -> Change:
    """Add an image, grow one and remove one in a folder."""
    names = sorted(os.listdir(folder))
    grown = next(name for name in names if name.endswith(".raw"))
    done = Change("new.qcow2", grown, names[-1])
    qcow2_by_hand(IMAGE_SIZE, names[0], "qcow2").write(folder / done.added)
    os.truncate(folder / done.grown, IMAGE_SIZE + GROWTH)
    (folder / done.removed).unlink()
    return done
