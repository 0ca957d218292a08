"""Open files: what is written where, past every power of two that an offset may be cut off at."""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from astore_gluster.volume.file import GlusterFile

if TYPE_CHECKING:
    from tests.gluster.conftest import CountedGfapi, Folder

pytestmark = [pytest.mark.root, pytest.mark.gluster, pytest.mark.fuse]

GIB = 1 << 30
BLOCK = 4096


@pytest.fixture
def file(folder: Folder) -> Iterator[GlusterFile]:
    """A new file, open for writing: ``file`` in its folder."""
    file = folder.tree.create("file", 0o640)
    yield file
    file.close()


def test_created_and_opened(folder: Folder, file: GlusterFile) -> None:
    """A new file has its mode and is nobody else's; what is there is opened, for reading or writing, over links too."""
    assert os.stat(folder.path / "file").st_mode & 0o7777 == 0o640
    assert "file" in repr(file)
    with pytest.raises(FileExistsError):
        folder.tree.create("file")
    with pytest.raises(FileNotFoundError):
        folder.tree.open("nothing")
    file.pwrite(b"hello", 0)
    (folder.path / "link").symlink_to("file")
    with pytest.raises(FileExistsError):
        folder.tree.create("link")
    for name in ("file", "link"):
        reader = folder.tree.open(name)
        assert reader.pread(100, 0) == b"hello"
        with pytest.raises(OSError):
            reader.truncate(0)
        reader.close()
    writer = folder.tree.open("file", write=True)
    writer.pwrite(b"J", 0)
    writer.close()
    assert file.pread(5, 0) == b"Jello"


@pytest.mark.parametrize("offset", [0, 1, BLOCK, 2 * GIB - 3, 2 * GIB, 4 * GIB - 3, 4 * GIB, 8 * GIB + 1])
def test_where_bytes_go(folder: Folder, file: GlusterFile, offset: int) -> None:
    """What is written at an offset is there, and nowhere else; the mount of the volume sees the same."""
    data = b"0123456789" * 1000
    file.pwrite(data, offset)
    assert file.stat().size == offset + len(data)
    assert file.pread(len(data) + 100, offset) == data
    assert file.pread(4, offset + 3) == b"3456"
    assert file.pread(10, offset + len(data)) == b""
    assert file.pread(0, offset) == b""
    if offset:
        assert file.pread(min(offset, BLOCK), max(0, offset - BLOCK)) == b"\0" * min(offset, BLOCK)
    file.sync()
    fd = os.open(folder.path / "file", os.O_RDONLY)
    try:
        assert os.pread(fd, len(data), offset) == data
        assert os.fstat(fd).st_size == offset + len(data)
    finally:
        os.close(fd)


@pytest.mark.parametrize("size", [0, 1, 2 * GIB - 1, 2 * GIB + 1, 4 * GIB + 1, 9 * GIB])
def test_truncate(folder: Folder, file: GlusterFile, size: int) -> None:
    """The size is what was asked for; what is gained is a hole, what is lost is lost."""
    file.pwrite(b"abc", 0)
    file.truncate(size)
    assert file.stat().size == size
    assert os.stat(folder.path / "file").st_size == size
    assert file.pread(5, 0) == (b"abc" + b"\0" * 5)[: min(5, size)]
    assert file.stat().blocks * 512 < 1 << 20
    file.truncate(0)
    assert file.stat().size == 0


@pytest.mark.parametrize("offset", [0, 2 * GIB, 4 * GIB])
def test_allocate(file: GlusterFile, offset: int) -> None:
    """Space is taken for the range and for nothing else; the size grows, or stays where that is wanted."""
    length = 1 << 20
    file.allocate(offset, length, keep_size=True)
    assert file.stat().size == 0
    file.allocate(offset, length)
    file.sync()
    assert file.stat().size == offset + length
    assert length <= file.stat().blocks * 512 < 2 * length
    assert file.pread(BLOCK, offset) == b"\0" * BLOCK


