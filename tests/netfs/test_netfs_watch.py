"""Watched netfs pools: on the real FUSE client of Gluster, and on NFS and CIFS by the kernel of a guest."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from core_fakes import eventually
from netfs.looking import ids, target
from netfs.watch_trials import CHANGES, each_seen, poll_every, stopped_and_started, told_at_once
from watching_support import by_another_process, dir_pool, watched

import astore
from astore.manager import pool_watch
from astore.model import PoolDef
from astore.mounts import Mount
from astore.notices import About, FolderNotices
from astore.trees import mount_caches
from beds import fuse, namespace, uml
from beds.gluster import GlusterBed

root = pytest.mark.root
on_gluster = [pytest.mark.root, pytest.mark.gluster, pytest.mark.fuse]

LATE = 25.0
"""Seconds by which a machine that has much to do may be late. (A pool that is polled as by default may be later.)"""

# ------------------------------------------------------------------------------------------ what a mount does not tell

TELLS = "the kernel tells only what this machine changes"
AGES = [
    ("ext4", "", "", 0),
    ("nfs4", "rw,vers=4.2,namlen=255,hard", "60 s: the mount options actimeo=1 make", 60),
    ("nfs4", "rw,vers=4.2,acregmin=1,acregmax=1,acdirmin=1,acdirmax=1,hard", TELLS, 1),
    ("nfs4", "rw,vers=4.2,actimeo=1,hard", TELLS, 1),
    ("nfs4", "rw,sync,acregmin=0,acregmax=0,acdirmin=0,acdirmax=0,hard,noac", TELLS, 0),
    ("nfs4", "rw,acregmax=10,hard,lookupcache=none", "60 s", 60),
    ("nfs", "rw,vers=3,acregmax=10,acdirmax=20,nolock", "20 s", 20),
    ("nfs", "rw,vers=3,acdirmin=0,acdirmax=0,hard", "60 s", 60),
    ("nfs", "rw,vers=3,acregmax=odd,acdirmax=0", "60 s", 60),
    ("cifs", "rw,vers=3.1.1,cache=strict,actimeo=1,closetimeo=1", TELLS, 1),
    ("cifs", "rw,vers=2.0,cache=none", TELLS, 1),
    ("cifs", "rw,cache=loose,acdirmax=30,acregmax=9,closetimeo=1", "30 s: the mount options actimeo=1 make", 30),
    ("smb3", "rw,actimeo=5", "5 s", 5),
    ("ceph", "rw,acl", TELLS, 0),
    ("fuse.sshfs", "rw,user_id=0", "is not known", 0),
    ("9p", "rw,trans=virtio", "is not known", 0),
]


@pytest.mark.parametrize(("kind", "options", "words", "seconds"), AGES)
def test_how_old_a_listing_may_be(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: str, options: str, words: str, seconds: float
) -> None:
    """The options that kernels show are known; what is not known is said to be so."""
    monkeypatch.setattr(mount_caches, "mount_id", lambda fd: 7)
    others = [Mount(number, 1, 0, 9, "/", "/x", "rw", "nfs", "s:/x", "rw,acregmax=99") for number in (6, 8)]
    mount = Mount(7, 1, 0, 9, "/", "/x", "rw", kind, "s:/x", options)
    monkeypatch.setattr(mount_caches, "mounts", lambda: [others[0], mount, others[1]])
    folder = os.open(tmp_path, os.O_RDONLY)
    reason, age = mount_caches.not_told(folder)
    assert words in reason
    assert (age, bool(reason)) == (seconds, kind != "ext4")
    monkeypatch.setattr(mount_caches, "mounts", list)
    assert mount_caches.not_told(folder) == ("its mount was detached", 0.0)
    os.close(folder)


# ------------------------------------------------------------------------------------------------- Gluster by FUSE


@pytest.fixture
def rarely(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is seen was told: a poll comes every ten minutes."""
    monkeypatch.setattr(pool_watch, "LEAST", 600.0)


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Polls and retries are quick, however long the last one took."""
    for name, seconds in (("LEAST", 0.1), ("FIRST_RETRY", 0.1), ("LAST_RETRY", 0.5), ("SHARE", 1.0)):
        monkeypatch.setattr(pool_watch, name, seconds)


@pytest.fixture
async def manager(tmp_path: Path) -> AsyncIterator[astore.Manager]:
    """A Manager. Afterwards no watch of the kernel's is left."""
    async with astore.Manager(tmp_path / "state") as manager:
        yield manager
    assert not FolderNotices._of_loops


