"""WritableLocalTree: what it opens, and what it does where the kernel lacks something."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from leaks import open_files

from astore.model import VolumeDef
from astore.trees import writable_local as local
from astore.trees.leftovers import remove_leftover
from astore.trees.local import LocalTree
from astore.trees.placing import begin, found
from astore.trees.tree import Entry
from astore.trees.writable_local import WritableLocalTree
from astore.volume_io.blocking_file import TreeFile
from astore.volume_io.local_file import LocalFile


@pytest.fixture
def tree(folder: Path) -> Iterator[WritableLocalTree]:
    """A tree on the folder."""
    tree = WritableLocalTree(str(folder))
    yield tree
    tree.close()


def _without(monkeypatch: pytest.MonkeyPatch, number: int | None, code: int) -> None:
    """The kernel does not have this call."""
    real = local._syscall

    def syscall(asked: int, *arguments: Any) -> int:
        if asked == number:
            ctypes.set_errno(code)
            return -1
        return real(asked, *arguments)

    monkeypatch.setattr(local, "_syscall", syscall)


@pytest.mark.parametrize("code", [None, errno.ENOSYS, errno.EPERM])
def test_links_that_lead_out(
    tree: WritableLocalTree, folder: Path, monkeypatch: pytest.MonkeyPatch, code: int | None
) -> None:
    """No link out of the folder is followed, to read or to write; where openat2 is missing, none at all is."""
    if code is not None:
        _without(monkeypatch, local._OPENAT2, code)
    outside = folder.parent / "outside"
    outside.write_bytes(b"secret")
    (folder / "inside").write_bytes(b"mine")
    for name, target in (
        ("absolute", str(outside)),
        ("relative", "../outside"),
        ("round", f"../{folder.name}/inside"),
        ("magic", f"/proc/self/root{outside}"),
        ("through", "absolute"),
    ):
        (folder / name).symlink_to(target)
        for write in (False, True):
            with pytest.raises(OSError) as caught:
                tree.open(name, write=write)
            assert caught.value.errno == errno.EXDEV, name
    (folder / "good").symlink_to("inside")
    if code is None:
        file = tree.open("good")
        assert file.pread(10, 0) == b"mine"
        file.close()
    else:
        with pytest.raises(OSError) as caught:
            tree.open("good")
        assert caught.value.errno == errno.EXDEV
    file = tree.open("inside", write=True)
    file.pwrite(b"M", 0)
    file.close()
    assert (folder / "inside").read_bytes() == b"Mine"
    assert outside.read_bytes() == b"secret"


@pytest.mark.parametrize("code", [None, errno.ENOSYS])
def test_what_is_no_file(
    tree: WritableLocalTree, folder: Path, monkeypatch: pytest.MonkeyPatch, code: int | None
) -> None:
    """FIFOs, sockets and directories are refused at once, and so are names that are paths."""
    if code is not None:
        _without(monkeypatch, local._OPENAT2, code)
    os.mkfifo(folder / "fifo")
    (folder / "sub").mkdir()
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(os.fspath(folder / "socket"))
        for name, expected in (
            ("fifo", errno.EINVAL),
            ("socket", errno.EINVAL),
            ("sub", errno.EISDIR),
            ("nothing", errno.ENOENT),
            ("", errno.EINVAL),
            (".", errno.EINVAL),
            ("..", errno.EINVAL),
            ("sub/x", errno.EINVAL),
            ("a\0b", errno.EINVAL),
            ("x" * 256, errno.ENAMETOOLONG),
        ):
            for write in (False, True):
                with pytest.raises(OSError) as caught:
                    tree.open(name, write=write)
                assert caught.value.errno == expected, (name, write)
    plain = tree.create("plain")
    for change in (
        lambda: tree.create("../x"),
        lambda: tree.mkdir("a/b"),
        lambda: tree.unlink(".."),
        lambda: tree.rmdir("."),
        lambda: tree.link(plain, "/x"),
        lambda: tree.rename("fifo", "../x"),
        lambda: tree.stat("../x"),
    ):
        with pytest.raises(OSError) as caught:
            change()
        assert caught.value.errno == errno.EINVAL
    plain.close()


@pytest.mark.root
def test_block_device(tree: WritableLocalTree, folder: Path) -> None:
    """A node that has no device behind it is an error and nothing worse; a device of the machine has a size."""
    os.mknod(folder / "nothing", 0o600 | stat.S_IFBLK, os.makedev(250, 250))
    os.mknod(folder / "null", 0o600 | stat.S_IFCHR, os.makedev(1, 3))
    for name in ("nothing", "null"):
        with pytest.raises(OSError):
            tree.open(name)
    disks = [name for name in os.listdir("/sys/class/block") if name.startswith(("vd", "sd", "nvme", "loop", "ram"))]
    for disk in disks:
        major, minor = Path(f"/sys/class/block/{disk}/dev").read_text().split(":")
        size = int(Path(f"/sys/class/block/{disk}/size").read_text()) * 512
        if not size:
            continue
        os.mknod(folder / "disk", 0o400 | stat.S_IFBLK, os.makedev(int(major), int(minor)))
        try:
            file = tree.open("disk")
        except PermissionError:
            return  # a container without its host's devices
        assert file.stat().size == size
        file.close()
        return


def test_modes(tree: WritableLocalTree, folder: Path) -> None:
    """Files and directories have the mode that was asked for, whatever the umask."""
    before = os.umask(0o077)
    try:
        for mode in (0o000, 0o444, 0o640, 0o777):
            tree.create(f"f{mode:o}", mode).close()
            tree.mkdir(f"d{mode:o}", mode)
    finally:
        os.umask(before)
    for path in folder.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == int(path.name[1:], 8)
    with pytest.raises(FileExistsError):
        tree.create("f444")
    with pytest.raises(FileExistsError):
        tree.mkdir("f444")
    file = tree.open("f640", write=True)
    file.chmod(0o600)
    file.chown(os.getuid(), os.getgid())
    file.close()
    tree.mkdir("owned", 0o750, os.getuid(), os.getgid())
    tree.rmdir("owned")
    assert stat.S_IMODE((folder / "f640").stat().st_mode) == 0o600


def test_mode_that_cannot_be_set(tree: WritableLocalTree, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file whose mode cannot be set is not made."""

    def refuse(*args: object) -> None:
        raise PermissionError(errno.EPERM, "no")

    monkeypatch.setattr(os, "fchmod", refuse)
    before = os.umask(0o777)
    try:
        with pytest.raises(PermissionError):
            tree.create("a", 0o600)
    finally:
        os.umask(before)
    assert os.listdir(folder) == []


