"""The declarations of libiscsi's functions and structures, as in its ``iscsi.h`` and ``scsi-lowlevel.h`` of version 1.19.

:func:`load` returns the process's only :class:`Libiscsi`. Its attributes are the bare functions, without the prefix
``iscsi_``. Pointers are integers (None for NULL). Nothing here waits: all functions that libiscsi calls asynchronous return
at once, and :attr:`Libiscsi.service` reads and writes what the socket has or takes now.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import partial
from typing import Any, Final, NamedTuple

from astore.c_library import CLibrary, Loaded, quick, waits
from astore.errors import BackendLoadError

LIBRARIES: Final = ("libiscsi.so.7", "libiscsi.so.8", "libiscsi.so.9", "libiscsi.so.11")
"""The library's names: that of Debian and Ubuntu, and those of Fedora's versions 1.18 to 1.20."""

OLDEST: Final = "1.18"
"""The oldest libiscsi that is supported. Its symbols tell the version."""

SESSION_DISCOVERY: Final = 1
SESSION_NORMAL: Final = 2
HEADER_DIGEST_NONE_CRC32C: Final = 1
XFER_NONE: Final = 0
XFER_READ: Final = 1
XFER_WRITE: Final = 2

GOOD: Final = 0
CHECK_CONDITION: Final = 2
BUSY: Final = 8
RESERVATION_CONFLICT: Final = 0x18
TASK_SET_FULL: Final = 0x28
TASK_ABORTED: Final = 0x40
CANCELLED: Final = 0x0F000000
ERROR: Final = 0x0F000001
TIMEOUT: Final = 0x0F000002

Pointer = int | None
_ptr = ctypes.c_void_p
_text = ctypes.c_char_p
_int = ctypes.c_int
_uint = ctypes.c_uint32

COMMAND_DONE: Final = ctypes.CFUNCTYPE(None, _ptr, _int, _ptr, _ptr)
"""The type of a callback: context, status, what the command is about, private data."""


class Task(ctypes.Structure):
    """The beginning of ``struct scsi_task``: what became of a command."""

    _fields_ = (
        ("status", _int),
        ("cdb_size", _int),
        ("xfer_dir", _int),
        ("expected", _int),
        ("cdb", ctypes.c_ubyte * 16),
        ("residual_status", _int),
        ("residual", ctypes.c_size_t),
        ("error_type", ctypes.c_ubyte),
        ("sense_key", _int),
        ("sense_code", _int),
    )


class Portal(ctypes.Structure):
    """``struct iscsi_target_portal``: an address of a target in the answer to a discovery."""

    _fields_ = (("next", _ptr), ("portal", _text))


class Discovered(ctypes.Structure):
    """``struct iscsi_discovery_address``: a target in the answer to a discovery."""

    _fields_ = (("next", _ptr), ("name", _text), ("portals", _ptr))


_SCSI: Final = frozenset(
    {"scsi_create_task", "scsi_task_add_data_in_buffer", "scsi_task_add_data_out_buffer", "scsi_free_scsi_task"}
)
"""The functions whose names begin with ``scsi_`` in the library."""


_moves = partial(waits, OLDEST)
_quick = partial(quick, OLDEST)


class Libiscsi(CLibrary, type="iscsi-direct", name="libiscsi", product="version", oldest=OLDEST):
    """libiscsi's functions: each with its type in Python, and its declaration in C.

    :param library: the loaded library.
    :raises BackendLoadError: naming the first missing symbol, or telling that ``struct scsi_task`` is not as expected.
    """

    create_context: Callable[[bytes], Pointer] = _moves(_ptr, _text)
    destroy_context: Callable[[int], int] = _moves(_int, _ptr)
    set_targetname: Callable[[int, bytes], int] = _quick(_int, _ptr, _text)
    set_session_type: Callable[[int, int], int] = _quick(_int, _ptr, _int)
    set_header_digest: Callable[[int, int], int] = _quick(_int, _ptr, _int)
    set_isid_random: Callable[[int, int, int], int] = _quick(_int, _ptr, _uint, _uint)
    set_initiator_username_pwd: Callable[[int, bytes, bytes], int] = _quick(_int, _ptr, _text, _text)
    set_noautoreconnect: Callable[[int, int], None] = _quick(None, _ptr, _int)
    full_connect_async: Callable[[int, bytes, int, Any, int], int] = _moves(_int, _ptr, _text, _int, COMMAND_DONE, _ptr)
    logout_async: Callable[[int, Any, int], int] = _quick(_int, _ptr, COMMAND_DONE, _ptr)
    discovery_async: Callable[[int, Any, int], int] = _quick(_int, _ptr, COMMAND_DONE, _ptr)
    nop_out_async: Callable[[int, Any, None, int, int], int] = _quick(_int, _ptr, COMMAND_DONE, _ptr, _int, _ptr)
    scsi_command_async: Callable[[int, int, int, Any, Any, int], int] = _quick(
        _int, _ptr, _int, _ptr, COMMAND_DONE, _ptr, _ptr
    )
    get_fd: Callable[[int], int] = _quick(_int, _ptr)
    which_events: Callable[[int], int] = _quick(_int, _ptr)
    service: Callable[[int, int], int] = _moves(_int, _ptr, _int)
    is_logged_in: Callable[[int], int] = _quick(_int, _ptr)
    get_error: Callable[[int], bytes | None] = _quick(_text, _ptr)
    scsi_create_task: Callable[[int, bytes, int, int], Pointer] = _quick(_ptr, _int, _text, _int, _int)
    scsi_task_add_data_in_buffer: Callable[[int, int, int], int] = _quick(_int, _ptr, _int, _ptr)
    scsi_task_add_data_out_buffer: Callable[[int, int, int], int] = _quick(_int, _ptr, _int, _ptr)
    scsi_free_scsi_task: Callable[[int], None] = _quick(None, _ptr)

    def __init__(self, library: ctypes.CDLL) -> None:
        super().__init__(lambda name: (library, name if name in _SCSI else f"iscsi_{name}"))
        self._check_layout()

    def _check_layout(self) -> None:
        """Compare the structure of a task with what the library makes."""
        cdb = bytes(range(1, 17))
        made = self.scsi_create_task(len(cdb), cdb, XFER_READ, 4096)
        if made is None:
            raise BackendLoadError("libiscsi has no memory for a task", type="iscsi-direct")
        task = Task.from_address(made)
        same = (task.cdb_size, task.xfer_dir, task.expected, bytes(task.cdb)) == (16, XFER_READ, 4096, cdb)
        self.scsi_free_scsi_task(made)
        if not same:
            raise BackendLoadError(
                "libiscsi's struct scsi_task is not that of versions 1.18 to 1.20", type="iscsi-direct"
            )


def _find() -> ctypes.CDLL:
    failed: OSError | None = None
    for name in LIBRARIES:
        try:
            return ctypes.CDLL(name)
        except OSError as error:
            failed = failed or error
    raise BackendLoadError(
        f"libiscsi cannot be loaded ({failed}): install it, on Debian the package libiscsi7", type="iscsi-direct"
    ) from failed


load: Final = Loaded(lambda: Libiscsi(_find()))
"""Return the library, loaded on first use. Any thread may call it."""


class Memory(NamedTuple):
    """Bytes that libiscsi may read or write. They stay where they are while ``kept`` is referenced."""

    address: int
    length: int
    kept: object

    def part(self, start: int, stop: int) -> Memory:
        """Return a part of it."""
        return Memory(self.address + start, stop - start, self.kept)


def memory_of(data: bytes | bytearray | memoryview) -> Memory:
    """Return a buffer's memory. One that cannot be lent is copied, and can be read only."""
    if isinstance(data, memoryview) and (data.readonly or not data.c_contiguous):
        data = bytes(data)
    if isinstance(data, bytes):
        return Memory(ctypes.cast(ctypes.c_char_p(data), _ptr).value or 0, len(data), data)
    length = data.nbytes if isinstance(data, memoryview) else len(data)
    lent = (ctypes.c_char * length).from_buffer(data)
    return Memory(ctypes.addressof(lent), length, lent)
