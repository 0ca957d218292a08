"""Scanning a folder of a volume: each kind of entry, names of any kind, many of them, and nothing left open."""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from astore.model import FileStat
from astore.trees.tree import Entry
from astore_gluster.servers import Server
from astore_gluster.volume.connection import Connection, ConnectionCache, Key
from astore_gluster.volume.tree import GlusterTree

if TYPE_CHECKING:
    from beds.gluster import GlusterBed
    from tests.gluster.conftest import CountedGfapi, Folder

pytestmark = [pytest.mark.root, pytest.mark.gluster, pytest.mark.fuse]


def everything(name: str, found: FileStat) -> bool:
    return True


def scanned(tree: GlusterTree) -> tuple[dict[str, FileStat], dict[str, int | None]]:
    """What a scan finds, and the errno of what it cannot look at. Everything is released."""
    good: dict[str, FileStat] = {}
    bad: dict[str, int | None] = {}
    for item in tree.scan(everything):
        if isinstance(item, Entry):
            assert item.name not in good
            good[item.name] = item.stat
            tree.release(item)
        else:
            bad[item[0]] = item[1].errno
    return good, bad


def test_stat_is_the_mounts(folder: Folder) -> None:
    """Mode, inode, size, blocks, owner and times are those that the FUSE mount of the same volume shows."""
    (folder.path / "file").write_bytes(b"x" * 5000)
    os.chmod(folder.path / "file", 0o4750)
    os.chown(folder.path / "file", 1234, 5678)
    os.utime(folder.path / "file", ns=(1_234_567_890_123_456_789, 4_000_000_000_987_654_321))
    (folder.path / "sub").mkdir(mode=0o700)
    good, bad = scanned(folder.tree)
    assert (sorted(good), bad) == (["file", "sub"], {})
    for name, found in good.items():
        st = os.stat(folder.path / name)
        wanted = (st.st_mode, st.st_ino, st.st_size, st.st_blocks, st.st_uid, st.st_gid)
        assert found[:6] == wanted
        assert found[6:9] == (st.st_atime_ns, st.st_mtime_ns, st.st_ctime_ns)
        assert str(found.device).startswith("gluster:")
        assert folder.tree.stat(name) == found
    assert good["file"].mtime_ns == 4_000_000_000_987_654_321


def test_links_are_followed(folder: Folder, gluster: GlusterBed) -> None:
    """A link is what it leads to: beside it, in another folder, from the volume's root, over other links."""
    beside = folder.path.with_name(folder.path.name + ".beside")
    beside.mkdir()
    (beside / "far").write_bytes(b"far")
    (beside / "loop").symlink_to(f"../{folder.path.name}/up")
    (folder.path / "file").write_bytes(b"12345")
    (folder.path / "sub").mkdir()
    links = {
        "near": "file",
        "near2": "near",
        "folder": "sub",
        "slash": "sub/",
        "slash2": "folder//",
        "dot": ".",
        "up": f"../{beside.name}/far",
        "round": f"../{beside.name}/loop",
        "absolute": f"/{beside.name}/far",
        "root": "/",
        "through": "slash2/../file",
    }
    for name, target in links.items():
        (folder.path / name).symlink_to(target)
    good, bad = scanned(folder.tree)
    assert bad == {}
    sizes = {name: good[name].size for name in links if stat.S_ISREG(good[name].mode)}
    assert sizes == {"near": 5, "near2": 5, "up": 3, "round": 3, "absolute": 3, "through": 5}
    assert {name for name in links if stat.S_ISDIR(good[name].mode)} == {"folder", "slash", "slash2", "dot", "root"}
    for name in links:
        entry = folder.tree.lookup(name)
        assert entry is not None
        assert entry.stat.inode == good[name].inode
        folder.tree.release(entry)
    assert stat.S_ISLNK(folder.tree.stat("near", follow=False).mode)
    assert folder.tree.stat("near").size == 5


