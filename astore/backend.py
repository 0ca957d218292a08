"""The page for plugin authors: the contract of a backend, its optional abilities, and the services of the core.

A :class:`Backend` drives one pool type. It is three things: ``type`` and ``api_version``; :meth:`Backend.check`,
which is pure; and :meth:`Backend.open`, which gives a :class:`PoolSession`, a started pool. Everything else
is an *ability*: a Protocol of a few methods, on the backend (:class:`DiscoversSources`, :class:`BuildsPools`,
:class:`DeletesPools`, :class:`CutsPoolsLoose`, :class:`CutsConnections`, :class:`NamesVolumes`) or on the session
(:class:`RefreshesVolume`, :class:`CutsLoose`, and the volume abilities). :func:`abilities` finds them by the methods. The
core refuses every other operation with :class:`~astore.errors.UnsupportedOperationError`, so a backend never needs a method
that only raises.

A backend whose pools are folders of files implements :class:`astore.trees.FileTree` instead of a session and
returns ``FileTreeSession(tree, context)`` from ``open``, which lists and probes for it. A backend whose volumes are disks
by themselves implements :class:`astore.blocks.BlockPool` and returns ``block_session(pool, context)``.

Rules for plugin code: ``check`` and ``source_key`` are pure. Blocking calls go through ``context.lane``, programs
through ``context.run_command``; both have deadlines. ``refresh`` returns data and keeps no reference to the core's
objects. A failure of the whole source is an ``OSError`` or any :class:`~astore.errors.AstoreError`; a failure of one
entry is an :class:`~astore.model.EntryError` in the snapshot.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self, TypeVar, runtime_checkable

import msgspec

from astore.model.definitions import Auth

if TYPE_CHECKING:
    from astore.lanes.gil_turns import Aside, Turn
    from astore.model import DiscoveredSource, EntryError, FileStat, PoolDef, Snapshot, VolumeDef, VolumeInfo
    from astore.model.secrets import SecretName, SecretValue

API_VERSION = 1
"""The version of this page. A backend names the one it was written for."""

API_VERSIONS_ACCEPTED = (1,)
"""The versions that the registry accepts."""

T = TypeVar("T")
Progress = Callable[[int, int | None], None]
"""Called with the bytes done and the bytes in all (None: unknown); must not block."""

Take = Callable[[], tuple[bytearray, int] | None]
"""Return a buffer to fill and the offset to read from; None: there is nothing more to read now."""

Filled = Callable[[int], None]
"""Called with the number of bytes that were read into the buffer taken last."""

QemuNode = dict[str, Any]
"""A node of QEMU's block layer (BlockdevOptions in QEMU's QMP reference), as in ``json:{…}``."""


# ------------------------------------------------------------------------------------------- what the core lends


class Lane(Protocol):
    """A few threads for one pool's blocking calls: under a global cap, fair among pools, each call with a deadline."""

    async def run(
        self,
        func: Callable[..., T],
        *args: Any,
        timeout: float | None = None,
        discard: Callable[[T], object] | None = None,
    ) -> T:
        """Run ``func(*args)`` on a lane thread.

        :param timeout: seconds; None means the lane's own deadline.
        :param discard: called with the result, on the lane thread, if the caller was cancelled or the deadline passed.
        :raises LaneTimeoutError: the deadline passed; the thread is counted as stuck until it returns.
        :raises LaneStuckError: every thread is stuck already.
        """

    def assist(self, func: Callable[[], None], count: int = 1) -> None:
        """Let up to ``count`` more threads of this lane run ``func`` beside the present call. Call it on a lane thread.

        Assistants start if and when threads are free: ``func`` must return at once if nothing is left to do, and the caller
        must be able to do all the work alone. Assistants share the present call's deadline. Never waits.
        """

    @property
    def given_up(self) -> bool:
        """Whether nobody waits for the present call any more: its caller was cancelled, or its deadline has passed.

        A call that takes long asks this every few hundred entries, and then ends (it may raise anything). On a lane thread.
        """
        ...

    def turn(self, *, device: bool = False) -> Turn:
        """Return a turn at work that computes more than it waits, such as listing a folder. Call it on a lane thread.

        Enter the turn, and call its ``step()`` after every 64 or so small pieces of work. Python threads that compute at
        the same time are no faster, and hold up the event loop. A thread that waits for storage nevertheless loses nothing,
        unless it does so for long while other pools compute:
        see :mod:`astore.lanes.gil_turns`.

        :param device: the storage is a device of this machine: the kernel counts what it reads for the thread that waits.
        """

    def aside(self, most: float) -> Aside:
        """Return background work that lets threads with turns go first. Call it on a lane thread.

        Call its ``step()`` before each small piece of work.

        :param most: seconds that it waits for other threads at most, in all.
        """

    @property
    def in_company(self) -> bool:
        """Whether threads take turns now, or are expected to: background work then goes on in small pieces."""


