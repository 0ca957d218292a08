"""Inject faults into storage: make calls of a tree fail or hang, or run something between them.

:class:`Faults` turns the calls of a tree, of its files and of its readings into points::

    with Faults() as faults:
        manager.registry.register(faults.into(MyBackend()))
        faults.fail("file.sync", errno.EIO)  # every sync from now on
        faults.fail("file.pwrite", errno.ENOSPC, at=3)  # the third write
        gate = faults.hang("tree.link")  # until gate.open()
        faults.run("tree.rename", lambda call: ...)  # run something before each rename

A point's name has a kind and a method: ``tree.`` and a method of FileTree or WritableTree, ``file.`` and one of TreeFile,
``reading.`` and one of Reading. A tree's calls of its own methods count as well.
"""

from __future__ import annotations

import asyncio
import inspect
import os
import threading
import types
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, Self, TypeVar

from astore.backend import Backend, Context, PoolSession
from astore.model import PoolDef
from astore.trees.scanning import FileTreeSession
from astore.trees.tree import FileTree, Reading
from astore.trees.writable import WritableTree
from astore.volume_io.blocking_file import TreeFile

T = TypeVar("T", bound=Backend | FileTree | TreeFile | Reading)

LONGEST_HANG = 180.0
"""Seconds after which a call at a closed gate fails, so that a test ends even if it never opens the gate."""


def _methods(contract: type) -> frozenset[str]:
    return frozenset(name for name, _ in inspect.getmembers(contract, inspect.isfunction) if not name.startswith("_"))


_KINDS: tuple[tuple[str, type, frozenset[str]], ...] = (
    ("tree", FileTree, _methods(WritableTree)),
    ("file", TreeFile, _methods(TreeFile)),
    ("reading", Reading, _methods(Reading) | {"read"}),
)
POINTS = frozenset(f"{kind}.{name}" for kind, _, names in _KINDS for name in names)
"""The points of every :class:`Faults`."""


class Gate:
    """A function that blocks its callers until the gate is opened. It can replace any function.

    :ivar entered: how many calls have entered. :ivar inside: how many are waiting. :ivar most: the most that waited at once.
    """

    def __init__(self) -> None:
        self.entered: int = 0
        self.inside: int = 0
        self.most: int = 0
        self._open = threading.Event()
        self._lock = threading.Lock()
        self._waiting: list[tuple[int, asyncio.AbstractEventLoop, asyncio.Event]] = []

    def __call__(self, result: Any = None, *ignored: Any) -> Any:
        """Wait, and return the first argument. :raises AssertionError: the gate was closed for LONGEST_HANG seconds."""
        with self._lock:
            self.entered += 1
            self.inside += 1
            self.most = max(self.most, self.inside)
            due = [one for one in self._waiting if one[0] <= self.entered]
            for _, loop, reached in due:
                loop.call_soon_threadsafe(reached.set)
        try:
            if not self._open.wait(LONGEST_HANG):
                raise AssertionError("the gate was never opened")
        finally:
            with self._lock:
                self.inside -= 1
        return result

    async def reached(self, count: int = 1) -> None:
        """Wait until ``count`` calls have entered since the gate was made."""
        waiter = (count, asyncio.get_running_loop(), asyncio.Event())
        with self._lock:
            if self.entered >= count:
                return
            self._waiting.append(waiter)
        try:
            await waiter[2].wait()
        finally:
            with self._lock:
                self._waiting.remove(waiter)

    def open(self) -> None:
        """Release the waiting calls, and let later ones pass."""
        self._open.set()

    def close(self) -> None:
        """Hold the calls that enter from now on."""
        self._open.clear()


class Call(NamedTuple):
    """A call at a point.

    :ivar point: its name, such as ``file.pwrite``. :ivar target: the tree, file or reading. :ivar arguments: the positional
        ones. :ivar named: the others. :ivar result: what the call returned, for what runs after it.
    """

    point: str
    target: Any
    arguments: tuple[Any, ...]
    named: Mapping[str, Any]
    result: Any = None


class _Fault:
    """An action at some points: at each call, or at one call of them."""

    def __init__(self, points: Iterable[str], act: Callable[[Call], object], at: int | None, after: bool) -> None:
        self.points = set(points)
        self.act = act
        self._at = at
        self._after = after
        self._seen = 0

    def is_due(self, point: str, after: bool) -> bool:
        """Count a call; return whether the fault happens at it."""
        if after != self._after or point not in self.points:
            return False
        self._seen += 1
        return self._at is None or self._at == self._seen


