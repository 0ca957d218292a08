"""A local tree, and a backend of pools on it, whose calls fail or hang where they are told to."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Any

from core_fakes import Gate

from astore.backend import Context
from astore.backends.directory import DirectoryBackend
from astore.model import PoolDef
from astore.trees.session import WritableTreeSession
from astore.trees.writable_local import WritableLocalTree
from astore.volume_io.local_file import LocalFile


class Faults:
    """What goes wrong in a tree: methods by name, of tree and files alike, that fail, or wait at a gate, or run first.

    ``fail`` is called with the method's arguments and may raise; a number is an errno.
    """

    def __init__(self) -> None:
        self.by_name: dict[str, int | Gate | Callable[..., object]] = {}
        self.calls: list[str] = []
        self._lock = threading.Lock()

    def __setitem__(self, name: str, fault: int | Gate | Callable[..., object]) -> None:
        self.by_name[name] = fault

    def clear(self, name: str) -> None:
        """This goes well again."""
        self.by_name.pop(name, None)

    def meet(self, name: str, *args: object) -> None:
        with self._lock:
            self.calls.append(name)
        fault = self.by_name.get(name)
        if isinstance(fault, int):
            raise OSError(fault, os.strerror(fault))
        if isinstance(fault, Gate):
            fault()
        elif fault is not None:
            fault(*args)


def _faulty(base: type, names: tuple[str, ...]) -> dict[str, Any]:
    def wrap(name: str) -> Callable[..., Any]:
        real = getattr(base, name)

        def method(self: Any, *args: Any, **kwargs: Any) -> Any:
            if name == "close" and not isinstance(self.faults.by_name.get(name), Gate):
                real(self)  # a close that fails has closed all the same
                return self.faults.meet(name)
            self.faults.meet(name, *args)
            return real(self, *args, **kwargs)

        return method

    return {name: wrap(name) for name in names}


_FILE = (
    *("pread", "pwrite", "truncate", "allocate", "punch", "seek_data", "seek_hole", "copy_range", "clone"),
    *("chown", "sync", "lock", "close"),
)
_TREE = ("open", "create", "link", "rename", "unlink", "mkdir", "rmdir", "sync_folder")


class FaultyFile(LocalFile):
    """A file whose calls go through ``faults`` first."""

    faults: Faults


class FaultyTree(WritableLocalTree):
    """A tree whose calls, and whose files' calls, go through ``faults`` first. Of no known file system."""

    makers = 2
    ordered = False

    faults: Faults


for _class, _base, _names in ((FaultyFile, LocalFile, _FILE), (FaultyTree, WritableLocalTree, _TREE)):
    for _name, _method in _faulty(_base, _names).items():
        setattr(_class, _name, _method)


def _files_of(name: str) -> Callable[..., FaultyFile]:
    meet = getattr(FaultyTree, name)

    def method(self: FaultyTree, *args: Any, **kwargs: Any) -> FaultyFile:
        plain = meet(self, *args, **kwargs)
        file = FaultyFile(plain.fileno(), plain.path)
        file.faults = self.faults
        plain._fd = -1
        return file

    return method


for _name in ("open", "create"):
    setattr(FaultyTree, _name, _files_of(_name))


class FaultyBackend(DirectoryBackend):
    """Pools of type ``dir`` on faulty trees."""

    def __init__(self, faults: Faults) -> None:
        self.faults = faults

    async def open(self, definition: PoolDef, context: Context) -> WritableTreeSession:
        tree = await context.lane.run(FaultyTree, definition.target.path)
        tree.faults = self.faults
        return WritableTreeSession(tree, context)
