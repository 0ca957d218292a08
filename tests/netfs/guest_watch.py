"""What test_netfs_watch.py runs in a guest: watched pools on real NFS and CIFS mounts; writes down what was seen.

guest_watch.py RESULT.json
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
import traceback
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any

sys.path += [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

from core_fakes import eventually
from netfs.watch_trials import CHANGES, each_seen, poll_every, stopped_and_started, told_at_once
from watching_support import by_another_process, dir_pool, watched

import astore
from astore.manager import pool_watch
from astore.notices import FolderNotices
from beds import guest_servers as servers

STATE = Path("/run/state")
LOCAL = Path("/run/local")
ORACLE = Path("/run/oracle")
ON_CIFS = ("make", "grow", "truncate", "rename in", "replace", "delete", "a folder")
"""No links, owners, modes and mappings, and locks that qemu-img does not know."""
SERVED = ("make", "append", "rename in", "replace", "delete")
"""What is done on the server: a poll sees it, which is an ordinary refresh."""
ON_NFS3 = ("make", "grow", "chmod", "rename", "replace", "delete", "qemu-img")

Seen = dict[str, Any]


async def make(manager: astore.Manager, kind: str, directory: str, *options: str, version: str | None) -> astore.Pool:
    """Define and start a pool on /run/mnt."""
    target = Path("/run/mnt")
    target.mkdir(exist_ok=True)
    host = astore.Host("127.0.0.1")
    pool = await manager.define(
        astore.PoolDef(
            type="netfs",
            name="pool",
            source=astore.Source(hosts=(host,), directory=directory, format=kind, protocol_version=version),
            target=astore.Target(path=str(target)),
            mount_options=options,
        )
    )
    await pool.start(timeout=60)
    return pool


async def freshness_of(pool: astore.Pool) -> tuple[float, str]:
    """What the pool promises once it is watched."""
    await watched(pool, "polled")
    assert pool.info.freshness is not None
    return pool.info.freshness.bound, pool.info.freshness.note


async def each_change(manager: astore.Manager, pool: astore.Pool, served: Path, changes: Iterable[str]) -> Seen:
    """Kinds of change, by this machine and on the server: how long until each is seen."""
    seen: Seen = {}
    here, owned = Path("/run/mnt"), pool.definition.source.format != "cifs"
    poll_every(600)
    async with manager.watch(max_staleness=600):
        await watched(pool, "polled")
        seen["here"] = await each_seen(pool, changes, here, ORACLE, owned)
    poll_every(0.3)
    async with manager.watch(max_staleness=1):
        seen["bound"], seen["note"] = await freshness_of(pool)
        seen["served"] = await each_seen(pool, SERVED, served, ORACLE, owned)
    return seen


async def other_mount(manager: astore.Manager, pool: astore.Pool) -> Seen:
    """Changes through another mount of the export, whose protocol shares no delegations with the pool's."""
    other = Path("/run/other")
    await by_another_process(
        f"mkdir {other}; mount -t nfs -o vers=3,nolock,noac 127.0.0.1:{servers.EXPORT} {other}", STATE
    )
    try:
        poll_every(0.3)
        async with manager.watch(max_staleness=1):
            bound, _ = await freshness_of(pool)
            return {"bound": bound, "served": await each_seen(pool, [*SERVED, "grow", "chmod"], other, ORACLE)}
    finally:
        await by_another_process(f"umount {other}", STATE)


async def stop_and_start(manager: astore.Manager, pool: astore.Pool) -> Seen:
    """A watched pool is stopped and started."""
    poll_every(600)
    async with manager.watch(max_staleness=600):
        await watched(pool, "polled")
        wrong = await stopped_and_started(pool, Path("/run/mnt"), 4)
        await told_at_once(pool, Path("/run/mnt"))
        await pool.stop()
        mounted = " /run/mnt " in await asyncio.to_thread(Path("/proc/self/mountinfo").read_text)
    return {"wrong": wrong, "mounted": mounted}


