"""A netfs pool's mount: make it, verify it, renew it when it is stale, unmount it, and detach it when its server hangs.

Mounts of others are never touched. The text of mountinfo says what is mounted; whether a mount works is tested on the
pool's lane, where the test may hang.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import os
import secrets
import time
from collections.abc import AsyncIterator, Callable
from typing import TypeVar

import anyio

from astore.backend import Context
from astore.cancellation import CLEANUP_SECONDS, shielded
from astore.errors import CommandError, StorageError
from astore.lanes.job import at_least
from astore.model import PoolDef
from astore.mounts import Mount, mount_id, mounts
from astore_netfs.mounting import kernel
from astore_netfs.mounting.command import (
    mount_argv,
    mount_source,
    mount_sources,
    plain_source,
    source_format,
    target_path,
    umount_argv,
)
from astore_netfs.mounting.credentials import CredentialsFile
from astore_netfs.mounting.mountinfo import find_mount, locate
from astore_netfs.mounting.options import Credentials, split_credentials
from astore_netfs.mounting.own_threads import Call, aside

T = TypeVar("T")

STALE = frozenset({errno.ENOTCONN, errno.ESTALE, errno.ECONNABORTED})
"""The errors of a mount that will never work again: its FUSE server is gone, or its NFS handle is invalid."""

_UNDO_SECONDS = 2 * CLEANUP_SECONDS
"""How long it may take to undo an unfinished mount, or to detach a hung one."""

MARK = "ASTORE_NETFS_MOUNT"
"""Environment variable of the mount command, which marks the processes that it leaves behind."""

_BUSY_SECONDS = 1.0
_HANG_SECONDS = 0.3
_ANSWER_SECONDS = 1.0
"""How long a server may take to answer before the connection of all who use its mount is cut."""
_NFS = frozenset({"nfs", "nfs4"})
_CIFS = frozenset({"cifs", "smb3"})
_GLUSTER = frozenset({"fuse.glusterfs"})
_FSTYPES = {"nfs": _NFS, "cifs": _CIFS, "glusterfs": _GLUSTER, "auto": _NFS | _CIFS | _GLUSTER}


def is_expected(mount: Mount, definition: PoolDef) -> bool:
    """Return whether a mount is of the definition's source: its file system, one of its hosts, and the whole directory."""
    kind = source_format(definition)
    if mount.fstype not in _FSTYPES.get(kind, ()) or plain_source(mount.source) not in mount_sources(definition):
        return False
    if mount.root == "/":
        return True
    # a CIFS mount of a folder in a share may show that folder; any other root is a bind mount of a part
    return mount.fstype in _CIFS and mount.root == "/" + "/".join(plain_source(mount.source).split("/")[4:])


class UnansweredError(StorageError):
    """The client of a mount gets no answer: its bricks are down, or its volume was deleted. :ivar mount: the mount."""

    def __init__(self, message: str, *, errno: int | None, mount: Mount) -> None:
        super().__init__(message, errno=errno)
        self.mount = mount


