"""Every exception that astore raises on purpose.

::

    AstoreError
    ├── DefinitionError (ValueError)            a definition or a name is not acceptable: line, element
    │   └── SourceConflictError                 … because another pool has that name, uuid or source
    ├── NotFoundError (LookupError)
    │   ├── PoolNotFoundError
    │   ├── SecretNotFoundError                 no such secret, or it has no value
    │   └── VolumeNotFoundError
    ├── InvalidStateError                       not in this state: pool, state, operation
    │   ├── VolumeBusyError                     … because another writer has the volume
    │   └── VolumeInUseError                    … because other volumes are backed by it: dependents
    ├── UnsupportedOperationError               the backend lacks the ability: pool, type, operation
    ├── BackendError                            a backend is missing or unusable: type
    │   ├── UnknownBackendError (LookupError)   no backend drives this pool type
    │   ├── BackendConflictError                two claim one type, or it is registered already
    │   ├── BackendLoadError                    its import failed, hung, or its api_version does not fit
    │   └── BackendInUseError                   pools use it
    ├── StorageError (OSError)                  the storage refused: errno, pool
    │   ├── PoolInaccessibleError               … the whole pool
    │   ├── VolumeExistsError (FileExistsError) a volume has this name already
    │   ├── TransferError                       an upload, copy or wipe broke off: done, synced
    │   └── StoreError                          the state folder cannot be read or written
    ├── LaneTimeoutError (TimeoutError)         a call passed its deadline; its thread may be stuck
    ├── LaneStuckError (TimeoutError)           all the pool's threads are stuck: the call was not tried
    ├── CommandError                            a program failed: argv, returncode, stderr
    └── ManagerClosedError                      used after its ``async with``

Timeouts are ``TimeoutError`` as well; ``asyncio.CancelledError`` is never wrapped.

Each has a ``libvirt_code``: the number that libvirt's ``get_error_code()`` returns in the same situation
(:class:`LibvirtCode`; docs/porting-from-libvirt.md has the table). It is the class's, but a single error may have another
one, where libvirt has several codes for one of these classes.
"""

from __future__ import annotations

import enum
import errno as _errno
import os
from collections.abc import Sequence

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")


class LibvirtCode(enum.IntEnum):
    """The error numbers of libvirt's storage driver, without ``VIR_ERR_`` (virErrorNumber in libvirt/virterror.h)."""

    INTERNAL_ERROR = 1
    NO_SUPPORT = 3
    INVALID_CONN = 6
    INVALID_ARG = 8
    OPERATION_FAILED = 9
    XML_ERROR = 27
    XML_DETAIL = 35
    SYSTEM_ERROR = 38
    NO_STORAGE_POOL = 49
    NO_STORAGE_VOL = 50
    OPERATION_INVALID = 55
    INVALID_SECRET = 65
    NO_SECRET = 66
    CONFIG_UNSUPPORTED = 67
    OPERATION_TIMEOUT = 68
    OVERFLOW = 82
    STORAGE_VOL_EXIST = 90


class AstoreError(Exception):
    """The base of all errors. ``libvirt_code`` is what libvirt's ``get_error_code()`` returns in the same situation."""

    libvirt_code: LibvirtCode = LibvirtCode.INTERNAL_ERROR

    def __init__(self, *args: object, libvirt_code: LibvirtCode | None = None) -> None:
        super().__init__(*args)
        if libvirt_code is not None:
            self.libvirt_code = libvirt_code


class DefinitionError(AstoreError, ValueError):
    """A definition, a name or an option is not acceptable.

    ``line`` and ``element`` give the place in the document, if there is one.
    """

    libvirt_code = LibvirtCode.XML_ERROR

    def __init__(
        self,
        message: str,
        *,
        line: int | None = None,
        element: str | None = None,
        libvirt_code: LibvirtCode | None = None,
    ) -> None:
        self.line = line
        self.element = element
        where = []
        if line is not None:
            where.append(f"line {line}")
        if element is not None:
            where.append(f"<{element}>")
        super().__init__(f"{', '.join(where)}: {message}" if where else message, libvirt_code=libvirt_code)


