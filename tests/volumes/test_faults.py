"""The fault wrappers that authors of backends get: astore.testing.faults."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from core_fakes import eventually
from leaks import open_files
from volumes.real_servers import gluster_pool, volume_in_memory

from astore.errors import LaneTimeoutError, StorageError, VolumeExistsError
from astore.manager import Manager
from astore.model import VolumeDef
from astore.pools.pool import Pool
from astore.testing.faults import POINTS, Call, Faults, Gate
from astore.trees.tree import FileTree
from astore.trees.writable_local import WritableLocalTree
from astore.volume_io.local_file import LocalFile

if TYPE_CHECKING:
    from beds.gluster import GlusterBed

MIB = 1 << 20


@pytest.fixture
def tree(folder: Path, faults: Faults) -> Iterator[WritableLocalTree]:
    """A folder with a file ``a``, whose calls are points."""
    (folder / "a").write_bytes(b"content")
    tree = WritableLocalTree(str(folder))
    assert faults.into(tree) is tree
    yield tree
    tree.close()


def test_points_are_those_of_the_contract() -> None:
    """Every call of the contract's classes is a point, and no other name is one."""
    assert {
        "tree.scan",
        "tree.link",
        "tree.close",
        "file.pwrite",
        "file.close",
        "reading.header",
        "reading.read",
    } <= POINTS
    assert not [name for name in POINTS if "._" in name]
    with Faults("my own") as faults:
        faults.fail({"my own", "file.sync"}, errno.EIO)
        with pytest.raises(ValueError, match=r"no such point: file\.snyc"):
            faults.fail({"file.sync", "file.snyc"}, errno.EIO)


def test_an_object_is_what_it_was(tree: WritableLocalTree, faults: Faults) -> None:
    """Classes stay what they were; what is opened has its own calls as points; doing it twice makes no difference."""
    assert isinstance(tree, WritableLocalTree)
    assert faults.into(tree) is tree
    faults.calls.clear()
    file = tree.open("a")
    assert isinstance(file, LocalFile)
    assert file.pread(7, 0) == b"content"
    file.close()
    entry = tree.lookup("a")
    assert entry is not None
    reading = tree.reading(entry)
    assert reading.header(lambda head: False) == b"content"
    reading.close()
    wanted = ["tree.open", "file.pread", "file.close", "tree.lookup", "tree.reading", "reading.header", "reading.close"]
    assert [call for call in faults.calls if call in wanted] == wanted


def test_each_call_fails_or_one_of_them(tree: WritableLocalTree, faults: Faults) -> None:
    """Calls fail from the moment on that it is said, all of them or the one of that number, until it is taken back."""
    tree.stat("a")
    faults.fail("tree.stat", errno.EIO, at=2)
    tree.stat("a")
    with pytest.raises(OSError, match="Input/output error") as caught:
        tree.stat("a")
    assert caught.value.errno == errno.EIO
    tree.stat("a")
    faults.fail({"tree.stat", "tree.statvfs"}, errno.ESTALE)
    for _ in range(2):
        with pytest.raises(OSError, match="Stale file handle"):
            tree.stat("a")
    faults.clear("tree.stat")
    tree.stat("a")
    with pytest.raises(OSError, match="Stale file handle"):
        tree.statvfs()
    faults.clear()
    tree.statvfs()


def test_one_number_counts_all_its_points(tree: WritableLocalTree, faults: Faults) -> None:
    """Where a fault is for several points, the number is that of a call among all of them."""
    seen: list[str] = []
    faults.run({"tree.mkdir", "tree.rmdir"}, lambda call: seen.append(call.point), at=2)
    tree.mkdir("d")
    tree.rmdir("d")
    tree.mkdir("d")
    assert seen == ["tree.rmdir"]


def test_after_a_call(tree: WritableLocalTree, folder: Path, faults: Faults) -> None:
    """What fails after the call has had its effect; a file that was opened for nobody is closed."""
    faults.fail("tree.mkdir", errno.EEXIST, after=True)
    with pytest.raises(FileExistsError):
        tree.mkdir("d")
    assert (folder / "d").is_dir()
    before = open_files()
    faults.fail({"tree.create", "tree.open"}, errno.EIO, after=True)
    for call in (lambda: tree.create("b"), lambda: tree.open("b")):
        with pytest.raises(OSError, match="Input/output error"):
            call()
        assert not open_files() - before
    assert (folder / "b").exists()


def test_something_in_between(tree: WritableLocalTree, folder: Path, faults: Faults) -> None:
    """What is done is told of the call, with its result where it comes after it, and several are done in order."""
    met: list[Call] = []
    faults.run("tree.open", met.append)
    faults.run("tree.open", lambda call: (folder / call.arguments[0]).write_bytes(b"swapped"))
    faults.fail("tree.open", errno.EIO, at=2)
    faults.run("tree.open", met.append, after=True)
    file = tree.open("a", write=True)
    assert file.pread(7, 0) == b"swapped"
    assert [(call.point, call.target, call.arguments, dict(call.named), call.result) for call in met] == [
        ("tree.open", tree, ("a",), {"write": True}, None),
        ("tree.open", tree, ("a",), {"write": True}, file),
    ]
    file.close()
    with pytest.raises(OSError, match="Input/output error"):
        tree.open("a")
    assert len(met) == 3