class CommandResult(msgspec.Struct, frozen=True):
    """The result of a program; its output as bytes, unchanged."""

    argv: tuple[str, ...]
    returncode: int
    stdout: bytes
    stderr: bytes


class Limits(msgspec.Struct, frozen=True):
    """The limits of a program: ``memory`` in bytes of address space, ``cpu`` in seconds of processor time."""

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
        """Run a program to its end.

        :param timeout: seconds; None means the runner's own deadline.
        :param check: raise if the program returns non-zero.
        :param limits: the kernel kills a program that exceeds them.
        :param descriptors: open files that the program inherits under the same numbers; keep them open until this returns.
        :param max_output: bytes that the program may write to stdout, and as many to stderr.
        :raises CommandError: the program is missing, returned non-zero (with ``check``), or wrote too much and was killed.
        :raises LaneTimeoutError: the program did not end in ``timeout`` seconds, and was killed.
        """


class Secrets(Protocol):
    """Has the values of secrets. ``Manager(secrets=…)`` takes an object of the caller's that has this method."""

    async def value(self, name: SecretName) -> bytes | None:
        """Return the value of a secret; None if there is none. It is what libvirt takes the value for: bytes, not base64 text.

        The error of a call that fails may be shown and logged: the value must not be in it.
        """


class Logger(Protocol):
    """The methods of structlog's logger that a backend may use. ``event`` is the message. (Importing structlog takes long.)"""

    def bind(self, **fields: Any) -> Self:
        """Return a logger that adds these fields to every message."""

    def unbind(self, *names: str) -> Self:
        """Return a logger without these fields."""

    def debug(self, event: str | None = None, *args: Any, **fields: Any) -> Any:
        """Log a message for developers."""

    def info(self, event: str | None = None, *args: Any, **fields: Any) -> Any:
        """Log a message for those who read along."""

    def warning(self, event: str | None = None, *args: Any, **fields: Any) -> Any:
        """Log a message that somebody should look at."""

    def error(self, event: str | None = None, *args: Any, **fields: Any) -> Any:
        """Log a failure."""

    def critical(self, event: str | None = None, *args: Any, **fields: Any) -> Any:
        """Log a failure that needs somebody at once."""

    def exception(self, event: str | None = None, *args: Any, **fields: Any) -> Any:
        """Log a failure with the traceback of the error that is being handled."""


class Context(msgspec.Struct, frozen=True):
    """The services that the core lends a backend for one pool (or one discovery).

    :ivar name: the pool's name. :ivar uuid: its UUID. Both are '' during discovery.
    :ivar lane: the pool's threads. :ivar run_command: runs programs. :ivar log: the logger, bound to the pool.
    :ivar timeout: the default deadline of a blocking call, in seconds.
    :ivar secrets: where :meth:`secret` looks; None: there are none.
    """

    name: str
    uuid: str
    lane: Lane
    run_command: CommandRunner
    log: Logger
    timeout: float = 60.0
    secrets: Secrets | None = None

    async def secret(self, name: SecretName) -> SecretValue:
        """Return the value of a secret, such as that of a login: bytes that ``repr()`` does not show.

        Ask for it when you log in, and do not keep it: it may be another one next time. It is the value as libvirt hands it
        out: a key's bytes, where tools print base64 text.

        :raises SecretNotFoundError: there is no such secret, or it has no value; the message tells the next command to type.
        :raises AstoreError: it cannot be read. TimeoutError: not in ``timeout`` seconds.
        """
        import asyncio

        from astore.errors import SecretNotFoundError
        from astore.model.secrets import SecretValue

        found = None
        if self.secrets is not None:
            try:
                async with asyncio.timeout(self.timeout) as limit:
                    found = await self.secrets.value(name)
            except TimeoutError as error:
                if not limit.expired():
                    raise
                raise TimeoutError(f"the {name} was not read within {self.timeout:g} s") from error
        if found is None:
            raise SecretNotFoundError(f"the {name} does not exist, or has no value: {name.advice}", what=str(name))
        if not isinstance(found, bytes):
            raise TypeError(f"the {name} is no bytes, but {type(found).__name__}")
        return SecretValue(found)


