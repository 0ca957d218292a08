"""Pools on real FUSE mounts of a private Gluster: started, proved, renewed, stopped, cut loose."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import anyio
import msgspec
import pytest
from netfs.looking import Open, clients, ids, table, target

from astore.backend import Context
from astore.errors import CommandError, LaneTimeoutError, StorageError
from astore.model import Host, PoolDef, Snapshot, VolumeType
from astore_netfs import NetfsBackend, find_mount
from astore_netfs.mounting.mount import MountPoint
from beds import fuse, namespace, processes
from beds.gluster import GlusterBed

pytestmark = [pytest.mark.root, pytest.mark.gluster, pytest.mark.fuse]


async def test_start_mounts_once(definition: PoolDef, start: Open) -> None:
    """Starting mounts the volume where it should be; starting again finds it there and mounts nothing."""
    await start()
    (first,) = ids(definition)
    mount = find_mount(str(target(definition)), table())
    assert mount is not None
    assert mount.fstype == "fuse.glusterfs"
    assert {"nodev", "nosuid", "noexec"} <= set(mount.options.split(","))
    await start()
    assert ids(definition) == [first]


async def test_two_starts_at_once_mount_once(definition: PoolDef, make_context: Callable[..., Context]) -> None:
    """Several starts at the same moment, as of several processes, leave one mount and not a pile of them."""
    sessions = await asyncio.gather(*(NetfsBackend().open(definition, make_context()) for _ in range(4)))
    assert len(ids(definition)) == 1
    for session in sessions:
        await session.aclose()


async def test_refresh_finds_what_is_there(definition: PoolDef, start: Open) -> None:
    """Files and folders of the volume are found under the target; unchanged ones are the same records next time."""
    session = await start()
    folder = target(definition)
    (folder / "a.raw").write_bytes(b"x" * 5000)
    (folder / "sub").mkdir()
    snapshot = await session.refresh(Snapshot.EMPTY)
    assert list(snapshot.by_name) == ["a.raw", "sub"]
    assert snapshot.by_name["a.raw"].path == f"{folder}/a.raw"
    assert snapshot.by_name["a.raw"].capacity == 5000
    assert snapshot.by_name["sub"].type is VolumeType.DIR
    assert snapshot.capacity > snapshot.available > 0
    again = await session.refresh(await session.refresh(snapshot))
    assert again.by_name["sub"] is snapshot.by_name["sub"]


async def test_stop_unmounts(definition: PoolDef, start: Open) -> None:
    """Stopping unmounts, although the session had the folder open; stopping twice is no error."""
    session = await start()
    await session.refresh(Snapshot.EMPTY)
    await session.stop()
    assert ids(definition) == []
    await session.stop()
    await session.aclose()


async def test_leaving_keeps_the_mount(definition: PoolDef, start: Open) -> None:
    """aclose detaches: the mount is there for others and for the next start."""
    session = await start()
    await session.aclose()
    await session.aclose()
    assert len(ids(definition)) == 1


async def test_stop_of_a_used_mount_says_so(definition: PoolDef, start: Open) -> None:
    """A file held open by someone keeps the pool mounted: EBUSY in words, and the session works on."""
    session = await start()
    with (target(definition) / "used").open("wb"):
        with pytest.raises(StorageError, match="in use") as caught:
            await session.stop()
        assert caught.value.errno == errno.EBUSY
        assert list((await session.refresh(Snapshot.EMPTY)).by_name) == ["used"]
    await session.stop()
    assert ids(definition) == []


@pytest.mark.parametrize("what", ["tmpfs", "another volume", "a part of it"])
async def test_foreign_mount_is_refused_and_untouched(
    what: str, definition: PoolDef, start: Open, gluster: GlusterBed, fuse_mount: Path
) -> None:
    """Something else on the target stops the start with its name, and stays exactly as it was; stop leaves it too."""
    folder = target(definition)
    if what == "tmpfs":
        namespace.mount("elsewhere:/data", folder, "tmpfs")
    elif what == "another volume":
        namespace.bind(Path("/proc/self/fd"), folder)
    else:
        (fuse_mount / "inner").mkdir()
        namespace.bind(fuse_mount / "inner", folder)
    before = find_mount(str(folder), table())
    assert before is not None
    with pytest.raises(StorageError, match="is mounted there, not") as caught:
        await start()
    assert before.source in str(caught.value)
    assert find_mount(str(folder), table()) == before
    fuse.release(folder)
    session = await start()
    await session.stop()
    namespace.mount("elsewhere:/data", folder, "tmpfs")
    with pytest.raises(StorageError, match="elsewhere:/data"):
        await session.refresh(Snapshot.EMPTY)
    await session.stop()
    await session.cut_loose()
    assert len(ids(definition)) == 1


async def test_dead_client_is_mounted_anew_by_refresh(definition: PoolDef, start: Open) -> None:
    """When the FUSE client has died, the next refresh takes the dead mount away, mounts anew and serves."""
    session = await start()
    (target(definition) / "kept").write_bytes(b"")
    before = ids(definition)
    await asyncio.to_thread(fuse.kill, target(definition))
    with pytest.raises(OSError) as caught:
        os.listdir(target(definition))
    assert caught.value.errno == errno.ENOTCONN
    assert list((await session.refresh(Snapshot.EMPTY)).by_name) == ["kept"]
    assert len(ids(definition)) == 1
    assert os.listdir(target(definition)) == ["kept"]
    del before
    record = await session.refresh_volume("kept")
    assert record is not None


async def test_dead_client_is_mounted_anew_by_start(definition: PoolDef, start: Open) -> None:
    """A start that finds a dead mount of the pool's takes it away, although someone has a file open on it."""
    session = await start()
    held = os.open(target(definition) / "held", os.O_WRONLY | os.O_CREAT, 0o600)
    try:
        before = ids(definition)
        await asyncio.to_thread(fuse.kill, target(definition))
        await start()
        assert len(ids(definition)) == 1
        assert ids(definition) != before
        assert "held" in (await session.refresh(Snapshot.EMPTY)).by_name
    finally:
        with pytest.raises(OSError, match="not connected"):  # what was open on the dead mount is lost
            os.close(held)


