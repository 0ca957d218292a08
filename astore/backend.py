"""The page for plugin authors: what a backend is, what it may add, and what the core lends it.

A :class:`Backend` drives one pool type. It is three things: ``type`` and ``api_version``; :meth:`Backend.check`,
which is pure; and :meth:`Backend.open`, which gives a :class:`PoolSession`, a started pool. Everything else
is an *ability*: a Protocol of a few methods, on the backend (:class:`DiscoversSources`, :class:`BuildsPools`,
:class:`DeletesPools`, :class:`NamesVolumes`) or on the session (:class:`RefreshesVolume`, :class:`CutsLoose`, and the
volume abilities). What a backend can do is computed from it; what it cannot do is refused by the core with
:class:`~astore.errors.UnsupportedOperationError`, so a backend never needs a method that only raises.

A backend whose pools are folders of files implements :class:`astore.trees.FileTree` instead of a session and
returns ``FileTreeSession(tree, context)`` from ``open``; listing and probing are then done for it. One whose volumes are disks
by themselves implements :class:`astore.blocks.BlockPool` and returns ``block_session(pool, context)``.

Rules for plugin code: ``check`` and ``source_key`` touch nothing. Blocking calls go through ``context.lane``, programs
through ``context.run_command``; both have deadlines. ``refresh`` returns data and keeps nothing of the
core's. A failure of the whole source is an ``OSError`` (any :class:`~astore.errors.AstoreError` will do); a failure of one
entry is an :class:`~astore.model.EntryError` in the snapshot.
"""

from __future__ import annotations

import abc
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeVar, runtime_checkable

import msgspec

if TYPE_CHECKING:
    from structlog.stdlib import BoundLogger

    from astore.lanes.gil_turns import Aside, Turn
    from astore.model import DiscoveredSource, EntryError, FileStat, PoolDef, Snapshot, VolumeDef, VolumeInfo
    from astore.model.definitions import Auth

API_VERSION = 1
"""The version of this page. A backend says which one it was written for; the registry takes these: (1,)."""

API_VERSIONS_ACCEPTED = (1,)

ENTRY_POINT_GROUP = "astore.backends"
"""Distributions announce a backend here: the entry point's name is the pool type, its object a Backend class."""

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
Progress = Callable[[int, int | None], None]
"""Called with bytes done and bytes in all (None: unknown); must not block."""

QemuNode = dict[str, Any]
"""A node of QEMU's block layer (BlockdevOptions in QEMU's QMP reference), as in ``json:{…}``."""


# ------------------------------------------------------------------------------------------- what the core lends


class Lane(Protocol):
    """The pool's own blocking-call threads: a few, under a global cap, fair among pools, each call with a deadline."""

    async def run(
        self,
        func: Callable[..., T],
        *args: Any,
        timeout: float | None = None,
        discard: Callable[[T], object] | None = None,
    ) -> T:
        """Run ``func(*args)`` on a lane thread.

        :param timeout: seconds; None means the lane's own deadline.
        :param discard: given the result if nobody is left to take it (cancelled, or too late), on the lane thread.
        :raises LaneTimeoutError: the deadline passed; the thread is counted as stuck until it returns.
        :raises LaneStuckError: every thread is stuck already.
        """
        ...

    def assist(self, func: Callable[[], None], count: int = 1) -> None:
        """From a lane thread: let up to ``count`` more threads of this lane run ``func`` beside the present call.

        They start if and when threads are free, so ``func`` must be able to find nothing left to do, and the caller
        must be able to do all the work alone. They share the present call's deadline. Never waits.
        """
        ...

    def turn(self) -> Turn:
        """From a lane thread: a turn at what is more computing than waiting, such as listing a folder.

        To be entered, and its ``step()`` to be called after every 64 or so small pieces of work. Threads that compute at
        the same time are no faster in Python, and keep the event loop from its work. Who waits for storage all the same
        loses nothing: see :mod:`astore.lanes.gil_turns`.
        """
        ...

    def aside(self, most: float) -> Aside:
        """From a lane thread: work that can wait, and lets those who take turns go first: by ``step()``, before each piece.

        :param most: how many seconds it waits for them at most, all in all.
        """
        ...

    @property
    def in_company(self) -> bool:
        """Whether threads take turns now, or are expected to: work that can wait had better do little at once."""
        ...