# ------------------------------------------------------------------------------------------------------- backends


class Backend(abc.ABC):
    """Drives all pools of one type. Created without arguments; keeps no state of a single pool."""

    type: ClassVar[str]
    """The pool type, ``<pool type='…'>``."""

    api_version: ClassVar[int] = API_VERSION

    source_formats: ClassVar[tuple[str, ...]] = ()
    """The values of ``<source><format type=…>``, the default first; empty: pools of this type have no such element."""

    volume_formats: ClassVar[tuple[str, ...]] = ("raw",)
    """The formats that new volumes may have, the default first, for the capabilities document; empty: there can be none."""

    asks_as_initiator: ClassVar[bool] = False
    """Whether ``discover`` takes the name of the initiator that asks, where servers show themselves to some of them only."""

    lane_threads: ClassVar[int] = 4
    """How many threads each pool may use for blocking calls at once."""

    def require(self) -> None:
        """Check that the programs and libraries the backend needs are installed. Called once on loading, in a worker thread.

        :raises BackendLoadError: (or ImportError, OSError) naming what to install.
        """

    @abc.abstractmethod
    def check(self, definition: PoolDef) -> PoolDef:
        """Validate a definition; return it with this type's defaults filled in. Must be pure.

        :raises DefinitionError: naming the element at fault.
        """

    @abc.abstractmethod
    def source_key(self, definition: PoolDef) -> tuple[tuple[str, str], ...]:
        """Return the (field, value) pairs that identify the source of a checked definition. Must be pure.

        Two pools of this type with equal pairs share their storage, so the core refuses the second; the error names the pairs.
        """

    @abc.abstractmethod
    async def open(self, definition: PoolDef, context: Context) -> PoolSession:
        """Start the pool, or join it if another process has started it.

        A call that fails or is cancelled leaves nothing of this process behind.

        :raises OSError: the source does not answer or does not exist; the message names host and volume, or path.
        """


class PoolSession(abc.ABC):
    """A started pool; each Manager has one session for each."""

    @abc.abstractmethod
    async def refresh(self, previous: Snapshot, *, full: bool = False) -> Snapshot:
        """Return a snapshot of the source.

        :param previous: the last good snapshot (empty at first). Take the records of unchanged entries from it **as the same
            objects**.
        :param full: trust nothing in ``previous``.
        :raises OSError: the source as a whole cannot be read.
        """

    async def stop(self) -> None:
        """Stop the pool for all processes (unmount it, for example). Called before :meth:`aclose`.

        The core cannot call this if the storage does not answer, since no session can be opened then. A backend whose pools
        leave something outside of processes, such as a mount, is :class:`CutsPoolsLoose` too: such a stop must be forced.
        """

    @abc.abstractmethod
    async def aclose(self) -> None:
        """Release what belongs to this process. May be called twice; closes even if it fails. Never slow."""


# ---------------------------------------------------------------------------------- abilities a backend may have


@runtime_checkable
class DiscoversSources(Protocol):
    """Can list the sources that a host offers."""

    async def discover(
        self, host: str | None, context: Context, *, port: int | None = None
    ) -> Sequence[DiscoveredSource]:
        """Return the sources that a host offers.

        A backend whose :attr:`Backend.asks_as_initiator` is true has a parameter ``initiator: str | None = None`` too.

        :raises DefinitionError: the type needs a host and none is given, or it is no host name.
        :raises OSError: the host does not answer. CommandError: the program that asks it is missing.
        """


@runtime_checkable
class BuildsPools(Protocol):
    """Can create the pool's storage (a target directory, a file system)."""

    async def build(self, definition: PoolDef, context: Context) -> None:
        """Create the storage. Storage that exists already and is right stays unchanged."""


@runtime_checkable
class DeletesPools(Protocol):
    """Can destroy the pool's storage."""

    async def delete(self, definition: PoolDef, context: Context) -> None:
        """Remove the storage; a directory only if it is empty."""