@pytest.mark.parametrize("code", [None, errno.EINVAL, errno.ENOSYS, "unknown machine"])
def test_rename_never_replaces(
    tree: WritableLocalTree, folder: Path, monkeypatch: pytest.MonkeyPatch, code: int | str | None
) -> None:
    """With renameat2 or without it: what has the name keeps it, be it a file, a directory or a link."""
    if isinstance(code, int):
        _without(monkeypatch, local._RENAMEAT2.get(os.uname().machine), code)
    elif code is not None:
        monkeypatch.setattr(local.platform, "machine", lambda: code)
    (folder / "file").write_bytes(b"f")
    (folder / "sub").mkdir()
    (folder / "dangling").symlink_to("nowhere")
    (folder / "taken").write_bytes(b"t")
    (folder / "empty").mkdir()
    for old in ("file", "sub", "dangling"):
        for new in ("taken", "empty", "dangling", old):
            with pytest.raises(FileExistsError):
                tree.rename(old, new)
    with pytest.raises(FileNotFoundError):
        tree.rename("nothing", "new")
    for old in ("file", "sub", "dangling"):
        tree.rename(old, f"{old} 2")
    assert sorted(os.listdir(folder)) == ["dangling 2", "empty", "file 2", "sub 2", "taken"]
    assert (folder / "taken").read_bytes() == b"t"


