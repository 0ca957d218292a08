"""FileTreeSession over a tree that fails, hangs, changes and counts: what every file backend's refresh is made of."""

from __future__ import annotations

import asyncio
import errno
import stat
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
from core_fakes import eventually, volume

from astore.backend import Context
from astore.commands import LaneCommandRunner
from astore.lanes import Lanes
from astore.logs import get_logger
from astore.model import EntryError, FileStat, Snapshot, VolumeInfo, VolumeType
from astore.testing.conformance.source import qcow2
from astore.testing.faults import Gate
from astore.trees.scanning import FileTreeSession
from astore.trees.tree import Entry, FileTree


class FakeTree(FileTree):
    """A tree of what it is told.

    :ivar stats: by name; :ivar heads: what is read of them, bytes or an error; :ivar taken: entries given away and not
    released yet; :ivar reads: names whose headers were read, in order.
    """

    file_type = VolumeType.NETWORK
    directory_type = VolumeType.NETDIR

    def __init__(self, readers: int = 1) -> None:
        vars(self)["readers"] = readers
        self.stats: dict[str, FileStat | OSError] = {}
        self.heads: dict[str, bytes | BaseException | Callable[[], bytes]] = {}
        self.taken: list[str] = []
        self.reads: list[str] = []
        self.listing_fails: tuple[int, BaseException] | None = None
        self.statvfs_fails: OSError | None = None
        self.close_hangs: Gate | None = None
        self.closed = 0
        self.most = 0
        self._inside = 0
        self._lock = threading.Lock()

    def put(self, name: str, head: Any = b"x" * 512, mode: int = stat.S_IFREG | 0o644, **fields: int) -> None:
        known = {"size": 512, "blocks": 8, "inode": len(self.stats) + 1} | fields
        times = {"atime_ns": 1, "mtime_ns": 2, "ctime_ns": 3}
        self.stats[name] = FileStat(**({"mode": mode, "uid": 0, "gid": 0} | times | known))
        self.heads[name] = head

    def key(self, name: str) -> str:
        return f"fake://host/{name}"

    def scan(self, want: Callable[[str, FileStat], bool]) -> Iterator[Entry | tuple[str, OSError]]:
        for count, (name, st) in enumerate(list(self.stats.items())):
            if self.listing_fails is not None and count == self.listing_fails[0]:
                raise self.listing_fails[1]
            if isinstance(st, OSError):
                yield name, st
            elif want(name, st):
                yield self._entry(name, st)

    def _entry(self, name: str, st: FileStat) -> Entry:
        with self._lock:
            self.taken.append(name)
        return Entry(name, st, name)

    def read_header(self, entry: Entry, more: Callable[[bytes], bool]) -> bytes:
        with self._lock:
            self.reads.append(entry.name)
            self._inside += 1
            self.most = max(self.most, self._inside)
        try:
            head = self.heads[entry.name]
            if callable(head):
                head = head()
            if isinstance(head, BaseException):
                raise head
            return head
        finally:
            with self._lock:
                self._inside -= 1
            self.release(entry)

    def release(self, entry: Entry) -> None:
        with self._lock:
            self.taken.remove(entry.name)

    def lookup(self, name: str) -> Entry | None:
        st = self.stats.get(name)
        if isinstance(st, OSError):
            raise st
        return None if st is None else self._entry(name, st)

    def statvfs(self) -> tuple[int, int]:
        if self.statvfs_fails is not None:
            raise self.statvfs_fails
        return 1000, 400

    def close(self) -> None:
        self.closed += 1
        if self.close_hangs is not None:
            self.close_hangs()


@pytest.fixture
async def context() -> AsyncIterator[Context]:
    lanes = Lanes()
    lane = lanes.lane("files", limit=6)
    yield Context("files", "", lane, LaneCommandRunner(lane), get_logger(), 30.0)
    lanes.close()


@pytest.fixture(params=[1, 4], ids=["one reader", "four readers"])
def tree(request: pytest.FixtureRequest) -> FakeTree:
    return FakeTree(request.param)


