"""Reading headers by handle: of files that stay, change, vanish or are replaced; and every handle closed."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from astore.backend import Context
from astore.images import HEADER_SIZE
from astore.model import FileStat, Snapshot, VolumeInfo
from astore.testing.conformance.source import TRUNCATED, qcow2
from astore.trees.entries import read_one
from astore.trees.scanning import FileTreeSession
from astore.trees.tree import FIRST_READ, Entry, FileTree

if TYPE_CHECKING:
    from tests.gluster.conftest import CountedGfapi, Folder

pytestmark = [pytest.mark.root, pytest.mark.gluster, pytest.mark.fuse]


def listed(tree: FileTree) -> dict[str, Entry]:
    """All entries, with their handles."""
    found = {}
    for item in tree.scan(lambda name, found: True):
        assert isinstance(item, Entry)
        found[item.name] = item
    return found


def never(head: bytes) -> bool:
    return False


def always(head: bytes) -> bool:
    return True


SIZES = (0, 1, 511, FIRST_READ - 1, FIRST_READ, FIRST_READ + 1, HEADER_SIZE - 1, HEADER_SIZE, HEADER_SIZE + 1, 200_000)


def test_how_much_is_read(folder: Folder, counted: CountedGfapi) -> None:
    """The first part, and the rest only where it is asked for and there is more; one call for a small file."""
    data = os.urandom(max(SIZES))
    for size in SIZES:
        (folder.path / str(size)).write_bytes(data[:size])
    for more, limit in ((never, FIRST_READ), (always, HEADER_SIZE)):
        for name, entry in listed(folder.tree).items():
            size = int(name)
            before = counted.calls["h_anonymous_read"]
            assert folder.tree.read_header(entry, more) == data[: min(size, limit)]
            assert counted.calls["h_anonymous_read"] - before == (size > 0) + (more is always and size > FIRST_READ)
    asked: list[bytes] = []
    entry = folder.tree.lookup("200000")
    assert entry is not None
    folder.tree.read_header(entry, lambda head: bool(asked.append(head)))
    assert asked == [data[:FIRST_READ]]


def test_nothing_is_opened(folder: Folder, counted: CountedGfapi) -> None:
    """A header costs one read by handle: no lookup, no open, and the access time stays."""
    for n in range(30):
        (folder.path / f"{n}.img").write_bytes(b"x" * 10_000)
    before = counted.calls.copy()
    for entry in listed(folder.tree).values():
        folder.tree.read_header(entry, never)
    done = counted.calls - before
    assert (done["h_anonymous_read"], done["object_copy"], done["h_close"]) == (30, 30, 30)
    assert done.keys().isdisjoint({"open", "h_lookupat", "stat", "lstat"})


def gone_once(monkeypatch: pytest.MonkeyPatch, tree: FileTree) -> None:
    """Let the next read by handle find that its file is gone.

    A brick serves an unlinked file for as long as a client has it open, so a real one says so sooner or later.
    """
    gfapi = tree._gfapi  # type: ignore[attr-defined]
    real = gfapi.h_anonymous_read

    def read(*arguments: object) -> int:
        monkeypatch.setattr(gfapi, "h_anonymous_read", real)
        ctypes.set_errno(errno.ESTALE)
        return -1

    monkeypatch.setattr(gfapi, "h_anonymous_read", read)


def test_the_listed_file_is_read(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    """A header is the listed file's, wherever that is now; never that of another file with its name."""
    (folder.path / "away").mkdir()
    for name in ("moved", "replaced", "now a folder"):
        (folder.path / name).write_bytes(b"x" * 100)
    entries = listed(folder.tree)
    os.rename(folder.path / "moved", folder.path / "away" / "moved")
    assert folder.tree.read_header(entries["moved"], never) == b"x" * 100, "a handle does not care for names"
    folder.tree.unlink("replaced")
    folder.tree.create("replaced").close()
    folder.tree.unlink("now a folder")
    folder.tree.mkdir("now a folder")
    for name in ("replaced", "now a folder"):
        gone_once(monkeypatch, folder.tree)
        with pytest.raises(FileNotFoundError):
            folder.tree.read_header(entries[name], never)


