"""System calls and kernel files that release a mount without asking its server. They block, but never on the server."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import signal
import tempfile
import time
from collections.abc import Iterator

from astore.mounts import Mount, mounts
from astore_netfs.mounting.mountinfo import find_mount

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
    """Detach the mount at a path from the tree now, even if it is in use (umount2(2), MNT_DETACH).

    The path is resolved only as far as the mount, so the server is not asked.

    :param force: first fail the calls that wait for the server (MNT_FORCE; only NFS and CIFS support it).
    :raises OSError: EINVAL if nothing is mounted, EPERM.
    """
    flags = _MNT_DETACH | _UMOUNT_NOFOLLOW | (_MNT_FORCE if force else 0)
    _check(_libc.umount2(os.fsencode(path), flags), "umount", path)


def fail_waiting(path: str) -> None:
    """Fail the calls that wait for the server of the mount at a path (umount2(2), MNT_FORCE).

    The mount stays if it is in use; an idle one is unmounted.
    """
    with contextlib.suppress(OSError):
        _check(_libc.umount2(os.fsencode(path), _MNT_FORCE | _UMOUNT_NOFOLLOW), "umount", path)


def abort_fuse(mount: Mount) -> None:
    """Abort a FUSE mount's connection to its server: calls that hang on it return at once with ECONNABORTED.

    :raises OSError: the connection is gone, or the call is not permitted.
    """
    with _connection(mount) as folder:
        fd = os.open(os.path.join(folder, "abort"), os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, b"1")
        finally:
            os.close(fd)


def fuse_hangs(mount: Mount, seconds: float) -> bool:
    """Return whether a FUSE mount's server had unanswered calls for the whole of ``seconds``.

    By the kernel's fuse.rst, a server hangs if ``waiting`` stays above zero. The mount itself is not touched.

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
    """Yield the connection's folder in fusectl (fuse.rst), which is mounted temporarily if it is not."""
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
    """Return whether a failing glusterfs mount still has its client process.

    With its bricks down a client answers ENOTCONN, and so does the kernel for a dead client. Only this attribute tells
    them apart: by default the client answers for it without asking the bricks (fuse-bridge.c).
    """
    try:
        os.getxattr(path, "security.capability")
    except OSError as error:
        return error.errno not in (errno.ENOTCONN, errno.ECONNABORTED)
    return True


def kill_marked(mark: str) -> int:
    """Kill every process with ``mark`` (``NAME=value``) in its environment; return how many there were.

    A mount helper leaves a server in a session of its own, but the server keeps the environment (/proc/PID/environ,
    proc(5)). rpc.statd is spared: one mount.nfs starts it, and it serves every NFS mount.
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
