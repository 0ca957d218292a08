"""Reports: the results of refreshes and discoveries, and the list of backends."""

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
