"""Mounting and unmounting where something is in the way: other processes, programs that lie, and none of it costs a mount."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from leaks import descriptors, new_descriptors
from netfs.looking import Open, clients, ids, refuse_to_detach, table, target

from astore.backend import CommandResult, Context
from astore.errors import CommandError, StorageError
from astore.model import DiscoveredSource, PoolDef, Snapshot
from astore_netfs import NetfsBackend, find_mount
from astore_netfs.mounting import kernel, mount
from astore_netfs.mounting.mount import MountPoint
from astore_netfs.mounting.session import MountedTree
from beds import fuse, namespace
from beds.gluster import GlusterBed

pytestmark = [pytest.mark.root, pytest.mark.gluster, pytest.mark.fuse]


def scripted(context: Context, act: Callable[[], object], *, fails: str | None = None) -> Context:
    """The context, with a program runner that calls ``act`` on a thread instead, and says ``fails`` if it is to fail."""

    async def run(argv: Sequence[str], **_: Any) -> CommandResult:
        await asyncio.to_thread(act)
        if fails is not None:
            raise CommandError(fails, argv=argv, returncode=32, stderr=fails)
        return CommandResult(tuple(argv), 0, b"", b"")

    return msgspec.structs.replace(context, run_command=run)


def nothing() -> None:
    """What a program does that says it has done something."""


def fall_over(tree: MountedTree, mount: MountPoint) -> None:
    """In the place of what opens the mounted folder."""
    raise OSError(errno.EIO, "the server fell over")


# ------------------------------------------------------------------------------------------------------- mounting


async def test_mount_that_did_nothing_is_an_error(definition: PoolDef, context: Context) -> None:
    """A program that ends with 0 and has mounted nothing is not believed."""
    with pytest.raises(StorageError, match="nothing is mounted there"):
        await NetfsBackend().open(definition, scripted(context, nothing))


async def test_mount_that_failed_since_another_was_faster(
    definition: PoolDef, context: Context, gluster: GlusterBed, new_volume: str, tmp_path: Path
) -> None:
    """Who mounts the very same without asking astore, at the same moment, has made the pool's mount: it is used and kept."""

    def other() -> None:
        fuse.mount_gluster(gluster.host, new_volume, target(definition), tmp_path / "log")

    session = await NetfsBackend().open(definition, scripted(context, other, fails="already mounted"))
    assert len(ids(definition)) == 1
    assert len(await session.refresh(Snapshot.EMPTY)) == 0
    await session.aclose()


async def test_mount_that_failed_and_left_something_else(
    definition: PoolDef, context: Context, stand_in: Callable[[str, Path], None]
) -> None:
    """Something else on the target, mounted meanwhile, is not taken away with the failure."""
    failing = scripted(context, lambda: stand_in("elsewhere:/x", target(definition)), fails="no")
    with pytest.raises(CommandError):
        await NetfsBackend().open(definition, failing)
    assert len(ids(definition)) == 1