class CommandResult(msgspec.Struct, frozen=True):
    """What a program returned: bytes as it wrote them."""

    argv: tuple[str, ...]
    returncode: int
    stdout: bytes
    stderr: bytes


class Limits(msgspec.Struct, frozen=True):
    """What a program may use at most: ``memory`` in bytes of address space, ``cpu`` in seconds of processor time."""

    memory: int
    cpu: float


class CommandRunner(Protocol):
    """Runs programs without a shell, with a deadline, with LC_ALL=C and nothing on stdin."""

    async def __call__(
        self,
        argv: Sequence[str],
        *,
        timeout: float | None = None,
        check: bool = True,
        env: Mapping[str, str] | None = None,
        limits: Limits | None = None,
        descriptors: Sequence[int] = (),
        max_output: int = 16 << 20,
    ) -> CommandResult:
        """:param limits: what it may use; it is ended by the kernel where it uses more.
        :param descriptors: open files that it inherits, by the same numbers; they stay open until this returns.
        :param max_output: bytes that it may write to stdout, and as many to stderr.
        :raises CommandError: it is missing, returned non-zero (with ``check``), or wrote too much and was killed.
        :raises LaneTimeoutError: it did not end in ``timeout`` seconds, and was killed.
        """
        ...


class Context(msgspec.Struct, frozen=True):
    """What the core lends a backend for one pool (or one discovery).

    :ivar name: the pool's name. :ivar uuid: its UUID ('' during discovery).
    :ivar lane: its threads. :ivar run_command: for programs. :ivar log: bound to the pool.
    :ivar timeout: seconds that one blocking call may take unless it says otherwise.
    """

    name: str
    uuid: str
    lane: Lane
    run_command: CommandRunner
    log: BoundLogger
    timeout: float = 60.0


# ------------------------------------------------------------------------------------------------------- backends


class Backend(abc.ABC):
    """Drives all the pools of one type. Made without arguments; holds no state of any one pool."""

    type: ClassVar[str]
    """The pool type, ``<pool type='…'>``."""

    api_version: ClassVar[int] = API_VERSION

    source_formats: ClassVar[tuple[str, ...]] = ()
    """What ``<source><format type=…>`` may say, the default first; empty: no such element."""

    volume_formats: ClassVar[tuple[str, ...]] = ("raw",)
    """The image formats its volumes may have, the default first (for the capabilities document)."""

    lane_threads: ClassVar[int] = 4
    """How many threads each of its pools may have blocking calls on at once."""

    def require(self) -> None:
        """Make sure that what the backend needs of the machine is there. Called once, in a worker thread, on loading.

        :raises BackendLoadError: (or ImportError, OSError) saying what to install.
        """

    @abc.abstractmethod
    def check(self, definition: PoolDef) -> PoolDef:
        """Validate; return the definition with this type's defaults filled in. Pure: touches nothing outside.

        :raises DefinitionError: naming the element at fault.
        """

    @abc.abstractmethod
    def source_key(self, definition: PoolDef) -> tuple[tuple[str, str], ...]:
        """What identifies the source of a checked definition: (field, value) pairs.

        Two pools of this type with equal pairs are the same storage, and the second is refused by these fields.
        """

    @abc.abstractmethod
    async def open(self, definition: PoolDef, context: Context) -> PoolSession:
        """Start the pool, or join it where another process already did. Either way afterwards it works.

        Cancelled or failed, it leaves nothing of this process behind.

        :raises OSError: the source does not answer or does not exist, in words naming host and volume or path.
        """


