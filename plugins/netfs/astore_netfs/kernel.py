"""The system calls and kernel files with which a mount is let go without asking its server: blocking, but never on it."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import signal
import tempfile
import time
from collections.abc import Iterator

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

    :raises OSError: there is no such connection (any more), or not permitted.
    """
    with _connection(mount) as folder:
        fd = os.open(os.path.join(folder, "abort"), os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, b"1")
        finally:
            os.close(fd)


def fuse_hangs(mount: Mount, seconds: float) -> bool:
    """Whether a FUSE mount's server had calls to answer all the time that it was looked at.

    ``waiting`` that stays above zero is how the kernel's fuse.rst knows a server that hangs; the mount is not touched.

    :raises OSError: as for :func:`abort_fuse`.
    """
    deadline = time.monotonic() + seconds
    with _connection(mount) as folder:
        while True:
            with open(os.path.join(folder, "waiting"), "rb") as file:
                if int(file.read()) == 0:
                    return False
            if time.monotonic() > deadline:
                return True
            time.sleep(0.01)


@contextlib.contextmanager
def _connection(mount: Mount) -> Iterator[str]:
    """A connection's folder in fusectl (fuse.rst), where that is mounted or else mounted for the moment."""
    connection = str(mount.major << 20 | mount.minor)  # the kernel's dev_t
    table = mounts()
    for control in table:
        if control.fstype == "fusectl" and control.root == "/" and find_mount(control.target, table) is control:
            yield os.path.join(control.target, connection)
            return
    folder = tempfile.mkdtemp(prefix="astore-fusectl-")
    try:
        _check(_libc.mount(b"fusectl", os.fsencode(folder), b"fusectl", 0, None), "mount fusectl", folder)
        try:
            yield os.path.join(folder, connection)
        finally:
            detach(folder)
    finally:
        os.rmdir(folder)


def gluster_client_lives(path: str) -> bool:
    """Whether a call on a glusterfs mount that fails was failed by its client process, and not for want of one.

    With its bricks down a client answers ENOTCONN, as the kernel does for a client that is dead. The one question that
    it answers without them is for this attribute, which by default it does not pass on (fuse-bridge.c).
    """
    try:
        os.getxattr(path, "security.capability")
    except OSError as error:
        return error.errno not in (errno.ENOTCONN, errno.ECONNABORTED)
    return True


def kill_marked(mark: str) -> int:
    """Kill every process that was started with ``mark`` (``NAME=value``) in its environment; how many there were.

    A mount helper leaves a server of its own behind, in a session of its own; what it cannot leave behind is the
    environment (/proc/PID/environ, proc(5)). rpc.statd is spared: started by one mount.nfs, it serves every NFS mount.
    """
    word = mark.encode()
    killed = 0
    for name in os.listdir("/proc"):
        if not name.isdigit() or int(name) == os.getpid():
            continue
        with contextlib.suppress(OSError):
            with open(f"/proc/{name}/environ", "rb") as file:
                marked = word in file.read().split(b"\0")
                with open(f"/proc/{name}/comm", "rb") as comm:
                    marked = marked and comm.read() != b"rpc.statd\n"
            if marked:
                os.kill(int(name), signal.SIGKILL)
                killed += 1
    return killed
