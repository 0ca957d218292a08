"""Small things that the core's tests hold in their hands: calls that wait, conditions that come true, snapshots."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from stacks import of_all_threads

from astore.backend import Backend, Context, PoolSession
from astore.errors import BackendError, DefinitionError
from astore.manager import Manager
from astore.model import DiscoveredSource, EntryError, Host, PoolDef, Snapshot, Source, Target, VolumeInfo, VolumeType
from astore.pools.pool import Pool
from astore.registry import BackendRegistry

T = TypeVar("T")

PATIENCE = 200.0
"""Seconds that a test waits for what has to come; far more than it ever takes."""


async def eventually(condition: Callable[[], object], what: str | Callable[[], str] = "the condition") -> None:
    """Let the loop run until ``condition()`` is true.

    :param what: the condition in words, for the error; a function that returns them is called when it fails.
    """
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() >= deadline:
            said = what if isinstance(what, str) else what()
            raise AssertionError(f"{said} did not come about\n{of_all_threads()}")
        await asyncio.sleep(0.002)


def quiet(manager: Manager) -> bool:
    """Whether no thread is in a call, or about to be."""
    return not any(lane.running or lane.stuck or lane.queued for lane in manager.statistics().lanes.lanes)


async def steps(count: int) -> None:
    """Let the loop go round ``count`` times."""
    for _ in range(count):
        await asyncio.sleep(0)


async def cancelling(task: asyncio.Future[Any]) -> None:
    """Cancel a task, and wait for its end: it must be cancelled."""
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    assert task.cancelled()


async def cancel_after(count: int, call: Callable[[], Awaitable[T]]) -> tuple[bool, T | None]:
    """Run ``call()`` in a task and cancel it after ``count`` rounds of the loop.

    Says whether it was cancelled, and what it returned if it was not.
    """

    async def body() -> T:
        return await call()

    task = asyncio.ensure_future(body())
    await steps(count)
    task.cancel()
    try:
        return False, await task
    except asyncio.CancelledError:
        return True, None


def volume(name: str, **fields: Any) -> VolumeInfo:
    """A record; what matters is given, the rest made up."""
    known: dict[str, Any] = {
        "name": name,
        "type": VolumeType.FILE,
        "key": f"/pool/{name}",
        "path": f"/pool/{name}",
        "capacity": 1 << 20,
        "allocation": 4096,
        "physical": 4096,
        "format": "raw",
        "mode": 0o100644,
        "uid": 0,
        "gid": 0,
        "inode": hash(name) & 0xFFFF,
        "atime_ns": 1,
        "mtime_ns": 2,
        "ctime_ns": 3,
    }
    return VolumeInfo(**(known | fields))


def snapshot(*names: str, **fields: Any) -> Snapshot:
    """A snapshot of volumes with these names."""
    return Snapshot({name: volume(name) for name in sorted(names)}, taken_at=1.0, **fields)


def run_python(code: str, *arguments: str, timeout: float = 60.0) -> subprocess.CompletedProcess[str]:
    """Run a program in an interpreter of its own; warnings are errors there too."""
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code, *arguments],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
    )


@contextlib.contextmanager
def folder_locked(folder: Path) -> Iterator[None]:
    """Hold a state folder's lock, as another process would. (It blocks: the folder must not be locked already.)"""
    lock = os.open(folder / "lock", os.O_RDWR)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


# ------------------------------------------------------------------------------------------------------ a backend


class Hold:
    """A place in a fake backend where calls wait until they are let go."""

    def __init__(self) -> None:
        self.arrived = 0
        self._released = asyncio.Event()

    def release(self) -> None:
        """Let go who waits, and let pass who comes."""
        self._released.set()

    async def wait(self) -> None:
        self.arrived += 1
        await self._released.wait()

    async def reached(self, count: int = 1) -> None:
        """Wait until ``count`` calls have arrived."""
        await eventually(lambda: self.arrived >= count, "the call that is held")


