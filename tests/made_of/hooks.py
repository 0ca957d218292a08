"""A local tree whose calls, and whose files' calls, are points at which somebody else does something.

Each start of qemu-img is one as well.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable
from typing import Any

import pytest

from astore.backend import Context
from astore.backends.directory import DirectoryBackend
from astore.model import PoolDef
from astore.trees.session import WritableTreeSession
from astore.trees.writable_local import WritableLocalTree
from astore.volume_io import qemu_img
from astore.volume_io.local_file import LocalFile

TREE = (
    *("open", "create", "stat", "link", "rename", "unlink", "mkdir", "rmdir", "sync_folder"),
    *("lookup", "reading", "folder_place", "statvfs"),
)
FILE = ("lock", "open_again", "clone", "chown", "chmod", "note_format", "begin_as_qemu", "truncate", "sync", "close")


class Hooks:
    """Points in a piece of work, counted from 0: before each call.

    After a call is the same as before the next one: between them nothing is looked up by its name.

    :ivar at: the point at which ``swap`` is called, once. :ivar points: what was called where. :ivar made: the inodes of
        what was made. :ivar no_links: hard links cannot be made by descriptor.
    """

    def __init__(self) -> None:
        self.points: list[str] = []
        self.made: list[int] = []
        self.no_links = False
        self._at = -1
        self._swap: Callable[[], None] = lambda: None
        self._on = False
        self._lock = threading.Lock()

    def watch(self, at: int = -1, swap: Callable[[], None] = lambda: None) -> None:
        """Count from now on."""
        self.points, self.made = [], []
        self._at, self._swap, self._on = at, swap, True

    def rest(self) -> None:
        """Count no more."""
        self._on = False

    def meet(self, point: str) -> None:
        """Come to a point."""
        with self._lock:
            if not self._on:
                return
            self.points.append(point)
            if len(self.points) - 1 == self._at:
                self._on = False
                try:
                    self._swap()
                finally:
                    self._on = True


class HookedFile(LocalFile):
    """A file whose calls are points."""

    __slots__ = ()
    hooks: Hooks


class HookedTree(WritableLocalTree):
    """A tree whose calls are points. Of no known file system."""

    ordered = False
    hooks: Hooks


def _hooked(base: type, name: str) -> Callable[..., Any]:
    real = getattr(base, name)

    def method(self: Any, *arguments: Any, **named: Any) -> Any:
        hooks: Hooks = type(self).hooks
        hooks.meet(name)
        if name == "link" and hooks.no_links:
            raise PermissionError(1, "it has no hard links")
        result = real(self, *arguments, **named)
        if isinstance(result, LocalFile):
            if name == "create":
                hooks.made.append(os.fstat(result.fileno()).st_ino)
            result.__class__ = HookedFile
        return result

    return method


for _class, _base, _names in ((HookedTree, WritableLocalTree, TREE), (HookedFile, LocalFile, FILE)):
    for _name in _names:
        setattr(_class, _name, _hooked(_base, _name))


class HookedBackend(DirectoryBackend):
    """Pools of type ``dir`` on such trees."""

    def __init__(self, hooks: Hooks, monkeypatch: pytest.MonkeyPatch) -> None:
        HookedTree.hooks = HookedFile.hooks = hooks
        real = qemu_img.run

        async def run(*arguments: Any, **named: Any) -> Any:
            await asyncio.to_thread(hooks.meet, f"qemu-img {arguments[0]}")
            return await real(*arguments, **named)

        monkeypatch.setattr(qemu_img, "run", run)

    async def open(self, definition: PoolDef, context: Context) -> WritableTreeSession:
        tree = await context.lane.run(HookedTree, definition.target.path)
        return WritableTreeSession(tree, context)
