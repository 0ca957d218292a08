"""LocalTree: a directory of this machine, through a descriptor of it, one entry at a time."""

from __future__ import annotations

import errno
import os
import socket
import stat
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from leaks import open_files

import astore.trees.local
from astore.errors import PoolInaccessibleError, reason
from astore.images import HEADER_SIZE
from astore.model import FileStat
from astore.trees.local import LocalTree
from astore.trees.tree import FIRST_READ, Entry


def held(folder: Path) -> list[str]:
    """The descriptors of this process that are of a folder, or of what is in it."""
    return sorted(name for name in open_files().elements() if name.startswith(str(folder)))


def everything(name: str, st: FileStat) -> bool:
    """Want every entry's header."""
    return True


def scanned(tree: LocalTree) -> dict[str, Entry | OSError]:
    """All entries by name, or what is wrong with them."""
    found: dict[str, Entry | OSError] = {}
    for item in tree.scan(everything):
        if len(item) == 2:
            found[item[0]] = item[1]
        else:
            found[item.name] = item
    return found


def test_what_is_told_of_an_entry(tmp_path: Path) -> None:
    """Everything stat(2) knows, by scan and by lookup alike; links are followed, out of the directory too."""
    folder = tmp_path / "pool"
    folder.mkdir()
    (folder / "file").write_bytes(b"x" * 5000)
    (folder / "folder").mkdir()
    (tmp_path / "outside").write_bytes(b"y" * 10)
    (folder / "link").symlink_to("../outside")
    tree = LocalTree(str(folder))
    found = scanned(tree)
    assert sorted(found) == ["file", "folder", "link"]
    for name, entry in found.items():
        assert isinstance(entry, Entry)
        st = os.stat(folder / name)
        assert entry.stat == FileStat(
            st.st_mode,
            st.st_ino,
            st.st_size,
            st.st_blocks,
            st.st_uid,
            st.st_gid,
            st.st_atime_ns,
            st.st_mtime_ns,
            st.st_ctime_ns,
            st.st_dev,
        )
        looked_up = tree.lookup(name)
        assert looked_up is not None
        assert looked_up[:2] == entry[:2]
    assert tree.key("file") == str(folder / "file")
    assert LocalTree("/").key("etc") == "/etc"
    assert list(tree.scan(lambda name, st: False)) == []
    tree.close()


def test_entries_that_cannot_be_looked_at(tmp_path: Path) -> None:
    """A dangling link and a link loop are told as what they are; what is nobody's name is not there."""
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "loop").symlink_to("loop")
    tree = LocalTree(str(tmp_path))
    found = scanned(tree)
    assert {name: error.errno for name, error in found.items() if isinstance(error, OSError)} == {
        "dangling": errno.ENOENT,
        "loop": errno.ELOOP,
    }
    with pytest.raises(OSError) as caught:
        tree.lookup("loop")
    assert caught.value.errno == errno.ELOOP
    for name in ("dangling", "nosuch", "", ".", "..", "a/b", "nul\0", "x" * 300, "\ud800"):
        assert tree.lookup(name) is None
    tree.close()


def test_what_vanishes_during_a_scan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An entry that is removed after it was listed was never there."""
    for name in "abc":
        (tmp_path / name).write_bytes(b"")
    real = os.stat

    def vanishing(path: str, **options: object) -> os.stat_result:
        if path == "b" and (tmp_path / "b").exists():
            (tmp_path / "b").unlink()
        return real(path, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(astore.trees.local.os, "stat", vanishing)
    assert sorted(scanned(LocalTree(str(tmp_path)))) == ["a", "c"]


def test_headers(tmp_path: Path) -> None:
    """The first 4,096 bytes, or, where those do not tell, 33,280; fewer only where the file ends."""
    data = os.urandom(HEADER_SIZE + 100)
    tree = LocalTree(str(tmp_path))
    for size in (0, 1, FIRST_READ - 1, FIRST_READ, FIRST_READ + 1, HEADER_SIZE, HEADER_SIZE + 100):
        (tmp_path / "file").write_bytes(data[:size])
        for more, most in ((False, FIRST_READ), (True, HEADER_SIZE)):
            asked: list[bytes] = []
            entry = tree.lookup("file")
            assert entry is not None
            head = tree.read_header(entry, lambda seen, more=more, asked=asked: asked.append(seen) or more)  # type: ignore[misc]
            assert head == data[: min(size, most)]
            assert asked == ([data[:FIRST_READ]] if size >= FIRST_READ else [])
    tree.close()


def test_short_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system that gives fewer bytes than it was asked for is asked again."""
    data = os.urandom(HEADER_SIZE)
    (tmp_path / "file").write_bytes(data)
    real = os.pread
    monkeypatch.setattr(astore.trees.local.os, "pread", lambda fd, size, at: real(fd, min(size, 1000), at))
    tree = LocalTree(str(tmp_path))
    entry = tree.lookup("file")
    assert entry is not None
    assert tree.read_header(entry, lambda head: False) == data[:FIRST_READ]
    assert tree.read_header(entry, lambda head: True) == data