class FakeBackend(Backend):
    """A backend whose pools show what it is told to, and whose calls fail or wait where they are told to.

    Operations go by their method's name: ``check``, ``open``, ``build``, ``delete``, ``discover``; and of sessions
    ``refresh``, ``refresh_volume``, ``stop``, ``aclose``.

    :ivar shows: volume records and entry errors by pool name; pools that are not in it show those of ``""``.
    :ivar calls: ``(operation, pool name)`` as they began. :ivar open_sessions: those not closed yet.
    """

    type: ClassVar[str] = "fake"

    def __init__(self) -> None:
        self.shows: dict[str, dict[str, VolumeInfo | EntryError]] = {"": {}}
        self.calls: list[tuple[str, str]] = []
        self.open_sessions: list[FakeSession] = []
        self.sessions = 0
        self._holds: dict[tuple[str, str], Hold] = {}
        self._fails: dict[tuple[str, str], BaseException] = {}

    def show(self, *names: str, pool: str = "") -> None:
        """Have pools show volumes of these names; those they show already keep their records."""
        before = self.shows.get(pool, {})
        self.shows[pool] = {name: before.get(name) or volume(name) for name in sorted(names)}

    def put(self, name: str, item: VolumeInfo | EntryError, pool: str = "") -> None:
        """Have pools show this, too."""
        self.shows[pool] = dict(sorted((self.shows.get(pool, {}) | {name: item}).items()))

    def hold(self, operation: str, pool: str = "") -> Hold:
        """Make calls of an operation wait from now on; ``pool`` "" is for all pools."""
        hold = self._holds[operation, pool] = Hold()
        return hold

    def unhold(self) -> None:
        """Let everybody go, and hold nobody any more."""
        for hold in self._holds.values():
            hold.release()
        self._holds.clear()

    def fail(self, operation: str, error: BaseException | None, pool: str = "") -> None:
        """Make calls of an operation raise this from now on (None: no more)."""
        if error is None:
            self._fails.pop((operation, pool), None)
        else:
            self._fails[operation, pool] = error

    def count(self, operation: str, pool: str | None = None) -> int:
        """How often an operation was begun."""
        return sum(op == operation and pool in (None, of) for op, of in self.calls)

    async def at(self, operation: str, pool: str) -> None:
        """What every call does first: be noted, wait, fail."""
        self.calls.append((operation, pool))
        for key in ((operation, pool), (operation, "")):
            if (hold := self._holds.get(key)) is not None:
                await hold.wait()
        self.raise_if_told(operation, pool)

    def raise_if_told(self, operation: str, pool: str) -> None:
        for key in ((operation, pool), (operation, "")):
            if (error := self._fails.get(key)) is not None:
                raise error.with_traceback(None)

    def check(self, definition: PoolDef) -> PoolDef:
        self.raise_if_told("check", definition.name)
        if definition.target.path == "/refused":
            raise DefinitionError("this path is refused", element="target")
        return definition

    def source_key(self, definition: PoolDef) -> tuple[tuple[str, str], ...]:
        path = definition.target.path
        return (("target path", path),) if path else ()

    async def open(self, definition: PoolDef, context: Context) -> PoolSession:
        await self.at("open", context.name)
        session = self.session_class(self, definition, context)
        self.sessions += 1
        self.open_sessions.append(session)
        return session

    async def build(self, definition: PoolDef, context: Context) -> None:
        await self.at("build", context.name)

    async def delete(self, definition: PoolDef, context: Context) -> None:
        await self.at("delete", context.name)

    async def discover(
        self, host: str | None, context: Context, *, port: int | None = None
    ) -> Sequence[DiscoveredSource]:
        await self.at("discover", "")
        return [DiscoveredSource("fake", Source(hosts=(Host(host, port),) if host else (), directory="/export"))]

    session_class: type[FakeSession]