@pytest.mark.parametrize("handle", [True, False], ids=["by handle", "by name"])
@pytest.mark.parametrize("certainly", [True, False], ids=["gone", "perhaps gone"])
@pytest.mark.parametrize("now", ["a file", "a folder", "nothing"])
def test_replaced_since_it_was_listed(
    folder: Folder, counted: CountedGfapi, monkeypatch: pytest.MonkeyPatch, now: str, certainly: bool, handle: bool
) -> None:
    """A replaced file gives a record of the old file, of the new one, or none; never a mixture."""
    tree = folder.tree
    (folder.path / "disk").write_bytes(qcow2(1 << 30) + b"old" * 1000)
    entry = listed(tree)["disk"]
    if not handle:
        tree.release(entry)
        entry = entry._replace(handle=None)
    tree.unlink("disk")
    if now == "a file":
        made = tree.create("disk")
        made.pwrite(qcow2(2 << 30), 0)
        made.close()
    elif now == "a folder":
        tree.mkdir("disk")
    if certainly and handle:
        gone_once(monkeypatch, tree)
    after = tree.lookup("disk")
    assert (after is None) == (now == "nothing")
    found: list[tuple[str, VolumeInfo]] = []
    assert read_one(tree, entry, found) is None
    old = (entry.stat.inode, entry.stat.size, "qcow2", 1 << 30)
    expected: list[tuple[int, int, str | None, int]] = []
    if after is not None:
        told = ("qcow2", 2 << 30) if now == "a file" else ("dir", after.stat.size)
        expected = [(after.stat.inode, after.stat.size, *told)]
        tree.release(after)
    seen = [(record.inode, record.physical, record.format, record.capacity) for _, record in found]
    if certainly or not handle:
        assert seen == expected
    else:
        assert seen in ([old], expected)
    assert counted.left == {}


