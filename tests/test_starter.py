"""The helper process that starts programs: what a program inherits, and what happens when the helper or its parent dies."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

import pytest
from core_fakes import PATIENCE, eventually
from leaks import children_of, open_files

from astore.commands import LaneCommandRunner, PipedProgram
from astore.commands.starter import STARTER
from astore.errors import CommandError
from astore.lanes import Lanes
from beds import processes


@pytest.fixture
def run() -> Iterator[LaneCommandRunner]:
    """What runs programs."""
    lanes = Lanes(4)
    yield LaneCommandRunner(lanes.lane("a"))
    lanes.close()


def helpers(pid: int | None = None) -> list[int]:
    """The helper of a process, and the one in reserve. It may miss some while others end: see proc(5), ``children``."""
    found = [
        child
        for child in children_of(pid or os.getpid())
        if b"starter_process" in Path(f"/proc/{child}/cmdline").read_bytes()
    ]
    return found + [child for helper in found for child in children_of(helper)]


def eventually_here(condition: Callable[[], bool]) -> None:
    """Wait until it is true."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


async def parent_of_program(run: LaneCommandRunner) -> int:
    """Return the process that starts programs now."""
    return int((await run(["sh", "-c", "echo $PPID"])).stdout)


async def test_a_program_inherits_what_it_is_given(run: LaneCommandRunner, tmp_path: Path) -> None:
    """Of this process's descriptors a program has those that it is given, under their numbers, and no other."""
    (tmp_path / "given").write_text("given")
    with (tmp_path / "given").open() as given, (tmp_path / "kept").open("w") as kept:
        os.set_inheritable(kept.fileno(), True)
        high = os.dup2(given.fileno(), 200)
        try:
            result = await run(
                ["sh", "-c", f"cat /dev/fd/{given.fileno()}; readlink /proc/self/fd/*"],
                check=False,
                descriptors=[given.fileno(), high],
            )
        finally:
            os.close(high)
    content, *names = result.stdout.decode().split("\n")
    assert content.startswith("given")
    assert [name for name in (content.removeprefix("given"), *names) if "given" in name] == [
        str(tmp_path / "given")
    ] * 2
    assert "kept" not in result.stdout.decode()
    assert "socket" not in result.stdout.decode()


async def test_the_descriptors_numbers_may_be_those_of_anything(run: LaneCommandRunner, tmp_path: Path) -> None:
    """A descriptor keeps its number, whatever has that number in the process that becomes the program."""
    files = []
    for number in range(60):  # they get the lowest numbers that are free, which the helper uses too
        (tmp_path / str(number)).touch()
        files.append(os.open(tmp_path / str(number), os.O_RDWR))
        os.write(files[-1], f"{files[-1]}\n".encode())
    try:
        result = await run(["sh", "-c", "".join(f"cat /dev/fd/{n};" for n in files)], descriptors=files)
    finally:
        for number in files:
            os.close(number)
    assert [int(line) for line in result.stdout.split()] == files


async def test_the_helper_dies(run: LaneCommandRunner) -> None:
    """If the helper is killed, the one in reserve starts programs, and there is a new reserve; if both, both are new."""
    old = await parent_of_program(run)  # of this session; its reserve may have taken over
    for control in STARTER._controls:
        control.shutdown(socket.SHUT_RDWR)
    await eventually(lambda: not processes.alive(old), "the end of the old one")
    await asyncio.to_thread(STARTER.start)
    while len(found := helpers()) != 2:
        await asyncio.sleep(0.002)
    first, reserve = found
    assert await parent_of_program(run) == first
    os.kill(first, signal.SIGKILL)
    # the one in reserve, which was forked a moment ago, may still have a copy of its socket
    await eventually(lambda: not STARTER.running, "its end is known")
    assert await parent_of_program(run) == reserve
    assert STARTER.running
    await eventually(lambda: len(children_of(reserve)) == 1, "the next one in reserve")
    (third,) = children_of(reserve)
    for pid in (reserve, third):
        os.kill(pid, signal.SIGKILL)
    await eventually(lambda: not processes.alive(third) and not processes.alive(reserve), "their end")
    assert not STARTER.running
    first = await parent_of_program(run)
    await eventually(lambda: helpers()[:1] == [first], "the new helper")
    assert STARTER.running


async def test_the_helper_dies_while_a_program_runs(run: LaneCommandRunner, tmp_path: Path) -> None:
    """Its programs die with it, and their callers are told; the next program runs."""
    script = f"echo $$ $PPID >{tmp_path}/pids.new; mv {tmp_path}/pids.new {tmp_path}/pids; sleep 600"
    task = asyncio.create_task(run(["sh", "-c", script]))
    await eventually((tmp_path / "pids").exists)
    program, helper = map(int, (tmp_path / "pids").read_text().split())
    os.kill(helper, signal.SIGKILL)
    with pytest.raises(CommandError, match="the process that starts programs died"):
        await task
    await eventually(lambda: not processes.alive(program), "the program's end")
    assert (await run(["true"])).returncode == 0