class FakeSession(PoolSession):
    """A started pool of a :class:`FakeBackend`."""

    def __init__(self, backend: FakeBackend, definition: PoolDef, context: Context) -> None:
        self.backend = backend
        self.definition = definition
        self.context = context
        self.closed = 0

    def shown(self) -> dict[str, VolumeInfo | EntryError]:
        shows = self.backend.shows
        return shows.get(self.context.name, shows[""])

    async def refresh(self, previous: Snapshot, *, full: bool = False) -> Snapshot:
        before = self.shown()
        await self.backend.at("refresh", self.context.name)
        assert not self.closed, "a closed session was asked to refresh"
        return Snapshot(
            {name: item for name, item in before.items() if isinstance(item, VolumeInfo)},
            taken_at=time.time(),
            capacity=100,
            allocation=40,
            available=60,
            errors=tuple(item for item in before.values() if isinstance(item, EntryError)),
        )

    async def refresh_volume(self, name: str) -> VolumeInfo | EntryError | None:
        item = self.shown().get(name)
        await self.backend.at("refresh_volume", self.context.name)
        return item

    async def stop(self) -> None:
        await self.backend.at("stop", self.context.name)

    async def aclose(self) -> None:
        self.closed += 1
        if self in self.backend.open_sessions:
            self.backend.open_sessions.remove(self)
        await self.backend.at("aclose", self.context.name)


FakeBackend.session_class = FakeSession


def fake_registry(backend: Backend | None = None) -> BackendRegistry:
    """A registry with nothing but this backend (or an ordinary fake one)."""
    registry = BackendRegistry(group=None)
    registry.register(backend if backend is not None else FakeBackend())
    return registry


def fake(name: str, path: str | None = None, type: str = "fake") -> PoolDef:
    """A definition; without a path it has no source that could be another's."""
    return PoolDef(type=type, name=name, target=Target(path=path))


async def started(manager: Manager, definition: PoolDef) -> Pool:
    """A new pool, started."""
    pool = await manager.define(definition)
    await pool.start()
    return pool


def names(pool: Pool) -> list[str]:
    """What volumes a pool shows."""
    return [record.name for record in pool.volumes]


def in_use(manager: Manager) -> dict[str, int]:
    """How many pools use each backend that is used at all."""
    return {info.type: info.pools for info in manager.registry.backends() if info.pools}


async def idle(manager: Manager) -> None:
    """Wait until no thread is in a call of the state folder's or of a pool's, nobody waiting for it included."""
    await eventually(
        lambda: not any(lane.running or lane.queued for lane in manager.statistics().lanes.lanes),
        "the end of all calls",
    )


# ------------------------------------------------------------------------------------------------ distributions


def distribution(
    folder: Path, name: str, entry_points: str, *, version: str = "1.0", modules: dict[str, str] | None = None
) -> None:
    """Make a distribution as an installer leaves it: a ``.dist-info`` folder and modules, in ``folder``.

    :param entry_points: lines of the group ``astore.backends``. :param modules: source text by module name.
    """
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (info / "entry_points.txt").write_text(f"[astore.backends]\n{entry_points}\n")
    for module, text in (modules or {}).items():
        (folder / f"{module}.py").write_text(text)


BACKEND_MODULE = """
from astore.backend import Backend
{before}
class Plugin(Backend):
    type = {type!r}
    {inside}
    def check(self, definition):
        return definition
    def source_key(self, definition):
        return ()
    async def open(self, definition, context):
        raise OSError("nothing to open")
"""


def backend_module(type: str, *, before: str = "", inside: str = "") -> str:
    """The text of a module with a backend ``Plugin``; ``before`` it and ``inside`` its class, more text."""
    return BACKEND_MODULE.format(type=type, before=before, inside=inside)


HELD = "import astore_test_gate; astore_test_gate.wait()"
"""For ``before``: the import of the module waits for the gate, see :func:`import_gate`."""


@contextlib.contextmanager
def import_gate() -> Iterator[threading.Event]:
    """Give the gate that HELD modules wait for, and open it at the end."""
    gate = threading.Event()
    sys.modules["astore_test_gate"] = gate  # type: ignore[assignment]
    try:
        yield gate
    finally:
        gate.set()
        del sys.modules["astore_test_gate"]


async def others_loaded(registry: BackendRegistry, hangs: str) -> None:
    """Load every other backend, in its own time, while the import of one hangs; failures are passed over."""
    asking = asyncio.ensure_future(registry.get(hangs))
    for type in set(registry.types()) - {hangs}:
        with contextlib.suppress(BackendError):
            await registry.get(type)
    assert not asking.done()
    asking.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await asking


def counted(events: Sequence[Any]) -> Counter[str]:
    """Events by the name of their class."""
    return Counter(type(event).__name__ for event in events)