async def test_what_a_refresh_finds(tree: FakeTree, context: Context) -> None:
    """Records with everything that the entry and its header tell, in name order, and the pool's sizes."""
    tree.put("plain", size=700, blocks=2, uid=1, gid=2, inode=77, atime_ns=4, mtime_ns=5, ctime_ns=6)
    tree.put("image", qcow2(1 << 30, "base", "raw"))
    tree.put("folder", mode=stat.S_IFDIR | 0o755, size=4096)
    session = FileTreeSession(tree, context)
    snapshot = await session.refresh(Snapshot.EMPTY)
    assert list(snapshot.by_name) == ["folder", "image", "plain"]
    assert (snapshot.capacity, snapshot.allocation, snapshot.available) == (1000, 600, 400)
    assert snapshot.taken_at > 0
    assert snapshot.by_name["plain"] == volume(
        "plain",
        type=VolumeType.NETWORK,
        key="fake://host/plain",
        path="fake://host/plain",
        capacity=700,
        allocation=1024,
        physical=700,
        mode=stat.S_IFREG | 0o644,
        uid=1,
        gid=2,
        inode=77,
        atime_ns=4,
        mtime_ns=5,
        ctime_ns=6,
    )
    folder, image = snapshot.by_name["folder"], snapshot.by_name["image"]
    assert (folder.type, folder.format, folder.mode) == (VolumeType.NETDIR, "dir", stat.S_IFDIR | 0o755)
    assert (image.format, image.capacity, image.physical) == ("qcow2", 1 << 30, 512)
    assert (image.backing, image.backing_format, image.backing_path) == ("base", "raw", "fake://host/base")
    assert image.path is image.key
    assert tree.taken == []


async def test_only_what_changed_is_read(tree: FakeTree, context: Context) -> None:
    """Unchanged entries keep their very records; a new time of access or allocation is noted without reading."""
    for n in range(100):
        tree.put(f"{n:03d}")
    session = FileTreeSession(tree, context)
    first = await session.refresh(Snapshot.EMPTY)
    assert sorted(tree.reads) == sorted(tree.stats)
    tree.reads.clear()
    second = await session.refresh(first)
    assert tree.reads == []
    assert all(second.by_name[name] is record for name, record in first.by_name.items())
    for name, changed in (
        ("001", {"size": 513}),
        ("002", {"mtime_ns": 9}),
        ("003", {"ctime_ns": 9}),
        ("004", {"inode": 999}),
        ("005", {"atime_ns": 9}),
        ("006", {"blocks": 16}),
    ):
        tree.stats[name] = tree.stats[name]._replace(**changed)  # type: ignore[union-attr]
    third = await session.refresh(second)
    assert sorted(tree.reads) == ["001", "002", "003", "004"]
    assert (third.by_name["005"].atime_ns, third.by_name["006"].allocation) == (9, 8192)
    assert sorted(third.changes_since(second).changed) == ["001", "002", "003", "004", "006"]
    tree.reads.clear()
    full = await session.refresh(third, full=True)
    assert sorted(tree.reads) == sorted(tree.stats)
    assert all(full.by_name[name] is record for name, record in third.by_name.items())


async def test_what_changed_a_moment_ago_is_read_again(context: Context) -> None:
    """An entry changed so lately that its next change might not show is not trusted at the next refresh."""
    tree = FakeTree()
    tree.put("old")
    tree.put("fresh", ctime_ns=time.time_ns())
    session = FileTreeSession(tree, context)
    first = await session.refresh(Snapshot.EMPTY)
    assert first.unsettled == {"fresh"}
    tree.reads.clear()
    tree.heads["fresh"] = qcow2(1 << 20)
    second = await session.refresh(first)
    assert tree.reads == ["fresh"]
    assert second.by_name["fresh"].format == "qcow2"