def test_rename_that_fails(tree: WritableLocalTree, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Errors other than that it cannot are told; and half a rename is taken back."""
    number = local._RENAMEAT2.get(os.uname().machine)
    (folder / "a").write_bytes(b"a")
    _without(monkeypatch, number, errno.EIO)
    with pytest.raises(OSError) as caught:
        tree.rename("a", "b")
    assert caught.value.errno == errno.EIO
    _without(monkeypatch, number, errno.ENOSYS)
    real = os.unlink

    def refuse(name: str, **options: Any) -> None:
        if name == "a":
            raise OSError(errno.EIO, "no")
        real(name, **options)

    monkeypatch.setattr(os, "unlink", refuse)
    with pytest.raises(OSError):
        tree.rename("a", "b")
    assert os.listdir(folder) == ["a"]


def test_file_calls(tree: WritableLocalTree, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reads and writes are whole, however few bytes the kernel takes at a time."""
    file = tree.create("a")
    read, write = os.pread, os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: write(fd, memoryview(data)[:7], at))
    monkeypatch.setattr(os, "pread", lambda fd, length, at: read(fd, min(length, 5), at))
    for data in (b"0123456789" * 3, bytearray(b"x" * 20), memoryview(b"y" * 15)):
        file.pwrite(data, 4)
        assert file.pread(len(data), 4) == bytes(data)
    assert file.pread(100, 30) == b"6789"
    assert file.pread(5, 30) == b"6789"
    assert file.pread(5, 100) == b""
    whole = LocalTree(str(folder))
    (entry,) = (one for one in whole.scan(lambda name, found: True) if isinstance(one, Entry))
    with contextlib.closing(whole.reading(entry)) as reading:
        assert reading.read(4, len(data)) == bytes(data)
        assert (reading.read(30, 100), reading.read(100, 5)) == (b"6789", b"")
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: 0)
    with pytest.raises(OSError):
        file.pwrite(b"x", 0)
    monkeypatch.undo()
    file.pwrite(b"", 0)
    file.truncate(1 << 20)
    file.allocate(0, 0)
    file.punch(5, 0)
    file.allocate(1 << 20, 4096)
    assert file.stat().size == (1 << 20) + 4096
    file.pwrite(b"z" * 4096, 1 << 19)
    assert (file.seek_data(1 << 19), file.seek_data(2 << 20)) == (1 << 19, None)
    assert file.seek_hole(1 << 19) == (1 << 19) + 4096
    assert file.seek_hole(2 << 20) == 2 << 20, "it was cut meanwhile"
    file.punch(1 << 19, 4096)
    assert file.pread(4096, 1 << 19) == bytes(4096)
    with pytest.raises(OSError):
        file.punch(-5, 10)
    file.close()
    file.close()
    for call in (file.stat, file.sync, file.lock, lambda: file.pread(1, 0), lambda: file.seek_data(0)):
        with pytest.raises(OSError) as caught:
            call()
        assert caught.value.errno == errno.EBADF


