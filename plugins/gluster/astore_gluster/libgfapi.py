"""The declarations of libgfapi's functions, with the types of its headers; the package gfapi loads the library.

gfapi's own declarations are not used: several are too narrow (offsets as ``int``) or lack arguments
(``glfs_ftruncate``). Its Dir, File and Volume objects call the library when they are garbage-collected, which crashes
after the end of the connection. The declarations are those of ``glfs.h`` and ``glfs-handles.h`` of GlusterFS 10. Symbols
tell the version: the oldest that is supported is 6.0.

:func:`load` returns the process's only :class:`Gfapi`. Its attributes are the bare functions, without the prefix
``glfs_``. Pointers are integers (None for NULL). A failed call returns a negative number or None, and leaves its errno
in :func:`ctypes.get_errno`; :func:`failure` makes an OSError of it.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import threading
from collections.abc import Callable
from importlib.machinery import PathFinder
from importlib.util import find_spec, module_from_spec
from typing import Final

from astore.c_library import CLibrary, Loaded, quick, waits
from astore.errors import BackendLoadError
from astore.libraries import found_by_the_linker
from astore_gluster.layout import StatLayout, stat_layout

XREADDIRP_STAT: Final = 1
XREADDIRP_HANDLE: Final = 2
LOG_NONE: Final = 0
UPCALL_INODE_INVALIDATE: Final = 1
EVENT_ANY: Final = 0xFFFFFFFF
HANDLE_LENGTH: Final = 16
UP_SIZE: Final = 0x8
UP_TIMES: Final = 0x10
UP_FORGET: Final = 0x100

Pointer = int | None
_ptr = ctypes.c_void_p
_text = ctypes.c_char_p
_int = ctypes.c_int
_uint = ctypes.c_uint
_off = ctypes.c_int64
_size = ctypes.c_size_t
_ssize = ctypes.c_ssize_t


class Gfapi(CLibrary, type="gluster", name="libgfapi", product="GlusterFS", oldest="6.0"):
    """libgfapi's functions: each with its type in Python, and its declaration in C.

    :param library: the loaded library.
    :param layout: the layout of ``struct stat`` on this machine.
    :raises BackendLoadError: naming the first missing symbol, or the unknown machine.
    """

    new: Callable[[bytes], Pointer] = waits("3.4.0", _ptr, _text)
    set_volfile_server: Callable[[int, bytes, bytes, int], int] = waits("3.4.0", _int, _ptr, _text, _text, _int)
    set_logging: Callable[[int, bytes, int], int] = waits("3.4.0", _int, _ptr, _text, _int)
    set_xlator_option: Callable[[int, bytes, bytes, bytes], int] = waits("3.4.0", _int, _ptr, _text, _text, _text)
    init: Callable[[int], int] = waits("3.4.0", _int, _ptr)
    fini: Callable[[int], int] = waits("3.4.0", _int, _ptr)
    opendir: Callable[[int, bytes], Pointer] = waits("3.4.0", _ptr, _ptr, _text)
    closedir: Callable[[int], int] = waits("3.4.0", _int, _ptr)
    xreaddirplus_r: Callable[[int, int, int, int, int], int] = waits(
        "3.11.0", _int, _ptr, ctypes.c_uint32, _ptr, _ptr, _ptr
    )
    h_lookupat: Callable[[int, Pointer, bytes, int, int], Pointer] = waits("3.7.4", _ptr, _ptr, _ptr, _text, _ptr, _int)
    h_anonymous_read: Callable[[int, int, int, int, int], int] = waits("3.7.0", _ssize, _ptr, _ptr, _ptr, _size, _off)
    h_close: Callable[[int], int] = waits("3.4.2", _int, _ptr)
    h_getxattrs: Callable[[int, int, bytes, int, int], int] = waits("3.5.1", _int, _ptr, _ptr, _text, _ptr, _size)
    h_link: Callable[[int, int, int, bytes], int] = waits("3.4.2", _int, _ptr, _ptr, _ptr, _text)
    get_volumeid: Callable[[int, int, int], int] = waits("3.5.0", _int, _ptr, _ptr, _size)
    getxattr: Callable[[int, bytes, bytes, int, int], int] = waits("3.4.0", _ssize, _ptr, _text, _text, _ptr, _size)
    setxattr: Callable[[int, bytes, bytes, bytes, int, int], int] = waits(
        "3.4.0", _int, _ptr, _text, _text, _ptr, _size, _int
    )
    fgetxattr: Callable[[int, bytes, int, int], int] = waits("3.4.0", _ssize, _ptr, _text, _ptr, _size)
    fsetxattr: Callable[[int, bytes, bytes, int, int], int] = waits("3.4.0", _int, _ptr, _text, _ptr, _size, _int)
    fremovexattr: Callable[[int, bytes], int] = waits("3.4.0", _int, _ptr, _text)
    stat: Callable[[int, bytes, int], int] = waits("3.4.0", _int, _ptr, _text, _ptr)
    lstat: Callable[[int, bytes, int], int] = waits("3.4.0", _int, _ptr, _text, _ptr)
    readlink: Callable[[int, bytes, int, int], int] = waits("3.4.0", _int, _ptr, _text, _ptr, _size)
    statvfs: Callable[[int, bytes, int], int] = waits("3.4.0", _int, _ptr, _text, _ptr)
    open: Callable[[int, bytes, int], Pointer] = waits("3.4.0", _ptr, _ptr, _text, _int)
    creat: Callable[[int, bytes, int, int], Pointer] = waits("3.4.0", _ptr, _ptr, _text, _int, _uint)
    close: Callable[[int], int] = waits("3.4.0", _int, _ptr)
    fstat: Callable[[int, int], int] = waits("3.4.0", _int, _ptr, _ptr)
    lseek: Callable[[int, int, int], int] = waits("3.4.0", _off, _ptr, _off, _int)
    fallocate: Callable[[int, int, int, int], int] = waits("3.5.0", _int, _ptr, _int, _off, _size)
    discard: Callable[[int, int, int], int] = waits("3.5.0", _int, _ptr, _off, _size)
    zerofill: Callable[[int, int, int], int] = waits("3.5.0", _int, _ptr, _off, _off)
    fchmod: Callable[[int, int], int] = waits("3.4.0", _int, _ptr, _uint)
    fchown: Callable[[int, int, int], int] = waits("3.4.0", _int, _ptr, _uint, _uint)
    chmod: Callable[[int, bytes, int], int] = waits("3.4.0", _int, _ptr, _text, _uint)
    chown: Callable[[int, bytes, int, int], int] = waits("3.4.0", _int, _ptr, _text, _uint, _uint)
    rename: Callable[[int, bytes, bytes], int] = waits("3.4.0", _int, _ptr, _text, _text)
    link: Callable[[int, bytes, bytes], int] = waits("3.4.0", _int, _ptr, _text, _text)
    unlink: Callable[[int, bytes], int] = waits("3.4.0", _int, _ptr, _text)
    mkdir: Callable[[int, bytes, int], int] = waits("3.4.0", _int, _ptr, _text, _uint)
    rmdir: Callable[[int, bytes], int] = waits("3.4.0", _int, _ptr, _text)
    h_open: Callable[[int, int, int], Pointer] = waits("3.4.2", _ptr, _ptr, _ptr, _int)
    posix_lock: Callable[[int, int, int], int] = waits("3.4.0", _int, _ptr, _int, _ptr)
    fd_set_lkowner: Callable[[int, int, int], int] = waits("3.10.7", _int, _ptr, _ptr, _int)
    # In 6.0 these got their pointers to struct glfs_stat, under the old names. A library with copy_file_range, which came
    # with the same version, has the new form.
    copy_file_range: Callable[[int, int, int, int, int, int, None, None, None], int] = waits(
        "6.0", _ssize, _ptr, _ptr, _ptr, _ptr, _size, _uint, _ptr, _ptr, _ptr
    )
    pread: Callable[[int, int, int, int, int, None], int] = waits("6.0", _ssize, _ptr, _ptr, _size, _off, _int, _ptr)
    pwrite: Callable[[int, int | bytes, int, int, int, None, None], int] = waits(
        "6.0", _ssize, _ptr, _ptr, _size, _off, _int, _ptr, _ptr
    )
    ftruncate: Callable[[int, int, None, None], int] = waits("6.0", _int, _ptr, _off, _ptr, _ptr)
    fsync: Callable[[int, None, None], int] = waits("6.0", _int, _ptr, _ptr, _ptr)

    h_poll_upcall: Callable[[int, int], int] = waits("3.7.16", _int, _ptr, _ptr)
    upcall_unregister: Callable[[int, int], int] = waits("3.13.0", _int, _ptr, ctypes.c_uint32)

    upcall_get_reason: Callable[[int], int] = quick("3.7.16", _int, _ptr)
    upcall_get_event: Callable[[int], Pointer] = quick("3.7.16", _ptr, _ptr)
    upcall_inode_get_flags: Callable[[int], int] = quick("3.7.16", ctypes.c_uint64, _ptr)
    upcall_inode_get_object: Callable[[int], Pointer] = quick("3.7.16", _ptr, _ptr)
    upcall_inode_get_pobject: Callable[[int], Pointer] = quick("3.7.16", _ptr, _ptr)
    upcall_inode_get_oldpobject: Callable[[int], Pointer] = quick("3.7.16", _ptr, _ptr)
    h_extract_handle: Callable[[int, int, int], int] = quick("3.4.2", _ssize, _ptr, _ptr, _int)
    xreaddirplus_get_stat: Callable[[Pointer], Pointer] = quick("3.11.0", _ptr, _ptr)
    xreaddirplus_get_object: Callable[[Pointer], Pointer] = quick("3.11.0", _ptr, _ptr)
    object_copy: Callable[[int], Pointer] = quick("3.11.0", _ptr, _ptr)
    free: Callable[[Pointer], None] = quick("3.7.16", None, _ptr)

    def __init__(self, library: ctypes.CDLL, layout: StatLayout | None) -> None:
        if layout is None:
            raise BackendLoadError(f"the layout of struct stat on {os.uname().machine} is not known", type="gluster")
        self.layout = layout
        super().__init__(lambda name: (library, f"glfs_{name}"))


load: Final = Loaded(lambda: Gfapi(_import_client(), stat_layout()))
"""Return the library, loaded on first use. Any thread may call it."""


def _import_client() -> ctypes.CDLL:
    """Load the library with the client module of the package gfapi, and without its other modules.

    Those of gfapi 1.2 do not work on Python 3.10 and later. The client module raises a bare Exception if there is no library.
    """
    try:
        package = find_spec("gluster.gfapi")
        places = None if package is None else package.submodule_search_locations
        spec = None if places is None else PathFinder.find_spec("gluster.gfapi.api", places)
        if spec is None or spec.loader is None:
            raise ModuleNotFoundError("No module named 'gluster.gfapi.api'", name="gluster.gfapi.api")
        api = module_from_spec(spec)
        with found_by_the_linker():
            spec.loader.exec_module(api)
    except ModuleNotFoundError as error:
        raise BackendLoadError(f"the Python package gfapi is not installed: {error}", type="gluster") from error
    except Exception as error:
        message = (
            f"libgfapi cannot be loaded ({error}): install GlusterFS's client library, on Debian the package libgfapi0"
        )
        raise BackendLoadError(message, type="gluster") from error
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


_kept: dict[str, ctypes.CDLL] = {}


def keep_modules() -> None:
    """Keep the modules that libgfapi has loaded in memory until the process ends. Call it before ``fini``. Blocks.

    ``glfs_fini`` unloads the volume's translators, while their threads may still be about to return: seen as a segmentation
    fault on a busy machine. See RTLD_NODELETE in dlopen(3).
    """
    with contextlib.suppress(OSError), open("/proc/self/maps", errors="surrogateescape") as maps:
        for line in maps:
            name = line[line.find("/") :].rstrip("\n")
            if "/glusterfs/" in name and name.endswith(".so") and name not in _kept:
                with contextlib.suppress(OSError):
                    _kept[name] = ctypes.CDLL(name, mode=os.RTLD_NOW | os.RTLD_NOLOAD | os.RTLD_NODELETE)
