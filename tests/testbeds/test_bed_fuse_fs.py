"""The FUSE file system for fault drills: it passes calls through, misbehaves as told, and leaves nothing."""

from __future__ import annotations

import asyncio
import errno
import itertools
import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import structlog

from astore.backend import Context
from astore.commands import LaneCommandRunner
from astore.lanes import Lanes
from astore.model import Host, PoolDef, Snapshot, Source, Target
from beds import fuse, fuse_fs, processes
from beds.fuse_fs import ENDLESS, FuseFs

pytestmark = [pytest.mark.root, pytest.mark.fuse]

Make = Callable[..., FuseFs]


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    """Threads for calls that are held."""
    with ThreadPoolExecutor(4) as pool:
        yield pool


def read(path: Path) -> str:
    """The content, read by the server: nothing is remembered between two opens."""
    return path.read_text()


def test_files_are_passed_through(new_fuse_fs: Make) -> None:
    """What is made, renamed, linked, removed and read on the mount is so in the folder behind it."""
    fs = new_fuse_fs()
    at = fs.mount()
    (at / "folder").mkdir()
    (at / "one").write_text("text")
    (at / "one").rename(at / "folder" / "two")
    (at / "link").symlink_to("folder/two")
    (at / "hard").hardlink_to(at / "folder" / "two")
    os.utime(at / "hard", ns=(10**18, 2 * 10**18))
    assert (fs.files / "folder" / "two").read_text() == read(at / "link") == "text"
    assert (fs.files / "hard").stat().st_mtime_ns == (at / "hard").stat().st_mtime_ns == 2 * 10**18
    with (at / "hard").open("r+") as file:
        (at / "hard").unlink()
        file.truncate(2)
        assert (file.read(), os.fstat(file.fileno()).st_size) == ("te", 2)
    assert sorted(os.listdir(at)) == sorted(os.listdir(fs.files)) == ["folder", "link"]


def test_held_calls_are_waited_for_and_go_on(new_fuse_fs: Make, threads: ThreadPoolExecutor) -> None:
    """A rule holds the calls it names, and no other; the test knows when they are held."""
    fs = new_fuse_fs()
    at = fs.mount()
    for name in ("a.img", "b.img", "other"):
        (fs.files / name).write_text(name)
    with fs.hold("read", names="*.img") as gate:
        reading = [threads.submit(read, at / name) for name in ("a.img", "b.img")]
        gate.wait(2)
        assert read(at / "other") == "other"
        assert not any(future.done() for future in reading)
    assert [future.result(20) for future in reading] == ["a.img", "b.img"]
    with pytest.raises(LookupError):
        gate.wait()


def test_delay_holds_each_entry_of_a_listing(new_fuse_fs: Make, threads: ThreadPoolExecutor) -> None:
    """A listing takes as long as its entries are delayed, and goes on when the rule is removed."""
    fs = new_fuse_fs(entries=100)
    at = fs.mount()
    slow = fs.delay("readdir", 3600, first=50)
    listing = threads.submit(os.listdir, at)
    slow.wait()
    assert fs.calls()["readdir"] == 50
    slow.remove()
    assert len(listing.result(20)) == 100
    assert fs.calls()["readdir"] == 100
    fs.delay("readdir", 0.001)
    assert len(os.listdir(at)) == 100


FAILING: dict[str, Callable[[Path], object]] = {
    "lookup": lambda at: (at / "a").stat(),
    "getattr": lambda at: (at / "a").stat(),
    "opendir": os.listdir,
    "readdir": os.listdir,
    "statfs": os.statvfs,
    "open": lambda at: (at / "a").read_text(),
    "read": lambda at: (at / "a").read_text(),
    "write": lambda at: (at / "a").write_text("new"),
    "flush": lambda at: (at / "a").write_text("new"),
    "create": lambda at: (at / "new").touch(),
    "unlink": lambda at: (at / "a").unlink(),
    "rename": lambda at: (at / "a").rename(at / "b"),
    "setattr": lambda at: (at / "a").chmod(0o600),
}


