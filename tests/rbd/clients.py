"""Another client of a private Ceph: definitions of pools, a connection of its own, and images that it makes."""

from __future__ import annotations

import base64
import ctypes
import os
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from astore.model import Auth, Host, PoolDef, Source
from astore.testing.secrets import GivenSecrets
from astore_rbd import librbd
from astore_rbd.cluster import Cluster, settings_of
from astore_rbd.images.image import RbdVolume

if TYPE_CHECKING:
    from collections.abc import Mapping

    from beds.ceph import CephBed

USAGE = "the bed's admin"


def definition_of(bed: CephBed, where: str, name: str = "images", **options: str) -> PoolDef:
    """A definition of a pool on the bed. ``where``: POOL[/NAMESPACE]; ``options``: of librados."""
    auth = Auth("ceph", "admin", secret_usage=USAGE)
    source = Source(hosts=(Host(bed.host, bed.port),), name=where, auth=auth)
    return PoolDef(type="rbd", name=name, source=source, config_options=tuple(options.items()))


def secrets_of(bed: CephBed) -> GivenSecrets:
    """The secret that those definitions name."""
    return GivenSecrets({USAGE: base64.b64decode(bed.key)})


def connected(bed: CephBed, where: str, timeout: float = 60.0) -> Cluster:
    """A connection. Close it."""
    return Cluster(librbd.load(), settings_of(definition_of(bed, where), bed.key, timeout))


class OtherClient:
    """A client of a pool or namespace, with bare calls of the libraries."""

    def __init__(self, bed: CephBed, where: str) -> None:
        self.cluster = connected(bed, where)
        self.lib = self.cluster.lib

    def close(self) -> None:
        """End the connection."""
        self.cluster.close()

    def create(self, name: str, size: int) -> None:
        """Create an image."""
        options = ctypes.c_void_p()
        self.lib.rbd_image_options_create(ctypes.byref(options))
        librbd.checked(self.lib.rbd_create4(self.cluster.io, os.fsencode(name), size, options))
        self.lib.rbd_image_options_destroy(options)

    def put(self, name: str, data: bytes) -> None:
        """Make an image with this content, in the place of one that is there."""
        if name in self.names():
            self.remove(name)
        self.create(name, len(data))
        if data:
            with self.open(name, write=True).closing() as image:
                image.write(data, 0)
                image.flush()

    def put_all(self, images: Mapping[str, bytes]) -> None:
        """Make many new images."""
        there = self.names()

        def one(item: tuple[str, bytes]) -> None:
            name, data = item
            if name in there or data:
                self.put(name, data)
            else:
                self.create(name, 0)

        with ThreadPoolExecutor(16) as threads:
            list(threads.map(one, images.items()))

    def open(self, name: str, *, write: bool = False) -> RbdVolume:
        """Open an image. Close it."""
        return RbdVolume(self.cluster, os.fsencode(name), write=write)

    def remove(self, name: str) -> None:
        """Remove an image."""
        librbd.checked(self.lib.rbd_remove(self.cluster.io, os.fsencode(name)))

    def content(self, name: str) -> bytes:
        """All bytes of an image."""
        with self.open(name).closing() as image:
            buffer = bytearray(image.size())
            if buffer:
                image.read_into(buffer, 0)
            return bytes(buffer)

    def names(self) -> set[str]:
        """The names of all images."""
        count = ctypes.c_size_t(8192)
        found = (librbd.ImageSpec * count.value)()
        librbd.checked(self.lib.rbd_list2(self.cluster.io, found, ctypes.byref(count)))
        names = {os.fsdecode(one.name) for one in found[: count.value]}
        self.lib.rbd_image_spec_list_cleanup(found, count.value)
        return names