@runtime_checkable
class CutsPoolsLoose(Protocol):
    """Can end a pool whose storage hangs, if no session can be opened: for example one that another process started."""

    async def cut_loose(self, definition: PoolDef, context: Context) -> None:
        """Do what :meth:`CutsLoose.cut_loose` does, without a session."""


@runtime_checkable
class CutsConnections(Protocol):
    """Can end calls that would keep this process from exiting, such as the close of a file on a FUSE mount that hangs."""

    async def cut_connection(self, definition: PoolDef, context: Context) -> None:
        """Cut the pool's connection if its server does not answer, so that every call on it returns; leave all else as it is.

        Called when the pool was left, but its calls go on, and the caller of the Manager's ``aclose`` allowed it. Every thread
        of the lane may hang. The next start or refresh connects anew.

        :raises OSError: it cannot be cut, or may not be.
        """


class DiskHost(msgspec.Struct, frozen=True):
    """A ``<host>`` in the source of a domain's disk: a ``name`` with a ``port``, or the path of a ``socket``.

    :ivar port: None means the protocol's default. :ivar transport: ``unix`` for a socket, or ``rdma``; None means TCP.
    """

    name: str | None = None
    port: int | None = None
    socket: str | None = None
    transport: str | None = None


class DiskSource(msgspec.Struct, frozen=True):
    """The ``<source>`` of a domain's disk whose bytes come over the network.

    :ivar protocol: libvirt's word for it. :ivar name: the volume's name in that protocol, without a leading ``/``.
    :ivar hosts: all hosts, the preferred one first. :ivar auth: the domain's login; ``type`` is the type of the secret.
    :ivar initiator: the name by which the domain's host makes itself known, if the protocol has such names.
    """

    protocol: str
    name: str
    hosts: tuple[DiskHost, ...] = ()
    auth: Auth | None = None
    initiator: str | None = None


@runtime_checkable
class NamesVolumes(Protocol):
    """Can name volumes of the type ``network``, which are no files of this machine, to libvirt and QEMU.

    The methods are pure, like :meth:`Backend.check`: the core calls them on the event loop, for any active pool, with or
    without a session. They get the definition that the pool runs by and the volume's record.
    """

    def disk_source(self, definition: PoolDef, volume: VolumeInfo) -> DiskSource:
        """Return the ``<source>`` by which a libvirt domain reads the volume."""

    def blockdev(self, definition: PoolDef, volume: VolumeInfo) -> QemuNode:
        """Return the node of QEMU's protocol driver that reads the volume, with every host."""

    def volume_named(self, definition: PoolDef, location: str) -> str | None:
        """Return the name that a volume at a location has, or would have; None if the location is not in this pool.

        The core uses it to find the volume that an image's header means, however the header spells it, and protects that
        volume.

        :param location: a URL or another name that QEMU has for its protocols (:mod:`astore.images.protocols`), never a path
            of this machine. It comes from an image's header: do not trust it.
        """


# ------------------------------------------------------------------------------------ abilities a session may have


@runtime_checkable
class RefreshesVolume(Protocol):
    """Can refresh a single entry."""

    async def refresh_volume(self, name: str, before: VolumeInfo | None = None) -> VolumeInfo | EntryError | None:
        """Read an entry anew. Return its record, its error, or None if there is no such volume.

        :param before: the last record, given only if its ``made`` is set.
        """


@runtime_checkable
class CutsLoose(Protocol):
    """Can end a pool whose storage hangs."""

    async def cut_loose(self) -> None:
        """Make every call that hangs on this pool return, and abandon the pool. Must not touch the storage."""


Tell = Callable[[frozenset[str] | None, bool], None]
"""Called in the event loop with the names of which something may have changed (None: any), and whether only bytes did."""


class Told(Protocol):
    """How a session is told of changes, until it is closed.

    :ivar way: its name: ``inotify``. :ivar complete: whether it tells all that the storage's users do. If not, the pool is
        refreshed every so often as well.
    :ivar bound: by how many seconds what a refresh sees, or what is told, may be late.
    :ivar again: seconds after which the pool must be refreshed, to be told more, or to find what was not told; None: never.
    :ivar lost: whether it tells nothing more, since the storage is another now: the session must be asked for another one.
    :ivar note: why it is not complete, and what would make it so; or what is told no sooner than ``bound`` says.
    """

    way: str
    complete: bool
    bound: float
    again: float | None
    lost: bool
    note: str

    def close(self) -> None:
        """Be told no more. Called in the event loop; must not block. May be called twice."""


