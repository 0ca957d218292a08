"""The declarations of libgfapi's functions, with the types of its headers; the package gfapi loads the library.

gfapi's own declarations are not used: several are too narrow (offsets as ``int``) or lack arguments
(``glfs_ftruncate``). Its Dir, File and Volume objects call the library when they are garbage-collected, which crashes
after the end of the connection. The declarations are those of ``glfs.h`` and ``glfs-handles.h`` of GlusterFS 10.

:func:`load` returns the process's only :class:`Gfapi`. Its attributes are the bare functions, without the prefix
``glfs_``. Pointers are integers (None for NULL). A failed call returns a negative number or None, and leaves its errno
in :func:`ctypes.get_errno`; :func:`failure` makes an OSError of it.
"""

from __future__ import annotations

import collections
import collections.abc
import ctypes
import errno
import os
import threading
from collections.abc import Callable
from typing import Any, Final

from astore.errors import BackendLoadError
from astore_gluster.layout import StatLayout, stat_layout

OLDEST: Final = "6.0"
"""The oldest GlusterFS whose libgfapi is supported. Its symbols tell the version, see :data:`DECLARATIONS`."""

XREADDIRP_STAT: Final = 1
XREADDIRP_HANDLE: Final = 2
LOG_NONE: Final = 0

Pointer = int | None
_ptr = ctypes.c_void_p
_text = ctypes.c_char_p
_int = ctypes.c_int
_uint = ctypes.c_uint
_off = ctypes.c_int64
_size = ctypes.c_size_t
_ssize = ctypes.c_ssize_t

DECLARATIONS: Final[dict[str, tuple[str, Any, tuple[Any, ...]]]] = {
    # name without glfs_: the version that added it (in this form), its result, its arguments
    "new": ("3.4.0", _ptr, (_text,)),
    "set_volfile_server": ("3.4.0", _int, (_ptr, _text, _text, _int)),
    "set_logging": ("3.4.0", _int, (_ptr, _text, _int)),
    "set_xlator_option": ("3.4.0", _int, (_ptr, _text, _text, _text)),
    "init": ("3.4.0", _int, (_ptr,)),
    "fini": ("3.4.0", _int, (_ptr,)),
    "opendir": ("3.4.0", _ptr, (_ptr, _text)),
    "closedir": ("3.4.0", _int, (_ptr,)),
    "xreaddirplus_r": ("3.11.0", _int, (_ptr, ctypes.c_uint32, _ptr, _ptr, _ptr)),
    "h_lookupat": ("3.7.4", _ptr, (_ptr, _ptr, _text, _ptr, _int)),
    "h_anonymous_read": ("3.7.0", _ssize, (_ptr, _ptr, _ptr, _size, _off)),
    "h_close": ("3.4.2", _int, (_ptr,)),
    "h_getxattrs": ("3.5.1", _int, (_ptr, _ptr, _text, _ptr, _size)),
    "h_link": ("3.4.2", _int, (_ptr, _ptr, _ptr, _text)),
    "get_volumeid": ("3.5.0", _int, (_ptr, _ptr, _size)),
    "getxattr": ("3.4.0", _ssize, (_ptr, _text, _text, _ptr, _size)),
    "setxattr": ("3.4.0", _int, (_ptr, _text, _text, _ptr, _size, _int)),
    "fgetxattr": ("3.4.0", _ssize, (_ptr, _text, _ptr, _size)),
    "fsetxattr": ("3.4.0", _int, (_ptr, _text, _ptr, _size, _int)),
    "fremovexattr": ("3.4.0", _int, (_ptr, _text)),
    "stat": ("3.4.0", _int, (_ptr, _text, _ptr)),
    "lstat": ("3.4.0", _int, (_ptr, _text, _ptr)),
    "readlink": ("3.4.0", _int, (_ptr, _text, _ptr, _size)),
    "statvfs": ("3.4.0", _int, (_ptr, _text, _ptr)),
    "open": ("3.4.0", _ptr, (_ptr, _text, _int)),
    "creat": ("3.4.0", _ptr, (_ptr, _text, _int, _uint)),
    "close": ("3.4.0", _int, (_ptr,)),
    "fstat": ("3.4.0", _int, (_ptr, _ptr)),
    "lseek": ("3.4.0", _off, (_ptr, _off, _int)),
    "fallocate": ("3.5.0", _int, (_ptr, _int, _off, _size)),
    "discard": ("3.5.0", _int, (_ptr, _off, _size)),
    "zerofill": ("3.5.0", _int, (_ptr, _off, _off)),
    "fchmod": ("3.4.0", _int, (_ptr, _uint)),
    "fchown": ("3.4.0", _int, (_ptr, _uint, _uint)),
    "chmod": ("3.4.0", _int, (_ptr, _text, _uint)),
    "chown": ("3.4.0", _int, (_ptr, _text, _uint, _uint)),
    "rename": ("3.4.0", _int, (_ptr, _text, _text)),
    "link": ("3.4.0", _int, (_ptr, _text, _text)),
    "unlink": ("3.4.0", _int, (_ptr, _text)),
    "mkdir": ("3.4.0", _int, (_ptr, _text, _uint)),
    "rmdir": ("3.4.0", _int, (_ptr, _text)),
    "h_open": ("3.4.2", _ptr, (_ptr, _ptr, _int)),
    "posix_lock": ("3.4.0", _int, (_ptr, _int, _ptr)),
    "fd_set_lkowner": ("3.10.7", _int, (_ptr, _ptr, _int)),
    # In 6.0 these got their pointers to struct glfs_stat, under the old names. A library with copy_file_range, which came
    # with the same version, has the new form.
    "copy_file_range": ("6.0", _ssize, (_ptr, _ptr, _ptr, _ptr, _size, _uint, _ptr, _ptr, _ptr)),
    "pread": ("6.0", _ssize, (_ptr, _ptr, _size, _off, _int, _ptr)),
    "pwrite": ("6.0", _ssize, (_ptr, _ptr, _size, _off, _int, _ptr, _ptr)),
    "ftruncate": ("6.0", _int, (_ptr, _off, _ptr, _ptr)),
    "fsync": ("6.0", _int, (_ptr, _ptr, _ptr)),
    "fdatasync": ("6.0", _int, (_ptr, _ptr, _ptr)),
}
"""The functions that may wait for a server. They release the GIL and keep their errno."""

