"""Rows on large numbers: a definition beside 10,000 pools, a refresh of them all, and one changed volume of a million."""

from __future__ import annotations

import asyncio
import os
import statistics
import time
import uuid
from pathlib import Path
from typing import ClassVar

import msgspec

import astore
from astore.backend import Backend, Context, PoolSession
from astore.model import VolumeType
from benchmarks.bench import Bench
from benchmarks.late_loop import longest_callback
from benchmarks.row import Row

POOLS = 10_000
VOLUMES = 1_000_000
DEFINED = 200


async def scale_rows(bench: Bench) -> list[Row]:
    """Define pools beside few and beside 10,000, refresh as many, and change one volume of a million in two ways."""
    few, many = [await _define(bench.folder / f"beside-{count}", count) for count in (10, POOLS)]
    work = f"define beside {POOLS:,} pools (beside 10 as the limit)"
    rows = [Row(work, None, few, many, "≤ 1.5 × beside 10", many / few, many / few <= 1.5)]
    rows.append(_define_row(many))
    rows.append(await _refresh_all_row(bench))
    async with astore.Manager(bench.folder / "million", registry=astore.BackendRegistry()) as manager:
        backend = _MadeUp()
        manager.registry.register(backend)
        pool = await manager.define(astore.PoolDef(type="made-up", name="million"))
        before = _resident()
        await pool.start()
        each = (_resident() - before) / VOLUMES
        rows.append(
            Row("memory for each of a million volumes", None, None, each, "≤ 1,024 B", each / 1024, each <= 1024, "B")
        )
        for what, name in (("whole refresh", None), ("refresh of that volume", backend.name(7))):
            backend.large.add(7 if name else 5)
            with longest_callback() as longest:
                await asyncio.sleep(0)  # begin a callback that is measured, and end it
                outcome = await pool.refresh(name)
                await asyncio.sleep(0)
            assert len(outcome.changed) == 1
            work = f"one of a million changes, {what}: longest work on the loop"
            rows.append(Row(work, None, None, longest[0], "≤ 0.02 s", longest[0], longest[0] <= 0.02))
    return rows


async def _define(folder: Path, count: int) -> float:
    """Return the seconds that a definition takes beside ``count`` others (median)."""
    (folder / "pools").mkdir(parents=True, mode=0o700)
    for path in (folder, folder / "pools"):
        path.chmod(0o700)
    for number in range(count):
        definition = _dir_pool(folder, f"old{number}")
        (folder / "pools" / f"{definition.name}.xml").write_text(definition.to_xml())
    taken = []
    async with astore.Manager(folder) as manager:
        for number in range(DEFINED):
            definition = _dir_pool(folder, f"new{number}")
            began = time.perf_counter()
            await manager.define(definition)
            taken.append(time.perf_counter() - began)
    return statistics.median(taken)


def _define_row(seconds: float) -> Row:
    return Row(f"define beside {POOLS:,} pools", None, None, seconds, "≤ 5 ms", seconds / 0.005, seconds <= 0.005)


async def _refresh_all_row(bench: Bench) -> Row:
    """Refresh 10,000 dir pools of three volumes each, in which nothing has changed.

    The limit is one thread that asks each folder for what a refresh has to know.
    """
    folder = bench.folder / "all"
    (folder / "pools").mkdir(parents=True, mode=0o700)
    for path in (folder, folder / "pools"):
        path.chmod(0o700)
    places = []
    for number in range(POOLS):
        definition = _dir_pool(folder, f"all{number}")
        (folder / "pools" / f"{definition.name}.xml").write_text(definition.to_xml())
        place = folder / definition.name
        place.mkdir()
        for name in ("a.img", "b.img", "c.img"):
            (place / name).write_bytes(b"x" * 512)
            os.utime(place / name, (1e9, 1e9))
        places.append(place)
    needed, all_at_once = [], []
    async with astore.Manager(folder) as manager:
        await manager.start_all(autostart_only=False)
        await asyncio.sleep(2.0)
        await manager.refresh_all()
        for _ in range(bench.pairs):
            needed.append(_asked(places))
            began = time.perf_counter()
            report = await manager.refresh_all()
            all_at_once.append(time.perf_counter() - began)
            assert not report.failed
    limit, seconds = statistics.median(needed), statistics.median(all_at_once)
    work = f"refresh of {POOLS:,} dir pools × 3, nothing changed (system calls as the limit)"
    return Row(work, None, limit, seconds, "≤ 3 × the limit", seconds / limit, seconds / limit <= 3)


def _asked(places: list[Path]) -> float:
    """Return the seconds in which one thread opens and lists each folder, and looks at its files and free space."""
    began = time.perf_counter()
    for place in places:
        fd = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
        os.fstat(fd)
        with os.scandir(fd) as entries:
            for entry in entries:
                os.stat(entry.name, dir_fd=fd, follow_symlinks=False)
        os.fstatvfs(fd)
        os.close(fd)
    return time.perf_counter() - began


def _dir_pool(folder: Path, name: str) -> astore.PoolDef:
    target = astore.Target(path=str(folder / name))
    return astore.PoolDef(type="dir", name=name, uuid=str(uuid.uuid4()), target=target)


def _resident() -> int:
    """Return the bytes of memory that this process has."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


class _MadeUp(Backend):
    """A million volumes that are nowhere; those in ``large`` are larger."""

    type: ClassVar[str] = "made-up"

    def __init__(self) -> None:
        self.large: set[int] = set()

    @staticmethod
    def name(number: int) -> str:
        """Return a volume's name."""
        return f"disk-{number * 7919 % VOLUMES:07d}.qcow2"

    def check(self, definition: astore.PoolDef) -> astore.PoolDef:
        return definition

    def source_key(self, definition: astore.PoolDef) -> tuple[tuple[str, str], ...]:
        return ()

    async def open(self, definition: astore.PoolDef, context: Context) -> PoolSession:
        return _Session(self, context)


class _Session(PoolSession):
    def __init__(self, backend: _MadeUp, context: Context) -> None:
        self._backend = backend
        self._context = context

    async def refresh(self, previous: astore.Snapshot, *, full: bool = False) -> astore.Snapshot:
        return await self._context.lane.run(self._scan, previous)

    async def refresh_volume(self, name: str, before: astore.VolumeInfo | None = None) -> astore.VolumeInfo:
        return self._record(7)

    async def aclose(self) -> None:
        """Do nothing."""

    def _scan(self, previous: astore.Snapshot) -> astore.Snapshot:
        get = previous.getter
        found = {}
        for number in range(VOLUMES):
            old = get(self._backend.name(number))
            if old is None or number in self._backend.large:
                new = self._record(number)
                old = new if old != new else old
            found[old.name] = old
        return astore.Snapshot({name: found[name] for name in sorted(found)}, taken_at=time.time())

    def _record(self, number: int) -> astore.VolumeInfo:
        name = self._backend.name(number)
        path = f"/var/lib/images/{name}"
        at = 1_700_000_000_000_000_000 + number
        record = astore.VolumeInfo(
            name, VolumeType.FILE, path, path, 10 << 30, 200_704 + number, 196_616, "qcow2", 0o100600, 0, 0,
            1_000_000 + number, at, at + 1, at + 2, (), "1.1", (), None, 65_536, 2049,
        )  # fmt: skip
        return msgspec.structs.replace(record, capacity=20 << 30) if number in self._backend.large else record
