"""Definitions on disk: whole or not there, whoever is killed, whoever else writes."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from astore import (
    EntryError,
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
from astore.store import local_definitions as storage
from astore.store import local_runs as run_files
from astore.store.local_definitions import DefinitionStore, default_state_dir
from astore.store.local_runs import SNAPSHOT_FORMAT, LastSeen, OutdatedError, Runs, RunState, boot_id

UUID = "d50c93cb-9a11-466f-96d1-0f4fafe977df"


def pool(name: str = "a", path: str = "/x") -> PoolDef:
    return PoolDef(type="dir", name=name, uuid=UUID, target=Target(path))


def run_state(name: str = "a", boot: str | None = None) -> RunState:
    return RunState(pool(name), UUID, 1.5, boot_id() if boot is None else boot)


@pytest.fixture
def store(tmp_path: Path) -> DefinitionStore:
    return DefinitionStore(tmp_path / "state")


def test_nothing_is_there_at_first(store: DefinitionStore) -> None:
    """A folder that does not exist has no pools, and reading does not make it."""
    assert store.load() == storage.Loaded((), ())
    assert store.load_runs().active == {}
    assert store.load_snapshot("a") is None
    assert not store.folder.exists()


def test_definitions_are_kept(store: DefinitionStore) -> None:
    """Saved, replaced, marked for autostart, removed; in folders and files that are the owner's alone."""
    store.save(pool())
    store.save(pool("b c"))
    store.save(pool(path="/y"))
    store.set_autostart("a", True)
    store.set_autostart("a", True)
    again = DefinitionStore(store.folder)
    assert [(item.definition, item.autostart) for item in again.load().pools] == [
        (pool(path="/y"), True),
        (pool("b c"), False),
    ]
    assert (store.folder / "autostart" / "a.xml").resolve() == store.folder / "pools" / "a.xml"
    for path in (store.folder, *store.folder.rglob("*")):
        if not path.is_symlink():
            assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path
    store.set_autostart("a", False)
    store.remove("b c")
    store.remove("b c")
    assert [(item.definition.name, item.autostart) for item in again.load().pools] == [("a", False)]


DAMAGE = {
    "cut": b"<pool",
    "named otherwise": pool("other").to_xml().encode(),
    "empty": b"",
    "binary": bytes(range(256)),
    "large": b" " * (5 << 20),
}
DAMAGE["no uuid"] = PoolDef(type="dir", name="no uuid", target=Target("/x")).to_xml().encode()


@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_files_are_reported_and_left(store: DefinitionStore, name: str) -> None:
    """The others are loaded all the same."""
    store.save(pool())
    path = store.folder / "pools" / f"{name}.xml"
    path.write_bytes(DAMAGE[name])
    loaded = store.load()
    assert [item.definition.name for item in loaded.pools] == ["a"]
    assert [(file.name, file.path) for file in loaded.damaged] == [(name, str(path))]
    assert loaded.damaged[0].error
    assert path.read_bytes() == DAMAGE[name]


def test_odd_things_in_the_folder(store: DefinitionStore) -> None:
    """A folder, a dangling link, another suffix, a name that is no Unicode: none of them stops the rest."""
    store.save(pool())
    folder = store.folder / "pools"
    (folder / "dir.xml").mkdir()
    (folder / "link.xml").symlink_to("nowhere")
    (folder / "readme.txt").write_text("x")
    (folder / os.fsdecode(b"\xff.xml")).write_text("x")
    os.mkfifo(folder / "fifo.xml")
    loaded = store.load()
    assert [item.definition.name for item in loaded.pools] == ["a"]
    assert {file.name for file in loaded.damaged} == {"dir", "fifo", "link"}
    (folder / "loop.xml").symlink_to("loop.xml")
    loaded = store.load()
    store.save(pool("b"), loaded=loaded)
    assert {file.name for file in loaded.damaged} == {"dir", "fifo", "link", "loop"}