class SourceConflictError(DefinitionError):
    """Another pool (``other``) has the same ``field``: name, uuid, or a part of the source."""

    libvirt_code = LibvirtCode.OPERATION_FAILED

    def __init__(self, message: str, *, other: str, field: str, libvirt_code: LibvirtCode | None = None) -> None:
        super().__init__(message, libvirt_code=libvirt_code)
        self.other = other
        self.field = field


class NotFoundError(AstoreError, LookupError):
    """Nothing of this name exists; ``what`` is the name."""

    def __init__(self, message: str, *, what: str = "", libvirt_code: LibvirtCode | None = None) -> None:
        super().__init__(message, libvirt_code=libvirt_code)
        self.what = what


class PoolNotFoundError(NotFoundError):
    """No pool has this name, uuid or target."""

    libvirt_code = LibvirtCode.NO_STORAGE_POOL


class VolumeNotFoundError(NotFoundError):
    """No volume has this name, key or path."""

    libvirt_code = LibvirtCode.NO_STORAGE_VOL


class SecretNotFoundError(NotFoundError):
    """There is no such secret, or it has no value."""

    libvirt_code = LibvirtCode.NO_SECRET


class InvalidStateError(AstoreError):
    """The operation is not allowed in this state."""

    libvirt_code = LibvirtCode.OPERATION_INVALID

    def __init__(
        self,
        message: str,
        *,
        pool: str = "",
        state: str = "",
        operation: str = "",
        libvirt_code: LibvirtCode | None = None,
    ) -> None:
        super().__init__(message, libvirt_code=libvirt_code)
        self.pool = pool
        self.state = state
        self.operation = operation


class VolumeBusyError(InvalidStateError):
    """Another task, process or machine is writing the volume."""


class VolumeInUseError(InvalidStateError):
    """Other volumes are backed by this one; ``dependents`` are their keys. ``force=True`` overrides the refusal."""

    def __init__(self, message: str, *, pool: str = "", operation: str = "", dependents: Sequence[str] = ()) -> None:
        super().__init__(message, pool=pool, operation=operation)
        self.dependents: tuple[str, ...] = tuple(dependents)


class UnsupportedOperationError(AstoreError):
    """The pool's backend lacks this ability."""

    libvirt_code = LibvirtCode.NO_SUPPORT

    def __init__(self, *, pool: str | None, type: str, operation: str) -> None:
        prefix = f"pool {pool!r}: " if pool else ""
        super().__init__(f"{prefix}pools of type {type!r} do not support {operation!r}")
        self.pool = pool
        self.type = type
        self.operation = operation


class BackendError(AstoreError):
    """A backend is missing, unusable or at fault; ``type`` is the pool type it drives."""

    def __init__(self, message: str, *, type: str = "") -> None:
        super().__init__(message)
        self.type = type


class UnknownBackendError(BackendError, LookupError):
    """No backend is registered for this pool type."""


class BackendConflictError(BackendError):
    """Two backends claim one pool type."""


class BackendLoadError(BackendError):
    """A backend cannot be used: its import failed or hung, its api_version does not fit, or a library is missing."""


class BackendInUseError(BackendError):
    """Active pools use the backend."""

    libvirt_code = LibvirtCode.OPERATION_INVALID


class StorageError(AstoreError, OSError):
    """The storage refused. ``errno`` is EIO if the storage gave none."""

    libvirt_code = LibvirtCode.SYSTEM_ERROR

    def __init__(
        self,
        message: str,
        *,
        errno: int | None = None,
        pool: str | None = None,
        libvirt_code: LibvirtCode | None = None,
    ) -> None:
        super().__init__(errno if errno is not None else _errno.EIO, message, libvirt_code=libvirt_code)
        self.message = message
        self.pool = pool

    def __str__(self) -> str:
        return self.message


class PoolInaccessibleError(StorageError):
    """The pool's source does not answer."""


class VolumeExistsError(StorageError, FileExistsError):
    """A volume, or something else on the storage, has this name already."""

    libvirt_code = LibvirtCode.STORAGE_VOL_EXIST


class TransferError(StorageError):
    """An upload, a copy or a wipe broke off.

    ``done`` bytes were written by then. What was written and not synced may still be lost from a cache: the kernel's, a FUSE
    client's or a server's. ``synced`` bytes of an upload are certain to have arrived; of a copy or wipe that is not known (0).
    """

    def __init__(
        self, message: str, *, errno: int | None = None, pool: str | None = None, done: int = 0, synced: int = 0
    ) -> None:
        super().__init__(message, errno=errno, pool=pool)
        self.done = done
        self.synced = synced


