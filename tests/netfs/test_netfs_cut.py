"""Mounts that are cut loose: what hangs returns, who uses what does not hang is spared, and nothing is mounted again."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from netfs.looking import Open, ids, refuse_to_detach, table, target

from astore.backend import Context
from astore.model import PoolDef, Snapshot
from astore_netfs import NetfsBackend, find_mount
from astore_netfs.mounting import kernel, mount
from beds import fuse, processes

pytestmark = [pytest.mark.root, pytest.mark.gluster, pytest.mark.fuse]


async def test_cut_spares_who_uses_what_does_not_hang(definition: PoolDef, start: Open) -> None:
    """A forced stop of a mount that works takes it out of the tree; files open on it go on."""
    session = await start()
    with (target(definition) / "used").open("w+b", buffering=0) as file:
        await session.cut_loose()
        assert ids(definition) == []
        file.write(b"data")
        file.seek(0)
        assert file.read() == b"data"


async def test_refresh_that_was_cut_loose_mounts_nothing(definition: PoolDef, start: Open) -> None:
    """A refresh that hung, and returns since the mount was cut loose, does not take that for a stale mount to be renewed."""
    session = await start()
    client = await asyncio.to_thread(fuse.freeze, target(definition))
    try:
        refresh = asyncio.create_task(session.refresh(Snapshot.EMPTY))
        mounted = find_mount(str(target(definition)), table())
        assert mounted is not None
        await asyncio.to_thread(processes.wait_until, lambda: kernel.fuse_hangs(mounted, 0.1), 20, "the refresh hangs")
        await session.cut_loose()
        with pytest.raises(OSError, match=r"cut loose|tree is closed"):
            await refresh
        assert ids(definition) == []
    finally:
        processes.end(lambda: [client] if processes.alive(client) else [])
    with pytest.raises(OSError, match="cut loose"):
        await session.mount.ensure()


async def test_cut_without_a_session(
    definition: PoolDef, start: Open, make_context: Callable[..., Context], tmp_path: Path
) -> None:
    """A mount that hangs so that no session can be opened is cut loose all the same, through a link as well."""
    await start()
    link = tmp_path / "link"
    link.symlink_to(target(definition))
    linked = msgspec.structs.replace(definition, target=msgspec.structs.replace(definition.target, path=str(link)))
    client = await asyncio.to_thread(fuse.freeze, target(definition))
    try:
        context = make_context()
        sound, context.lane.timeout = context.lane.timeout, 1.0  # only for calls that hang
        with pytest.raises(TimeoutError):
            await NetfsBackend().open(linked, msgspec.structs.replace(context, timeout=1.0))
        context.lane.timeout = sound
        await NetfsBackend().cut_loose(linked, context)
        assert ids(definition) == []
    finally:
        processes.end(lambda: [client] if processes.alive(client) else [])


@pytest.mark.parametrize(("frozen", "used"), [(False, False), (True, False), (True, True)])
async def test_cut_of_another_kind_of_mount(
    definition: PoolDef, start: Open, monkeypatch: pytest.MonkeyPatch, frozen: bool, used: bool
) -> None:
    """Where there is no fusectl to ask (NFS, CIFS), the mount is asked itself, and forced out only if it hangs."""
    session = await start()
    monkeypatch.setattr(mount, "_GLUSTER", frozenset())
    forced: list[str] = []
    fail_waiting = kernel.fail_waiting

    def watched(path: str) -> None:
        forced.append(path)
        fail_waiting(path)

    monkeypatch.setattr(kernel, "fail_waiting", watched)
    fd = os.open(target(definition), os.O_PATH) if used else -1  # which keeps it from being unmounted at once
    client = (await asyncio.to_thread(fuse.freeze, target(definition))) if frozen else 0
    await session.cut_loose()
    assert ids(definition) == []
    assert bool(forced) == frozen
    if used:
        os.close(fd)
    processes.end(lambda: [client] if client and processes.alive(client) else [])


async def test_cut_without_the_right_to_abort(
    definition: PoolDef, start: Open, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A connection that cannot be aborted is told; the mount is taken out of the tree."""
    session = await start()

    def refuse(mount: object, seconds: float) -> bool:
        raise PermissionError(errno.EPERM, "not yours")

    monkeypatch.setattr(kernel, "fuse_hangs", refuse)
    await session.cut_loose()
    assert ids(definition) == []
    assert "not aborted" in capsys.readouterr().out


async def test_cut_that_is_refused_is_told(definition: PoolDef, start: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mount that cannot be taken out of the tree is an error."""
    session = await start()
    refuse_to_detach(monkeypatch, definition)
    with pytest.raises(PermissionError):
        await session.cut_loose()


async def test_unmount_that_takes_leave_at_length(
    definition: PoolDef, start: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An unmount call that has taken the mount out of the tree is not waited for any longer."""
    session = await start()
    released = asyncio.Event()
    loop = asyncio.get_running_loop()
    detach = kernel.detach

    def slowly(path: str, *, force: bool = False) -> None:
        detach(path)
        if path != str(target(definition)):
            return
        asyncio.run_coroutine_threadsafe(released.wait(), loop).result(30)

    monkeypatch.setattr(kernel, "detach", slowly)
    async with asyncio.timeout(20):
        await session.cut_loose()
    assert ids(definition) == []
    released.set()


async def test_aside_gives_up_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A call aside of the lane that does not return is left behind, and its late result goes nowhere."""
    released = asyncio.Event()
    loop = asyncio.get_running_loop()

    def hang() -> None:
        asyncio.run_coroutine_threadsafe(released.wait(), loop).result(30)

    with pytest.raises(TimeoutError):
        await mount.aside(hang, timeout=0.05)
    released.set()
    await asyncio.sleep(0.1)
    assert await mount.aside(lambda: 7, timeout=10) == 7
