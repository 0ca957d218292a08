"""What test_netfs_kernel_clients.py runs in a guest: netfs pools on real NFS and CIFS mounts; writes down what was seen.

guest_pools.py RESULT.json
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import astore
from astore_netfs import mount_argv
from astore_netfs.mounting.mount import MARK

sys.path.append(str(Path(__file__).parents[2]))

from beds import guest_servers as servers

HOST = "127.0.0.1"
HOST6 = "::1"
STATE = Path("/run/state")
FRESH = ("actimeo=0", "lookupcache=none")

HUNG = """
import asyncio, sys, time, astore
async def main():
    async with astore.Manager(sys.argv[1]) as manager:
        report = await manager.refresh_all(timeout=5, full=True)
        assert len(report.failed) == 1, report
    print(time.time(), flush=True)
asyncio.run(main())
"""

Seen = dict[str, Any]


def definition(
    name: str, kind: str, directory: str, *options: str, version: str | None = None, host: str = HOST
) -> astore.PoolDef:
    """A pool that is mounted on /run/mnt/NAME."""
    target = Path("/run/mnt") / name
    target.mkdir(parents=True, exist_ok=True)
    return astore.PoolDef(
        type="netfs",
        name=name,
        source=astore.Source(hosts=(astore.Host(host),), directory=directory, format=kind, protocol_version=version),
        target=astore.Target(path=str(target)),
        mount_options=options,
    )


def mounted(name: str) -> list[list[str]]:
    """Of each mount on a pool's target: its number, type, source and options."""
    found = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields, rest = (part.split() for part in line.split(" - "))
        if fields[4] == f"/run/mnt/{name}":
            found.append([fields[0], rest[0], rest[1], f"{fields[5]},{rest[2]}"])
    return found


def marked() -> list[str]:
    """The programs that mounts have left running, except rpc.statd, which is for all of them."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if f"{MARK}=".encode() in (folder / "environ").read_bytes():
                found.append((folder / "comm").read_text().strip())
        except OSError:
            continue
    return [name for name in found if name != "rpc.statd"]


def names(pool: astore.Pool) -> list[str]:
    """The volumes, as the pool knows them."""
    return [volume.name for volume in pool.volumes]


async def failure(call: Awaitable[object]) -> tuple[str, str]:
    """The kind and the words of the error that a call ends with."""
    try:
        await call
    except Exception as error:
        return ("timeout" if isinstance(error, TimeoutError) else type(error).__name__), str(error)
    return "", "no error"


# -------------------------------------------------------------------------------------------------------- what is tried


async def discover(manager: astore.Manager) -> Seen:
    """Ask the host for its exports."""
    found = await manager.discover("netfs", host=HOST)
    return {"found": [[item.source.format, item.source.directory, item.source.hosts[0].name] for item in found]}


async def shell(*lines: str) -> list[Any]:
    """The exit code of ``astore shell`` on a state folder of its own, and what its commands wrote."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "astore.cli", "shell"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, "ASTORE_STATE_DIR": "/run/command-state", "COLUMNS": "200"},
    )
    said, _ = await process.communicate("\n".join(lines).encode())
    return [process.returncode, said.decode().splitlines()]


async def define_found(manager: astore.Manager, name: str, host: str) -> Seen:
    """The command defines a pool of the export that it finds on a host; another process uses it."""
    define = f"pool discover netfs {host} --define {name} --target /run/mnt/{name}"
    seen: Seen = {"defined": await shell(define, f"pool build {name}", f"pool start {name}"), "mounts": mounted(name)}
    seen["used"] = await shell(f"vol create {name} new.raw 1M", f"vol list {name} --name", f"pool stop {name}")
    seen["mounts after"] = mounted(name)
    seen["served"] = (servers.EXPORT / "new.raw").stat().st_size
    (servers.EXPORT / "new.raw").unlink()
    return seen


async def live(manager: astore.Manager, pool_def: astore.PoolDef, served: Path) -> Seen:
    """A pool's life: start, refresh, a second process, stop; it is forgotten afterwards."""
    name = pool_def.name
    pool = await manager.define(pool_def)
    await pool.start(timeout=60)
    seen: Seen = {"mounts": mounted(name), "first": names(pool), "capacity": pool.info.capacity}
    (served / f"{name}.new").write_bytes(b"n" * 100)
    outcome = await pool.refresh(timeout=60)
    seen["outcome"] = [outcome.added, outcome.changed, outcome.removed]
    async with astore.Manager(STATE) as second:
        again = second.pool(name)
        await again.refresh(timeout=60)
        seen["second"] = names(again)
    seen["mounts then"] = mounted(name)
    seen["busy"] = await busy(pool, Path(f"/run/mnt/{name}") / "held")
    await pool.stop()
    seen["mounts after"] = mounted(name)
    (served / f"{name}.new").unlink()
    (served / "held").unlink()
    return seen


