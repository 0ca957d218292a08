"""Clones that share their data with a snapshot of another image, and the removal of images, clones and snapshots."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import time
from collections.abc import Iterator

from astore.volume_io.volume_names import is_leftover
from astore_rbd.cluster import Cluster
from astore_rbd.images.headers import Parent
from astore_rbd.images.image import RbdVolume, in_words
from astore_rbd.images.listing import is_listed
from astore_rbd.librbd import checked
from astore_rbd.naming import is_own_snapshot, new_snapshot_name

OWN_TRIES = 20
OWN_PAUSE = 0.1
"""How often, and after how many seconds each, this client looks whether it has closed an image that it is to remove."""


@contextlib.contextmanager
def options(cluster: Cluster) -> Iterator[int]:
    """Yield an image's options: none, so that those of the cluster and of the definition count."""
    made = ctypes.c_void_p()
    cluster.lib.rbd_image_options_create(ctypes.byref(made))
    try:
        yield made.value or 0
    finally:
        cluster.lib.rbd_image_options_destroy(made)


def clone(cluster: Cluster, source: bytes, id: int, name: bytes, size: int) -> None:
    """Make a clone of an image through a new protected snapshot of it. Blocks.

    :param source: the image's name. :param id: its id. :param size: of the clone, in bytes.
    :raises OSError: EOPNOTSUPP: the image cannot be cloned. EAGAIN: its name leads to another image.
    """
    lib = cluster.lib
    with RbdVolume(cluster, source, write=True).closing() as parent:
        if parent.id != id:
            raise OSError(errno.EAGAIN, "its name leads to another image")
        snapshot = new_snapshot_name().encode()
        parent.call(lib.rbd_snap_create, snapshot)
        try:
            parent.call(lib.rbd_snap_protect, snapshot)
            with options(cluster) as made:
                checked(lib.rbd_clone3(cluster.io, source, snapshot, cluster.io, name, made))
        except BaseException as error:
            with contextlib.suppress(OSError):
                _drop_snapshot(parent, snapshot)
            if isinstance(error, OSError) and error.errno in (errno.ENOSYS, errno.EINVAL):
                raise OSError(errno.EOPNOTSUPP, "the image cannot be cloned") from error
            raise
        larger = size > parent.size()
    if larger:
        with RbdVolume(cluster, name, write=True).closing() as made_clone:
            made_clone.resize(size)


def remove(cluster: Cluster, name: bytes, id: int | None = None) -> None:
    """Remove an image, and the snapshots that only served clones that are gone. Blocks.

    An image that cannot be opened is one whose creation or removal was cut off: librbd removes what there is of it, if its name
    is hidden, or the directory has it under this id.

    :param id: of the image that is meant; None: any.
    :raises OSError: ENOENT; EBUSY, ENOTEMPTY: it has clones or snapshots, or a client has it open. EAGAIN: its name leads to
        another image.
    """
    lib = cluster.lib
    try:
        found = RbdVolume(cluster, name, write=False)
    except FileNotFoundError:
        if not (is_leftover(os.fsdecode(name)) if id is None else is_listed(cluster, os.fsdecode(name), id)):
            raise
        checked(lib.rbd_remove(cluster.io, name))
        return
    with found.closing() as image:
        _require_same(id, image)
        parent = image.parent()
        _require_unopened(cluster, image)
        snapshots = [snapshot for _, snapshot in image.snapshots()]
        if clones := image.clones() if snapshots else []:
            raise OSError(errno.EBUSY, f"it has clones, which read through its snapshots: {', '.join(sorted(clones))}")
        if others := sorted(one.decode(errors="replace") for one in snapshots if not is_own_snapshot(os.fsdecode(one))):
            raise OSError(errno.ENOTEMPTY, f"it has snapshots: {', '.join(others)}")
    if snapshots:
        with RbdVolume(cluster, name, write=True).closing() as image:
            _require_same(id, image)
            for snapshot in snapshots:
                _drop_snapshot(image, snapshot)
    elif id is not None:  # the wait for other clients may have been long
        with RbdVolume(cluster, name, write=False).closing() as image:
            _require_same(id, image)
    result = lib.rbd_remove(cluster.io, name)
    if result == -errno.ENOENT and _is_there(cluster, name):
        # Since Ceph 15 librbd writes a note before it removes an image, and hides it if that fails.
        raise OSError(errno.ENOSPC, "the pool is full, so librbd removes nothing: wipe an image by 'trim' first")
    checked(result)
    if parent is not None:
        with contextlib.suppress(OSError):
            _forget_clone(cluster, parent)


def _require_same(id: int | None, image: RbdVolume) -> None:
    """Check which image it is. :raises OSError: EAGAIN: it is another."""
    if id not in (None, image.id):
        raise OSError(errno.EAGAIN, "its name leads to another image")


def _require_unopened(cluster: Cluster, image: RbdVolume) -> None:
    """Check that no client has the image open. :raises OSError: EBUSY: one has."""
    for left in range(OWN_TRIES, -1, -1):
        watchers = image.watchers()
        if not left or any(id != cluster.client for id, _ in watchers):
            break
        if not watchers:
            return
        time.sleep(OWN_PAUSE)  # librbd has yet to close the image in one of this client's calls that ended
    raise OSError(errno.EBUSY, f"it is open elsewhere, by {', '.join(in_words(watchers))}")


def _is_there(cluster: Cluster, name: bytes) -> bool:
    """Return whether there is an image of this name."""
    try:
        RbdVolume(cluster, name, write=False).close()
    except FileNotFoundError:
        return False
    return True


def _forget_clone(cluster: Cluster, parent: Parent) -> None:
    """Remove the snapshot through which a clone read that is gone, if it is this plugin's and no other clone needs it."""
    io = cluster.context_of(parent.pool, parent.namespace)
    with RbdVolume(cluster, os.fsencode(parent.image), write=True, by_id=True, io=io).closing() as image:
        name = dict(image.snapshots()).get(parent.snapshot)
        if name is not None and is_own_snapshot(os.fsdecode(name)):
            _drop_snapshot(image, name)


def _drop_snapshot(image: RbdVolume, snapshot: bytes) -> None:
    """Remove a snapshot, protected or not. :raises OSError: EBUSY: it has clones."""
    lib = image.lib
    protected = ctypes.c_int()
    image.call(lib.rbd_snap_is_protected, snapshot, ctypes.byref(protected))
    if protected.value:
        image.call(lib.rbd_snap_unprotect, snapshot)
    image.call(lib.rbd_snap_remove, snapshot)
