"""Reports: the results of refreshes, discoveries and checks, and the list of backends."""

from __future__ import annotations

from astore.model.definitions import Source
from astore.model.record import Record
from astore.model.records import EntryError


class RefreshOutcome(Record, frozen=True):
    """The result of refreshing one pool; ``error`` is set if the pool as a whole could not be read.

    ``added``, ``changed`` and ``removed`` are names, ``unchanged`` is a count, ``errors`` are the entries that could not
    be read, ``seconds`` is the duration.
    """

    pool: str
    uuid: str = ""
    added: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    unchanged: int = 0
    errors: tuple[EntryError, ...] = ()
    seconds: float = 0.0
    generation: int = 0
    error: Exception | None = None


class RefreshReport(Record, frozen=True):
    """The results of refreshing several pools, in name order; ``seconds`` is the duration of the whole."""

    pools: tuple[RefreshOutcome, ...] = ()
    seconds: float = 0.0

    @property
    def failed(self) -> tuple[RefreshOutcome, ...]:
        """The pools that could not be read at all."""
        return tuple(outcome for outcome in self.pools if outcome.error is not None)


class DiscoveredSource(Record, frozen=True):
    """A source that a pool could be defined on: enough of a definition to start from."""

    type: str
    source: Source


class ImageCheck(Record, frozen=True):
    """What qemu-img found in an image.

    :ivar verdict: ``ok``; ``leaks``: some space is used for nothing; ``damaged``; ``failed``: qemu-img could not check it;
        ``skipped``: it was not asked. :ivar errors: how many are damage. :ivar leaks: how many are lost space.
    :ivar note: why it was skipped or failed.
    """

    verdict: str
    errors: int = 0
    leaks: int = 0
    note: str | None = None


class ImageSnapshot(Record, frozen=True):
    """A snapshot inside an image; ``vm_state_size`` in bytes, ``time`` in seconds since 1970."""

    id: str
    name: str
    vm_state_size: int
    time: float


class BackendInfo(Record, frozen=True):
    """A backend of the registry; ``status`` is ``ready``, ``unloaded`` (not imported yet) or ``failed`` (see ``error``)."""

    type: str
    status: str
    distribution: str | None = None
    version: str | None = None
    api_version: int | None = None
    abilities: tuple[str, ...] = ()
    error: str | None = None
    pools: int = 0
