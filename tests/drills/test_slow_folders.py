"""Folders that take long to list, or never end: what callers with a deadline get, what others feel, and how scans end."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import gc
import os
import sys
from collections import Counter
from collections.abc import Awaitable, Callable
from itertools import pairwise
from pathlib import Path

import pytest
from core_fakes import PATIENCE, eventually, quiet, steps
from drills.conftest import Drill, Make
from drills.work import dir_pool

from astore.errors import LaneTimeoutError
from astore.manager import Manager
from astore.model import PoolState
from astore.pools.pool import Pool
from beds.fuse_fs import ENDLESS

pytestmark = [pytest.mark.root, pytest.mark.gluster, pytest.mark.fuse]

LONG = 140
"""Entries of a folder that takes long to list."""


async def on(manager: Manager, drill: Drill) -> Pool:
    """The drill's pool, started and not yet read."""
    pool = await manager.define(drill.definition)
    await pool.start(refresh=False, timeout=PATIENCE)
    return pool


async def listed(drill: Drill, more_than: int) -> int:
    """Wait until so many entries have been listed in all; return how many."""
    async with asyncio.timeout(PATIENCE):
        while (count := (await asyncio.to_thread(drill.fs.calls))["readdir"]) <= more_than:
            await asyncio.sleep(0.01)
    return count


async def asked_for(drill: Drill) -> dict[str, int]:
    """How often each call has reached the server, but for those that the kernel makes later, when a file is closed."""
    calls = await asyncio.to_thread(drill.fs.calls)
    return {call: count for call, count in calls.items() if call not in ("release", "releasedir")}


# ------------------------------------------------------------------------------------------------ a long listing


async def test_callers_with_too_short_a_deadline(manager: Manager, new_drill: Make) -> None:
    """They are told how it stands, share one scan, and the one that it ends for has all of it."""
    drill = new_drill(entries=LONG)
    pool = await on(manager, drill)
    before = drill.fs.calls()["readdir"]
    gate = drill.fs.hold("readdir", names="disk0000070.img")
    for _ in range(3):
        with pytest.raises(LaneTimeoutError):
            await pool.refresh(timeout=1)
        assert pool.state is PoolState.RUNNING
    patient = asyncio.ensure_future(pool.refresh())
    await asyncio.to_thread(gate.wait, timeout=120)
    gate.remove()
    assert len((await patient).added) == LONG
    assert drill.fs.calls()["readdir"] - before == LONG
    with pytest.raises(LaneTimeoutError, match=r"the last one took"):
        await pool.refresh(timeout=0.001)


async def test_a_listing_that_is_given_up_again_and_again(manager: Manager, new_drill: Make, tmp_path: Path) -> None:
    """However many callers leave, one thread lists; another pool's refresh begins and ends while it does."""
    drill = new_drill(entries=LONG)
    pool = await on(manager, drill)
    well = await dir_pool(manager, tmp_path / "well")
    gate = drill.fs.hold("readdir", names="disk0000070.img")
    for number in range(30):
        caller = asyncio.ensure_future(pool.refresh())
        if not number:
            await asyncio.to_thread(gate.wait, timeout=120)
        (tmp_path / "well" / f"{number}.raw").touch()
        assert (await well.refresh()).added == (f"{number}.raw",)
        caller.cancel()
        await asyncio.wait([caller])
    (lane,) = (lane for lane in manager.statistics().lanes.lanes if "drill" in lane.name)
    assert (lane.running, lane.stuck) == (1, 0)
    last = asyncio.ensure_future(pool.refresh())
    gate.remove()
    assert len((await last).added) == LONG


async def test_what_was_read_before_is_not_read_again(manager: Manager, new_drill: Make) -> None:
    """Scans that are given up in turn get further each time, whatever the number of headers: none is read twice."""
    drill = new_drill(entries=LONG)
    pool = await on(manager, drill)
    os.utime(drill.fs.files, (0, 1e9))  # what is read while names change is not handed on
    before = drill.fs.calls()["open"]
    for _ in range(3):
        gate = drill.fs.hold("open", first=31)
        caller = asyncio.ensure_future(pool.refresh())
        await asyncio.to_thread(gate.wait, timeout=120)
        caller.cancel()
        await asyncio.wait([caller])
        gate.remove()
        await eventually(lambda: quiet(manager), "the end of the scan")
    assert len((await pool.refresh()).added) == LONG
    # each reader that is held may give up its header
    assert LONG <= drill.fs.calls()["open"] - before <= LONG + 3 * 8


# ------------------------------------------------------------------------------------------------ an endless listing


async def _cancelled(pool: Pool, refresh: asyncio.Future[object]) -> None:
    refresh.cancel()
    await asyncio.wait([refresh])


async def _stopped(pool: Pool, refresh: asyncio.Future[object]) -> None:
    await pool.stop(force=True)
    with contextlib.suppress(Exception):
        await refresh


async def _overdue(pool: Pool, refresh: asyncio.Future[object]) -> None:
    with pytest.raises(LaneTimeoutError):
        await pool.refresh(timeout=1)
    refresh.cancel()
    await asyncio.wait([refresh])