class PoolSession(abc.ABC):
    """A started pool. One for each started pool and Manager."""

    @abc.abstractmethod
    async def refresh(self, previous: Snapshot, *, full: bool = False) -> Snapshot:
        """Look at the source and say what is there now.

        :param previous: the last good snapshot (empty at first): records of unchanged entries are to be taken over from
            it **as the same objects**.
        :param full: trust nothing of ``previous``.
        :raises OSError: the source as a whole cannot be read.
        """

    async def stop(self) -> None:
        """Stop the pool for good (unmount …), beyond what :meth:`aclose` does. Called before ``aclose``.

        Not called where no session can be opened, since the storage does not answer: a backend whose pools leave something
        outside of processes, such as a mount, is :class:`CutsPoolsLoose` too, and then such a stop is refused, or forced.
        """

    @abc.abstractmethod
    async def aclose(self) -> None:
        """Let go of what belongs to this process. May be called twice; closes even where it fails. Never slow."""


# ---------------------------------------------------------------------------------- abilities a backend may have


@runtime_checkable
class DiscoversSources(Protocol):
    """Can say which sources a host offers."""

    async def discover(
        self, host: str | None, context: Context, *, port: int | None = None
    ) -> Sequence[DiscoveredSource]:
        """:raises DefinitionError: no host given where one is needed, or not a host name.
        :raises OSError: the host does not answer. CommandError: the program that asks it is missing.
        """
        ...


@runtime_checkable
class BuildsPools(Protocol):
    """Can make the pool's storage (a target directory, a file system)."""

    async def build(self, definition: PoolDef, context: Context) -> None:
        """Make it; what is there already and is right is left alone."""
        ...


@runtime_checkable
class DeletesPools(Protocol):
    """Can destroy the pool's storage."""

    async def delete(self, definition: PoolDef, context: Context) -> None:
        """Remove it; a directory only when it is empty."""
        ...


@runtime_checkable
class CutsPoolsLoose(Protocol):
    """Can end a pool whose storage hangs so that no session can be opened, such as one that another process started."""

    async def cut_loose(self, definition: PoolDef, context: Context) -> None:
        """As :meth:`CutsLoose.cut_loose`, without a session."""
        ...


class DiskHost(msgspec.Struct, frozen=True):
    """A ``<host>`` in the source of a domain's disk: a ``name`` with a ``port``, or the path of a ``socket``.

    :ivar port: None is the protocol's own. :ivar transport: ``unix`` of a socket, or ``rdma``; None is TCP.
    """

    name: str | None = None
    port: int | None = None
    socket: str | None = None
    transport: str | None = None


class DiskSource(msgspec.Struct, frozen=True):
    """The ``<source>`` of a domain's disk whose bytes come over the network.

    :ivar protocol: libvirt's word for it. :ivar name: what the volume is called there, without a leading ``/``.
    :ivar hosts: all of them, the preferred one first. :ivar auth: as whom the domain logs in; its type is the secret's.
    """

    protocol: str
    name: str
    hosts: tuple[DiskHost, ...] = ()
    auth: Auth | None = None


@runtime_checkable
class NamesVolumes(Protocol):
    """Can say how volumes are named to others that are no files of this machine (those of the type ``network``).

    The methods are pure, like :meth:`Backend.check`: the core calls them on the event loop, for any active pool, with a session
    or without. They get the definition that the pool runs by and the volume's record.
    """

    def disk_source(self, definition: PoolDef, volume: VolumeInfo) -> DiskSource:
        """Where a libvirt domain finds the volume's bytes."""
        ...

    def blockdev(self, definition: PoolDef, volume: VolumeInfo) -> QemuNode:
        """The node of QEMU's protocol driver that reads the volume's bytes, with every host."""
        ...

    def volume_named(self, definition: PoolDef, location: str) -> str | None:
        """The name that a volume of this pool at a location has, or would have; None if the location is not the pool's.

        The core finds by this which volume a header means, however its name is spelled, and protects that volume.

        :param location: what an image's header names, written by strangers, as a URL or another name that QEMU has for its
            protocols (:mod:`astore.images.protocols`); never a path of this machine.
        """
        ...


