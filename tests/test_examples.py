"""The programs in examples/, executed as their readers would."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest
from core_fakes import PATIENCE

from astore.testing.conformance.source import qcow2, raw

EXAMPLES = Path(__file__).parent.parent / "examples"

# Where the tests run in a shell's background, Ctrl-C is ignored, and so it would be by the programs that they start.
INTERRUPTIBLE = (
    "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); os.execv(sys.argv[1], sys.argv[1:])"
)


def test_all_programs_are_executed_here() -> None:
    """There is no example that nobody tries. The service has tests in a file of its own; pages of docs/ run some."""
    assert (EXAMPLES.parent / "tests" / "test_examples_service.py").exists()
    assert {path.name for path in EXAMPLES.glob("*.py")} == {
        "backup_pool.py",
        "from_proxmox.py",
        "inventory_service.py",
        "refresh_all.py",
        "watch_events.py",
    }


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder with an image, and one that is backed by it."""
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / "base.img").write_bytes(raw(1 << 20))
    (folder / "web.qcow2").write_bytes(qcow2(10 << 30, "base.img", "raw"))
    return folder


def argv(program: str, *arguments: str) -> list[str]:
    return [sys.executable, "-W", "error", str(EXAMPLES / program), *arguments]


def refresh_all(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        argv("refresh_all.py", *arguments), cwd=folder, capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_refresh_all(images: Path) -> None:
    """It shows pools, volumes and events; what it started is active the next time, and what was added meanwhile is found."""
    (images.parent / "isos").mkdir()
    first = refresh_all(images.parent, "images", "isos")
    assert re.search(r"^2 refreshed in [0-9.]+ s, 0 failed$", first, re.MULTILINE)
    assert re.search(r"^images: running with \d+ GiB free$", first, re.MULTILINE)
    assert re.search(r"^  base.img +raw +1 MiB", first, re.MULTILINE)
    assert re.search(r"^  web.qcow2 +qcow2 +10240 MiB +base.img$", first, re.MULTILINE)
    events = re.findall(r"^\d+ (\w+ images.*?) ?$", first, re.MULTILINE)
    assert events == [
        "PoolDefined images",
        "PoolStateChanged images",
        "PoolStarted images",
        "VolumeAdded images base.img",
        "VolumeAdded images web.qcow2",
        "PoolRefreshed images",
        "PoolRefreshed images",
    ]
    (images / "new.img").write_bytes(raw())
    second = refresh_all(images.parent, "images")
    assert re.findall(r"^\d+ (Vol\w+ \w+ .*)$", second, re.MULTILINE) == ["VolumeAdded images new.img"]
    assert "PoolStarted" not in second


def test_refresh_all_without_a_folder(images: Path) -> None:
    """A folder that is not there is said to be the matter with its pool, and the others are served."""
    told = refresh_all(images.parent, "images", "nowhere")
    assert re.search(r"^nowhere: inactive .*nowhere does not exist", told, re.MULTILINE)
    assert re.search(r"^images: running", told, re.MULTILINE)


@pytest.fixture
def watcher(images: Path) -> Iterator[subprocess.Popen[str]]:
    """The program watch_events.py, looking at the folder of images."""
    with subprocess.Popen(
        [sys.executable, "-c", INTERRUPTIBLE, *argv("watch_events.py", "images")],
        cwd=images.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(images.parent)},
    ) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.timeout(PATIENCE)
def test_watch_events(images: Path, watcher: subprocess.Popen[str]) -> None:
    """It tells what was there, then each change as it comes, and leaves nothing when it is interrupted."""
    assert watcher.stdout is not None
    assert watcher.stderr is not None
    wait_for(watcher.stdout, "PoolStateChanged", "images: inactive -> running")
    wait_for(watcher.stdout, "VolumeAdded", "base.img: raw, 1,048,576 bytes")
    wait_for(watcher.stdout, "VolumeAdded", "web.qcow2: qcow2, 10,737,418,240 bytes")
    (images / "new.img").write_bytes(raw(4096))
    wait_for(watcher.stdout, "VolumeAdded", "new.img: raw,")
    (images / "new.img").write_bytes(raw(8192))
    wait_for(watcher.stdout, "VolumeChanged", "new.img: raw, 8,192 bytes")
    (images / "new.img").unlink()
    wait_for(watcher.stdout, "VolumeRemoved", "new.img")
    images.rename(images.parent / "away")
    wait_for(watcher.stdout, "PoolStateChanged", "images: running -> inaccessible")
    (images.parent / "away").rename(images)
    wait_for(watcher.stdout, "PoolStateChanged", "images: inaccessible -> running")
    watcher.send_signal(signal.SIGINT)
    _, complaints = watcher.communicate(timeout=PATIENCE)
    assert watcher.returncode == 0
    assert "Traceback" not in complaints
    assert os.listdir(images.parent) == ["images"]


def wait_for(lines: IO[str], kind: str, what: str) -> None:
    """Read on until a line tells of this; the test's deadline ends it otherwise."""
    read = []
    for line in lines:
        if re.match(rf" *\d+ {kind} +{re.escape(what)}", line):
            return
        read.append(line)
    raise AssertionError(f"no {kind} {what} in {read}")
