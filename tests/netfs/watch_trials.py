"""For tests of watched netfs pools, here and in a guest: what changes, and how to tell who told of it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from pathlib import Path

from core_fakes import eventually
from watching_support import by_another_process, watched

import astore
from astore.manager import pool_watch

MMAP = """python3 -c "
import mmap, os
fd = os.open('old', os.O_RDWR); view = mmap.mmap(fd, 4096); os.close(fd)
view[:4] = b'QFI\\xfb'; view.flush(); view.close()" """

BEFORE = "rm -rf -- * ../outside; head -c 8192 /dev/zero > old; echo 1 > other"

# not truncate(1): it opens without waiting, and the server's kernel has to call a client's delegation back
CHANGES = {
    "make": "echo x > new",
    "make sparse": "dd if=/dev/null of=new bs=1M seek=1 status=none",
    "grow": "dd if=/dev/null of=old bs=1M seek=1 status=none",
    "append": "echo x >> old",
    "truncate": ": > old",
    "chmod": "chmod 600 old",
    "rename": "mv old new",
    "rename in": "echo x > ../outside; mv ../outside new",
    "rename out": "mv old ../outside",
    "replace": "echo longer > .tmp; mv .tmp old",
    "link": "ln old new",
    "delete": "rm old",
    "delete and make": "rm old; dd if=/dev/null of=old bs=1M seek=5 status=none",
    "mmap": MMAP,
    "qemu-img": "qemu-img create -q -f qcow2 new 1G",
    "qemu-img resize": "qemu-img create -q -f qcow2 old 1G; qemu-img resize -q old 2G",
    "cp --reflink": "cp --reflink=auto old new",
    "a folder": "mkdir new",
    "all gone": "rm old other",
    "chown": "chown 12:34 old",
}

Outside = dict[str, tuple[object, ...]]


def outside(snapshot: astore.Snapshot, owned: bool = True) -> Outside:
    """What does not depend on where the folder is. :param owned: with the modes and owners of files."""
    return {
        name: (info.type, info.format, info.capacity, info.physical, info.inode)
        + ((info.mode, info.uid, info.gid) if owned else ())
        for name, info in snapshot.by_name.items()
    }


async def each_seen(
    pool: astore.Pool, changes: Iterable[str], changed_in: Path, state: Path, owned: bool = True
) -> dict[str, float]:
    """Change a folder that the pool shows, and wait each time until the pool has what a full refresh finds.

    :param state: an empty folder. :param owned: whether the pool shows modes and owners.
    :return: the seconds from each change until it was seen.
    """
    xml = f"<pool type='dir'><name>oracle</name><target><path>{changed_in}</path></target></pool>"
    seconds = {}
    async with astore.Manager(state) as other:
        oracle = await other.create(xml)
        for change in changes:
            await by_another_process(BEFORE, changed_in)
            await eventually(
                lambda: {"old", "other"} == pool.snapshot.by_name.keys(), f"what was there before {change}"
            )
            await by_another_process(CHANGES[change], changed_in)
            began = time.monotonic()
            await oracle.refresh(full=True)
            true = outside(oracle.snapshot, owned)
            await eventually(lambda true=true: outside(pool.snapshot, owned) == true, f"{change}: {true}")  # type: ignore[misc]
            seconds[change] = time.monotonic() - began
        await oracle.stop()
    return seconds


def poll_every(seconds: float) -> None:
    """Poll pools so often while they change, from the next look on."""
    pool_watch.LEAST = seconds


async def told_at_once(pool: astore.Pool, folder: Path) -> None:
    """Assert that the kernel tells of what this machine changes. The watch has a large ``max_staleness``."""
    before = pool_watch.LEAST
    poll_every(600)
    for name in ("told-1", "told-2", "told-3"):  # a poll that was due may have seen the first
        await by_another_process(f"echo x > {name}", folder)
        await eventually(lambda name=name: name in pool.snapshot.by_name, f"a notice of {name}")  # type: ignore[misc]
    poll_every(before)
    await by_another_process("rm told-1 told-2 told-3", folder)
    await eventually(lambda: not {"told-1", "told-2", "told-3"} & pool.snapshot.by_name.keys(), "a notice of the end")


async def stopped_and_started(pool: astore.Pool, folder: Path, rounds: int) -> list[str]:
    """Stop and start a watched pool while its files change; return what is wrong."""
    wrong = []
    for number in range(rounds):
        await by_another_process(f"echo x > round-{number}", folder)
        if number % 2:
            await eventually(lambda number=number: f"round-{number}" in pool.snapshot.by_name, "a notice")  # type: ignore[misc]
        await pool.stop()
        await eventually(lambda: pool.info.freshness is None, "the end of its watch")
        await asyncio.sleep(0.1)  # what a late notice would do, it does now
        lines = await asyncio.to_thread(Path("/proc/self/mountinfo").read_text)
        if f" {folder} " in lines:
            wrong.append(f"round {number}: it is mounted")
        await pool.start()
        await watched(pool, "polled")
        if f"round-{number}" not in pool.snapshot.by_name:
            wrong.append(f"round {number}: {list(pool.snapshot.by_name)}")
    return wrong