def test_links_that_lead_nowhere(folder: Folder) -> None:
    """Dangling links, loops of any length and chains too long are errors by name; none of them takes long."""
    (folder.path / "file").write_bytes(b"")
    links = {"dangling": "nothing", "self": "self", "a": "b", "b": "a", "below": "file/x", "deep": "nothing/x"}
    for n in range(45):
        links[f"chain{n:02}"] = f"chain{n + 1:02}"
    links["chain45"] = "file"
    links["long"] = "x/" * 2045 + "y"
    for name, target in links.items():
        (folder.path / name).symlink_to(target)
    good, bad = scanned(folder.tree)
    assert {name for name in bad if not name.startswith("chain")} == {
        "dangling",
        "self",
        "a",
        "b",
        "below",
        "deep",
        "long",
    }
    assert (bad["dangling"], bad["deep"]) == (errno.ENOENT, errno.ENOENT)
    assert (bad["self"], bad["a"], bad["b"]) == (errno.ELOOP,) * 3
    assert bad["below"] == errno.ENOTDIR
    assert bad["long"] == errno.ENAMETOOLONG
    # 40 links are followed, as by the kernel
    assert sorted(name for name in good if name.startswith("chain")) == [f"chain{n:02}" for n in range(6, 46)]
    assert {bad[f"chain{n:02}"] for n in range(6)} == {errno.ELOOP}
    assert folder.tree.lookup("dangling") is None
    with pytest.raises(OSError) as caught:
        folder.tree.lookup("self")
    assert caught.value.errno == errno.ELOOP