async def test_dead_client_and_dead_server(
    definition: PoolDef, start: Open, gluster: GlusterBed, new_volume: str
) -> None:
    """What cannot be mounted anew is an error with the command's words, and leaves no mount and no process."""
    session = await start()
    await asyncio.to_thread(fuse.kill, target(definition))
    await asyncio.to_thread(gluster.stop_volume, new_volume)
    with pytest.raises((CommandError, OSError)):
        await session.refresh(Snapshot.EMPTY)
    assert ids(definition) == []
    assert clients() == 0
    await asyncio.to_thread(gluster.start_volume, new_volume)
    assert len(await session.refresh(Snapshot.EMPTY)) == 0


async def test_dead_bricks_keep_the_mount(
    definition: PoolDef, start: Open, gluster: GlusterBed, new_volume: str, make_context: Callable[..., Context]
) -> None:
    """A client without its bricks is no dead client: its mount stays for those who wait with it, and works again."""
    session = await start()
    (target(definition) / "kept").write_bytes(b"")
    before = ids(definition)
    await asyncio.to_thread(gluster.kill_brick, new_volume)
    for call in (lambda: session.refresh(Snapshot.EMPTY), lambda: start(make_context())):
        with pytest.raises(StorageError, match=r"no server of .* answers") as caught:
            await call()
        assert caught.value.errno == errno.ENOTCONN
    assert ids(definition) == before
    await asyncio.to_thread(lambda: gluster.start_volume(new_volume, force=True))
    async with asyncio.timeout(120):
        while True:
            try:
                snapshot = await session.refresh(Snapshot.EMPTY)
                break
            except StorageError:
                await asyncio.sleep(0.05)
    assert list(snapshot.by_name) == ["kept"]
    assert ids(definition) == before


async def test_unmounted_by_someone_is_mounted_anew(definition: PoolDef, start: Open) -> None:
    """An administrator's umount does not make the pool list the empty folder below: it is mounted again."""
    session = await start()
    (target(definition) / "kept").write_bytes(b"")
    await asyncio.to_thread(namespace.unmount, target(definition), lazy=True)
    (target(definition) / "trap").write_bytes(b"")
    assert list((await session.refresh(Snapshot.EMPTY)).by_name) == ["kept"]
    assert len(ids(definition)) == 1


