"""Snapshots in the engine: packed and, if they are large, in pieces.

The head of a snapshot has what a list of pools shows in a header, so that lists are read without any body. A snapshot of up
to PIECE bytes, some 30,000 volumes, is the head's body. Of a larger one the pieces are written first, under a token of their
own, then the head, which names the token.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar

import msgspec

from astore.backend import Lane
from astore.events import VolumeAdded, VolumeRemoved
from astore.model import EntryError, Permissions, Place, PoolDef, Snapshot, VolumeInfo
from astore.store.contract import LastSeen, OutdatedError, merged
from astore_fleet.engine import Engine, Message
from astore_fleet.mirror import MARK_SECONDS
from astore_fleet.names import unescaped
from astore_fleet.records import PARTIAL
from astore_fleet.store.columns import Columns, columns_of, records_of

T = TypeVar("T")

FORMAT = 2

PIECE = 700_000
"""The most bytes of a message's body; servers take 1 MiB unless told otherwise. Of one that takes less, what it takes."""

MOST_ERROR = 1000
"""The most characters of an error in a head."""

HEAD = "Astore-Head"
"""The header that holds a :class:`Head`, as JSON."""

LARGEST = 1 << 30
"""The most bytes that an unpacked snapshot may have."""

TRIES = 5
"""How often a snapshot is read, or merged, anew because it was replaced meanwhile."""


class Head(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a snapshot without reading it. Times are in seconds since the epoch, by the host's clock."""

    format: int
    uuid: str
    started_at: float
    taken_at: float
    generation: int
    volumes: int
    errors: int
    capacity: int
    allocation: int
    available: int
    since: float
    error: str | None
    pieces: int = 0
    token: str = ""
    events: int = 0


class _Body(msgspec.Struct, frozen=True, array_like=True):
    unsettled: frozenset[str]
    errors: tuple[EntryError, ...]
    permissions: Permissions | None
    folder: Place | None
    definition: PoolDef | None
    recent: dict[str, tuple[float, VolumeInfo | None]]
    volumes: Columns


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_Body).decode


def pack(uuid: str, started_at: float, seen: LastSeen, events: int = 0, piece: int = PIECE) -> tuple[Head, list[bytes]]:
    """Return a snapshot as a head, and the bodies of its messages. Blocks for some 10 µs a volume.

    :param events: the last event of the pool that the snapshot has; 0: unknown. :param piece: the most bytes of a body.
    """
    snapshot = seen.snapshot
    body = _Body(
        frozenset(snapshot.unsettled),
        snapshot.errors,
        snapshot.permissions,
        snapshot.folder,
        seen.definition,
        seen.recent,
        columns_of(snapshot.volumes),
    )
    packed = zlib.compress(_encode(body), 1)
    bodies = [packed[start : start + piece] for start in range(0, len(packed), piece)]
    head = Head(
        format=FORMAT,
        uuid=uuid,
        started_at=started_at,
        taken_at=snapshot.taken_at,
        generation=snapshot.generation,
        volumes=len(snapshot.volumes),
        errors=sum(not error.skipped for error in snapshot.errors),
        capacity=snapshot.capacity,
        allocation=snapshot.allocation,
        available=snapshot.available,
        since=seen.since,
        error=None if seen.error is None else seen.error[:MOST_ERROR],
        pieces=len(bodies) if len(bodies) > 1 else 0,
        token=secrets.token_hex(6) if len(bodies) > 1 else "",
        events=events,
    )
    return head, bodies


def unpack(head: Head, bodies: Sequence[bytes]) -> LastSeen | None:
    """Return the snapshot; None if it cannot be read. Blocks for some 1.5 µs a volume."""
    try:
        data = zlib.decompressobj().decompress(b"".join(bodies), LARGEST)
        body = _decode(data)
        by_name = {one.name: one for one in records_of(body.volumes)}
    except Exception:  # it is a cache: anything else than a snapshot is none
        return None
    snapshot = Snapshot(
        by_name,
        generation=head.generation,
        taken_at=head.taken_at,
        capacity=head.capacity,
        allocation=head.allocation,
        available=head.available,
        errors=body.errors,
        unsettled=body.unsettled,
        permissions=body.permissions,
        folder=body.folder,
    )
    return LastSeen(snapshot, head.since, head.error, body.definition, body.recent)


