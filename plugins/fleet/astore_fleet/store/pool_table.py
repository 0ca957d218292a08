"""PoolTable: the definitions and runs of a fleet, as the stream of them says."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from astore.errors import reason
from astore.model import PoolDef
from astore.store.contract import Damaged, Run, StoredPool, Version
from astore.store.run_files import boot_id
from astore_fleet.engine import Message
from astore_fleet.names import unescaped
from astore_fleet.records import Placement
from astore_fleet.store.definition_headers import AUTOSTART, BY, HOST, PLACE, SAME, VERSION, placement_of

MOST_STEPS = 4096
"""How many of its own changes a client remembers."""


class HeldRun(Run, frozen=True):
    """A run as a host has written it, with the boot of the host's machine."""

    boot_id: str


_encode = msgspec.msgpack.Encoder(order="deterministic").encode
_decode = msgspec.msgpack.Decoder(HeldRun).decode


def encoded(run: Run) -> bytes:
    """Return the body of a run of this boot."""
    return _encode(HeldRun(run.definition, run.uuid, run.started_at, boot_id()))


class Held:
    """A definition: its version and mark, and its text, which is parsed when it is needed first.

    :ivar defined_by: the host that defined it; empty: none. :ivar placement: where it may run.
    """

    __slots__ = ("_parsed", "autostart", "data", "defined_by", "name", "path", "placement", "version")

    def __init__(self, name: str, message: Message) -> None:
        self.name: str = name
        self.path: str = message.subject
        self.data: bytes = message.data
        self.version: Version = Version(message.headers.get(VERSION) or f"by hand {message.seq}")
        self.autostart: bool = message.headers.get(AUTOSTART) == "1"
        self.defined_by: str = message.headers.get(HOST, "")
        self.placement: Placement = placement_of(message.headers.get(PLACE))
        self._parsed: PoolDef | str | None = None

    @property
    def parsed(self) -> bool:
        """Whether :meth:`definition` takes no time any more."""
        return self._parsed is not None

    def definition(self) -> PoolDef | str:
        """Return the definition, or what is wrong with it."""
        if self._parsed is None:
            try:
                found = PoolDef.from_xml(self.data)
                self._parsed = found
                if found.name != self.name:
                    self._parsed = f"it defines a pool {found.name!r}"
                elif found.uuid is None:
                    self._parsed = "it has no uuid"
            except Exception as error:  # anybody may have written anything
                self._parsed = reason(error)
        return self._parsed


class PoolTable:
    """The content of the stream of definitions and runs.

    :param host: the host whose runs count. :param session: the connection whose changes are one's own.
    :ivar definitions: by pool name. :ivar runs: by pool name and host. :ivar last: the last sequence of each pool.
    :ivar written_by: by pool name, the connection that has defined or undefined it last.
    :ivar relevant: the last sequence that changed something for this host. :ivar defined: that of a definition.
    """

    def __init__(self, host: str, session: str) -> None:
        self._host = host
        self._session = session
        self.definitions: dict[str, Held] = {}
        self.runs: dict[str, dict[str, HeldRun]] = {}
        self.last: dict[str, int] = {}
        self.relevant: int = 0
        self.defined: int = 0
        self.written_by: dict[str, str] = {}
        self._steps: dict[int, int] = {}

    def reset(self) -> None:
        """Forget all, before everything is read anew."""
        self.definitions.clear()
        self.runs.clear()
        self.last.clear()
        self.written_by.clear()
        self._steps.clear()

    def take(self, message: Message) -> None:
        """Take over one message."""
        parts = message.subject.split(".")
        if len(parts) < 4:
            return
        name, kind, host = unescaped(parts[2]), parts[3], unescaped(parts[4]) if len(parts) > 4 else ""
        self.last[name] = message.seq
        if kind == "def":
            if message.deleted:
                self.definitions.pop(name, None)
            else:
                self.definitions[name] = Held(name, message)
            if SAME not in message.headers:
                self.defined = message.seq
            self.written_by[name] = message.headers.get(BY, "")
        elif kind == "run":
            self._take_run(name, host, message)
        if kind == "def" or host == self._host:
            if message.headers.get(BY) == self._session:
                if len(self._steps) >= MOST_STEPS:
                    self._steps.clear()
                self._steps[self.relevant] = message.seq
            self.relevant = message.seq

    def _take_run(self, name: str, host: str, message: Message) -> None:
        runs = self.runs.setdefault(name, {})
        runs.pop(host, None)
        if not message.deleted:
            try:
                run = _decode(message.data)
                if run.name == name:
                    runs[host] = run
            except Exception:  # anybody may have written anything: it is no run
                runs.pop(host, None)
        if not runs:
            del self.runs[name]

    def run(self, name: str) -> Run | None:
        """Return the run of a pool on this host, since its boot."""
        found = self.runs.get(name, {}).get(self._host)
        if found is None or found.boot_id != boot_id():
            return None
        return Run(found.definition, found.uuid, found.started_at)

    def elsewhere(self, name: str) -> dict[str, HeldRun]:
        """Return the runs of a pool on other hosts, by host."""
        return {host: run for host, run in self.runs.get(name, {}).items() if host != self._host}

    def advanced(self, relevant: int) -> int:
        """Return the state that a state has become by changes of this client alone."""
        while (step := self._steps.get(relevant)) is not None:
            relevant = step
        return relevant

    def pools(self, wanted: Callable[[Held], bool]) -> tuple[tuple[StoredPool, ...], tuple[Damaged, ...]]:
        """Return the wanted definitions in name order, and those that cannot be read."""
        good: list[StoredPool] = []
        damaged: list[Damaged] = []
        for name, held in sorted(self.definitions.items()):
            found = held.definition()
            if not wanted(held):
                continue
            if isinstance(found, PoolDef):
                good.append(StoredPool(found, held.autostart, held.version))
            else:
                damaged.append(Damaged(name, held.path, found, held.version))
        return tuple(good), tuple(damaged)
