"""Checks of the records that a refresh makes of each kind of entry."""

from __future__ import annotations

import stat
import time
from collections.abc import Mapping
from types import MappingProxyType

import pytest

from astore.manager import Manager
from astore.model import PoolState, VolumeDef, VolumeInfo, VolumeType
from astore.pools.pool import Pool
from astore.testing.conformance.base import ConformanceBase, NewSource, require, start_with
from astore.testing.conformance.source import (
    BYTES,
    CONTROL,
    DIRECTORIES,
    FIFOS,
    IMAGES,
    LINKS,
    TRUNCATED,
    SourceUnderTest,
    qcow2,
    raw,
)

ODD_NAMES = (
    "two words.img",
    " leading and trailing ",
    "'single' and \"double\".img",
    "100%.img",
    "%41.img",
    "a+b&c=d?e#f.img",
    "semi;colon$HOME`id`.img",
    "back\\slash.img",
    "<&>]]>.img",
    "star*[a-z].img",
    "colon:name.img",
    "Größe-日本語-🖫.img",
    "e\u0301.img",
    "\u00e9.img",
    "\u202egmi.live",
    ".hidden",
    "..twodots",
    "...",
    "-rf",
    "--help",
    "~",
    "x" * 255,
    "ü" * 127,
)
"""Unusual but valid names."""

GOOD_KINDS: Mapping[str, frozenset[str]] = MappingProxyType(
    {
        "raw": frozenset(),
        "empty": frozenset(),
        "qcow2": frozenset({IMAGES}),
        "directory": frozenset({DIRECTORIES}),
        "link to an image": frozenset({LINKS, IMAGES}),
        "link to a directory": frozenset({LINKS, DIRECTORIES}),
    }
)
SKIPPED_KINDS: Mapping[str, frozenset[str]] = MappingProxyType(
    {
        "FIFO": frozenset({FIFOS}),
        "dangling link": frozenset({LINKS}),
        "link loop": frozenset({LINKS}),
        "link to itself": frozenset({LINKS}),
        "control character": frozenset({CONTROL}),
        "newline": frozenset({CONTROL}),
    }
)
BAD_KINDS: Mapping[str, frozenset[str]] = MappingProxyType(
    {"truncated image": frozenset({IMAGES}), "Latin-1 name": frozenset({BYTES})}
)
_KINDS = {"good_kind": GOOD_KINDS, "skipped_kind": SKIPPED_KINDS, "bad_kind": BAD_KINDS}


async def make_entry(source: SourceUnderTest, kind: str) -> str:
    """Make an entry of a kind; return its name."""
    if kind == "raw":
        await source.put("raw.img", raw(10_240, b"r"))
        return "raw.img"
    if kind == "empty":
        await source.put("empty.img", b"")
        return "empty.img"
    if kind == "qcow2":
        await source.put("disk.qcow2", qcow2(5 << 30))
        return "disk.qcow2"
    if kind == "directory":
        await source.mkdir("folder")
        return "folder"
    if kind == "link to an image":
        await source.put("target.qcow2", qcow2(5 << 30))
        await source.symlink("target.qcow2", "link.qcow2")
        return "link.qcow2"
    if kind == "link to a directory":
        await source.mkdir("target")
        await source.symlink("target", "link")
        return "link"
    return await _make_no_volume(source, kind)


async def _make_no_volume(source: SourceUnderTest, kind: str) -> str:
    if kind == "FIFO":
        await source.mkfifo("fifo")
        return "fifo"
    if kind == "dangling link":
        await source.symlink("nothing", "dangling")
        return "dangling"
    if kind == "link loop":
        await source.symlink("there", "here")
        await source.symlink("here", "there")
        return "here"
    if kind == "link to itself":
        await source.symlink("itself", "itself")
        return "itself"
    if kind == "truncated image":
        await source.put("cut.qcow2", TRUNCATED)
        return "cut.qcow2"
    name = {"control character": "bell\a.img", "newline": "new\nline.img", "Latin-1 name": "caf\udce9.img"}[kind]
    await source.put(name, raw())
    return name


