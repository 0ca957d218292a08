"""Find, freeze, thaw and kill the client process of a FUSE mount, and abort its connection.

Nothing here looks *into* a mount, which would hang with it: mounts are found in the text of ``/proc/self/mountinfo``
(proc(5)), and the client by its open ``/dev/fuse`` and the mount point on its command line.
"""

from __future__ import annotations

import errno
import os
import signal
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from beds import namespace, processes

_CONNECTIONS = "/sys/fs/fuse/connections"


class Mount(NamedTuple):
    """One line of mountinfo: target, file system type, source, and the device's minor number."""

    target: str
    kind: str
    source: str
    minor: int


def _unescape(word: str) -> str:
    """Undo mountinfo's octal escapes for space, tab, newline and backslash."""
    for code, character in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        word = word.replace(code, character)
    return word


def mounts(below: str | os.PathLike[str] = "/") -> list[Mount]:
    """Return this process's mounts at and below a folder, in the order they were made."""
    prefix = os.fspath(below).rstrip("/")
    found = []
    for line in os.fsdecode(Path("/proc/self/mountinfo").read_bytes()).split("\n"):
        before, separator, after = line.partition(" - ")
        if not separator:
            continue
        fields, rest = before.split(" "), after.split(" ")
        target = _unescape(fields[4])
        if target == prefix or target.startswith(prefix + "/"):
            found.append(Mount(target, rest[0], _unescape(rest[1]), int(fields[2].partition(":")[2])))
    return found


def is_mounted(target: str | os.PathLike[str]) -> bool:
    """Return whether something is mounted at the path, without touching the mount."""
    path = os.fspath(target)
    return any(mount.target == path for mount in mounts(path))


def client_pid(target: str | os.PathLike[str]) -> int:
    """Return the pid of the process that serves the FUSE mount at ``target``.

    :raises LookupError: there is no such process (any more).
    """
    path = os.fspath(target)
    for entry in os.listdir("/proc"):
        if not entry.isdigit() or path not in processes.arguments(pid := int(entry)):
            continue
        if _holds_fuse(pid) and not processes.in_another_container(pid):
            return pid
    raise LookupError(f"no process serves a FUSE mount at {path}")


def _holds_fuse(pid: int) -> bool:
    with suppress(OSError):
        for name in os.listdir(f"/proc/{pid}/fd"):
            with suppress(OSError):
                if os.readlink(f"/proc/{pid}/fd/{name}") == "/dev/fuse":
                    return True
    return False


def freeze(target: str | os.PathLike[str]) -> int:
    """SIGSTOP the client: from now on every call on the mount hangs. Return its pid."""
    pid = client_pid(target)
    os.kill(pid, signal.SIGSTOP)
    processes.wait_until(lambda: processes.state(pid) == "T", 5, f"process {pid} is stopped")
    return pid


def thaw(target: str | os.PathLike[str]) -> int:
    """SIGCONT the client: hung calls go on. Return its pid."""
    pid = client_pid(target)
    os.kill(pid, signal.SIGCONT)
    return pid


def kill(target: str | os.PathLike[str]) -> None:
    """SIGKILL the client: calls on the mount fail with ENOTCONN, and the mount stays until it is unmounted."""
    pid = client_pid(target)
    os.kill(pid, signal.SIGKILL)
    processes.wait_gone([pid], 10)


def abort(target: str | os.PathLike[str]) -> None:
    """Abort the FUSE connection: calls that hang on it return at once with ECONNABORTED.

    :raises LookupError: nothing is mounted there.
    """
    path = os.fspath(target)
    minors = [mount.minor for mount in mounts(path) if mount.target == path and mount.kind.startswith("fuse")]
    if not minors:
        raise LookupError(f"no FUSE mount at {path}")
    # systemd has it mounted on most machines; elsewhere it is mounted meanwhile.
    brought = not any(mount.kind == "fusectl" for mount in mounts(_CONNECTIONS))
    if brought:
        namespace.mount("fusectl", _CONNECTIONS, "fusectl")
    try:
        Path(_CONNECTIONS, str(minors[-1]), "abort").write_text("1")
    finally:
        if brought:
            namespace.unmount(_CONNECTIONS)


def mount_gluster(host: str, volume: str, target: Path, log_file: Path, *, options: tuple[str, ...] = ()) -> None:
    """Mount a Gluster volume by starting its client, ``glusterfs``, and wait until it answers.

    :param options: further arguments for the client, such as ``--direct-io-mode=enable``.
    :raises RuntimeError: the mount failed; the message has the end of its log.
    """
    target.mkdir(parents=True, exist_ok=True)
    argv = ["glusterfs", "--process-name", "fuse", f"--volfile-server={host}", f"--volfile-id=/{volume}"]
    argv += [f"--log-file={log_file}", *options, str(target)]
    started = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False)
    answer = ""
    if started.returncode == 0:
        # The root of a Gluster volume is inode 1; another number means that nothing is mounted yet or any more.
        looked = subprocess.run(["stat", "-c", "%i", target], capture_output=True, text=True, timeout=60, check=False)
        answer = looked.stdout.strip()
    if answer != "1":
        log = log_file.read_text(errors="replace")[-2000:] if log_file.exists() else started.stderr
        release(target)
        raise RuntimeError(f"mounting {host}:/{volume} on {target} failed: {log}")


def release(target: str | os.PathLike[str], *, timeout: float = 10.0) -> None:
    """Unmount the path and end its client, whatever their state; an unmounted path is no error."""
    path = os.fspath(target)
    try:
        pid = client_pid(path)
    except LookupError:
        pid = 0
    while is_mounted(path):
        try:
            namespace.unmount(path, lazy=True)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
    if pid and processes.wait_gone([pid], 1.0):
        processes.end(lambda: [pid] if processes.alive(pid) else [], timeout=timeout)
