"""Translation of backends' and storage errors into astore's own, with the pool's name."""

from __future__ import annotations

from astore.errors import (
    AstoreError,
    BackendError,
    DefinitionError,
    InvalidStateError,
    LaneTimeoutError,
    ManagerClosedError,
    PoolInaccessibleError,
    StorageError,
    StoreError,
    UnsupportedOperationError,
    VolumeBusyError,
    from_os_error,
    is_shortage,
    reason,
)

_PASSED_ON = (
    InvalidStateError,
    BackendError,
    DefinitionError,
    UnsupportedOperationError,
    ManagerClosedError,
    StoreError,
)
"""Errors that are passed on unchanged."""


def about_pool(pool: str, operation: str, error: Exception) -> Exception:
    """Return the error of an operation on a whole pool, with the pool's name in it.

    It is a PoolInaccessibleError, unless the pool's storage has nothing to do with it.
    """
    if isinstance(error, _PASSED_ON):
        return error
    what = f"pool {pool!r}: {operation}"
    if (
        short := next((one for one in (error, error.__cause__) if one is not None and is_shortage(one)), None)
    ) is not None:
        return StorageError(f"{what}: {reason(short)}", errno=getattr(short, "errno", None), pool=pool)
    if isinstance(error, StorageError):
        if error.pool is not None:
            return error
        return PoolInaccessibleError(
            f"{what}: {reason(error)}", errno=error.errno, pool=pool, libvirt_code=error.libvirt_code
        )
    if isinstance(error, TimeoutError):
        return LaneTimeoutError(f"{what}: {reason(error) if str(error) else 'not in time'}", lane=pool)
    if isinstance(error, OSError):
        return from_os_error(error, what, pool=pool, inaccessible=True)
    if isinstance(error, AstoreError):
        return PoolInaccessibleError(f"{what}: {reason(error)}", pool=pool, libvirt_code=error.libvirt_code)
    return PoolInaccessibleError(f"{what}: the backend failed with {type(error).__name__}: {reason(error)}", pool=pool)


def about_volume(pool: str, error: Exception) -> Exception:
    """Return the error of an operation on a volume, with the pool's name in it."""
    if isinstance(error, StorageError):
        if error.pool is None:
            error.pool = pool
            error.message = f"pool {pool!r}: {error.message}"
        return error
    if isinstance(error, VolumeBusyError) and not error.pool:
        return VolumeBusyError(f"pool {pool!r}: {error}", pool=pool, state=error.state, operation=error.operation)
    if isinstance(error, (AstoreError, TimeoutError)) or not isinstance(error, OSError):
        return error
    return StorageError(f"pool {pool!r}: {reason(error)}", errno=error.errno, pool=pool)