MEMORY_DECLARATIONS: Final[dict[str, tuple[str, Any, tuple[Any, ...]]]] = {
    "xreaddirplus_get_stat": ("3.11.0", _ptr, (_ptr,)),
    "xreaddirplus_get_object": ("3.11.0", _ptr, (_ptr,)),
    "object_copy": ("3.11.0", _ptr, (_ptr,)),
    "free": ("3.7.16", None, (_ptr,)),
}
"""The functions that only touch memory, called once for each entry of a listing.

They keep the GIL: releasing it takes longer than the call, and another thread may keep it for long.
"""


class Gfapi:
    """libgfapi's functions, with their types.

    :param library: the loaded library.
    :param layout: the layout of ``struct stat`` on this machine.
    :raises BackendLoadError: naming the first missing symbol, or the unknown machine.
    """

    new: Callable[[bytes], Pointer]
    set_volfile_server: Callable[[int, bytes, bytes, int], int]
    set_logging: Callable[[int, bytes, int], int]
    set_xlator_option: Callable[[int, bytes, bytes, bytes], int]
    init: Callable[[int], int]
    fini: Callable[[int], int]
    opendir: Callable[[int, bytes], Pointer]
    closedir: Callable[[int], int]
    xreaddirplus_r: Callable[[int, int, int, int, int], int]
    xreaddirplus_get_stat: Callable[[Pointer], Pointer]
    xreaddirplus_get_object: Callable[[Pointer], Pointer]
    object_copy: Callable[[int], Pointer]
    free: Callable[[Pointer], None]
    h_lookupat: Callable[[int, Pointer, bytes, int, int], Pointer]
    h_anonymous_read: Callable[[int, int, int, int, int], int]
    h_close: Callable[[int], int]
    stat: Callable[[int, bytes, int], int]
    lstat: Callable[[int, bytes, int], int]
    readlink: Callable[[int, bytes, int, int], int]
    statvfs: Callable[[int, bytes, int], int]
    open: Callable[[int, bytes, int], Pointer]
    creat: Callable[[int, bytes, int, int], Pointer]
    close: Callable[[int], int]
    fstat: Callable[[int, int], int]
    lseek: Callable[[int, int, int], int]
    fallocate: Callable[[int, int, int, int], int]
    discard: Callable[[int, int, int], int]
    zerofill: Callable[[int, int, int], int]
    fchmod: Callable[[int, int], int]
    fchown: Callable[[int, int, int], int]
    chmod: Callable[[int, bytes, int], int]
    chown: Callable[[int, bytes, int, int], int]
    rename: Callable[[int, bytes, bytes], int]
    link: Callable[[int, bytes, bytes], int]
    unlink: Callable[[int, bytes], int]
    mkdir: Callable[[int, bytes, int], int]
    rmdir: Callable[[int, bytes], int]
    h_open: Callable[[int, int, int], Pointer]
    h_getxattrs: Callable[[int, int, bytes, int, int], int]
    h_link: Callable[[int, int, int, bytes], int]
    get_volumeid: Callable[[int, int, int], int]
    getxattr: Callable[[int, bytes, bytes, int, int], int]
    setxattr: Callable[[int, bytes, bytes, bytes, int, int], int]
    fgetxattr: Callable[[int, bytes, int, int], int]
    fsetxattr: Callable[[int, bytes, bytes, int, int], int]
    fremovexattr: Callable[[int, bytes], int]
    posix_lock: Callable[[int, int, int], int]
    fd_set_lkowner: Callable[[int, int, int], int]
    copy_file_range: Callable[[int, int, int, int, int, int, None, None, None], int]
    pread: Callable[[int, int, int, int, int, None], int]
    pwrite: Callable[[int, int | bytes, int, int, int, None, None], int]
    ftruncate: Callable[[int, int, None, None], int]
    fsync: Callable[[int, None, None], int]
    fdatasync: Callable[[int, None, None], int]

    def __init__(self, library: ctypes.CDLL, layout: StatLayout | None) -> None:
        if layout is None:
            raise BackendLoadError(f"the layout of struct stat on {os.uname().machine} is not known", type="gluster")
        self.layout = layout
        for table, bind in ((DECLARATIONS, _waiting), (MEMORY_DECLARATIONS, _quick)):
            for name, (version, result, arguments) in table.items():
                symbol = f"glfs_{name}"
                if not hasattr(library, symbol):
                    raise BackendLoadError(
                        f"libgfapi has no {symbol}, which is as old as GlusterFS {version}: {OLDEST} or later is needed",
                        type="gluster",
                    )
                setattr(self, name, bind(library, symbol, result, arguments))