async def test_remounted_by_someone_is_followed(
    definition: PoolDef, start: Open, make_context: Callable[..., Context]
) -> None:
    """After a umount and mount by another process the session leaves the old mount for the new one."""
    session = await start()
    await session.refresh(Snapshot.EMPTY)
    await asyncio.to_thread(namespace.unmount, target(definition), lazy=True)
    other = await NetfsBackend().open(definition, make_context())
    (target(definition) / "new").write_bytes(b"")
    assert list((await session.refresh(Snapshot.EMPTY)).by_name) == ["new"]
    assert len(ids(definition)) == 1
    await other.aclose()


async def test_prove_tells_where_a_descriptor_is(definition: PoolDef, start: Open, context: Context) -> None:
    """A descriptor on the mount is proved; one of the folder below, or of a mount that is gone, is not."""
    folder = target(definition)
    below = os.open(folder, os.O_RDONLY)
    mount = MountPoint(definition, context)
    with pytest.raises(OSError) as caught:
        await asyncio.to_thread(mount.prove, below)
    assert caught.value.errno == errno.ENOTCONN
    await start()
    on = os.open(folder, os.O_RDONLY)
    await asyncio.to_thread(mount.prove, on)
    with pytest.raises(OSError) as caught:
        await asyncio.to_thread(mount.prove, below)
    assert caught.value.errno == errno.ESTALE
    namespace.unmount(folder, lazy=True)
    with pytest.raises(OSError) as caught:
        await asyncio.to_thread(mount.prove, on)
    assert caught.value.errno == errno.ENOTCONN
    os.close(below)
    os.close(on)


async def test_frozen_client_meets_the_deadline(definition: PoolDef, start: Open, context: Context) -> None:
    """A frozen client costs a refresh its deadline and no more; thawed, the session goes on."""
    session = await start()
    (target(definition) / "kept").write_bytes(b"")
    await asyncio.to_thread(fuse.freeze, target(definition))
    sound, context.lane.timeout = context.lane.timeout, 1.0  # only for calls that hang
    session.context = msgspec.structs.replace(context, timeout=1.0)
    try:
        with pytest.raises(LaneTimeoutError):
            await session.refresh(Snapshot.EMPTY)
    finally:
        await asyncio.to_thread(fuse.thaw, target(definition))
    context.lane.timeout, session.context = sound, context
    while True:
        with anyio.move_on_after(60):
            try:
                assert list((await session.refresh(Snapshot.EMPTY)).by_name) == ["kept"]
                break
            except TimeoutError:
                continue


async def test_start_on_a_frozen_mount_meets_the_deadline(
    definition: PoolDef, start: Open, make_context: Callable[..., Context]
) -> None:
    """Joining a mount that hangs fails in time and leaves the mount as it is."""
    await start()
    before = ids(definition)
    await asyncio.to_thread(fuse.freeze, target(definition))
    try:
        with pytest.raises(TimeoutError):
            await start(make_context(timeout=0.5))
        assert ids(definition) == before
    finally:
        await asyncio.to_thread(fuse.thaw, target(definition))


async def test_cut_loose_frees_what_hangs(
    definition: PoolDef, start: Open, make_context: Callable[..., Context]
) -> None:
    """With every thread of the lane hung on a frozen mount, cutting loose returns them all and unmounts."""
    context = make_context(threads=2)
    session = await start(context)
    await session.refresh(Snapshot.EMPTY)
    pid = await asyncio.to_thread(fuse.freeze, target(definition))
    sound, context.lane.timeout = context.lane.timeout, 0.5  # only for calls that hang
    session.context = msgspec.structs.replace(context, timeout=0.5)
    for _ in range(4):
        with pytest.raises(TimeoutError):
            await session.refresh(Snapshot.EMPTY)
    context.lane.timeout = sound
    await session.cut_loose()
    assert ids(definition) == []
    assert not [mount for mount in fuse.mounts() if "fusectl" in mount.target and "astore" in mount.target]
    with anyio.fail_after(60):
        while True:
            try:
                await context.lane.run(int)
                break
            except TimeoutError:
                await anyio.sleep(0.02)
    with pytest.raises(OSError):
        await session.refresh(Snapshot.EMPTY)
    assert ids(definition) == []
    await session.aclose()
    processes.end(lambda: [pid] if processes.alive(pid) else [])