def test_leftovers_of_the_killed_are_removed(store: DefinitionStore) -> None:
    """Half-written files that are old; those of a writer at work stay."""
    store.save(pool())
    old, new = (store.folder / "pools" / f".{name}.tmp" for name in ("old", "new"))
    for path in (old, new):
        path.write_text("<pool")
    os.utime(old, (0, 0))
    assert len(store.load().pools) == 1
    assert not old.exists()
    assert new.exists()


def test_run_state(store: DefinitionStore) -> None:
    """What is active is known to the next process, until it is forgotten."""
    store.save_run("a", run_state())
    assert DefinitionStore(store.folder).load_runs().active == {"a": run_state()}
    store.forget_run("a", 1.5)
    store.forget_run("a", 1.5)
    assert store.load_runs().active == {}


@pytest.mark.parametrize("content", [None, b"", b"\xc1", b"\x93\x01\x02\x03"])
def test_stale_run_state(store: DefinitionStore, content: bytes | None) -> None:
    """What an earlier boot left, or what cannot be understood, is not returned and not kept."""
    store.save_run("a", run_state(boot="another boot"))
    path = store.folder / "run" / "a.run"
    if content is not None:
        path.write_bytes(content)
    assert store.load_runs().active == {}
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


def test_snapshots(store: DefinitionStore) -> None:
    """A snapshot comes back equal, its paths the same objects as its keys."""
    wanted = snapshot(3)
    store.save_run("a", run_state())
    store.save_snapshot("a", LastSeen(wanted, 5.0, "why"), 1.5)
    seen = store.load_snapshot("a")
    assert seen is not None
    assert (seen.since, seen.error) == (5.0, "why")
    found = seen.snapshot
    assert found is not None
    assert found.volumes == wanted.volumes
    for field in (
        "generation",
        "taken_at",
        "capacity",
        "allocation",
        "available",
        "errors",
        "unsettled",
        "permissions",
        "folder",
    ):
        assert getattr(found, field) == getattr(wanted, field), field
    assert found.volumes[0].path == "other"
    assert found.volumes[1].path is found.volumes[1].key
    store.forget_run("a", 1.5)
    assert store.load_snapshot("a") is None


def test_snapshots_that_cannot_be_understood(store: DefinitionStore) -> None:
    """Any byte changed, or any length: a snapshot or None, never an exception."""
    store.save_run("a", run_state())
    store.save_snapshot("a", LastSeen(snapshot(3), 5.0, None), 1.5)
    path = store.folder / "run" / "a.snapshot"
    data = path.read_bytes()
    rng = random.Random(1)
    for _ in range(500):
        broken = bytearray(data)
        broken[rng.randrange(len(broken))] = rng.randrange(256)
        path.write_bytes(bytes(broken[: rng.choice((len(broken), rng.randrange(len(broken))))]))
        store.load_snapshot("a")
    assert data[1] == SNAPSHOT_FORMAT
    path.write_bytes(data[:1] + bytes([SNAPSHOT_FORMAT - 1]) + data[2:])
    assert store.load_snapshot("a") is None


def test_the_fingerprint_tells(store: DefinitionStore) -> None:
    """It changes with every change and with nothing else."""
    seen = [store.fingerprint()]
    for change in (
        lambda: store.save(pool()),
        lambda: store.set_autostart("a", True),
        lambda: store.save_run("a", run_state()),
        lambda: store.forget_run("a", 1.5),
        lambda: store.remove("a"),
    ):
        time.sleep(0.02)  # coarser than any file system's clock
        change()
        assert store.fingerprint() not in seen
        assert store.fingerprint() == store.fingerprint()
        seen.append(store.fingerprint())


def test_a_lock_that_is_not_to_be_had(store: DefinitionStore) -> None:
    """Between threads and between stores: an error in words after the deadline."""
    other = DefinitionStore(store.folder)
    with store.locked():
        with pytest.raises(StoreError, match="locked"), other.locked(timeout=0.05):
            pass
        with pytest.raises(StoreError, match="locked"), store.locked(timeout=0.05):
            pass
    with other.locked(timeout=5):
        pass


