"""Shell completion of names. They come from the files of the state folder, which keeps completion fast.

It changes nothing, and asks no storage.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

import click

from astore.cli.session import Settings
from astore.errors import AstoreError, printable

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from astore.model import SecretDef, VolumeInfo

Complete = Callable[[click.Context, click.Parameter, str], list[str]]

PART = "part"
"""The type of a completion behind which the word goes on, such as ``POOL/``: no blank follows it."""

_PLACES = (("pools", ".xml"), ("run", ".run"))
"""The folders of definitions and of runs, with the ends of their files' names."""

_OF_INACTIVE = frozenset({"start", "build", "delete", "undefine"})
_OF_ACTIVE = frozenset({"stop", "destroy", "refresh"})
"""The verbs on pools that are inactive, or active."""


def _state_dir(context: click.Context) -> Path:
    from astore.store.local_files import default_state_dir

    given = context.ensure_object(Settings).state_dir
    return Path(given) if given else default_state_dir()


def _pool_names(folder: Path, places: Sequence[tuple[str, str]] = _PLACES) -> Iterator[str]:
    from astore.store.local_files import LockedFolder

    try:
        LockedFolder(folder).check()
    except OSError:
        return
    for place, suffix in places:
        try:
            found = os.listdir(folder / place)
        except OSError:
            continue
        for name in found:
            if name.endswith(suffix) and not name.startswith("."):
                yield name.removesuffix(suffix)


def _active_pools(folder: Path) -> set[str]:
    return {*_pool_names(folder, _PLACES[1:])}


def _verb_on_pools(context: click.Context) -> str:
    """Return ``start`` for ``pool start`` and ``pool-start``; "" for a verb on anything else, such as ``vol delete``."""
    name, group = context.info_name or "", context.parent and context.parent.info_name
    return name if group == "pool" else name.removeprefix("pool-") if name.startswith("pool-") else ""


def _not_given(ctx: click.Context, param: click.Parameter, names: Iterable[str]) -> set[str]:
    """Return the names that are printable, and are not yet given to a parameter that takes several."""
    given = ctx.params.get(param.name or "")
    found = {name for name in names if printable(name) == name}
    return found - set(given) if isinstance(given, tuple) else found