class MountPoint:
    """The place where one pool is mounted.

    :param definition: a checked one; ``target.path`` is the place.
    :param context: the pool's.
    """

    def __init__(self, definition: PoolDef, context: Context) -> None:
        self.definition = definition
        self.context = context
        self._target = target_path(definition)
        self._path = self._target  # without symbolic links, as in mountinfo
        self._given_up = False

    # ------------------------------------------------------------------------------------------- what is there

    def prove(self, fd: int) -> None:
        """Check that a descriptor is on the pool's mount, and that the pool's path leads to this mount. Blocks.

        :raises OSError: ENOTCONN: nothing is mounted there any more; ESTALE: it was mounted again. StorageError:
            something else is mounted there.
        """
        mount = find_mount(self._path)
        if mount is None:
            raise OSError(errno.ENOTCONN, "nothing is mounted there any more", self._target)
        self._require_ours(mount)
        if mount.id != mount_id(fd):
            raise OSError(errno.ESTALE, "it was mounted again meanwhile", self._target)

    def _require_ours(self, mount: Mount) -> None:
        if not is_expected(mount, self.definition):
            part = "" if mount.root == "/" else f", {mount.root} of it"
            raise StorageError(
                f"{self._target}: {mount.source or 'something'} ({mount.fstype}{part}) is mounted there, "
                f"not {mount_source(self.definition)}",
                errno=errno.EBUSY,
            )

    def look(self) -> Mount | None:
        """Return the pool's mount if it works, None if there is none; detach a stale one. May block on the server."""
        while True:
            self._path, mount = locate(self._target)
            if mount is None:
                self._require_folder()
                return None
            self._require_ours(mount)
            try:
                _ask(self._path)
                return mount
            except OSError as error:
                if error.errno not in STALE:
                    raise
                if mount.fstype in _GLUSTER and kernel.gluster_client_lives(self._path):
                    # a new mount would not work either, and would drop the calls that wait for the bricks
                    raise UnansweredError(
                        f"{self._target}: no server of {mount.source} answers: {error.strerror}",
                        errno=error.errno,
                        mount=mount,
                    ) from error
            self.detach_stale(mount)

    def detach_stale(self, mount: Mount) -> None:
        """Detach a mount that will never work again, which costs its users nothing. Blocks."""
        self.context.log.warning("stale mount detached", target=self._target, source=mount.source)
        if find_mount(self._path) == mount:
            kernel.detach(self._path)

    def _require_folder(self) -> None:
        if not os.path.isdir(self._path):
            raise StorageError(
                f"{self._target} is not a directory to mount on: create it, or build the pool",
                errno=errno.ENOTDIR if os.path.lexists(self._path) else errno.ENOENT,
            )

    # ------------------------------------------------------------------------------------------- mounting

    async def ensure(self) -> bool:
        """Mount the pool unless it is mounted and works; return whether it was mounted now.

        A failed or cancelled call leaves nothing mounted.

        :raises StorageError: something else is mounted there, or there is no directory. CommandError: mount failed.
        :raises LaneTimeoutError: it did not end in time, or the mount that is there hangs.
        """
        if self._given_up:
            raise OSError(errno.ENOTCONN, "the pool was cut loose", self._target)
        lane = self.context.lane
        if await lane.run(self.look) is not None:
            return False
        async with self._claimed():
            if await lane.run(self.look) is not None:  # another process was faster
                return False
            return await self._mount()

    @contextlib.asynccontextmanager
    async def _claimed(self) -> AsyncIterator[None]:
        """Keep other astore processes from mounting here meanwhile: a second mount would cover the first."""
        deadline = time.monotonic() + at_least(self.context.timeout)
        while (fd := await self.context.lane.run(_claim, self._path, discard=_close)) < 0:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{self._target}: another process has been mounting it for too long")
            await anyio.sleep(0.05)
        try:
            yield
        finally:
            _close(fd)

    async def _mount(self) -> bool:
        mark = secrets.token_hex(16)
        context, wanted = self.context, self.definition.mount_secret
        secret = None if wanted is None else await context.secret(wanted)
        _, credentials = split_credentials(self.definition, source_format(self.definition), secret)
        try:
            async with self._in_file(credentials) as file:
                await context.run_command(self.argv(file), timeout=context.timeout, env={MARK: mark})
            if await context.lane.run(self.look) is None:
                raise StorageError(f"{self._target}: mount succeeded, but nothing is mounted there")
        except BaseException as error:
            if credentials is not None and isinstance(error, CommandError):
                credentials.clean(error)
            undone = await shielded(self._undo(mark, finished=isinstance(error, CommandError)), whole=True)
            if undone or not isinstance(error, CommandError):
                raise
            return False  # it failed because another process had mounted the same source
        return True

    def argv(self, credentials: str | None) -> list[str]:
        """Return the command that mounts the pool. :param credentials: the path of the file with the password, if any."""
        return mount_argv(self.definition, credentials)

    @contextlib.asynccontextmanager
    async def _in_file(self, credentials: Credentials | None) -> AsyncIterator[str | None]:
        """Yield the path of a file with the password, which exists meanwhile; None without a password."""
        if credentials is None:
            yield None
            return
        file = await self.context.lane.run(CredentialsFile, credentials.text(), discard=CredentialsFile.remove)
        try:
            yield file.path
        finally:  # not on the lane: its threads may all hang
            with contextlib.suppress(TimeoutError):
                await shielded(aside(file.remove, timeout=_UNDO_SECONDS), whole=True)

    async def _undo(self, mark: str, *, finished: bool) -> bool:
        """Undo a mount command, finished or not; return False if the mount is another process's."""
        try:
            return await aside(self._take_back, f"{MARK}={mark}", finished, timeout=_UNDO_SECONDS)
        except Exception as error:
            self.context.log.warning("a mount could not be taken back", target=self._target, error=str(error))
            return True

    def _take_back(self, mark: str, finished: bool) -> bool:
        killed = kernel.kill_marked(mark)
        deadline = time.monotonic() + _UNDO_SECONDS / 2
        while kernel.kill_marked(mark) and time.monotonic() < deadline:
            time.sleep(0.02)
        mount = find_mount(self._path)
        if mount is None or not is_expected(mount, self.definition):
            return True
        if finished and not killed:
            return False
        _until_gone(mount, functools.partial(kernel.detach, force=mount.fstype not in _GLUSTER), self._path)
        return True

    # ------------------------------------------------------------------------------------------- unmounting

    async def unmount(self) -> None:
        """Unmount the pool if it is mounted.

        :raises StorageError: EBUSY, it is in use. CommandError: umount failed. LaneTimeoutError: it did not end in
            time.
        """
        deadline = time.monotonic() + _BUSY_SECONDS
        while await self.context.lane.run(self._mounted):
            argv = [*umount_argv(self.definition)[:-1], self._path]
            try:
                await self.context.run_command(argv, timeout=self.context.timeout)
            except CommandError as error:
                if not await self.context.lane.run(self._mounted):
                    return
                if "busy" not in error.stderr:
                    raise
                if time.monotonic() > deadline:
                    raise StorageError(
                        f"{self._target} is in use and cannot be unmounted",
                        errno=errno.EBUSY,
                        pool=self.context.name or None,
                    ) from error
                await anyio.sleep(0.05)  # an abandoned call of our own may still be in it

    def _mounted(self) -> bool:
        self._path, mount = locate(self._target)
        if mount is None:
            return False
        if is_expected(mount, self.definition):
            return True
        self.context.log.warning("left alone: not this pool's mount", target=self._target, source=mount.source)
        return False

    async def cut(self) -> None:
        """Make every call that hangs on the mount return, and detach it. Never waits for the server.

        If the mount does not hang, its open files stay usable.

        :raises OSError: it cannot be detached. TimeoutError: not in time.
        """
        self._given_up = True
        await aside(self._cut, timeout=_UNDO_SECONDS)

    def _cut(self) -> None:
        if find_mount(self._path) is None:  # the path may have a link that was never followed
            self._path, _ = locate(self._target)
        for _ in range(16):
            mount = find_mount(self._path)
            if mount is None or not is_expected(mount, self.definition):
                return
            force = False
            if mount.fstype in _GLUSTER:
                try:
                    if kernel.fuse_hangs(mount, _HANG_SECONDS):
                        kernel.abort_fuse(mount)
                except OSError as error:  # not permitted, in a container for example: detach it all the same
                    self.context.log.warning("connection not aborted", target=self._target, error=str(error))
            elif force := _hangs(self._path, _HANG_SECONDS):
                for _ in range(3):  # a thread whose call failed may make another one
                    _until_gone(mount, kernel.fail_waiting, self._path)
                    time.sleep(0.05)
                if find_mount(self._path) != mount:
                    continue
            _until_gone(mount, functools.partial(kernel.detach, force=force), self._path)

    async def cut_connection(self) -> None:
        """Abort the connection of a FUSE mount whose server does not answer. The mount stays, and fails its users.

        :raises OSError: it cannot be aborted, or may not be. TimeoutError: not in time.
        """
        await aside(self._cut_connection, timeout=_UNDO_SECONDS)

    def _cut_connection(self) -> None:
        self._path, mount = locate(self._target)
        if mount is None or mount.fstype not in _GLUSTER or not is_expected(mount, self.definition):
            return
        # calls that wait may be those of other processes on a server that is busy: ask it, too
        if kernel.fuse_hangs(mount, _HANG_SECONDS) and _hangs(self._path, _ANSWER_SECONDS):
            kernel.abort_fuse(mount)
            self.context.log.warning("connection of a hung mount cut", target=self._target, source=mount.source)


# ------------------------------------------------------------------------------------------------------ small things


def _claim(path: str) -> int:
    """Return a descriptor of the folder to mount on, locked (flock(2)); -1 while another process has the lock."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return -1
    except BaseException:
        os.close(fd)
        raise
    return fd


def _close(fd: int) -> None:
    if fd >= 0:
        os.close(fd)


def _ask(path: str) -> None:
    """Make the server of the file system at a path answer. (Attributes alone may come from a cache.)

    :raises OSError: the server's error, or the kernel's if the server is gone.
    """
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fstatvfs(fd)
    finally:
        os.close(fd)


def _hangs(path: str, seconds: float) -> bool:
    """Return whether the file system at a path does not answer; its thread then stays behind."""

    asking = Call(_ask, path)
    asking.join(seconds)
    return asking.is_alive()


def _until_gone(mount: Mount, unmount: Callable[[str], None], path: str) -> None:
    """Unmount, and return when the mount is out of the tree; the kernel may disconnect from the server later.

    :raises OSError: it cannot be unmounted.
    """
    call = Call(unmount, path)
    while call.is_alive() and mount in mounts():
        call.join(0.02)
    if call.error is not None and mount in mounts():  # if it is gone, another process unmounted it first
        raise call.error
