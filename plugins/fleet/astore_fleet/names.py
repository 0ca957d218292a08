"""The names of a fleet's streams and subjects, and names of pools and hosts as parts of subjects."""

from __future__ import annotations

import re
import string

from astore.errors import DefinitionError

_PLAIN = frozenset(string.ascii_letters + string.digits + "-_")
_FLEET = re.compile(r"[A-Za-z0-9_-]{1,64}")
_ESCAPED = re.compile(rb"=([0-9A-F]{2})")


def escaped(name: str) -> str:
    """Return a name as one part of a subject: letters, digits, ``-`` and ``_`` stay, other bytes become ``=XX``."""
    if _PLAIN.issuperset(name):
        return name
    encoded = name.encode("utf-8", "surrogateescape")
    return "".join(chr(byte) if chr(byte) in _PLAIN else f"={byte:02X}" for byte in encoded)


def unescaped(part: str) -> str:
    """Return the name that a part of a subject stands for."""
    if "=" not in part:
        return part
    raw = _ESCAPED.sub(lambda found: bytes([int(found[1], 16)]), part.encode("utf-8", "surrogatepass"))
    return raw.decode("utf-8", "surrogateescape")


class Names:
    """The streams and subjects of one fleet. Several fleets share a server by their names.

    :raises DefinitionError: the fleet's name has other characters than letters, digits, ``-`` and ``_``.
    """

    def __init__(self, fleet: str) -> None:
        if not _FLEET.fullmatch(fleet):
            raise DefinitionError(f"{fleet!r} cannot be a fleet's name: use letters, digits, '-' and '_'")
        self.fleet = fleet
        self.pools: str = f"KV_astore-{fleet}-pools"
        self.state: str = f"KV_astore-{fleet}-state"
        self.leases: str = f"KV_astore-{fleet}-leases"
        self.results: str = f"KV_astore-{fleet}-results"
        self.jobs: str = f"astore-{fleet}-jobs"
        self.events: str = f"astore-{fleet}-events"
        self.barrier: str = f"$KV.astore-{fleet}-pools.=.barrier"

    # pools: definitions and runs

    def of_pool(self, pool: str) -> str:
        """Return the filter for all that the stream of definitions has of a pool."""
        return f"$KV.astore-{self.fleet}-pools.{escaped(pool)}.>"

    def definition(self, pool: str) -> str:
        """Return the subject of a definition."""
        return f"$KV.astore-{self.fleet}-pools.{escaped(pool)}.def"

    def run(self, pool: str, host: str) -> str:
        """Return the subject of a pool's run on a host."""
        return f"$KV.astore-{self.fleet}-pools.{escaped(pool)}.run.{escaped(host)}"

    # state: owners and snapshots

    def owner(self, pool: str) -> str:
        """Return the subject of a pool's owner."""
        return f"$KV.astore-{self.fleet}-state.{escaped(pool)}.own"

    def snapshot(self, pool: str, host: str) -> str:
        """Return the subject of the snapshot that a host has taken of a pool."""
        return f"$KV.astore-{self.fleet}-state.{escaped(pool)}.snap.{escaped(host)}"

    def snapshot_parts(self, pool: str, host: str, token: str) -> str:
        """Return the first parts of the subjects of a large snapshot's pieces; a number follows."""
        return f"$KV.astore-{self.fleet}-state.{escaped(pool)}.piece.{escaped(host)}.{token}"

    # leases, jobs, results, events

    def lease(self, name: str) -> str:
        """Return the subject of a lease."""
        return f"$KV.astore-{self.fleet}-leases.{escaped(name)}"

    def job(self, host: str, pool: str, what: str) -> str:
        """Return the subject of a job for a host. :param host: ``*`` for any, empty for none yet."""
        where = host if host == "*" else escaped(host) or "="
        return f"astore.{self.fleet}.job.{where}.{escaped(pool)}.{what}"

    def result(self, job: str) -> str:
        """Return the subject of a job's record."""
        return f"$KV.astore-{self.fleet}-results.{job}"

    def told(self, what: str) -> str:
        """Return a subject on which hosts tell each other of something, without keeping it."""
        return f"astore.{self.fleet}.tell.{what}"

    def event(self, host: str, uuid: str, kind: str) -> str:
        """Return the subject of an event. :param uuid: the pool's, or ``-``."""
        return f"astore.{self.fleet}.ev.{escaped(host)}.{uuid}.{kind}"

    def events_of(self, uuid: str) -> str:
        """Return the filter for the events of a pool, whatever host told them."""
        return f"astore.{self.fleet}.ev.*.{uuid}.*"