@pytest.mark.parametrize("bad", [False, True])
@pytest.mark.parametrize("end", [_cancelled, _stopped, _overdue])
async def test_an_endless_folder(
    manager: Manager,
    new_drill: Make,
    end: Callable[[Pool, asyncio.Future[object]], Awaitable[None]],
    bad: bool,
) -> None:
    """Given up, it is listed no further, and no thread is left; also if none of its entries can be looked at."""
    drill = new_drill(entries=ENDLESS)
    pool = await on(manager, drill)
    if bad:
        drill.fs.fail("lookup", errno.EIO)
    refresh: asyncio.Future[object] = asyncio.ensure_future(pool.refresh())
    await listed(drill, 1000)
    await end(pool, refresh)
    await eventually(lambda: quiet(manager), "the end of the scan")
    calls = await asked_for(drill)
    await asyncio.sleep(1.0)
    assert await asked_for(drill) in (calls, Counter()), "a server that has ended tells nothing"


async def test_the_last_callers_deadline_ends_an_endless_scan(manager: Manager, new_drill: Make) -> None:
    """It goes on for as long again, for whoever tries again, and then ends by itself."""
    drill = new_drill(entries=ENDLESS)
    pool = await on(manager, drill)
    with pytest.raises(LaneTimeoutError):
        await pool.refresh(timeout=1)
    assert not quiet(manager)
    await eventually(lambda: quiet(manager), "the end of the scan")
    assert pool.state is PoolState.RUNNING


async def test_endless_scans_keep_no_memory(manager: Manager, new_drill: Make) -> None:
    """What is kept of one that was given up is no more than it has read, however many there were before it."""
    drill = new_drill(entries=ENDLESS)
    pool = await on(manager, drill)
    blocks = []
    for _ in range(7):
        count = drill.fs.calls()["readdir"]
        refresh = asyncio.ensure_future(pool.refresh())
        await listed(drill, count + 1000)
        await _cancelled(pool, refresh)
        await eventually(lambda: quiet(manager), "the end of the scan")
        gc.collect()
        blocks.append(sys.getallocatedblocks())
    # what is kept for ever is kept of every scan; what is made once and stays is not
    assert min(later - earlier for earlier, later in pairwise(blocks[2:])) < 1000, blocks


# ------------------------------------------------------------------------------------------------ deadlines


async def test_a_callers_deadline_is_the_callers_affair(
    manager: Manager, new_drill: Make, tmp_path: Path, call_timeout: float
) -> None:
    """It changes no state and publishes nothing, in this process, in the command, and in what the store keeps."""
    drill = new_drill(entries=LONG)
    pool = await on(manager, drill)
    number = manager.statistics().events
    gate = drill.fs.hold("readdir", names="disk0000070.img")
    with pytest.raises(LaneTimeoutError):
        await pool.refresh(timeout=0.001)
    with pytest.raises(LaneTimeoutError):
        await pool.refresh("disk0000001.img", timeout=0.000001)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "astore.cli", "--state-dir", str(tmp_path / "state"), "--timeout", "0.001"),
        *("pool", "refresh", "drill"),
        stderr=asyncio.subprocess.PIPE,
    )
    assert b"did not end within" in (await process.communicate())[1]
    assert process.returncode == 124
    await manager.reload()
    assert (pool.state, pool.error, pool.info.since) == (PoolState.RUNNING, None, pool.info.since)
    assert manager.statistics().events == number
    other = asyncio.ensure_future(pool.refresh())
    gate.remove()
    assert len((await other).added) == LONG
    async with Manager(tmp_path / "state") as another:
        assert another.pool("drill").state is PoolState.RUNNING


@pytest.mark.parametrize("call_timeout", [2.0])
async def test_what_is_said_for_the_call_counts(manager: Manager, new_drill: Make) -> None:
    """A refresh, and a start with its mount and its first refresh, have the time that their caller gives them."""
    drill = new_drill(entries=40)
    slow = drill.fs.delay("readdir", 0.1)
    pool = await manager.define(drill.definition)
    await pool.start(timeout=30)
    assert len(pool.volumes) == 40
    assert (await pool.refresh(timeout=30)).unchanged == 40
    with pytest.raises(LaneTimeoutError):
        await pool.refresh()
    slow.remove()
    await eventually(lambda: quiet(manager), "the end of the scan")
    await pool.refresh(timeout=60)
    assert pool.state is PoolState.RUNNING


@pytest.mark.parametrize("call_timeout", [1.0])
async def test_a_patient_refresh_that_is_given_up_late(manager: Manager, new_drill: Make) -> None:
    """Who comes right after it waits for its end, though it ran for longer than a call has without its caller's patience."""
    drill = new_drill(entries=LONG)
    pool = await on(manager, drill)
    gate = drill.fs.hold("readdir", names="disk0000070.img")
    patient = asyncio.ensure_future(pool.refresh(timeout=60))
    await asyncio.to_thread(gate.wait, timeout=120)
    await asyncio.sleep(1.5)
    await _cancelled(pool, patient)
    after = asyncio.ensure_future(pool.refresh(timeout=60))
    await steps(20)
    assert not after.done()
    gate.remove()
    assert len((await after).added) == LONG


@pytest.mark.parametrize("call_timeout", [1.0])
async def test_a_slow_mount_has_the_callers_time(manager: Manager, new_drill: Make) -> None:
    """So has whoever waits for another process that is mounting the same."""
    drill = new_drill(entries=1)
    slow = drill.fs.delay("opendir", 2.0)
    pool = await manager.define(drill.definition)
    claim = os.open(drill.target, os.O_RDONLY)
    fcntl.flock(claim, fcntl.LOCK_EX)
    start = asyncio.ensure_future(pool.start(refresh=False, timeout=60))
    await asyncio.sleep(2.0)
    assert not start.done()
    os.close(claim)
    await start
    slow.remove()
    assert (await pool.refresh(timeout=60)).errors == ()
