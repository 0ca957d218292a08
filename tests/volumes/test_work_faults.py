"""Storage that lacks what most have, or fails half-way: what it cannot is done otherwise, and nothing is left."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from core_fakes import names

from astore.errors import StorageError, TransferError, VolumeExistsError
from astore.model import BackingStore, Permissions, VolumeDef
from astore.pools.pool import Pool
from astore.testing.faults import Call, Faults
from astore.trees import placing
from astore.volume_io import copying
from astore.volume_io.blocks import Hole
from astore.volume_io.local_file import LocalFile

MIB = 1 << 20
DATA = os.urandom(3 * MIB)


@pytest.mark.parametrize("code", [errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK])
async def test_no_links(pool: Pool, folder: Path, faults: Faults, code: int) -> None:
    """Where a file cannot have two names, a volume gets its name by a rename, which never replaces anything either."""
    faults.fail("tree.link", code)
    await pool.create_volume(VolumeDef("a", capacity=10))
    assert faults.calls.count("tree.rename") == 1
    faults.run("tree.rename", lambda call: (folder / "b").write_bytes(b"somebody else's"))
    with pytest.raises(VolumeExistsError):
        await pool.create_volume(VolumeDef("b", capacity=10))
    assert sorted(os.listdir(folder)) == ["a", "b"]
    assert (folder / "b").read_bytes() == b"somebody else's"


async def test_name_taken_meanwhile(pool: Pool, folder: Path, faults: Faults) -> None:
    """Who takes the name while a volume is in the making has it."""
    faults.run("tree.link", lambda call: (folder / "a").write_bytes(b"faster"))
    with pytest.raises(VolumeExistsError):
        await pool.create_volume(VolumeDef("a", capacity=10))
    assert os.listdir(folder) == ["a"]
    assert (folder / "a").read_bytes() == b"faster"


async def test_answer_to_link_was_lost(pool: Pool, folder: Path, faults: Faults) -> None:
    """What NFS says when its answer was lost and it asked again: the name is taken, by the very file."""

    faults.fail("tree.link", errno.EEXIST, after=True)
    disk = await pool.create_volume(VolumeDef("a", capacity=10))
    assert (os.listdir(folder), disk.info.capacity, os.stat(folder / "a").st_nlink) == (["a"], 10, 1)


@pytest.mark.parametrize(
    "call",
    [
        "file.sync",
        "tree.sync_folder",
        "tree.link",
        "file.truncate",
        "file.allocate",
        "file.chown",
        "file.lock",
        "tree.create",
    ],
)
async def test_create_that_fails(pool: Pool, folder: Path, faults: Faults, call: str) -> None:
    """A create that fails, at whatever call, leaves nothing, and is told in words."""
    faults.fail(call, errno.EDQUOT)
    owner = Permissions(owner=os.getuid())
    with pytest.raises(StorageError, match="Disk quota exceeded") as caught:
        await pool.create_volume(VolumeDef("a", capacity=MIB, allocation=MIB, permissions=owner))
    assert (caught.value.errno, caught.value.pool) == (errno.EDQUOT, "p")
    assert "'a'" in str(caught.value)
    assert os.listdir(folder) == []
    faults.clear(call)
    await pool.create_volume(VolumeDef("a", capacity=MIB, permissions=owner))


async def test_directory_that_fails(pool: Pool, folder: Path, faults: Faults) -> None:
    """So does a directory."""
    for call in ("tree.mkdir", "tree.sync_folder"):
        faults.fail(call, errno.EIO)
        with pytest.raises(StorageError):
            await pool.create_volume(VolumeDef("a", format="dir", permissions=Permissions(group=os.getgid())))
        assert os.listdir(folder) == []
        faults.clear(call)


async def test_never_locked(pool: Pool, folder: Path, faults: Faults, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hidden file that is taken for a leftover is given up for another, but not for ever."""
    monkeypatch.setattr(LocalFile, "lock", lambda self: False)
    with pytest.raises(StorageError) as caught:
        await pool.create_volume(VolumeDef("a", capacity=1))
    assert caught.value.errno == errno.EAGAIN
    assert faults.calls.count("tree.create") == placing.ATTEMPTS
    assert os.listdir(folder) == []


async def test_removed_before_it_was_locked(pool: Pool, folder: Path, faults: Faults) -> None:
    """Who looks for leftovers may remove a file between its making and its locking: there is another then."""

    def remove_it(call: Call) -> None:
        for name in os.listdir(folder):
            os.unlink(folder / name)

    faults.run("file.lock", remove_it, at=1)
    await pool.create_volume(VolumeDef("a", capacity=1))
    assert os.listdir(folder) == ["a"]
    assert faults.calls.count("tree.create") == 2


