"""Every exception that astore raises on purpose.

::

    AstoreError
    ├── DefinitionError (ValueError)            a definition or a name is not acceptable: line, element
    │   └── SourceConflictError                 … since another pool has that name, uuid or source
    ├── NotFoundError (LookupError)
    │   ├── PoolNotFoundError
    │   └── VolumeNotFoundError
    ├── InvalidStateError                       not in this state: pool, state, operation
    │   ├── VolumeBusyError                     … since somebody else is writing the volume
    │   └── VolumeInUseError                    … since other volumes are backed by it: dependents
    ├── UnsupportedOperationError               the backend lacks the ability: pool, type, operation
    ├── BackendError                            the registry's: type
    │   ├── UnknownBackendError (LookupError)   nobody drives this pool type
    │   ├── BackendConflictError                two claim one type, or it is registered already
    │   ├── BackendLoadError                    its import failed, hung, or its api_version does not fit
    │   └── BackendInUseError                   pools use it
    ├── StorageError (OSError)                  the storage said no: errno, pool, host, volume …
    │   ├── PoolInaccessibleError               … for the whole pool
    │   ├── VolumeExistsError (FileExistsError) there is a volume of this name already
    │   ├── TransferError                       an upload, copy or wipe broke off: done
    │   └── StoreError                          the state folder cannot be read or written
    ├── LaneTimeoutError (TimeoutError)         a call passed its deadline; its thread may be stuck
    ├── LaneStuckError (TimeoutError)           all the pool's threads are stuck: not even tried
    ├── CommandError                            a program failed: argv, returncode, stderr
    └── ManagerClosedError                      used after its ``async with``

Timeouts are ``TimeoutError`` as well; ``asyncio.CancelledError`` is never wrapped.

Each has a ``libvirt_code``, what libvirt's ``get_error_code()`` gives in the same situation (:class:`LibvirtCode`)::

    INTERNAL_ERROR (1)           AstoreError, CommandError, BackendError and those below it
    NO_SUPPORT (3)               UnsupportedOperationError
    INVALID_CONN (6)             ManagerClosedError
    OPERATION_FAILED (9)         SourceConflictError
    XML_ERROR (27)               DefinitionError; or one of INVALID_ARG (8), XML_DETAIL (35), OVERFLOW (82), …
    SYSTEM_ERROR (38)            StorageError, PoolInaccessibleError, TransferError, StoreError
    NO_STORAGE_POOL (49)         PoolNotFoundError
    NO_STORAGE_VOL (50)          VolumeNotFoundError
    OPERATION_INVALID (55)       InvalidStateError, VolumeBusyError, VolumeInUseError, BackendInUseError
    OPERATION_TIMEOUT (68)       LaneTimeoutError, LaneStuckError
    STORAGE_VOL_EXIST (90)       VolumeExistsError

That is the class's; one error may have another, where libvirt itself tells what astore calls alike by several codes.
"""

from __future__ import annotations

import enum
import errno as _errno
import os
from collections.abc import Sequence


class LibvirtCode(enum.IntEnum):
    """libvirt's numbers for errors, less ``VIR_ERR_`` (virErrorNumber in libvirt/virterror.h): those its storage driver has."""

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
    CONFIG_UNSUPPORTED = 67
    OPERATION_TIMEOUT = 68
    OVERFLOW = 82
    STORAGE_VOL_EXIST = 90


class AstoreError(Exception):
    """The base of all of them. ``libvirt_code`` is what libvirt's ``get_error_code()`` gives in its place."""

    libvirt_code: LibvirtCode = LibvirtCode.INTERNAL_ERROR


class DefinitionError(AstoreError, ValueError):
    """A definition, a name or an option is not acceptable.

    ``line`` and ``element`` say where, if it came from a document.
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
        if libvirt_code is not None:
            self.libvirt_code = libvirt_code
        where = []
        if line is not None:
            where.append(f"line {line}")
        if element is not None:
            where.append(f"<{element}>")
        super().__init__(f"{', '.join(where)}: {message}" if where else message)


class SourceConflictError(DefinitionError):
    """Another pool (``other``) has the same ``field``: name, uuid, or a part of the source."""

    libvirt_code = LibvirtCode.OPERATION_FAILED

    def __init__(self, message: str, *, other: str, field: str, libvirt_code: LibvirtCode | None = None) -> None:
        super().__init__(message, libvirt_code=libvirt_code)
        self.other = other
        self.field = field


class NotFoundError(AstoreError, LookupError):
    """There is no such thing; ``what`` was looked for."""

    def __init__(self, message: str, *, what: str = "", libvirt_code: LibvirtCode | None = None) -> None:
        super().__init__(message)
        self.what = what
        if libvirt_code is not None:
            self.libvirt_code = libvirt_code


class PoolNotFoundError(NotFoundError):
    """There is no such pool."""

    libvirt_code = LibvirtCode.NO_STORAGE_POOL


class VolumeNotFoundError(NotFoundError):
    """There is no such volume."""

    libvirt_code = LibvirtCode.NO_STORAGE_VOL


class InvalidStateError(AstoreError):
    """What was asked cannot be done in this state."""

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
        super().__init__(message)
        if libvirt_code is not None:
            self.libvirt_code = libvirt_code
        self.pool = pool
        self.state = state
        self.operation = operation


class VolumeBusyError(InvalidStateError):
    """Somebody else is writing the volume: another task, another process, or another machine."""


class VolumeInUseError(InvalidStateError):
    """Other volumes are backed by this one: ``dependents``, by their keys. ``force=True`` does it all the same."""

    def __init__(self, message: str, *, pool: str = "", operation: str = "", dependents: Sequence[str] = ()) -> None:
        super().__init__(message, pool=pool, operation=operation)
        self.dependents = tuple(dependents)


class UnsupportedOperationError(AstoreError):
    """The pool's backend does not have this ability."""

    libvirt_code = LibvirtCode.NO_SUPPORT

    def __init__(self, *, pool: str | None, type: str, operation: str) -> None:
        who = f"pool {pool!r}: " if pool else ""
        super().__init__(f"{who}pools of type {type!r} do not support {operation!r}")
        self.pool = pool
        self.type = type
        self.operation = operation


