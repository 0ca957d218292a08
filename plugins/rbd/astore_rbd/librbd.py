"""The declarations of the functions of librados and librbd that the plugin calls, with the types of their headers.

The declarations are those of ``rados/librados.h`` and ``rbd/librbd.h`` of Ceph 16. Symbols tell the version: the oldest that is
supported is 14.2. :func:`load` returns the process's only
:class:`Librbd`. Its attributes are the bare functions under their full names. Pointers are integers (None for NULL). A failed
call returns a negative errno; :func:`checked` makes an OSError of it.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Callable
from typing import Final

from astore.c_library import CLibrary, Loaded, quick, waits
from astore.errors import BackendLoadError

FEATURE_EXCLUSIVE_LOCK: Final = 1 << 2
FEATURE_OBJECT_MAP: Final = 1 << 3
FEATURE_FAST_DIFF: Final = 1 << 4
FLAG_OBJECT_MAP_INVALID: Final = 1 << 0
FLAG_FAST_DIFF_INVALID: Final = 1 << 1
LOCK_MODE_EXCLUSIVE: Final = 0

Pointer = int | None
_ptr = ctypes.c_void_p
_text = ctypes.c_char_p
_int = ctypes.c_int
_u8 = ctypes.c_uint8
_u64 = ctypes.c_uint64
_i64 = ctypes.c_int64
_size = ctypes.c_size_t
_ssize = ctypes.c_ssize_t


class ClusterStat(ctypes.Structure):
    """``struct rados_cluster_stat_t``."""

    _fields_ = (("kb", _u64), ("kb_used", _u64), ("kb_avail", _u64), ("num_objects", _u64))
    kb: int
    kb_avail: int


class PoolStat(ctypes.Structure):
    """``struct rados_pool_stat_t``."""

    _fields_ = tuple(
        (name, _u64)
        for name in (
            "num_bytes",
            "num_kb",
            "num_objects",
            "num_object_clones",
            "num_object_copies",
            "num_objects_missing_on_primary",
            "num_objects_unfound",
            "num_objects_degraded",
            "num_rd",
            "num_rd_kb",
            "num_wr",
            "num_wr_kb",
            "num_user_bytes",
            "compressed_bytes_orig",
            "compressed_bytes",
            "compressed_bytes_alloc",
        )
    )
    num_bytes: int


class ImageSpec(ctypes.Structure):
    """``rbd_image_spec_t``."""

    _fields_ = (("id", _text), ("name", _text))
    id: bytes
    name: bytes


class LinkedImageSpec(ctypes.Structure):
    """``rbd_linked_image_spec_t``."""

    _fields_ = (
        ("pool_id", _i64),
        ("pool_name", _text),
        ("pool_namespace", _text),
        ("image_id", _text),
        ("image_name", _text),
        ("trash", ctypes.c_bool),
    )
    pool_id: int
    pool_name: bytes
    pool_namespace: bytes
    image_id: bytes
    image_name: bytes


class SnapSpec(ctypes.Structure):
    """``rbd_snap_spec_t``."""

    _fields_ = (("id", _u64), ("namespace_type", _int), ("name", _text))
    id: int
    name: bytes


class SnapInfo(ctypes.Structure):
    """``rbd_snap_info_t``."""

    _fields_ = (("id", _u64), ("size", _u64), ("name", _text))
    id: int
    name: bytes


class Watcher(ctypes.Structure):
    """``rbd_image_watcher_t``."""

    _fields_ = (("addr", _text), ("id", _i64), ("cookie", _u64))
    addr: bytes
    id: int


class ImageStat(ctypes.Structure):
    """``rbd_image_info_t``."""

    _fields_ = (
        ("size", _u64),
        ("obj_size", _u64),
        ("num_objs", _u64),
        ("order", _int),
        ("block_name_prefix", ctypes.c_char * 24),
        ("parent_pool", _i64),
        ("parent_name", ctypes.c_char * 96),
    )
    size: int
    order: int
    block_name_prefix: bytes


class Timespec(ctypes.Structure):
    """``struct timespec``."""

    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))
    seconds: int
    nanoseconds: int


ExtentCallback = ctypes.CFUNCTYPE(_int, _u64, _size, _int, _ptr)
"""The callback of ``rbd_diff_iterate2``: offset, length, whether there is data, the argument."""


Call = Callable[..., int]
Void = Callable[..., None]


class Librbd(CLibrary, type="rbd", name="Ceph", product="Ceph", oldest="14.2"):
    """The functions of both libraries, each with its declaration in C.

    :raises BackendLoadError: naming the first missing symbol.
    """

    rados_create: Call = waits("0.56", _int, _ptr, _text)
    rados_conf_set: Call = waits("0.56", _int, _ptr, _text, _text)
    rados_conf_read_file: Call = waits("0.56", _int, _ptr, _text)
    rados_connect: Call = waits("0.56", _int, _ptr)
    rados_shutdown: Void = waits("0.56", None, _ptr)
    rados_cluster_fsid: Call = waits("0.56", _int, _ptr, _ptr, _size)
    rados_cluster_stat: Call = waits("0.56", _int, _ptr, _ptr)
    rados_get_instance_id: Call = waits("0.56", _u64, _ptr)
    rados_pool_reverse_lookup: Call = waits("0.56", _int, _ptr, _i64, _ptr, _size)
    rados_ioctx_create: Call = waits("0.56", _int, _ptr, _text, _ptr)
    rados_ioctx_create2: Call = waits("9.0", _int, _ptr, _i64, _ptr)
    rados_ioctx_destroy: Void = waits("0.56", None, _ptr)
    rados_ioctx_set_namespace: Void = quick("0.94", None, _ptr, _text)
    rados_ioctx_get_id: Call = quick("0.56", _i64, _ptr)
    rados_set_osdmap_full_try: Void = quick("12.0", None, _ptr)
    rados_ioctx_pool_stat: Call = waits("0.56", _int, _ptr, _ptr)
    rados_create_read_op: Callable[[], Pointer] = quick("0.80", _ptr)
    rados_release_read_op: Void = quick("0.80", None, _ptr)
    rados_read_op_exec_user_buf: Void = quick("0.80", None, _ptr, _text, _text, _text, _size, _ptr, _size, _ptr, _ptr)
    rados_read_op_assert_exists: Void = quick("0.80", None, _ptr)
    rados_read_op_read: Void = quick("0.80", None, _ptr, _u64, _size, _ptr, _ptr, _ptr)
    rados_aio_read_op_operate: Call = quick("0.80", _int, _ptr, _ptr, _ptr, _text, _int)
    rados_aio_read_op_operate_waiting: Call = waits("0.80", _int, _ptr, _ptr, _ptr, _text, _int)
    """The same, for operations that read: librados has them wait while too many bytes are under way."""
    rados_aio_create_completion: Call = quick("0.56", _int, _ptr, _ptr, _ptr, _ptr)
    rados_aio_is_complete: Call = quick("0.56", _int, _ptr)
    rados_aio_wait_for_complete: Call = waits("0.56", _int, _ptr)
    rados_aio_get_return_value: Call = quick("0.56", _int, _ptr)
    rados_aio_get_version: Call = quick("0.56", _u64, _ptr)
    rados_aio_release: Void = quick("0.56", None, _ptr)
    rados_aio_cancel: Call = waits("0.94", _int, _ptr, _ptr)

    rbd_list2: Call = waits("14.0", _int, _ptr, _ptr, _ptr)
    rbd_image_spec_list_cleanup: Void = quick("14.0", None, _ptr, _size)
    rbd_namespace_exists: Call = waits("14.0", _int, _ptr, _text, _ptr)
    rbd_open: Call = waits("0.56", _int, _ptr, _text, _ptr, _text)
    rbd_open_read_only: Call = waits("0.56", _int, _ptr, _text, _ptr, _text)
    rbd_open_by_id: Call = waits("13.0", _int, _ptr, _text, _ptr, _text)
    rbd_close: Call = waits("0.56", _int, _ptr)
    rbd_get_id: Call = waits("13.0", _int, _ptr, _ptr, _size)
    rbd_stat: Call = waits("0.56", _int, _ptr, _ptr, _size)
    rbd_get_size: Call = waits("0.56", _int, _ptr, _ptr)
    rbd_get_features: Call = waits("0.56", _int, _ptr, _ptr)
    rbd_get_flags: Call = waits("0.94", _int, _ptr, _ptr)
    rbd_get_modify_timestamp: Call = waits("14.0", _int, _ptr, _ptr)
    rbd_get_parent: Call = waits("14.2", _int, _ptr, _ptr, _ptr)
    rbd_linked_image_spec_cleanup: Void = quick("14.2", None, _ptr)
    rbd_linked_image_spec_list_cleanup: Void = quick("14.2", None, _ptr, _size)
    rbd_snap_spec_cleanup: Void = quick("14.2", None, _ptr)
    rbd_list_children3: Call = waits("14.2", _int, _ptr, _ptr, _ptr)
    rbd_watchers_list: Call = waits("13.0", _int, _ptr, _ptr, _ptr)
    rbd_watchers_list_cleanup: Void = quick("13.0", None, _ptr, _size)
    rbd_read: Call = waits("0.56", _ssize, _ptr, _u64, _size, _ptr)
    rbd_aio_create_completion: Call = quick("0.56", _int, _ptr, _ptr, _ptr)
    rbd_aio_write: Call = waits("0.56", _int, _ptr, _u64, _size, _ptr, _ptr)
    rbd_aio_wait_for_complete: Call = waits("0.56", _int, _ptr)
    rbd_aio_get_return_value: Call = quick("0.56", _ssize, _ptr)
    rbd_aio_release: Void = quick("0.56", None, _ptr)
    rbd_discard: Call = waits("0.56", _int, _ptr, _u64, _u64)
    rbd_flush: Call = waits("0.56", _int, _ptr)
    rbd_resize: Call = waits("0.56", _int, _ptr, _u64)
    rbd_diff_iterate2: Call = waits("0.94", _int, _ptr, _text, _u64, _u64, _u8, _u8, ExtentCallback, _ptr)
    rbd_lock_acquire: Call = waits("12.0", _int, _ptr, _int)
    rbd_is_exclusive_lock_owner: Call = waits("0.94", _int, _ptr, _ptr)
    rbd_lock_get_owners: Call = waits("12.0", _int, _ptr, _ptr, _ptr, _ptr)
    rbd_lock_get_owners_cleanup: Void = quick("12.0", None, _ptr, _size)
    rbd_image_options_create: Void = quick("0.94", None, _ptr)
    rbd_image_options_destroy: Void = quick("0.94", None, _ptr)
    rbd_create4: Call = waits("0.94", _int, _ptr, _text, _u64, _ptr)
    rbd_clone3: Call = waits("0.94", _int, _ptr, _text, _text, _ptr, _text, _ptr)
    rbd_remove: Call = waits("0.56", _int, _ptr, _text)
    rbd_rename: Call = waits("0.56", _int, _ptr, _text, _text)
    rbd_snap_create: Call = waits("0.56", _int, _ptr, _text)
    rbd_snap_remove: Call = waits("0.56", _int, _ptr, _text)
    rbd_snap_protect: Call = waits("0.56", _int, _ptr, _text)
    rbd_snap_unprotect: Call = waits("0.56", _int, _ptr, _text)
    rbd_snap_is_protected: Call = waits("0.56", _int, _ptr, _text, _ptr)
    rbd_snap_list: Call = waits("0.56", _int, _ptr, _ptr, _ptr)
    rbd_snap_list_end: Void = quick("0.56", None, _ptr)

    def __init__(self, rados: ctypes.CDLL, rbd: ctypes.CDLL) -> None:
        super().__init__(lambda name: (rbd if name.startswith("rbd_") else rados, name.removesuffix("_waiting")))


def _load() -> Librbd:
    try:
        return Librbd(ctypes.CDLL("librados.so.2"), ctypes.CDLL("librbd.so.1"))
    except OSError as error:
        raise BackendLoadError(
            f"Ceph's libraries cannot be loaded ({error}): install them, on Debian the packages librados2 and librbd1",
            type="rbd",
        ) from error


load: Final = Loaded(_load)
"""Return the libraries' functions, loaded on first use. Any thread may call it."""


def failure(result: int, what: str = "") -> OSError:
    """Return the OSError of a call that returned ``result``, a negative errno.

    :param what: what failed, in words.
    """
    number = -result if -4096 < result < 0 else errno.EIO
    text = os.strerror(number)
    if number == errno.ETIMEDOUT:  # librados's own deadline, which is shorter than the call's
        number, text = errno.ENOTCONN, "the cluster does not answer"
    elif number == errno.ESHUTDOWN:
        text = "the cluster has shut this client out (its blocklist)"
    return OSError(number, f"{what}: {text}" if what else text)


def checked(result: int, what: str = "") -> int:
    """Return the result of a call. :raises OSError: it is a negative errno."""
    if result < 0:
        raise failure(result, what)
    return result