def test_links_that_cannot_be_read(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    """What reading a link ends with is told by the link's name."""
    (folder.path / "link").symlink_to("file")
    (folder.path / "file").write_bytes(b"")

    def readlink(*arguments: object) -> int:
        ctypes.set_errno(errno.EACCES)
        return -1

    monkeypatch.setattr(folder.tree._gfapi, "readlink", readlink)
    good, bad = scanned(folder.tree)
    assert (list(good), bad) == (["file"], {"link": errno.EACCES})


def test_what_is_no_file(folder: Folder) -> None:
    """FIFOs, sockets and devices are listed for what they are, have no handle, and are neither read nor opened."""
    os.mkfifo(folder.path / "fifo")
    os.mknod(folder.path / "socket", stat.S_IFSOCK | 0o600)
    os.mknod(folder.path / "character", stat.S_IFCHR | 0o600, os.makedev(1, 3))
    os.mknod(folder.path / "block", stat.S_IFBLK | 0o600, os.makedev(7, 200))
    (folder.path / "to fifo").symlink_to("fifo")
    found = {item[0]: item for item in folder.tree.scan(everything)}
    kinds = {name: stat.S_IFMT(item[1].mode) for name, item in found.items() if isinstance(item, Entry)}
    assert kinds == {
        "fifo": stat.S_IFIFO,
        "to fifo": stat.S_IFIFO,
        "socket": stat.S_IFSOCK,
        "character": stat.S_IFCHR,
        "block": stat.S_IFBLK,
    }
    for name, item in found.items():
        assert isinstance(item, Entry)
        assert item.handle is None
        for call in (lambda item=item: folder.tree.read_header(item, bool), lambda name=name: folder.tree.open(name)):
            with pytest.raises(OSError) as caught:
                call()
            assert caught.value.errno == errno.EINVAL
    folder.tree.mkdir("sub")
    with pytest.raises(IsADirectoryError):
        folder.tree.open("sub")


ODD = [
    b"\xe9t\xe9.img",
    b"\xff\xfe",
    b"new\nline",
    b"tab\tbell\a",
    b"\x7f",
    b"x" * 255,
    "ü".encode() * 127,
    b" ",
    b"-rf",
    b"...",
    b".hidden",
    b"a%2Fb",
    b"\\",
    "日本".encode(),
]


def test_names_are_bytes(folder: Folder) -> None:
    """Every name a brick can hold is listed as os.fsdecode makes it, found by that, read, and has a key of its own."""
    for number, name in enumerate(ODD):
        with open(os.path.join(os.fsencode(folder.path), name), "wb") as file:
            file.write(b"%d" % number)
    names = [os.fsdecode(name) for name in ODD]
    good, bad = scanned(folder.tree)
    assert (sorted(good), bad) == (sorted(names), {})
    for number, name in enumerate(names):
        entry = folder.tree.lookup(name)
        assert entry is not None
        assert folder.tree.read_header(entry, bool) == b"%d" % number
    keys = {folder.tree.key(name) for name in names}
    assert len(keys) == len(names)
    assert all(key.isascii() and key.isprintable() and " " not in key for key in keys)


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/a", "a\0", "\ud800", "x" * 256, "ü" * 128])
def test_no_name_leads_out(folder: Folder, name: str) -> None:
    """What cannot be an entry's name reaches the library in no call."""
    for call in (folder.tree.stat, folder.tree.open, folder.tree.create, folder.tree.unlink, folder.tree.mkdir):
        with pytest.raises(OSError) as caught:
            call(name)
        assert caught.value.errno in (errno.EINVAL, errno.ENAMETOOLONG)
    with pytest.raises(OSError):
        folder.tree.rename("a", name)
    if len(name) < 100:
        assert folder.tree.lookup(name) is None


def test_what_is_unwanted_is_not_kept(folder: Folder, counted: CountedGfapi) -> None:
    """Entries that are known already, or that ``want`` fails for, leave no handle; files cost no round trip each."""
    for n in range(20):
        (folder.path / f"{n}.img").write_bytes(b"x")
    (folder.path / "link").symlink_to("1.img")
    before = counted.calls.copy()
    assert list(folder.tree.scan(lambda name, found: False)) == []
    done = counted.calls - before
    assert (done["opendir"], done["closedir"]) == (1, 1)
    assert (done["object_copy"], done["h_anonymous_read"]) == (0, 0)
    assert done["h_lookupat"] == 2  # the link, and where it leads

    def fail(name: str, found: FileStat) -> bool:
        if name == "link":
            raise RuntimeError("no")
        return False

    with pytest.raises(RuntimeError):
        list(folder.tree.scan(fail))
    assert counted.left == {}


def test_a_listing_that_breaks_off(folder: Folder, counted: CountedGfapi) -> None:
    """Who stops listing halfway closes it; what was taken is theirs to release."""
    for n in range(20):
        (folder.path / f"{n}.img").write_bytes(b"x")
    listing = folder.tree.scan(everything)
    entry = next(listing)
    assert isinstance(entry, Entry)
    assert counted.left == {"handle": 1, "listing": 1}
    listing.close()
    assert counted.left == {"handle": 1}
    folder.tree.release(entry)


def test_closed_under_a_listing(folder: Folder) -> None:
    """A listing that runs when the tree is closed ends as it would have; then nothing begins any more."""
    for n in range(20):
        (folder.path / f"{n}.img").write_bytes(b"x")
    listing = folder.tree.scan(everything)
    entries = [next(listing)]
    folder.tree.close()
    folder.tree.close()
    entries += listing
    assert len(entries) == 20
    for entry in entries:
        assert isinstance(entry, Entry)
        assert folder.tree.read_header(entry, bool) == b"x"
    for call in (folder.tree.statvfs, folder.tree.check_folder, lambda: folder.tree.lookup("1.img")):
        with pytest.raises(OSError) as caught:
            call()
        assert caught.value.errno == errno.EBADF


def test_folder_that_is_not_there(connection: Connection, folder: Folder) -> None:
    """A folder that is missing, or a file, is said to be that by every way of looking at it."""
    (folder.path / "file").write_bytes(b"")
    for name, wanted in (("missing", errno.ENOENT), ("file", errno.ENOTDIR)):
        connection.hold()
        tree = GlusterTree(connection, f"{folder.name}/{name}", ("", ""))
        for call in (
            tree.check_folder,
            lambda tree=tree: list(tree.scan(everything)),
            lambda tree=tree: tree.lookup("x"),
        ):
            with pytest.raises(OSError) as caught:
                call()
            assert caught.value.errno == wanted
        tree.close()


def test_statvfs_is_the_mounts(folder: Folder) -> None:
    """The volume's size is what its mount says; what is free may move meanwhile, but not far."""
    vfs = os.statvfs(folder.path)
    total, free = folder.tree.statvfs()
    assert total == vfs.f_frsize * vfs.f_blocks
    assert abs(free - vfs.f_frsize * vfs.f_bfree) < 1 << 30


def test_many_entries_over_several_bricks(
    gluster: GlusterBed, volume_in_memory: str, connections: ConnectionCache
) -> None:
    """5,000 entries on three bricks are listed once each, also folders, and renamed ones, which leave pointers behind."""
    connection = connections.acquire(Key(volume_in_memory, (Server("tcp", gluster.host, 24007),)))
    tree = GlusterTree(connection, "/", ("", ""))
    names = [f"{n:04}.img" for n in range(5000)]

    def make(part: list[str]) -> None:
        for name in part:
            tree.create(name).close()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(make, [names[n::8] for n in range(8)]))
    tree.mkdir("folder")
    for n in range(50):
        tree.rename(names[n], f"renamed{n}")
    good, bad = scanned(tree)
    assert bad == {}
    assert sorted(good) == sorted(["folder", *names[50:], *(f"renamed{n}" for n in range(50))])
    assert sum(stat.S_ISDIR(found.mode) for found in good.values()) == 1
    tree.close()
    assert connection.holds == 0


def test_several_listings_at_once(folder: Folder) -> None:
    """Threads that list one tree at once each see all of it."""
    wanted = sorted(f"{n}.img" for n in range(300))
    for name in wanted:
        (folder.path / name).write_bytes(b"")
    barrier = threading.Barrier(6)

    def look(_: int) -> list[str]:
        barrier.wait()
        return sorted(scanned(folder.tree)[0])

    with ThreadPoolExecutor(6) as pool:
        assert all(found == wanted for found in pool.map(look, range(6)))