@pytest.fixture
async def pool(manager: astore.Manager, definition: PoolDef) -> astore.Pool:
    """A started netfs pool on a volume of Gluster."""
    pool = await manager.define(definition)
    await pool.start()
    return pool


class TestGluster:
    """The real client, ``glusterfs``."""

    pytestmark = on_gluster

    @pytest.mark.usefixtures("rarely")
    async def test_changes_by_this_machine(
        self, manager: astore.Manager, pool: astore.Pool, definition: PoolDef, tmp_path: Path
    ) -> None:
        """Each kind is told at once."""
        async with manager.watch(max_staleness=600):
            await watched(pool, "polled")
            changes = CHANGES.keys() - {"mmap"}  # this client maps no file for writing
            await each_seen(pool, changes, target(definition), tmp_path / "oracle")

    async def test_changes_by_another_client(
        self, manager: astore.Manager, pool: astore.Pool, gluster: GlusterBed, new_volume: str, tmp_path: Path
    ) -> None:
        """Each kind is seen within the promised bound, which has the times of the client's caches in it."""
        other = await asyncio.to_thread(gluster.mount, new_volume)
        async with manager.watch(max_staleness=1):
            await watched(pool, "polled")
            freshness = pool.info.freshness
            assert freshness is not None
            assert 3 <= freshness.bound < 60
            assert not freshness.pushed
            assert "on fuse.glusterfs" in freshness.note
            seen = await each_seen(pool, CHANGES, other, tmp_path / "oracle")
            assert {change: seconds for change, seconds in seen.items() if seconds > freshness.bound + LATE} == {}

    @pytest.mark.usefixtures("often")
    async def test_client_killed(self, manager: astore.Manager, pool: astore.Pool, definition: PoolDef) -> None:
        """The next poll mounts anew, and the new mount is watched."""
        folder = target(definition)
        async with manager.watch(max_staleness=600):
            await watched(pool, "polled")
            for name in ("a", "b"):
                await asyncio.to_thread(fuse.kill, folder)
                # beneath the mount, where the file would go before there is a new one, is another file system
                there = f'[ "$(stat -f -c %t "{folder}" 2>/dev/null)" = {FUSE_MAGIC} ]'
                await by_another_process(
                    f'until {there}; do sleep 0.05; done; echo x > "{folder}/{name}"', folder.parent
                )
                await eventually(lambda name=name: name in pool.snapshot.by_name, name)  # type: ignore[misc]
                await told_at_once(pool, folder)
            assert len(ids(definition)) == 1
            assert list(pool.snapshot.by_name) == ["a", "b"]

    @pytest.mark.usefixtures("often")
    async def test_covered_and_uncovered(self, manager: astore.Manager, pool: astore.Pool, definition: PoolDef) -> None:
        """Something else on the target makes the pool inaccessible at once; when it is gone, all is as before."""
        folder = target(definition)
        await by_another_process("echo x > kept", folder)
        async with manager.watch(max_staleness=600):
            await watched(pool, "polled")
            for _ in range(2):
                poll_every(600)
                await told_at_once(pool, folder)
                await asyncio.to_thread(namespace.mount, "elsewhere", folder, "tmpfs")
                await eventually(lambda: pool.state is astore.PoolState.INACCESSIBLE, "a notice of the cover")
                await by_another_process("echo x > trap", folder)
                await asyncio.to_thread(namespace.unmount, folder)
                await eventually(lambda: pool.state is astore.PoolState.RUNNING, "a retry")
                await told_at_once(pool, folder)
                assert list(pool.snapshot.by_name) == ["kept"]

    @pytest.mark.usefixtures("rarely")
    async def test_unmounted_by_someone(self, manager: astore.Manager, pool: astore.Pool, definition: PoolDef) -> None:
        """An administrator's umount is told at once, mounted anew, and the new mount is watched."""
        folder = target(definition)
        await by_another_process("echo x > kept", folder)
        async with manager.watch(max_staleness=600):
            await watched(pool, "polled")
            for lazy in (False, True):
                await asyncio.to_thread(_unmount, folder, lazy)
                await eventually(lambda: ids(definition), "a new mount")
                await told_at_once(pool, folder)
                assert list(pool.snapshot.by_name) == ["kept"]

    @pytest.mark.usefixtures("rarely")
    async def test_stopped_and_started(self, manager: astore.Manager, pool: astore.Pool, definition: PoolDef) -> None:
        """The watch keeps no mount busy and brings none back; a pool that is started again is watched again."""
        folder = target(definition)
        async with manager.watch(max_staleness=600):
            await watched(pool, "polled")
            assert await stopped_and_started(pool, folder, 8) == []
            await told_at_once(pool, folder)
            await pool.stop()
            assert ids(definition) == []

    @pytest.mark.usefixtures("often")
    async def test_hung_mount_costs_nothing(self, tmp_path: Path, definition: PoolDef) -> None:
        """While a client hangs, and its pool is tried again, another pool's changes are told as ever."""
        (tmp_path / "local").mkdir()
        async with astore.Manager(tmp_path / "state", call_timeout=2) as manager:
            async with manager.watch(), manager.events(kinds={astore.PoolRetry}) as retries:
                pool, local = await manager.define(definition), await dir_pool(manager, tmp_path / "local", "local")
                await pool.start(timeout=60)
                await watched(pool, "polled")
                await watched(local)
                await asyncio.to_thread(fuse.freeze, target(definition))
                try:
                    for number in range(3):
                        retry = await anext(retries)
                        assert isinstance(retry, astore.PoolRetry)
                        assert retry.pool == "pool"
                        began = time.monotonic()
                        await by_another_process(f"echo x > {number}", tmp_path / "local")
                        await eventually(lambda number=number: str(number) in local.snapshot.by_name, "a notice")  # type: ignore[misc]
                        assert time.monotonic() - began < LATE
                finally:
                    await asyncio.to_thread(fuse.thaw, target(definition))
                await by_another_process("echo x > after", target(definition))
                await eventually(lambda: "after" in pool.snapshot.by_name, "the pool that hung")
                await pool.stop()

    async def test_watch_keeps_no_mount_busy(self, gluster: GlusterBed, new_volume: str, tmp_path: Path) -> None:
        """The kernel unmounts what is watched, and tells so."""
        folder = await asyncio.to_thread(gluster.mount, new_volume)
        heard: list[tuple[About, frozenset[str] | None]] = []
        watch = await FolderNotices.of_this_loop().watch(
            lambda: os.open(folder, os.O_RDONLY), lambda *notice: heard.append(notice), _on_thread
        )
        await by_another_process("echo x > new", folder)
        await eventually(lambda: any("new" in (names or ()) for _, names in heard), "the notice of a file")
        await asyncio.to_thread(namespace.unmount, folder)
        await eventually(lambda: About.PLACE in {about for about, _ in heard}, "the notice of the umount")
        watch.close()
        assert not FolderNotices._of_loops

    @pytest.mark.parametrize("below", ["", "a/b"])
    async def test_dir_pool_on_a_mount(
        self, manager: astore.Manager, gluster: GlusterBed, new_volume: str, below: str, tmp_path: Path
    ) -> None:
        """A dir pool on a mount says the same; the client's own options and its volume's are found out."""
        gluster.set_option(new_volume, {"performance.md-cache-timeout": 7})
        mounted = tmp_path / "mounted"
        options = ("--attribute-timeout=3", "--entry-timeout=4.5")
        log = tmp_path / "log"
        await asyncio.to_thread(fuse.mount_gluster, gluster.host, new_volume, mounted, log, options=options)
        try:
            folder = mounted / below
            await asyncio.to_thread(os.makedirs, folder, exist_ok=True)
            pool = await dir_pool(manager, folder)
            async with manager.watch(max_staleness=1):
                await watched(pool, "polled")
                assert pool.info.freshness is not None
                assert 12.5 <= pool.info.freshness.bound < 60
                assert "old answers for 11.5 s" in pool.info.freshness.note
                assert "attribute-timeout=0" in pool.info.freshness.note
                await by_another_process("echo x > new", folder)
                await eventually(lambda: "new" in pool.snapshot.by_name, "a file")
            await pool.stop()
        finally:
            await asyncio.to_thread(fuse.release, mounted)