def test_a_test_has_points_of_its_own() -> None:
    """Whatever else a test wants to fail can be a point, too."""
    with Faults("the network") as faults:
        faults.reach("the network")
        faults.fail("the network", errno.ENETDOWN)
        with pytest.raises(OSError, match="Network is down"):
            faults.reach("the network")
        assert faults.calls == ["the network"] * 2


def test_trees_that_only_read(folder: Path, faults: Faults) -> None:
    """A tree without calls that write has no points for them."""

    class Nothing(FileTree):
        def key(self, name: str) -> str:
            return name

        def scan(self, want: object) -> Iterator[object]:
            yield from ()

        def read_header(self, entry: object, more: object) -> bytes:
            return b""

        def lookup(self, name: str) -> None:
            return None

        def statvfs(self) -> tuple[int, int]:
            return 1, 1

        def close(self) -> None:
            pass

    tree = faults.into(Nothing())
    faults.fail({"tree.statvfs", "tree.link"}, errno.EIO)
    with pytest.raises(OSError, match="Input/output error"):
        tree.statvfs()
    assert not hasattr(tree, "link")


# ------------------------------------------------------------------------------------------------------------- gates


async def test_gate() -> None:
    """Calls wait while the gate is closed; whoever waits for them is told of each, and may stop waiting."""
    gate = Gate()
    impatient = asyncio.ensure_future(gate.reached(3))
    first = asyncio.ensure_future(asyncio.to_thread(gate, 1))
    await gate.reached()
    await gate.reached()
    second = asyncio.ensure_future(asyncio.to_thread(gate, 2))
    await gate.reached(2)
    assert (gate.entered, gate.inside, gate.most) == (2, 2, 2)
    impatient.cancel()
    await asyncio.wait([impatient])
    gate.open()
    assert await asyncio.gather(first, second) == [1, 2]
    assert gate(3) == 3
    gate.close()
    third = asyncio.ensure_future(asyncio.to_thread(gate, 4))
    await gate.reached(4)
    assert (gate.entered, gate.inside, gate.most) == (4, 1, 2)
    gate.open()
    assert await third == 4


def test_a_gate_that_nobody_opens(monkeypatch: pytest.MonkeyPatch) -> None:
    """The call fails, so that a test ends."""
    monkeypatch.setattr("astore.testing.faults.LONGEST_HANG", 0.0)
    with pytest.raises(AssertionError, match="never opened"):
        Gate()()


async def test_leaving_opens_the_gates(tree: WritableLocalTree, folder: Path) -> None:
    """Calls that hang when a test is over are released, and nothing fails any more."""
    with Faults() as faults:
        faults.into(tree)
        gate = faults.hang("tree.unlink")
        faults.fail("tree.unlink", errno.EIO, at=2)
        unlinking = asyncio.ensure_future(asyncio.to_thread(tree.unlink, "a"))
        await gate.reached()
        assert os.listdir(folder) == ["a"]
    await unlinking
    assert os.listdir(folder) == []
    with pytest.raises(FileNotFoundError):
        await asyncio.to_thread(tree.unlink, "a")


# --------------------------------------------------------------------------------------------------------- backends


async def test_pools_of_a_backend(manager: Manager, pool: Pool, folder: Path, faults: Faults) -> None:
    """A pool of the backend meets the faults, in refreshes and in work on volumes."""
    faults.fail("tree.scan", errno.EIO)
    outcome = (await manager.refresh_all()).pools[0]
    assert isinstance(outcome.error, StorageError)
    faults.clear()
    await pool.refresh()
    faults.run("tree.link", lambda call: (folder / "a").write_bytes(b"somebody else's"))
    with pytest.raises(VolumeExistsError):
        await pool.create_volume(VolumeDef("a", capacity=MIB))
    assert (folder / "a").read_bytes() == b"somebody else's"


async def test_pools_of_a_backend_that_hang(pool: Pool, folder: Path, faults: Faults) -> None:
    """So it does when a call does not come back."""
    lane = pool.parts.record.life.lane
    gate = faults.hang("file.truncate")
    sound, lane.timeout = lane.timeout, 1.0  # only for what hangs
    creating = asyncio.ensure_future(pool.create_volume(VolumeDef("a", capacity=MIB)))
    await gate.reached()
    with pytest.raises(LaneTimeoutError):
        await creating
    lane.timeout = sound
    gate.open()
    await eventually(lambda: not os.listdir(folder))


@pytest.mark.root
@pytest.mark.gluster
async def test_pools_on_gluster(gluster: GlusterBed, manager: Manager, faults: Faults) -> None:
    """Nothing of that is for local folders only."""
    from astore_gluster.backend import GlusterBackend

    with volume_in_memory(gluster, "faulty", 64):
        backend = GlusterBackend()
        await asyncio.to_thread(backend.require)
        manager.registry.register(faults.into(backend))
        pool = await manager.define(gluster_pool(gluster, "faulty"))
        await pool.start()
        disk = await pool.create_volume(VolumeDef("a", capacity=MIB))
        faults.fail("file.pwrite", errno.ENOSPC)
        with pytest.raises(StorageError, match="No space left on device"):
            await disk.upload(bytes(MIB))
        faults.clear()
        assert await disk.upload(bytes(MIB)) == MIB
        assert {"tree.create", "file.pwrite", "file.sync", "file.close"} <= set(faults.calls)
        await pool.stop()
