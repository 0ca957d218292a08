"""Shell completion of names. Pool names come from file names in the state folder, which keeps completion fast."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib import import_module
from pathlib import Path

import click

from astore.cli.session import Settings
from astore.errors import printable

Complete = Callable[[click.Context, click.Parameter, str], list[str]]


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


def complete_pool(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Return the pool names that begin with ``incomplete``: of pools that the command can be used on."""
    folder = _state_dir(ctx)
    verb = (ctx.info_name or "").removeprefix("pool-")
    defined, active = ({*_pool_names(folder, [place])} for place in _PLACES)
    names = defined | active
    if verb in _OF_INACTIVE:
        names = defined - active
    elif verb in _OF_ACTIVE:
        names = active
    given = ctx.params.get(param.name or "")
    names -= set(given) if isinstance(given, tuple) else set()
    return sorted(name for name in names if name.startswith(incomplete) and printable(name) == name)


def complete_volume(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Return the volume names that begin with ``incomplete``, from the stored snapshots of --pool or of all active pools.

    ``POOL/`` is followed by the pool's volumes.
    """
    folder = _state_dir(ctx)
    home, slash, begin = incomplete.rpartition("/")
    if slash and not home.startswith((".", "/", "~")):
        found = _volumes_of([home], folder)
        return sorted(f"{home}/{name}" for name in found if name.startswith(begin))
    pool = ctx.params.get("pool")
    names = _volumes_of({pool} if pool and "/" not in pool else _pool_names(folder), folder)
    return sorted(name for name in names if name.startswith(incomplete))


def _volumes_of(pools: Iterable[str], folder: Path) -> set[str]:
    """Return the names of the volumes of pools, from their stored snapshots."""
    from astore.store.local_files import LockedFolder
    from astore.store.run_files import SnapshotFiles

    snapshots = SnapshotFiles(LockedFolder(folder))
    names: set[str] = set()
    for name in set(pools):
        seen = snapshots.read(name)
        if seen is not None:
            names.update(volume for volume in seen.snapshot.by_name if printable(volume) == volume)
    return names


def _complete_words(module: str, words: str) -> Complete:
    """Make a completion of the words that a module has under the name ``words``. It imports the module when it is used."""

    def complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
        return [word for word in getattr(import_module(module), words) if word.startswith(incomplete)]

    return complete


def complete_format(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Return the formats that can be made and begin with ``incomplete``."""
    from astore.model.formats import FORMATS

    return [one.name for one in FORMATS if one.made and one.listed and one.name.startswith(incomplete)]


complete_algorithm = _complete_words("astore.volume_io.wiping", "ALGORITHMS")
complete_type = _complete_words("astore.xml.pool_source", "POOL_TYPES")
