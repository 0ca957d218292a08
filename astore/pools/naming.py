"""Names of volumes for libvirt, for QEMU and in the headers of images, asked of their backends. Nothing here waits.

Files and devices of this machine are named by their paths. Only the backend knows the names of a volume of the type
``network`` (:class:`~astore.backend.NamesVolumes`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar, cast

from astore.backend import Backend, DiskSource, NamesVolumes, QemuNode
from astore.errors import AstoreError, BackendError, BackendLoadError, UnsupportedOperationError, reason
from astore.model import VolumeInfo
from astore.pools.parts import Parts

T = TypeVar("T")

_able: dict[int, tuple[Backend, bool]] = {}  # by id: isinstance() with a Protocol takes longer than parsing a URL


def naming_of(pool: Parts) -> NamesVolumes | None:
    """Return the pool's backend if it names volumes; None if it does not, or is not loaded."""
    backend = pool.backend
    if backend is None:
        return None
    known = _able.get(id(backend))
    if known is None or known[0] is not backend:
        known = _able[id(backend)] = (backend, isinstance(backend, NamesVolumes))
    return cast(NamesVolumes, backend) if known[1] else None


def volume_named(pool: Parts, location: str) -> str | None:
    """Return the name of the pool's volume at a location; None if the location is not the pool's, or a path of this machine.

    :raises BackendError: the backend failed.
    """
    naming = None if location.startswith("/") else naming_of(pool)
    if naming is None:
        return None
    return _answer(pool, naming.volume_named, (str, type(None)), pool.definition, location)


def disk_source(pool: Parts, volume: VolumeInfo) -> DiskSource:
    """Return the source by which a libvirt domain reads a volume of the type ``network``.

    :raises BackendLoadError: the pool's backend is not loaded. UnsupportedOperationError: it lacks the ability.
        BackendError: it failed.
    """
    return _answer(pool, _naming_needed(pool).disk_source, DiskSource, pool.definition, volume)


def blockdev(pool: Parts, volume: VolumeInfo) -> QemuNode:
    """Return QEMU's node of a volume of the type ``network``. :raises: as :func:`disk_source`."""
    return _answer(pool, _naming_needed(pool).blockdev, dict, pool.definition, volume)


def unloaded_types(locations: Iterable[str], pools: Iterable[Parts]) -> set[str]:
    """Return the types of active pools whose backends are not loaded, and might know these locations."""
    if all(location.startswith("/") for location in locations):
        return set()
    return {pool.definition.type for pool in pools if pool.active and pool.backend is None}


def _naming_needed(pool: Parts) -> NamesVolumes:
    """Return the pool's backend. :raises BackendLoadError: it is not loaded. UnsupportedOperationError: it names no volumes."""
    type = pool.definition.type
    if pool.backend is None:
        raise BackendLoadError(
            f"pool {pool.name!r}: the backend of pool type {type!r} is not loaded, and it alone knows how its volumes "
            "are named to QEMU and libvirt: refresh the pool first",
            type=type,
        )
    naming = naming_of(pool)
    if naming is None:
        raise UnsupportedOperationError(pool=pool.name, type=type, operation="name-volumes")
    return naming


def _answer(pool: Parts, call: Callable[..., T], kind: Any, *args: object) -> T:
    """Call a backend. :raises BackendError: it raised something else than an AstoreError, or returned another type."""
    try:
        found = call(*args)
        if not isinstance(found, kind):
            raise TypeError(f"{call.__name__}() returned {found!r}")
    except AstoreError:
        raise
    except Exception as error:
        why = f"the backend failed with {type(error).__name__}: {reason(error)}"
        raise BackendError(f"pool {pool.name!r}: {why}", type=pool.definition.type) from error
    return found