def test_what_became_something_else(tmp_path: Path) -> None:
    """An entry that was a file when it was listed, and is a FIFO, a socket or nothing when it is read: an error, soon."""
    tree = LocalTree(str(tmp_path))
    path = tmp_path / "entry"
    for kind, number in (
        ("fifo", errno.ESPIPE),
        ("socket", errno.ENXIO),
        ("folder", errno.EISDIR),
        ("none", errno.ENOENT),
    ):
        path.write_bytes(b"x" * 10)
        entry = tree.lookup("entry")
        assert entry is not None
        path.unlink()
        with socket.socket(socket.AF_UNIX) as server:
            if kind == "fifo":
                os.mkfifo(path)
            elif kind == "socket":
                server.bind(str(path))
            elif kind == "folder":
                path.mkdir()
            with pytest.raises(OSError) as caught:
                tree.read_header(entry, lambda head: False)
        assert caught.value.errno == number
        if kind == "folder":
            path.rmdir()
        else:
            path.unlink(missing_ok=True)


def test_the_access_time_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading leaves no trace where we may do that, and reads all the same where we may not."""
    path = tmp_path / "file"
    path.write_bytes(b"x" * 10)
    os.utime(path, ns=(1, 10**18))  # so old that a mount option would let it be updated
    tree = LocalTree(str(tmp_path))
    entry = tree.lookup("file")
    assert entry is not None
    assert tree.read_header(entry, lambda head: False) == b"x" * 10
    assert os.stat(path).st_atime_ns == 1
    real = os.open

    def anothers(name: str, flags: int, *args: int, **options: int) -> int:
        if flags & os.O_NOATIME:
            raise PermissionError(errno.EPERM, "not yours")
        return real(name, flags, *args, **options)

    monkeypatch.setattr(astore.trees.local.os, "open", anothers)
    assert tree.read_header(entry, lambda head: False) == b"x" * 10
    monkeypatch.setattr(
        astore.trees.local.os, "open", lambda *args, **kw: (_ for _ in ()).throw(PermissionError(errno.EACCES, "no"))
    )
    with pytest.raises(PermissionError) as caught:
        tree.read_header(entry, lambda head: False)
    assert caught.value.errno == errno.EACCES


@pytest.mark.root
def test_block_devices(tmp_path: Path) -> None:
    """A block device's size is told, which stat(2) does not; one that may not be opened has none."""
    sizes = {}
    for name in sorted(os.listdir("/sys/class/block")):
        if os.path.exists(f"/dev/{name}") and stat.S_ISBLK(os.stat(f"/dev/{name}").st_mode):
            (tmp_path / name).symlink_to(f"/dev/{name}")
            sizes[name] = int(Path(f"/sys/class/block/{name}/size").read_text()) * 512
    os.mknod(tmp_path / "none", stat.S_IFBLK | 0o600, os.makedev(241, 77))  # a number for local use, nobody's here
    sizes["none"] = 0
    tree = LocalTree(str(tmp_path))
    for name, entry in scanned(tree).items():
        assert isinstance(entry, Entry)
        assert stat.S_ISBLK(entry.stat.mode)
        assert entry.stat.size in (sizes[name], 0)
        looked_up = tree.lookup(name)
        assert looked_up is not None
        assert looked_up.stat.size == entry.stat.size


