"""FleetState: who is there, who looks after which pool, and the heads of the snapshots, as the engine's streams say."""

from __future__ import annotations

import asyncio
import time

import msgspec

from astore_fleet.engine import Engine, Message
from astore_fleet.mirror import Mirror
from astore_fleet.names import unescaped
from astore_fleet.records import HostInfo, Owner
from astore_fleet.store.snapshots import Head, head_of

HOST, DRAIN = "host:", "drain:"
"""What the names of leases begin with: that of a host that is there, and the mark of one that is to take no pools."""


class Owned(msgspec.Struct, frozen=True):
    """An owner, and the token with which it writes: the sequence of this record. None: the pool has been handed back."""

    owner: Owner | None
    token: int


class Kept(msgspec.Struct, frozen=True):
    """The head of a snapshot: which host took it, its sequence, and when it was kept, by the server's clock."""

    host: str
    head: Head
    seq: int
    time: float


class FleetState:
    """Follows hosts and owners, and if wanted the heads of snapshots.

    :ivar hosts: by name, the hosts that are there. :ivar drained: those that are to take no pools.
    :ivar owners: by pool name. :ivar heads: by pool name, the newest snapshot.
    :ivar changed: set when hosts have come or gone, or are drained or not (not when a lease is renewed); clear it.
    """

    def __init__(self, engine: Engine, *, snapshots: bool) -> None:
        self._engine = engine
        self.hosts: dict[str, HostInfo] = {}
        self.drained: set[str] = set()
        self.owners: dict[str, Owned] = {}
        self.heads: dict[str, Kept] = {}
        self.changed: asyncio.Event = asyncio.Event()
        names = engine.names
        state = f"$KV.{names.state.removeprefix('KV_')}"
        self.leases: Mirror = Mirror(engine, names.leases, self._take_lease, self._reset_leases)
        self.ownership: Mirror = Mirror(
            engine, names.state, self._take_owner, self.owners.clear, filters=[f"{state}.*.own"]
        )
        self.snapshots: Mirror | None = None
        if snapshots:
            filters = [f"{state}.*.snap.*"]
            self.snapshots = Mirror(
                engine, names.state, self._take_head, self.heads.clear, filters=filters, headers_only=True
            )

    async def open(self) -> None:
        """Begin to follow. :raises StoreError: that is not possible."""
        for mirror in self._mirrors():
            await mirror.open()

    async def aclose(self) -> None:
        """End. May be called twice."""
        for mirror in self._mirrors():
            await mirror.aclose()

    def _mirrors(self) -> list[Mirror]:
        return [one for one in (self.leases, self.ownership, self.snapshots) if one is not None]

    def owner(self, pool: str) -> Owner | None:
        """Return who looks after a pool, there or not."""
        owned = self.owners.get(pool)
        return None if owned is None else owned.owner

    def present(self, owner: Owner | None) -> bool:
        """Return whether an owner is there: its host has a lease, of the same run of its agent."""
        host = None if owner is None else self.hosts.get(owner.host)
        return host is not None and owner is not None and host.session == owner.session

    def load(self) -> dict[str, int]:
        """Return how many pools each host looks after."""
        counts = dict.fromkeys(self.hosts, 0)
        for owned in self.owners.values():
            if owned.owner is not None and self.present(owned.owner):
                counts[owned.owner.host] += 1
        return counts

    def age(self, kept: Kept) -> float:
        """Return the seconds since a snapshot was kept."""
        return max(time.monotonic() + self._engine.clock - kept.time, 0.0)

    def note(self, pool: str, owner: Owner | None, token: int) -> None:
        """Take over who owns a pool, unless something later is known."""
        known = self.owners.get(pool)
        if known is None or known.token <= token:
            self.owners[pool] = Owned(owner, token)

    # --------------------------------------------------------------------------------------------- what arrives

    def _take_lease(self, message: Message) -> None:
        name = unescaped(message.subject.split(".")[-1])
        if name.startswith(DRAIN):
            change = self.drained.discard if message.deleted else self.drained.add
            change(name.removeprefix(DRAIN))
            self.changed.set()
        elif name.startswith(HOST):
            host = name.removeprefix(HOST)
            before = self.hosts.pop(host, None)
            if not message.deleted:
                try:
                    self.hosts[host] = msgspec.json.decode(message.data, type=HostInfo)
                except Exception:  # anybody may have written anything
                    self.hosts.pop(host, None)
            if self.hosts.get(host) != before:
                self.changed.set()

    def _reset_leases(self) -> None:
        self.hosts.clear()
        self.drained.clear()

    def _take_owner(self, message: Message) -> None:
        pool, owner = unescaped(message.subject.split(".")[2]), None
        if not message.deleted:
            try:
                owner = msgspec.json.decode(message.data, type=Owner)
            except Exception:  # anybody may have written anything: nobody looks after the pool
                owner = None
        self.note(pool, owner, message.seq)

    def _take_head(self, message: Message) -> None:
        parts = message.subject.split(".")
        pool, host = unescaped(parts[2]), unescaped(parts[4])
        known = self.heads.get(pool)
        if message.deleted:
            if known is not None and known.host == host:
                del self.heads[pool]
        elif (head := head_of(message)) is not None:
            self.heads[pool] = Kept(host, head, message.seq, message.time)
