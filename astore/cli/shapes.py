"""The shapes of ``--json``, described in docs/cli-json.md: stable, snake_case, sizes in bytes, times in seconds.

Fields are only ever added. Every key is always there; what is not known is null.
"""

from __future__ import annotations

import json
from typing import Any

import msgspec

from astore.errors import AstoreError, reason
from astore.model import EntryError, PoolState, RefreshOutcome, VolumeInfo, VolumeType


class Failure(msgspec.Struct, frozen=True):
    """Why something could not be done: ``type`` is the class of the exception, ``message`` what stderr says."""

    type: str
    message: str
    errno: int | None = None
    libvirt_code: int | None = None


class Damaged(msgspec.Struct, frozen=True):
    """A definition file that cannot be read."""

    name: str
    path: str
    error: str


class Pool(msgspec.Struct, frozen=True):
    """A pool at a glance. ``refreshed_at`` and ``since`` in seconds since the epoch."""

    name: str
    uuid: str
    type: str
    state: PoolState
    active: bool
    persistent: bool
    autostart: bool
    has_backend: bool
    target_path: str | None
    capacity: int
    allocation: int
    available: int
    volumes: int
    errors: int
    generation: int
    refreshed_at: float | None
    since: float | None
    error: str | None


class Entry(msgspec.Struct, frozen=True):
    """An entry of a pool that is no volume, and why."""

    name: str
    message: str
    errno: int | None
    skipped: bool


class PoolInfo(msgspec.Struct, frozen=True):
    """``pool info``: the pool, and the entries that are no volumes."""

    pool: Pool
    entries: tuple[Entry, ...]


class PoolList(msgspec.Struct, frozen=True):
    """``pool list``."""

    pools: tuple[Pool, ...]
    damaged: tuple[Damaged, ...]


class Done(msgspec.Struct, frozen=True):
    """What became of one pool, definition file or volume."""

    ok: bool
    pool: str | None
    uuid: str | None
    state: PoolState | None
    file: str | None
    error: Failure | None
    volume: str | None


class Results(msgspec.Struct, frozen=True):
    """What a command did, one by one in the order given: define, create, start, stop, build, …, and ``vol delete``."""

    action: str
    results: tuple[Done, ...]


class Refreshed(msgspec.Struct, frozen=True):
    """What a refresh found out about one pool."""

    ok: bool
    pool: str
    uuid: str
    added: tuple[str, ...]
    changed: tuple[str, ...]
    removed: tuple[str, ...]
    unchanged: int
    entries: tuple[Entry, ...]
    seconds: float
    generation: int
    error: Failure | None


class Refresh(msgspec.Struct, frozen=True):
    """``pool refresh``."""

    seconds: float
    pools: tuple[Refreshed, ...]


class ImportedPool(msgspec.Struct, frozen=True):
    """What became of one entry of libvirt's folder; ``other`` is the pool that a conflict is with."""

    ok: bool
    file: str
    action: str
    pool: str | None
    uuid: str | None
    type: str | None
    autostart: bool
    has_backend: bool
    other: str | None
    error: Failure | None


class Import(msgspec.Struct, frozen=True):
    """``pool import``."""

    folder: str
    entries: tuple[ImportedPool, ...]


class Xml(msgspec.Struct, frozen=True):
    """``dumpxml``, and ``--xml`` elsewhere."""

    xml: str


class PoolIdentity(msgspec.Struct, frozen=True):
    """``pool-name`` and ``pool-uuid``."""

    name: str
    uuid: str


class SourceHost(msgspec.Struct, frozen=True):
    """A host of a source."""

    name: str
    port: int | None


class Source(msgspec.Struct, frozen=True):
    """A place where a pool could come from."""

    hosts: tuple[SourceHost, ...]
    directory: str | None
    name: str | None
    format: str | None


class Sources(msgspec.Struct, frozen=True):
    """``pool discover``."""

    type: str
    sources: tuple[Source, ...]


class Capability(msgspec.Struct, frozen=True):
    """One pool type: whether there is a backend for it, and the formats it knows, the default first."""

    type: str
    supported: bool
    source_formats: tuple[str, ...]
    volume_formats: tuple[str, ...]


class Capabilities(msgspec.Struct, frozen=True):
    """``pool capabilities``."""

    types: tuple[Capability, ...]


class Reference(msgspec.Struct, frozen=True):
    """A file that a volume's header names; ``kind`` is ``backing``, ``data``, ``extent`` or ``parent``.

    ``location`` is the path or URL that QEMU would open, null where that cannot be told; ``doubt`` says why astore does not
    read through it, null where it does.
    """

    kind: str
    name: str
    format: str | None
    location: str | None
    doubt: str | None


