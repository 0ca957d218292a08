"""Definitions on disk: libvirt's own XML, one file a pool, safe against kill -9 and shared by several processes.

::

    pools/NAME.xml           the definition
    autostart/NAME.xml       a link to it: start_all() starts this pool
    run/NAME.run             the pool is active since this boot, and what it runs by
    run/NAME.snapshot        its last snapshot: a cache
    lock                     held while a definition is changed

Everything here blocks and is called from worker threads. A file is written beside its place, synced, and renamed over it, and
its folder is synced: what is read is always one whole version.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import threading
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import platformdirs

from astore.errors import AstoreError, StoreError, reason
from astore.model import EntryError, Permissions, PoolDef, Snapshot, VolumeInfo

SNAPSHOT_FORMAT = 1
LOCK_TIMEOUT = 10.0
STALE_AFTER = 600.0
"""Seconds after which a half-written file is taken for a killed process's."""
LARGEST_DEFINITION = 4 << 20


class StoredPool(msgspec.Struct, frozen=True):
    """A definition that was read, and whether it is started automatically."""

    definition: PoolDef
    autostart: bool


class DamagedFile(msgspec.Struct, frozen=True):
    """A file that is no good: the pool ``name`` it is named after, its ``path``, and what is wrong with it."""

    name: str
    path: str
    error: str


class Loaded(msgspec.Struct, frozen=True):
    """All definitions of a folder."""

    pools: tuple[StoredPool, ...]
    damaged: tuple[DamagedFile, ...]


class RunState(msgspec.Struct, frozen=True):
    """An active pool: the definition it runs by, and since when, in seconds since the epoch, of which boot.

    ``boot_id`` is filled in when it is saved.
    """

    definition: PoolDef
    uuid: str
    persistent: bool
    started_at: float
    boot_id: str = ""


class _StoredSnapshot(msgspec.Struct, frozen=True, array_like=True):
    format: int
    generation: int
    taken_at: float
    capacity: int
    allocation: int
    available: int
    unsettled: list[str]
    errors: list[EntryError]
    volumes: list[tuple[Any, ...]]
    permissions: Permissions | None


_encode = msgspec.msgpack.Encoder().encode
_decode_run = msgspec.msgpack.Decoder(RunState).decode
_decode_snapshot = msgspec.msgpack.Decoder(_StoredSnapshot).decode
_FIELDS = VolumeInfo.__struct_fields__
_PATH = _FIELDS.index("path")


def default_state_dir() -> Path:
    """Root's is /var/lib/astore; another user's is where the platform keeps users' state."""
    if os.geteuid() == 0:
        return Path("/var/lib/astore")
    return platformdirs.user_state_path("astore")


