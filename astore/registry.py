"""The registry: which backend drives which pool type.

Backends come from entry points and from :meth:`BackendRegistry.register`. Entry points are listed without importing them;
each is imported once, on first use, on a thread of its own. A bad plugin hurts no other: its error is kept with its type,
and raised for that type alone.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import threading
from collections.abc import Callable, Iterable
from importlib import metadata
from typing import Any, NamedTuple

import msgspec

from astore.backend import API_VERSIONS_ACCEPTED, Backend, abilities
from astore.entry_points import ENTRY_POINT_GROUP
from astore.errors import (
    BackendConflictError,
    BackendError,
    BackendInUseError,
    BackendLoadError,
    UnknownBackendError,
    reason,
)
from astore.events import BackendRegistered, BackendUnregistered, Event
from astore.import_turns import one_import
from astore.model import BackendInfo

IMPORT_TIMEOUT = 4.0
"""Seconds that a caller waits for an import. A backend whose import ends later is used from then on."""


class _Claim(NamedTuple):
    """An entry point and its distribution, which is read when the entry point is listed, since that reads files."""

    entry_point: metadata.EntryPoint
    distribution: str | None
    version: str | None


class _Slot:
    """One pool type. Fields change under the registry's lock."""

    def __init__(self, type: str) -> None:
        self.type = type
        self.claims: list[_Claim] = []
        self.backend: Backend | None = None
        self.error: BackendError | None = None
        self.loading: concurrent.futures.Future[Backend] | None = None
        self.uses = 0
        self.draining: concurrent.futures.Future[None] | None = None


