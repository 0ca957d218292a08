"""The system calls and kernel files with which a mount is let go without asking its server: blocking, but never on it."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import tempfile

from astore_netfs.mountinfo import Mount, find_mount, mounts

# sys/mount.h
_MNT_FORCE = 1
_MNT_DETACH = 2
_UMOUNT_NOFOLLOW = 8

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str, path: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}", path)


def detach(path: str, *, force: bool = False) -> None:
    """Take the mount at a path out of the tree now, whoever uses it (umount2(2), MNT_DETACH).

    Resolves the path only as far as the mount, and so does not ask its server anything.

    :param force: first fail the calls that wait for its server (MNT_FORCE; NFS and CIFS know it).
    :raises OSError: EINVAL where nothing is mounted, EPERM.
    """
    flags = _MNT_DETACH | _UMOUNT_NOFOLLOW | (_MNT_FORCE if force else 0)
    _check(_libc.umount2(os.fsencode(path), flags), "umount", path)


def fail_waiting(path: str) -> None:
    """Fail the calls that wait for the server of the mount at a path; the mount stays (umount2(2), MNT_FORCE).

    An idle mount is unmounted by it.
    """
    with contextlib.suppress(OSError):
        _check(_libc.umount2(os.fsencode(path), _MNT_FORCE | _UMOUNT_NOFOLLOW), "umount", path)


def abort_fuse(mount: Mount) -> None:
    """Cut a FUSE mount's connection to its server: calls that hang on it return at once with ECONNABORTED.

    Through fusectl (fuse.rst of the kernel's documentation), where it is mounted or else mounted for the moment.

    :raises OSError: there is no such connection (any more), or not permitted.
    """
    connection = str(mount.major << 20 | mount.minor)  # the kernel's dev_t
    table = mounts()
    for control in table:
        if control.fstype == "fusectl" and control.root == "/" and find_mount(control.target, table) is control:
            _abort(control.target, connection)
            return
    folder = tempfile.mkdtemp(prefix="astore-fusectl-")
    try:
        _check(_libc.mount(b"fusectl", os.fsencode(folder), b"fusectl", 0, None), "mount fusectl", folder)
        try:
            _abort(folder, connection)
        finally:
            detach(folder)
    finally:
        os.rmdir(folder)


def _abort(control: str, connection: str) -> None:
    fd = os.open(os.path.join(control, connection, "abort"), os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, b"1")
    finally:
        os.close(fd)


def kill_marked(mark: str) -> int:
    """Kill every process that was started with ``mark`` (``NAME=value``) in its environment; how many there were.

    A mount helper leaves a server of its own behind, in a session of its own; what it cannot leave behind is the
    environment (/proc/PID/environ, proc(5)).
    """
    word = mark.encode()
    killed = 0
    for name in os.listdir("/proc"):
        if not name.isdigit() or int(name) == os.getpid():
            continue
        with contextlib.suppress(OSError):
            with open(f"/proc/{name}/environ", "rb") as file:
                marked = word in file.read().split(b"\0")
            if marked:
                os.kill(int(name), signal.SIGKILL)
                killed += 1
    return killed
