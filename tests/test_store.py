"""The files of a LocalStore: whole or not there, whoever is killed, whoever else writes, whatever is in them."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import random
import stat
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from core_fakes import cancelling, folder_locked

from astore import (
    EntryError,
    InvalidStateError,
    Manager,
    Permissions,
    Place,
    PoolDef,
    Reference,
    ReferenceKind,
    Snapshot,
    StoreError,
    Target,
    VolumeInfo,
    VolumeType,
)
from astore.lanes import Lanes
from astore.store import run_files
from astore.store.contract import Contents, LastSeen, OutdatedError, Run, Version
from astore.store.local import LocalStore
from astore.store.local_files import LockedFolder, default_state_dir
from astore.store.run_files import SNAPSHOT_FORMAT, RunFiles, SnapshotFiles, boot_id

UUID = "d50c93cb-9a11-466f-96d1-0f4fafe977df"


def pool(name: str = "a", path: str = "/x") -> PoolDef:
    return PoolDef(type="dir", name=name, uuid=UUID, target=Target(path))


def run(name: str = "a", started_at: float = 1.5) -> Run:
    return Run(pool(name), UUID, started_at)


@pytest.fixture
def lanes() -> Iterator[Lanes]:
    lanes = Lanes()
    yield lanes
    lanes.close()


@pytest.fixture
async def connect(lanes: Lanes, tmp_path: Path) -> Callable[..., Awaitable[LocalStore]]:
    """Opens stores of a folder; by default that of the test."""

    async def connect(folder: Path = tmp_path / "state") -> LocalStore:
        store = LocalStore(folder)
        await store.open(lanes.lane(store.name))
        return store

    return connect


Connect = Callable[..., Awaitable[LocalStore]]


@pytest.fixture
async def store(connect: Connect) -> LocalStore:
    return await connect()


async def read(store: LocalStore) -> Contents:
    found = await store.read()
    assert found is not None
    return found


async def put(store: LocalStore, definition: PoolDef) -> Version:
    return await store.put(definition, (await read(store)).revision)


async def definitions(store: LocalStore) -> list[PoolDef]:
    return [stored.definition for stored in (await read(store)).pools]


async def test_not_opened(tmp_path: Path) -> None:
    """A store that was lent no lane yet says so."""
    with pytest.raises(InvalidStateError, match="was not opened"):
        await LocalStore(tmp_path).read()


async def test_nothing_is_there_at_first(store: LocalStore) -> None:
    """A folder that does not exist has no pools, and reading does not make it."""
    found = await read(store)
    assert (found.pools, found.damaged, found.runs, found.lost) == ((), (), {}, True)
    assert (await store.current("a")).lost
    assert await store.load_snapshots({"a": 1.5}) == {}
    assert not store.folder.exists()


async def test_whose_files_they_are(store: LocalStore) -> None:
    """Folders and files are the owner's alone, and an autostart mark is a link."""
    await put(store, pool())
    await store.set_autostart("a", True)
    await store.begin_run(run(), persistent=True)
    await store.save_snapshot("a", 1.5, LastSeen(Snapshot.EMPTY, 1.5, None))
    assert (store.folder / "autostart" / "a.xml").resolve() == store.folder / "pools" / "a.xml"
    paths = [store.folder, *store.folder.rglob("*")]
    assert len(paths) == 9
    for path in paths:
        if not path.is_symlink():
            assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path
    assert not (await read(store)).lost


DAMAGE = {
    "cut": b"<pool",
    "named otherwise": pool("other").to_xml().encode(),
    "empty": b"",
    "binary": bytes(range(256)),
    "large": b" " * (5 << 20),
}
DAMAGE["no uuid"] = PoolDef(type="dir", name="no uuid", target=Target("/x")).to_xml().encode()


@pytest.mark.parametrize("name", DAMAGE)
async def test_damaged_files_are_reported_and_left(store: LocalStore, name: str) -> None:
    """The others are loaded all the same."""
    await put(store, pool())
    path = store.folder / "pools" / f"{name}.xml"
    path.write_bytes(DAMAGE[name])
    found = await read(store)
    assert [stored.definition.name for stored in found.pools] == ["a"]
    assert [(damaged.name, damaged.path) for damaged in found.damaged] == [(name, str(path))]
    assert found.damaged[0].error
    assert path.read_bytes() == DAMAGE[name]