class Volume(msgspec.Struct, frozen=True):
    """A volume as the last refresh found it; ``atime``, ``mtime`` and ``ctime`` in seconds since the epoch."""

    pool: str
    name: str
    type: VolumeType
    key: str
    path: str
    capacity: int
    allocation: int
    physical: int
    format: str | None
    mode: int
    uid: int
    gid: int
    inode: int
    atime: float
    mtime: float
    ctime: float
    backing: str | None
    backing_path: str | None
    backing_format: str | None
    compat: str | None
    features: tuple[str, ...]
    encryption: str | None
    cluster_size: int | None
    data_file: str | None
    references: tuple[Reference, ...]
    made: str | None
    header_format: str | None
    extras: tuple[str, ...]


class VolumeList(msgspec.Struct, frozen=True):
    """``vol list``."""

    pool: str
    refreshed_at: float | None
    volumes: tuple[Volume, ...]


class VolumePath(msgspec.Struct, frozen=True):
    """``vol path``."""

    pool: str
    name: str
    key: str
    path: str


class Transfer(msgspec.Struct, frozen=True):
    """``vol upload`` and ``vol download``: how many bytes went where, holes included."""

    pool: str
    name: str
    bytes: int
    seconds: float


class ChainLink(msgspec.Struct, frozen=True):
    """A file that a volume is made of; ``pool`` and ``volume`` where an active pool has it.

    ``kind`` is null of the volume itself, else what the image above uses the file for, as in a :class:`Reference`; ``doubt``
    says why astore does not read through it, null where it does.
    """

    path: str
    format: str | None
    pool: str | None
    volume: str | None
    kind: str | None = None
    doubt: str | None = None


class Chain(msgspec.Struct, frozen=True):
    """``vol chain``: the volume itself first."""

    links: tuple[ChainLink, ...]


class Dependents(msgspec.Struct, frozen=True):
    """``vol dependents``: the volumes that need this one."""

    volumes: tuple[Volume, ...]


class Backend(msgspec.Struct, frozen=True):
    """A backend; ``status`` is ``ready`` or ``failed``. ``pools`` counts the active pools of its type."""

    type: str
    status: str
    distribution: str | None
    version: str | None
    api_version: int | None
    abilities: tuple[str, ...]
    error: str | None
    pools: int


class Backends(msgspec.Struct, frozen=True):
    """``backend list``."""

    backends: tuple[Backend, ...]


# --------------------------------------------------------------------------------------------- from astore's records


def failure(error: BaseException | None, message: str | None = None) -> Failure | None:
    """The shape of an exception; None of None."""
    if error is None:
        return None
    number = error.errno if isinstance(error, OSError) else None
    code = int(error.libvirt_code) if isinstance(error, AstoreError) else None
    return Failure(type(error).__name__, message if message is not None else reason(error), number, code)


def entries(errors: tuple[EntryError, ...]) -> tuple[Entry, ...]:
    """The shape of a snapshot's errors."""
    return tuple(Entry(error.name, error.message, error.errno, error.skipped) for error in errors)


_VOLUME_FIELDS = tuple(name for name in Volume.__struct_fields__ if name != "references" and hasattr(VolumeInfo, name))


def volume(pool: str, info: VolumeInfo) -> Volume:
    """The shape of a volume's record."""
    fields: dict[str, Any] = {name: getattr(info, name) for name in _VOLUME_FIELDS}
    references = tuple(Reference(one.kind, one.name, one.format, one.location, one.doubt) for one in info.references)
    fields["references"] = references
    return Volume(pool=pool, atime=info.atime_ns / 1e9, mtime=info.mtime_ns / 1e9, ctime=info.ctime_ns / 1e9, **fields)


def refreshed(outcome: RefreshOutcome, message: str | None = None) -> Refreshed:
    """The shape of one pool's outcome; ``message`` is what stderr says of its error."""
    return Refreshed(
        ok=outcome.error is None,
        pool=outcome.pool,
        uuid=outcome.uuid,
        added=outcome.added,
        changed=outcome.changed,
        removed=outcome.removed,
        unchanged=outcome.unchanged,
        entries=entries(outcome.errors),
        seconds=outcome.seconds,
        generation=outcome.generation,
        error=failure(outcome.error, message),
    )


# --------------------------------------------------------------------------------------------------------- as text


def document(shape: msgspec.Struct) -> str:
    """One indented JSON document. ASCII only, so that it survives every locale and terminal.

    A name that is not UTF-8 has its bytes as lone surrogates (``\\udce4`` is byte 0xE4), as Python's ``os.fsdecode``.
    """
    compact = line(shape)
    try:
        # much faster than json.dumps(indent=2), but it does not take lone surrogates
        return msgspec.json.format(compact, indent=2)
    except msgspec.DecodeError:
        return json.dumps(json.loads(compact), indent=2)


def line(shape: msgspec.Struct | dict[str, Any]) -> str:
    """JSON in one line, for streams of documents."""
    return json.dumps(msgspec.to_builtins(shape))