def test_failures_are_said_and_change_nothing(store: DefinitionStore, tmp_path: Path) -> None:
    """A state folder that is a file, and a folder in a definition's place."""
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreError, match="file"):
        DefinitionStore(tmp_path / "file").save(pool())
    with pytest.raises(StoreError):
        DefinitionStore(tmp_path / "file").fingerprint()
    store.save(pool())
    (store.folder / "pools" / "b.xml").mkdir()
    with pytest.raises(StoreError, match=r"b\.xml"):
        store.save(pool("b"))
    with pytest.raises(StoreError):
        store.remove("b")
    assert not list(store.folder.rglob("*.tmp"))
    with pytest.raises(StoreError):
        with store.locked():
            raise StoreError("inside")


@pytest.mark.root
def test_a_full_disk(tmp_path: Path) -> None:
    """ENOSPC is an error in words; the old definition is whole."""
    folder = tmp_path / "small"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(folder)], check=True)
    try:
        store = DefinitionStore(folder / "state")
        store.save(pool())
        with pytest.raises(StoreError, match="space"):
            store.save(pool(path="/" + "/".join("y" * 200 for _ in range(1000))))
        assert [item.definition for item in store.load().pools] == [pool()]
    finally:
        subprocess.run(["umount", str(folder)], check=True)


SAVE_FOR_EVER = f"""
import sys
from astore import PoolDef, Target
from astore.store.local_definitions import DefinitionStore
store = DefinitionStore(sys.argv[1])
number = 0
while True:
    number += 1
    store.save(PoolDef(type="dir", name="p0", uuid={UUID!r}, target=Target("/" + "x" * (number % 3000))))
"""


PLACES = ["", "pools", "autostart", "run"]


def everything(store: DefinitionStore) -> list[Callable[[], object]]:
    """All ways to read or to change a state folder, to be refused."""
    return [
        store.load,
        store.load_runs,
        store.fingerprint,
        lambda: store.save(pool("b")),
        lambda: store.remove("a"),
        lambda: store.set_autostart("a", True),
        lambda: store.save_run("a", run_state()),
    ]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("mode", [0o777, 0o770, 0o702])
def test_a_folder_that_others_may_write(store: DefinitionStore, place: str, mode: int) -> None:
    """Refused, in words that say what to do, before anything is read, removed or written there; then used again."""
    store.save(pool())
    (store.folder / "run" / "old.tmp").touch()
    os.utime(store.folder / "run" / "old.tmp", (0, 0))
    before = sorted(store.folder.rglob("*"))
    (store.folder / place).chmod(mode)
    for call in everything(DefinitionStore(store.folder)):
        with pytest.raises(
            StoreError, match=rf"{place} may be written by other users \(its mode is 0{mode:o}\)"
        ) as caught:
            call()
        assert caught.value.errno == errno.EPERM
        assert "chmod go-w" in str(caught.value)
    assert sorted(store.folder.rglob("*")) == before
    assert DefinitionStore(store.folder).load_snapshot("a") is None
    (store.folder / place).chmod(0o755)
    assert len(DefinitionStore(store.folder).load().pools) == 1


@pytest.mark.root
@pytest.mark.parametrize("place", PLACES)
def test_a_folder_of_somebody_else(store: DefinitionStore, place: str) -> None:
    """Refused by the name of its owner, whatever its mode."""
    store.save(pool())
    os.chown(store.folder / place, 12345, -1)
    for call in everything(DefinitionStore(store.folder)):
        with pytest.raises(StoreError, match=f"{place} belongs to user 12345, .*chown") as caught:
            call()
        assert caught.value.errno == errno.EPERM