def test_calls_fail_as_told(new_fuse_fs: Make) -> None:
    """Each kind of call fails with the error it was told, and succeeds once the rule is removed."""
    numbers = itertools.cycle([errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.EROFS, errno.EACCES, errno.ENOSPC])
    fs = new_fuse_fs()
    at = fs.mount()
    for call, act in FAILING.items():
        (fs.files / "a").write_text("text")
        number = next(numbers)
        with fs.fail(call, number), pytest.raises(OSError) as caught:
            act(at)
        assert (call, caught.value.errno) == (call, number)
        act(at)
    with pytest.raises(ValueError, match="no call 'poll'"):
        fs.fail("poll", errno.EIO)


def test_fails_from_a_call_on_and_by_name(new_fuse_fs: Make) -> None:
    """Earlier calls and other names pass; a call can be held and fail afterwards."""
    fs = new_fuse_fs()
    at = fs.mount()
    fs.fail("fsync", errno.EIO, names="*.img", first=2)
    with (at / "a.img").open("w") as a, (at / "b").open("w") as b:
        os.fsync(a.fileno())
        for _ in range(3):
            os.fsync(b.fileno())
        for _ in range(2):
            with pytest.raises(OSError, match="Input/output error"):
                os.fsync(a.fileno())


def test_room_runs_out(new_fuse_fs: Make) -> None:
    """So many bytes arrive and no more, until there is room again."""
    fs = new_fuse_fs()
    at = fs.mount()
    fs.room(10_000)
    assert os.statvfs(at).f_bavail == 10_000 // os.statvfs(at).f_frsize
    with (at / "a").open("wb", buffering=0) as file:
        assert [file.write(bytes(6000)) for _ in range(2)] == [6000, 4000]
        with pytest.raises(OSError, match="No space left"):
            file.write(bytes(6000))
    assert (fs.files / "a").stat().st_size == 10_000
    fs.room(None)
    (at / "a").write_bytes(bytes(20_000))


@pytest.mark.parametrize("cause", ["full", "fails"])
def test_writes_are_accepted_and_the_sync_fails(new_fuse_fs: Make, cause: str) -> None:
    """With write-back, the sync tells what became of the writes."""
    fs = new_fuse_fs(writeback=True)
    at = fs.mount()
    fs.room(0) if cause == "full" else fs.fail("write", errno.EIO)
    with (at / "a").open("wb", buffering=0) as file:
        assert file.write(bytes(8192)) == 8192
        assert (fs.files / "a").stat().st_size == 0
        with pytest.raises(OSError) as caught:
            os.fsync(file.fileno())
    assert caught.value.errno == (errno.ENOSPC if cause == "full" else errno.EIO)
    assert os.listdir(at) == ["a"]


def test_generated_files(new_fuse_fs: Make) -> None:
    """They are listed and read, cannot be changed, and a real file takes the place of one."""
    fs = new_fuse_fs(entries=1000, size=4096, head=b"QFI\xfb")
    (fs.files / "disk0000007.img").write_text("real")
    at = fs.mount()
    assert sorted(os.listdir(at)) == [f"disk{number:07d}.img" for number in range(1000)]
    assert (at / "disk0000999.img").read_bytes() == b"QFI\xfb" + bytes(4092)
    assert read(at / "disk0000007.img") == "real"
    for act in (Path.unlink, lambda path: path.open("r+"), lambda path: path.rename(at / "b")):
        with pytest.raises(OSError, match="Read-only"):
            act(at / "disk0000999.img")
    assert not (at / "disk0001000.img").exists()


def test_listing_that_never_ends(new_fuse_fs: Make) -> None:
    """Entry after entry comes, for as long as somebody reads."""
    at = new_fuse_fs(entries=ENDLESS).mount()
    with os.scandir(at) as entries:
        assert len(list(itertools.islice(entries, 5000))) == 5000


def test_stopped_killed_and_mounted_again(new_fuse_fs: Make, threads: ThreadPoolExecutor) -> None:
    """A stopped server hangs its callers; a killed one fails them; the next one has the rules."""
    fs = new_fuse_fs(entries=1)
    at = fs.mount()
    fs.fail("open", errno.EACCES)
    started = threading.Event()
    fuse.freeze(at)
    listing = threads.submit(lambda: (started.set(), os.listdir(at)))
    assert started.wait(20)
    with pytest.raises(TimeoutError):
        fs.tell({"do": "calls"}, timeout=1.0)
    assert not listing.done()
    fuse.thaw(at)
    assert listing.result(20)[1] == ["disk0000000.img"]
    fuse.kill(at)
    with pytest.raises(OSError) as caught:
        os.listdir(at)
    assert caught.value.errno == errno.ENOTCONN
    assert not fs.calls()
    fuse.release(at)
    fs.mount()
    with pytest.raises(PermissionError):
        (at / "disk0000000.img").open()