async def test_what_cannot_be_taken_back_is_told(
    definition: PoolDef, context: Context, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A clean-up that fails is logged and does not hide the error that made it necessary."""

    def refuse(mark: str) -> int:
        raise PermissionError(errno.EPERM, "not yours")

    monkeypatch.setattr(kernel, "kill_marked", refuse)
    with pytest.raises(CommandError, match="no such volume"):
        await NetfsBackend().open(definition, scripted(context, nothing, fails="no such volume"))
    assert "could not be taken back" in capsys.readouterr().out


@pytest.mark.parametrize("stuck", [False, True])
async def test_mounted_but_not_opened_is_unmounted(
    definition: PoolDef,
    context: Context,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    stuck: bool,
) -> None:
    """A start that mounted and then failed takes its mount away; if it cannot, the first error is the one that is told."""

    monkeypatch.setattr(MountedTree, "__init__", fall_over)
    if stuck:
        refuse_to_detach(monkeypatch, definition)
    with pytest.raises(OSError, match="fell over"):
        await NetfsBackend().open(definition, context)
    assert len(ids(definition)) == stuck
    assert ("could not be taken back" in capsys.readouterr().out) == stuck


async def test_joined_but_not_opened_stays(
    definition: PoolDef, start: Open, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A start that failed on a mount which was there before leaves it."""
    await start()
    before = ids(definition)

    monkeypatch.setattr(MountedTree, "__init__", fall_over)
    with pytest.raises(OSError, match="fell over"):
        await NetfsBackend().open(definition, context)
    assert ids(definition) == before


async def test_another_process_mounts(
    definition: PoolDef, make_context: Callable[..., Context], gluster: GlusterBed, new_volume: str, tmp_path: Path
) -> None:
    """The claim of one that never gets done costs a start its deadline; of one that does, the start has its mount."""
    folder = os.open(target(definition), os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        with pytest.raises(TimeoutError, match="another process"):
            await NetfsBackend().open(definition, make_context(timeout=4.0))
        assert ids(definition) == []
        starting = asyncio.create_task(NetfsBackend().open(definition, make_context()))
        await asyncio.sleep(0.1)
        # by a bind mount of another mount, which comes at once: the start finds no moment in between
        await asyncio.to_thread(fuse.mount_gluster, gluster.host, new_volume, tmp_path / "other", tmp_path / "log")
        namespace.bind(tmp_path / "other", target(definition))
        await asyncio.to_thread(fuse.release, tmp_path / "other")
        (theirs,) = ids(definition)
    finally:
        os.close(folder)
    session = await starting
    assert ids(definition) == [theirs]
    assert clients() == 0
    await session.stop()
    await session.aclose()
    assert ids(definition) == []


async def test_claim_that_fails_keeps_nothing_open(definition: PoolDef, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a folder cannot be locked its descriptor is closed again."""

    def refuse(fd: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "no locks here")

    before = descriptors()
    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(OSError, match="no locks"):
        await asyncio.to_thread(mount._claim, str(target(definition)))
    assert not await asyncio.to_thread(new_descriptors, before)


async def test_mount_that_fails_otherwise_is_not_stale(
    definition: PoolDef, start: Open, monkeypatch: pytest.MonkeyPatch, context: Context
) -> None:
    """An error that is not of a dead mount is the caller's, and the mount stays."""
    await start()
    before = ids(definition)

    def fail(path: str) -> None:
        raise OSError(errno.EIO, "input/output error", path)

    monkeypatch.setattr(mount, "_ask", fail)
    with pytest.raises(OSError, match="input/output"):
        await start()
    assert ids(definition) == before


async def test_stale_mount_that_is_covered_meanwhile(
    definition: PoolDef, start: Open, monkeypatch: pytest.MonkeyPatch, stand_in: Callable[[str, Path], None]
) -> None:
    """What somebody mounts over a stale mount while it is looked at is not what is taken away."""
    await start()

    def cover(path: str) -> None:
        stand_in("elsewhere:/x", target(definition))
        raise OSError(errno.ESTALE, "stale", path)

    monkeypatch.setattr(mount, "_ask", cover)
    monkeypatch.setattr(kernel, "gluster_client_lives", lambda path: False)
    with pytest.raises(StorageError, match="elsewhere:/x"):
        await start()
    assert len(ids(definition)) == 2


# ----------------------------------------------------------------------------------------------------- unmounting


async def test_idle_session_keeps_nothing_open(definition: PoolDef, start: Open) -> None:
    """Whatever became of its calls, a session that is idle has nothing open on the mount: anybody may unmount it."""
    session = await start()
    (target(definition) / "kept").write_bytes(b"")
    await session.refresh(Snapshot.EMPTY)
    await session.refresh_volume("kept")
    for steps in range(30):
        refresh = asyncio.create_task(session.refresh(Snapshot.EMPTY))
        for _ in range(steps):
            await asyncio.sleep(0)
        refresh.cancel()
        await asyncio.gather(refresh, return_exceptions=True)
    async with asyncio.timeout(120):
        while True:
            try:
                namespace.unmount(target(definition))
                break
            except OSError:  # a call that was given up is in there still
                await asyncio.sleep(0.02)
    assert ids(definition) == []


async def test_umount_that_is_refused_is_an_error_in_words(definition: PoolDef, start: Open, context: Context) -> None:
    """What umount says goes to the caller at once if it is not that the mount is in use."""
    await start()
    refused = scripted(context, nothing, fails="umount: only root can do that")
    with pytest.raises(CommandError, match="only root"):
        await MountPoint(definition, refused).unmount()
    assert len(ids(definition)) == 1


async def test_umount_that_failed_since_another_was_faster(definition: PoolDef, start: Open, context: Context) -> None:
    """If nothing is mounted any more, it does not matter who unmounted it."""
    await start()
    other = scripted(context, lambda: namespace.unmount(target(definition), lazy=True), fails="not mounted")
    await MountPoint(definition, other).unmount()
    assert ids(definition) == []


async def test_stop_ends_what_was_mounted_twice(
    definition: PoolDef, start: Open, gluster: GlusterBed, new_volume: str, tmp_path: Path
) -> None:
    """Mounts of the pool's source on top of each other are all the pool's."""
    session = await start()
    fuse.mount_gluster(gluster.host, new_volume, target(definition), tmp_path / "log")
    assert len(ids(definition)) == 2
    await session.stop()
    assert ids(definition) == []


# --------------------------------------------------------------------------------------------------- the backend


async def test_build_and_delete(definition: PoolDef, start: Open, context: Context) -> None:
    """Building makes the target, or nothing where the pool is mounted; deleting removes it."""
    backend = NetfsBackend()
    await backend.delete(definition, context)
    assert not target(definition).exists()
    await backend.build(definition, context)
    assert target(definition).is_dir()
    session = await start()
    mode = target(definition).stat().st_mode
    await backend.build(definition, context)
    assert target(definition).stat().st_mode == mode
    with pytest.raises(OSError, match=r"(?i)busy"):
        await backend.delete(definition, context)
    await session.stop()


async def test_discovery_of_volumes(gluster: GlusterBed, new_volume: str, context: Context) -> None:
    """A host without NFS is found by its Gluster volumes, each the directory that a definition names."""
    found = await NetfsBackend().discover(gluster.host, context)
    assert all(isinstance(item, DiscoveredSource) and item.type == "netfs" for item in found)
    assert ("glusterfs", new_volume, gluster.host) in [
        (item.source.format, item.source.directory, item.source.hosts[0].name) for item in found
    ]


async def test_mounts_of_others_stay_through_a_life(
    definition: PoolDef, start: Open, fuse_mount: Path, tmp_path: Path, stand_in: Callable[[str, Path], None]
) -> None:
    """Whatever else is mounted, of the same volume and beside the pool, is there unchanged when the pool has stopped."""
    stand_in("elsewhere:/x", tmp_path / "beside")
    before = table()
    session = await start()
    await session.refresh(Snapshot.EMPTY)
    await session.stop()
    assert table() == before
    assert find_mount(str(fuse_mount), before) is not None
