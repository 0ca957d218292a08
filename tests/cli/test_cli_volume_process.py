"""``astore vol upload`` and ``download`` as processes: pipes to other programs, and Ctrl-C where nobody writes or reads."""

from __future__ import annotations

import contextlib
import os
import random
import select
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Make = Callable[..., Path]

DATA = random.Random(2).randbytes((5 << 20) + 77)


def eventually(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def ended(process: subprocess.Popen[bytes], number: signal.Signals) -> tuple[int, str]:
    """The code and the one line with which it ends when the signal comes, and comes again."""
    for _ in range(3):
        process.send_signal(number)
    code = process.wait(120)
    assert process.stderr is not None
    return code, process.stderr.read().decode()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_standard_input_falls_silent(astore: Any, folder: Path, number: signal.Signals) -> None:
    """Half-way through an upload: it says how far it came, and the volume is free again."""
    with astore.running("vol", "upload", "a.raw", "-") as process:
        assert process.stdin is not None
        process.stdin.write(DATA)
        process.stdin.flush()
        eventually(lambda: (folder / "a.raw").stat().st_blocks * 512 >= 4 << 20)
        code, said = ended(process, number)
    assert code == 130
    # the last of it may have been on its way
    assert said in {f"astore: interrupted, {size} were written to volume 'a.raw'\n" for size in ("0 B", "4.00 MiB")}
    astore.good("vol", "upload", "a.raw", "/dev/null")
    assert (folder / "a.raw").read_bytes()[: 4 << 20] == DATA[: 4 << 20]


@pytest.mark.parametrize("file", ["-", "fifo"])
def test_nobody_reads(astore: Any, folder: Path, file: str) -> None:
    """Half-way through a download, into a pipe that is full and into a FIFO that nobody has opened."""
    os.mkfifo(astore.folder / "fifo")
    with astore.running("vol", "download", "a.raw", file) as process:
        assert process.stdout is not None
        if file == "-":
            assert select.select([process.stdout], [], [], 120)[0]
        else:
            eventually(lambda: _listens(process.pid))
        assert ended(process, signal.SIGINT) == (130, "astore: interrupted\n")


def _listens(pid: int) -> bool:
    """Whether its event loop is there and takes signals: SIGTERM too, which Python alone leaves to the kernel."""
    with contextlib.suppress(FileNotFoundError):
        fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
        return bool(int(fields["SigCgt"], 16) & 1 << signal.SIGTERM - 1)
    return False


def test_through_other_programs(astore: Any, folder: Path, tmp_path: Path) -> None:
    """What goes in by a pipe comes out by one, with not a byte more; and a reader that goes away ends it quietly."""
    (tmp_path / "data").write_bytes(DATA)
    command = " ".join(astore.argv())
    script = f"""
        astore() {{ {command} "$@"; }}
        cat data | astore vol upload a.raw - > said || exit 1
        astore vol download a.raw - --length {len(DATA)} --json | cat > back || exit 2
        exec 3> >(:); wait $!; astore vol download a.raw - >&3; echo $?
    """
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail{script}"],
        env=astore.environment(),
        cwd=tmp_path,
        capture_output=True,
        timeout=200,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"141\n", b"")
    assert (tmp_path / "said").read_text().startswith("5.00 MiB uploaded to volume 'a.raw'")
    assert (tmp_path / "back").read_bytes() == DATA