FUSE_MAGIC = "65735546"
"""The kind of a FUSE mount, in statfs(2)."""


def _unmount(folder: Path, lazy: bool) -> None:
    """Unmount, also if a refresh is there just now."""
    eventually_gone = time.monotonic() + 30
    while True:
        try:
            namespace.unmount(folder, lazy=lazy)
            return
        except OSError:
            if time.monotonic() > eventually_gone:
                raise
            time.sleep(0.02)


async def _on_thread(call: Callable[..., Any], *args: Any, discard: object = None) -> Any:
    return await asyncio.to_thread(call, *args)


# ----------------------------------------------------------------------------------------------- NFS and CIFS, in a guest

Trial = Callable[[str], dict[str, Any]]


@pytest.fixture(scope="module")
def guest(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, dict[str, Any]], str]:
    """What was seen in the guest, trial by trial, and what its console and its program said."""
    folder = tmp_path_factory.mktemp("guest")
    program = Path(__file__).with_name("guest_watch.py")
    said = uml.run_in_guest([sys.executable, str(program), "/run/host/result.json"], folder, timeout=900)
    console = (folder / "console").read_text(errors="replace")
    return json.loads((folder / "result.json").read_text()), f"--- console\n{console}\n--- program\n{said}"


@pytest.fixture
def seen(guest: tuple[dict[str, dict[str, Any]], str]) -> Trial:
    """What one trial saw: ``seen("nfs42")``."""

    def of(trial: str) -> dict[str, Any]:
        trials, said = guest
        if "failed here" in trials[trial]:
            pytest.fail(f"{trial}, in the guest: {trials[trial]['failed here']}\n{said}", pytrace=False)
        return trials[trial]

    return of


