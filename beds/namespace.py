"""Move this process into its own network and mount namespace, so that test servers never meet the machine's own.

Inside there is only loopback: a private glusterd has port 24007 to itself. Mounts are seen by this process and its
children only, and vanish when the last of them ends (network_namespaces(7), mount_namespaces(7)).
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import socket
import struct

from beds import BedUnavailable

PRIVATE_FOLDERS = ("/run/gluster", "/var/lib/glusterd", "/var/log/glusterfs")
"""Folders whose paths are compiled into Gluster's programs; an empty tmpfs covers each."""

HOST_NAMESPACE = "ASTORE_TEST_HOST_NAMESPACE"
"""Set to 1, this environment variable keeps tests in the machine's own namespaces (and thereby without most beds)."""

_MARK = "ASTORE_PRIVATE_NAMESPACES"
"""Environment variable with the ids of the new namespaces; child processes recognise them by it."""

# linux/sched.h, linux/mount.h, linux/sockios.h, linux/if.h
_CLONE_NEWNS = 0x00020000
_CLONE_NEWNET = 0x40000000
_MS_BIND = 0x1000
_MS_REC = 0x4000
_MS_PRIVATE = 0x40000
_MNT_FORCE = 1
_MNT_DETACH = 2
_UMOUNT_NOFOLLOW = 8
_SIOCGIFFLAGS = 0x8913
_SIOCSIFFLAGS = 0x8914
_IFF_UP = 1

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def mount(source: str, target: str | os.PathLike[str], kind: str, *, flags: int = 0, data: str = "") -> None:
    """Call mount(2), without the program mount. :raises OSError: as the kernel says."""
    path = os.fspath(target)
    result = _libc.mount(
        os.fsencode(source), os.fsencode(path), kind.encode(), ctypes.c_ulong(flags), data.encode() if data else None
    )
    _check(result, f"mount {kind} on {path}")


def bind(source: str | os.PathLike[str], target: str | os.PathLike[str]) -> None:
    """Make the folder ``source`` appear at ``target`` too. :raises OSError: as the kernel says."""
    mount(os.fspath(source), target, "none", flags=_MS_BIND)


def unmount(target: str | os.PathLike[str], *, lazy: bool = False) -> None:
    """Call umount2(2), without following links or touching the mount's server, so that it cannot hang.

    :param lazy: detach the mount now, and release it when it is no longer in use.
    :raises OSError: EINVAL if nothing is mounted, EBUSY if it is in use.
    """
    path = os.fspath(target)
    result = _libc.umount2(os.fsencode(path), _UMOUNT_NOFOLLOW | (_MNT_DETACH if lazy else 0))
    _check(result, f"umount {path}")


def _identity() -> str:
    return ":".join(str(os.stat(f"/proc/self/ns/{kind}").st_ino) for kind in ("net", "mnt"))


def in_private_namespaces() -> bool:
    """Return whether this process, or the one that started it, has called :func:`enter_private_namespaces`."""
    return os.environ.get(_MARK) == _identity()


def require_private_namespaces() -> None:
    """Require private namespaces. :raises BedUnavailable: this process lives in the machine's own."""
    if not in_private_namespaces():
        raise BedUnavailable("a private server needs a namespace of its own: call enter_private_namespaces() first")


def enter_private_namespaces() -> None:
    """Move this process into a network and a mount namespace of its own, with loopback up.

    Mounts made outside do not appear inside; mounts made inside, and new entries of /run, do not appear outside. Empty
    folders cover Gluster's compiled-in ones. If this process or the one that started it is inside already, nothing
    happens. There is no way back.

    :raises BedUnavailable: not root, not permitted, or threads are running already (a namespace belongs to a thread).
    """
    if in_private_namespaces():
        return
    if os.geteuid() != 0:
        raise BedUnavailable("private namespaces need root")
    threads = len(os.listdir("/proc/self/task"))
    if threads > 1:
        raise BedUnavailable(
            f"private namespaces must be entered before threads are started, and {threads} are running"
        )
    try:
        _check(_libc.unshare(_CLONE_NEWNET | _CLONE_NEWNS), "unshare")
        mount("none", "/", "none", flags=_MS_REC | _MS_PRIVATE)
        _loopback_up()
    except OSError as error:
        raise BedUnavailable(f"private namespaces are not permitted here: {error}") from error
    detach("/run")  # servers create folders there that a new machine lacks
    for folder in PRIVATE_FOLDERS:
        cover(folder)
    os.environ[_MARK] = _identity()


def claim_namespaces() -> None:
    """Take this process's own namespaces for private ones: it is in a guest (:mod:`beds.uml`), where nobody else is."""
    os.environ[_MARK] = _identity()


def cover(folder: str) -> bool:
    """Cover a folder of the machine with an empty tmpfs. A missing folder is created, for this namespace alone.

    :returns: False if the parent is missing too.
    :raises OSError: it cannot be mounted on.
    """
    if not os.path.isdir(folder):
        parent = os.path.dirname(folder)
        if not os.path.isdir(parent):
            return False
        if parent not in _detached:
            detach(parent)
        os.mkdir(folder)
    mount("tmpfs", folder, "tmpfs", data="mode=0755")
    return True


def uncover(folder: str) -> None:
    """Undo :func:`cover`. :raises OSError: EINVAL if nothing covers it."""
    unmount(folder, lazy=True)
    if os.path.dirname(folder) in _detached:
        with contextlib.suppress(OSError):  # the machine's own entry: busy, because it is mounted here
            os.rmdir(folder)


_detached: set[str] = set()
"""Folders that this process has detached."""


def detach(folder: str) -> None:
    """Keep changes of a folder's entries inside this namespace from now on.

    A tmpfs covers the folder, and the machine's entries are mounted in it again, with their content and the mounts
    below them. These files and folders cannot be removed.

    :raises OSError: as the kernel says.
    """
    below = os.open(folder, os.O_PATH | os.O_DIRECTORY)
    try:
        found = os.stat(below)
        mount("tmpfs", folder, "tmpfs", data=f"mode={found.st_mode & 0o7777:o},uid={found.st_uid},gid={found.st_gid}")
        for entry in list(os.scandir(f"/proc/self/fd/{below}")):
            with contextlib.suppress(FileNotFoundError):  # removed since it was listed
                _show_again(entry, os.path.join(folder, entry.name))
    finally:
        os.close(below)
    _detached.add(folder)


def _show_again(entry: os.DirEntry[str], target: str) -> None:
    if entry.is_symlink():
        os.symlink(os.readlink(entry.path), target)
        return
    if entry.is_dir():
        os.mkdir(target)
    else:
        os.close(os.open(target, os.O_CREAT | os.O_EXCL, 0o600))
    mount(entry.path, target, "none", flags=_MS_BIND | _MS_REC)


def _loopback_up() -> None:
    """Set IFF_UP on ``lo``, which gives it 127.0.0.0/8 and ::1 (netdevice(7)); iproute2 is not needed."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        request = fcntl.ioctl(any_socket, _SIOCGIFFLAGS, struct.pack("16sH22x", b"lo", 0))
        (flags,) = struct.unpack_from("H", request, 16)
        fcntl.ioctl(any_socket, _SIOCSIFFLAGS, struct.pack("16sH22x", b"lo", flags | _IFF_UP))