# ------------------------------------------------------------------------------------ abilities a session may have


@runtime_checkable
class RefreshesVolume(Protocol):
    """Can look at one entry alone."""

    async def refresh_volume(self, name: str, before: VolumeInfo | None = None) -> VolumeInfo | EntryError | None:
        """The entry's record read anew, its error, or None where there is no such volume (any more).

        :param before: its record until now, given where that says what the volume was made as.
        """
        ...


@runtime_checkable
class CutsLoose(Protocol):
    """Can end a pool whose storage hangs."""

    async def cut_loose(self) -> None:
        """Make every call that hangs on this pool return, and give the pool up. Must not touch the storage itself."""
        ...


@runtime_checkable
class WatchesChanges(Protocol):
    """Is told by the storage what changed."""

    def changes(self) -> AbstractAsyncContextManager[AsyncIterator[frozenset[str] | None]]:
        """Sets of names that may have changed; None where only a whole refresh will tell."""
        ...


@runtime_checkable
class CreatesVolumes(Protocol):
    """Can make a new, empty volume, complete or not at all."""

    async def create_volume(self, definition: VolumeDef, *, prealloc_metadata: bool = False) -> VolumeInfo: ...


@runtime_checkable
class CopiesVolumes(Protocol):
    """Can make a new volume out of one of its own without moving the data through this process."""

    async def copy_volume(
        self,
        source: VolumeInfo,
        definition: VolumeDef,
        *,
        progress: Progress | None = None,
        backed: int | None = None,
        backing: QemuNode | None = None,
    ) -> VolumeInfo:
        """The new volume has no other references than the source had when it was seen last.

        :param backed: the capacity of what backs the source, said where it matters and is known.
        :param backing: the node of what backs it, where the new volume grows over that.
        """
        ...


@runtime_checkable
class ReceivesVolumes(Protocol):
    """Can make a new volume out of the bytes of another pool's."""

    async def receive_volume(
        self,
        source: VolumeFile,
        size: int,
        definition: VolumeDef,
        *,
        progress: Progress | None = None,
        like: VolumeInfo | None = None,
        backed: int | None = None,
        backing: QemuNode | None = None,
    ) -> VolumeInfo:
        """:param size: how many bytes there are. :param like: the record of the volume whose bytes they are.
        :param backed: with ``backing`` as for :class:`CopiesVolumes`."""
        ...


@runtime_checkable
class ConvertsVolumes(Protocol):
    """Can have qemu-img read its volumes, and write new ones in another format."""

    def qemu_node(
        self,
        volume: VolumeInfo,
        operation: str,
        backing: QemuNode | None = None,
        *,
        format: str | None = None,
        on_bytes: Callable[[int], None] | None = None,
    ) -> AbstractAsyncContextManager[QemuNode]:
        """How QEMU is told of a volume that it is to read, for as long as this lasts.

        QEMU must open nothing because a name in a header or a path says so: it is given open files, or what is served to it.

        :param backing: the node of what it is backed by; without one QEMU must not open any.
        :param format: the format in which it is read, where that is not the volume's own.
        :param on_bytes: called with the count of bytes that were read, now and then, if that can be told.
        :raises StorageError: EAGAIN: it is not any more as ``volume`` says. EPERM: it has its data in other files.
        """
        ...

    async def convert_volume(
        self,
        source: QemuNode,
        definition: VolumeDef,
        *,
        backing: QemuNode | None = None,
        stored: int = 0,
        on_bytes: Callable[[int], None] | None = None,
    ) -> VolumeInfo:
        """Make a new volume of the image that QEMU knows as ``source``.

        :param stored: how many bytes the image and what it is backed by take in their files, for the program's limits.
        :param backing: the node of the definition's backing file, if what the source's own image has not is the same in it,
            and so need not be copied. Else all is.
        """
        ...


