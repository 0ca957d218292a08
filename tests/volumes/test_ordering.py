"""Which file systems keep the order of what was done to names and sizes, so that one sync is enough for many new files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from astore.manager import Manager
from astore.model import PoolDef, Target, VolumeDef
from astore.trees import ordering
from astore.trees.ordering import keeps_order
from astore.trees.writable_local import WritableLocalTree
from astore.volume_io.local_file import LocalFile


def order_of(folder: Path) -> bool:
    """What is said of a folder's file system."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        return keeps_order(fd)
    finally:
        os.close(fd)


@pytest.mark.parametrize(
    ("kind", "journal", "expected"),
    [
        (ordering.XFS, False, True),
        (ordering.TMPFS, False, True),
        (ordering.EXT, True, True),
        (ordering.EXT, False, False),
        (0x9123683E, True, False),  # btrfs
        (0x65735546, True, False),  # FUSE
        (0, True, False),
    ],
)
def test_kinds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: int, journal: bool, expected: bool) -> None:
    """XFS, tmpfs, and ext3 and ext4 with a journal do."""
    monkeypatch.setattr(ordering, "_kind", lambda fd: kind)
    monkeypatch.setattr(ordering, "_has_journal", lambda device: journal)
    assert order_of(tmp_path) is expected


@pytest.mark.root
def test_this_machine(small: Path) -> None:
    """The kernel says which it is: a tmpfs, and what has no file system's number."""
    assert order_of(small)
    assert not order_of(Path("/proc"))
    assert not ordering._has_journal(os.stat("/proc").st_dev)
    assert ordering._kind(-1) == 0


@pytest.mark.parametrize("ordered", [False, True])
async def test_syncs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ordered: bool) -> None:
    """Where order is kept the folder is synced, elsewhere each file too; and a tree asks once for each file system."""
    synced: list[str] = []
    asked: list[int] = []
    monkeypatch.setattr(LocalFile, "sync", lambda self: synced.append(self.path))
    real = WritableLocalTree.sync_folder
    monkeypatch.setattr(WritableLocalTree, "sync_folder", lambda self: (synced.append("folder"), real(self))[1])
    monkeypatch.setattr("astore.trees.writable_local.keeps_order", lambda fd: (asked.append(fd), ordered)[1])
    folder = tmp_path / "pool"
    folder.mkdir()
    async with Manager(tmp_path / "state") as manager:
        pool = await manager.define(PoolDef(type="dir", name="p", target=Target(path=str(folder))))
        await pool.start()
        for name in ("a", "b"):
            await pool.create_volume(VolumeDef(name, capacity=1))
    assert (synced.count("folder"), len(synced) - synced.count("folder")) == (2, 0 if ordered else 2)
    assert len(asked) == 1
