"""Finding, waiting for and ending processes."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from beds import processes


@pytest.fixture
def sleeper(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process with ``tmp_path`` in its command line."""
    with subprocess.Popen(["tail", "-f", "/dev/null", tmp_path / "x"], stderr=subprocess.DEVNULL) as process:
        processes.wait_until(lambda: processes.arguments(process.pid)[:1] == ("tail",), 5, "it runs")
        yield process
        process.kill()


def test_a_process_is_found_by_program_and_folder(sleeper: subprocess.Popen[bytes], tmp_path: Path) -> None:
    """The program and the folder must both fit, and a sibling with a longer name is another folder."""
    assert processes.mentioning(tmp_path, {"tail"}) == [sleeper.pid]
    assert processes.mentioning(tmp_path, {"head"}) == []
    assert processes.mentioning(str(tmp_path)[:-1], {"tail"}) == []
    assert processes.mentioning(tmp_path / "other", {"tail"}) == []


@pytest.mark.root
def test_a_process_of_a_container_is_not_meant(tmp_path: Path) -> None:
    """A process of a container is left alone, though its command line names the folder."""
    argv = ["unshare", "--pid", "--fork", "--kill-child", "tail", "-f", "/dev/null", tmp_path / "x"]
    with subprocess.Popen(argv, stderr=subprocess.DEVNULL) as process:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        processes.wait_until(
            lambda: [processes.arguments(int(pid))[:1] for pid in children.read_text().split()] == [("tail",)],
            5,
            "runs",
        )
        (inside,) = map(int, children.read_text().split())
        assert processes.in_another_container(inside)
        assert not processes.in_another_container(process.pid)
        assert processes.mentioning(tmp_path, {"tail"}) == []
        assert processes.mentioning(tmp_path, {"unshare"}) == [process.pid]
        process.kill()
    assert processes.in_another_container(process.pid), "which is gone"


def test_stopping_and_continuing_is_seen(sleeper: subprocess.Popen[bytes]) -> None:
    """The state letter follows SIGSTOP and SIGCONT."""
    processes.send([sleeper.pid], signal.SIGSTOP)
    processes.wait_until(lambda: processes.state(sleeper.pid) == "T", 5, "stopped")
    processes.send([sleeper.pid], signal.SIGCONT)
    processes.wait_until(lambda: processes.state(sleeper.pid) != "T", 5, "continued")
    assert processes.alive(sleeper.pid)


@pytest.mark.parametrize("grace", [0.0, 5.0])
def test_ending_takes_even_a_stopped_process(sleeper: subprocess.Popen[bytes], tmp_path: Path, grace: float) -> None:
    """A stopped process ends, asked or forced, and a zombie counts as gone."""
    processes.send([sleeper.pid], signal.SIGSTOP)
    processes.end(lambda: processes.mentioning(tmp_path, {"tail"}), grace=grace)
    assert not processes.alive(sleeper.pid)
    assert processes.arguments(sleeper.pid) == ()


def test_who_does_not_end_is_named(sleeper: subprocess.Popen[bytes]) -> None:
    """Waiting is bounded, and returns those that are still there."""
    assert processes.wait_gone([sleeper.pid], 0.05) == [sleeper.pid]
    sleeper.kill()
    assert processes.wait_gone([sleeper.pid], 5) == []
    sleeper.wait()
    assert processes.wait_gone([sleeper.pid], 5) == []
    assert processes.state(sleeper.pid) == ""


def test_signals_to_the_gone_are_passed_over(sleeper: subprocess.Popen[bytes]) -> None:
    """A process that ended meanwhile is no error."""
    sleeper.kill()
    sleeper.wait()
    processes.send([sleeper.pid], signal.SIGTERM)


def test_what_does_not_come_true_is_named() -> None:
    """The message of the timeout says what was waited for."""
    with pytest.raises(TimeoutError, match="pigs fly"):
        processes.wait_until(lambda: False, 0.05, "pigs fly")