@pytest.mark.parametrize("offset", [0, 2 * GIB, 4 * GIB, 8 * GIB])
def test_holes(file: GlusterFile, offset: int) -> None:
    """Data and holes are found where they are; a range that is punched becomes one, a range that is zeroed reads so."""
    megabyte = 1 << 20
    file.truncate(offset + 8 * megabyte)
    file.pwrite(b"x" * (4 * megabyte), offset + megabyte)
    file.sync()
    assert file.seek_data(offset) == offset + megabyte
    assert file.seek_hole(offset + megabyte) == offset + 5 * megabyte
    assert file.seek_data(offset + 5 * megabyte) is None
    before = file.stat().blocks
    file.punch(offset + 2 * megabyte, megabyte)
    assert file.stat().size == offset + 8 * megabyte
    assert file.stat().blocks * 512 == before * 512 - megabyte
    assert file.pread(2, offset + 2 * megabyte - 1) == b"x\0"
    assert file.pread(2, offset + 3 * megabyte - 1) == b"\0x"
    assert file.seek_hole(offset + megabyte) == offset + 2 * megabyte
    assert file.seek_data(offset + 2 * megabyte) == offset + 3 * megabyte
    file.zero(offset + 4 * megabyte - 1, 3)
    assert file.pread(5, offset + 4 * megabyte - 2) == b"x\0\0\0x"
    with pytest.raises(OSError) as caught:
        file.seek_hole(offset + 9 * megabyte)
    assert caught.value.errno == errno.ENXIO
    assert file.seek_data(offset + 9 * megabyte) is None


def test_copy_range(folder: Folder, file: GlusterFile, counted: CountedGfapi) -> None:
    """The server is not asked to copy, which it does wrongly: it is said to be another file system, to be copied by hand."""
    target = folder.tree.create("target")
    before = counted.calls["copy_file_range"]
    with pytest.raises(OSError) as caught:
        file.copy_range(0, target, 0, 1)
    assert caught.value.errno == errno.EXDEV
    assert (caught.value.filename, caught.value.filename2) == (file.path, target.path)
    assert counted.calls["copy_file_range"] == before
    target.close()


BEYOND = [(-1, 1), (0, -1), (2**63 - 1, 1), (2**64, 1), (2**64 + 5, 1), (1, 2**63 - 1)]


@pytest.mark.parametrize(("offset", "length"), BEYOND)
def test_beyond_what_an_offset_can_be(file: GlusterFile, offset: int, length: int) -> None:
    """What does not fit is refused, not cut off: else 2⁶⁴ + 5 would be 5."""
    file.pwrite(b"untouched", 0)
    calls = {
        "pread": lambda: file.pread(length, offset),
        "allocate": lambda: file.allocate(offset, length),
        "punch": lambda: file.punch(offset, length),
        "zero": lambda: file.zero(offset, length),
    }
    if length == 1:
        calls |= {"pwrite": lambda: file.pwrite(b"x", offset)}
        if offset != 2**63 - 1:
            calls |= {
                "truncate": lambda: file.truncate(offset),
                "data": lambda: file.seek_data(offset),
                "hole": lambda: file.seek_hole(offset),
            }
    for name, call in calls.items():
        with pytest.raises(OSError) as caught:
            call()
        assert caught.value.errno == errno.EINVAL, name
    assert file.stat().size == 9
    assert file.pread(9, 0) == b"untouched"


def test_any_kind_of_memory(file: GlusterFile) -> None:
    """bytes, bytearray, and views of them, of any item size and step; the caller's memory is free again afterwards."""
    numbers = memoryview(bytearray(range(16))).cast("I")
    buffer = bytearray(b"bytearray")
    for data, wanted in (
        (b"bytes", b"bytes"),
        (buffer, b"bytearray"),
        (memoryview(b"read-only"), b"read-only"),
        (memoryview(buffer)[4:], b"array"),
        (memoryview(bytearray(b"s.t.e.p"))[::2], b"step"),
        (numbers, bytes(range(16))),
        (memoryview(bytearray(range(6))).cast("B", (2, 3)), bytes(range(6))),
        (bytearray(), b""),
        (b"", b""),
    ):
        file.truncate(0)
        file.pwrite(data, 3)
        assert file.pread(100, 3) == wanted
    buffer.append(0)


