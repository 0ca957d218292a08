"""The tests' own harness: what is left behind is found, what blocks is refused, what is skipped says why."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from blockbuster import BlockingError
from core_fakes import eventually
from leaks import LeakCheck

import astore

_TESTS = Path(__file__).parent.parent


def _session(folder: Path, code: str, **environment: str) -> str:
    """Run a session of its own with this suite's conftest and one module; returns what it printed."""
    for name in ("conftest.py", "leaks.py", "loop_guard.py"):
        shutil.copy(_TESTS / name, folder)
    (folder / "pytest.ini").write_text(
        "[pytest]\naddopts = --import-mode=importlib -ra\npythonpath = .\nasyncio_mode = auto\n"
        "asyncio_default_fixture_loop_scope = function\nmarkers =\n  gluster: x\n"
    )
    (folder / "test_it.py").write_text(code)
    environment = {**os.environ, "ASTORE_TEST_HOST_NAMESPACE": "1", "ASTORE_REQUIRE_ALL": "0", **environment}
    argv = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--rootdir", str(folder), str(folder)]
    done = subprocess.run(argv, cwd=folder, env=environment, capture_output=True, text=True, timeout=120, check=False)
    return f"exit {done.returncode}\n{done.stdout}{done.stderr}"


async def test_a_task_a_thread_and_a_file_are_found(tmp_path: Path) -> None:
    """Each kind of leak is named, and gone again when it has ended."""
    check = LeakCheck(native=True)
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait, name="leaking thread")
    thread.start()
    task = asyncio.create_task(asyncio.sleep(60))
    with open(tmp_path / "leaking file", "w"):  # noqa: ASYNC230
        problems = "; ".join(check.problems())
    for part in ("task: ", "thread: leaking thread", "leaking file", "more threads"):
        assert part in problems
    task.cancel()
    stop.set()
    thread.join()
    await asyncio.wait([task])
    await eventually(lambda: not check.problems(), "the end of what has nothing to do with this test")


async def test_no_leaks_waits_for_what_ends_by_itself(no_leaks: LeakCheck) -> None:
    """A thread that ends within the grace is no leak."""
    threading.Thread(target=time.sleep, args=(0.2,)).start()
    assert no_leaks.problems()


async def test_astore_may_not_block_the_loop() -> None:
    """A blocking call in a function of the package is refused inside a loop, and allowed to the test itself."""
    code = compile(
        "import os\ndef look():\n    return os.stat('/')", os.path.join(*astore.__path__, "imagined.py"), "exec"
    )
    names: dict[str, object] = {}
    exec(code, names)
    look = names["look"]
    assert callable(look)
    with pytest.raises(BlockingError):
        look()
    os.stat("/")
    assert await asyncio.to_thread(look)


async def test_coverage_may_wait_for_its_own_lock() -> None:
    """Threads that coverage follows into new files wait for each other; that is not astore's doing."""
    lock = threading.Lock()
    lock.acquire()
    told = {
        "coverage/collector.py": "def lock_data(call):\n    return call()",
        "imagined.py": "def look(lock_data, call):\n    return lock_data(call)",
    }
    names: dict[str, Any] = {}
    for name, text in told.items():
        exec(compile(text, os.path.join(*astore.__path__, name), "exec"), names)

    def wait() -> bool:
        return lock.acquire(timeout=0.01)

    assert names["look"](names["lock_data"], wait) is False
    with pytest.raises(BlockingError):
        names["look"](lambda call: call(), wait)


def test_a_skip_says_why_and_can_be_forbidden(tmp_path: Path) -> None:
    """A marker's want is a skip with its reason, or a failure where all is required."""
    code = "import pytest\n\n@pytest.mark.gluster\ndef test_one(): pass\n"
    skipped = _session(tmp_path, code)
    assert "1 skipped" in skipped
    assert skipped.startswith("exit 0")
    assert "SKIPPED [1] conftest.py" in skipped
    forbidden = _session(tmp_path, code, ASTORE_REQUIRE_ALL="1")
    assert forbidden.startswith("exit 1")
    assert "lets nothing be skipped" in forbidden


def test_a_process_left_fails_the_session(tmp_path: Path) -> None:
    """A session whose tests pass fails if one left a process behind, and ends it."""
    code = "import subprocess\ndef test_one():\n    global kept\n    kept = subprocess.Popen(['sleep', '4321'])\n"
    said = _session(tmp_path, code, ASTORE_TEST_GRACE="0.1")
    assert said.startswith("exit 1")
    assert "1 passed" in said
    assert "sleep 4321" in said


@pytest.mark.parametrize("body", ["threading.Thread(target=threading.Event().wait, daemon=True, name='kept').start()"])
def test_a_thread_left_fails_the_session(tmp_path: Path, body: str) -> None:
    """A thread that goes on is named with where it is."""
    said = _session(tmp_path, f"import threading\ndef test_one():\n    {body}\n", ASTORE_TEST_GRACE="0.1")
    assert said.startswith("exit 1")
    assert "thread kept" in said