def _waiting(library: ctypes.CDLL, symbol: str, result: Any, arguments: tuple[Any, ...]) -> Any:
    return ctypes.CFUNCTYPE(result, *arguments, use_errno=True)((symbol, library))


def _quick(library: ctypes.CDLL, symbol: str, result: Any, arguments: tuple[Any, ...]) -> Any:
    return ctypes.PYFUNCTYPE(result, *arguments)((symbol, library))


_lock = threading.Lock()
_loaded: Gfapi | None = None


def _forget_lock() -> None:
    global _lock
    _lock = threading.Lock()  # in a child process, the thread that held it does not exist


os.register_at_fork(after_in_child=_forget_lock)


def load() -> Gfapi:
    """Return the library, loaded on first use. Any thread may call it.

    :raises BackendLoadError: naming the package to install; the next call tries again.
    """
    global _loaded
    with _lock:
        if _loaded is None:
            _loaded = Gfapi(_import_client(), stat_layout())
        return _loaded


def _import_client() -> ctypes.CDLL:
    """Load the library with the package gfapi.

    gfapi 1.2 imports ``Iterator`` from :mod:`collections`, which Python 3.10 removed, and raises a bare Exception if
    there is no library.
    """
    lend = not hasattr(collections, "Iterator")
    if lend:
        collections.Iterator = collections.abc.Iterator  # type: ignore[attr-defined]
    try:
        from gluster.gfapi import api
    except ModuleNotFoundError as error:
        raise BackendLoadError(f"the Python package gfapi is not installed: {error}", type="gluster") from error
    except Exception as error:
        message = (
            f"libgfapi cannot be loaded ({error}): install GlusterFS's client library, on Debian the package libgfapi0"
        )
        raise BackendLoadError(message, type="gluster") from error
    finally:
        if lend:
            del collections.Iterator  # type: ignore[attr-defined]
    client: ctypes.CDLL = api.client
    return client


def failure(what: str | bytes | None = None) -> OSError:
    """Return the OSError of the libgfapi call that just failed on this thread; ``what`` is its path."""
    number = ctypes.get_errno() or errno.EIO
    return OSError(number, os.strerror(number), what) if what is not None else OSError(number, os.strerror(number))


_local = threading.local()


def scratch(size: int) -> ctypes.Array[ctypes.c_char]:
    """Return a buffer of at least ``size`` bytes, which belongs to this thread until its next call.

    Keep it in a variable while the library has its address: at its end the interpreter frees a thread's storage, but
    not the variables of a thread that is still in a call.
    """
    room: ctypes.Array[ctypes.c_char] | None = getattr(_local, "room", None)
    if room is None or len(room) < size:
        room = _local.room = ctypes.create_string_buffer(size)
    return room
