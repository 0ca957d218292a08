"""The engine: a connection to NATS JetStream, its requests, and writes on conditions.

Everything of astore_fleet that talks to NATS goes through :class:`Engine`. A write has an id of its own. If its answer is
lost, because a server was killed or a new leader is elected, the write is sent again, and is made once at most.
"""

from __future__ import annotations

import asyncio
import base64
import errno
import time
import uuid
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, TypeAlias

import msgspec
import nats
import nats.errors
from nats.aio.client import DEFAULT_MAX_PAYLOAD_SIZE, Client
from nats.aio.msg import Msg

from astore.cancellation import bounded
from astore.errors import StoreError, one_line, reason
from astore.store.contract import OutdatedError
from astore_fleet.access import Access
from astore_fleet.ending import heeding
from astore_fleet.names import Names
from astore_fleet.write_headers import conditions

OLDEST_SERVER = (2, 11)
"""Older servers know no time to live of a message, and lose updates of replicated streams (nats-server issue 4320)."""

ANSWER_SECONDS = 2.0
"""Seconds to wait for one answer of the engine."""

WRITE_SECONDS = 10.0
"""Seconds for a write, with all its retries: an election of a leader takes some."""

HEADERS = 16_384
"""The most bytes of a message's headers."""

CONNECT_SECONDS = 10.0
"""Seconds for the first connection, with its retries. (nats-py waits for ever after some errors of TLS.)"""

AWAY_SECONDS = 3.0
"""Seconds that a call waits for a connection that was lost; later ones fail at once."""

_WRONG_LAST = {10071, 10164}
"""Error codes of a condition that does not hold."""

_NOT_FOUND = {10037, 10059, 10014}
"""Error codes: no message, no stream, no consumer."""

_NOT_YET = {10005}
"""Error codes of a cluster whose servers do not all know each other yet."""

_CONNECTION: dict[str, Any] = {
    "connect_timeout": 3,
    "max_reconnect_attempts": 2,
    "reconnect_time_wait": 0.2,
    "ping_interval": 3,
    "max_outstanding_pings": 2,
}

Answer: TypeAlias = dict[str, Any]


class Message(msgspec.Struct, frozen=True):
    """A message that a stream keeps: its subject, body, sequence and headers; ``time`` is the server's, since the epoch."""

    subject: str
    data: bytes
    seq: int
    headers: Mapping[str, str]
    time: float = 0.0

    @property
    def deleted(self) -> bool:
        """Whether it says that the key is gone: deleted, or its time to live is over."""
        return "KV-Operation" in self.headers or "Nats-Marker-Reason" in self.headers


class Full(StoreError):
    """A stream keeps one message of this subject already."""


class Refused(StoreError):
    """The server does not take that, and would not if it were asked again. EMSGSIZE: the message is too large."""


class Denied(Refused):
    """The server does not let this client do that."""


class Closed(StoreError):
    """The connection was ended for good, for example because the server does not let this client in any more."""


