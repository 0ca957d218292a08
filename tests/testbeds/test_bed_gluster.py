"""The private Gluster, and the FUSE mounts of it."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from beds import BedUnavailable, fuse, gluster, processes
from beds.gluster import GlusterBed, GlusterCommandError
from beds.images import make_images

pytestmark = pytest.mark.gluster


def test_a_file_written_through_fuse_lands_in_the_brick(gluster: GlusterBed, fuse_mount: Path, new_volume: str) -> None:
    """The mount is the volume."""
    make_images(fuse_mount, 3)
    assert sorted(os.listdir(fuse_mount)) == ["vm00000.qcow2", "vm00001.qcow2", "vm00002.qcow2"]
    assert (gluster.brick(new_volume) / "vm00002.qcow2").exists()
    assert gluster.mount(new_volume) == fuse_mount
    (mount,) = fuse.mounts(fuse_mount)
    assert (mount.kind, mount.source) == ("fuse.glusterfs", f"{gluster.host}:/{new_volume}")


def test_the_cli_answers_to_a_remote_host(gluster: GlusterBed, new_volume: str) -> None:
    """What discovery runs works inside the namespace, from the address of the bed."""
    argv = ["gluster", "--xml", "volume", "info", "all", f"--remote-host={gluster.host}"]
    said = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
    assert f"<name>{new_volume}</name>" in said


def test_options_are_set(gluster: GlusterBed, volume_factory: Callable[..., str]) -> None:
    """Options given on creation and later are the volume's."""
    name = volume_factory(options={"network.ping-timeout": 3})
    gluster.set_option(name, {"features.cache-invalidation": "on"})
    info = gluster.gluster("volume", "info", name)
    assert "network.ping-timeout: 3" in info
    assert "features.cache-invalidation: on" in info


def test_a_refused_command_says_why(gluster: GlusterBed) -> None:
    """The error has the command's words."""
    with pytest.raises(GlusterCommandError, match="does not exist"):
        gluster.gluster("volume", "start", "nosuchvolume")


def test_a_killed_brick_comes_back(gluster: GlusterBed, fuse_mount: Path, new_volume: str) -> None:
    """Without its brick the mount fails, and works again when the brick does."""
    (fuse_mount / "file").write_text("x")
    gluster.kill_brick(new_volume)
    assert gluster.brick_pids(new_volume) == []
    processes.wait_until(lambda: _error(fuse_mount) == errno.ENOTCONN, 10, "the mount fails")
    gluster.start_volume(new_volume, force=True)
    processes.wait_until(lambda: _error(fuse_mount) == 0, 20, "the mount works")


def test_a_brick_that_has_ended_by_itself_is_revived(gluster: GlusterBed, fuse_mount: Path, new_volume: str) -> None:
    """A brick that has crashed is started again; one that runs is left alone."""
    (fuse_mount / "file").write_text("x")
    assert not gluster.revive(new_volume)
    for pid in gluster.brick_pids(new_volume):
        os.kill(pid, signal.SIGSEGV)
    processes.wait_until(lambda: not gluster.brick_pids(new_volume), 10, "the brick has ended")
    assert gluster.revive(new_volume)
    assert not gluster.revive(new_volume)
    processes.wait_until(lambda: _error(fuse_mount) == 0, 20, "the mount works")


def _error(folder: Path) -> int:
    try:
        os.listdir(folder)
    except OSError as error:
        return error.errno or -1
    return 0


def test_a_stopped_brick_hangs_its_clients(gluster: GlusterBed, fuse_mount: Path, new_volume: str) -> None:
    """A call on the mount waits while the brick is stopped, and returns when it goes on."""
    os.listdir(fuse_mount)
    done = threading.Event()
    gluster.stop_brick(new_volume)
    caller = threading.Thread(target=lambda: ((fuse_mount / "new").touch(), done.set()))
    caller.start()
    assert not done.wait(0.3)
    gluster.continue_brick(new_volume)
    caller.join(20)
    assert done.is_set()


@pytest.mark.fuse
def test_a_frozen_mount_hangs_and_thaws(fuse_mount: Path) -> None:
    """SIGSTOP of the client hangs callers, SIGCONT lets them go."""
    done = threading.Event()
    pid = fuse.freeze(fuse_mount)
    caller = threading.Thread(target=lambda: (_error(fuse_mount), done.set()))
    caller.start()
    assert not done.wait(0.2)
    assert fuse.thaw(fuse_mount) == pid
    caller.join(20)
    assert done.is_set()


@pytest.mark.fuse
def test_a_frozen_mount_is_cut_loose(gluster: GlusterBed, fuse_mount: Path, new_volume: str) -> None:
    """Aborting the connection frees the caller with ECONNABORTED, and the volume can still be deleted."""
    found: list[int] = []
    fuse.freeze(fuse_mount)
    caller = threading.Thread(target=lambda: found.append(_error(fuse_mount)))
    caller.start()
    processes.wait_until(lambda: _blocked_in_fuse(caller), 5, "the call hangs")
    fuse.abort(fuse_mount)
    caller.join(20)
    assert found == [errno.ECONNABORTED]
    gluster.unmount(new_volume)
    gluster.unmount(new_volume)
    assert not fuse.is_mounted(fuse_mount)


def _blocked_in_fuse(thread: threading.Thread) -> bool:
    return thread.native_id is not None and processes.state(thread.native_id) in ("S", "D")


@pytest.mark.fuse
def test_a_killed_client_leaves_a_dead_mount(gluster: GlusterBed, fuse_mount: Path, new_volume: str) -> None:
    """After SIGKILL calls fail with ENOTCONN, and the mount stays until it is unmounted."""
    fuse.kill(fuse_mount)
    assert _error(fuse_mount) == errno.ENOTCONN
    assert fuse.is_mounted(fuse_mount)
    with pytest.raises(LookupError):
        fuse.client_pid(fuse_mount)
    gluster.unmount(new_volume)
    assert not fuse.is_mounted(fuse_mount)
    with pytest.raises(LookupError):
        fuse.abort(fuse_mount)


def test_three_nodes_survive_the_loss_of_one(tmp_path: Path) -> None:
    """A replicated volume serves while a node is dead; closing leaves no process and no mount."""
    with GlusterBed(tmp_path / "bed", nodes=3, address_base="127.1.2.") as bed:
        bed.create_volume("r3", replica=3)
        folder = bed.mount("r3")
        (folder / "file").write_text("here")
        bed.kill_node(3)
        assert (folder / "file").read_text() == "here"
        assert len(bed.brick_pids("r3")) == 2
        bed.start_node(3)
        processes.wait_until(lambda: len(bed.brick_pids("r3")) == 3, 30, "the brick is back")
        assert len(bed.pids()) >= 7
    assert bed.pids() == []
    assert fuse.mounts(bed.folder) == []
    assert {path.name for node in bed.folder.iterdir() for path in node.iterdir()} == {"log"}
    bed.close()


def test_mounting_no_volume_fails_with_the_clients_log(gluster: GlusterBed, tmp_path: Path) -> None:
    """A mount that cannot be is an error with the reason, and leaves nothing."""
    with pytest.raises(RuntimeError, match="nosuchvolume"):
        fuse.mount_gluster(gluster.host, "nosuchvolume", tmp_path / "mnt", tmp_path / "log")
    assert not fuse.is_mounted(tmp_path / "mnt")


def test_a_missing_program_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without glusterd the bed says which package has it."""
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "glusterfs-server" in str(gluster.missing())
    with pytest.raises(BedUnavailable, match="glusterfs-server"):
        GlusterBed(tmp_path / "bed").start()
