"""RbdPool: the images of a pool, as a block pool."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Mapping
from collections.abc import Sequence as _Sequence

from astore.backend import Lane
from astore.blocks import Block, BlockPool, BlockVolume
from astore.model import EntryError, VolumeDef
from astore_rbd.cluster import Cluster
from astore_rbd.images import cloning
from astore_rbd.images.image import RbdVolume
from astore_rbd.images.listing import Listing
from astore_rbd.librbd import checked
from astore_rbd.naming import key_of


class RbdPool(BlockPool):
    """The images of a pool, or of a namespace in it. All calls block.

    :param lane: the pool's. :param source: the source's name. :param allocation: read object maps, which tell how much
        storage each image takes; otherwise an image counts as if all of it were written.
    """

    def __init__(self, cluster: Cluster, lane: Lane, source: str, *, allocation: bool) -> None:
        self.cluster = cluster
        self.device: str = cluster.device
        self._lane = lane
        self._source = source
        self._listing = Listing(cluster, allocation=allocation)
        self._lock = threading.Lock()

    def key(self, name: str) -> str:
        return key_of(self._source, name)

    def sizes(self) -> tuple[int, int, int]:
        return self.cluster.sizes()

    def list(self, known: Mapping[str, Block]) -> _Sequence[Block | EntryError]:
        turn = self._lane.turn()

        def step() -> None:
            turn.step()
            if self._lane.given_up:
                raise TimeoutError("nobody waits for this listing any more")

        with self._lock, self.cluster.used(), turn:
            return self._listing.run(known, step)

    def look(self, name: str) -> Block | EntryError | None:
        with self.cluster.used():
            return self._listing.look(name)

    def open(self, name: str, write: bool) -> RbdVolume:
        return RbdVolume(self.cluster, os.fsencode(name), write=write)

    def create(self, name: str, size: int, definition: VolumeDef) -> None:
        encoded = os.fsencode(name)
        with self.cluster.used():
            with cloning.options(self.cluster) as options:
                checked(self.cluster.lib.rbd_create4(self.cluster.io, encoded, size, options))
            if not definition.allocation:
                return
            try:
                with RbdVolume(self.cluster, encoded, write=True).closing() as image:
                    image.allocate(0, definition.allocation)
            except BaseException:
                with contextlib.suppress(OSError):
                    cloning.remove(self.cluster, encoded)
                raise

    def clone(self, source: Block, name: str, size: int, definition: VolumeDef) -> None:
        """Make a clone that reads through a new snapshot of an image; see :class:`astore.blocks.ClonesBlocks`."""
        with self.cluster.used():
            cloning.clone(self.cluster, os.fsencode(source.name), source.id, os.fsencode(name), size)

    def remove(self, name: str) -> None:
        with self.cluster.used():
            cloning.remove(self.cluster, os.fsencode(name))

    def resize(self, volume: BlockVolume, size: int, allocate: bool) -> None:
        assert isinstance(volume, RbdVolume)
        volume.resize(size, allocate)

    def rename(self, old: str, new: str) -> None:
        with self.cluster.used():
            checked(self.cluster.lib.rbd_rename(self.cluster.io, os.fsencode(old), os.fsencode(new)))

    def close(self) -> None:
        self.cluster.close()