def test_replaced_again_and_again(folder: Folder, counted: CountedGfapi, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name whose file is gone at each look gives no record."""
    (folder.path / "disk").write_bytes(qcow2(1 << 30))
    gfapi = folder.tree._gfapi

    def read(*arguments: object) -> int:
        ctypes.set_errno(errno.ESTALE)
        return -1

    monkeypatch.setattr(gfapi, "h_anonymous_read", read)
    found: list[tuple[str, VolumeInfo]] = []
    assert read_one(folder.tree, listed(folder.tree)["disk"], found) is None
    assert found == []
    assert counted.left == {}


def test_changed_since_it_was_listed(folder: Folder) -> None:
    """A file that shrank is read as far as it goes; one that grew, at least as far as it went."""
    for name in ("shrunk", "grown"):
        (folder.path / name).write_bytes(b"x" * 3000)
    entries = listed(folder.tree)
    os.truncate(folder.path / "shrunk", 10)
    os.truncate(folder.path / "grown", 100_000)
    assert folder.tree.read_header(entries["shrunk"], always) == b"x" * 10
    assert folder.tree.read_header(entries["grown"], always)[:3000] == b"x" * 3000


def test_gone_at_the_last_moment(folder: Folder, counted: CountedGfapi, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gone again between being found by name and being read: it was not there."""
    (folder.path / "file").write_bytes(b"x")
    gfapi = folder.tree._gfapi
    for number in (errno.ESTALE, errno.ENOENT):
        entry = listed(folder.tree)["file"]

        def read(*arguments: object, number: int = number) -> int:
            ctypes.set_errno(number)
            return -1

        monkeypatch.setattr(gfapi, "h_anonymous_read", read)
        with pytest.raises(FileNotFoundError) as caught:
            folder.tree.read_header(entry, never)
        assert caught.value.errno == errno.ENOENT
        monkeypatch.undo()


def test_a_brick_that_fails(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Any other error is told as it is, and by the name where it was read by that; the handle is closed."""
    (folder.path / "file").write_bytes(b"x")
    entry = listed(folder.tree)["file"]
    gfapi = folder.tree._gfapi

    def read(*arguments: object) -> int:
        ctypes.set_errno(errno.EIO)
        return -1

    monkeypatch.setattr(gfapi, "h_anonymous_read", read)
    for one in (entry, Entry("file", entry.stat, None)):
        with pytest.raises(OSError) as caught:
            folder.tree.read_header(one, never)
        assert caught.value.errno == errno.EIO


def test_short_reads(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    """A brick that gives less than was asked is asked again, from where it stopped."""
    data = os.urandom(50_000)
    (folder.path / "file").write_bytes(data)
    gfapi = folder.tree._gfapi
    real = gfapi.h_anonymous_read
    monkeypatch.setattr(
        gfapi, "h_anonymous_read", lambda fs, handle, at, n, offset: real(fs, handle, at, min(n, 1000), offset)
    )
    assert folder.tree.read_header(listed(folder.tree)["file"], always) == data[:HEADER_SIZE]
    with contextlib.closing(folder.tree.reading(listed(folder.tree)["file"])) as reading:
        assert reading.read(40_000, 7_000) == data[40_000:47_000]
        assert reading.read(40_000, 20_000) == data[40_000:]


def test_a_server_that_sends_no_attributes(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Entries without attributes are looked up one by one, those without a handle are read by name."""
    (folder.path / "file").write_bytes(b"x" * 100)
    (folder.path / "folder").mkdir()
    (folder.path / "link").symlink_to("file")
    gfapi = folder.tree._gfapi
    before = {name: (entry.stat, entry.handle is None) for name, entry in released(folder.tree).items()}
    monkeypatch.setattr(gfapi, "xreaddirplus_get_stat", lambda item: None)
    assert {name: (entry.stat, entry.handle is None) for name, entry in released(folder.tree).items()} == before
    monkeypatch.undo()
    monkeypatch.setattr(gfapi, "xreaddirplus_get_object", lambda item: None)
    entry = listed_only(folder.tree, "file")
    assert entry.handle is None
    assert folder.tree.read_header(entry, never) == b"x" * 100
    monkeypatch.undo()
    monkeypatch.setattr(gfapi, "xreaddirplus_get_stat", lambda item: None)
    real = gfapi.h_lookupat

    def vanish(fs: int, parent: None, path: bytes, *rest: object) -> int | None:
        return real(fs, parent, path.replace(b"/file", b"/gone"), *rest)

    monkeypatch.setattr(gfapi, "h_lookupat", vanish)
    found = {item[0]: item[1] for item in folder.tree.scan(lambda name, found: False)}
    assert "file" not in found, "what vanished is left out"
    assert isinstance(found["link"], FileNotFoundError), "a link that is still there dangles"


def released(tree: FileTree) -> dict[str, Entry]:
    """All entries, their handles closed already."""
    found = listed(tree)
    for entry in found.values():
        tree.release(entry)
    return found


def listed_only(tree: FileTree, wanted: str) -> Entry:
    def want(name: str, found: FileStat) -> bool:
        return name == wanted

    (entry,) = tree.scan(want)
    assert isinstance(entry, Entry)
    return entry


async def test_a_refresh_leaves_no_handle(folder: Folder, context: Context, counted: CountedGfapi) -> None:
    """Whatever the entries are, and whichever thread reads them: as many handles are closed as were kept."""
    for n in range(200):
        (folder.path / f"{n:03}.qcow2").write_bytes(qcow2((n + 1) << 20))
    for n in range(20):
        (folder.path / f"cut{n}").write_bytes(TRUNCATED)
        (folder.path / f"link{n}").symlink_to(f"{n:03}.qcow2")
        (folder.path / f"dangling{n}").symlink_to("nothing")
    os.mkfifo(folder.path / "fifo")
    (folder.path / "sub").mkdir()
    (folder.path / os.fsdecode(b"caf\xe9")).write_bytes(b"")
    session = FileTreeSession(folder.tree, context)
    snapshot = await session.refresh(Snapshot.EMPTY)
    assert len(snapshot) == 221
    assert sum(not error.skipped for error in snapshot.errors) == 21
    assert counted.left == {}
    for full in (False, True):
        again = await session.refresh(snapshot, full=full)
        assert (len(again), len(again.errors)) == (221, len(snapshot.errors))
    assert counted.left == {}
    for name in ("000.qcow2", "link0", "cut0", "dangling0", "sub", "fifo", "nothing", "a/b", "x" * 300):
        await session.refresh_volume(name)
    assert counted.left == {}


async def test_a_refresh_that_fails_leaves_no_handle(
    folder: Folder, make_context: Callable[..., Context], counted: CountedGfapi, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A listing that breaks off, readers that fail, a key that cannot be made: nothing stays open."""
    for n in range(200):
        (folder.path / f"{n}.img").write_bytes(b"x" * 100)
    session = FileTreeSession(folder.tree, make_context())
    gfapi = folder.tree._gfapi
    real = gfapi.xreaddirplus_r
    for limit in (1, 50, 150):
        left = [limit]

        def read(*arguments: object, left: list[int] = left) -> int:
            left[0] -= 1
            if left[0] < 0:
                ctypes.set_errno(errno.EIO)
                return -1
            return real(*arguments)

        monkeypatch.setattr(gfapi, "xreaddirplus_r", read)
        with pytest.raises(OSError) as caught:
            await session.refresh(Snapshot.EMPTY)
        assert caught.value.errno == errno.EIO
        monkeypatch.undo()
        assert counted.left == {}
    monkeypatch.setattr(type(folder.tree), "key", lambda self, name: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        await session.refresh(Snapshot.EMPTY)
    monkeypatch.undo()
    assert counted.left == {}
    assert len(await session.refresh(Snapshot.EMPTY)) == 200
