"""A FUSE client is stopped while this process has a file open on its mount: what others feel, and how the process ends."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from core_fakes import PATIENCE, eventually
from drills.conftest import Drill, Make
from drills.work import WORK, dir_pool, inside, make_images, started

from astore.commands import LaneCommandRunner
from astore.commands.starter import STARTER
from astore.lanes import Lanes
from astore.manager import Manager
from beds import fuse, processes

pytestmark = [pytest.mark.root, pytest.mark.gluster, pytest.mark.fuse]


async def frozen(drill: Drill) -> int:
    """Stop the server; return its process id."""
    return await asyncio.to_thread(fuse.freeze, drill.target)


async def thawed(drill: Drill) -> None:
    """Let the server go on, whose connection was cut: it ends."""
    client = await asyncio.to_thread(fuse.thaw, drill.target)
    assert not await asyncio.to_thread(processes.wait_gone, [client], 120)


async def kill_starter(lanes: Lanes) -> None:
    """Kill the process that starts programs; the one in reserve stays."""
    result = await LaneCommandRunner(lanes.lane("a"))(["sh", "-c", "echo $PPID"])
    os.kill(int(result.stdout), signal.SIGKILL)
    await eventually(lambda: not processes.alive(int(result.stdout)), "its end")


# ------------------------------------------------------------------------------------------------ what others feel


@pytest.mark.qemu
@pytest.mark.parametrize("what", WORK)
async def test_programs_are_started_for_other_pools(
    manager: Manager, new_drill: Make, tmp_path: Path, lanes: Lanes, what: str
) -> None:
    """Another pool makes and converts images, and another netfs pool mounts, before and after the starter is killed."""
    drill, others = new_drill(), [new_drill(f"other{number}") for number in range(2)]
    pool = await started(manager, drill)
    well = await dir_pool(manager, tmp_path / "well")
    async with inside(pool, drill, what):
        await frozen(drill)
        for number, other in enumerate(others):
            await make_images(well, str(number))
            async with asyncio.timeout(PATIENCE):
                await (await manager.define(other.definition)).start()
            if not number:
                await kill_starter(lanes)
        assert STARTER.running
        assert len((await well.refresh()).errors) == 0


# ------------------------------------------------------------------------------------------------ how the process ends


@pytest.mark.parametrize("what", WORK)
async def test_leaving_cuts_what_hangs(manager: Manager, new_drill: Make, tmp_path: Path, what: str) -> None:
    """With ``cut`` every call on the mount returns; the mount stays, dead, and the next refresh renews it."""
    drill = new_drill()
    pool = await started(manager, drill)
    async with inside(pool, drill, what) as gate:
        await frozen(drill)
        mounts = fuse.mounts(drill.target)
        await manager.aclose(cut=True)
        assert fuse.mounts(drill.target) == mounts
        with pytest.raises(OSError, match="not connected"):
            (drill.target / "a.raw").read_bytes()
        await eventually(lambda: not files_below(drill.target), "the end of all calls on the mount")
    await thawed(drill)
    gate.remove()
    async with Manager(tmp_path / "state") as again:
        pool = again.pool("drill")
        assert (await pool.refresh(full=True)).errors == ()
        assert [one.name for one in pool.volumes] == ["a.qcow2", "a.raw"]
        assert await pool.volume("a.raw").upload(b"well again") == 10
        await pool.stop()


def files_below(folder: Path) -> list[str]:
    """The descriptors of this process that are open below a folder."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            if (path := os.readlink(f"/proc/self/fd/{name}")).startswith(f"{folder}/"):
                found.append(path)
    return found


async def test_leaving_cuts_nothing_unasked(new_drill: Make, tmp_path: Path) -> None:
    """By default the calls that hang stay with the mount, and end when the server goes on."""
    drill = new_drill()
    async with Manager(tmp_path / "state") as manager:
        pool = await started(manager, drill)
        work = inside(pool, drill, "upload")
        gate = await work.__aenter__()
        await frozen(drill)
    assert files_below(drill.target)
    await asyncio.to_thread(fuse.thaw, drill.target)
    gate.remove()
    await work.__aexit__(None, None, None)
    await eventually(lambda: not files_below(drill.target), "the end of all calls on the mount")
    assert len((drill.target / "a.raw").read_bytes()) == 8 << 20


