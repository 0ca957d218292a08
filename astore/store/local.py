"""The store of one machine: a folder of files, safe against kill -9 and shared by several processes.

::

    pools/NAME.xml           the definition, as libvirt writes it
    autostart/NAME.xml       a link to it: start_all() starts this pool
    run/NAME.run             the pool is active since this boot, and what it runs by
    run/NAME.snapshot        its last snapshot: a cache
    secrets/UUID.json        a secret: see astore.secrets.files
    lock                     held while a definition is changed

A file is written to a temporary name, synced, and renamed into place, and its folder is synced: readers always see one
whole version.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import threading
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import msgspec

from astore.backend import Lane
from astore.cancellation import bounded, retrieved, shielded
from astore.errors import InvalidStateError
from astore.model import PoolDef
from astore.notices import About, FolderNotices, FolderWatch, Listener
from astore.store.contract import (
    Contents,
    Current,
    KeepsSnapshots,
    LastSeen,
    OutdatedError,
    Revision,
    Run,
    Store,
    Version,
    merged,
)
from astore.store.definition_files import DefinitionFiles, FileState
from astore.store.local_files import FileVersion, LockedFolder, store_errors_about
from astore.store.run_files import RunFiles, SnapshotFiles

T = TypeVar("T")

SAVE_TIMEOUT = 1.0
"""Seconds to wait for the lock before a snapshot is saved."""

UNWATCHED_SECONDS = 1.0
"""Seconds between two looks at folders that are not there, or cannot be watched."""

MOST_STEPS = 4096
"""How many of its own changes a store remembers."""


class _Marks(NamedTuple):
    """The versions of the folders, which change with the names in them; None: there is no such folder."""

    pools: FileVersion | None
    autostart: FileVersion | None
    run: FileVersion | None


class _Seen(msgspec.Struct, frozen=True):
    """A revision.

    :ivar names: the definitions; None after a change of this store's own, which leaves marks that are fine enough.
    :ivar damaged: the damaged ones' files, which may be repaired in place.
    """

    marks: _Marks
    names: frozenset[str] | None
    damaged: dict[str, FileState]


class LocalStore(Store, KeepsSnapshots):
    """Keeps definitions, runs and snapshots in a folder. The first change creates the folder with mode 0700.

    The store does not read a folder or a file that users other than root and the one who runs astore can write.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder: Path = Path(folder)
        self.name: str = f"state folder {self.folder}"
        self._files = LockedFolder(folder)
        self._definitions = DefinitionFiles(self._files)
        self._runs = RunFiles(self._files)
        self._snapshots = SnapshotFiles(self._files)
        self._lane: Lane | None = None
        # own changes: the marks before, those after, and whose definition was written or removed ("": nobody's)
        self._steps: dict[_Marks, tuple[_Marks, str]] = {}

    async def open(self, lane: Lane) -> None:
        """Keep the lane. Creates and reads nothing yet."""
        self._lane = lane

    async def aclose(self) -> None:
        """Do nothing: no file stays open between two calls."""

    async def read(self, since: Revision | None = None) -> Contents | None:
        """See :meth:`Store.read`. ``since=None`` also finds changes that an editor made in place."""
        return await self._call(self._read, since)

    def advanced(self, since: Revision) -> Revision:
        """See :meth:`Store.advanced`. Changes made while the store was locked are known; others have to be read."""
        if not isinstance(since, _Seen) or since.marks not in self._steps:
            return since
        marks, damaged = since.marks, dict(since.damaged)
        while (step := self._steps.get(marks)) is not None:
            marks, name = step
            damaged.pop(name, None)
        names = since.names if marks.pools == since.marks.pools else None
        return Revision(_Seen(marks, names, damaged))

    async def current(self, name: str) -> Current:
        """See :meth:`Store.current`. Reads the run, and takes the version of the definition by stat(2)."""
        return await self._call(self._current, name)

    async def put(self, definition: PoolDef, expected: Revision) -> Version:
        return await self._change(self._put, definition, expected)

    async def remove(self, name: str, expected: Version) -> None:
        await self._change(self._remove, name, expected)

    async def set_autostart(self, name: str, on: bool) -> None:
        await self._change(self._set_autostart, name, on)

    async def begin_run(self, run: Run, *, persistent: bool) -> None:
        await self._change(self._begin_run, run, persistent)

    async def end_run(self, name: str, started_at: float) -> None:
        """See :meth:`Store.end_run`. Needs no lock: no other run is written while there is one."""
        await self._change(self._end_run, name, started_at)

    async def check_end_run(self, name: str) -> None:
        """See :meth:`Store.check_end_run`. It fails if the folder has become read-only."""
        await self._call(self._runs.check_remove, name)

    async def save_snapshot(self, name: str, started_at: float, seen: LastSeen) -> None:
        await self._call(self._save_snapshot, name, started_at, seen)

    async def load_snapshots(self, runs: Mapping[str, float]) -> dict[str, LastSeen]:
        return await self._call(self._load_snapshots, dict(runs))

    async def changes(self) -> AsyncGenerator[None]:
        """See :class:`astore.store.contract.WatchesStore`. Folders that cannot be watched are looked at every second."""
        if self._lane is None:
            raise InvalidStateError(f"the {self.name} was not opened", operation="watch")
        heard, watches = asyncio.Event(), dict[Path, FolderWatch]()

        def listener(folder: Path) -> Listener:
            def hear(about: About, _: frozenset[str] | None) -> None:
                if about is About.PLACE and folder in watches:
                    watches.pop(folder).close()
                heard.set()

            return hear

        folders = (self._files.pools, self._files.autostart, self._files.run)
        try:
            while True:
                for folder in folders:
                    if folder not in watches:
                        with contextlib.suppress(OSError):
                            open_folder = partial(os.open, folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                            watches[folder] = await FolderNotices.of_this_loop().watch(
                                open_folder, listener(folder), self._lane.run
                            )
                            heard.set()  # for what happened before
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(None if len(watches) == len(folders) else UNWATCHED_SECONDS):
                        await heard.wait()
                heard.clear()
                yield
        finally:
            for watch in watches.values():
                watch.close()

    # -------------------------------------------------------------------------------------------------- on the lane

    async def _call(self, func: Callable[..., T], *args: Any) -> T:
        if self._lane is None:
            raise InvalidStateError(f"the {self.name} was not opened", operation="read")
        return await self._lane.run(func, *args)

    async def _change(self, func: Callable[..., T], *args: Any) -> T:
        """Make a change on the lane. If the caller is cancelled, or the call fails, wait for the end of the change (bounded).

        :param func: called with the event ``given_up`` first; once that is set, a change must not begin.
        """
        given_up = threading.Event()
        task = asyncio.get_running_loop().create_task(self._call(func, given_up, *args))
        task.add_done_callback(retrieved)
        try:
            return await asyncio.shield(task)
        except BaseException:
            given_up.set()
            if not task.done():
                await shielded(bounded(asyncio.wait([task])), whole=True)
            raise

    # ------------------------------------------------------------------------------------------------ these block

    def _read(self, since: Revision | None) -> Contents | None:
        files = self._files
        files.check()
        marks = self._marks()
        if (
            isinstance(since, _Seen)
            and since.marks == marks
            and all(self._definitions.state(name) == state for name, state in since.damaged.items())
        ):
            return None
        found = self._definitions.read()
        runs, unknown = self._runs.read()
        lost = marks.pools is None or not files.run.is_dir()
        revision = Revision(_Seen(marks, frozenset(found.names), found.states))
        return Contents(revision, found.good, found.damaged, runs, frozenset(unknown), lost)

    def _marks(self) -> _Marks:
        files = self._files
        return _Marks(_mark(files.pools), _mark(files.autostart), _mark(files.run))

    @contextlib.contextmanager
    def _stepping(self, given_up: threading.Event, name: str = "") -> Iterator[None]:
        """Remember the change inside as this store's own. The caller holds the lock.

        :param name: the pool whose definition is written or removed.
        """
        before = self._marks()
        yield
        self._touch(before)
        after = self._marks()
        if after != before and not given_up.is_set():
            if len(self._steps) >= MOST_STEPS:
                self._steps.clear()
            self._steps[before] = after, name

    def _touch(self, before: _Marks) -> None:
        """Give changed folders a time as fine as the clock. The kernel's own is as coarse as its tick.

        So the next change, by anyone, changes the version of the folder again.
        """
        files = self._files
        for folder, old, new in zip((files.pools, files.autostart, files.run), before, self._marks(), strict=True):
            if new is not None and new != old:
                with contextlib.suppress(OSError):
                    os.utime(folder, ns=(time.time_ns(), time.time_ns()))

    def _current(self, name: str) -> Current:
        run = self._runs.find(name)
        lost = not (self._files.pools.is_dir() and self._files.run.is_dir())
        return Current(self._definitions.version(name), None if run is None else run.started_at, lost)

    def _put(self, given_up: threading.Event, definition: PoolDef, expected: Revision) -> Version:
        name = definition.name
        with self._files.locked(given_up=given_up), store_errors_about(self._definitions.path(name)):
            run = self._runs.find(name)
            if not self._defines_the_same(expected) or (run is not None and run.uuid != definition.uuid):
                raise OutdatedError(f"{self._files.pools} was changed meanwhile", errno=errno.EAGAIN)
            with self._stepping(given_up, name):
                return self._definitions.write(definition)

    def _defines_the_same(self, seen: object) -> bool:
        """Return whether no definition was written or removed since. The caller holds the lock, so the folders exist."""
        if not isinstance(seen, _Seen):
            return False
        if seen.marks.pools not in (None, _mark(self._files.pools)):
            return False
        return seen.names is None or seen.names == set(self._definitions.names())

    def _remove(self, given_up: threading.Event, name: str, expected: Version) -> None:
        path = self._definitions.path(name)
        with self._files.locked(given_up=given_up), store_errors_about(path):
            if self._definitions.version(name) != expected or self._runs.find(name) is not None:
                raise OutdatedError(f"{path} was changed meanwhile", errno=errno.EAGAIN)
            with self._stepping(given_up, name):
                self._definitions.remove(name)

    def _set_autostart(self, given_up: threading.Event, name: str, on: bool) -> None:
        with self._files.locked(given_up=given_up), store_errors_about(self._definitions.path(name)):
            with self._stepping(given_up):
                self._definitions.set_autostart(name, on)

    def _begin_run(self, given_up: threading.Event, run: Run, persistent: bool) -> None:
        name = run.name
        with self._files.locked(given_up=given_up):
            theirs = self._runs.find(name)
            if theirs is not None and theirs.started_at != run.started_at:
                raise OutdatedError(f"pool {name!r} was started meanwhile", errno=errno.EAGAIN)
            gone = persistent and not self._definitions.path(name).exists()
            if gone or self._definitions.uuid(name) not in (None, run.uuid):
                raise OutdatedError(f"pool {name!r} was undefined meanwhile", errno=errno.EAGAIN)
            with self._stepping(given_up):
                self._runs.write(run)

    def _end_run(self, given_up: threading.Event, name: str, started_at: float) -> None:
        run = self._runs.find(name)
        if run is not None and run.started_at == started_at and not given_up.is_set():
            before = self._marks()
            self._runs.remove(name)
            self._touch(before)

    def _save_snapshot(self, name: str, started_at: float, seen: LastSeen) -> None:
        if self._runs.find(name) is None:
            return
        with self._files.locked(timeout=SAVE_TIMEOUT):  # two that save at once lose nothing of each other's
            run = self._runs.find(name)
            if run is None:
                return
            same_run = run.started_at == started_at
            if same_run or (run.definition == seen.definition and seen.recent):
                kept = self._snapshots.head(name, run.started_at)  # a large one takes long to read
                if kept is not None and not (same_run and kept.snapshot.taken_at <= seen.snapshot.taken_at):
                    kept = self._snapshots.read(name, run.started_at)
                before = self._marks()
                self._snapshots.write(name, run.started_at, merged(kept, seen, same_run=same_run))
                self._touch(before)

    def _load_snapshots(self, runs: dict[str, float]) -> dict[str, LastSeen]:
        found = {name: self._snapshots.read(name, started_at) for name, started_at in runs.items()}
        return {name: seen for name, seen in found.items() if seen is not None}


def _mark(folder: Path) -> FileVersion | None:
    with store_errors_about(folder):
        try:
            st = os.stat(folder)
        except FileNotFoundError:
            return None
    return st.st_ino, st.st_mtime_ns, st.st_nlink