def head_of(message: Message) -> Head | None:
    """Return the head of a snapshot; None if the message has none that this version reads."""
    try:
        head = msgspec.json.decode(message.headers[HEAD], type=Head)
    except Exception:  # anybody may have written anything
        return None
    return head if head.format == FORMAT else None


def place_of(subject: str) -> tuple[str, str]:
    """Return the pool and the host that a snapshot's subject names."""
    parts = subject.split(".")
    return unescaped(parts[2]), unescaped(parts[4])


class _Written(msgspec.Struct, frozen=True):
    """What the engine has of a pool of this host: its sequence (0: nothing), head and content, and by which token."""

    seq: int
    token: int | None
    head: Head | None
    seen: LastSeen | None


class SnapshotShelf:
    """Reads and writes snapshots.

    :ivar told: by pool name, the sequence of the last event that was told of a pool while it was this host's.
    :ivar tokens: by pool name, the sequence of the pool's owner while that is this host: its snapshots are written on the
        condition that the owner has not changed.
    :ivar withheld: says of a pool whether its snapshots are not kept: its run here is from before another host had it, and
        they would tell that host that the pool has been taken over; or they would have what nobody tells.
    """

    def __init__(self, engine: Engine, host: str) -> None:
        self._engine = engine
        self._host = host
        self.tokens: dict[str, int] = {}
        self.told: dict[str, int] = {}
        self.withheld: Callable[[str], bool] = lambda _: False
        self._written: dict[str, _Written] = {}
        self._unpacking = asyncio.Lock()  # threads that unpack at once would only take the interpreter from each other

    async def save(self, name: str, started_at: float, seen: LastSeen, *, same_run: bool, lane: Lane | None) -> None:
        """Keep a snapshot, merged with the one that this host has of the run.

        :raises OutdatedError: another host looks after the pool. StoreError: it was not kept.
        """
        if self.withheld(name):
            return
        names, engine = self._engine.names, self._engine
        subject, token = names.snapshot(name, self._host), self.tokens.get(name)
        for _ in range(TRIES):
            known = await self._known(name, started_at, token, lane)
            # the owner knows all, and its clock may have been put back since it kept the last one
            now = merged(None if token is not None and same_run else known.seen, seen, same_run=same_run)
            uuid = "" if seen.definition is None else seen.definition.uuid or ""
            piece = min(PIECE, engine.largest)
            new, bodies = await _on(lane, pack, uuid, started_at, now, self.told.get(name, 0), piece)
            await self._write_pieces(name, new, bodies)
            headers = {HEAD: json.dumps(msgspec.to_builtins(new))}
            body = b"" if new.pieces else bodies[0]
            after, among = (known.seq, None) if token is None else (token, names.owner(name))
            self._written.pop(name, None)
            try:
                seq = await engine.publish(names.state, subject, body, headers, after=after, among=among)
            except OutdatedError:
                await self._drop_pieces(name, new)
                if token is not None:
                    raise
                continue
            self._written[name] = _Written(seq, token, new, now)
            if known.head is not None:
                await self._drop_pieces(name, known.head)
            return

    async def _known(self, name: str, started_at: float, token: int | None, lane: Lane | None) -> _Written:
        """Return what the engine has of a pool of this host. An owner that has written it knows it."""
        written = self._written.get(name)
        same = written is not None and written.head is not None and written.head.started_at == started_at
        if written is not None and same and token is not None and written.token == token:
            return written
        kept = await self._engine.last(self._engine.names.state, self._engine.names.snapshot(name, self._host))
        head = None if kept is None or kept.deleted else head_of(kept)
        seen = None
        if kept is not None and head is not None and head.started_at == started_at:
            seen = await self.read(kept, lane)
        return _Written(0 if kept is None else kept.seq, token, head, seen)

    async def _write_pieces(self, name: str, head: Head, bodies: Sequence[bytes]) -> None:
        if head.pieces:
            begin = self._engine.names.snapshot_parts(name, self._host, head.token)
            for number, body in enumerate(bodies):
                await self._engine.publish(self._engine.names.state, f"{begin}.{number}", body)

    async def _drop_pieces(self, name: str, head: Head, host: str | None = None) -> None:
        if head.pieces:
            begin = self._engine.names.snapshot_parts(name, self._host if host is None else host, head.token)
            await self._engine.purge(self._engine.names.state, f"{begin}.>")

    async def remove(self, name: str, host: str | None = None) -> None:
        """Remove a host's snapshot of a pool. :param host: None: this host."""
        names = self._engine.names
        host = self._host if host is None else host
        self._written.pop(name, None)
        subject = names.snapshot(name, host)
        kept = await self._engine.last(names.state, subject)
        if kept is None or kept.deleted:
            return
        await self._engine.publish(names.state, subject, headers={"KV-Operation": "DEL"}, ttl=MARK_SECONDS)
        if (head := head_of(kept)) is not None:
            await self._drop_pieces(name, head, host)

    async def kept_since(self, name: str, host: str, token: int) -> bool:
        """Return whether a host has kept a snapshot of a pool since it got its token."""
        message = await self._engine.last(self._engine.names.state, self._engine.names.snapshot(name, host))
        return message is not None and not message.deleted and message.seq > token

    async def newest(self, name: str, hosts: Iterable[str]) -> str | None:
        """Return which of these hosts has kept a snapshot of a pool last; None: none of them has one."""
        found = dict[str, int]()
        for host in hosts:
            message = await self._engine.last(self._engine.names.state, self._engine.names.snapshot(name, host))
            if message is not None and not message.deleted:
                found[host] = message.seq
        return max(found, key=lambda host: found[host], default=None)

    async def load(
        self, runs: Mapping[str, float], hosts: Mapping[str, Iterable[str]], *, lane: Lane | None
    ) -> dict[str, LastSeen]:
        """Return the snapshots of runs: of each the newest that one of the hosts has kept."""
        found: dict[str, LastSeen] = {}
        for name, started_at in runs.items():
            newest: Message | None = None
            for host in hosts[name]:
                message = await self._engine.last(self._engine.names.state, self._engine.names.snapshot(name, host))
                head = None if message is None or message.deleted else head_of(message)
                same = message is not None and head is not None and head.started_at == started_at
                if message is not None and same and (newest is None or message.seq > newest.seq):
                    newest = message
            head = None if newest is None else head_of(newest)
            if newest is not None and head is not None and (seen := await self.read(newest, lane)) is not None:
                found[name] = await self._told_since(head, seen)
        return found

    async def _told_since(self, head: Head, seen: LastSeen) -> LastSeen:
        """Return a snapshot with the changes that its host has told after it had kept it, before it died."""
        names, changes, seq = self._engine.names, dict[str, VolumeInfo | None](), head.events
        while head.events and (found := await self._engine.next(names.events, seq + 1, names.events_of(head.uuid))):
            seq, kind = found.seq, found.subject.rpartition(".")[2]
            if PARTIAL in found.headers:
                continue  # an older record, or none: the next refresh reads the volume again
            with contextlib.suppress(msgspec.MsgspecError):  # anybody may have written anything
                if kind in ("VolumeAdded", "VolumeChanged"):
                    event = msgspec.json.decode(found.data, type=VolumeAdded)
                    changes[event.name] = event.volume
                elif kind == "VolumeRemoved":
                    changes[msgspec.json.decode(found.data, type=VolumeRemoved).name] = None
        new = {name: info for name, info in changes.items() if seen.snapshot.get(name) != info}
        if not new:
            return seen
        return msgspec.structs.replace(seen, snapshot=seen.snapshot.patched(new, seen.snapshot.generation))

    async def read(self, message: Message, lane: Lane | None = None) -> LastSeen | None:
        """Return the snapshot whose head a message is; None if it cannot be read, or was replaced meanwhile."""
        head = head_of(message)
        if head is None:
            return None
        bodies = [message.data]
        if head.pieces:
            pool, host = place_of(message.subject)
            begin = self._engine.names.snapshot_parts(pool, host, head.token)
            pieces = [await self._piece(f"{begin}.{number}") for number in range(head.pieces)]
            if None in pieces:
                return None
            bodies = [piece.data for piece in pieces if piece is not None]
        async with self._unpacking:
            return await _on(lane, unpack, head, bodies)

    async def _piece(self, subject: str) -> Message | None:
        found = await self._engine.fetch(self._engine.names.state, subject)
        return found or await self._engine.last(self._engine.names.state, subject)


async def _on(lane: Lane | None, func: Callable[..., T], *args: object) -> T:
    """Call ``func`` on the lane; without one, on any other thread."""
    return await asyncio.to_thread(func, *args) if lane is None else await lane.run(func, *args)