CANNOT = sorted(copying.CANNOT)


@pytest.mark.parametrize("code", CANNOT)
async def test_copies_otherwise(pool: Pool, folder: Path, faults: Faults, code: int) -> None:
    """Storage that cannot share blocks copies them, and if it cannot, they go through this process; holes stay holes."""
    old = await pool.create_volume(VolumeDef("old", capacity=8 * MIB))
    await old.upload(DATA, offset=MIB)
    expected = (folder / "old").read_bytes()
    for number, call in enumerate(("file.clone", "file.copy_range", "file.seek_data")):
        faults.fail(call, code)
        faults.calls.clear()
        copy = await pool.copy_volume(old, VolumeDef(f"{number}"))
        assert (folder / f"{number}").read_bytes() == expected
        assert ("file.pwrite" in faults.calls) == (number > 0)
        assert copy.info.allocation < 5 * MIB or number == 2


async def test_copy_that_fails(pool: Pool, folder: Path, faults: Faults, monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy that breaks off says how far it came, and leaves nothing."""
    monkeypatch.setattr(copying, "COPY_AT_ONCE", MIB)
    old = await pool.create_volume(VolumeDef("old", capacity=4 * MIB))
    await old.upload(DATA, offset=MIB)
    faults.fail("file.clone", errno.EOPNOTSUPP)
    faults.fail("file.copy_range", errno.EOPNOTSUPP, at=2)
    with pytest.raises(TransferError) as caught:
        await pool.copy_volume(old, VolumeDef("new"))
    assert (caught.value.done, caught.value.errno) == (2 * MIB, errno.EOPNOTSUPP)
    faults.clear()
    for call in ("file.clone", "file.seek_data"):
        faults.fail(call, errno.EIO)
        with pytest.raises(TransferError):
            await pool.copy_volume(old, VolumeDef("new"))
        faults.clear()
        faults.fail("file.clone", errno.EOPNOTSUPP)
    assert os.listdir(folder) == ["old"]


async def test_source_cut_while_it_is_copied(pool: Pool, folder: Path, faults: Faults) -> None:
    """What somebody cuts while it is copied ends in zeros, and nothing hangs."""
    for code in (errno.EOPNOTSUPP, None):
        (folder / "old").write_bytes(DATA)
        await pool.refresh()
        faults.fail("file.clone", errno.EOPNOTSUPP)
        if code is not None:
            faults.fail("file.copy_range", code)
        faults.run("file.seek_hole", lambda call: os.truncate(folder / "old", 1000))
        copy = await pool.copy_volume(pool.volume("old"), VolumeDef(f"{code}"))
        assert copy.info.capacity == len(DATA)
        assert (folder / f"{code}").read_bytes() == DATA[:1000].ljust(len(DATA), b"\0")
        faults.clear()


async def test_no_holes(pool: Pool, folder: Path, faults: Faults) -> None:
    """Where nothing can be punched, a sparse upload writes zeros, and trimming says that it cannot."""
    disk = await pool.create_volume(VolumeDef("a", capacity=6 * MIB))
    await disk.upload(b"\xff" * 6 * MIB)
    faults.fail("file.punch", errno.EOPNOTSUPP)

    async def pieces() -> object:
        yield Hole(5 * MIB)
        yield bytes(MIB)

    assert await disk.upload(pieces(), sparse=True) == 6 * MIB
    assert (folder / "a").read_bytes() == bytes(6 * MIB)
    with pytest.raises(TransferError) as caught:
        await disk.wipe("trim")
    assert (caught.value.errno, caught.value.done) == (errno.EOPNOTSUPP, 0)
    faults.clear("file.punch")
    faults.fail("file.punch", errno.EIO)
    with pytest.raises(TransferError) as caught:
        await disk.upload(bytes(MIB), sparse=True)
    assert caught.value.errno == errno.EIO


async def test_holes_cannot_be_told(pool: Pool, folder: Path, faults: Faults) -> None:
    """Where holes cannot be told, everything counts as data."""
    disk = await pool.create_volume(VolumeDef("a", capacity=3 * MIB))
    faults.fail("file.seek_data", errno.EINVAL)
    async with disk.download(sparse=True) as blocks:
        got = [one async for one in blocks]
    assert not any(isinstance(one, Hole) for one in got)
    assert b"".join(got) == bytes(3 * MIB)  # type: ignore[arg-type]
    await disk.wipe("bsi")
    assert (folder / "a").read_bytes() == b"\x7f" * 3 * MIB
    faults.clear("file.seek_data")
    faults.fail("file.seek_data", errno.EIO)
    with pytest.raises(StorageError):
        async with disk.download(sparse=True) as blocks:
            _ = [one async for one in blocks]


@pytest.mark.parametrize("call", ["file.pwrite", "file.sync", "file.truncate"])
async def test_upload_that_fails(pool: Pool, folder: Path, faults: Faults, call: str) -> None:
    """An upload that the storage ends says how far it came, and the volume is free for the next."""
    disk = await pool.create_volume(VolumeDef("a", capacity=0))

    def fail(met: Call) -> None:
        if call != "file.pwrite" or met.arguments[1] >= 4 * MIB:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    async def pieces() -> object:
        for _ in range(3):
            yield bytes(2 * MIB)
        yield Hole(MIB)

    faults.run(call, fail)
    with pytest.raises(TransferError, match=r"No space left on device, after \d+ bytes") as caught:
        await disk.upload(pieces())
    assert (caught.value.errno, caught.value.pool) == (errno.ENOSPC, "p")
    assert caught.value.done == (4 * MIB if call == "file.pwrite" else 7 * MIB)
    faults.clear(call)
    await disk.upload(b"free")
    assert (folder / "a").read_bytes()[:4] == b"free"


async def test_resize_that_fails(pool: Pool, folder: Path, faults: Faults) -> None:
    """A volume that could not grow has the size that it had."""
    disk = await pool.create_volume(VolumeDef("a", capacity=MIB))
    for call in ("file.allocate", "file.sync"):
        faults.fail(call, errno.ENOSPC)
        with pytest.raises(StorageError) as caught:
            await disk.resize(8 * MIB, allocate=True)
        assert caught.value.errno == errno.ENOSPC
        assert (disk.info.capacity, os.stat(folder / "a").st_size) == (MIB, MIB)
        faults.clear(call)


async def test_wipe_that_is_not_kept(pool: Pool, folder: Path, faults: Faults) -> None:
    """Where what is read back is not what was written, the wipe failed."""
    disk = await pool.create_volume(VolumeDef("a", capacity=MIB))
    await disk.upload(DATA[:MIB])

    faults.run("file.pread", lambda call: (folder / "a").write_bytes(DATA[:MIB]))
    with pytest.raises(TransferError, match="read back differ") as caught:
        await disk.wipe("nnsa")
    assert (caught.value.errno, caught.value.done) == (errno.EIO, 3 * MIB)


async def test_close_that_fails(pool: Pool, folder: Path, faults: Faults) -> None:
    """A write that was put off and fails on closing is told; it does not hide what went wrong before."""
    disk = await pool.create_volume(VolumeDef("a", capacity=MIB))

    async def write(error: Exception | None) -> None:
        async with disk.open(write=True) as file:
            await file.pwrite(b"x", 0)
            if error is not None:
                raise error

    faults.fail("file.close", errno.EDQUOT, after=True)
    with pytest.raises(StorageError) as caught:
        await write(None)
    assert (caught.value.errno, caught.value.pool) == (errno.EDQUOT, "p")
    with pytest.raises(KeyError):
        await write(KeyError("first"))


async def test_entry_that_cannot_be_read_back(pool: Pool, folder: Path, faults: Faults) -> None:
    """A volume that is no sooner in its place than gone, or unreadable, was not made."""
    faults.run("tree.sync_folder", lambda call: os.unlink(folder / "a"), at=1)
    with pytest.raises((StorageError, LookupError)):
        await pool.create_volume(VolumeDef("a", capacity=1))
    faults.clear()
    faults.run("tree.sync_folder", lambda call: (folder / "a").write_bytes(b"QFI\xfb\0\0\0\x03"))
    disk = await pool.create_volume(VolumeDef("a", capacity=1))
    assert (disk.info.format, disk.info.header_format) == ("raw", "qcow2"), "it was made raw, whatever it holds"
    faults.clear("tree.sync_folder")
    await disk.delete()
    assert os.listdir(folder) == []
    assert names(pool) == []


async def test_backing_volume_elsewhere(pool: Pool) -> None:
    """The first volume of an empty pool may be backed by what no pool has, if its format and capacity are given."""
    backing = BackingStore("json:{broken", "raw")
    disk = await pool.create_volume(VolumeDef("a", capacity=MIB, format="qcow2", backing=BackingStore("/x", "raw")))
    assert disk.info.backing == "/x"
    disk = await pool.create_volume(VolumeDef("b", capacity=MIB, format="qcow2", backing=backing))
    assert (disk.info.backing, disk.info.backing_path) == ("json:{broken", None)