def complete_pool(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Return the pool names that begin with ``incomplete``: of pools that the command can be used on."""
    folder = _state_dir(ctx)
    verb = _verb_on_pools(ctx)
    defined, active = ({*_pool_names(folder, [place])} for place in _PLACES)
    names = defined | active
    if verb in _OF_INACTIVE:
        names = defined - active
    elif verb in _OF_ACTIVE:
        names = active
    return sorted(name for name in _not_given(ctx, param, names) if name.startswith(incomplete))


def complete_pool_uuid(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Return the UUIDs of pools, with the names."""
    from click.shell_completion import CompletionItem

    from astore.store.definition_files import DefinitionFiles
    from astore.store.local_files import LockedFolder
    from astore.store.run_files import RunFiles

    folder = _state_dir(ctx)
    definitions, runs = DefinitionFiles(LockedFolder(folder)), RunFiles(LockedFolder(folder))
    found: dict[str, str] = {}
    for name in sorted({*_pool_names(folder)}):
        try:
            run = runs.find(name)
        except AstoreError:
            run = None
        uuid = definitions.uuid(name) if run is None else run.uuid
        if uuid is not None:
            found[uuid] = name
    return [CompletionItem(uuid, help=name) for uuid, name in found.items() if uuid.startswith(incomplete)]


# ------------------------------------------------------------------------------------------------------------- volumes


def complete_volume(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Return the volumes that ``incomplete`` may become, from the stored snapshots of --pool or of all active pools.

    They are names, ``POOL/NAME`` and ``POOL:NAME`` once it has a pool, and paths once it is the beginning of one. Pools are
    offered as ``POOL/``, unless --pool names one.
    """
    folder = _state_dir(ctx)
    pool = ctx.params.get("pool")
    homes = {pool} if pool and "/" not in pool else _active_pools(folder)
    if incomplete.startswith(("/", "./", "../")):
        return _paths(_volumes_of(homes, folder), incomplete)
    names = {volume.name for volume in _volumes_of(homes, folder)} if "/" not in incomplete else set[str]()
    parts: set[str] = set()
    if not pool or param.name == "backing":
        active = _active_pools(folder)
        for mark in "/", ":":
            home, found, _ = incomplete.partition(mark)
            if found and home in active:
                names |= {f"{home}{mark}{volume.name}" for volume in _volumes_of([home], folder)}
        parts = {f"{name}/" for name in active}
    names, parts = (_not_given(ctx, param, some) for some in (names, parts))
    return [*_items(names, incomplete), *_items(parts, incomplete, PART)]


def complete_new_volume(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Return the pools that a new volume may be in, as ``POOL/``, unless an option or virsh's names choose the pool."""
    if ctx.params.get("to") or ctx.info_name != "clone":
        return []
    names = _not_given(ctx, param, _active_pools(_state_dir(ctx)))
    return _items({f"{name}/" for name in names}, incomplete, PART)


def _items(texts: Iterable[str], incomplete: str, type: str = "plain") -> list[CompletionItem]:
    from click.shell_completion import CompletionItem

    return [
        CompletionItem(text, type)
        for text in sorted(texts)
        if text.startswith(incomplete) and (type != PART or text != incomplete)
    ]


def _paths(volumes: Iterable[VolumeInfo], incomplete: str) -> list[CompletionItem]:
    """Return the paths that begin with ``incomplete``, up to the next slash: as shells complete files."""
    folder, slash, _ = incomplete.rpartition("/")
    whole = os.path.abspath(folder + slash).rstrip("/") + "/"
    files: set[str] = set()
    folders: set[str] = set()
    for volume in volumes:
        if volume.path.startswith(whole) and printable(volume.path) == volume.path:
            name, more, _ = volume.path.removeprefix(whole).partition("/")
            (folders if more else files).add(f"{folder}/{name}{more}")
    return [*_items(files, incomplete), *_items(folders, incomplete, PART)]


def _volumes_of(pools: Iterable[str], folder: Path) -> Iterator[VolumeInfo]:
    """Yield the volumes of pools, from their stored snapshots."""
    from astore.store.local_files import LockedFolder
    from astore.store.run_files import SnapshotFiles

    snapshots = SnapshotFiles(LockedFolder(folder))
    for name in set(pools):
        seen = snapshots.read(name)
        if seen is not None:
            yield from seen.snapshot.by_name.values()


# ------------------------------------------------------------------------------------------------------------- secrets


def complete_secret(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Return the UUIDs of secrets, with their types and names."""
    from click.shell_completion import CompletionItem

    return [
        CompletionItem(one.uuid, help=f"{one.usage_type} {one.usage or ''}".rstrip())
        for one in _secrets(ctx)
        if one.uuid is not None and one.uuid.startswith(incomplete)
    ]


def complete_usage(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Return the names of secrets, of one type if the command has it already."""
    type = ctx.params.get("usage_type")
    names = {one.usage for one in _secrets(ctx) if one.usage is not None and type in (None, one.usage_type)}
    return sorted(name for name in _not_given(ctx, param, names) if name.startswith(incomplete))


def _secrets(ctx: click.Context) -> list[SecretDef]:
    from astore.secrets.files import SecretFiles

    try:
        return [one.definition for one in SecretFiles(_state_dir(ctx)).all()[0]]
    except (AstoreError, OSError):
        return []


# --------------------------------------------------------------------------------------------------------------- words


def _complete_words(module: str, words: str) -> Complete:
    """Make a completion of the words that a module has under the name ``words``. It imports the module when it is used."""

    def complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
        return [word for word in getattr(import_module(module), words) if word.startswith(incomplete)]

    return complete


def complete_type(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Return the pool types, also behind a comma where several may be given."""
    from astore.xml.known_types import POOL_TYPES

    before, comma, begin = incomplete.rpartition(",") if param.name == "types" else ("", "", incomplete)
    return [f"{before}{comma}{one}" for one in POOL_TYPES if one.startswith(begin) and one not in before.split(",")]


def completion_of(*words: str) -> Complete:
    """Make a completion of these words."""
    return lambda ctx, param, incomplete: [word for word in words if word.startswith(incomplete)]


def complete_source_format(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Return the formats that the source of a pool of the type before it may have."""
    from astore.xml.pool_source import FORMATS

    return [name for name in FORMATS.get(ctx.params.get("type") or "", ()) if name.startswith(incomplete)]


def complete_format(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Return the formats that can be made and begin with ``incomplete``."""
    from astore.model.formats import FORMATS

    return [one.name for one in FORMATS if one.made and one.listed and one.name.startswith(incomplete)]


complete_algorithm = _complete_words("astore.volume_io.wiping", "ALGORITHMS")