async def busy(pool: astore.Pool, path: Path) -> list[object]:
    """What stopping a pool says in which a file is open."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    try:
        return [*await failure(pool.stop()), pool.state]
    finally:
        os.close(fd)


async def refuse_part(manager: astore.Manager, pool_def: astore.PoolDef, inner: str) -> Seen:
    """A folder of the pool's own source, bound on the target of the pool: not what the pool is."""
    pool = await manager.define(pool_def)
    target = Path(f"/run/mnt/{pool.name}")
    whole = target.with_suffix(".whole")
    whole.mkdir()
    argv = [*mount_argv(pool_def)[:-1], str(whole)]
    await asyncio.to_thread(servers.run, *argv)
    await asyncio.to_thread(servers.run, "mount", "--bind", str(whole / inner), str(target))
    try:
        before = mounted(pool.name)
        kind, words = await failure(pool.start(timeout=60))
        return {"error": kind, "words": words, "before": before, "after": mounted(pool.name)}
    finally:
        await asyncio.to_thread(servers.run, "umount", str(target))
        await asyncio.to_thread(servers.run, "umount", str(whole))


def arguments() -> str:
    """The arguments of all programs."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            found.append(file.read_bytes().decode(errors="replace"))
    return "\n".join(found)


@contextlib.asynccontextmanager
async def slow_mount() -> AsyncIterator[None]:
    """Have mount.cifs take a second longer, with its arguments, so that whoever looks at programs sees it."""
    program = shutil.which("mount.cifs") or "/usr/sbin/mount.cifs"
    real, slow = Path("/run/real/mount.cifs"), Path("/run/slow")
    await asyncio.to_thread(real.parent.mkdir, exist_ok=True)
    await asyncio.to_thread(shutil.copy, program, real)
    await asyncio.to_thread(slow.write_text, f'#!/bin/sh\nsleep 1\nexec {real} "$@"\n')
    await asyncio.to_thread(slow.chmod, 0o755)
    await asyncio.to_thread(servers.run, "mount", "--bind", str(slow), program)
    try:
        yield
    finally:
        await asyncio.to_thread(servers.run, "umount", program)


async def log_in(manager: astore.Manager, name: str, *options: str) -> Seen:
    """A share that asks for a password: what comes of it, and who could see the password meanwhile."""
    pool = await manager.define(definition(name, "cifs", "private", "actimeo=0", *options))
    looked, mounting, shown = 0, False, False
    async with slow_mount():
        starting = asyncio.ensure_future(failure(pool.start(timeout=60)))
        while not starting.done():
            text = await asyncio.to_thread(arguments)
            looked += 1
            mounting = mounting or "mount.cifs" in text
            shown = shown or servers.PASSWORD in text or "Sesame" in text
            await asyncio.sleep(0)
        kind, words = await starting
    return {
        "error": kind,
        "words": words,
        "looked": looked,
        "mounting": mounting,
        "shown": shown or "Sesame" in words,
        "mounts": mounted(name),
        "names": names(pool),
        "left": [str(path) for path in Path("/run").glob("astore-*")],
    }


async def refuse_missing(manager: astore.Manager) -> Seen:
    """A folder that is not exported."""
    pool = await manager.define(definition("missing", "nfs", "/nowhere", version="4.2"))
    kind, words = await failure(pool.start(timeout=60))
    return {"error": kind, "words": words, "mounts": mounted("missing"), "marked": marked()}


async def renew(manager: astore.Manager) -> Seen:
    """The exported folder is replaced by another: the mount's handle is stale."""
    pool = await manager.define(definition("stale", "nfs", str(servers.EXPORT), *FRESH, version="3"))
    await pool.start(timeout=60)
    before = mounted("stale")
    shutil.rmtree(servers.EXPORT)
    servers.make_export()
    (servers.EXPORT / "later.raw").touch()
    await asyncio.to_thread(servers.run, "exportfs", "-f")
    outcome = await pool.refresh(timeout=60)
    seen = {"added": outcome.added, "before": before, "after": mounted("stale"), "volumes": names(pool)}
    (servers.EXPORT / "later.raw").unlink()
    return seen