async def test_odd_things_in_the_folder(store: LocalStore) -> None:
    """A folder, a link to nowhere or itself, another suffix, a name that is no Unicode: none of them stops the rest."""
    await put(store, pool())
    folder = store.folder / "pools"
    (folder / "dir.xml").mkdir()
    (folder / "link.xml").symlink_to("nowhere")
    (folder / "loop.xml").symlink_to("loop.xml")
    (folder / "readme.txt").write_text("x")
    (folder / os.fsdecode(b"\xff.xml")).write_text("x")
    os.mkfifo(folder / "fifo.xml")
    found = await read(store)
    assert [stored.definition.name for stored in found.pools] == ["a"]
    assert [damaged.name for damaged in found.damaged] == ["dir", "fifo", "link", "loop"]
    assert "its link leads nowhere" in found.damaged[2].error
    await store.put(pool("b"), found.revision)
    for damaged in found.damaged[2:]:
        assert (await store.current(damaged.name)).version == damaged.version
        await store.remove(damaged.name, damaged.version)
    assert [damaged.name for damaged in (await read(store)).damaged] == ["dir", "fifo"]


async def test_a_link_that_is_repaired(store: LocalStore, tmp_path: Path) -> None:
    """What a link lacked may come into its place anywhere: a read that wants news only finds it."""
    await put(store, pool())
    (store.folder / "pools" / "b.xml").symlink_to(tmp_path / "later.xml")
    found = await read(store)
    assert [damaged.name for damaged in found.damaged] == ["b"]
    assert await store.read(found.revision) is None
    (tmp_path / "later.xml").write_text(pool("b").to_xml())
    again = await store.read(found.revision)
    assert again is not None
    assert [stored.definition.name for stored in again.pools] == ["a", "b"]


async def test_edited_in_place(store: LocalStore) -> None:
    """What an editor changed in place is seen by who reads everything anew."""
    await put(store, pool())
    seen = (await read(store)).revision
    (store.folder / "pools" / "a.xml").write_text(pool(path="/edited").to_xml())
    assert await store.read(seen) is None
    assert await definitions(store) == [pool(path="/edited")]


async def test_own_changes_are_no_news(store: LocalStore, lanes: Lanes) -> None:
    """A revision that has advanced by the store's own changes leaves out those alone, even within a tick of the kernel."""
    other = LocalStore(store.folder)
    await other.open(lanes.lane("other"))
    await put(store, pool("b"))  # this makes the folders
    seen = (await read(store)).revision
    for change in (
        lambda: put(store, pool()),
        lambda: store.set_autostart("a", True),
        lambda: store.begin_run(run(), persistent=True),
    ):
        await change()
        assert await store.read(seen) is not None
        seen = store.advanced(seen)
        assert await store.read(seen) is None
    for _ in range(20):
        await store.put(pool("b"), seen)
        seen = store.advanced(seen)
        await put(other, pool("c"))
        assert store.advanced(seen) == seen
        with pytest.raises(OutdatedError):
            await store.put(pool("b"), seen)
        found = await store.read(seen)
        assert found is not None
        await store.put(pool("b"), found.revision)
        (store.folder / "pools" / "c.xml").unlink()
        assert await store.read(store.advanced(found.revision)) is not None
        seen = (await read(store)).revision


async def test_leftovers_of_the_killed_are_removed(store: LocalStore) -> None:
    """Half-written files that are old; those of a writer at work stay."""
    await put(store, pool())
    old, new = (store.folder / "pools" / f".{name}.tmp" for name in ("old", "new"))
    for path in (old, new):
        path.write_text("<pool")
    os.utime(old, (0, 0))
    assert await definitions(store) == [pool()]
    assert not old.exists()
    assert new.exists()


