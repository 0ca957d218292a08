"""Refresh: one refresh of a folder of files, which is one call on the pool's lane.

Its thread lists the folder and compares each entry with its last record. New and changed entries go to a queue in chunks; this
thread and its assistants (``tree.readers`` threads in all) read and probe them, beginning while the listing still runs.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping

import msgspec

from astore.backend import Context
from astore.lanes.gil_turns import STEP, Turn
from astore.model import EntryError, Permissions, Place, Reference, Snapshot, VolumeInfo
from astore.model.name_order import sorted_names
from astore.model.records import FileStat
from astore.trees.entries import entry_error, read_anew, read_one, without_header
from astore.trees.resolver import Resolver
from astore.trees.tree import SETTLING_NS, Entry, FileTree
from astore.volume_io.volume_names import TEMPORARY


def _known(previous: Snapshot, read_before: Mapping[str, VolumeInfo]) -> Callable[[str], VolumeInfo | None]:
    """Return a function from a name to the record that stays if the entry has not changed.

    :param read_before: records that are newer than the snapshot's.
    """
    get, unsettled = previous.getter, previous.unsettled
    if not unsettled and not read_before:
        return get
    return lambda name: read_before.get(name) or (None if name in unsettled else get(name))


class Refresh:
    """One refresh of one tree, a callable for the lane."""

    CHUNK = 32  # entries per chunk: enough that the queue costs nothing, few enough to share evenly

    def __init__(
        self,
        tree: FileTree,
        context: Context,
        previous: Snapshot,
        full: bool,
        read_before: Mapping[str, VolumeInfo],
    ) -> None:
        self._tree = tree
        self._lane = context.lane
        self._previous = previous.getter
        self._known = _known(Snapshot.EMPTY if full else previous, {} if full else read_before)
        self._found: dict[str, VolumeInfo] = {}
        self._read: list[tuple[str, VolumeInfo]] = []
        self._errors: list[EntryError] = []
        self._chunks: deque[list[Entry]] = deque()
        self._referring: list[str] = []  # entries with references whose headers are not read again
        self._lock = threading.Condition()
        self._reading = 0
        self._assistants = 0
        self._over = False
        self._notes = False
        self._failure: BaseException | None = None
        self.hidden: list[str] = []
        self._turn = self._lane.turn(device=tree.on_device)
        self._seen = 0
        self._read_before = read_before
        self.began: float = time.monotonic()
        self.given_up_at: float = self.began
        self.running: bool = False
        self._taken_at = 0.0
        self._names_changed: int | None = 1 << 63  # when the folder's names changed last, as of the end; None: never

    def __call__(self) -> Snapshot:
        self.running = True
        try:
            with self._tree.work():
                try:
                    return self._run()
                except BaseException:
                    with contextlib.suppress(Exception):
                        self._names_changed = self._tree.names_changed_ns()
                    raise
        finally:
            self.running = False

    def read_already(self) -> dict[str, VolumeInfo]:
        """Return the records that were read before the refresh was given up, for the next one.

        Among them are those of earlier refreshes that were given up, if this one has found them unchanged.
        """
        limit = int(self._taken_at * 1e9) - SETTLING_NS
        before = {name: self._found[name] for name in self._read_before if name in self._found}
        if self._names_changed is not None and self._names_changed >= limit:
            return before  # a name that was read may have become another file's between its listing and the reading
        return before | {name: record for name, record in self._read if record.ctime_ns < limit}

    def _run(self) -> Snapshot:
        taken_at = self._taken_at = time.time()
        try:
            with self._turn:
                self._list()
                if self._tree.readers == 1:
                    self._read_chunks(self._turn)
            self._read_chunks(self._turn)
            self._wait_for_assistants()
            if self._read:
                self._see_to_names(int(taken_at * 1e9))
            total, free = self._tree.statvfs()
            permissions = self._tree.permissions()
            folder = self._resolve()
        finally:
            self._over = True
            self._release_rest()
            # even after an error: no assistant may use the tree once this call has returned
            self._wait_for_assistants()
        with self._turn:
            return self._snapshot(taken_at, total, free, permissions, folder)

    def _see_to_names(self, began: int) -> None:
        """Read entries again whose names other files have taken since the listing.

        A record never has the attributes of one file and the header of another.
        """
        changed = self._tree.names_changed_ns()
        if changed is None or changed < began - SETTLING_NS:
            return
        listed, self._read = self._read, []
        for name, record in listed:
            try:
                entry = self._tree.lookup(name)
            except OSError as error:
                self._tree.check()
                self._errors.append(entry_error(name, error))
                continue
            if entry is None:
                continue
            if entry[1][1] == record.inode and entry[1][9] == record.device:
                self._tree.release(entry)
                self._read.append((name, record))
                continue
            if (wrong := read_anew(self._tree, entry, self._read)) is not None:
                self._errors.append(wrong)

    def _resolve(self) -> Place | None:
        """Merge the records that were read, and resolve all references anew.

        :return: the place of the folder.
        """
        found = self._found
        found.update(self._read)
        resolver = Resolver(self._tree, found.get)
        for name in self._referring:
            now = resolver.placed(found[name].references)
            if now is not found[name].references:
                found[name] = msgspec.structs.replace(found[name], references=now)
        shared: dict[tuple[Reference, ...], tuple[Reference, ...]] = {}  # a thousand headers may name one base
        for name, record in self._read:
            if record.references:
                now = resolver.placed(shared.setdefault(record.references, record.references))
                record = found[name] = msgspec.structs.replace(record, references=now)
            old = self._previous(name)
            if old is not None and old == record:
                found[name] = old
        return resolver.folder

    def _list(self) -> None:
        """List the folder, and queue the entries to read."""
        chunk: list[Entry] = []
        first = True
        try:
            for item in self._tree.scan(self._want):
                if len(item) == 2:
                    self._go_on()
                    self._errors.append(entry_error(item[0], item[1]))
                    continue
                chunk.append(item)  # before anything that may fail, so that it is released
                if first:
                    self._notes = self._tree.has_notes()
                if len(chunk) >= self.CHUNK or first:
                    # the first chunk has one entry, so that assistants start early: over a network listing takes long
                    first = False
                    self._chunks.append(chunk)
                    chunk = []
                    if self._assistants < self._tree.readers - 1:
                        self._assistants += 1
                        self._lane.assist(self._read_chunks)
        finally:  # even after an error: the entries are released with the rest
            if chunk:
                self._chunks.append(chunk)

    def _want(self, name: str, st: FileStat) -> bool:
        self._seen += 1
        if not self._seen % STEP:
            self._go_on()
            self._turn.step()
        old = self._known(name)
        if (
            old is not None
            and old.ctime_ns == st[8]
            and old.mtime_ns == st[7]
            and old.physical == st[2]
            and old.inode == st[1]
        ):
            if old.atime_ns != st[6] or old.allocation != st[3] * 512 or old.device != st[9]:
                old = msgspec.structs.replace(old, atime_ns=st[6], allocation=st[3] * 512, device=st[9])
            if old.references:
                self._referring.append(name)
            self._found[name] = old
            return False
        if name.startswith(TEMPORARY):
            self.hidden.append(name)
            return False
        early = without_header(self._tree, name, st)
        if early is None:
            return True
        if isinstance(early, EntryError):
            self._errors.append(early)
        else:  # a directory; its record has no size, so that it may be equal
            self._found[name] = old if old is not None and old == early else early
        return False

    def _go_on(self) -> None:
        """Check that somebody waits for the refresh. :raises RuntimeError: nobody does; nobody sees this error."""
        if self._lane.given_up:
            raise RuntimeError("the refresh was given up")

    def _read_chunks(self, turn: Turn | None = None) -> None:
        """Read and probe until the queue is empty. Runs on several threads at once.

        :param turn: this thread's; None: it has none yet.
        """
        turn = self._lane.turn(device=self._tree.on_device) if turn is None else turn
        with self._lock:
            self._reading += 1
        try:
            while not self._over:
                try:
                    chunk = self._chunks.popleft()
                except IndexError:
                    return
                try:
                    while chunk and not self._over:
                        self._go_on()
                        entry = chunk.pop()
                        wrong = read_one(self._tree, entry, self._read, self._previous(entry[0]), notes=self._notes)
                        if wrong is not None:
                            self._errors.append(wrong)
                    turn.step()
                finally:
                    if chunk:
                        self._chunks.append(chunk)
        except BaseException as error:  # an error of the tree; an assistant cannot raise it to the caller
            self._failure = error
            self._over = True
        finally:
            if self._over:
                self._release_rest()
            with self._lock:
                self._reading -= 1
                if not self._reading:
                    self._lock.notify_all()

    def _wait_for_assistants(self) -> None:
        with self._lock:
            while self._reading:
                self._lock.wait()
        failure, self._failure = self._failure, None
        if failure is not None:
            try:
                raise failure
            finally:
                del failure  # its traceback holds this frame

    def _release_rest(self) -> None:
        # several threads may run this at once
        while True:
            try:
                chunk = self._chunks.popleft()
            except IndexError:
                return
            for entry in chunk:
                with contextlib.suppress(Exception):
                    self._tree.release(entry)

    def _snapshot(
        self, taken_at: float, total: int, free: int, permissions: Permissions | None, folder: Place | None
    ) -> Snapshot:
        found = self._found
        names = list(found)
        if (ordered := sorted_names(names)) != names:
            found = {name: found[name] for name in ordered}
        limit = int(taken_at * 1e9) - SETTLING_NS
        unsettled = frozenset(name for name, record in self._read if record.ctime_ns >= limit)
        return Snapshot(
            found,
            taken_at=taken_at,
            capacity=total,
            allocation=total - free,
            available=free,
            errors=tuple(sorted(self._errors, key=lambda wrong: wrong.name)),
            unsettled=unsettled,
            permissions=permissions,
            folder=folder,
        )
