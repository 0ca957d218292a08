"""RbdPool: the images of a pool, as a block pool."""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from collections.abc import Sequence as _Sequence
from typing import NamedTuple, TypeVar

from astore.backend import Lane
from astore.blocks import Block, BlockPool, BlockVolume
from astore.cancellation import in_a_thread
from astore.model import EntryError, VolumeDef
from astore_rbd.cluster import Cluster
from astore_rbd.images import cloning
from astore_rbd.images.image import RbdVolume
from astore_rbd.images.listing import Listing
from astore_rbd.librbd import checked
from astore_rbd.naming import key_of

T = TypeVar("T")

_MAKING: set[str] = set()
"""The hidden names of images that a thread of this process is making, perhaps later than its caller waited."""


class _Link(NamedTuple):
    """A connection, and what was listed through it."""

    cluster: Cluster
    listing: Listing


class RbdPool(BlockPool):
    """The images of a pool, or of a namespace in it. All calls block.

    A client that the cluster shut out (its blocklist) stays shut out for as long as its connection lasts, so the pool connects
    anew then.

    :param connect: makes a connection; called again for each that the cluster shut out. :param cluster: the first one.
    :param lane: the pool's. :param source: the source's name. :param allocation: read object maps, which tell how much
        storage each image takes; otherwise an image counts as if all of it were written.
    """

    def __init__(
        self, connect: Callable[[], Cluster], cluster: Cluster, lane: Lane, source: str, *, allocation: bool
    ) -> None:
        self.device: str = cluster.device
        self._connect = connect
        self._lane = lane
        self._source = source
        self._allocation = allocation
        self._listing = threading.Lock()
        self._connecting = threading.Lock()
        self._lock = threading.Lock()  # never held for long
        self._closed = False
        self._link = _Link(cluster, Listing(cluster, allocation=allocation))

    # ------------------------------------------------------------------------------------------------- the connection

    @contextlib.contextmanager
    def _linked(self) -> Iterator[_Link]:
        """Yield the present connection, and keep it open. :raises OSError: EBADF: the pool is closed."""
        with self._lock:
            link = self._link
            link.cluster.hold()
        try:
            yield link
        finally:
            link.cluster.drop()

    @contextlib.contextmanager
    def _used(self) -> Iterator[Cluster]:
        """Yield the present connection, and keep it open."""
        with self._linked() as link:
            yield link.cluster

    def _let_in(self, call: Callable[[_Link], T]) -> T:
        """Make a call that changes nothing, and once more on a new connection if the cluster shut this client out."""
        with self._linked() as link:
            try:
                return call(link)
            except OSError as error:
                if error.errno != errno.ESHUTDOWN:
                    raise
        self._renew(link)
        with self._linked() as link:
            return call(link)

    def _renew(self, old: _Link) -> None:
        """Connect anew, unless another thread did.

        :raises OSError: the cluster does not answer, or lets this machine in no more; the old connection stays.
        """
        with self._connecting:
            if self._link is not old:
                return
            if self._closed or self._lane.given_up:
                raise OSError(errno.EBADF, "the pool is closed, or nobody waits for it")
            cluster = self._connect()
            with self._lock:
                if not self._closed:
                    self._link = _Link(cluster, Listing(cluster, allocation=self._allocation))
                    self.device = cluster.device
            if self._link is old:
                cluster.close()
                raise OSError(errno.EBADF, "the pool is closed")
        in_a_thread(old.cluster.close)  # librados may wait for servers; open images keep it until they are closed

    def _step(self) -> None:
        """End a long call for whose end nobody waits any more. :raises TimeoutError: so it is."""
        if self._lane.given_up:
            raise TimeoutError("nobody waits for this any more")

    def close(self) -> None:
        with self._lock:
            self._closed = True
            cluster = self._link.cluster
        cluster.close()

    # ----------------------------------------------------------------------------------------------------- the images

    def key(self, name: str) -> str:
        return key_of(self._source, name)

    def sizes(self) -> tuple[int, int, int]:
        with self._used() as cluster:
            return cluster.sizes()

    def list(self, known: Mapping[str, Block]) -> _Sequence[Block | EntryError]:
        turn = self._lane.turn()

        def step() -> None:
            turn.step()
            self._step()

        def listed(link: _Link) -> list[Block | EntryError]:
            with turn:
                return link.listing.run(known, step)

        with self._listing:
            return self._let_in(listed)

    def look(self, name: str) -> Block | EntryError | None:
        return self._let_in(lambda link: link.listing.look(name))

    def open(self, name: str, write: bool) -> RbdVolume:
        return self._let_in(lambda link: RbdVolume(link.cluster, os.fsencode(name), write=write))

    def create(self, name: str, size: int, definition: VolumeDef) -> None:
        encoded = os.fsencode(name)
        with self._used() as cluster, _making(name):
            with cloning.options(cluster) as options:
                checked(cluster.lib.rbd_create4(cluster.io, encoded, size, options))
            if not definition.allocation:
                return
            try:
                with RbdVolume(cluster, encoded, write=True).closing() as image:
                    image.allocate(0, definition.allocation, self._step)
            except BaseException:
                with contextlib.suppress(OSError):
                    cloning.remove(cluster, encoded)
                raise

    def clone(self, source: Block, name: str, size: int, definition: VolumeDef) -> None:
        """Make a clone that reads through a new snapshot of an image; see :class:`astore.blocks.ClonesBlocks`."""
        with self._used() as cluster, _making(name):
            cloning.clone(cluster, os.fsencode(source.name), source.id, os.fsencode(name), size)

    def remove(self, name: str, id: int | None = None) -> None:
        if name in _MAKING:  # its header, which comes last, would stay
            raise OSError(errno.EBUSY, "it is being made")
        with self._used() as cluster:
            cloning.remove(cluster, os.fsencode(name), id)

    def resize(self, volume: BlockVolume, size: int, allocate: bool) -> None:
        assert isinstance(volume, RbdVolume)
        volume.resize(size, self._step if allocate else None)

    def users(self, volume: BlockVolume) -> _Sequence[str]:
        assert isinstance(volume, RbdVolume)
        return volume.users()

    def rename(self, old: str, new: str) -> None:
        with self._used() as cluster:
            checked(cluster.lib.rbd_rename(cluster.io, os.fsencode(old), os.fsencode(new)))


@contextlib.contextmanager
def _making(name: str) -> Iterator[None]:
    """Keep an image that is being made from being removed."""
    _MAKING.add(name)
    try:
        yield
    finally:
        _MAKING.discard(name)
