"""Programs: what they say, how they end, and that nothing of them is left."""

from __future__ import annotations

import asyncio
import os
import resource
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from core_fakes import cancelling, eventually, steps
from leaks import children_of

from astore.commands import LaneCommandRunner
from astore.commands.starter import STARTER, Starter
from astore.errors import CommandError, LaneTimeoutError
from astore.lanes import Lanes
from astore.lanes.lane import PoolLane
from astore.testing.faults import Gate
from beds import processes

pytestmark = pytest.mark.usefixtures("no_leaks")


@pytest.fixture
def lane() -> Iterator[PoolLane]:
    """A lane of two threads."""
    lanes = Lanes(2)
    yield lanes.lane("a", limit=2)
    lanes.close()


@pytest.fixture
def run(lane: PoolLane) -> LaneCommandRunner:
    """What runs programs."""
    return LaneCommandRunner(lane)


@pytest.fixture(autouse=True)
def no_children() -> Iterator[None]:
    """No child, running or zombie, is more afterwards than before."""
    before = children_of(os.getpid())
    yield
    deadline = time.monotonic() + 200
    while more := children_of(os.getpid()) - before:
        assert time.monotonic() < deadline, f"left: {more}"
        time.sleep(0.01)


async def pid_in(path: Path) -> int:
    """The number that a program writes there."""
    await eventually(lambda: path.exists() and path.read_text().endswith("\n"), f"a number in {path}")
    return int(path.read_text())


# ------------------------------------------------------------------------------------------------------- what it says


async def test_output(run: LaneCommandRunner) -> None:
    """What a program writes comes back as bytes, with its arguments and exit code."""
    result = await run(["sh", "-c", r"printf 'a\377b'; printf 'x\000y' >&2"])
    assert result.argv == ("sh", "-c", r"printf 'a\377b'; printf 'x\000y' >&2")
    assert (result.returncode, result.stdout, result.stderr) == (0, b"a\xffb", b"x\0y")


async def test_much_output(run: LaneCommandRunner) -> None:
    """More than a pipe holds, on both streams, does not block it."""
    result = await run(["sh", "-c", "head -c 3000000 /dev/zero; head -c 2000000 /dev/zero >&2"])
    assert (len(result.stdout), len(result.stderr)) == (3_000_000, 2_000_000)


async def test_no_shell(run: LaneCommandRunner) -> None:
    """Arguments are what they are."""
    result = await run(["printf", "%s|", "$HOME", "a b", "; id", "*"])
    assert result.stdout == b"$HOME|a b|; id|*|"


async def test_nothing_on_stdin(run: LaneCommandRunner) -> None:
    """A program that reads gets the end of the file."""
    assert (await run(["cat"], timeout=5)).stdout == b""


