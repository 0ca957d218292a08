"""Open images: read, written, locked; and what only an open image tells, such as its clones and who else has it open."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from astore.blocks import BlockVolume
from astore_rbd import librbd
from astore_rbd.cluster import GRAIN, Cluster
from astore_rbd.images import headers
from astore_rbd.images.headers import Header, Parent, has_map
from astore_rbd.librbd import (
    FEATURE_EXCLUSIVE_LOCK,
    ExtentCallback,
    ImageStat,
    LinkedImageSpec,
    SnapInfo,
    SnapSpec,
    Timespec,
    Watcher,
    checked,
)

MOST = 1 << 30
"""The most bytes of one discard: librbd takes less than 2 GiB."""

PIECE = 2 << 20
"""The most bytes of one write: the servers take longer for a write of a whole object, of 4 MiB, than for its halves."""

AHEAD = 1 << 40
"""Bytes of an image that are asked for data at a time, if its object map tells."""

AHEAD_WITHOUT_MAP = 1 << 30
"""The same, if each object must be asked."""

LOCK_SECONDS = 30.0
"""How long librbd may take to give a lock that no living client has."""

SEARCH_SECONDS = 5.0
"""After this time, a search for data goes on in another call."""

_ZEROS = bytes(4 << 20)


def in_words(clients: Iterable[tuple[int, str]]) -> list[str]:
    """Return clients, given by their numbers and addresses, in words."""
    return sorted({f"client {id} at {address}" for id, address in clients})


class RbdVolume(BlockVolume):
    """An open image. It keeps the connection open.

    :param name: of the image in its pool; bytes. :param by_id: ``name`` is the image's id.
    :param io: the I/O context of another pool of the cluster.
    :raises OSError: ENOENT: there is no such image.
    """

    in_flight = 8

    def __init__(
        self, cluster: Cluster, name: bytes, *, write: bool, by_id: bool = False, io: int | None = None
    ) -> None:
        self.lib: librbd.Librbd = cluster.lib
        lib = self.lib
        self._cluster = cluster
        self._image: int | None = None
        cluster.hold()
        try:
            handle = ctypes.c_void_p()
            opening = lib.rbd_open_by_id if by_id else lib.rbd_open if write else lib.rbd_open_read_only
            checked(opening(cluster.io if io is None else io, name, ctypes.byref(handle), None))
            self._image = handle.value
            self.id: int = headers.number_of(self.image_id())
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        try:
            checked(self._close_image())
        finally:
            self._cluster.drop()

    def _close_image(self) -> int:
        image, self._image = self._image, None
        return 0 if image is None else self.lib.rbd_close(image)

    @contextlib.contextmanager
    def closing(self) -> Iterator[RbdVolume]:
        """Close the image at the end."""
        try:
            yield self
        finally:
            self.close()

    # --------------------------------------------------------------------------------------------------------- bytes

    def size(self) -> int:
        return self._number(self.lib.rbd_get_size)

    def _number(self, function: Callable[..., int]) -> int:
        number = ctypes.c_uint64()
        checked(function(self._image, ctypes.byref(number)))
        return number.value

    def read_into(self, buffer: bytearray | memoryview, offset: int) -> int:
        room = (ctypes.c_char * len(buffer)).from_buffer(buffer)
        done = self.lib.rbd_read(self._image, offset, len(buffer), room)
        if done == -errno.EINVAL and offset >= self.size():
            return 0
        return checked(done)

    def write(self, data: bytes | bytearray | memoryview, offset: int) -> None:
        """Write all pieces at once, from the caller's memory."""
        if isinstance(data, memoryview) and data.readonly:
            data = bytes(data)
        length = data.nbytes if isinstance(data, memoryview) else len(data)
        lent: Any = ctypes.c_char_p(data) if isinstance(data, bytes) else (ctypes.c_char * length).from_buffer(data)
        address = ctypes.cast(lent, ctypes.c_void_p).value or 0
        under_way: list[int] = []
        try:
            for start in range(0, length, PIECE):
                completion = ctypes.c_void_p()
                checked(self.lib.rbd_aio_create_completion(None, None, ctypes.byref(completion)))
                under_way.append(completion.value or 0)
                some = min(PIECE, length - start)
                self.lib.rbd_aio_write(self._image, offset + start, some, address + start, completion)
        finally:
            results = [self._ended(completion) for completion in under_way]
        for result in results:
            checked(result)
        if offset + length > self.size():  # librbd leaves out what is beyond the end
            raise OSError(errno.ENOSPC, "the image ends before the data")

    def _ended(self, completion: int) -> int:
        """Wait for the end of a piece; return its result."""
        self.lib.rbd_aio_wait_for_complete(completion)
        result = self.lib.rbd_aio_get_return_value(completion)
        self.lib.rbd_aio_release(completion)
        return result

    def flush(self) -> None:
        checked(self.lib.rbd_flush(self._image))

    def discard(self, offset: int, length: int) -> None:
        end = offset + length
        first, last = min(-(-offset // GRAIN) * GRAIN, end), end // GRAIN * GRAIN
        for start, stop in ((offset, first), (max(last, first), end)):
            if start < stop:
                self.write(memoryview(_ZEROS)[: stop - start], start)
        while first < last:
            some = min(last - first, MOST)
            checked(self.lib.rbd_discard(self._image, first, some))
            first += some

    def next_data(self, offset: int) -> tuple[int, int] | None:
        features, flags = self._number(self.lib.rbd_get_features), self._number(self.lib.rbd_get_flags)
        mapped = has_map(features, flags)
        size = self.size()
        step = AHEAD if mapped else AHEAD_WITHOUT_MAP
        found: tuple[int, int] | None = None
        until = time.monotonic() + SEARCH_SECONDS
        while offset < size:
            if time.monotonic() > until:
                return found or (
                    offset,
                    min(offset + GRAIN, size),
                )  # it may be data: the caller's next call goes on there
            here = self._data_in(offset, min(step, size - offset), mapped)
            if here is None or (found is not None and here[0] != found[1]):
                if found is not None:
                    return found
            else:
                found = here if found is None else (found[0], here[1])
                if here[1] < offset + step:
                    return found
            offset += step
        return found

    def _data_in(self, offset: int, length: int, mapped: bool) -> tuple[int, int] | None:
        """Return the first range with data within another."""
        found: list[int] = []

        def extent(start: int, some: int, exists: int, _: object) -> int:
            if not exists or not some:
                return 0
            if not found:
                found[:] = start, start + some
            elif start == found[1]:
                found[1] = start + some
            else:
                return -errno.ECANCELED  # a callback that fails ends the iteration
            return 0

        result = self.lib.rbd_diff_iterate2(
            self._image, None, offset, length, 1, int(mapped), ExtentCallback(extent), None
        )
        if result != -errno.ECANCELED:
            checked(result)
        return (max(found[0], offset), min(found[1], offset + length)) if found else None

    def resize(self, size: int, allocates: Callable[[], None] | None = None) -> None:
        """Give the image another size. :param allocates: see :meth:`allocate`; None: what it gains takes no space."""
        before = self.size()
        checked(self.lib.rbd_resize(self._image, size))
        if allocates is not None:
            self.allocate(before, size, allocates)

    def allocate(self, start: int, end: int, step: Callable[[], None]) -> None:
        """Write zeros from one offset up to another. librbd keeps what is written, even if it is zeros.

        :param step: called before each piece; what it raises ends the work.
        """
        while start < end:
            step()
            some = min(end - start, len(_ZEROS))
            self.write(_ZEROS if some == len(_ZEROS) else _ZEROS[:some], start)
            start += some

    # --------------------------------------------------------------------------------------------------------- locks

    def lock(self) -> bool:
        """Take librbd's exclusive lock, which ends with this process, and which no other client is given meanwhile."""
        if not self._number(self.lib.rbd_get_features) & FEATURE_EXCLUSIVE_LOCK:
            raise OSError(errno.EOPNOTSUPP, "the image has no feature exclusive-lock")
        owned = ctypes.c_int()
        checked(self.lib.rbd_is_exclusive_lock_owner(self._image, ctypes.byref(owned)))
        if not owned.value and self._is_owned():
            return False
        result = self._acquire()
        if result in (-errno.EROFS, -errno.EBUSY, -errno.EAGAIN):
            return False
        checked(result, "the exclusive lock")
        return True

    def _acquire(self) -> int:
        """Take the lock; return librbd's result. :raises OSError: ETIMEDOUT: librbd does not answer; the image is closed.

        librbd waits without end if the image was removed a moment ago (its watch is gone, and cannot be made anew). Only
        closing the image ends that. No other call may use the image meanwhile.
        """
        ender = threading.Timer(LOCK_SECONDS, self._close_image)
        ender.daemon = True
        ender.start()
        try:
            result = self.lib.rbd_lock_acquire(self._image, librbd.LOCK_MODE_EXCLUSIVE)
        finally:
            ender.cancel()
            ender.join()  # it may have begun
        if self._image is None:
            raise OSError(errno.ETIMEDOUT, f"no lock within {LOCK_SECONDS:g} s: perhaps the image was removed")
        return result

    def _is_owned(self) -> bool:
        """Return whether a client that lives holds the image's lock. The lock of a dead one is librbd's to break.

        :raises OSError: ENOENT: the image is gone.
        """
        mode, count = ctypes.c_int(), ctypes.c_size_t(4)
        found = (ctypes.c_char_p * count.value)()
        result = self.lib.rbd_lock_get_owners(self._image, ctypes.byref(mode), found, ctypes.byref(count))
        if result == -errno.ENOENT:
            self.watchers()  # raises it if it is the image that is not there
            return False
        checked(result, "the lock's owner")
        owners = {found[number] for number in range(count.value)}
        self.lib.rbd_lock_get_owners_cleanup(found, count.value)
        return any(address.encode() in owners for _, address in self.watchers())

    def watchers(self) -> list[tuple[int, str]]:
        """Return the numbers and addresses of the clients that have the image open for writing."""
        count = ctypes.c_size_t(16)
        while True:
            found = (Watcher * count.value)()
            result = self.lib.rbd_watchers_list(self._image, found, ctypes.byref(count))
            if result != -errno.ERANGE:
                break
        checked(result, "the clients that have it open")
        seen = [(one.id, (one.addr or b"?").decode()) for one in found[: count.value]]
        self.lib.rbd_watchers_list_cleanup(found, count.value)
        return seen

    def users(self) -> list[str]:
        """Return the other clients that have the image open for writing, in words."""
        return in_words(one for one in self.watchers() if one[0] != self._cluster.client)

    # ----------------------------------------------------------------------------------------- what it is, and of what

    def image_id(self) -> str:
        """Return the image's id, or for an image of the old format the prefix of its objects."""
        id = ctypes.create_string_buffer(64)
        if self.lib.rbd_get_id(self._image, id, len(id)) < 0:
            return self._stat().block_name_prefix.decode()
        return id.value.decode()

    def _stat(self) -> ImageStat:
        stat = ImageStat()
        checked(self.lib.rbd_stat(self._image, ctypes.byref(stat), ctypes.sizeof(stat)))
        return stat

    def header(self) -> Header:
        """Return what the image's header says, by librbd's own functions."""
        stat, changed = self._stat(), Timespec()
        features, flags = self._number(self.lib.rbd_get_features), self._number(self.lib.rbd_get_flags)
        self.lib.rbd_get_modify_timestamp(self._image, ctypes.byref(changed))  # an old image has none
        changed_ns = changed.seconds * 10**9 + changed.nanoseconds
        ids = tuple(id for id, _ in self.snapshots())
        return Header(stat.size, stat.order, features, flags, ids, changed_ns, self.parent())

    def parent(self) -> Parent | None:
        """Return the snapshot that a clone reads through; None if the image is no clone."""
        image, snapshot = LinkedImageSpec(), SnapSpec()
        result = self.lib.rbd_get_parent(self._image, ctypes.byref(image), ctypes.byref(snapshot))
        if result == -errno.ENOENT:
            return None
        checked(result, "its parent")
        try:
            return Parent(image.pool_id, image.pool_namespace.decode(), image.image_id.decode(), snapshot.id)
        finally:
            self.lib.rbd_linked_image_spec_cleanup(ctypes.byref(image))
            self.lib.rbd_snap_spec_cleanup(ctypes.byref(snapshot))

    def snapshots(self) -> list[tuple[int, bytes]]:
        """Return numbers and names of the image's snapshots."""
        count = ctypes.c_int(16)
        while True:
            found = (SnapInfo * count.value)()
            result = self.lib.rbd_snap_list(self._image, found, ctypes.byref(count))
            if result != -errno.ERANGE:
                break
        some = [(one.id, one.name) for one in found[: checked(result, "its snapshots")]]
        if some:
            self.lib.rbd_snap_list_end(found)
        return some

    def clones(self) -> list[str]:
        """Return the names POOL/[NAMESPACE/]IMAGE of all clones of all snapshots."""
        count = ctypes.c_size_t(16)
        while True:
            found = (LinkedImageSpec * count.value)()
            result = self.lib.rbd_list_children3(self._image, found, ctypes.byref(count))
            if result != -errno.ERANGE:
                break
        checked(result, "its clones")
        some = [
            b"/".join(part for part in (one.pool_name, one.pool_namespace, one.image_name) if part).decode()
            for one in found[: count.value]
        ]
        self.lib.rbd_linked_image_spec_list_cleanup(found, count.value)
        return some

    def call(self, function: Callable[..., int], *arguments: object) -> int:
        """Call a function of librbd on the open image. :raises OSError: it failed."""
        return checked(function(self._image, *arguments))