class BackendRegistry:
    """Backends by pool type. Every method may be called from any thread.

    :param group: the entry-point group to list; None lists none.
    :param import_timeout: seconds to wait for a plugin's import.
    """

    def __init__(
        self,
        *,
        group: str | None = ENTRY_POINT_GROUP,
        import_timeout: float = IMPORT_TIMEOUT,
    ) -> None:
        self.import_timeout = import_timeout
        self._group = group
        self._publishers: tuple[Callable[..., None], ...] = ()
        self._lock = threading.RLock()
        self._slots: dict[str, _Slot] = {}
        self._scanned = False

    # ------------------------------------------------------------------------------------------------- listing

    def scan(self, *, again: bool = False) -> None:
        """Read the entry points, once. Blocks: the Manager calls it on a thread when it is entered.

        :param again: read them even if they were read before.
        """
        with self._lock:
            if self._scanned and not again:
                return
        self.add_entry_points([] if self._group is None else _installed(self._group))
        with self._lock:
            self._scanned = True

    def add_entry_points(self, entry_points: Iterable[metadata.EntryPoint]) -> None:
        """Add backends to import when they are needed. Two distributions that claim one type make it unusable.

        A backend that was registered at run time keeps its type.
        """
        claims = [_Claim(entry_point, *_distribution(entry_point)) for entry_point in entry_points]
        with self._lock:
            for claim in claims:
                entry_point = claim.entry_point
                slot = self._slots.setdefault(entry_point.name, _Slot(entry_point.name))
                if slot.backend is not None and not slot.claims:
                    continue
                if not any(
                    (known.distribution, known.entry_point.value) == (claim.distribution, entry_point.value)
                    for known in slot.claims
                ):
                    slot.claims.append(claim)
                owners = {known.distribution for known in slot.claims}
                if len(owners) > 1 or (len(slot.claims) > 1 and None in owners):
                    names = " and ".join(sorted(known.distribution or "?" for known in slot.claims))
                    slot.error = BackendConflictError(
                        f"pool type {slot.type!r} is claimed by {names}: uninstall one of them", type=slot.type
                    )

    def types(self) -> tuple[str, ...]:
        """Return the pool types that have a backend, imported or not, in name order."""
        with self._lock:
            return tuple(sorted(self._slots))

    def backends(self) -> tuple[BackendInfo, ...]:
        """Describe every backend, in the order of types, without importing any."""
        with self._lock:
            return tuple(self._describe(slot) for _, slot in sorted(self._slots.items()))

    def __contains__(self, type: object) -> bool:
        with self._lock:
            return type in self._slots

    def loaded(self, type: str) -> Backend | None:
        """Return the backend of a type if it is ready to use, else None."""
        with self._lock:
            slot = self._slots.get(type)
            return None if slot is None or slot.error is not None else slot.backend

    # --------------------------------------------------------------------------------------------- registering

    def register(self, backend: Backend | type[Backend], *, replace: bool = False) -> Backend:
        """Add a backend.

        :param replace: replace the type's backend, unless pools use it.
        :raises BackendConflictError: the type has a backend. BackendLoadError: the object is no backend, its api_version
            does not fit, or something that it requires is missing. BackendInUseError: pools use the type's backend.
        """
        ready = _checked(backend, None)
        with self._lock:
            slot = self._slots.get(ready.type)
            if slot is not None and not replace:
                owner = slot.claims[0].distribution if slot.claims else None
                raise BackendConflictError(
                    f"pool type {ready.type!r} is driven by {owner or slot.backend!r} already", type=ready.type
                )
            if slot is not None and slot.uses:
                raise BackendInUseError(_in_use(slot), type=ready.type)
            slot = self._slots[ready.type] = _Slot(ready.type)
            slot.backend = ready
        self._tell(BackendRegistered, type=ready.type)
        return ready

    async def unregister(self, type: str, *, drain: bool = False) -> None:
        """Remove a backend.

        :param drain: wait until no pool uses it; meanwhile no pool of the type can start.
        :raises UnknownBackendError: the type has none. BackendInUseError: pools use it (never with ``drain``).
        """
        with self._lock:
            slot = self._slot(type)
            if slot.uses and not drain:
                raise BackendInUseError(_in_use(slot), type=type)
            unused = slot.draining = concurrent.futures.Future[None]()
            unused.set_running_or_notify_cancel()  # so that only release() ends it, also if this caller is cancelled
            if not slot.uses:
                unused.set_result(None)
        try:
            await asyncio.wrap_future(unused)
            with self._lock:
                still_there = self._slots.get(type) is slot  # else it was replaced meanwhile
                if still_there:
                    del self._slots[type]
        finally:
            with self._lock:
                slot.draining = None
        if still_there:
            self._tell(BackendUnregistered, type=type)

    # ------------------------------------------------------------------------------------------------- using

    async def get(self, type: str) -> Backend:
        """Return the backend of a pool type; import it if need be.

        :raises UnknownBackendError: the type has none. BackendLoadError, BackendConflictError: it cannot be used.
        """
        with self._lock:
            slot = self._slot(type)
            if slot.error is not None:
                raise slot.error.with_traceback(None)  # the traceback would grow each time
            if slot.backend is not None:
                return slot.backend
            loading = slot.loading
            if loading is None:
                loading = slot.loading = concurrent.futures.Future()
                loading.set_running_or_notify_cancel()  # so that a caller that is cancelled cannot cancel it for others
                thread = threading.Thread(target=self._load, args=(slot, loading), name="astore-import", daemon=True)
                try:
                    thread.start()
                except RuntimeError as error:  # no thread can be started now; later perhaps
                    slot.loading = None
                    raise BackendLoadError(
                        f"the backend of pool type {type!r} ({_origin(slot)}) was not loaded: {error}", type=type
                    ) from error
        try:
            async with asyncio.timeout(self.import_timeout):
                return await asyncio.wrap_future(loading)
        except TimeoutError:
            raise BackendLoadError(
                f"the backend of pool type {type!r} ({_origin(slot)}) did not load within {self.import_timeout:g} s",
                type=type,
            ) from None

    async def load(self, types: Iterable[str]) -> None:
        """Import the backends of these types concurrently. Never raises: :meth:`backends` tells which failed."""
        wanted = [type for type in set(types) if self.loaded(type) is None]
        if wanted:
            await asyncio.gather(*(self.get(type) for type in wanted), return_exceptions=True)

    async def load_all(self) -> tuple[BackendInfo, ...]:
        """Import every backend concurrently, and describe them all. Never raises: see ``status`` and ``error``."""
        types = self.types()
        outcomes = await asyncio.gather(*(self.get(type) for type in types), return_exceptions=True)
        late = {type: outcome for type, outcome in zip(types, outcomes, strict=True) if isinstance(outcome, Exception)}
        return tuple(
            msgspec.structs.replace(info, status="failed", error=reason(late[info.type]))
            if info.type in late and info.error is None
            else info
            for info in self.backends()
        )

    def acquire(self, backend: Backend) -> None:
        """Count one more pool that uses the backend.

        :raises UnknownBackendError: the backend was unregistered, or is being drained.
        """
        with self._lock:
            slot = self._slots.get(backend.type)
            if slot is None or slot.backend is not backend or slot.draining is not None:
                raise UnknownBackendError(f"the backend of pool type {backend.type!r} is gone", type=backend.type)
            slot.uses += 1

    def release(self, backend: Backend) -> None:
        """Count one pool less that uses the backend."""
        with self._lock:
            slot = self._slots.get(backend.type)
            if slot is None or slot.backend is not backend:
                return
            slot.uses -= 1
            if not slot.uses and slot.draining is not None:
                slot.draining.set_result(None)

    # -------------------------------------------------------------------------------------------- inner works

    def _slot(self, type: str) -> _Slot:
        slot = self._slots.get(type)
        if slot is not None and slot.draining is not None:
            raise UnknownBackendError(f"the backend of pool type {type!r} is being unregistered", type=type)
        if slot is None:
            known = ", ".join(sorted(self._slots)) or "none"
            raise UnknownBackendError(f"no backend for pool type {type!r} is installed (there are: {known})", type=type)
        return slot

    def _load(self, slot: _Slot, loading: concurrent.futures.Future[Backend]) -> None:
        """Import a backend. On a thread of its own."""
        try:
            with one_import(self.import_timeout / 2):
                found = slot.claims[0].entry_point.load()
            backend = _checked(found, slot)
        except BaseException as exc:  # plugin code: it may raise anything
            error = exc if isinstance(exc, BackendError) else _load_error(slot, exc)
            with self._lock:
                slot.error = error
            loading.set_exception(error)
        else:
            with self._lock:
                slot.backend = backend
                still_there = self._slots.get(slot.type) is slot  # else it was unregistered or replaced meanwhile
            if still_there:  # told before anybody uses it
                self._tell(BackendRegistered, type=slot.type)
            loading.set_result(backend)

    def _describe(self, slot: _Slot) -> BackendInfo:
        backend = slot.backend
        failed = slot.error is not None
        return BackendInfo(
            type=slot.type,
            status="failed" if failed else "ready" if backend is not None else "unloaded",
            distribution=", ".join(sorted(known.distribution or "?" for known in slot.claims)) or None,
            version=slot.claims[0].version if slot.claims else None,
            api_version=backend.api_version if backend is not None else None,
            abilities=abilities(backend) if backend is not None else (),
            error=reason(slot.error) if slot.error is not None else None,
            pools=slot.uses,
        )

    def _tell(self, kind: type[Event], **fields: Any) -> None:
        for publish in self._publishers:
            publish(kind, **fields)

    def listen(self, publish: Callable[..., None]) -> None:
        """Call ``publish`` with an event class and its fields for every change from now on."""
        with self._lock:
            self._publishers = (*self._publishers, publish)

    def unlisten(self, publish: Callable[..., None]) -> None:
        """Undo :meth:`listen`."""
        with self._lock:
            self._publishers = tuple(one for one in self._publishers if one != publish)