@pytest.mark.parametrize("code", [errno.EIO, errno.EBADF])
def test_seeks_that_fail(tree: WritableLocalTree, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    """Only the end of a file is no error of a seek."""

    def refuse(*args: object) -> int:
        raise OSError(code, "no")

    file = tree.create("a")
    monkeypatch.setattr(os, "lseek", refuse)
    for seek in (file.seek_data, file.seek_hole):
        with pytest.raises(OSError):
            seek(0)
    file.close()


def test_locks(tree: WritableLocalTree, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One lock a file, in this process and in any other; it goes with the file, and with the process."""
    first = tree.create("a")
    second = tree.open("a", write=True)
    assert first.lock()
    assert first.lock()
    assert not second.lock()
    first.close()
    assert second.lock()
    code = (
        "import sys; from astore.trees.writable_local import WritableLocalTree\n"
        "file = WritableLocalTree(sys.argv[1]).open('a', write=True); print(file.lock(), flush=True); sys.stdin.read()"
    )
    argv = [sys.executable, "-c", code, os.fspath(folder)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"False\n"
        other.kill()
    second.close()
    third = tree.open("a", write=True)
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"True\n"
        assert not third.lock()
        other.kill()
        other.wait()
        assert third.lock()
    for code_, expected in ((errno.ENOLCK, True), (errno.EINVAL, True), (errno.EACCES, False), (errno.EIO, None)):

        def refuse(*args: object, code: int = code_) -> None:
            raise OSError(code, "no")

        monkeypatch.setattr(fcntl, "fcntl", refuse)
        if expected is None:
            with pytest.raises(OSError):
                third.lock()
        else:
            assert third.lock() is expected
    third.close()


def test_clone_and_nocow(tree: WritableLocalTree, folder: Path) -> None:
    """What the file system cannot, it says; what it can, it does."""
    one, two = tree.create("a"), tree.create("b")
    one.pwrite(b"x" * 8192, 0)
    codes = []
    for call in (lambda: one.clone(two), two.set_nocow):
        try:
            call()
        except OSError as error:
            codes.append(error.errno)
    assert set(codes) <= {errno.EOPNOTSUPP, errno.EINVAL, errno.ENOTTY, errno.ENOSYS}
    assert one.copy_range(0, two, 0, 8192) == 8192
    assert two.pread(10_000, 0) == b"x" * 8192
    with pytest.raises(OSError) as caught:
        TreeFile.clone(one, two)
    assert caught.value.errno == errno.EOPNOTSUPP
    one.close()
    two.close()


def test_sync_folder(tree: WritableLocalTree, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system that cannot sync folders is no failure; one that fails to is."""
    for code in (errno.EINVAL, errno.EIO):

        def refuse(fd: int, code: int = code) -> None:
            raise OSError(code, "no")

        monkeypatch.setattr(os, "fsync", refuse)
        if code == errno.EINVAL:
            tree.sync_folder()
        else:
            with pytest.raises(OSError):
                tree.sync_folder()


def test_folder_that_was_replaced(tree: WritableLocalTree, folder: Path) -> None:
    """Work goes to the folder that has the path now, not to the one that had it."""
    folder.rename(folder.with_name("old"))
    folder.mkdir()
    tree.create("a").close()
    assert os.listdir(folder) == ["a"]
    assert os.listdir(folder.with_name("old")) == []


def test_folder_is_held_by_the_call(folder: Path) -> None:
    """The folder is open during each call, and nothing but the call holds it."""
    tree = WritableLocalTree(str(folder))
    file = tree.create("a")
    assert tree.stat("a").size == 0
    tree.link(file, "b")
    file.close()
    tree.rename("b", "c")
    tree.unlink("c")
    tree.mkdir("d")
    tree.rmdir("d")
    tree.sync_folder()
    tree.open("a").close()
    assert os.listdir(folder) == ["a"]
    failed = []
    for call in (
        lambda: tree.open("b"),
        lambda: tree.stat("b"),
        lambda: tree.unlink("b"),
        lambda: tree.rename("b", "c"),
    ):
        with pytest.raises(FileNotFoundError) as caught:
            call()
        failed.append(caught.value)
    with pytest.raises(FileExistsError) as caught_:
        tree.create("a")
    assert os.fspath(folder) not in open_files(), "an error keeps nobody from unmounting"
    assert (len(failed), caught_.value.errno) == (4, errno.EEXIST)
    tree.close()


def test_leftovers(tree: WritableLocalTree, folder: Path) -> None:
    """Leftovers are files of that name that nobody has locked; whatever else has such a name stays."""
    made = begin(tree, VolumeDef("a"))
    (folder / "there").symlink_to("nowhere")
    with pytest.raises(FileExistsError):
        begin(tree, VolumeDef("there"))
    (folder / ".astore-1.tmp").write_bytes(b"x")
    (folder / ".astore-2").write_bytes(b"x")
    (folder / ".astore-3.tmp").mkdir()
    os.mkfifo(folder / ".astore-4.tmp")
    hidden = sorted(name for name in os.listdir(folder) if name.startswith(".astore-"))
    assert len(hidden) == 5
    removed = []
    for name in [*hidden, ".astore-gone.tmp"]:
        with contextlib.suppress(OSError):
            if remove_leftover(tree, name):
                removed.append(name)
    assert removed == [".astore-1.tmp"]
    assert made.place().name == "a"
    assert sorted(os.listdir(folder)) == [".astore-2", ".astore-3.tmp", ".astore-4.tmp", "a", "there"]
    made.close()
    made.remove()
    assert not (folder / "a").exists()
    with pytest.raises(FileNotFoundError):
        found(tree, "a")


def test_remove_is_careful(tree: WritableLocalTree, folder: Path) -> None:
    """What is taken back is the very file that was placed, and never one that somebody else put there."""
    made = begin(tree, VolumeDef("a"))
    made.place()
    os.rename(folder / "a", folder / "kept")
    (folder / "a").write_bytes(b"somebody else's")
    made.remove()
    made.file.close()
    assert sorted(os.listdir(folder)) == ["a", "kept"]
    assert "LocalFile" in repr(LocalFile(-1, "x"))
