"""The system calls: cutting FUSE connections, killing what a mount has left, asking a client whether it lives."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from netfs.looking import table

from astore_netfs import find_mount
from astore_netfs.mounting import kernel
from beds import fuse, namespace, processes

pytestmark = [pytest.mark.root]


@pytest.fixture
def fusectl(tmp_path: Path) -> Iterator[Path]:
    """A mounted fusectl, as most machines have one."""
    folder = tmp_path / "fusectl"
    folder.mkdir()
    namespace.mount("fusectl", folder, "fusectl")
    yield folder
    namespace.unmount(folder)


@pytest.mark.gluster
@pytest.mark.fuse
@pytest.mark.parametrize("brought", [True, False])
def test_hung_fuse_is_told_and_aborted(
    fuse_mount: Path, request: pytest.FixtureRequest, tmp_path: Path, brought: bool
) -> None:
    """A client hangs if it has something to answer all the time; aborted, what hung returns. fusectl is left as it was."""
    if not brought:
        request.getfixturevalue("fusectl")
    mount = find_mount(str(fuse_mount), table())
    assert mount is not None
    assert not kernel.fuse_hangs(mount, 5.0)
    client = fuse.freeze(fuse_mount)
    assert not kernel.fuse_hangs(mount, 5.0)  # frozen, but nobody waits for it
    waiting = subprocess.Popen(["ls", str(fuse_mount)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    processes.wait_until(lambda: kernel.fuse_hangs(mount, 0.1), 20, "somebody waits")
    kernel.abort_fuse(mount)
    assert waiting.wait(20) != 0
    assert len([mount for mount in table() if mount.fstype == "fusectl"]) == (0 if brought else 1)
    os.kill(client, 9)


@pytest.mark.gluster
@pytest.mark.fuse
def test_client_is_asked_whether_it_lives(fuse_mount: Path) -> None:
    """A client that answers lives, and one that was killed does not."""
    assert kernel.gluster_client_lives(str(fuse_mount))
    fuse.kill(fuse_mount)
    assert not kernel.gluster_client_lives(str(fuse_mount))


def test_any_answer_is_a_sign_of_life(tmp_path: Path) -> None:
    """A file system that has the attribute, and one that has none, both answer."""
    file = tmp_path / "file"
    file.touch()
    assert kernel.gluster_client_lives(str(file))
    value = b"\x00\x00\x00\x02" + b"\x00" * 16  # struct vfs_cap_data, revision 2, without capabilities
    os.setxattr(file, "security.capability", value)
    assert kernel.gluster_client_lives(str(file))


def test_detach_where_nothing_is_mounted(tmp_path: Path) -> None:
    """The kernel's EINVAL comes with the path; failing the waiting there is no error."""
    with pytest.raises(OSError, match="umount") as caught:
        kernel.detach(str(tmp_path))
    assert caught.value.filename == str(tmp_path)
    kernel.fail_waiting(str(tmp_path))


def has(pid: int, word: bytes) -> bool:
    """Whether a word is in a process's environment."""
    return word in Path(f"/proc/{pid}/environ").read_bytes()


def test_marked_processes_are_killed(tmp_path: Path) -> None:
    """Those with the mark, whatever their session, but not the lock manager that all NFS mounts share, and no others."""
    sleep = shutil.which("sleep")
    assert sleep is not None
    shared = shutil.copy(sleep, tmp_path / "rpc.statd")
    environments = {"marked": "NETFS_TEST=1", "other": "NETFS_TEST=11"}
    running = {
        name: subprocess.Popen([sleep, "60"], env=dict([pair.split("=")]), start_new_session=True)
        for name, pair in environments.items()
    }
    running["shared"] = subprocess.Popen([shared, "60"], env={"NETFS_TEST": "1"}, start_new_session=True)
    try:
        for process in running.values():  # exec has replaced this process's environment by its own
            processes.wait_until(functools.partial(has, process.pid, b"NETFS_TEST"), 20, "it runs")
        assert kernel.kill_marked("NETFS_TEST=1") == 1
        assert running["marked"].wait(20) == -9
        assert kernel.kill_marked("NETFS_TEST=1") == 0
        assert running["other"].poll() is None
        assert running["shared"].poll() is None
    finally:
        for process in running.values():
            process.kill()
            process.wait()