class BackendError(AstoreError):
    """Something is wrong with a backend; ``type`` is the pool type it drives."""

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
    """Pools use the backend."""

    libvirt_code = LibvirtCode.OPERATION_INVALID


class StorageError(AstoreError, OSError):
    """The storage refused. ``errno`` is set where there is one (else EIO)."""

    libvirt_code = LibvirtCode.SYSTEM_ERROR

    def __init__(
        self,
        message: str,
        *,
        errno: int | None = None,
        pool: str | None = None,
        libvirt_code: LibvirtCode | None = None,
    ) -> None:
        super().__init__(errno if errno is not None else _errno.EIO, message)
        if libvirt_code is not None:
            self.libvirt_code = libvirt_code
        self.message = message
        self.pool = pool

    def __str__(self) -> str:
        return self.message


class PoolInaccessibleError(StorageError):
    """The pool's source does not answer."""


class VolumeExistsError(StorageError, FileExistsError):
    """There is a volume of this name already, or something else is in its place."""

    libvirt_code = LibvirtCode.STORAGE_VOL_EXIST


class TransferError(StorageError):
    """An upload, a copy or a wipe broke off; the storage had accepted ``done`` bytes when it did.

    What a cache of the storage's accepts may be lost all the same: a FUSE client's or the kernel's, until it was synced.
    """

    def __init__(self, message: str, *, errno: int | None = None, pool: str | None = None, done: int = 0) -> None:
        super().__init__(message, errno=errno, pool=pool)
        self.done = done


class StoreError(StorageError):
    """The store of definitions, such as the state folder, cannot be read or written."""


class LaneTimeoutError(AstoreError, TimeoutError):
    """A blocking call passed its deadline of ``timeout`` seconds; its thread is left behind."""

    libvirt_code = LibvirtCode.OPERATION_TIMEOUT

    def __init__(self, message: str, *, lane: str = "", timeout: float = 0.0) -> None:
        super().__init__(message)
        self.lane = lane
        self.timeout = timeout


class LaneStuckError(AstoreError, TimeoutError):
    """Every thread of the lane is stuck in a call that passed its deadline, so this one was not tried."""

    libvirt_code = LibvirtCode.OPERATION_TIMEOUT

    def __init__(self, message: str, *, lane: str = "") -> None:
        super().__init__(message)
        self.lane = lane


class CommandError(AstoreError):
    """A program failed; ``stderr`` is what it said."""

    def __init__(self, message: str, *, argv: Sequence[str], returncode: int | None, stderr: str) -> None:
        super().__init__(message)
        self.argv = tuple(argv)
        self.returncode = returncode
        self.stderr = stderr


class ManagerClosedError(AstoreError):
    """The Manager was left (or not yet entered)."""

    libvirt_code = LibvirtCode.INVALID_CONN

    def __init__(self, message: str = "the Manager is not open: use it inside `async with`") -> None:
        super().__init__(message)


def reason(error: BaseException) -> str:
    """What an error says, in one line, without its errno number."""
    if isinstance(error, OSError) and not isinstance(error, AstoreError):
        text = error.strerror or (os.strerror(error.errno) if error.errno else "") or str(error)
        if error.filename is not None:
            name = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else str(error.filename)
            text = f"{name}: {text}"
    else:
        text = str(error) or type(error).__name__
    return " ".join(printable(text).split())


def printable(text: str) -> str:
    """``text`` with everything that a terminal or UTF-8 would choke on written as an escape."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in _readable(text))


def _readable(text: str) -> str:
    # bytes that were not UTF-8 arrive as lone surrogates: \udce4 reads worse than \xe4
    return "".join(f"\\x{ord(c) - 0xDC00:02x}" if "\udc80" <= c <= "\udcff" else c for c in text)


def from_os_error(error: OSError, what: str, *, pool: str | None = None, inaccessible: bool = False) -> StorageError:
    """The one place where an OSError becomes astore's: ``what`` says what was tried, on what."""
    kind = PoolInaccessibleError if inaccessible else StorageError
    translated = kind(f"{what}: {reason(error)}", errno=error.errno, pool=pool)
    translated.__cause__ = error
    return translated