@pytest.mark.timeout(1000)
class TestGuest:
    """The kernel's own clients."""

    pytestmark = [pytest.mark.root, pytest.mark.nfs]  # noqa: RUF012

    @pytest.mark.parametrize(("trial", "caches"), [("nfs42", 1), ("nfs3", 0), ("cifs", 1)])
    def test_each_kind_of_change(self, seen: Trial, trial: str, caches: int) -> None:
        """What this machine does was told; what was done on the server was seen within the bound."""
        saw = seen(trial)
        assert 1 + caches <= saw["bound"] < 30
        assert TELLS in saw["note"]
        assert len(saw["here"]) >= 7
        assert len(saw["served"]) >= 5
        late = {change: seconds for change, seconds in saw["served"].items() if seconds > saw["bound"] + LATE}
        assert late == {}

    def test_changes_through_another_mount(self, seen: Trial) -> None:
        """What another client of the server did was seen within the bound."""
        saw = seen("other mount")
        assert len(saw["served"]) == 7
        assert {change: seconds for change, seconds in saw["served"].items() if seconds > saw["bound"] + LATE} == {}

    @pytest.mark.parametrize("trial", ["stop nfs", "stop cifs"])
    def test_watch_keeps_no_mount_busy(self, seen: Trial, trial: str) -> None:
        """A watched pool stops, is not mounted again by a late notice, and is told of changes after each start."""
        assert seen(trial) == {"wrong": [], "mounted": False}

    def test_server_that_hangs(self, seen: Trial) -> None:
        """The pool is inaccessible, with its volumes, which costs another pool nothing, and is caught up with afterwards."""
        assert len(seen("hang")["times"]) == 2
        assert max(seen("hang")["times"]) < LATE
        assert seen("hang")["states"] == [["inaccessible", True]] * 2

    def test_stopped_by_force(self, seen: Trial) -> None:
        """The mount of a watched pool whose server is gone is taken away; the pool starts again and is told."""
        assert seen("forced") == {"mounted": False}

    def test_default_options(self, seen: Trial) -> None:
        """With the defaults of nfs(5) the bound has their minute, and the note says what makes it a second."""
        for bound, note in seen("defaults").values():
            assert 61 <= bound < 90
            assert "old answers for 60 s: the mount options actimeo=1 make that 1 s" in note

    def test_nothing_is_left(self, seen: Trial) -> None:
        """No watch of the kernel's."""
        assert seen("end") == {"left": 0}