class Faults:
    """The faults of a test. As a context manager it opens its gates and forgets its faults at the end.

    Several faults at one call happen in the order in which they were set, up to the first that raises. A fault happens before
    the call, or ``after`` it: then the call has had its effect, and a fault that raises is like a lost answer.

    :param own: names of the test's own points; see :meth:`reach`.

    :ivar calls: the points that were reached, in order. A test may clear it.
    """

    def __init__(self, *own: str) -> None:
        self.calls: list[str] = []
        self._known = POINTS | set(own)
        self._faults: list[_Fault] = []
        self._gates: list[Gate] = []
        self._classes: dict[type, type] = {}
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.clear()
        for gate in self._gates:
            gate.open()

    # ------------------------------------------------------------------------------------------------ what happens

    def fail(self, points: str | Iterable[str], errno: int, *, at: int | None = None, after: bool = False) -> None:
        """Have calls raise an OSError. (Use ``after`` for ``file.close``: a close that fails still closes.)

        :param points: one or several. :param at: the number of the one call that fails, from now on: 1 is the next of
            all calls at these points. None: each of them. :param after: after the call.
        :raises ValueError: there is no such point.
        """

        def act(call: Call) -> None:
            raise OSError(errno, os.strerror(errno))

        self.run(points, act, at=at, after=after)

    def hang(self, points: str | Iterable[str], *, at: int | None = None, after: bool = False) -> Gate:
        """Have calls wait in their threads until the gate that is returned is opened; parameters as for :meth:`fail`."""
        gate = Gate()
        self._gates.append(gate)
        self.run(points, lambda call: gate(), at=at, after=after)
        return gate

    def run(
        self,
        points: str | Iterable[str],
        act: Callable[[Call], object],
        *,
        at: int | None = None,
        after: bool = False,
    ) -> None:
        """Call ``act``, which may raise, in the thread of the calls; other parameters as for :meth:`fail`."""
        named = {points} if isinstance(points, str) else set(points)
        if unknown := named - self._known:
            raise ValueError(f"no such point: {', '.join(sorted(unknown))}")
        with self._lock:
            self._faults.append(_Fault(named, act, at, after))

    def clear(self, *points: str) -> None:
        """Forget the faults of these points, or all faults. Calls that already hang stay there."""
        with self._lock:
            for fault in self._faults:
                fault.points -= set(points) if points else fault.points
            self._faults = [fault for fault in self._faults if fault.points]

    # ------------------------------------------------------------------------------------------------ where it happens

    def into(self, thing: T) -> T:
        """Turn the calls of a tree, file or reading, and of what it opens later, into points; return the same object.

        For a backend, this happens to the tree of each FileTreeSession that it opens. For other sessions, and for trees that a
        session makes later, call this with the tree.
        """
        kind = type(thing)
        with self._lock:
            if kind not in self._classes.values():
                if kind not in self._classes:
                    self._classes[kind] = self._subclass(kind)
                # A subclass, not a proxy: existing references meet the faults too, and isinstance() still holds.
                object.__setattr__(thing, "__class__", self._classes[kind])
        return thing

    def reach(self, point: str) -> None:
        """Pass a point of the test's own. :raises OSError: as its faults say."""
        self._meet(Call(point, None, (), {}))

    def _subclass(self, kind: type) -> type:
        body: dict[str, Any] = {"__slots__": ()}
        if issubclass(kind, Backend):
            body["open"] = self._open(kind)
        for of, contract, names in _KINDS:
            for name in names if issubclass(kind, contract) else ():
                if inspect.isfunction(inspect.getattr_static(kind, name, None)):
                    body[name] = self._method(kind, of, name)
        return types.new_class(f"Faulty{kind.__name__}", (kind,), exec_body=lambda namespace: namespace.update(body))

    def _method(self, kind: type, of: str, name: str) -> Callable[..., Any]:
        def method(target: Any, *arguments: Any, **named: Any) -> Any:
            point = f"{of}.{name}"
            self._meet(Call(point, target, arguments, named))
            result = getattr(kind, name)(target, *arguments, **named)
            opened = isinstance(result, TreeFile | Reading)
            try:
                self._meet(Call(point, target, arguments, named, result), after=True)
            except BaseException:
                if opened:
                    result.close()
                raise
            return self.into(result) if opened else result

        return method

    def _open(self, kind: type[Backend]) -> Callable[..., Any]:
        async def open(backend: Any, definition: PoolDef, context: Context) -> PoolSession:
            session = await kind.open(backend, definition, context)
            if isinstance(session, FileTreeSession):
                self.into(session.tree)
            return session

        return open

    def _meet(self, call: Call, after: bool = False) -> None:
        with self._lock:
            if not after:
                self.calls.append(call.point)
            due = [fault for fault in self._faults if fault.is_due(call.point, after)]
        for fault in due:
            fault.act(call)