@pytest.mark.parametrize("how", ["aborted", "closed"])
def test_server_ends_with_calls_that_it_holds(new_fuse_fs: Make, threads: ThreadPoolExecutor, how: str) -> None:
    """Held calls keep no server and no mount: they fail when the connection is aborted or the bed closed."""
    fs = new_fuse_fs()
    at = fs.mount()
    server = fuse.client_pid(at)
    gate = fs.hold("opendir")
    listing = threads.submit(os.listdir, at)
    gate.wait()
    if how == "aborted":
        fuse.abort(at)
        assert processes.wait_gone([server], 20) == []
    fs.close()
    assert isinstance(listing.exception(20), OSError)
    assert not processes.alive(server)
    assert not fuse.is_mounted(at)


def test_without_the_library_it_says_what_is_missing(
    new_fuse_fs: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bed that cannot be is refused in words, before anything is made."""
    monkeypatch.setattr(fuse_fs.bed, "missing", lambda: "no pyfuse3")
    with pytest.raises(fuse_fs.bed.BedUnavailable, match="no pyfuse3"):
        FuseFs(tmp_path / "bed")
    assert not (tmp_path / "bed").exists()


def test_a_mount_that_fails_says_why(new_fuse_fs: Make, tmp_path: Path) -> None:
    """The end of the server's log is in the error."""
    (tmp_path / "file").touch()
    with pytest.raises((RuntimeError, FileExistsError)):
        new_fuse_fs().mount(tmp_path / "file")


@pytest.mark.gluster
async def test_netfs_mounts_it_in_its_ordinary_way(new_fuse_fs: Make, lanes: Lanes, tmp_path: Path) -> None:
    """A netfs pool mounts and lists it, renews it after a kill, is cut loose while a call hangs, and mounts no more."""
    from astore_netfs import NetfsBackend

    fs = new_fuse_fs(entries=3).lend_to_netfs()
    (tmp_path / "pool").mkdir()
    source = Source(hosts=(Host(fs.host),), directory=fs.directory, format="glusterfs")
    target = str(tmp_path / "pool")
    definition = NetfsBackend().check(PoolDef(type="netfs", name="pool", source=source, target=Target(path=target)))
    lane = lanes.lane("pool", limit=6, timeout=30.0)
    context = Context("pool", "", lane, LaneCommandRunner(lane, 30.0), structlog.get_logger(), 30.0)
    session = await NetfsBackend().open(definition, context)
    assert [(mount.kind, mount.source) for mount in fuse.mounts(target)] == [("fuse.glusterfs", fs.source)]
    assert len((await session.refresh(Snapshot.EMPTY)).volumes) == 3
    await asyncio.to_thread(fuse.kill, target)
    gate = fs.hold("readdir", names="disk0000001.img")
    refresh = asyncio.create_task(session.refresh(Snapshot.EMPTY))
    await asyncio.to_thread(processes.wait_until, lambda: fs.calls()["readdir"] >= 2, 20, "mounted again and held")
    await asyncio.to_thread(gate.wait)
    await session.cut_loose()
    with pytest.raises(OSError):
        await refresh
    assert not fuse.is_mounted(target)
    await session.aclose()


@pytest.mark.gluster
def test_other_sources_have_the_real_helper(new_fuse_fs: Make) -> None:
    """While beds are lent to netfs, Gluster's own program serves everything else, and afterwards everything."""
    argv = ["/sbin/mount.glusterfs", "-V"]
    version = subprocess.run(argv, capture_output=True, text=True, check=False).stdout
    real = Path(argv[0]).read_text()
    assert "glusterfs" in version
    with new_fuse_fs().lend_to_netfs(), new_fuse_fs().lend_to_netfs():
        assert Path(argv[0]).read_text() != real
        assert subprocess.run(argv, capture_output=True, text=True, check=False).stdout == version
    assert Path(argv[0]).read_text() == real