async def hang(manager: astore.Manager, pool: astore.Pool) -> Seen:
    """The server is gone for a while: another pool's changes are told as ever; then a change on the server is seen."""
    poll_every(1)
    times: list[float] = []
    states: list[Any] = []
    async with manager.watch(max_staleness=1), manager.events(kinds={astore.PoolRetry}) as retries:
        local = manager.pool("local")
        await watched(pool, "polled")
        await watched(local)
        before = pool.volumes
        await asyncio.to_thread(servers.hang_nfs)
        try:
            for number in range(2):
                await anext(retries)
                states.append([pool.state, pool.volumes == before])
                began = time.monotonic()
                await by_another_process(f"echo x > {number}", LOCAL)
                await eventually(lambda number=number: str(number) in local.snapshot.by_name, "a notice")  # type: ignore[misc]
                times.append(time.monotonic() - began)
        finally:
            await asyncio.to_thread(servers.wake_nfs)
        await by_another_process("echo x > after", servers.EXPORT)
        await eventually(lambda: "after" in pool.snapshot.by_name, "the pool that hung")
    return {"times": times, "states": states}


async def forced(manager: astore.Manager, pool: astore.Pool) -> Seen:
    """A watched pool whose server is gone is stopped by force; with the server back, it is started and told."""
    poll_every(1)
    async with manager.watch(max_staleness=600):
        await watched(pool, "polled")
        await asyncio.to_thread(servers.hang_nfs)
        try:
            await pool.stop(force=True)
            mounted = " /run/mnt " in await asyncio.to_thread(Path("/proc/self/mountinfo").read_text)
        finally:
            await asyncio.to_thread(servers.wake_nfs)
        await pool.start(timeout=60)
        await watched(pool, "polled")
        await told_at_once(pool, Path("/run/mnt"))
    return {"mounted": mounted}


async def on_a_mount(manager: astore.Manager, pool: astore.Pool) -> Seen:
    """A dir pool whose folder is on the mount promises the same."""
    folder = Path("/run/mnt/folder")
    await asyncio.to_thread(folder.mkdir)
    below = await dir_pool(manager, folder, "below")
    async with manager.watch(max_staleness=1):
        seen = {"pool": await freshness_of(pool), "below": await freshness_of(below)}
    await below.stop()
    await below.undefine()
    return seen


async def main(result: Path) -> None:
    """Try everything; what goes wrong where it should not is written down, too."""
    seen: dict[str, Seen] = {}
    LOCAL.mkdir()
    await asyncio.to_thread(servers.serve_nfs)
    await asyncio.to_thread(servers.serve_cifs)
    pool_watch.FIRST_RETRY = pool_watch.LAST_RETRY = 0.5
    async with astore.Manager(STATE, call_timeout=5) as manager:
        await dir_pool(manager, LOCAL, "local")

        async def tried(name: str, call: Callable[..., Awaitable[Seen]], *source: str, **more: Any) -> None:
            began = time.monotonic()
            version = more.pop("version", "4.2")
            try:
                async with asyncio.timeout(300):
                    pool = await make(manager, *source, version=version)
                    seen[name] = await call(manager, pool, **more)
                    if pool.active:
                        await pool.stop()
                    await pool.undefine()
            except Exception:
                seen[name] = {"failed here": traceback.format_exc() + servers.kernel_log()}
                for one in manager.pools():
                    if one.type == "netfs":
                        if one.active:
                            await one.stop(force=True)
                        await one.undefine()
            print(f"{name}: {time.monotonic() - began:.1f} s", flush=True)
            result.write_text(json.dumps(seen))

        nfs, cifs = ("nfs", "/", "actimeo=1"), ("cifs", "share")
        await tried("nfs42", each_change, *nfs, served=servers.EXPORT, changes=CHANGES)
        await tried(
            "nfs3", each_change, "nfs", str(servers.EXPORT), "noac", version="3", served=servers.EXPORT, changes=ON_NFS3
        )
        await tried("other mount", other_mount, *nfs)
        await tried("cifs", each_change, *cifs, version=None, served=servers.SHARE, changes=ON_CIFS)
        await tried("stop nfs", stop_and_start, *nfs)
        await tried("stop cifs", stop_and_start, *cifs, version=None)
        await tried("hang", hang, *nfs)
        await tried("forced", forced, *nfs)
        await tried("defaults", on_a_mount, "nfs", "/")
    seen["end"] = {"left": len(FolderNotices._of_loops)}
    result.write_text(json.dumps(seen))


asyncio.run(main(Path(sys.argv[1])))