async def test_bad_entries_are_told_and_the_rest_served(tree: FakeTree, context: Context) -> None:
    """Each bad entry by its printable name, with what is wrong; what libvirt skips is no failure; the rest is there."""
    for n in range(50):
        tree.put(f"good{n:02d}")
    tree.put("truncated", qcow2()[:24])
    tree.put("unreadable", PermissionError(errno.EACCES, "Permission denied"))
    tree.put("broken", OSError(errno.EIO, "Input/output error"))
    tree.put("vanished", FileNotFoundError(errno.ENOENT, "gone"))
    tree.put("fifo", mode=stat.S_IFIFO | 0o644)
    tree.put("socket", mode=stat.S_IFSOCK | 0o644)
    tree.put("device", mode=stat.S_IFCHR | 0o644)
    tree.put("line\nbreak")
    tree.put("caf\udce9")
    tree.put("ünïcode")
    tree.stats["loop"] = OSError(errno.ELOOP, "Too many levels of symbolic links")
    tree.stats["dangling"] = FileNotFoundError(errno.ENOENT, "No such file")
    snapshot = await FileTreeSession(tree, context).refresh(Snapshot.EMPTY)
    assert list(snapshot.by_name) == [*(f"good{n:02d}" for n in range(50)), "ünïcode"]
    assert {error.name: (error.errno, error.skipped) for error in snapshot.errors} == {
        "truncated": (errno.EINVAL, False),
        "unreadable": (errno.EACCES, True),
        "broken": (errno.EIO, False),
        "fifo": (None, True),
        "socket": (None, True),
        "device": (None, True),
        "line\\nbreak": (None, True),
        "caf\\xe9": (errno.EILSEQ, False),
        "loop": (errno.ELOOP, True),
        "dangling": (errno.ENOENT, True),
    }
    assert [error.name for error in snapshot.errors] == sorted(error.name for error in snapshot.errors)
    messages = {error.name: error.message for error in snapshot.errors}
    assert messages["fifo"] == "it is a FIFO"
    assert messages["socket"] == "it is a socket"
    assert messages["device"] == "it is a character device"
    assert messages["loop"] == "it is a link loop"
    assert messages["dangling"] == "it is a dangling link"
    assert messages["broken"] == "Input/output error"
    assert tree.taken == []


@pytest.mark.parametrize("when", [0, 1, 40, 99])
async def test_a_listing_that_breaks_off(tree: FakeTree, context: Context, when: int) -> None:
    """A source that fails halfway fails as a whole: no snapshot of the half, and every entry is let go of."""
    for n in range(100):
        tree.put(f"{n:03d}")
    tree.listing_fails = (when, OSError(errno.ENOTCONN, "not connected"))
    with pytest.raises(OSError, match="not connected"):
        await FileTreeSession(tree, context).refresh(Snapshot.EMPTY)
    assert tree.taken == []


async def test_statvfs_that_fails(tree: FakeTree, context: Context) -> None:
    """Without the pool's sizes there is no snapshot."""
    tree.put("a")
    tree.statvfs_fails = OSError(errno.ESTALE, "stale")
    with pytest.raises(OSError, match="stale"):
        await FileTreeSession(tree, context).refresh(Snapshot.EMPTY)
    assert tree.taken == []


async def test_a_tree_with_a_fault(tree: FakeTree, context: Context) -> None:
    """What a tree raises that is no OSError ends the refresh, whoever's thread it is in, and lets go of all entries."""
    for n in range(300):
        tree.put(f"{n:03d}")
    tree.heads["150"] = KeyError("a fault")
    with pytest.raises(KeyError, match="a fault"):
        await FileTreeSession(tree, context).refresh(Snapshot.EMPTY)
    assert tree.taken == []
    assert len(tree.reads) < 300


async def test_several_read_at_once(context: Context) -> None:
    """As many threads read headers as pay, and no more; nothing is read twice."""
    tree = FakeTree(4)
    gate = Gate()
    for n in range(200):
        tree.put(f"{n:03d}", lambda: gate(b"x" * 512))
    refresh = asyncio.ensure_future(FileTreeSession(tree, context).refresh(Snapshot.EMPTY))
    await eventually(lambda: gate.inside == 4)
    gate.open()
    snapshot = await refresh
    assert (len(snapshot), len(tree.reads), tree.most) == (200, 200, 4)