@runtime_checkable
class DeletesVolumes(Protocol):
    """Can remove a volume; a directory only when it is empty."""

    async def delete_volume(self, volume: VolumeInfo) -> None: ...


@runtime_checkable
class RenamesVolumes(Protocol):
    """Can give a volume another name, never replacing what is there."""

    async def rename_volume(self, volume: VolumeInfo, name: str) -> VolumeInfo: ...


@runtime_checkable
class ResizesVolumes(Protocol):
    """Can make a volume larger or smaller: ``capacity`` in bytes; ``allocate`` takes the space now."""

    async def resize_volume(
        self,
        volume: VolumeInfo,
        capacity: int,
        *,
        allocate: bool = False,
        backed: int | None = None,
        backing: QemuNode | None = None,
    ) -> VolumeInfo:
        """:param backed: with ``backing`` as for :class:`CopiesVolumes`."""
        ...


@runtime_checkable
class WipesVolumes(Protocol):
    """Can overwrite a volume by one of libvirt's algorithms."""

    async def wipe_volume(self, volume: VolumeInfo, algorithm: str, *, progress: Progress | None = None) -> None: ...


class VolumeFile(Protocol):
    """A volume opened for random access; offsets and lengths in bytes. Calls may be made side by side.

    ``preadinto`` fills memory of the caller's, and may go on doing so after it was cancelled. A file that can stay in a
    thread for several blocks has ``read_blocks`` too (:func:`astore.volume_io.downloads.read_blocks`), for downloads.
    """

    @property
    def in_flight(self) -> int:
        """How many calls at once pay for bulk data."""
        ...

    async def stat(self) -> FileStat: ...
    async def pread(self, length: int, offset: int) -> bytes: ...
    async def preadinto(self, buffer: bytearray | memoryview, offset: int) -> int: ...
    async def pwrite(self, data: bytes | bytearray | memoryview, offset: int) -> None: ...
    async def truncate(self, length: int) -> None: ...
    async def seek_data(self, offset: int) -> int | None: ...
    async def seek_hole(self, offset: int) -> int: ...
    async def punch(self, offset: int, length: int) -> None: ...
    async def sync(self) -> None: ...


@runtime_checkable
class OpensVolumes(Protocol):
    """Can open a volume's bytes, which makes upload, download and random access possible."""

    def open_volume(self, volume: VolumeInfo, *, write: bool = False) -> AbstractAsyncContextManager[VolumeFile]: ...


BACKEND_ABILITIES: Mapping[str, type] = {
    "discover": DiscoversSources,
    "build": BuildsPools,
    "delete": DeletesPools,
    "name-volumes": NamesVolumes,
}
"""Abilities of backends by the operation they allow."""

SESSION_ABILITIES: Mapping[str, type] = {
    "refresh-volume": RefreshesVolume,
    "stop-force": CutsLoose,
    "watch": WatchesChanges,
    "create-volume": CreatesVolumes,
    "copy-volume": CopiesVolumes,
    "receive-volume": ReceivesVolumes,
    "convert-volume": ConvertsVolumes,
    "delete-volume": DeletesVolumes,
    "rename-volume": RenamesVolumes,
    "resize-volume": ResizesVolumes,
    "wipe-volume": WipesVolumes,
    "open-volume": OpensVolumes,
}
"""Abilities of sessions by the operation they allow."""


def abilities(obj: Backend | PoolSession) -> tuple[str, ...]:
    """The operations that a backend or a session supports beyond those that all do, in name order."""
    table = BACKEND_ABILITIES if isinstance(obj, Backend) else SESSION_ABILITIES
    return tuple(sorted(name for name, protocol in table.items() if isinstance(obj, protocol)))