async def test_environment(run: LaneCommandRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs speak C, whatever the user speaks; the rest is inherited; what is given comes on top."""
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
    monkeypatch.setenv("LANGUAGE", "de")
    monkeypatch.setenv("ASTORE_KEPT", "yes")
    script = 'printf "%s %s %s %s" "$LC_ALL" "$LANGUAGE" "$ASTORE_KEPT" "$ASTORE_ADDED"'
    assert (await run(["sh", "-c", script])).stdout == b"C C yes "
    assert (
        await run(["sh", "-c", script], env={"ASTORE_ADDED": "1", "LC_ALL": "C.UTF-8"})
    ).stdout == b"C.UTF-8 C yes 1"


# --------------------------------------------------------------------------------------------------------- how it ends


async def test_missing_program(run: LaneCommandRunner) -> None:
    """A program that is not there is named."""
    with pytest.raises(CommandError, match="'no-such-program' is not installed") as caught:
        await run(["no-such-program", "-x"])
    assert (caught.value.argv, caught.value.returncode) == (("no-such-program", "-x"), None)


async def test_a_program_that_cannot_be_run(run: LaneCommandRunner, tmp_path: Path) -> None:
    """Something that is no program, and an argument that no program can get, are errors in words."""
    text = tmp_path / "text"
    text.write_text("hello")
    text.chmod(0o644)
    with pytest.raises(CommandError, match="cannot be run"):
        await run([str(text)])
    with pytest.raises(CommandError, match="cannot be run"):
        await run(["printf", "a\0b"])


async def test_non_zero(run: LaneCommandRunner) -> None:
    """A failure carries what the program said, in one line; without ``check`` it is a result."""
    with pytest.raises(CommandError) as caught:
        await run(["sh", "-c", "echo first; echo 'no  such' >&2; echo volume >&2; exit 3"])
    error = caught.value
    assert str(error).endswith(": no such volume")
    assert (error.returncode, error.stderr) == (3, "no  such\nvolume")
    assert (await run(["sh", "-c", "exit 3"], check=False)).returncode == 3


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("echo only here; exit 1", "only here"),
        ("exit 9", "exit code 9"),
        ("printf 'a\\033[31mb\\377' >&2; exit 1", "a\\x1b[31mb\ufffd"),
        ("kill -9 $$", "exit code -9"),
    ],
)
async def test_what_a_failure_says(run: LaneCommandRunner, script: str, said: str) -> None:
    """Without words on stderr those on stdout, else the exit code; never a terminal's control codes."""
    with pytest.raises(CommandError) as caught:
        await run(["sh", "-c", script])
    assert str(caught.value).endswith(f": {said}")


async def test_a_long_failure_is_cut(run: LaneCommandRunner) -> None:
    """The message stays readable; ``stderr`` has it all."""
    with pytest.raises(CommandError) as caught:
        await run(["sh", "-c", "head -c 100000 /dev/zero | tr '\\0' x >&2; exit 1"])
    assert len(str(caught.value)) < 1200
    assert len(caught.value.stderr) == 100_000


@pytest.mark.parametrize("stream", [1, 2])
async def test_a_program_that_writes_without_end_is_killed(
    run: LaneCommandRunner, lane: PoolLane, tmp_path: Path, stream: int
) -> None:
    """A program that writes more than it may dies while it writes, and what it had started; little of it is kept."""
    script = f"echo $$ > {tmp_path}/pid; exec cat /dev/zero >&{stream}"
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(CommandError, match="wrote more than 1000000 bytes and was killed") as caught:
        await run(["sh", "-c", script], max_output=1_000_000, timeout=60)
    assert caught.value.returncode == -9
    assert len(str(caught.value)) < 1200
    assert not processes.alive(int((tmp_path / "pid").read_text()))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10  # KiB
    assert lane.stuck == 0


async def test_output_up_to_the_limit(run: LaneCommandRunner) -> None:
    """As much as a program may write is kept whole; one byte more is not."""
    assert len((await run(["head", "-c", "100000", "/dev/zero"], max_output=100_000)).stdout) == 100_000
    with pytest.raises(CommandError, match="wrote more than"):
        await run(["head", "-c", "100001", "/dev/zero"], max_output=100_000)


async def test_every_program_is_bounded(run: LaneCommandRunner) -> None:
    """A caller that names no limit has one."""
    with pytest.raises(CommandError, match="wrote more than"):
        await run(["cat", "/dev/zero"], timeout=60)


async def test_a_program_that_writes_slowly_for_ever(run: LaneCommandRunner) -> None:
    """The deadline holds for a program that always has something to say."""
    with pytest.raises(LaneTimeoutError, match="did not end within"):
        await run(["sh", "-c", "while :; do echo x; done"], timeout=0.5)


async def test_output_that_is_closed_early(run: LaneCommandRunner) -> None:
    """A program that closes its output and goes on is waited for, until its deadline."""
    assert (await run(["sh", "-c", "exec >&- 2>&-; sleep 0.2; exit 3"], check=False)).returncode == 3
    with pytest.raises(LaneTimeoutError):
        await run(["sh", "-c", "exec >&- 2>&-; exec sleep 600"], timeout=0.3)


async def test_a_hostile_argument_in_a_message(run: LaneCommandRunner) -> None:
    """What a message says of the command is one line of plain characters, and not endless."""
    for call in (run(["false", "a\033[31m\nb" + "x" * 100_000]), run(["cat", "a\033[2J\n"])):
        with pytest.raises(CommandError) as caught:
            await call
        assert len(str(caught.value)) < 2100
        assert str(caught.value).isprintable()


async def test_concurrent_programs_keep_apart(run: LaneCommandRunner) -> None:
    """Each caller gets its own program's output."""
    results = await asyncio.gather(*(run(["sh", "-c", f"echo {n}"]) for n in range(20)))
    assert [int(result.stdout) for result in results] == list(range(20))


# ------------------------------------------------------------------------------------------- deadlines, cancellation


async def killed_after_it_began(run: LaneCommandRunner, script: str, sign: Path) -> None:
    """Run a script past its deadline; if it was killed before it wrote its sign, give it more time."""
    for timeout in (0.5, 4, 32):
        with pytest.raises(LaneTimeoutError, match=f"did not end within {timeout:g} s and was killed"):
            await run(["sh", "-c", script], timeout=timeout)
        if sign.exists() and sign.read_text().endswith("\n"):
            return
    raise AssertionError("it never began")


async def test_timeout_kills_the_whole_group(run: LaneCommandRunner, lane: PoolLane, tmp_path: Path) -> None:
    """At the deadline the program dies, and what it had started; the thread is free again."""
    script = f"sleep 600 & echo $! > {tmp_path}/child; sleep 600"
    await killed_after_it_began(run, script, tmp_path / "child")
    child = await pid_in(tmp_path / "child")
    await eventually(lambda: not processes.alive(child), "the end of the child")
    assert lane.stuck == 0
    assert (await run(["true"])).returncode == 0


async def test_the_runner_s_own_deadline(lane: PoolLane) -> None:
    """A program that names no deadline gets the runner's."""
    with pytest.raises(LaneTimeoutError):
        await LaneCommandRunner(lane, timeout=0.05)(["sleep", "600"])


async def test_a_program_that_ignores_signals_dies_too(run: LaneCommandRunner) -> None:
    """SIGTERM may be ignored; what is sent cannot be."""
    with pytest.raises(LaneTimeoutError):
        await run(["sh", "-c", "trap '' TERM INT HUP; sleep 600"], timeout=0.2)


async def test_a_daemon_that_keeps_the_output_open(run: LaneCommandRunner, lane: PoolLane, tmp_path: Path) -> None:
    """A program that leaves a process of another session behind, holding its output, is killed and reaped all the same."""
    script = f"setsid sh -c 'echo $$ > {tmp_path}/daemon; exec sleep 600' & sleep 600"
    await killed_after_it_began(run, script, tmp_path / "daemon")
    daemon = await pid_in(tmp_path / "daemon")
    os.kill(daemon, 9)
    await eventually(lambda: lane.stuck == 0)


async def test_cancelling_kills(run: LaneCommandRunner, lane: PoolLane, tmp_path: Path) -> None:
    """A cancelled caller leaves no program, no zombie and no busy thread."""
    task = asyncio.create_task(run(["sh", "-c", f"sleep 600 & echo $! > {tmp_path}/child; sleep 600"]))
    child = await pid_in(tmp_path / "child")
    await cancelling(task)
    await eventually(lambda: not processes.alive(child), "the end of the child")
    await eventually(lambda: lane.statistics().running == 0)


async def test_cancelling_at_every_moment(run: LaneCommandRunner, lane: PoolLane) -> None:
    """Before it starts, while it starts, while it runs: nothing is left (see the fixtures)."""
    for rounds in range(12):
        task = asyncio.create_task(run(["sleep", "600"]))
        await steps(rounds)
        if rounds > 8:
            await asyncio.sleep(0.002 * (rounds - 8))
        await cancelling(task)
    await eventually(lambda: lane.statistics().running == 0)


async def test_cancelled_in_the_queue(run: LaneCommandRunner, lane: PoolLane, tmp_path: Path) -> None:
    """A program whose caller went before there was a thread for it is never started."""
    gate = Gate()
    held = [asyncio.create_task(lane.run(gate)) for _ in range(2)]
    await eventually(lambda: gate.inside == 2)
    task = asyncio.create_task(run(["touch", str(tmp_path / "ran")]))
    await eventually(lambda: lane.statistics().queued == 1)
    await cancelling(task)
    gate.open()
    await asyncio.gather(*held)
    assert (await run(["true"])).returncode == 0
    assert not (tmp_path / "ran").exists()


async def test_cancelling_does_not_wait_for_a_program_that_is_slow_to_start(
    run: LaneCommandRunner, lane: PoolLane, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a program lies on storage that hangs, starting it hangs: the loop does not, and it dies once it started."""
    starting = Gate()

    class Slow(Starter):
        def channel(self) -> socket.socket:
            starting()
            return STARTER.channel()

    monkeypatch.setattr("astore.commands.command.STARTER", Slow())
    task = asyncio.create_task(run(["sh", "-c", f"echo $$ > {tmp_path}/pid; sleep 600"]))
    await eventually(lambda: starting.inside == 1)
    await cancelling(task)
    assert starting.inside == 1, "it still starts"
    starting.open()
    await eventually(lambda: lane.statistics().running == 0)
