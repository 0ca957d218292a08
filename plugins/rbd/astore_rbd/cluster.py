"""Connections to clusters: made with deadlines, counted while they are used, closed after the last use."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import threading
from collections.abc import Iterator
from typing import NamedTuple

from astore.model import PoolDef
from astore_rbd.librbd import ClusterStat, Librbd, Pointer, PoolStat, checked
from astore_rbd.naming import monitors, place_of

LONGEST_WAIT = 30
"""The longest time in seconds for which librados waits for a server by default, as in libvirt."""

GRAIN = 4096
"""The unit in bytes in which librbd discards: the least that it can be told. It leaves the rest of a range as it is."""

_OPTIONS = {
    "log_to_stderr": "false",  # what this process writes there is not the library's affair
    "err_to_stderr": "false",
    "log_to_file": "false",
    "mon_client_hunt_parallel": "0",  # all: with some of them, a client waits 3 s if those are dead
    "rbd_cache": "false",  # several large reads and writes in flight gain nothing by another copy
    "rbd_discard_granularity_bytes": str(GRAIN),
    "rbd_disable_zero_copy_writes": "false",  # what is written does not change meanwhile: librbd needs no copy of it
}


class Settings(NamedTuple):
    """What a connection needs.

    :ivar user: the cephx user. :ivar options: librados's options, in order; among them the key. :ivar pool: the name of the
        pool. :ivar namespace: in the pool; ``""``: none.
    """

    user: str | None
    options: tuple[tuple[str, str], ...]
    pool: str
    namespace: str

    def __repr__(self) -> str:
        return f"Settings({self.user!r}, …, {self.pool!r}, {self.namespace!r})"  # without the key


def settings_of(definition: PoolDef, key: str | None, timeout: float) -> Settings:
    """Return the settings of a pool's connection.

    :param key: the user's key as text; None: the cluster asks for none. :param timeout: the deadline of a call in seconds. Some
        calls wait for two servers, one after the other, so librados waits for less than half as long for each.
    """
    wait = str(max(1, min(LONGEST_WAIT, int(timeout * 0.45))))
    auth = definition.source.auth
    waits = dict.fromkeys(("client_mount_timeout", "rados_mon_op_timeout", "rados_osd_op_timeout"), wait)
    options = {**_OPTIONS, **waits, "mon_host": monitors(definition), **dict(definition.config_options)}
    options["auth_supported"] = "none" if auth is None else "cephx"
    if key is not None:
        options["key"] = key
    pool, namespace = place_of(definition)
    return Settings(None if auth is None else auth.username, tuple(options.items()), pool, namespace)


class Cluster:
    """A connection to a cluster, with an I/O context for one pool. Any thread may use it.

    :ivar lib: the libraries. :ivar io: the I/O context. :ivar pool: the pool's name. :ivar namespace: in the pool.
    :ivar device: names the pool among those of all clusters.
    """

    def __init__(self, lib: Librbd, settings: Settings) -> None:
        """Connect. Blocks. :raises OSError: the cluster does not answer or refuses the user, or there is no such pool."""
        self.lib = lib
        self.pool: str = settings.pool
        self.namespace: str = settings.namespace
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._users = 0
        self._over = False
        self._cluster = ctypes.c_void_p()
        self._contexts: dict[tuple[int, str], Pointer] = {}
        user = None if settings.user is None else settings.user.encode()
        checked(lib.rados_create(ctypes.byref(self._cluster), user), "rados_create")
        try:
            self._connect(settings)
        except BaseException:
            self.close()
            raise

    def _connect(self, settings: Settings) -> None:
        lib = self.lib
        # No file of the machine's is read. Only with some file does librados heed err_to_stderr, whatever its value.
        checked(lib.rados_conf_read_file(self._cluster, b"/dev/null"), "the configuration")
        for name, value in settings.options:
            if lib.rados_conf_set(self._cluster, name.encode(), value.encode()) < 0:
                shown = "…" if name == "key" else value
                raise OSError(errno.EINVAL, f"librados does not take the option {name}={shown}")
        where = f"the cluster at {dict(settings.options)['mon_host']}"
        result = lib.rados_connect(self._cluster)
        if result in (-errno.EACCES, -errno.EPERM):
            raise OSError(-result, f"{where} refuses the user {settings.user or 'client.admin'!r}: the key is wrong")
        checked(
            result, where if settings.user is None else f"{where} does not answer, or not to this user with this key"
        )
        fsid = ctypes.create_string_buffer(64)
        checked(lib.rados_cluster_fsid(self._cluster, fsid, len(fsid)), f"{where} does not tell its id")
        self._fsid = fsid.value.decode()
        io = ctypes.c_void_p()
        checked(
            lib.rados_ioctx_create(self._cluster, settings.pool.encode(), ctypes.byref(io)), f"pool {settings.pool!r}"
        )
        self.io: Pointer = io.value
        lib.rados_set_osdmap_full_try(io)  # a write to a full cluster fails, instead of waiting for room
        self.pool_id: int = lib.rados_ioctx_get_id(io)
        self._contexts[self.pool_id, settings.namespace] = self.io
        self._use_namespace(settings.namespace)
        self.device: str = self.device_of(self.pool_id, settings.namespace)

    def _use_namespace(self, namespace: str) -> None:
        there = ctypes.c_bool(True)
        if namespace:
            named = namespace.encode()
            checked(self.lib.rbd_namespace_exists(self.io, named, ctypes.byref(there)), f"namespace {namespace!r}")
            self.lib.rados_ioctx_set_namespace(self.io, named)
        if not there.value:
            raise OSError(errno.ENOENT, f"pool {self.pool!r} has no namespace {namespace!r}")

    def device_of(self, pool: int, namespace: str) -> str:
        """Return the name of a pool's namespace among those of all clusters."""
        return f"rbd:{self._fsid}/{pool}/{namespace}"

    @contextlib.contextmanager
    def used(self) -> Iterator[None]:
        """Keep the connection open. :raises OSError: EBADF: it was closed, or belongs to the process that forked this one."""
        self.hold()
        try:
            yield
        finally:
            self.drop()

    def hold(self) -> None:
        """Keep the connection open until :meth:`drop`. :raises OSError: as :meth:`used`."""
        with self._lock:
            if self._over or self._process != os.getpid():
                raise OSError(errno.EBADF, "the connection to the cluster is closed")
            self._users += 1

    def drop(self) -> None:
        """Undo one :meth:`hold`. The last one ends a connection that was closed meanwhile."""
        with self._lock:
            self._users -= 1
            last = self._over and not self._users
        if last:
            self._end()

    def close(self) -> None:
        """End the connection after its last use. May be called twice."""
        with self._lock:
            first, self._over = not self._over, True
            idle = not self._users
        if first and idle:
            self._end()

    def _end(self) -> None:
        if self._process != os.getpid():
            return  # the threads of librados are in the other process
        for io in self._contexts.values():
            self.lib.rados_ioctx_destroy(io)
        self._contexts.clear()
        self.lib.rados_shutdown(self._cluster)

    def context_of(self, pool: int, namespace: str) -> Pointer:
        """Return the I/O context of a pool of this cluster, for as long as the connection lasts. Blocks.

        :raises OSError: there is no such pool, or the user may not use it.
        """
        with self._lock:
            known = self._contexts.get((pool, namespace))
        if known is not None:
            return known
        io = ctypes.c_void_p()
        checked(self.lib.rados_ioctx_create2(self._cluster, pool, ctypes.byref(io)), f"pool {pool}")
        self.lib.rados_ioctx_set_namespace(io, namespace.encode())
        with self._lock:
            kept = self._contexts.setdefault((pool, namespace), io.value)
        if kept != io.value:
            self.lib.rados_ioctx_destroy(io)
        return kept

    def pool_name(self, pool: int) -> str:
        """Return the name of a pool of this cluster. Blocks. :raises OSError: there is none."""
        name = ctypes.create_string_buffer(256)
        checked(self.lib.rados_pool_reverse_lookup(self._cluster, pool, name, len(name)), f"pool {pool}")
        return os.fsdecode(name.value)

    @property
    def client(self) -> int:
        """The number of this client in the cluster, as watchers have it."""
        return self.lib.rados_get_instance_id(self._cluster)

    def sizes(self) -> tuple[int, int, int]:
        """Return the cluster's total and free bytes, and those that the pool takes. Blocks.

        :raises OSError: the cluster does not answer.
        """
        cluster, pool = ClusterStat(), PoolStat()
        with self.used():
            checked(self.lib.rados_cluster_stat(self._cluster, ctypes.byref(cluster)), "the cluster's size")
            checked(self.lib.rados_ioctx_pool_stat(self.io, ctypes.byref(pool)), "the pool's size")
        return cluster.kb << 10, cluster.kb_avail << 10, pool.num_bytes