class StoreError(StorageError):
    """The store of definitions (for example the state folder) cannot be read or written."""


class LaneTimeoutError(AstoreError, TimeoutError):
    """A blocking call passed its deadline of ``timeout`` seconds; its thread goes on."""

    libvirt_code = LibvirtCode.OPERATION_TIMEOUT

    def __init__(self, message: str, *, lane: str = "", timeout: float = 0.0) -> None:
        super().__init__(message)
        self.lane = lane
        self.timeout = timeout


class LaneStuckError(AstoreError, TimeoutError):
    """Every thread of the lane is stuck in a call that passed its deadline, so this call was not tried."""

    libvirt_code = LibvirtCode.OPERATION_TIMEOUT

    def __init__(self, message: str, *, lane: str = "") -> None:
        super().__init__(message)
        self.lane = lane


class CommandError(AstoreError):
    """A program failed; ``stderr`` is its output."""

    def __init__(self, message: str, *, argv: Sequence[str], returncode: int | None, stderr: str) -> None:
        super().__init__(message)
        self.argv: tuple[str, ...] = tuple(argv)
        self.returncode = returncode
        self.stderr = stderr


class ManagerClosedError(AstoreError):
    """The Manager is not open: it was closed, or never entered."""

    libvirt_code = LibvirtCode.INVALID_CONN

    def __init__(self, message: str = "the Manager is not open: use it inside `async with`") -> None:
        super().__init__(message)


def reason(error: BaseException) -> str:
    """Return an error's message in one line, without the errno number."""
    if isinstance(error, OSError) and not isinstance(error, AstoreError):
        text = error.strerror or (os.strerror(error.errno) if error.errno else "") or str(error)
        if is_shortage(error):
            text += ": raise the limit (ulimit -n)" if error.errno == _errno.EMFILE else " (fs.file-max)"
        if error.filename is not None and not isinstance(error.filename, int):  # an int is a descriptor's number
            name = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else str(error.filename)
            text = f"{name}: {text}"
    else:
        text = str(error) or type(error).__name__
    return " ".join(printable(text).split())


def is_shortage(error: BaseException) -> bool:
    """Return whether an error says that this process or machine has no descriptor left, and nothing about the storage."""
    return isinstance(error, OSError) and error.errno in (_errno.EMFILE, _errno.ENFILE)


def size(value: int) -> str:
    """Format a number of bytes: ``10.00 GiB``, or ``512 B``."""
    amount = float(value)
    for unit in _UNITS:
        if amount < 1024 or unit == _UNITS[-1]:
            break
        amount /= 1024
    return f"{value} B" if unit == "B" else f"{amount:.2f} {unit}"


def sizes(one: int, other: int) -> tuple[str, str]:
    """Format two numbers of bytes, so that they look different if they are: ``1.00 MiB (1048577 bytes)``."""
    texts = size(one), size(other)
    if texts[0] != texts[1] or one == other:
        return texts
    return f"{texts[0]} ({one} bytes)", f"{texts[1]} ({other} bytes)"


def printable(text: str) -> str:
    """Return ``text`` with escapes for everything that a terminal or UTF-8 cannot take."""
    if text.isascii() and text.isprintable():
        return text
    # bytes that are not UTF-8 arrive as lone surrogates: show \xe4 instead of \udce4
    text = "".join(f"\\x{ord(c) - 0xDC00:02x}" if "\udc80" <= c <= "\udcff" else c for c in text)
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def one_line(text: str, most: int = 500) -> str:
    """Return the text of a program or server for a message: one line of printable characters, at most ``most``."""
    return printable(" ".join(text[: 8 * most].split()))[:most]


def from_os_error(error: OSError, what: str, *, pool: str | None = None, inaccessible: bool = False) -> StorageError:
    """Return an OSError as an error of astore's, with the OSError as its cause. ``what`` names the operation and its object."""
    kind = PoolInaccessibleError if inaccessible else StorageError
    translated = kind(f"{what}: {reason(error)}", errno=error.errno, pool=pool)
    translated.__cause__ = error
    return translated
