"""Dir pools are told of every kind of change, and a watched pool's snapshot is what a full refresh finds."""

from __future__ import annotations

import asyncio
import errno
import os
import time
from pathlib import Path

import asyncinotify
import pytest
from core_fakes import PATIENCE, eventually
from watching_support import by_another_process, dir_pool, same, true_volumes, watched

import astore
from astore.notices import FolderNotices
from astore.trees.local import LocalTree

MMAP = """python3 -c "
import mmap, os
fd = os.open('old', os.O_RDWR); view = mmap.mmap(fd, 4096); os.close(fd)
view[:4] = b'QFI\\xfb'; view.flush(); view.close()" """

CHANGES = {
    "make": "echo x > new",
    "make sparse": "truncate -s 1M new",
    "grow": "truncate -s 1M old",
    "append": "echo x >> old",
    "truncate": "truncate -s 0 old",
    "chmod": "chmod 600 old",
    "touch": "touch -d 2001-01-01 old",
    "rename": "mv old new",
    "rename in": "echo x > ../outside; mv ../outside new",
    "rename out": "mv old ../outside",
    "rename over": "echo longer > ../outside; mv ../outside old",
    "replace": "echo longer > .tmp; mv .tmp old",
    "exchange": "mv old a; mv other old; mv a other",
    "link": "ln old new",
    "symlink": "ln -s old new",
    "delete": "rm old",
    "delete and make": "rm old; truncate -s 5M old",
    "mmap": MMAP,
    "dd into": "dd if=/dev/zero of=old bs=4096 seek=3 count=1 conv=notrunc status=none",
    "punch": "fallocate -p -o 0 -l 4096 old",
    "qemu-img": "qemu-img create -q -f qcow2 new 1G",
    "qemu-img resize": "qemu-img create -q -f qcow2 old 1G; qemu-img resize -q old 2G",
    "overlay": "qemu-img create -q -f raw base 1M; qemu-img create -q -f qcow2 -b base -F raw new",
    "cp --reflink": "cp --reflink=auto old new",
    "a folder": "mkdir new",
    "through one of two names": "ln old new; sleep 0.1; truncate -s 1M old",
    "all gone": "rm old other",
    "acl": "setfattr -n user.astore.test -v x old; chmod 640 old",
    "chown": "chown 12:34 old",
    "the folder's mode": "chmod 700 .; echo x > new",
}


@pytest.mark.parametrize("change", CHANGES)
async def test_every_kind_of_change(
    manager: astore.Manager, pool: astore.Pool, folder: Path, tmp_path: Path, change: str
) -> None:
    """What another process does is seen without being asked for, and told by the same events as by a refresh."""
    await by_another_process("head -c 8192 /dev/zero > old; echo 1 > other", folder)
    async with manager.watch():
        await watched(pool)
        await eventually(lambda: len(pool.volumes) == 2, "the files of before")
        async with manager.events(kinds={astore.VolumeEvent}) as events:
            await by_another_process(CHANGES[change], folder)
            true = await true_volumes(folder, tmp_path / "oracle")
            await eventually(lambda: same(pool.snapshot, true), f"{change}: {list(true)}")
            if change != "symlink":
                assert events.receive_nowait() is not None


async def test_pushed_by_inotify(manager: astore.Manager, pool: astore.Pool) -> None:
    """A pool says how it learns of changes while it is watched, and only then."""
    assert pool.info.freshness is None
    async with manager.watch():
        await watched(pool)
        assert pool.info.freshness == astore.Freshness("inotify", pushed=True, bound=1.0)
    assert pool.info.freshness is None


async def test_what_is_written_all_the_time(manager: astore.Manager, pool: astore.Pool, folder: Path) -> None:
    """A file that is written to all the time is told of about once a second, and of nothing else is said anything."""
    await by_another_process("echo x > busy; echo y > quiet", folder)
    async with manager.watch():
        await watched(pool)
        await eventually(lambda: len(pool.volumes) == 2, "both")
        async with manager.events(kinds={astore.VolumeEvent}) as events:
            began, writes, told = time.monotonic(), 0, list[astore.Event]()
            with (folder / "busy").open("ab", buffering=0) as file:
                while time.monotonic() - began < 3 or writes < 50 or len(told) < 2:
                    assert time.monotonic() - began < PATIENCE, f"{len(told)} were told of {writes} writes"
                    file.write(b"x" * 100)
                    writes += 1
                    await asyncio.sleep(0.002)
                    told += [event] if (event := events.receive_nowait()) is not None else []
            size = (folder / "busy").stat().st_size
            await eventually(lambda: pool.volume("busy").info.physical == size, "the last size")
            took = time.monotonic() - began
        while (event := events.receive_nowait()) is not None:
            told.append(event)
        assert {event.name for event in told if isinstance(event, astore.VolumeEvent)} == {"busy"}
        assert len(told) <= took + 3


