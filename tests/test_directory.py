"""The pool type ``dir`` beyond the conformance suite: its definitions, and the folders that it makes and removes."""

from __future__ import annotations

import asyncio
import errno
import os
import stat
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from core_fakes import eventually

import astore
from astore.backends.directory import DirectoryBackend
from astore.backends.target import build_target, delete_target
from astore.model import Permissions, PoolDef, Source, Target
from astore.testing.faults import Gate


@pytest.fixture
async def manager(tmp_path: Path) -> AsyncIterator[astore.Manager]:
    async with astore.Manager(tmp_path / "state") as manager:
        yield manager


def definition(path: Path | str | None, permissions: Permissions | None = None) -> PoolDef:
    return PoolDef(type="dir", name="p", target=Target(str(path) if path else None, permissions))


def mode(path: Path) -> int:
    return stat.S_IMODE(os.stat(path).st_mode)


def test_check() -> None:
    """A target path is needed, absolute and without ``..``; it is put in order; what is right stays the same."""
    backend = DirectoryBackend()
    for path in (None, "", "relative", "/a/../b", "/a\nb", "/a\0b"):
        with pytest.raises(astore.DefinitionError):
            backend.check(definition(path))
    checked = backend.check(definition("/a//b/"))
    assert checked.target.path == "/a/b"
    assert backend.check(checked) == checked
    assert backend.source_key(checked) == (("target path", "/a/b"),)
    kept = PoolDef(type="dir", name="p", source=Source(directory="/meaningless"), target=Target("/a"))
    assert backend.check(kept).source.directory == "/meaningless"


async def test_what_is_not_there(manager: astore.Manager, tmp_path: Path) -> None:
    """A folder that is missing, or is none, is said in words that help; its permissions are said as they are."""
    pool = await manager.define(definition(tmp_path / "missing"))
    with pytest.raises(astore.StorageError, match="does not exist: create it, or build the pool") as caught:
        await pool.start()
    assert caught.value.errno == errno.ENOENT
    (tmp_path / "missing").write_bytes(b"")
    with pytest.raises(astore.StorageError, match="is not a directory") as caught:
        await pool.start()
    assert caught.value.errno == errno.ENOTDIR
    for call in (pool.build, pool.delete):
        with pytest.raises(astore.StorageError, match=str(tmp_path / "missing")) as caught:
            await call()
        assert caught.value.errno == errno.ENOTDIR


async def test_building(manager: astore.Manager, tmp_path: Path) -> None:
    """Folders that are missing are made; what is there keeps what the definition does not speak of."""
    folder = tmp_path / "one" / "two" / "pool"
    pool = await manager.define(definition(folder))
    before = os.umask(0o077)
    try:
        await pool.build()
    finally:
        os.umask(before)
    assert mode(folder) == 0o711
    assert mode(tmp_path / "one") == 0o700
    folder.chmod(0o750)
    (folder / "kept").write_bytes(b"")
    await pool.start(build=True)
    assert mode(folder) == 0o750
    assert [volume.name for volume in pool.volumes] == ["kept"]


async def test_permissions(manager: astore.Manager, tmp_path: Path) -> None:
    """Mode and owner of the definition are given, to a folder that is there as well."""
    mine = (os.geteuid(), os.getegid())
    permissions = Permissions(mode=0o770, owner=mine[0], group=mine[1])
    for name, there in (("new", False), ("old", True)):
        folder = tmp_path / name
        if there:
            folder.mkdir(mode=0o700)
        pool = await manager.define(PoolDef(type="dir", name=name, target=Target(str(folder), permissions)))
        await pool.build()
        assert mode(folder) == 0o770
        st = os.stat(folder)
        assert (st.st_uid, st.st_gid) == mine


@pytest.mark.root
async def test_owners(manager: astore.Manager, tmp_path: Path) -> None:
    """Root may give a pool to whom the definition names."""
    pool = await manager.define(definition(tmp_path / "pool", Permissions(owner=12345, group=23456)))
    await pool.build()
    st = os.stat(tmp_path / "pool")
    assert (st.st_uid, st.st_gid, stat.S_IMODE(st.st_mode)) == (12345, 23456, 0o711)