@pytest.mark.parametrize("number", [errno.ENOTCONN, errno.ECONNABORTED])
def test_a_mount_that_dies_during_a_scan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """What is said of every entry of a dead mount is said of the tree, once; what is said of one entry is that one's."""
    for n in range(10):
        (tmp_path / str(n)).write_bytes(b"")
    tree = LocalTree(str(tmp_path))
    real = os.stat
    failing = number

    def dying(path: str, **options: object) -> os.stat_result:
        if path == "5":
            raise OSError(failing, os.strerror(failing))
        return real(path, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(astore.trees.local.os, "stat", dying)
    with pytest.raises(OSError) as caught:
        scanned(tree)
    assert caught.value.errno == number
    failing = errno.EIO
    found = scanned(tree)
    assert len(found) == 10
    assert isinstance(found["5"], OSError)


def test_a_directory_that_was_replaced(tmp_path: Path) -> None:
    """What has the path counts, and not what had it; calls under way keep what they began with."""
    folder = tmp_path / "pool"
    folder.mkdir()
    (folder / "old").write_bytes(b"old")
    tree = LocalTree(str(folder))
    listing = tree.scan(everything)
    entry = next(listing)
    assert isinstance(entry, Entry)
    folder.rename(tmp_path / "away")
    for call in (lambda: scanned(tree), lambda: tree.lookup("old"), tree.statvfs):
        with pytest.raises(PoolInaccessibleError, match=f"^{folder}: No such file") as caught:
            call()
        assert caught.value.errno == errno.ENOENT
    folder.mkdir()
    (folder / "new").write_bytes(b"new")
    assert list(scanned(tree)) == ["new"]
    assert tree.read_header(entry, lambda head: False) == b"old"
    assert list(listing) == []
    total, free = tree.statvfs()
    assert 0 < free < total
    tree.close()


def test_verified(tmp_path: Path) -> None:
    """Each directory is shown to ``verify`` before it is used; what it refuses is not read, and is asked for again."""
    seen: list[int] = []
    refuse = False

    def verify(fd: int) -> None:
        seen.append(os.fstat(fd).st_ino)
        if refuse:
            raise OSError(errno.ESTALE, "not mine")

    (tmp_path / "file").write_bytes(b"")
    tree = LocalTree(str(tmp_path), verify=verify)
    assert seen == []
    scanned(tree)
    tree.lookup("file")
    assert seen == [os.stat(tmp_path).st_ino] * 2
    refuse = True
    for call in (lambda: scanned(tree), lambda: tree.lookup("file")):
        with pytest.raises(OSError, match="not mine"):
            call()
    with pytest.raises(OSError, match="not mine"):
        tree.statvfs()
    refuse = False
    assert tree.statvfs()[0] > 0
    assert len(seen) == 6


def test_work_holds_the_directory(tmp_path: Path) -> None:
    """The directory is open from the first call of a piece of work to the end of the last one; no error keeps it open."""
    folder = tmp_path / "pool"
    folder.mkdir()
    tree = LocalTree(str(folder))
    with tree.work():
        assert held(folder) == []
        tree.statvfs()
        with tree.work():
            assert held(folder) == [str(folder)]
        assert scanned(tree) == {}
        folder.rename(tmp_path / "away")
        folder.mkdir()
        (folder / "new").write_bytes(b"")
        assert list(scanned(tree)) == ["new"], "the folder that has the path now"
        assert held(tmp_path) == [str(folder)]
    assert held(tmp_path) == []
    with tree.work():
        tree.statvfs()
        tree.close()
        assert held(tmp_path) == []


def test_words_of_the_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error of the directory is that of its path: not of ``.``, nor of a descriptor's number, nor does it keep one open."""
    (tmp_path / "file").write_bytes(b"")
    tree = LocalTree(str(tmp_path))
    real_open, real_scandir = os.open, os.scandir

    def opening(path: str, flags: int, **options: Any) -> int:
        if path == ".":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        return real_open(path, flags, **options)

    class Broken:
        """A listing that ends in an error."""

        def __init__(self, fd: int) -> None:
            self.fd = fd
            self.real = real_scandir(fd)

        def __enter__(self) -> Broken:
            return self

        def __exit__(self, *_: object) -> None:
            self.real.close()

        def __iter__(self) -> Iterator[Any]:
            yield from self.real
            raise OSError(errno.EIO, os.strerror(errno.EIO), self.fd)

    kept = []
    for name, fake, words in (("scandir", Broken, "Input/output error"), ("open", opening, "Permission denied")):
        with monkeypatch.context() as patched:
            patched.setattr(astore.trees.local.os, name, fake)
            with pytest.raises(PoolInaccessibleError, match=f"^{tmp_path}: {words}$") as caught:
                list(tree.scan(lambda name, st: False))
            kept.append(caught.value)
    assert (len(kept), held(tmp_path)) == (2, [])


def test_no_descriptor_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that has no descriptor left says so, and nothing of the directory."""
    tree = LocalTree(str(tmp_path))

    def none_left(*_: object, **__: object) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), "any")

    monkeypatch.setattr(astore.trees.local.os, "open", none_left)
    for call in (lambda: scanned(tree), lambda: tree.lookup("a"), tree.statvfs):
        with pytest.raises(OSError) as caught:
            call()
        assert not isinstance(caught.value, PoolInaccessibleError)
        assert reason(caught.value) == f"{tmp_path}: Too many open files: raise the limit (ulimit -n)"


def test_closed(tmp_path: Path) -> None:
    """An idle tree holds no descriptor; closed, it is used no more."""
    (tmp_path / "file").write_bytes(b"x")
    tree = LocalTree(str(tmp_path))
    assert held(tmp_path) == []
    entry = tree.lookup("file")
    assert entry is not None
    listing = tree.scan(everything)
    next(listing)
    tree.close()
    tree.close()
    for call in (
        lambda: scanned(tree),
        lambda: tree.lookup("file"),
        tree.statvfs,
        lambda: tree.read_header(entry, lambda head: False),
    ):
        with pytest.raises(OSError) as caught:
            call()
        assert caught.value.errno == errno.EBADF
    listing.close()  # type: ignore[attr-defined]
    del listing, caught
    entry = None
    assert held(tmp_path) == []


def test_closed_during_a_scan(tmp_path: Path) -> None:
    """A tree that is closed ends the scan that another thread is in, at the next entry that cannot be looked at."""
    for n in range(5):
        (tmp_path / str(n)).symlink_to("nowhere")
    tree = LocalTree(str(tmp_path))
    listing = tree.scan(everything)
    next(listing)
    tree.close()
    with pytest.raises(FileNotFoundError):
        next(listing)


def test_what_cannot_be_opened(tmp_path: Path) -> None:
    """A tree of nothing, or of a file, is an error with its errno, and leaves no descriptor."""
    (tmp_path / "file").write_bytes(b"")
    for name, number in (("nosuch", errno.ENOENT), ("file", errno.ENOTDIR)):
        with pytest.raises(OSError) as caught:
            LocalTree(str(tmp_path / name))
        assert caught.value.errno == number
    assert held(tmp_path) == []


def test_used_by_many_threads(tmp_path: Path) -> None:
    """Scans, lookups, detaching and closing at once: each call is right or says that the tree is closed."""
    for n in range(50):
        (tmp_path / f"{n}").write_bytes(b"%d" % n)
    tree = LocalTree(str(tmp_path))
    failures: list[BaseException] = []

    def work(n: int) -> None:
        try:
            for _ in range(30):
                entries = scanned(tree)
                assert len(entries) == 50
                entry = entries[str(n)]
                assert isinstance(entry, Entry)
                assert tree.read_header(entry, lambda head: False) == b"%d" % n
                with tree.work():
                    assert tree.lookup(str(n)) is not None
                    assert tree.statvfs()[0] > 0
            while True:
                tree.lookup(str(n))
        except OSError as error:
            if error.errno != errno.EBADF:
                failures.append(error)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    threads[0].join(0.3)
    closer = threading.Timer(0.2, tree.close)
    closer.start()
    for thread in (*threads, closer):
        thread.join(30)
    assert not failures
    assert held(tmp_path) == []