async def test_refresh_of_what_has_not_changed(manager: astore.Manager, pool: astore.Pool, folder: Path) -> None:
    """While a pool is told of everything, refresh() lists nothing; after a change it does, without waiting for the notice."""
    await by_another_process("for i in $(seq 50); do echo x > f$i; touch -d 2001-01-01 f$i; done", folder)
    async with manager.watch():
        await watched(pool)
        await asyncio.sleep(1.1)  # records of files that changed a moment ago are not settled
        await pool.refresh()
        listed = pool.snapshot
        outcome = await pool.refresh()
        assert outcome.unchanged == 50
        assert pool.snapshot.has_records_of(listed)
        assert pool.snapshot.taken_at > listed.taken_at
        assert pool.snapshot.generation > listed.generation
        for index in range(20):
            (folder / f"new{index}").write_text("x")
            outcome = await pool.refresh()
            assert f"new{index}" in pool.snapshot.by_name
        await pool.refresh(full=True)
        assert len(pool.volumes) == 70


async def test_refreshes_after_a_watch(manager: astore.Manager, pool: astore.Pool, folder: Path) -> None:
    """Once nobody listens any more, each refresh lists the folder."""
    async with manager.watch():
        await watched(pool)
    for turn in range(4):
        name = f"f{turn}"
        await by_another_process(f"echo x > {name}; touch -d 2001-01-01 {name}; sleep 1.1", folder)  # settled
        assert (await pool.refresh()).added == (name,)
        assert (await pool.refresh()).added == ()


async def test_a_link_that_leads_elsewhere(manager: astore.Manager, tmp_path: Path) -> None:
    """A pool on a link that is turned to another folder: the next refresh finds that one, which is watched from then on."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    (tmp_path / "two" / "a").write_text("x")
    (tmp_path / "link").symlink_to("one")
    pool = await dir_pool(manager, tmp_path / "link")
    async with manager.watch():
        await watched(pool)
        await asyncio.sleep(1.1)
        await pool.refresh()
        (tmp_path / "new").symlink_to("two")
        (tmp_path / "new").rename(tmp_path / "link")
        await pool.refresh()
        assert list(pool.snapshot.by_name) == ["a"]
        (tmp_path / "two" / "b").write_text("x")
        await eventually(lambda: "b" in pool.snapshot.by_name, "what is made in the other folder")


async def test_replaced_while_the_watch_begins(
    manager: astore.Manager, pool: astore.Pool, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder that takes the other's place after that one was opened to be watched is watched soon."""
    open_folder, calls = LocalTree.open_folder, list[int]()

    def opened(tree: LocalTree) -> int:
        found = open_folder(tree)
        calls.append(found)
        if len(calls) == 1:
            folder.rename(folder.parent / "away")
            folder.mkdir()
        return found

    monkeypatch.setattr(LocalTree, "open_folder", opened)
    async with manager.watch():
        await eventually(lambda: len(calls) >= 2, "another watch")
        await watched(pool)
        (folder / "new").write_text("x")
        await eventually(lambda: "new" in pool.snapshot.by_name, "what is made in the folder of now")


@pytest.mark.parametrize("make", ["ln -s ../target entry", "ln ../target entry"])
async def test_what_may_change_without_a_notice(
    manager: astore.Manager, pool: astore.Pool, folder: Path, make: str
) -> None:
    """A file with another name elsewhere changes without a notice: refresh() looks."""
    target = folder.parent / "target"
    target.write_text("x")
    await by_another_process(make, folder)
    async with manager.watch():
        await watched(pool)
        await eventually(lambda: len(pool.volumes) == 1, "the entry")
        await asyncio.sleep(1.1)
        await pool.refresh()
        target.write_text("longer")
        await pool.refresh()
        assert pool.volume("entry").info.physical == 6


async def test_the_folder_goes_and_comes(manager: astore.Manager, pool: astore.Pool, folder: Path) -> None:
    """A folder that is moved away makes the pool inaccessible at once; it is tried again, and watched again."""
    (folder / "a").write_text("x")
    async with manager.watch(), manager.events(kinds={astore.PoolRetry}) as retries:
        await watched(pool)
        away = folder.rename(folder.parent / "away")
        await eventually(lambda: pool.state is astore.PoolState.INACCESSIBLE, "the folder is gone")
        await eventually(lambda: pool.info.freshness is not None and pool.info.freshness.next_try, "the next try")
        event = await anext(retries)
        assert isinstance(event, astore.PoolRetry)
        assert (event.attempt, event.pool) == (1, "images")
        assert event.at > event.time
        away.rename(folder)
        await eventually(lambda: pool.state is astore.PoolState.RUNNING, "the folder is back")
        await watched(pool)
        (folder / "b").write_text("x")
        await eventually(lambda: "b" in pool.snapshot.by_name, "b")