class RecordChecks(ConformanceBase):
    """Records of files, images, directories and links; entries that are no volumes, or bad ones."""

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """Collect the kinds of entries that the source can have."""
        assert metafunc.cls is not None
        for argument, kinds in _KINDS.items():
            if argument in metafunc.fixturenames:
                can = metafunc.cls.source_class.can
                metafunc.parametrize(argument, [kind for kind, needs in kinds.items() if needs <= can])

    async def test_empty_source(self, pool: Pool) -> None:
        """A pool on an empty source is empty and running."""
        await pool.start()
        assert (pool.state, pool.volumes, pool.snapshot.errors) == (PoolState.RUNNING, (), ())
        assert (pool.info.volumes, pool.info.errors, pool.info.generation) == (0, 0, 1)

    async def test_sums(self, pool: Pool, source: SourceUnderTest) -> None:
        """The pool's sizes fit each other, its counts its volumes, and its times the clock."""
        before = time.time()
        await start_with(pool, source, {f"{n}.img": raw() for n in range(5)})
        info = pool.info
        assert info.capacity > 0
        assert info.allocation + info.available == info.capacity
        assert 0 <= info.available <= info.capacity
        assert (info.volumes, info.errors) == (5, 0)
        assert before <= info.taken_at <= time.time()
        assert before <= info.since <= time.time()
        assert (info.capacity, info.generation) == (pool.snapshot.capacity, pool.snapshot.generation)

    async def test_good_entry(self, manager: Manager, pool: Pool, source: SourceUnderTest, good_kind: str) -> None:
        """Each possible volume has a record with format, sizes, mode and times, found by name, key and path."""
        name = await make_entry(source, good_kind)
        await source.settle()
        await pool.start()
        assert (pool.state, pool.snapshot.errors) == (PoolState.RUNNING, ())
        record = pool.volume(name).info
        assert record.name == name
        _assert_plausible(record)
        directory = good_kind.endswith("directory")
        assert (record.type in (VolumeType.DIR, VolumeType.NETDIR)) == directory
        assert stat.S_ISDIR(record.mode) == directory
        assert (stat.S_ISREG(record.mode) or stat.S_ISBLK(record.mode)) == (not directory)
        if directory:
            assert record.format == "dir"
        elif good_kind == "raw":
            assert (record.format, record.capacity, record.physical) == ("raw", 10_240, 10_240)
        elif good_kind == "empty":
            assert (record.format, record.capacity, record.physical) == ("raw", 0, 0)
        else:
            assert (record.format, record.capacity, record.physical) == ("qcow2", 5 << 30, len(qcow2()))
            assert (record.compat, record.cluster_size, record.encryption) == ("1.1", 65536, None)
        assert manager.volume_by_key(record.key) == manager.volume_by_path(record.path) == pool.volume(name)
        assert VolumeDef.from_xml(pool.volume(name).to_xml()).name == name

    async def test_backing_file(self, manager: Manager, pool: Pool, source: SourceUnderTest) -> None:
        """A backing file's name is told as the header has it, and leads to the volume beside."""
        require(source, IMAGES)
        images = {
            "base.img": raw(),
            "overlay.qcow2": qcow2(1 << 30, "base.img", "raw"),
            "top.qcow2": qcow2(1 << 30, "overlay.qcow2", "qcow2"),
            "far.qcow2": qcow2(1 << 30, "/elsewhere/base.img", "raw"),
            "odd name?.qcow2": qcow2(1 << 30, "100% odd.img", "raw"),
            "100% odd.img": raw(),
        }
        await start_with(pool, source, images)
        backed = {"overlay.qcow2": "base.img", "top.qcow2": "overlay.qcow2", "odd name?.qcow2": "100% odd.img"}
        for name, backing in backed.items():
            record = pool.volume(name).info
            assert record.backing == backing
            assert record.backing_path is not None
            assert manager.volume_by_path(record.backing_path) == pool.volume(backing)
        assert pool.volume("top.qcow2").info.backing_format == "qcow2"
        assert pool.volume("far.qcow2").info.backing_path == "/elsewhere/base.img"
        assert pool.volume("base.img").info.backing is None

    async def test_odd_names(self, manager: Manager, pool: Pool, source: SourceUnderTest) -> None:
        """Blanks, quotes, percent signs, any script, leading dashes, 255 bytes: volumes like all others."""
        await start_with(pool, source, {name: raw() for name in ODD_NAMES})
        assert [volume.name for volume in pool.volumes] == sorted(ODD_NAMES)
        assert pool.state is PoolState.RUNNING
        assert len({volume.key for volume in pool.volumes}) == len(ODD_NAMES), "one key, two volumes"
        for name in ODD_NAMES:
            record = pool.volume(name).info
            assert record.format == "raw"
            assert manager.volume_by_key(record.key).name == name
            assert manager.volume_by_path(record.path).name == name
            assert (await pool.refresh(name)).unchanged == 1
            if not name.startswith("-"):  # which is found, but cannot be defined
                assert VolumeDef.from_xml(pool.volume(name).to_xml()).name == name

    async def test_entry_that_is_no_volume(self, pool: Pool, source: SourceUnderTest, skipped_kind: str) -> None:
        """An entry that cannot be a volume is reported and left out, and the pool is running."""
        await source.put("good.img", raw())
        name = await make_entry(source, skipped_kind)
        await source.settle()
        await pool.start()
        assert [volume.name for volume in pool.volumes] == ["good.img"]
        assert pool.state is PoolState.RUNNING
        told = pool.snapshot.errors
        assert told
        assert all(error.skipped and error.message and error.name.isprintable() for error in told)
        outcome = await pool.refresh()
        assert (outcome.unchanged, outcome.added, outcome.removed) == (1, (), ())
        await pool.refresh(name)
        assert [volume.name for volume in pool.volumes] == ["good.img"]
        assert pool.state is PoolState.RUNNING
        assert len(pool.snapshot.errors) <= len(told), "one entry, told twice"

    async def test_bad_entry(self, pool: Pool, source: SourceUnderTest, bad_kind: str) -> None:
        """An unreadable entry degrades the pool, is reported by a printable name, and affects no other entry."""
        await source.put_all({f"good{n}.img": raw() for n in range(20)})
        name = await make_entry(source, bad_kind)
        await source.settle()
        await pool.start()
        assert pool.state is PoolState.DEGRADED
        assert [volume.name for volume in pool.volumes] == sorted(f"good{n}.img" for n in range(20))
        (wrong,) = pool.snapshot.errors
        assert not wrong.skipped
        assert wrong.message
        assert wrong.name.isprintable()
        wrong.name.encode()
        assert (pool.info.errors, pool.error) == (1, None)
        assert pool.info.error is not None
        assert wrong.name in pool.info.error
        again = await pool.refresh()
        assert again.errors == (wrong,)
        assert again.error is None
        assert (again.unchanged, again.added, again.changed, again.removed) == (20, (), (), ())
        await source.remove(name)
        await source.settle()
        outcome = await pool.refresh()
        assert (pool.state, outcome.errors, pool.info.error) == (PoolState.RUNNING, (), None)

    async def test_bad_entry_mended(self, pool: Pool, source: SourceUnderTest) -> None:
        """A volume that turns bad leaves, and comes back when it is good again."""
        require(source, IMAGES)
        await start_with(pool, source, {"disk.qcow2": qcow2(), "other.img": raw()})
        await source.put("disk.qcow2", TRUNCATED)
        await source.settle()
        outcome = await pool.refresh()
        assert (outcome.removed, [error.name for error in outcome.errors]) == (("disk.qcow2",), ["disk.qcow2"])
        assert pool.state is PoolState.DEGRADED
        await source.put("disk.qcow2", qcow2(2 << 30))
        await source.settle()
        outcome = await pool.refresh("disk.qcow2")
        assert (outcome.added, outcome.errors) == (("disk.qcow2",), ())
        assert pool.state is PoolState.RUNNING
        assert pool.volume("disk.qcow2").info.capacity == 2 << 30

    async def test_many_entries(self, manager: Manager, pool: Pool, source: SourceUnderTest) -> None:
        """Thousands of entries are each found once, in order, and not read again."""
        images = IMAGES in source.can
        files = {f"{n:05d}.img": qcow2((n + 1) << 20) if images and n % 2 else raw(512) for n in range(self.many)}
        await start_with(pool, source, files)
        assert [volume.name for volume in pool.volumes] == list(files)
        assert pool.state is PoolState.RUNNING
        if images:
            for n in range(1, self.many, 2):
                assert pool.volumes[n].capacity == (n + 1) << 20
        assert len({volume.key for volume in pool.volumes}) == self.many
        outcome = await pool.refresh()
        assert (outcome.unchanged, outcome.added, outcome.changed, outcome.removed) == (self.many, (), (), ())
        assert manager.statistics().volumes == self.many

    async def test_same_names_in_two_pools(
        self, manager: Manager, pool: Pool, source: SourceUnderTest, new_source: NewSource
    ) -> None:
        """Volumes of one name in two pools are two, with a key and a path each."""
        await start_with(pool, source, {"a.img": raw(512)})
        elsewhere = await new_source()
        other = await manager.define(elsewhere.definition)
        await start_with(other, elsewhere, {"a.img": raw(1024)})
        mine, theirs = pool.volume("a.img"), other.volume("a.img")
        assert mine.key != theirs.key
        assert mine.path != theirs.path
        assert (mine.info.capacity, theirs.info.capacity) == (512, 1024)
        assert manager.volume_by_key(mine.key) == mine
        assert manager.volume_by_key(theirs.key) == theirs


def _assert_plausible(record: VolumeInfo) -> None:
    assert record.key
    assert record.path
    assert min(record.capacity, record.physical, record.uid, record.gid) >= 0
    assert record.allocation >= 0
    assert record.allocation % 512 == 0
    assert record.inode != 0
    for moment in filter(None, (record.mtime_ns, record.ctime_ns)):  # 0: the storage knows none
        assert abs(moment / 1e9 - time.time()) < 3600, "its times are those of an hour ago, or of the hour to come"