async def test_a_fork_has_a_helper_of_its_own(run: LaneCommandRunner) -> None:
    """A fork of this process shares no socket with it: each has the answers of its own programs."""
    assert (await run(["true"])).returncode == 0
    pid = os.fork()
    if pid == 0:
        os._exit(0 if not STARTER.running else 1)
    assert (await asyncio.to_thread(os.waitpid, pid, 0))[1] == 0
    assert STARTER.running
    assert (await run(["true"])).returncode == 0


OTHER = """
    import asyncio, os, signal
    import astore
    from astore.commands.starter import STARTER

    async def main():
        async with astore.Manager(state_dir={state!r}) as manager:
            pool = await manager.define(astore.PoolDef(name="p", type="dir", target=astore.Target(path={pool!r})))
            await pool.start()
            services = __import__("astore.commands", fromlist=["x"])
            from astore.lanes import Lanes
            run = services.LaneCommandRunner(Lanes(2).lane("a"))
            await run(["sh", "-c", "echo $$ $PPID > {pids}.new; mv {pids}.new {pids}; sleep 600"], timeout=600)

    asyncio.run(main())
"""


def test_the_parent_is_killed(tmp_path: Path) -> None:
    """If this process is killed, its programs and the helper end."""
    (tmp_path / "pool").mkdir()
    script = textwrap.dedent(OTHER).format(
        state=str(tmp_path / "state"), pool=str(tmp_path / "pool"), pids=tmp_path / "pids"
    )
    with subprocess.Popen([sys.executable, "-c", script]) as other:
        eventually_here(lambda: (tmp_path / "pids").exists() or other.poll() is not None)
        program, helper = map(int, (tmp_path / "pids").read_text().split())
        all_of_it = [program, *helpers(other.pid)]
        assert helper in all_of_it
        other.kill()
    eventually_here(lambda: not any(map(processes.alive, all_of_it)))


async def test_it_ends_with_the_last_manager(tmp_path: Path) -> None:
    """A helper that no Manager needs any more ends, and leaves no zombie."""
    script = f"""
        import asyncio, os, time
        import astore
        from astore.commands.starter import STARTER

        async def main():
            one, two = (astore.Manager(state_dir={str(tmp_path)!r} + name) for name in "12")
            async with one:
                async with two:
                    pool = await two.define(astore.PoolDef(name="p", type="dir", target=astore.Target(path={str(tmp_path)!r})))
                    await pool.start()
                    assert STARTER.running
                assert STARTER.running, "one needs it"
            while open(f"/proc/self/task/{{os.getpid()}}/children").read():
                await asyncio.sleep(0.01)
            assert not STARTER.running

        asyncio.run(main())
    """
    done = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", textwrap.dedent(script)], check=False, capture_output=True, timeout=200
    )
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_program_with_pipes(run: LaneCommandRunner) -> None:
    """It reads what is written and writes what is read, however much; its exit code and its stderr are told in the end."""
    program = PipedProgram("sh", "-c", "tr a b; echo wrong >&2; exit 3")
    try:
        assert program.stdin is not None
        with ThreadPoolExecutor(1) as threads:
            written = threads.submit(_write, program.stdin, b"a" * (4 << 20))
            assert program.stdout.read() == b"b" * (4 << 20)
            written.result()
        assert program.wait() == (3, "wrong")
    finally:
        program.close()


def _write(stream: BinaryIO, data: bytes) -> None:
    with stream:
        stream.write(data)


def test_a_program_that_reads_a_file(run: LaneCommandRunner, tmp_path: Path) -> None:
    """The caller's descriptor is its stdin, and may be closed at once; much on stderr holds it up never."""
    (tmp_path / "file").write_bytes(b"content")
    with (tmp_path / "file").open("rb") as file:
        program = PipedProgram("sh", "-c", "head -c 1000000 /dev/zero >&2; cat", stdin=file.fileno())
    assert program.stdin is None
    assert program.stdout.read() == b"content"
    assert program.wait()[0] == 0
    program.close()


def test_a_program_with_pipes_that_is_not_there(run: LaneCommandRunner) -> None:
    """Its output ends at once, and the reason is told in the end."""
    program = PipedProgram("no-such-program")
    assert program.stdout.read() == b""
    with pytest.raises(CommandError, match="'no-such-program' is not installed"):
        program.wait()
    assert program.stdin is not None
    program.stdin.close()
    program.close()


def test_a_program_with_pipes_is_killed(run: LaneCommandRunner) -> None:
    """A thread that reads from it finds the end, one that writes to it a broken pipe; nothing of it stays open."""
    before = open_files()
    program = PipedProgram("sh", "-c", "echo begun; exec sleep 1000")
    assert program.stdout.readline() == b"begun\n"
    with ThreadPoolExecutor(2) as threads:
        assert program.stdin is not None
        written = threads.submit(_write, program.stdin, b"a" * (4 << 20))
        read = threads.submit(program.stdout.read)
        program.kill()
        assert read.result() == b""
        with pytest.raises(BrokenPipeError):
            written.result()
    assert program.wait()[0] == -signal.SIGKILL
    program.close()
    assert not open_files() - before