async def test_leaving_cuts_no_server_that_answers(manager: Manager, new_drill: Make) -> None:
    """A server that is slow with one file, and answers otherwise, keeps its connection: others work on the mount, too."""
    drill = new_drill()
    pool = await started(manager, drill)
    async with inside(pool, drill, "upload") as gate:
        await manager.aclose(cut=True)
        assert (drill.target / "a.qcow2").read_bytes()
        gate.remove()
    await eventually(lambda: not files_below(drill.target), "the end of all calls on the mount")


async def test_leaving_cuts_what_hangs_in_a_start(manager: Manager, new_drill: Make, tmp_path: Path) -> None:
    """A start that was given up on a mount that hangs leaves no call behind, although the pool never had a session.

    Its own late call takes the dead mount away.
    """
    drill = new_drill()
    pool = await started(manager, drill)
    async with Manager(tmp_path / "other state", call_timeout=1.0) as other:
        joining = await other.define(drill.definition)
        client = await frozen(drill)
        with pytest.raises(TimeoutError):
            await joining.start()
        await other.aclose(cut=True)
        await eventually(lambda: not fuse.is_mounted(drill.target), "the end of the call")
    os.kill(client, signal.SIGCONT)
    assert (await pool.refresh()).errors == ()


LIBRARY = """
import asyncio, sys
import astore

async def main(state):
    async with astore.Manager(state) as manager:
        await manager.pool("drill").refresh()
        work = asyncio.ensure_future(manager.pool("drill").volume("a.raw").upload(bytes(8 << 20)))
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)
        work.cancel()
        await manager.aclose(cut=True)
        print("left", flush=True)

asyncio.run(main(sys.argv[1]))
"""


async def output_of(argv: list[str], hang: Callable[[], Awaitable[None]]) -> tuple[int | None, bytes, bytes]:
    """Run a process of its own; return its exit code and what it wrote. :param hang: what is done to it meanwhile."""
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-W", "error", *argv, stdin=pipe, stdout=pipe, stderr=pipe
    )
    try:
        await hang()
        async with asyncio.timeout(PATIENCE):
            out, err = await process.communicate(b"\n")
    finally:
        if process.returncode is None:
            process.kill()
    return process.returncode, out, err


async def test_a_process_that_was_told_to_cut_ends(manager: Manager, new_drill: Make, tmp_path: Path) -> None:
    """A program that leaves its Manager with ``cut`` ends while the server is stopped."""
    drill = new_drill()
    await started(manager, drill)
    gate = drill.fs.hold("write", names="a.raw")

    async def hang() -> None:
        await asyncio.to_thread(gate.wait, timeout=120)
        await frozen(drill)

    code, out, err = await output_of(["-c", LIBRARY, str(tmp_path / "state")], hang)
    assert (code, out) == (0, b"left\n")
    assert b"connection of a hung mount cut" in err
    await thawed(drill)


COMMANDS = {
    "refresh": ("pool", "refresh", "drill", "--full"),
    "upload": ("vol", "upload", "a.raw", "FILE", "--pool", "drill"),
    "start": ("pool", "start", "drill"),
}


@pytest.mark.parametrize("what", COMMANDS)
async def test_the_command_ends_after_its_timeout(manager: Manager, new_drill: Make, tmp_path: Path, what: str) -> None:
    """``--timeout`` ends the process with 124 while the server is stopped, whatever it had begun."""
    drill = new_drill()
    await started(manager, drill)
    state = tmp_path / "state"
    if what == "start":
        state = tmp_path / "other state"
        async with Manager(state) as other:
            await other.define(drill.definition)
    gate = drill.fs.hold({"refresh": "read", "upload": "write", "start": "opendir"}[what])

    async def hang() -> None:
        await asyncio.to_thread(gate.wait, timeout=120)
        await frozen(drill)

    # enough for a call to reach the server, and for the server to be stopped, on a busy machine
    argv = ["-m", "astore.cli", "--state-dir", str(state), "--timeout", "6", *COMMANDS[what]]
    if what == "upload":
        argv[argv.index("FILE")] = str(tmp_path / "file")
        (tmp_path / "file").write_bytes(bytes(8 << 20))
    code, out, err = await output_of(argv, hang)
    assert (code, out, err.count(b"\n")) == (124, b"", 1), err
    await thawed(drill)
