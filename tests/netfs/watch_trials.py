"""For tests of watched netfs pools, here and in a guest: what changes, and how to tell who told of it."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from watching_support import by_another_process, until, watched

import astore
from astore.manager import pool_watch

MMAP = """python3 -c "
import mmap, os
fd = os.open('old', os.O_RDWR); view = mmap.mmap(fd, 4096); os.close(fd)
view[:4] = b'QFI\\xfb'; view.flush(); view.close()" """

BEFORE = "rm -rf -- * ../outside; head -c 8192 /dev/zero > old; echo 1 > other"

CHANGES = {
    "make": "echo x > new",
    "make sparse": "truncate -s 1M new",
    "grow": "truncate -s 1M old",
    "append": "echo x >> old",
    "truncate": "truncate -s 0 old",
    "chmod": "chmod 600 old",
    "rename": "mv old new",
    "rename in": "echo x > ../outside; mv ../outside new",
    "rename out": "mv old ../outside",
    "replace": "echo longer > .tmp; mv .tmp old",
    "link": "ln old new",
    "delete": "rm old",
    "delete and make": "rm old; truncate -s 5M old",
    "mmap": MMAP,
    "qemu-img": "qemu-img create -q -f qcow2 new 1G",
    "qemu-img resize": "qemu-img create -q -f qcow2 old 1G; qemu-img resize -q old 2G",
    "cp --reflink": "cp --reflink=auto old new",
    "a folder": "mkdir new",
    "all gone": "rm old other",
    "chown": "chown 12:34 old",
}

Outside = dict[str, tuple[object, ...]]


def outside(snapshot: astore.Snapshot) -> Outside:
    """What does not depend on where the folder is."""
    return {
        name: (info.type, info.format, info.capacity, info.physical, info.mode, info.uid, info.gid, info.inode)
        for name, info in snapshot.by_name.items()
    }


async def true_outside(folder: Path, state: Path) -> Outside:
    """What a full refresh of the same folder finds, as another Manager's dir pool."""
    async with astore.Manager(state) as other:
        pool = await other.create(f"<pool type='dir'><name>oracle</name><target><path>{folder}</path></target></pool>")
        await pool.refresh(full=True)
        found = outside(pool.snapshot)
        await pool.stop()
    return found


async def change_and_see(pool: astore.Pool, change: str, changed_in: Path, state: Path) -> float:
    """Change something in a folder of what the pool shows; return the seconds until the pool has seen it."""
    await by_another_process(BEFORE, changed_in)
    true = await true_outside(changed_in, state)
    await until(lambda: outside(pool.snapshot) == true, f"what was there before {change}")
    await by_another_process(CHANGES[change], changed_in)
    began = time.monotonic()
    true = await true_outside(changed_in, state)
    await until(lambda: outside(pool.snapshot) == true, f"{change}: {true}, not {outside(pool.snapshot)}")
    return time.monotonic() - began


def poll_every(seconds: float) -> None:
    """Poll pools so often while they change, from the next look on."""
    pool_watch.LEAST = seconds


async def told_at_once(pool: astore.Pool, folder: Path) -> None:
    """Assert that the kernel tells of what this machine changes. The watch has a large ``max_staleness``."""
    before = pool_watch.LEAST
    poll_every(600)
    for name in ("told-1", "told-2", "told-3"):  # a poll that was due may have seen the first
        await by_another_process(f"echo x > {name}", folder)
        await until(lambda name=name: name in pool.snapshot.by_name, f"a notice of {name}")  # type: ignore[misc]
    poll_every(before)
    await by_another_process("rm told-1 told-2 told-3", folder)
    await until(lambda: not {"told-1", "told-2", "told-3"} & pool.snapshot.by_name.keys(), "a notice of the end")


async def stopped_and_started(pool: astore.Pool, folder: Path, rounds: int) -> list[str]:
    """Stop and start a watched pool while its files change; return what is wrong."""
    wrong = []
    for number in range(rounds):
        await by_another_process(f"echo x > round-{number}", folder)
        if number % 2:
            await until(lambda number=number: f"round-{number}" in pool.snapshot.by_name, "a notice")  # type: ignore[misc]
        await pool.stop()
        await until(lambda: pool.info.freshness is None, "the end of its watch")
        await asyncio.sleep(0.1)  # what a late notice would do, it does now
        lines = await asyncio.to_thread(Path("/proc/self/mountinfo").read_text)
        if f" {folder} " in lines:
            wrong.append(f"round {number}: it is mounted")
        await pool.start()
        await watched(pool, "polled")
        if f"round-{number}" not in pool.snapshot.by_name:
            wrong.append(f"round {number}: {list(pool.snapshot.by_name)}")
    return wrong