async def test_a_folder_above_is_moved(manager: astore.Manager, tmp_path: Path) -> None:
    """So it is with the folder's parents."""
    folder = tmp_path / "above" / "between" / "images"
    folder.mkdir(parents=True)
    pool = await dir_pool(manager, folder)
    async with manager.watch():
        await watched(pool)
        (tmp_path / "above").rename(tmp_path / "away")
        await eventually(lambda: pool.state is astore.PoolState.INACCESSIBLE, "the folder is gone")
        (tmp_path / "away").rename(tmp_path / "above")
        await eventually(lambda: pool.state is astore.PoolState.RUNNING, "the folder is back")


async def test_another_folder_in_its_place(manager: astore.Manager, pool: astore.Pool, folder: Path) -> None:
    """A folder that took the place of the old one is watched."""
    (folder / "old").write_text("x")
    async with manager.watch():
        await watched(pool)
        folder.rename(folder.parent / "away")
        folder.mkdir()
        (folder / "new").write_text("x")
        await eventually(lambda: list(pool.snapshot.by_name) == ["new"], "the new folder")
        await watched(pool)
        (folder / "newer").write_text("x")
        await eventually(lambda: "newer" in pool.snapshot.by_name, "what is made in it")


@pytest.mark.root
async def test_mounted_over_and_unmounted(manager: astore.Manager, pool: astore.Pool, folder: Path) -> None:
    """What is mounted over the folder is seen at once, and so is its end."""
    (folder / "below").write_text("x")
    async with manager.watch():
        await watched(pool)
        await by_another_process(f"mount -t tmpfs none {folder}", folder.parent)
        await eventually(lambda: not pool.volumes, "the file system above")
        await by_another_process("echo x > above", folder)
        await eventually(lambda: list(pool.snapshot.by_name) == ["above"], "a file in it")
        await by_another_process(f"umount {folder}", folder.parent)
        await eventually(lambda: list(pool.snapshot.by_name) == ["below"], "the folder below")
        await by_another_process("echo x > more", folder)
        await eventually(lambda: "more" in pool.snapshot.by_name, "a file in that")


async def test_one_instance_for_all_pools(manager: astore.Manager, tmp_path: Path) -> None:
    """However many pools there are, the kernel's side is one inotify instance; nothing is left of it afterwards."""

    def held() -> list[str]:
        links = []
        for fd in os.listdir("/proc/self/fd"):
            try:
                links.append(os.readlink(f"/proc/self/fd/{fd}"))
            except OSError:
                continue
        return [link for link in links if "inotify" in link]

    folders = [tmp_path / f"p{index}" for index in range(60)]
    pools = []
    for index, folder in enumerate(folders):
        folder.mkdir()
        pools.append(await dir_pool(manager, folder, f"p{index}"))
    before = len(held())
    async with manager.watch():
        for pool in pools:
            await watched(pool)
        assert len(held()) == before + 1
        (folders[17] / "x").write_text("x")
        await eventually(lambda: pools[17].volumes, "the change of one")
        assert not any(pool.volumes for pool in pools if pool is not pools[17])
    assert len(held()) == before


@pytest.mark.parametrize("limit", ["watches", "instances"])
async def test_limits_of_the_machine(
    manager: astore.Manager, pool: astore.Pool, folder: Path, monkeypatch: pytest.MonkeyPatch, limit: str
) -> None:
    """Where the kernel has no more of what it takes, the pool is polled, and says why."""

    def full(*_: object, **__: object) -> None:
        number = errno.ENOSPC if limit == "watches" else errno.EMFILE
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(asyncinotify.Inotify, "add_watch" if limit == "watches" else "__init__", full)
    async with manager.watch(max_staleness=0.3):
        await watched(pool, "polled")
        freshness = pool.info.freshness
        assert freshness is not None
        assert f"fs.inotify.max_user_{limit}" in freshness.note
        assert not freshness.pushed
        assert freshness.bound < 30
        (folder / "x").write_text("x")
        await eventually(lambda: pool.volumes, "what polling finds")


async def test_overflow(manager: astore.Manager, pool: astore.Pool, folder: Path, tmp_path: Path) -> None:
    """When the kernel's queue overflows, all pools are looked at, and nothing is missed."""
    async with manager.watch():
        await watched(pool)
        notices = next(iter(FolderNotices._of_loops.values()))
        assert notices._inotify is not None
        asyncio.get_running_loop().remove_reader(notices._inotify.fd)
        for index in range(9000):  # two or three notices each; the queue holds 16,384
            (folder / f"f{index % 3000}").unlink(missing_ok=True)
            os.close(os.open(folder / f"f{index % 3000}", os.O_CREAT | os.O_WRONLY))
        notices._begin()
        true = await true_volumes(folder, tmp_path / "oracle")
        assert len(true) == 3000
        await eventually(lambda: same(pool.snapshot, true), "the end")
        await watched(pool)