async def hang(manager: astore.Manager, name: str, pool: astore.Pool) -> Seen:
    """The pool's server does not answer any more."""
    seen: Seen = {}
    before = names(pool)
    began = time.monotonic()
    report = await manager.refresh_all(timeout=5, full=True)
    seen["seconds"] = time.monotonic() - began
    seen["failed"] = [[outcome.pool, isinstance(outcome.error, TimeoutError)] for outcome in report.failed]
    seen["others"] = [outcome.pool for outcome in report.pools if outcome.error is None]
    seen["state"], seen["kept"] = pool.state, names(pool) == before
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", HUNG, str(STATE), stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    assert process.stdout is not None
    said = (await process.stdout.read()).decode()
    seen["exit"], seen["exit said"] = await process.wait(), said
    if seen["exit"] == 0:
        seen["exit seconds"] = time.time() - float(said.split()[-1])
    began = time.monotonic()
    await pool.stop(force=True)
    seen["stop seconds"] = time.monotonic() - began
    seen["stopped"], seen["mounts"] = pool.state, mounted(name)
    return seen


async def hang_nfs(manager: astore.Manager) -> Seen:
    """A hard mount whose server is gone; then a mount that cannot even begin; then the server is back."""
    pool = await manager.define(definition("hung", "nfs", "/", "hard", version="4.2"))
    await pool.start(timeout=60)
    await asyncio.to_thread(servers.hang_nfs)
    try:
        seen = await hang(manager, "hung", pool)
        deadline = time.monotonic() + 120
        while manager.statistics().lanes.stuck and time.monotonic() < deadline:
            await asyncio.sleep(0.05)
        seen["stuck"] = manager.statistics().lanes.stuck
        kind, _ = await failure(pool.start(timeout=1.5))
        seen["start"] = [kind, mounted("hung"), marked()]
    finally:
        await asyncio.to_thread(servers.wake_nfs)
    await pool.start(timeout=60)
    seen["again"] = names(pool)
    await pool.stop()
    return seen


async def forget(manager: astore.Manager) -> None:
    """Bring the next trial back to where this one began."""
    for pool in manager.pools():
        if pool.type == "netfs":
            if pool.active:
                await pool.stop(force=True)
            await pool.undefine()


async def main(result: Path) -> None:
    """Try everything; what goes wrong where it should not is written down, too."""
    seen: dict[str, Seen] = {}
    await asyncio.to_thread(servers.serve_nfs)
    Path("/run/local").mkdir()
    async with astore.Manager(STATE) as manager:
        other = await manager.define(astore.PoolDef(type="dir", name="local", target=astore.Target(path="/run/local")))
        await other.start()

        async def tried(name: str, call: Callable[..., Awaitable[Seen]], *args: Any) -> None:
            began = time.monotonic()
            try:
                async with asyncio.timeout(90):
                    seen[name] = await call(manager, *args)
            except Exception:
                seen[name] = {"failed here": traceback.format_exc() + servers.kernel_log()}
            await forget(manager)
            print(f"{name}: {time.monotonic() - began:.1f} s", flush=True)
            result.write_text(json.dumps(seen))

        await tried("discover", discover)
        await tried("defined", define_found, "found", HOST)
        await tried("defined by ipv6", define_found, "found6", HOST6)
        for name, kind, version, host, directory in (
            ("nfs42", "nfs", "4.2", HOST, "/"),
            ("nfs3", "nfs", "3", HOST, str(servers.EXPORT)),
            ("auto", "auto", None, HOST, "/"),
            ("ipv6", "nfs", "4.2", HOST6, "/"),
        ):
            pool_def = definition(name, kind, directory, *FRESH, version=version, host=host)
            await tried(name, live, pool_def, servers.EXPORT)
        await tried("nfs part", refuse_part, definition("part", "nfs", "/"), "sub")
        await tried("missing", refuse_missing)
        await tried("stale", renew)
        await tried("hung nfs", hang_nfs)
        if servers.has_cifs():
            await asyncio.to_thread(servers.serve_cifs)
            await tried("cifs", live, definition("cifs", "cifs", "/share", "actimeo=0"), servers.SHARE)
            inner = definition("cifs-inner", "cifs", "share/inner", "actimeo=0")
            await tried("cifs inner", live, inner, servers.SHARE / "inner")
            secret = servers.PASSWORD
            await tried("login", log_in, "login", "username=root", f"password={secret}")
            await tried("login at once", log_in, "once", f"user=root%{secret}", f"password2={secret}")
            await tried("login refused", log_in, "refused", "username=root", "password=Sesame no")
            await tried("login as guest", log_in, "guest")
            await tried("cifs part", refuse_part, definition("cifs-part", "cifs", "share"), "inner")
    seen["end"] = {"mounts": Path("/proc/self/mountinfo").read_text().count("/run/mnt/")}
    result.write_text(json.dumps(seen))


asyncio.run(main(Path(sys.argv[1])))
