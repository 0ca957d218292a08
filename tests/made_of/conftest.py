"""What these tests share: pools of three kinds, and the folder in which others put files into them."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from made_of.places import Place

from astore.manager import Manager
from astore.model import Host, PoolDef, Source, Target
from beds import fuse
from beds.gluster import UNCACHED, GlusterBed

VOLUME = "made-of"
NO_CACHE = ("--attribute-timeout=0", "--entry-timeout=0")

_numbers = itertools.count(1)

ALL = (
    "dir",
    pytest.param("netfs", marks=[pytest.mark.root, pytest.mark.gluster, pytest.mark.fuse]),
    pytest.param("gluster", marks=[pytest.mark.root, pytest.mark.gluster, pytest.mark.fuse]),
)


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where astore makes its temporary files."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


@pytest.fixture
async def manager(tmp_path: Path) -> AsyncIterator[Manager]:
    """A Manager with the installed backends."""
    async with Manager(tmp_path / "state") as manager:
        yield manager


@pytest.fixture(scope="module")
def shared_volume(gluster: GlusterBed) -> Iterator[GlusterBed]:
    """A Gluster volume, folders of which are pools."""
    gluster.create_volume(VOLUME, options=UNCACHED)
    try:
        gluster.mount(VOLUME, options=NO_CACHE)
        yield gluster
    finally:
        gluster.delete_volume(VOLUME)


@pytest.fixture
async def place(request: Any, manager: Manager, tmp_path: Path) -> AsyncIterator[Place]:
    """A started pool; its kind is the parameter's, ``dir`` without one."""
    kind = getattr(request, "param", "dir")
    folder = tmp_path / "pool"
    if kind == "dir":
        folder.mkdir()
        definition = PoolDef(type="dir", name="p", target=Target(path=str(folder)))
        yield Place(kind, await manager.create(definition), folder, str(folder), tmp_path, manager)
        return
    bed: GlusterBed = request.getfixturevalue("shared_volume")
    name = f"folder{next(_numbers)}"
    files = await asyncio.to_thread(bed.mount, VOLUME) / name
    files.mkdir()
    if kind == "gluster":
        source = Source(hosts=(Host(bed.host),), directory=f"/{name}", name=VOLUME)
        pool = await manager.create(PoolDef(type="gluster", name="p", source=source))
        yield Place(kind, pool, files, f"gluster://{bed.host}/{VOLUME}/{name}", tmp_path, manager)
        return
    folder.mkdir()
    definition = PoolDef(
        type="netfs",
        name="p",
        source=Source(hosts=(Host(bed.host),), directory=f"{VOLUME}/{name}", format="glusterfs"),
        target=Target(path=str(folder)),
        mount_options=("attribute-timeout=0", "entry-timeout=0", "negative-timeout=0"),
    )
    yield Place(kind, await manager.create(definition), files, str(folder), tmp_path, manager)
    await asyncio.to_thread(fuse.release, folder)