@runtime_checkable
class WatchesChanges(Protocol):
    """Can be told of changes by the storage."""

    async def watch(self, tell: Tell) -> Told | None:
        """Call ``tell`` for every change from now on. Return None if this pool's storage tells nothing.

        While a pool is told of everything, :meth:`PoolSession.refresh` may return the last snapshot.

        :raises OSError: it cannot be told, for a reason that may pass.
        """


@runtime_checkable
class CreatesVolumes(Protocol):
    """Can create an empty volume."""

    async def create_volume(self, definition: VolumeDef, *, prealloc_metadata: bool = False) -> VolumeInfo:
        """Create a volume, complete or not at all; return its record.

        :param prealloc_metadata: write all metadata of a qcow2 volume now.
        """


class BackingFile(msgspec.Struct, frozen=True):
    """The backing file of a volume that grows. What the volume gains must not show what is there.

    :ivar capacity: in bytes. :ivar node: QEMU's node of it, if it is longer than the volume was.
    """

    capacity: int
    node: QemuNode | None = None


@runtime_checkable
class CopiesVolumes(Protocol):
    """Can copy one of its own volumes without moving the data through this process."""

    async def copy_volume(
        self,
        source: VolumeInfo,
        definition: VolumeDef,
        *,
        progress: Progress | None = None,
        backing: BackingFile | None = None,
    ) -> VolumeInfo:
        """Copy a volume; return the new one's record. It may have no references that ``source`` does not have, but one to a
        snapshot of ``source``.

        :param backing: the source's backing file, if the new volume grows beyond the source.
        """


@runtime_checkable
class ReceivesVolumes(Protocol):
    """Can create a volume from the bytes of another pool's volume."""

    async def receive_volume(
        self,
        source: VolumeFile,
        size: int,
        definition: VolumeDef,
        *,
        progress: Progress | None = None,
        like: VolumeInfo | None = None,
        backing: BackingFile | None = None,
    ) -> VolumeInfo:
        """Create a volume from the bytes of ``source``; return its record.

        :param size: the number of bytes. :param like: the record of the source volume, unless that is raw.
        :param backing: as for :class:`CopiesVolumes`.
        """


@runtime_checkable
class ServesVolumes(Protocol):
    """Can let qemu-img read its volumes: they can be converted into another format, in a pool that :class:`ConvertsVolumes`."""

    def qemu_node(
        self,
        volume: VolumeInfo,
        operation: str,
        backing: QemuNode | None = None,
        *,
        format: str | None = None,
        on_bytes: Callable[[int], None] | None = None,
    ) -> AbstractAsyncContextManager[QemuNode]:
        """Yield the node by which QEMU reads a volume; it is valid inside the context.

        QEMU must not open files that a header names: give it open descriptors, or serve the bytes.

        :param backing: the node of the backing file; None: QEMU must open none.
        :param format: the format to read the volume in, if it is not its own.
        :param on_bytes: called now and then with the number of bytes read, if the backend can tell.
        :raises StorageError: EAGAIN: the volume has changed since ``volume`` was read. EPERM: its data are in other files.
        """


@runtime_checkable
class ConvertsVolumes(ServesVolumes, Protocol):
    """Can let qemu-img write new volumes in another format, too."""

    async def convert_volume(
        self,
        source: QemuNode,
        definition: VolumeDef,
        *,
        backing: QemuNode | None = None,
        stored: int = 0,
        on_bytes: Callable[[int], None] | None = None,
    ) -> VolumeInfo:
        """Create a volume from the image of the node ``source``; return its record.

        :param stored: bytes that the image and its backing files take on their storage, for the program's limits.
        :param backing: the node of the definition's backing file, if it holds all that the source's own image does not: only
            the source's own data are copied then. None copies everything.
        """


@runtime_checkable
class DeletesVolumes(Protocol):
    """Can delete volumes."""

    async def delete_volume(self, volume: VolumeInfo) -> None:
        """Delete a volume; a directory only if it is empty."""


@runtime_checkable
class RenamesVolumes(Protocol):
    """Can rename volumes."""

    async def rename_volume(self, volume: VolumeInfo, name: str) -> VolumeInfo:
        """Rename a volume, never replacing anything; return its record."""