async def test_a_build_that_fails_leaves_nothing(
    manager: astore.Manager, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Folders that were made for a build that failed, or was cancelled, are removed; those that were there are not."""
    folder = tmp_path / "one" / "two" / "pool"

    def refused(*_: int) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    pool = await manager.define(definition(folder, Permissions(mode=0o700, owner=os.geteuid() + 1)))
    with monkeypatch.context() as patched:
        patched.setattr("astore.backends.target.os.fchown", refused)
        with pytest.raises(astore.StorageError, match=f"cannot build {folder}: Operation not permitted"):
            await pool.build()
    assert not (tmp_path / "one").exists()
    assert pool.state == "inactive"
    (tmp_path / "one").mkdir()
    pool = await manager.define(definition(folder))
    for _ in range(20):
        task = asyncio.ensure_future(pool.build())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        assert list((tmp_path / "one").iterdir()) == []


async def test_a_cancelled_build_whose_folder_hangs(
    manager: astore.Manager, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not waited for; its thread removes what it made when it comes to it."""
    monkeypatch.setattr("astore.backends.target.CLEANUP_SECONDS", 0.05)
    gate = Gate()
    monkeypatch.setattr("astore.backends.target._set_permissions", gate)
    pool = await manager.define(definition(tmp_path / "one" / "pool"))
    task = asyncio.ensure_future(pool.build())
    await eventually(lambda: gate.inside)
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
    assert (tmp_path / "one" / "pool").exists()
    gate.open()
    await eventually(lambda: not (tmp_path / "one").exists(), "the removal of what was made")


async def test_a_dangling_link_is_in_the_way(manager: astore.Manager, tmp_path: Path) -> None:
    """A link that leads nowhere is not followed to make a folder somewhere else."""
    (tmp_path / "link").symlink_to("elsewhere")
    pool = await manager.define(definition(tmp_path / "link"))
    with pytest.raises(astore.StorageError, match="cannot build"):
        await pool.build()
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "state") == ["link"]


async def test_a_link_is_not_built_through(manager: astore.Manager, tmp_path: Path) -> None:
    """A target that is a symbolic link is refused in words, and what it leads to keeps its mode and owner."""
    (tmp_path / "other").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to("other")
    before = os.stat(tmp_path / "other")
    pool = await manager.define(definition(tmp_path / "link", Permissions(mode=0o777, owner=12345)))
    for call in (pool.build, lambda: pool.start(build=True)):
        with pytest.raises(
            astore.StorageError, match="it is a symbolic link: name the folder that it leads to"
        ) as caught:
            await call()
        assert caught.value.errno == errno.ELOOP
    after = os.stat(tmp_path / "other")
    assert (after.st_mode, after.st_uid, after.st_ctime_ns) == (before.st_mode, before.st_uid, before.st_ctime_ns)
    with pytest.raises(astore.StorageError) as caught:
        await pool.delete()
    assert caught.value.errno == errno.ENOTDIR
    assert (tmp_path / "other").is_dir()


async def test_links_above(manager: astore.Manager, tmp_path: Path, no_leaks: object) -> None:
    """Links of the administrator's above the folder are followed, as far as they lead somewhere; nothing is made by them."""
    (tmp_path / "real" / "deep").mkdir(parents=True)
    (tmp_path / "absolute").symlink_to(tmp_path / "real")
    (tmp_path / "relative").symlink_to("./real/deep/..")
    (tmp_path / "twice").symlink_to("relative/deep")
    (tmp_path / "dangling").symlink_to("real/nothing")
    (tmp_path / "round").symlink_to("round")
    for number, (link, place) in enumerate(
        {"absolute": "real", "relative": "real", "twice": "real/deep", "absolute/deep": "real/deep"}.items()
    ):
        folder = f"{link}/new{number}/pool"
        pool = await manager.define(PoolDef(type="dir", name=f"p{number}", target=Target(f"{tmp_path}/{folder}")))
        await pool.build()
        assert mode(tmp_path / place / f"new{number}" / "pool") == 0o711
    for link, number in (("dangling", errno.ENOENT), ("round", errno.ELOOP)):
        pool = await manager.define(definition(tmp_path / link / "one" / "pool"))
        with pytest.raises(astore.StorageError, match="cannot build") as caught:
            await pool.build()
        assert caught.value.errno == number
    assert not (tmp_path / "real" / "nothing").exists()


