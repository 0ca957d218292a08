"""Shell completion of names. Pool names come from file names in the state folder, which keeps completion fast."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import click

from astore.errors import printable


def _state_dir(context: click.Context) -> Path:
    current: click.Context | None = context
    while current is not None:
        given = current.params.get("state_dir")
        if given:
            return Path(given)
        current = current.parent
    from astore.store.local_files import default_state_dir

    given = os.environ.get("ASTORE_STATE_DIR")
    return Path(given) if given else default_state_dir()


def _pool_names(folder: Path) -> Iterator[str]:
    from astore.store.local_files import LockedFolder

    try:
        LockedFolder(folder).check()
    except OSError:
        return
    for place, suffix in (("pools", ".xml"), ("run", ".run")):
        try:
            found = os.listdir(folder / place)
        except OSError:
            continue
        for name in found:
            if name.endswith(suffix) and not name.startswith("."):
                yield name.removesuffix(suffix)


def complete_pool(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Return the pool names that begin with ``incomplete``."""
    names = sorted({name for name in _pool_names(_state_dir(ctx)) if name.startswith(incomplete)})
    return [name for name in names if printable(name) == name]


def complete_volume(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Return the volume names that begin with ``incomplete``, from the stored snapshots of --pool or of all active pools."""
    from astore.store.local_files import LockedFolder
    from astore.store.snapshot_files import SnapshotFiles

    folder = _state_dir(ctx)
    pool = ctx.params.get("pool")
    snapshots = SnapshotFiles(LockedFolder(folder))
    names: set[str] = set()
    for name in {pool} if pool and "/" not in pool else set(_pool_names(folder)):
        seen = snapshots.read(name)
        if seen is not None:
            names.update(volume for volume in seen.snapshot.by_name if volume.startswith(incomplete))
    return sorted(name for name in names if printable(name) == name)


def complete_format(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Return the volume formats that begin with ``incomplete``."""
    from astore.xml.volume import VOLUME_FORMATS

    return [name for name in VOLUME_FORMATS if name.startswith(incomplete)]


def complete_algorithm(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Return the wipe algorithms that begin with ``incomplete``."""
    from astore.volume_io.wiping import ALGORITHMS

    return [name for name in ALGORITHMS if name.startswith(incomplete)]


def complete_type(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Return the pool types that begin with ``incomplete``."""
    from astore.xml.pool_source import POOL_TYPES

    return [name for name in POOL_TYPES if name.startswith(incomplete)]