@runtime_checkable
class ResizesVolumes(Protocol):
    """Can make volumes larger or smaller."""

    async def resize_volume(
        self,
        volume: VolumeInfo,
        capacity: int,
        *,
        allocate: bool = False,
        backing: BackingFile | None = None,
    ) -> VolumeInfo:
        """Resize a volume; return its record.

        :param capacity: bytes. :param allocate: allocate the space that it gains.
        :param backing: its backing file, if it grows.
        """


@runtime_checkable
class WipesVolumes(Protocol):
    """Can wipe volumes."""

    async def wipe_volume(self, volume: VolumeInfo, algorithm: str, *, progress: Progress | None = None) -> None:
        """Overwrite a volume by one of libvirt's algorithms."""


class VolumeFile(Protocol):
    """A volume opened for random access; offsets and lengths in bytes. Calls may overlap.

    ``preadinto`` may still write to the caller's buffer after it was cancelled. A file may be a :class:`ReadsBlocks` too.
    """

    @property
    def in_flight(self) -> int:
        """How many calls at once are worth it for bulk data."""

    async def stat(self) -> FileStat:
        """Return the volume's attributes."""

    async def pread(self, length: int, offset: int) -> bytes:
        """Read ``length`` bytes at ``offset``; fewer only at the end of the volume."""

    async def preadinto(self, buffer: bytearray | memoryview, offset: int) -> int:
        """Fill ``buffer`` from ``offset``, with fewer bytes only at the end of the volume; return their number."""

    async def pwrite(self, data: bytes | bytearray | memoryview, offset: int) -> None:
        """Write all of ``data`` at ``offset``; ``data`` must not change before this returns."""

    async def truncate(self, length: int) -> None:
        """Set the volume's size; what it gains is a hole."""

    async def seek_data(self, offset: int) -> int | None:
        """Return the first offset with data, from ``offset`` on; None: there is only a hole up to the end."""

    async def seek_hole(self, offset: int) -> int:
        """Return the first offset in a hole, from ``offset`` on; the end of the volume counts as one."""

    async def punch(self, offset: int, length: int) -> None:
        """Make a range a hole and keep the size."""

    async def sync(self) -> None:
        """Wait until written data is safe."""


@runtime_checkable
class ReadsBlocks(Protocol):
    """A :class:`VolumeFile` that can read several blocks in one call, for downloads."""

    async def read_blocks(self, take: Take, filled: Filled) -> None:
        """Fill buffers one after the other, until ``take`` returns None.

        Call ``filled`` once for each buffer that was taken. Both may be called from a worker thread.

        :raises OSError: a read failed; ``filled`` was not called for it.
        """


@runtime_checkable
class OpensVolumes(Protocol):
    """Can open volumes for upload, download and random access."""

    def open_volume(self, volume: VolumeInfo, *, write: bool = False) -> AbstractAsyncContextManager[VolumeFile]:
        """Open a volume's bytes for as long as the context lasts."""


@runtime_checkable
class TellsUsers(Protocol):
    """Knows who has a volume open."""

    async def volume_users(self, volume: VolumeInfo) -> Sequence[str]:
        """Return a list of who has a volume open for writing now, in words. What this session itself has open is not told."""


BACKEND_ABILITIES: Mapping[str, type] = {
    "discover": DiscoversSources,
    "build": BuildsPools,
    "delete": DeletesPools,
    "stop-force": CutsPoolsLoose,
    "cut-connection": CutsConnections,
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
    "serve-volume": ServesVolumes,
    "convert-volume": ConvertsVolumes,
    "delete-volume": DeletesVolumes,
    "rename-volume": RenamesVolumes,
    "resize-volume": ResizesVolumes,
    "wipe-volume": WipesVolumes,
    "open-volume": OpensVolumes,
    "tell-users": TellsUsers,
}
"""Abilities of sessions by the operation they allow."""


def abilities(obj: Backend | PoolSession) -> tuple[str, ...]:
    """Return the operations that a backend or a session supports beyond those that all do, in name order."""
    table = BACKEND_ABILITIES if isinstance(obj, Backend) else SESSION_ABILITIES
    return tuple(sorted(name for name, protocol in table.items() if isinstance(obj, protocol)))
