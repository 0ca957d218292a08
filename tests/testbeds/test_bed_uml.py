"""The guest: boots, runs a program, and says what went wrong; nothing of it is left."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from beds import BedUnavailable, processes, uml

pytestmark = [pytest.mark.root, pytest.mark.nfs]

LOOK = """
echo "on $(uname -r)"
test "$(id -u)" = 0 && echo as root
touch /usr/trace 2>/dev/null || echo "this machine is read-only"
touch /run/trace && echo found > /run/host/answer
cat /sys/class/net/lo/operstate
grep -w nfsd /proc/filesystems
mount -t nfsd nfsd /proc/fs/nfsd && echo has nfsd
"""


def left(folder: Path) -> list[int]:
    """Processes of the guest."""
    return processes.mentioning(folder, {"linux.uml"})


def test_program_runs_in_a_guest(tmp_path: Path) -> None:
    """As root, with this machine's files to read and one folder to write, loopback, and modules when they are asked for."""
    said = uml.run_in_guest(["sh", "-c", LOOK], tmp_path, modules=("ipv6",))
    assert "as root" in said
    assert "this machine is read-only" in said
    assert "nodev\tnfsd" not in said
    assert "has nfsd" in said
    assert (tmp_path / "answer").read_text() == "found\n"
    assert not Path("/run/trace").exists()
    assert left(tmp_path) == []


def test_program_that_fails(tmp_path: Path) -> None:
    """Its exit code and its words are in the error, with the console."""
    with pytest.raises(uml.GuestError, match="ended with 7") as caught:
        uml.run_in_guest(["sh", "-c", "echo out; echo err >&2; exit 7"], tmp_path)
    assert "out\nerr\n" in str(caught.value)
    assert "Power" in str(caught.value)


def test_guest_that_does_not_end(tmp_path: Path) -> None:
    """It is killed in the end, with all that it runs."""
    with pytest.raises(uml.GuestError, match="did not end in 8 s"):
        uml.run_in_guest(["sleep", "1000"], tmp_path, timeout=8)
    assert left(tmp_path) == []


def test_nothing_to_boot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without user-mode Linux there is no guest, in words that name the package."""
    monkeypatch.setattr(shutil, "which", lambda program, path: None)
    with pytest.raises(BedUnavailable, match="user-mode-linux"):
        uml.run_in_guest(["true"], tmp_path)