@cache
def boot_id() -> str:
    """What names this boot of the machine (proc(5): /proc/sys/kernel/random/boot_id)."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


class DefinitionStore:
    """The files of one state folder, which is made on first use with mode 0700."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self._pools = self.folder / "pools"
        self._autostart = self.folder / "autostart"
        self._run = self.folder / "run"
        self._thread_lock = threading.Lock()
        self._damaged: tuple[Path, ...] = ()  # as of the last load: an editor repairs them where they are
        self._parsed: dict[
            str, tuple[tuple[int, int, int], PoolDef]
        ] = {}  # files that did not change are not read again

    # ---------------------------------------------------------------------------------------------- definitions

    def load(self) -> Loaded:
        """Read all definitions. Those that cannot be read are reported and left as they are."""
        pools: list[StoredPool] = []
        damaged: list[DamagedFile] = []
        autostarted = set(self._names(self._autostart, ".xml"))
        for name in self._names(self._pools, ".xml"):
            path = self._pools / f"{name}.xml"
            try:
                definition = self._definition(name, path)
            except FileNotFoundError:
                continue  # removed meanwhile
            except (AstoreError, OSError) as error:
                damaged.append(DamagedFile(name, str(path), reason(error)))
            else:
                pools.append(StoredPool(definition, name in autostarted))
        self._damaged = tuple(Path(file.path) for file in damaged)
        return Loaded(tuple(pools), tuple(damaged))

    def _definition(self, name: str, path: Path) -> PoolDef:
        st = os.stat(path)
        version = (st.st_ino, st.st_mtime_ns, st.st_size)
        known = self._parsed.get(name)
        if known is not None and known[0] == version:
            return known[1]
        definition = PoolDef.from_xml(_read(path))
        if definition.name != name:
            raise StoreError(f"it defines a pool {definition.name!r}")
        if definition.uuid is None:
            raise StoreError("it has no uuid")
        self._parsed[name] = (version, definition)
        return definition

    def save(self, definition: PoolDef) -> None:
        """Write a definition in place of the one there may be. :raises StoreError: it could not be; the old one stays."""
        with self.locked():
            self._write(self._pools, f"{definition.name}.xml", definition.to_xml().encode(), sync=True)

    def remove(self, name: str) -> None:
        """Remove a definition, and its autostart link. :raises StoreError: it could not be removed."""
        with self.locked(), self._saying(self._pools / f"{name}.xml"):
            for folder in (self._autostart, self._pools):
                (folder / f"{name}.xml").unlink(missing_ok=True)
                _sync_folder(folder)

    def set_autostart(self, name: str, autostart: bool) -> None:
        """Make or remove the autostart link. :raises StoreError: that failed, or there is no such definition (any more)."""
        link = self._autostart / f"{name}.xml"
        with self.locked(), self._saying(link):
            if autostart:
                os.stat(self._pools / f"{name}.xml")  # else the link would wait for the next pool of that name
                with contextlib.suppress(FileExistsError):
                    link.symlink_to(f"../pools/{name}.xml")
            else:
                link.unlink(missing_ok=True)
            _sync_folder(self._autostart)

    # ------------------------------------------------------------------------------------------------ run state

    def save_run(self, name: str, state: RunState) -> None:
        """Note that a pool is active. :raises StoreError: that failed."""
        state = state if state.boot_id else msgspec.structs.replace(state, boot_id=boot_id())
        with self._made():
            self._write(self._run, f"{name}.run", _encode(state), sync=False)

    def load_runs(self) -> dict[str, RunState]:
        """The pools that are active since this boot, by name; what is left of earlier boots is removed."""
        runs: dict[str, RunState] = {}
        for name in self._names(self._run, ".run"):
            try:
                state = _decode_run(_read(self._run / f"{name}.run"))
            except FileNotFoundError:
                continue
            except (OSError, msgspec.MsgspecError):
                state = None
            if state is None or state.boot_id != boot_id() or state.definition.name != name:
                self.forget_run(name)
            else:
                runs[name] = state
        return runs

    def forget_run(self, name: str) -> None:
        """Note that a pool is not active any more. :raises StoreError: that failed."""
        with self._saying(self._run / f"{name}.run"):
            for suffix in (".run", ".snapshot"):
                (self._run / f"{name}{suffix}").unlink(missing_ok=True)

    def save_snapshot(self, name: str, snapshot: Snapshot) -> None:
        """Keep a snapshot for the next process. :raises StoreError: that failed."""
        volumes = []
        for record in snapshot.volumes:
            fields = msgspec.structs.astuple(record)
            if record.path is record.key or record.path == record.key:
                fields = (*fields[:_PATH], None, *fields[_PATH + 1 :])
            volumes.append(fields)
        stored = _StoredSnapshot(
            SNAPSHOT_FORMAT,
            snapshot.generation,
            snapshot.taken_at,
            snapshot.capacity,
            snapshot.allocation,
            snapshot.available,
            sorted(snapshot.unsettled),
            list(snapshot.errors),
            volumes,
            snapshot.permissions,
        )
        with self._made():
            self._write(self._run, f"{name}.snapshot", _encode(stored), sync=False)

    def load_snapshot(self, name: str) -> Snapshot | None:
        """The snapshot that was kept; None if there is none, or none that can be understood."""
        try:
            stored = _decode_snapshot(_read(self._run / f"{name}.snapshot", 1 << 30))
            if stored.format != SNAPSHOT_FORMAT:
                return None
            by_name: dict[str, VolumeInfo] = {}
            for fields in stored.volumes:
                if fields[_PATH] is None:
                    fields = (*fields[:_PATH], fields[_PATH - 1], *fields[_PATH + 1 :])
                record = _record(fields)
                by_name[record.name] = record
        except (OSError, ValueError, TypeError, LookupError):
            return None
        return Snapshot(
            by_name,
            generation=stored.generation,
            taken_at=stored.taken_at,
            capacity=stored.capacity,
            allocation=stored.allocation,
            available=stored.available,
            errors=tuple(stored.errors),
            unsettled=frozenset(stored.unsettled),
            permissions=stored.permissions,
        )

    # ------------------------------------------------------------------------------------------------- together

    def fingerprint(self) -> tuple[object, ...]:
        """What changes whenever another process changed anything here, or a damaged file was repaired: cheap to compare."""
        found: list[object] = []
        for folder in (self._pools, self._autostart, self._run):
            with self._saying(folder):
                try:
                    st = os.stat(folder)
                except FileNotFoundError:
                    found.append(None)
                else:
                    found.append((st.st_ino, st.st_mtime_ns, st.st_nlink))
        for path in self._damaged:
            with contextlib.suppress(OSError):
                st = os.stat(path)
                found.append((st.st_ino, st.st_mtime_ns, st.st_size))
        return tuple(found)

    @contextlib.contextmanager
    def locked(self, timeout: float = LOCK_TIMEOUT) -> Iterator[None]:
        """Hold the folder against other processes and threads. :raises StoreError: not to be had in ``timeout`` seconds."""
        deadline = time.monotonic() + timeout
        late = StoreError(f"{self.folder} is locked by another process", errno=errno.EWOULDBLOCK)
        with self._made():
            if not self._thread_lock.acquire(timeout=timeout):
                raise late
            try:
                with self._saying(self.folder / "lock"):
                    fd = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
                try:
                    pause = 0.001
                    while True:
                        try:
                            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                            break
                        except BlockingIOError:
                            if time.monotonic() >= deadline:
                                raise late from None
                            time.sleep(pause)
                            pause = min(pause * 2, 0.05)
                    yield
                finally:
                    os.close(fd)
            finally:
                self._thread_lock.release()

    # ---------------------------------------------------------------------------------------------- inner works

    @contextlib.contextmanager
    def _made(self) -> Iterator[None]:
        with self._saying(self.folder):
            for folder in (self.folder, self._pools, self._autostart, self._run):
                if not folder.is_dir():
                    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        yield

    @contextlib.contextmanager
    def _saying(self, path: Path) -> Iterator[None]:
        try:
            yield
        except AstoreError:
            raise
        except OSError as error:
            raise StoreError(
                f"{path}: {error.strerror or error}", errno=error.errno if error.errno is not None else errno.EIO
            ) from error

    def _names(self, folder: Path, suffix: str) -> list[str]:
        with self._saying(folder):
            try:
                found = sorted(os.listdir(folder))
            except FileNotFoundError:
                return []
        for name in found:
            if name.endswith(".tmp"):
                _remove_stale(folder / name)
        return [name.removesuffix(suffix) for name in found if name.endswith(suffix) and _encodable(name)]

    def _write(self, folder: Path, name: str, data: bytes, *, sync: bool) -> None:
        path = folder / name
        beside = folder / f".{secrets.token_hex(8)}.tmp"
        with self._saying(path):
            try:
                fd = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
                with open(fd, "wb") as file:
                    file.write(data)
                    file.flush()
                    if sync:
                        os.fsync(fd)
                os.rename(beside, path)
                if sync:
                    _sync_folder(folder)
            except BaseException:
                with contextlib.suppress(OSError):
                    beside.unlink(missing_ok=True)
                raise


def _record(fields: tuple[Any, ...]) -> VolumeInfo:
    return msgspec.convert(dict(zip(_FIELDS, fields, strict=True)), VolumeInfo)


def _read(path: Path, largest: int = LARGEST_DEFINITION) -> bytes:
    with open(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), "rb") as file:
        parts: list[bytes] = []
        room = largest + 1
        while room > 0 and (
            part := file.read(min(room, 1 << 20))
        ):  # in pieces: read(n) takes n bytes of memory at once
            parts.append(part)
            room -= len(part)
    if room <= 0:
        raise StoreError(f"it is larger than {largest} bytes")
    return b"".join(parts)


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _remove_stale(path: Path) -> None:
    with contextlib.suppress(OSError):
        if time.time() - path.lstat().st_mtime > STALE_AFTER:
            path.unlink()


def _encodable(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