def _installed(group: str) -> list[metadata.EntryPoint]:
    """Return the entry points of a group, except those of distributions whose metadata cannot be read."""
    try:
        return list(metadata.entry_points(group=group))
    except Exception:  # one damaged file fails it: read each distribution on its own; the first of a name counts
        found: dict[str | None, list[metadata.EntryPoint]] = {}
        for dist in metadata.distributions():
            with contextlib.suppress(Exception):
                found.setdefault(dist.name, list(dist.entry_points.select(group=group)))
        return [entry_point for entry_points in found.values() for entry_point in entry_points]


def _distribution(entry_point: metadata.EntryPoint) -> tuple[str | None, str | None]:
    """Return the name and version of an entry point's distribution, as far as its metadata can be read."""
    try:
        dist = entry_point.dist
        return (dist.name, dist.version) if dist is not None else (None, None)
    except Exception:
        return None, None


def _checked(candidate: Any, slot: _Slot | None) -> Backend:
    """Return the backend that a plugin announced. Runs plugin code, and may block.

    :raises BackendLoadError: it is unfit.
    """
    origin = _origin(slot) if slot is not None else repr(candidate)
    backend = candidate() if isinstance(candidate, type) and issubclass(candidate, Backend) else candidate
    if not isinstance(backend, Backend):
        raise BackendLoadError(f"{origin} is not an astore Backend", type=slot.type if slot is not None else "")
    type_ = getattr(backend, "type", None)
    if not isinstance(type_, str) or not type_:
        raise BackendLoadError(f"{origin} does not say which pool type it drives", type=slot.type if slot else "")
    if slot is not None and type_ != slot.type:
        raise BackendLoadError(f"{origin} drives {type_!r} but is announced as {slot.type!r}", type=slot.type)
    version = backend.api_version
    if version not in API_VERSIONS_ACCEPTED:
        newest = max(API_VERSIONS_ACCEPTED)
        what = "astore" if isinstance(version, int) and version > newest else "the backend"
        raise BackendLoadError(
            f"{origin} was written for api_version {version!r}, this astore takes up to {newest}: upgrade {what}",
            type=type_,
        )
    try:
        backend.require()
    except (ImportError, OSError) as exc:
        raise BackendLoadError(
            f"the backend of pool type {type_!r} cannot work here: {reason(exc)}", type=type_
        ) from exc
    return backend


def _load_error(slot: _Slot, exc: BaseException) -> BackendLoadError:
    error = BackendLoadError(
        f"the backend of pool type {slot.type!r} ({_origin(slot)}) failed to load: {type(exc).__name__}: {reason(exc)}",
        type=slot.type,
    )
    error.__cause__ = exc
    return error


def _origin(slot: _Slot) -> str:
    if not slot.claims:
        return repr(slot.backend)
    claim = slot.claims[0]
    return f"{claim.entry_point.value} of {claim.distribution or 'an unknown distribution'}"


def _in_use(slot: _Slot) -> str:
    return f"the backend of pool type {slot.type!r} is used by {slot.uses} active pool{'s' * (slot.uses != 1)}"