async def test_an_assistants_fault_is_the_refreshs(context: Context) -> None:
    """A fault that only an assistant meets is raised by the refresh all the same."""
    tree = FakeTree(2)
    gate = Gate()
    first = threading.Lock()

    def head() -> bytes:
        if first.acquire(blocking=False):  # one thread, whichever comes first, waits until the other has met the fault
            gate()
        return b"x" * 512

    def fault() -> bytes:
        gate.open()
        raise RuntimeError("a fault")

    for n in range(80):
        tree.put(f"{n:03d}", head)
    tree.put("000", head)
    tree.heads["070"] = fault
    with pytest.raises(RuntimeError, match="a fault"):
        await FileTreeSession(tree, context).refresh(Snapshot.EMPTY)
    assert tree.taken == []


async def test_one_entry(tree: FakeTree, context: Context) -> None:
    """One entry's record, its error, or None; a tree that does not answer for the folder either is the pool's failure."""
    session = FileTreeSession(tree, context)
    tree.put("image", qcow2(1 << 30))
    tree.put("folder", mode=stat.S_IFDIR | 0o755)
    tree.put("fifo", mode=stat.S_IFIFO | 0o644)
    tree.put("bad", qcow2()[:24])
    tree.put("vanished", FileNotFoundError(errno.ENOENT, "gone"))
    tree.stats["loop"] = OSError(errno.ELOOP, "loop")
    image, folder = await session.refresh_volume("image"), await session.refresh_volume("folder")
    assert isinstance(image, VolumeInfo)
    assert isinstance(folder, VolumeInfo)
    assert (image.format, folder.format) == ("qcow2", "dir")
    for name, skipped in (("fifo", True), ("bad", False), ("loop", True)):
        wrong = await session.refresh_volume(name)
        assert isinstance(wrong, EntryError)
        assert (wrong.name, wrong.skipped) == (name, skipped)
    assert await session.refresh_volume("nosuch") is None
    assert await session.refresh_volume("vanished") is None
    assert tree.taken == []
    tree.statvfs_fails = OSError(errno.ENOTCONN, "not connected")
    for name in ("loop", "bad"):
        with pytest.raises(OSError, match="not connected"):
            await session.refresh_volume(name)
    tree.stats["loop"] = FileNotFoundError(errno.ENOENT, "the folder is gone")
    with pytest.raises(OSError, match="the folder is gone"):
        await session.refresh_volume("loop")
    assert tree.taken == []


async def test_closing(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    """A session may be closed twice, and a tree that hangs in it is left behind."""
    tree = FakeTree()
    session = FileTreeSession(tree, context)
    await session.aclose()
    await session.aclose()
    assert tree.closed == 2
    tree.close_hangs = Gate()
    run = context.lane.run
    monkeypatch.setattr(type(context.lane), "run", lambda self, func, timeout=None: run(func, timeout=0.05))
    await session.aclose()
    tree.close_hangs.open()
    await eventually(lambda: tree.close_hangs is not None and not tree.close_hangs.inside)


async def test_a_refresh_that_was_given_up(context: Context) -> None:
    """Cancelled, its thread goes on to its end by itself and lets go of what it had; the next is not kept waiting."""
    tree = FakeTree()
    gate = Gate()
    for n in range(40):
        tree.put(f"{n:03d}", lambda: gate(b"x" * 512))
    session = FileTreeSession(tree, context)
    refresh = asyncio.ensure_future(session.refresh(Snapshot.EMPTY))
    await eventually(lambda: gate.inside)
    refresh.cancel()
    with pytest.raises(asyncio.CancelledError):
        await refresh
    other = FakeTree()
    other.put("a")
    assert len(await FileTreeSession(other, context).refresh(Snapshot.EMPTY)) == 1
    gate.open()
    await eventually(lambda: tree.taken == [])