async def test_cut_loose_of_a_dead_mount(definition: PoolDef, start: Open) -> None:
    """A mount whose client is dead has no connection to abort any more, and goes all the same; twice is no error."""
    session = await start()
    await asyncio.to_thread(fuse.kill, target(definition))
    await session.cut_loose()
    await session.cut_loose()
    assert ids(definition) == []


async def test_mount_that_hangs_is_killed_and_undone(
    definition: PoolDef, gluster: GlusterBed, make_context: Callable[..., Context]
) -> None:
    """A server that takes the call and never answers: the start ends in time, and nothing mounts when it wakes up."""
    daemons = [pid for pid in gluster.pids() if "glusterd" in processes.arguments(pid)[0].rpartition("/")[2]]
    daemons = [pid for pid in daemons if "glusterfsd" not in processes.arguments(pid)[0]]
    processes.send(daemons, signal.SIGSTOP)
    try:
        with pytest.raises(TimeoutError):
            await NetfsBackend().open(definition, make_context(timeout=1.0))
        assert ids(definition) == []
        assert clients() == 0
    finally:
        processes.send(daemons, signal.SIGCONT)
    await asyncio.sleep(0.5)
    assert ids(definition) == []


@pytest.mark.parametrize("after", [0.0, 0.005, 0.02, 0.04, 0.06])
async def test_cancelled_start_leaves_nothing(
    after: float, definition: PoolDef, make_context: Callable[..., Context]
) -> None:
    """Cancelled at whatever moment, a start that did not finish has mounted nothing and left no process."""
    task = asyncio.create_task(NetfsBackend().open(definition, make_context()))
    await asyncio.sleep(after)
    task.cancel()
    try:
        session = await task
    except asyncio.CancelledError:
        deadline = time.monotonic() + 200
        while (ids(definition) or clients()) and time.monotonic() < deadline:
            await asyncio.sleep(0.02)
        assert ids(definition) == []
        assert clients() == 0
    else:
        await session.stop()
        await session.aclose()


async def test_wrong_volume_name_is_an_error_in_words(definition: PoolDef, start: Open) -> None:
    """A volume that does not exist fails the start, with the command in the error and nothing mounted."""
    wrong = msgspec.structs.replace(definition, source=msgspec.structs.replace(definition.source, directory="nosuch"))
    with pytest.raises(CommandError, match="mount"):
        await start(definition=wrong)
    assert ids(definition) == []
    assert clients() == 0


async def test_missing_target_is_an_error_in_words(definition: PoolDef, start: Open) -> None:
    """A target that does not exist is said so, before mount is run."""
    target(definition).rmdir()
    with pytest.raises(StorageError, match="create it, or build the pool") as caught:
        await start()
    assert caught.value.errno == errno.ENOENT
    target(definition).touch()
    with pytest.raises(StorageError) as caught:
        await start()
    assert caught.value.errno == errno.ENOTDIR
    target(definition).unlink()
    target(definition).mkdir()


async def test_target_through_a_symbolic_link(definition: PoolDef, start: Open, tmp_path: Path) -> None:
    """A target that is a link is mounted where the link leads, found there again, and unmounted."""
    link = tmp_path / "link"
    link.symlink_to(target(definition))
    linked = msgspec.structs.replace(definition, target=msgspec.structs.replace(definition.target, path=str(link)))
    session = await start(definition=linked)
    (mount,) = ids(definition)
    (link / "seen").write_bytes(b"")
    snapshot = await session.refresh(Snapshot.EMPTY)
    assert snapshot.by_name["seen"].path == f"{link}/seen"
    await start(definition=linked)
    assert ids(definition) == [mount]
    await session.stop()
    assert ids(definition) == []


async def test_second_host_serves_when_the_first_is_down(definition: PoolDef, start: Open, gluster: GlusterBed) -> None:
    """A glusterfs pool whose first host does not answer is mounted by way of the next."""
    hosts = (Host("127.1.1.99"), Host(gluster.host))
    spread = msgspec.structs.replace(definition, source=msgspec.structs.replace(definition.source, hosts=hosts))
    session = await start(definition=spread)
    assert len(ids(definition)) == 1
    await session.stop()
    assert ids(definition) == []