@pytest.mark.root
def test_a_folder_of_root(store: DefinitionStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """What root has made is good for another user as well, as far as he may read it."""
    store.save(pool())
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    assert len(DefinitionStore(store.folder).load().pools) == 1


def test_a_sticky_folder(tmp_path: Path) -> None:
    """A folder such as /tmp will do, where nobody can touch what is another's; the folders in it are astore's alone."""
    tmp_path.chmod(0o1777)
    store = DefinitionStore(tmp_path)
    store.save(pool())
    assert len(store.load().pools) == 1
    (tmp_path / "pools").chmod(0o1777)
    with pytest.raises(StoreError, match="pools may be written by other users"):
        store.load()


@pytest.mark.parametrize("foreign", [False, pytest.param(True, marks=pytest.mark.root)])
def test_files_that_others_may_write(store: DefinitionStore, foreign: bool) -> None:
    """A definition is damaged, a run cannot be told, a snapshot is none; the other pools are served. Repaired, all is well."""

    def spoil(path: Path) -> None:
        path.chmod(0o666)
        if foreign:
            path.chmod(0o600)
            os.chown(path, 12345, -1)

    for name in ("a", "b"):
        definition = msgspec.structs.replace(pool(name), uuid=UUID[:-1] + name)
        store.save(definition)
        store.save_run(name, RunState(definition, definition.uuid or "", 1.5))
        store.save_snapshot(name, LastSeen(Snapshot.EMPTY, 1.5, None), 1.5)
    folder = store.folder
    spoilt = [folder / "pools" / "a.xml", folder / "run" / "a.run", folder / "run" / "a.snapshot"]
    for path in spoilt:
        spoil(path)
    again = DefinitionStore(folder)
    loaded = again.load()
    assert [item.definition.name for item in loaded.pools] == ["b"]
    ((name, error),) = [(file.name, file.error) for file in loaded.damaged]
    assert name == "a"
    assert ("belongs to user 12345" if foreign else "may be written by other users") in error
    runs = again.load_runs()
    assert (set(runs.active), runs.unknown) == ({"b"}, {"a"})
    assert again.load_snapshot("a") is None
    assert again.load_snapshot("b") is not None
    before = again.fingerprint(loaded.damaged)
    for path in spoilt:
        os.chown(path, os.geteuid(), -1)
        path.chmod(0o600)
    assert again.fingerprint(loaded.damaged) != before
    assert len(again.load().pools) == 2
    (folder / "lock").chmod(0o666)
    with pytest.raises(StoreError, match="lock may be written by other users"):
        again.save(pool())


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


def test_kill_in_the_middle(tmp_path: Path) -> None:
    """However often a writer is killed, a definition is one whole version, and the next writer gets the lock."""
    store = DefinitionStore(tmp_path)
    store.save(pool("p0"))
    for _ in range(5):
        process = subprocess.Popen([sys.executable, "-c", SAVE_FOR_EVER, str(tmp_path)])
        before = store.load().pools[0].definition
        deadline = time.monotonic() + 60
        while DefinitionStore(tmp_path).load().pools[0].definition == before and time.monotonic() < deadline:
            time.sleep(0.01)
        process.kill()
        process.wait()
        loaded = DefinitionStore(tmp_path).load()
        assert not loaded.damaged
        assert loaded.pools[0].definition.target.path.strip("x") == "/"
        store.save(pool("p0"))


def test_many_writers(store: DefinitionStore) -> None:
    """Threads with stores of their own lose nothing."""

    def work(who: int) -> None:
        mine = DefinitionStore(store.folder)
        for number in range(5):
            mine.save(pool(f"w{who}-{number}"))
            mine.set_autostart(f"w{who}-{number}", True)

    threads = [threading.Thread(target=work, args=(who,)) for who in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    loaded = store.load()
    assert len(loaded.pools) == 20
    assert all(item.autostart for item in loaded.pools)


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


def test_damaged_run_state(store: DefinitionStore) -> None:
    """Any byte changed: the pool is not active, and nobody is kept from reading the others."""
    store.save_run("a", run_state())
    path = store.folder / "run" / "a.run"
    data = path.read_bytes()
    rng = random.Random(2)
    for _ in range(2000):
        broken = bytearray(data)
        broken[rng.randrange(len(broken))] = rng.randrange(256)
        path.write_bytes(bytes(broken))
        store.load_runs()
    path.unlink(missing_ok=True)
    path.mkdir()
    store.save_run("b", run_state("b"))
    assert store.load_runs().active.keys() == {"b"}


def test_a_run_that_begins_while_runs_are_read(store: DefinitionStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is left of an earlier boot is removed, but not what another process has put into its place meanwhile."""
    store.save_run("a", run_state(boot="another boot"))
    find = DefinitionStore._run_of

    def found_late(name: str) -> RunState | None:
        state = find(store, name)
        DefinitionStore(store.folder).save_run(name, run_state())
        return state

    with monkeypatch.context() as slowly:
        slowly.setattr(store, "_run_of", found_late)
        assert store.load_runs().active == {}
    assert store.load_runs().active.keys() == {"a"}


def test_snapshots_belong_to_a_run(store: DefinitionStore) -> None:
    """What is known of an earlier run is neither written over what is known of the present one, nor read for it."""
    seen = LastSeen(snapshot(1), 5.0, None)
    store.save_snapshot("a", seen, 1.5)
    store.save_run("a", run_state())
    store.save_snapshot("a", seen, 1.0)
    assert store.load_snapshot("a") is None
    store.save_snapshot("a", seen, 1.5)
    assert store.load_snapshot("a", 1.5) is not None
    assert store.load_snapshot("a", 2.0) is None


def test_runs_are_one_processes(store: DefinitionStore) -> None:
    """A pool that is active is not started by another, and its end is told by whoever knows of this run alone."""
    store.save_run("a", run_state())
    with pytest.raises(OutdatedError):
        store.save_run("a", msgspec.structs.replace(run_state(), started_at=7.0))
    store.forget_run("a", 7.0)
    assert store.load_runs().active.keys() == {"a"}
    store.forget_run("a", 1.5)
    assert store.load_runs().active == {}


def test_run_state_that_cannot_be_read_now(store: DefinitionStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Told, and not taken for the end of the pool."""
    store.save_run("a", run_state())

    def fail(*_: object) -> bytes:
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as failing:
        failing.setattr(run_files, "read_whole", fail)
        assert store.load_runs() == Runs({}, frozenset({"a"}))
    assert store.load_runs().active.keys() == {"a"}


def test_news(store: DefinitionStore) -> None:
    """Whether a pool is as somebody knows it."""
    version = store.save(pool())
    assert not store.is_news("a", version=version, started_at=None)
    store.save_run("a", run_state())
    assert store.is_news("a", version=version, started_at=None)
    assert not store.is_news("a", version=version, started_at=1.5)
    assert store.is_news("a", version=version, started_at=1.0)
    with pytest.raises(OutdatedError):
        store.remove("a", version=version)
    store.forget_run("a", 1.5)
    other = store.save(pool(path="/y"))
    assert store.is_news("a", version=version, started_at=None)
    with pytest.raises(OutdatedError):
        store.remove("a", version=version)
    store.remove("a", version=other)
    assert store.is_news("a", version=version, started_at=None)
    assert not store.is_news("a", version=None, started_at=None)


def test_what_others_write_meanwhile(tmp_path: Path) -> None:
    """Who has decided by what it read is told if that has changed since; its own changes are no news once they are read."""
    one, other = DefinitionStore(tmp_path), DefinitionStore(tmp_path)
    loaded = one.load()
    other.save(pool("b"))
    with pytest.raises(OutdatedError):
        one.save(pool("a"), loaded=loaded)
    one.save(pool("a"), loaded=one.load())
    assert [item.definition.name for item in other.load().pools] == ["a", "b"]


def test_a_lock_that_is_not_wanted_any_more(store: DefinitionStore, tmp_path: Path) -> None:
    """Nothing is written for whoever has given up, be it before or while it waited."""
    given_up = threading.Event()
    given_up.set()
    for locked in (True, False):
        with store.locked() if locked else contextlib.nullcontext(), pytest.raises(StoreError) as caught:
            DefinitionStore(store.folder).save(pool(), given_up)
        assert caught.value.errno == errno.ECANCELED
    assert store.load().pools == ()