@pytest.mark.root
async def test_links_of_others_above(manager: astore.Manager, tmp_path: Path) -> None:
    """A link that somebody else has laid above the folder is not followed."""
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    os.chown(tmp_path / "link", 12345, 12345, follow_symlinks=False)
    pool = await manager.define(definition(tmp_path / "link" / "pool"))
    with pytest.raises(astore.StorageError, match="'link' is a symbolic link of user 12345, and is not followed"):
        await pool.build()
    assert list((tmp_path / "real").iterdir()) == []


@pytest.mark.parametrize("swapped", ["one", "pool"])
async def test_a_folder_that_is_swapped_for_a_link(
    manager: astore.Manager, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_leaks: object, swapped: str
) -> None:
    """Where a folder that was just made becomes a link, nothing is made or changed where that leads."""
    (tmp_path / "other").mkdir(mode=0o700)
    make = os.mkdir

    def swap(name: str, mode: int = 0o777, *, dir_fd: int | None = None) -> None:
        make(name, mode, dir_fd=dir_fd)
        if name == swapped:
            os.rmdir(name, dir_fd=dir_fd)
            os.symlink(tmp_path / "other", name, dir_fd=dir_fd)

    pool = await manager.define(definition(tmp_path / "one" / "pool", Permissions(mode=0o777)))
    monkeypatch.setattr("astore.backends.target.os.mkdir", swap)
    with pytest.raises(astore.StorageError, match="cannot build"):
        await pool.build()
    assert list((tmp_path / "other").iterdir()) == []
    assert mode(tmp_path / "other") == 0o700


async def test_a_parent_that_is_moved_meanwhile(
    manager: astore.Manager, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder above that becomes a link once it was looked at is not looked up again: the pool is made in the old one."""
    (tmp_path / "one").mkdir()
    (tmp_path / "other").mkdir()
    make = os.mkdir

    def move(name: str, mode: int = 0o777, *, dir_fd: int | None = None) -> None:
        if name == "pool":
            (tmp_path / "one").rename(tmp_path / "moved")
            (tmp_path / "one").symlink_to("other")
        make(name, mode, dir_fd=dir_fd)

    pool = await manager.define(definition(tmp_path / "one" / "pool"))
    monkeypatch.setattr("astore.backends.target.os.mkdir", move)
    await pool.build()
    assert mode(tmp_path / "moved" / "pool") == 0o711
    assert list((tmp_path / "other").iterdir()) == []


async def test_something_else_above(manager: astore.Manager, tmp_path: Path) -> None:
    """A file in the place of a folder above is named."""
    (tmp_path / "file").write_bytes(b"")
    pool = await manager.define(definition(tmp_path / "file" / "pool"))
    with pytest.raises(astore.StorageError, match="'file' is not a directory") as caught:
        await pool.build()
    assert caught.value.errno == errno.ENOTDIR


async def test_the_root_folder(manager: astore.Manager) -> None:
    """A pool may be all there is: nothing is made for it."""
    before = os.stat("/")
    await (await manager.define(definition("/"))).build()
    assert os.stat("/").st_mode == before.st_mode


async def test_deleting(manager: astore.Manager, tmp_path: Path) -> None:
    """Only an empty folder is removed; the definition stays."""
    folder = tmp_path / "pool"
    pool = await manager.define(definition(folder))
    await pool.build()
    (folder / "precious").write_bytes(b"")
    with pytest.raises(astore.StorageError, match="cannot delete") as caught:
        await pool.delete()
    assert caught.value.errno == errno.ENOTEMPTY
    assert (folder / "precious").exists()
    (folder / "precious").unlink()
    await pool.delete()
    assert not folder.exists()
    with pytest.raises(astore.StorageError) as caught:
        await pool.delete()
    assert caught.value.errno == errno.ENOENT
    assert manager.pools() == [pool]


async def test_targets_that_are_none() -> None:
    """Backends that build without having checked are told so."""
    for call in (build_target, delete_target):
        with pytest.raises(astore.DefinitionError, match="no target path"):
            await call(definition(None), None)  # type: ignore[arg-type]


async def test_a_lane_that_is_late(manager: astore.Manager, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder that cannot be made in time is a TimeoutError, and no word of the storage's."""

    async def late(*args: object, **kwargs: object) -> None:
        raise astore.LaneTimeoutError("too slow", lane="x", timeout=1)

    pool = await manager.define(definition(tmp_path / "pool"))
    monkeypatch.setattr("astore.lanes.lane.PoolLane.run", late)
    for call in (pool.build, pool.delete):
        with pytest.raises(TimeoutError, match="too slow"):
            await call()
    monkeypatch.undo()