class Engine:
    """A connection to the servers of one fleet.

    :param url: one server, or several separated by commas. :param fleet: its name.
    :param replicas: of streams that this client creates; None: three if three servers are named, else one.
    :ivar session: a name of this connection that no other has.
    """

    def __init__(
        self, url: str | Sequence[str], fleet: str, *, replicas: int | None = None, access: Access | None = None
    ) -> None:
        self.servers: list[str] = [one.strip() for one in (url.split(",") if isinstance(url, str) else url)]
        self.names: Names = Names(fleet)
        self.replicas: int = replicas or (3 if len(self.servers) >= 3 else 1)
        self.session: str = uuid.uuid4().hex
        # seconds from the monotonic clock, which never jumps, to the servers' clock
        self.clock: float = time.time() - time.monotonic()
        self.ends: dict[str, float] = {}  # of leases of this client, by the monotonic clock
        self._access = access or Access()
        self._client: Client | None = None
        self._connected = asyncio.Event()
        self._away_since = 0.0
        self._problem = ""
        self._count = 0

    @property
    def name(self) -> str:
        """For messages."""
        return f"fleet {self.names.fleet!r} on {', '.join(one.rpartition('@')[2] for one in self.servers)}"

    # ------------------------------------------------------------------------------------------------ connection

    async def connect(self) -> None:
        """Connect, if that was not done. :raises StoreError: no server answers, none lets this client in, or it is too old."""
        if self._client is not None and not self._client.is_closed:
            return
        client = Client()
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                await client.connect(
                    self.servers,
                    error_cb=self._note,
                    disconnected_cb=self._left,
                    reconnected_cb=self._returned,
                    name="astore",
                    **_CONNECTION,
                    **self._access.options(self.servers),
                )
        except (TimeoutError, OSError, ImportError, nats.errors.Error) as error:
            await bounded(client.close(), ANSWER_SECONDS)
            why = self._problem or reason(error)
            if "reset by peer" in why.lower():  # the reason, which the server sends first, may be lost
                why += " (perhaps the server refused the login)"
            raise self.error(f"no connection: {why}", errno.ECONNREFUSED) from error
        version = client.connected_server_version
        if (version.major, version.minor) < OLDEST_SERVER:
            await client.close()
            raise self.error(
                f"the NATS server is version {version.major}.{version.minor}.{version.patch}; a fleet needs "
                f"{'.'.join(map(str, OLDEST_SERVER))} or later (older ones lose updates of replicated streams)",
                errno.EPROTONOSUPPORT,
            )
        client.options["max_reconnect_attempts"] = -1  # only the first connection may fail
        self._client = client
        self._connected.set()

    async def aclose(self) -> None:
        """Close the connection. May be called twice."""
        client, self._client = self._client, None
        self._connected.clear()
        if client is not None:
            await client.close()

    async def _note(self, error: Exception) -> None:
        self._problem = (self._problem if isinstance(error, ConnectionError) else "") or reason(error)

    async def _left(self) -> None:
        self._connected.clear()
        self._away_since = time.monotonic()

    async def _returned(self) -> None:
        if self._client is not None:
            self._problem = ""
            self._connected.set()

    @property
    def connected(self) -> bool:
        """Whether a server is connected now."""
        return self._connected.is_set()

    @property
    def largest(self) -> int:
        """The most bytes that a message's body may have; 1 MiB with its headers unless the server was told otherwise."""
        client = self._client
        most = DEFAULT_MAX_PAYLOAD_SIZE if client is None else client.max_payload
        return max(most - HEADERS, most // 2)

    def error(self, what: str, number: int = errno.EIO) -> StoreError:
        """Return an error about this fleet."""
        return StoreError(f"{self.name}: {one_line(what)}", errno=number)

    async def client(self) -> Client:
        """Return the connected client. :raises StoreError: it has been away for AWAY_SECONDS. Closed: it does not come back."""
        if self._client is None:
            raise Closed(f"{self.name}: it is not connected", errno=errno.ENOTCONN)
        if self._client.is_closed:
            raise Closed(f"{self.name}: {one_line(str(self._client.last_error or 'closed'))}", errno=errno.ENOTCONN)
        if not self._connected.is_set():
            try:
                async with asyncio.timeout(max(self._away_since + AWAY_SECONDS - time.monotonic(), 0)):
                    await self._connected.wait()
            except TimeoutError:
                raise self.error("no server answers", errno.ETIMEDOUT) from None
        return self._client

    # -------------------------------------------------------------------------------------------------- requests

    async def ask(self, subject: str, data: bytes = b"", headers: dict[str, str] | None = None) -> Msg:
        """Send a request, and return its answer. :raises StoreError: there was none. Refused: it is too large."""
        client = await self.client()
        size = len(data) + sum(len(name) + len(value) + 4 for name, value in (headers or {}).items())
        if size > client.max_payload - 16:  # the server would end the connection
            raise Refused(f"{self.name}: {subject}: {size} bytes are too many for a message", errno=errno.EMSGSIZE)
        try:
            return await heeding(client.request(subject, data, timeout=ANSWER_SECONDS, headers=headers))
        except (nats.errors.Error, OSError, TimeoutError) as error:
            if "permissions violation" in self._problem.lower():
                said, self._problem = self._problem, ""
                raise Denied(f"{self.name}: {said}", errno=errno.EACCES) from error
            raise self.error(f"no answer to {subject}: {self._problem or reason(error)}", errno.ETIMEDOUT) from error

    async def api(self, what: str, **request: object) -> Answer:
        """Ask JetStream's API; retry while it has no leader.

        :return: the answer, perhaps with ``error``: no such thing. :raises StoreError: any other error.
        """
        until = time.monotonic() + WRITE_SECONDS
        while True:
            try:
                said = await self.ask(f"$JS.API.{what}", msgspec.json.encode(request))
                answer: Answer = msgspec.json.decode(said.data)
            except StoreError as error:
                if time.monotonic() > until or not self.connected or isinstance(error, Refused):
                    raise
                answer = {"error": {"code": 503}}
            wrong = answer.get("error")
            if wrong is None or wrong.get("err_code") in _NOT_FOUND:
                return answer
            if (wrong["code"] != 503 and wrong.get("err_code") not in _NOT_YET) or time.monotonic() > until:
                raise self.error(f"{what}: {wrong.get('description', 'no leader')}")
            await asyncio.sleep(0.05)

    async def make_stream(self, name: str, subjects: str, **settings: object) -> None:
        """Create a stream unless it exists."""
        if "error" not in await self.api(f"STREAM.INFO.{name}"):
            return
        wanted = {
            "name": name,
            "subjects": [subjects],
            "num_replicas": self.replicas,
            "storage": "file",
            "retention": "limits",
            "discard": "new",
            "max_age": 0,
            "allow_direct": True,
            "allow_msg_ttl": True,
            "duplicate_window": 120_000_000_000,
            **settings,
        }
        try:
            await self.api(f"STREAM.CREATE.{name}", **wanted)
        except StoreError:
            if "error" in await self.api(f"STREAM.INFO.{name}"):  # else another client was faster
                raise

    async def make_bucket(self, stream: str, **settings: object) -> None:
        """Create a stream of keys and values, as the ``nats kv`` command has them, unless it exists."""
        keys = {"max_msgs_per_subject": 1, "allow_rollup_hdrs": True, "deny_delete": True}
        await self.make_stream(stream, f"$KV.{stream.removeprefix('KV_')}.>", **keys, **settings)

    async def info(self, stream: str, **request: object) -> Answer:
        """Return what JetStream says about a stream. :raises StoreError: there is none."""
        before = time.monotonic()
        answer = await self.api(f"STREAM.INFO.{stream}", **request)
        if "error" in answer:
            raise self.error(f"the stream {stream} is gone", errno.ENOENT)
        if "ts" in answer:
            self.clock = _seconds(answer["ts"]) - (before + time.monotonic()) / 2
        return answer

    async def last(self, stream: str, subject: str) -> Message | None:
        """Return the last message of a subject, which may have wildcards, as the leader has it; None: there is none."""
        return self._message(await self.api(f"STREAM.MSG.GET.{stream}", last_by_subj=subject))

    async def fetch(self, stream: str, subject: str) -> Message | None:
        """Return the last message of a subject as any replica has it, which may be an old one; None: there is none."""
        found = await self.ask(f"$JS.API.DIRECT.GET.{stream}.{subject}")
        headers = found.headers or {}
        if "Nats-Sequence" not in headers:
            return None
        at = _seconds(headers["Nats-Time-Stamp"])
        return Message(headers["Nats-Subject"], found.data, int(headers["Nats-Sequence"]), headers, at)

    async def next(self, stream: str, seq: int, subject: str = ">") -> Message | None:
        """Return the first message of a subject from a sequence on, as the leader has it; None: there is none."""
        return self._message(await self.api(f"STREAM.MSG.GET.{stream}", seq=seq, next_by_subj=subject))

    @staticmethod
    def _message(answer: Answer) -> Message | None:
        found = answer.get("message")
        if found is None:
            return None
        lines = base64.b64decode(found.get("hdrs", "")).decode("utf-8", "replace").split("\r\n")[1:]
        headers = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines) if name}
        data = base64.b64decode(found.get("data", ""))
        return Message(found["subject"], data, found["seq"], headers, _seconds(found["time"]))

    async def purge(self, stream: str, subject: str) -> None:
        """Remove all messages of a subject, which may have wildcards."""
        await self.api(f"STREAM.PURGE.{stream}", filter=subject)

    async def remove(self, stream: str, seq: int) -> None:
        """Remove one message, if it is there."""
        try:
            await self.api(f"STREAM.MSG.DELETE.{stream}", seq=seq, no_erase=True)
        except StoreError:
            if await self.next(stream, seq) is not None and self.connected:
                return

    # ---------------------------------------------------------------------------------------------------- writes

    async def publish(
        self,
        stream: str,
        subject: str,
        data: bytes = b"",
        headers: Mapping[str, str] | None = None,
        *,
        after: int | None = None,
        among: str | None = None,
        at: int | None = None,
        id: str | None = None,
        ttl: float | None = None,
    ) -> int:
        """Write a message, and return its sequence. It is kept when this returns.

        :param after: the sequence that the last message of the subject must have; 0: there must be none.
        :param among: a subject, or filter, that ``after`` is about instead.
        :param at: the sequence of the stream's last message.
        :param id: a write with the same id within two minutes is the same write. :param ttl: seconds that it is kept.
        :raises OutdatedError: a condition does not hold. Full: the stream allows no second message of the subject.
            Refused: it is too large, not permitted, or the stream is full. StoreError: it was not written, or, if the engine
            did not answer at all, perhaps it was.
        """
        self._count += 1
        own = id or f"{self.session}:{self._count}"
        sent = {**(headers or {}), **conditions(after, among, at, ttl), "Nats-Msg-Id": own}
        until, unsure = time.monotonic() + WRITE_SECONDS, False
        while True:
            await self.client()
            try:
                ack: Answer = msgspec.json.decode((await self.ask(subject, data, sent)).data)
            except StoreError as failed:
                if time.monotonic() > until or isinstance(failed, Refused):
                    raise
                unsure = True
                await asyncio.sleep(0.05)
                continue
            error = ack.get("error")
            if error is None:
                return int(ack["seq"])
            if error["code"] == 503 and not _is_limit(error) and time.monotonic() < until:  # no leader, or no quorum
                unsure = True
                await asyncio.sleep(0.05)
                continue
            if error.get("err_code") in _WRONG_LAST and unsure:  # perhaps this very write was made before
                found = await self.last(stream, subject)
                if found is not None and found.headers.get("Nats-Msg-Id") == own:
                    return found.seq
            raise self._refused(subject, error)

    def _refused(self, subject: str, error: Answer) -> StoreError:
        what = str(error.get("description", "refused"))
        if error.get("err_code") in _WRONG_LAST:
            return OutdatedError(f"{self.name}: {subject} was changed meanwhile ({what})", errno=errno.EAGAIN)
        if "per subject exceeded" in what:
            return Full(f"{self.name}: {subject}: {what}", errno=errno.EEXIST)
        if _is_limit(error):
            return Refused(f"{self.name}: {subject}: {what}", errno=errno.ENOSPC)
        return self.error(f"{subject}: {what}")


def _is_limit(error: Answer) -> bool:
    return "maximum" in str(error.get("description"))


def _seconds(text: str) -> float:
    """Return a time of the engine (RFC 3339 in nanoseconds), in seconds since the epoch."""
    whole, _, fraction = text.rstrip("Z").partition(".")
    return datetime.fromisoformat(f"{whole}+00:00").timestamp() + float(f"0.{fraction or 0}")
