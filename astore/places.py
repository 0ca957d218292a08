"""The resolver of paths: walks them part by part as the kernel does, without touching storage that may hang.

A name in an image's header may lead anywhere, for example through links to a share whose server is gone. So the resolver
knows network mounts by the text of /proc/self/mountinfo (proc(5)), and touches nothing below one unless it is the caller's own.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Mapping

from astore.model import Place
from astore.mounts import mounts

MOST_LINKS = 40
"""How many symbolic links are followed for one path: the kernel's limit (path_resolution(7))."""

_STEP = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC

_REMOTE = frozenset(
    {
        *("9p", "afs", "autofs", "ceph", "cifs", "coda", "fuse", "lustre", "ncpfs", "nfs", "nfs4"),
        *("ocfs2", "gfs2", "smb3", "smbfs", "virtiofs"),
    }
)
"""File system types whose calls may wait for a server or a daemon; so may those of ``fuse.…``."""


def is_remote(kind: str) -> bool:
    """Return whether calls on a file system of this type may wait for a server or a daemon."""
    return kind in _REMOTE or kind.startswith("fuse.")


def remote_mounts() -> Mapping[str, str]:
    """Return the mount points on which calls may hang, with their file system types. Touches none of them."""
    found: dict[str, str] = {}
    with contextlib.suppress(OSError):
        for mount in mounts():
            if is_remote(mount.fstype):
                found[mount.target] = mount.fstype
            else:
                found.pop(mount.target, None)  # a local file system is mounted over it
    return found


def place_of(path: str, remote: Mapping[str, str], own: str | None = None) -> Place | None:
    """Resolve an absolute path. Blocks, but waits for no server except that of ``own``.

    A place behind a network mount, or with a missing last part, has a path but no identity.

    :param remote: the result of :func:`remote_mounts`. :param own: the canonical path of a mount that may be touched.
    :return: None for a path that the kernel does not resolve either: a part is missing or no folder, a loop, no permission.
    """
    if not path.startswith("/") or "\0" in path:
        return None
    try:
        return _Walk(remote, own).to(path)
    except (OSError, UnicodeEncodeError):
        return None


class _Walk:
    """The walk along one path, from the root down."""

    def __init__(self, remote: Mapping[str, str], own: str | None) -> None:
        self._remote = remote
        self._own = own
        self._folders: list[tuple[str, tuple[int, int]]] = []  # (name, identity), the root's name being ''
        self._passed: dict[tuple[int, int], None] = {}  # all folders on the way, also those that ".." leaves again
        self._links = 0
        self._beside: tuple[int, int] | None = None  # the folder that has the last part

    def to(self, path: str) -> Place:
        here = os.open("/", _STEP | os.O_DIRECTORY)
        try:
            parts = _parts(path)
            self._push("", os.fstat(here))
            while parts:
                part = parts.pop()
                if not parts and self._beside is None:
                    self._beside = self._folders[-1][1]
                if part == "..":
                    above = os.open("..", _STEP, dir_fd=here)
                    os.close(here)
                    here = above
                    del self._folders[max(1, len(self._folders) - 1) :]
                    continue
                name = self._path(part)
                if name in self._remote and name != self._own:
                    return Place(self._path(part, *reversed(parts)), through=tuple(self._passed))
                try:
                    there = os.open(part, _STEP, dir_fd=here)
                except FileNotFoundError:
                    if parts:
                        raise
                    return Place(name, through=tuple(self._passed))
                try:
                    st = os.fstat(there)
                    if stat.S_ISLNK(st.st_mode):
                        if not st.st_size:  # of /proc or /sys: what it leads to is not what it says (proc(5))
                            raise OSError(errno.ELOOP, "it leads elsewhere for each process", self._path(part))
                        target = os.readlink(b"", dir_fd=there).decode("utf-8", "surrogateescape")
                        here = self._follow(target, parts, here)
                        continue
                    if not parts:
                        return Place(name, st.st_dev, st.st_ino, tuple(self._passed), self._beside)
                    if not stat.S_ISDIR(st.st_mode):
                        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), name)
                    self._push(part, st)
                    here, there = there, here
                finally:
                    os.close(there)
            identity = self._folders[-1][1]
            return Place(self._path(), *identity, tuple(one for one in self._passed if one != identity))
        finally:
            os.close(here)

    def _follow(self, target: str, parts: list[str], here: int) -> int:
        """Put a link's target before the rest of the path; return the folder to go on from."""
        self._links += 1
        if self._links > MOST_LINKS or not target:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
        parts += _parts(target)
        if not target.startswith("/"):
            return here
        root = os.open("/", _STEP | os.O_DIRECTORY)
        os.close(here)
        self._folders = self._folders[:1]
        return root

    def _push(self, name: str, st: os.stat_result) -> None:
        identity = (st.st_dev, st.st_ino)
        self._folders.append((name, identity))
        self._passed[identity] = None

    def _path(self, *more: str) -> str:
        """Return the canonical path so far, with escapes for bytes that are not UTF-8: places are stored as text."""
        names = [name for name, _ in self._folders]
        path = "/".join((*names, *more)) or "/"
        return path if path.isascii() else os.fsencode(path).decode("utf-8", "backslashreplace")


def _parts(path: str) -> list[str]:
    """Return the parts of a path, the last one first. A trailing ``/`` makes no difference."""
    return [part for part in reversed(path.split("/")) if part not in ("", ".")]


def place_here(path: str, folder: Place | None) -> Place | None:
    """Resolve an absolute path for a pool whose folder is ``folder``. Blocks, but waits only for that folder's own mount."""
    remote = remote_mounts()
    return place_of(path, remote, own_mount(folder, remote))


def beneath(folder: str, name: str) -> str:
    """Return the path of an entry of a folder."""
    return f"{folder.rstrip('/')}/{name}"


def own_mount(folder: Place | None, remote: Mapping[str, str]) -> str | None:
    """Return the network mount that a pool's folder is on, or None."""
    path = "" if folder is None else folder.path
    while path.startswith("/"):
        if path in remote:
            return path
        path = path.rpartition("/")[0]
    return None