def test_more_and_less_than_asked(file: GlusterFile, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that reads or writes less than it was asked is asked again; one that writes nothing is an error."""
    gfapi = file._gfapi
    pread, pwrite = gfapi.pread, gfapi.pwrite
    monkeypatch.setattr(gfapi, "pwrite", lambda fd, at, n, *rest: pwrite(fd, at, min(n, 3), *rest))
    monkeypatch.setattr(gfapi, "pread", lambda fd, at, n, *rest: pread(fd, at, min(n, 2), *rest))
    file.pwrite(b"0123456789", 5)
    assert file.pread(20, 5) == b"0123456789"
    monkeypatch.setattr(gfapi, "pwrite", lambda *arguments: 0)
    with pytest.raises(OSError) as caught:
        file.pwrite(b"x", 0)
    assert caught.value.errno == errno.EIO


def test_modes_and_owners(folder: Folder, file: GlusterFile) -> None:
    """By file and by name; -1 leaves one as it is."""
    tree = folder.tree

    def found() -> tuple[int, int, int]:
        st = tree.stat("file")
        return st.mode & 0o7777, st.uid, st.gid

    file.chmod(0o1711)
    assert found() == (0o1711, 0, 0)
    file.chown(12, -1)
    assert found() == (0o1711, 12, 0)
    file.chown(-1, 34)
    tree.chmod("file", 0o604)
    assert found() == (0o604, 12, 34)
    tree.set_owner("file", 56)
    tree.set_owner("file", -1, 78)
    assert found() == (0o604, 56, 78)
    st = os.stat(folder.path / "file")
    assert (st.st_mode & 0o7777, st.st_uid, st.st_gid) == found()


def test_names(folder: Folder, file: GlusterFile) -> None:
    """Renaming, second names, folders, and what is refused; an open file does not care."""
    tree = folder.tree
    file.pwrite(b"x", 0)
    tree.link(file, "second")
    with pytest.raises(FileExistsError):
        tree.link(file, "second")
    tree.rename("file", "renamed")
    tree.create("taken").close()
    with pytest.raises(FileExistsError):
        tree.rename("renamed", "taken")
    tree.unlink("taken")
    tree.rename("renamed", "other")
    assert sorted(os.listdir(folder.path)) == ["other", "second"]
    assert file.pread(1, 0) == b"x"
    tree.mkdir("sub", 0o750)
    assert os.stat(folder.path / "sub").st_mode & 0o777 == 0o750
    with pytest.raises(FileExistsError):
        tree.mkdir("sub")
    with pytest.raises(OSError):
        tree.unlink("sub")
    (folder.path / "sub" / "inside").write_bytes(b"")
    with pytest.raises(OSError) as caught:
        tree.rmdir("sub")
    assert caught.value.errno == errno.ENOTEMPTY
    (folder.path / "sub" / "inside").unlink()
    tree.rmdir("sub")
    for name in ("other", "second"):
        tree.unlink(name)
    with pytest.raises(FileNotFoundError):
        tree.unlink("other")
    assert os.listdir(folder.path) == []
    assert file.pread(1, 0) == b"x"


def test_closed(folder: Folder, file: GlusterFile) -> None:
    """A closed file may be closed again; anything else is refused without a call. Closing the tree closes no file."""
    folder.tree.close()
    file.pwrite(b"still", 0)
    assert file.pread(9, 0) == b"still"
    file.close()
    file.close()
    assert "closed" in repr(file)
    calls: list[Any] = [
        file.stat,
        file.sync,
        lambda: file.pread(1, 0),
        lambda: file.pwrite(b"x", 0),
        lambda: file.truncate(0),
        lambda: file.seek_data(0),
        lambda: file.chmod(0o600),
    ]
    for call in calls:
        with pytest.raises(OSError) as caught:
            call()
        assert caught.value.errno == errno.EBADF


def test_closing_that_fails(folder: Folder, file: GlusterFile, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a late write says on closing is raised, once; the file is closed, and its hold given back, all the same."""
    gfapi = file._gfapi
    real = gfapi.close
    holds = folder.tree.connection.holds

    def close(fd: int) -> int:
        real(fd)
        ctypes.set_errno(errno.EDQUOT)
        return -1

    monkeypatch.setattr(gfapi, "close", close)
    with pytest.raises(OSError) as caught:
        file.close()
    assert caught.value.errno == errno.EDQUOT
    file.close()
    assert folder.tree.connection.holds == holds - 1


def test_several_threads_on_one_file(file: GlusterFile) -> None:
    """Each writes and reads its own part; none sees another's bytes."""

    def work(number: int) -> bool:
        mine = bytes([65 + number]) * 70_000
        for round_ in range(4):
            at = (round_ * 8 + number) * 70_000
            file.pwrite(mine, at)
            if file.pread(len(mine), at) != mine:
                return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(8)))
    assert file.stat().size == 32 * 70_000