async def begin_in_another_boot(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave what a run of an earlier boot leaves."""
    with monkeypatch.context() as earlier:
        earlier.setattr(run_files, "boot_id", lambda: "another boot")
        await store.begin_run(run(), persistent=False)


@pytest.mark.parametrize("content", [None, b"", b"\xc1", b"\x93\x01\x02\x03"])
async def test_stale_run_state(store: LocalStore, content: bytes | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """What an earlier boot left, or what cannot be understood, is not returned and not kept."""
    await begin_in_another_boot(store, monkeypatch)
    path = store.folder / "run" / "a.run"
    if content is not None:
        path.write_bytes(content)
    assert (await store.current("a")).started_at is None
    assert (await read(store)).runs == {}
    assert not path.exists()


BASE = Reference(
    *(ReferenceKind.BACKING, "b", "raw", "/pool/b", "is odd"),
    Place("/pool/b", "gluster:id", 1 << 63, ((1, 2), ("gluster:id", 3))),
)


def snapshot(count: int) -> Snapshot:
    volumes = {}
    for index in range(count):
        key = f"/pool/v{index:06}"
        volumes[f"v{index:06}"] = VolumeInfo(
            f"v{index:06}", VolumeType.FILE, key, key if index else "other", index, 2, 3, "qcow2", 4, 5, 6, 1 << 63, 8, 9, 10,
            (BASE,), "1.1", ("lazy_refcounts",), None, 65_536, 1 << 63, "raw", "vmdk", ("bitmaps",),
        )  # fmt: skip
    errors = (EntryError("bad", "why", 5), EntryError("fifo", "it is", None, True))
    return Snapshot(
        volumes,
        generation=7,
        taken_at=1.5,
        capacity=1,
        allocation=2,
        available=3,
        errors=errors,
        unsettled=frozenset({"v000000"}),
        permissions=Permissions(0o750, 1, 2, "label"),
        folder=Place("/pool", 1, 2, ((1, 1),)),
    )


@pytest.fixture
def snapshots(tmp_path: Path) -> SnapshotFiles:
    """Of a folder of its own."""
    (tmp_path / "run").mkdir(mode=0o700)
    return SnapshotFiles(LockedFolder(tmp_path))


def test_snapshots(snapshots: SnapshotFiles) -> None:
    """A snapshot comes back equal, its paths the same objects as its keys."""
    wanted = snapshot(3)
    snapshots.write("a", 1.5, LastSeen(wanted, 5.0, "why"))
    seen = snapshots.read("a")
    assert seen is not None
    assert (seen.since, seen.error) == (5.0, "why")
    found = seen.snapshot
    for field in (
        *("volumes", "generation", "taken_at", "capacity", "allocation", "available"),
        *("errors", "unsettled", "permissions", "folder"),
    ):
        assert getattr(found, field) == getattr(wanted, field), field
    assert found.volumes[0].path == "other"
    assert found.volumes[1].path is found.volumes[1].key
    assert snapshots.read("a", 1.5) is not None
    assert snapshots.read("a", 2.0) is None


def test_snapshots_that_cannot_be_understood(snapshots: SnapshotFiles, tmp_path: Path) -> None:
    """Any byte changed, or any length: a snapshot or None, never an exception."""
    snapshots.write("a", 1.5, LastSeen(snapshot(3), 5.0, None))
    path = tmp_path / "run" / "a.snapshot"
    data = path.read_bytes()
    rng = random.Random(1)
    for _ in range(500):
        broken = bytearray(data)
        broken[rng.randrange(len(broken))] = rng.randrange(256)
        path.write_bytes(bytes(broken[: rng.choice((len(broken), rng.randrange(len(broken))))]))
        snapshots.read("a")
    assert data[1] == SNAPSHOT_FORMAT
    path.write_bytes(data[:1] + bytes([SNAPSHOT_FORMAT - 1]) + data[2:])
    assert snapshots.read("a") is None


def test_a_lock_that_is_not_to_be_had(tmp_path: Path) -> None:
    """Between threads and between processes: an error in words after the deadline."""
    folder, other = LockedFolder(tmp_path / "state"), LockedFolder(tmp_path / "state")
    with folder.locked():
        with pytest.raises(StoreError, match="locked"), other.locked(timeout=0.05):
            pass
        with pytest.raises(StoreError, match="locked"), folder.locked(timeout=0.05):
            pass
    with other.locked(timeout=5):
        pass


async def test_failures_are_said_and_change_nothing(connect: Connect, store: LocalStore, tmp_path: Path) -> None:
    """A state folder that is a file, and a folder in a definition's place."""
    (tmp_path / "file").write_text("x")
    on_a_file = await connect(tmp_path / "file")
    with pytest.raises(StoreError, match="file"):
        await on_a_file.read()
    seen = (await read(store)).revision
    with pytest.raises(StoreError, match="file"):
        await on_a_file.put(pool(), seen)
    await put(store, pool())
    (store.folder / "pools" / "b.xml").mkdir()
    with pytest.raises(StoreError, match=r"b\.xml"):
        await put(store, pool("b"))
    version = (await store.current("b")).version
    assert version is not None
    with pytest.raises(StoreError, match=r"b\.xml"):
        await store.remove("b", version)
    assert not list(store.folder.rglob("*.tmp"))


@pytest.mark.root
async def test_a_full_disk(connect: Connect, tmp_path: Path) -> None:
    """ENOSPC is an error in words; the old definition is whole."""
    folder = tmp_path / "small"
    folder.mkdir()
    await asyncio.to_thread(subprocess.run, ["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(folder)], check=True)
    try:
        store = await connect(folder / "state")
        await put(store, pool())
        with pytest.raises(StoreError, match="space"):
            await put(store, pool(path="/" + "/".join("y" * 200 for _ in range(1000))))
        assert await definitions(store) == [pool()]
    finally:
        await asyncio.to_thread(subprocess.run, ["umount", str(folder)], check=True)


PUT_FOR_EVER = f"""
import asyncio, sys
from astore import PoolDef, Target
from astore.lanes import Lanes
from astore.store.local import LocalStore

async def main():
    store, number = LocalStore(sys.argv[1]), 0
    await store.open(Lanes().lane("store"))
    while True:
        number += 1
        seen = (await store.read()).revision
        await store.put(PoolDef(type="dir", name="p0", uuid={UUID!r}, target=Target("/" + "x" * (number % 3000))), seen)

asyncio.run(main())
"""


PLACES = ["", "pools", "autostart", "run"]


async def refused(connect: Connect, match: str) -> None:
    """No way to read or to change the state folder is left, and the error says what to do."""
    store, seen = await connect(), (await read(await connect(Path("/nowhere/at/all")))).revision
    version: Any = None
    calls: list[Callable[[], Awaitable[object]]] = [
        store.read,
        lambda: store.put(pool("b"), seen),
        lambda: store.remove("a", version),
        lambda: store.set_autostart("a", True),
        lambda: store.begin_run(run(), persistent=True),
    ]
    for call in calls:
        with pytest.raises(StoreError, match=match) as caught:
            await call()
        assert caught.value.errno == errno.EPERM


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("mode", [0o777, 0o770, 0o702])
async def test_a_folder_that_others_may_write(connect: Connect, store: LocalStore, place: str, mode: int) -> None:
    """Refused, in words that say what to do, before anything is read, removed or written there; then used again."""
    await put(store, pool())
    (store.folder / "run" / "old.tmp").touch()
    os.utime(store.folder / "run" / "old.tmp", (0, 0))
    before = sorted(store.folder.rglob("*"))
    (store.folder / place).chmod(mode)
    await refused(connect, rf"{place} may be written by other users \(its mode is 0{mode:o}\).*chmod go-w")
    assert sorted(store.folder.rglob("*")) == before
    assert await store.load_snapshots({"a": 1.5}) == {}
    (store.folder / place).chmod(0o755)
    assert await definitions(await connect()) == [pool()]


@pytest.mark.root
@pytest.mark.parametrize("place", PLACES)
async def test_a_folder_of_somebody_else(connect: Connect, store: LocalStore, place: str) -> None:
    """Refused by the name of its owner, whatever its mode."""
    await put(store, pool())
    os.chown(store.folder / place, 12345, -1)
    await refused(connect, f"{place} belongs to user 12345, .*chown")


@pytest.mark.root
async def test_a_folder_of_root(connect: Connect, store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """What root has made is good for another user as well, as far as he may read it."""
    await put(store, pool())
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    assert await definitions(await connect()) == [pool()]


async def test_a_sticky_folder(connect: Connect, tmp_path: Path) -> None:
    """A folder such as /tmp will do, where nobody can touch what is another's; the folders in it are astore's alone."""
    tmp_path.chmod(0o1777)
    store = await connect(tmp_path)
    await put(store, pool())
    assert await definitions(store) == [pool()]
    (tmp_path / "pools").chmod(0o1777)
    with pytest.raises(StoreError, match="pools may be written by other users"):
        await store.read()


@pytest.mark.parametrize("foreign", [False, pytest.param(True, marks=pytest.mark.root)])
async def test_files_that_others_may_write(connect: Connect, store: LocalStore, foreign: bool) -> None:
    """A definition is damaged, a run cannot be told, a snapshot is none; the other pools are served. Repaired, all is well."""

    def spoil(path: Path) -> None:
        path.chmod(0o666)
        if foreign:
            path.chmod(0o600)
            os.chown(path, 12345, -1)

    runs = {name: Run(pool(name), UUID[:-1] + name, 1.5) for name in ("a", "b")}
    for name, active in runs.items():
        await put(store, msgspec.structs.replace(active.definition, uuid=active.uuid))
        await store.begin_run(active, persistent=True)
        await store.save_snapshot(name, 1.5, LastSeen(Snapshot.EMPTY, 1.5, None))
    folder = store.folder
    spoilt = [folder / "pools" / "a.xml", folder / "run" / "a.run", folder / "run" / "a.snapshot"]
    for path in spoilt:
        spoil(path)
    again = await connect()
    found = await read(again)
    assert [stored.definition.name for stored in found.pools] == ["b"]
    ((name, error),) = [(damaged.name, damaged.error) for damaged in found.damaged]
    assert name == "a"
    assert ("belongs to user 12345" if foreign else "may be written by other users") in error
    assert (set(found.runs), found.unknown) == ({"b"}, {"a"})
    assert set(await again.load_snapshots({"a": 1.5, "b": 1.5})) == {"b"}
    with pytest.raises(StoreError):
        await again.current("a")
    assert await again.read(found.revision) is None
    for path in spoilt:
        os.chown(path, os.geteuid(), -1)
        path.chmod(0o600)
    repaired = await again.read(found.revision)
    assert repaired is not None
    assert (len(repaired.pools), repaired.runs) == (2, runs)
    (folder / "lock").chmod(0o666)
    with pytest.raises(StoreError, match="lock may be written by other users"):
        await put(again, pool())


async def test_a_manager_says_so(tmp_path: Path) -> None:
    """A Manager is not even entered on a folder that others may write; the folder stays as it is."""
    (tmp_path / "state").mkdir()
    (tmp_path / "state").chmod(0o777)
    with pytest.raises(StoreError, match="state may be written by other users"):
        async with Manager(tmp_path / "state"):
            pass
    assert list((tmp_path / "state").iterdir()) == []
    (tmp_path / "state").chmod(0o700)
    async with Manager(tmp_path / "state"):
        pass


async def test_kill_in_the_middle(store: LocalStore) -> None:
    """However often a writer is killed, a definition is one whole version, and the next writer gets the lock."""
    await put(store, pool("p0"))
    for _ in range(5):
        (before,) = await definitions(store)
        process = await asyncio.create_subprocess_exec(sys.executable, "-c", PUT_FOR_EVER, str(store.folder))
        try:
            async with asyncio.timeout(60):
                while await definitions(store) == [before]:
                    assert process.returncode is None
                    await asyncio.sleep(0.01)
        finally:
            process.kill()
            await process.wait()
        found = await read(store)
        assert not found.damaged
        assert found.pools[0].definition.target.path.strip("x") == "/"
        await put(store, pool("p0"))


def test_where_state_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Root's is the machine's, others' their own."""
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert default_state_dir() == Path("/var/lib/astore")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert default_state_dir().name == "astore"


def test_without_a_boot_id(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where proc does not tell, every boot is the same."""
    boot_id.cache_clear()
    monkeypatch.setattr(Path, "read_text", lambda self: (_ for _ in ()).throw(OSError()))
    assert boot_id() == ""
    monkeypatch.undo()
    boot_id.cache_clear()
    assert boot_id()


def test_damaged_run_state(tmp_path: Path) -> None:
    """Any byte changed: the pool is not active, and nobody is kept from reading the others."""
    (tmp_path / "run").mkdir(mode=0o700)
    runs, path = RunFiles(LockedFolder(tmp_path)), tmp_path / "run" / "a.run"
    runs.write(run())
    data = path.read_bytes()
    rng = random.Random(2)
    for _ in range(2000):
        broken = bytearray(data)
        broken[rng.randrange(len(broken))] = rng.randrange(256)
        path.write_bytes(bytes(broken))
        runs.read()
    path.unlink(missing_ok=True)
    path.mkdir()
    runs.write(run("b"))
    assert runs.read() == ({"b": run("b")}, {})


async def test_a_run_that_begins_while_runs_are_read(
    connect: Connect, store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is left of an earlier boot is removed, but not what another process has put into its place meanwhile."""
    await begin_in_another_boot(store, monkeypatch)
    find, others = RunFiles.find, RunFiles(LockedFolder(store.folder))

    def found_late(runs: RunFiles, name: str) -> Run | None:
        found = find(runs, name)
        others.write(run())
        return found

    with monkeypatch.context() as slowly:
        slowly.setattr(RunFiles, "find", found_late)
        assert (await read(store)).runs == {}
    assert (await read(store)).runs == {"a": run()}


async def test_run_state_that_cannot_be_read_now(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Told, and not taken for the end of the pool."""
    await store.begin_run(run(), persistent=False)

    def fail(*_: object) -> bytes:
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as failing:
        failing.setattr(run_files, "read_whole", fail)
        found = await read(store)
        assert (found.runs, found.unknown) == ({}, {"a"})
    assert (await read(store)).runs == {"a": run()}


async def test_a_run_that_cannot_be_ended(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder that cannot be written is told before anything is let go; a folder that is gone has no runs."""
    await store.begin_run(run(), persistent=False)
    await store.check_end_run("a")
    with monkeypatch.context() as readonly:
        readonly.setattr(os, "access", lambda *_: False)
        with pytest.raises(StoreError) as caught:
            await store.check_end_run("a")
        assert caught.value.errno == errno.EACCES
        await store.check_end_run("b")
    store.folder.rename(store.folder.parent / "elsewhere")
    await store.check_end_run("a")
    await store.end_run("a", 1.5)
    assert (await store.current("a")).lost


CHANGES: dict[str, Callable[[LocalStore, Contents], Awaitable[object]]] = {
    "put": lambda store, found: store.put(pool(path="/other"), found.revision),
    "remove": lambda store, found: store.remove("a", found.pools[0].version),
    "autostart": lambda store, found: store.set_autostart("a", True),
    "begin": lambda store, found: store.begin_run(run(), persistent=True),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("here", [True, False])
async def test_given_up_while_it_waits_for_the_lock(store: LocalStore, lanes: Lanes, change: str, here: bool) -> None:
    """A change that is cancelled while somebody else has the lock is not made later; threads and processes alike."""
    await put(store, pool())
    before = await read(store)
    files = sorted(store.folder.rglob("*"))
    holder: contextlib.AbstractContextManager[object] = (
        contextlib.nullcontext() if here else folder_locked(store.folder)
    )
    rivals: list[asyncio.Future[object]] = []
    with holder:
        if here:  # another change of this store has the lock's thread side, and waits for the files'
            with folder_locked(store.folder):
                rivals = [asyncio.ensure_future(store.set_autostart("b", False)) for _ in range(2)]
                await cancelled_while_it_waits(CHANGES[change](store, before), lanes)
        else:
            await cancelled_while_it_waits(CHANGES[change](store, before), lanes)
    await asyncio.gather(*rivals)
    after = await read(store)
    assert (after.pools, after.runs) == (before.pools, before.runs)
    assert sorted(store.folder.rglob("*")) == files


async def cancelled_while_it_waits(call: Awaitable[object], lanes: Lanes) -> None:
    """Cancel a call once a thread is at it. It does not take its time for that."""
    busy = running(lanes)
    task = asyncio.ensure_future(call)
    while running(lanes) == busy:
        await asyncio.sleep(0)
    await cancelling(task)


def running(lanes: Lanes) -> int:
    return sum(lane.running for lane in lanes.statistics().lanes)


async def test_nobody_waits_for_ever(connect: Connect, store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Others who do not give the lock back are named after a time."""
    await put(store, pool())
    locked = LockedFolder.locked
    monkeypatch.setattr(LockedFolder, "locked", lambda self, **options: locked(self, timeout=0.05, **options))
    with folder_locked(store.folder), pytest.raises(StoreError, match="is locked by another process"):
        await (await connect()).set_autostart("a", True)


@pytest.mark.parametrize("content", [b"\x91" * 100_000, b"\xdf\xff\xff\xff\xff", b""], ids=["nested", "large", "empty"])
def test_damaged_runs_and_snapshots_hide_no_others(tmp_path: Path, content: bytes) -> None:
    """A file that is neither a run nor a snapshot costs its own pool only."""
    folder = LockedFolder(tmp_path / "state")
    runs, snapshots = RunFiles(folder), SnapshotFiles(folder)
    with folder.locked():
        runs.write(Run(pool("good"), UUID, 1.5))
        runs.write(Run(pool("bad"), UUID, 1.5))
    (folder.run / "bad.run").write_bytes(content)
    (folder.run / "good.snapshot").write_bytes(content)
    active, unknown = runs.read()
    assert list(active) == ["good"]
    assert unknown == {}
    assert snapshots.read("good", 1.5) is None
