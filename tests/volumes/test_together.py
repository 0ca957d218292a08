"""Raw volumes asked for at the same time: made together, and yet each complete or not there, with its own error."""

from __future__ import annotations

import asyncio
import errno
import os
from pathlib import Path
from typing import Any

import pytest
from core_fakes import eventually, quiet
from leaks import open_files

from astore import cancellation as calls
from astore.errors import AstoreError, LaneTimeoutError, StorageError, VolumeExistsError
from astore.events import VolumeAdded
from astore.lanes.gil_turns import COMPANY
from astore.lanes.lane import PoolLane
from astore.manager import Manager
from astore.model import Permissions, VolumeDef
from astore.pools.pool import Pool
from astore.testing.faults import Faults
from astore.volume_io import session_files
from astore.volume_io.local_file import LocalFile

COUNT = 40


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clean-ups wait for a quarter of a second."""
    monkeypatch.setattr(calls, "CLEANUP_SECONDS", 0.25)
    monkeypatch.setattr(session_files, "CLOSING_SECONDS", 0.25)


def create(pool: Pool, *names: str) -> list[asyncio.Task[Any]]:
    """Ask for all of them at once."""
    return [asyncio.ensure_future(pool.create_volume(VolumeDef(name, capacity=1 << 20))) for name in names]


async def test_many(manager: Manager, pool: Pool, folder: Path, faults: Faults) -> None:
    """Many are made with few syncs of the folder, each as it was asked for, and each is told."""
    names = [f"v{number:02}" for number in range(COUNT)]
    async with manager.events() as events:
        made = await asyncio.gather(
            *(
                pool.create_volume(VolumeDef(name, capacity=number << 20, permissions=Permissions(mode=0o600 | number)))
                for number, name in enumerate(names)
            )
        )
        told = [event async for event in _first(events, COUNT)]
    assert [volume.info.capacity for volume in made] == [number << 20 for number in range(COUNT)]
    assert [os.stat(folder / name).st_mode & 0o777 for name in names] == [0o600 | n for n in range(COUNT)]
    assert sorted(os.listdir(folder)) == [volume.name for volume in pool.volumes] == names
    assert sorted(event.name for event in told) == names
    assert 1 <= faults.calls.count("tree.sync_folder") <= COUNT // 4
    outcome = await pool.refresh()
    assert (outcome.added, outcome.changed, outcome.removed) == ((), (), ())


async def _first(events: Any, count: int) -> Any:
    async for event in events:
        if isinstance(event, VolumeAdded):
            yield event
            count -= 1
        if not count:
            return


async def test_one_error_is_one_callers(pool: Pool, folder: Path) -> None:
    """A name that is taken is the error of who asked for it; the others have their volumes."""
    (folder / "v3").write_bytes(b"somebody else's")
    results = await asyncio.gather(*create(pool, *(f"v{n}" for n in range(10))), return_exceptions=True)
    assert [type(result) for n, result in enumerate(results) if n == 3] == [VolumeExistsError]
    assert not any(isinstance(result, BaseException) for n, result in enumerate(results) if n != 3)
    assert sorted(os.listdir(folder)) == [f"v{n}" for n in range(10)]
    assert (folder / "v3").read_bytes() == b"somebody else's"


@pytest.mark.parametrize("call", ["file.truncate", "file.sync", "tree.link", "file.close"])
async def test_some_fail(pool: Pool, folder: Path, faults: Faults, call: str) -> None:
    """Where every third fails, at whatever step, the others are there, and nothing else."""
    seen = 0

    def every_third(*args: object) -> None:
        nonlocal seen
        seen += 1
        if seen % 3 == 0:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    faults.run(call, every_third, after=call == "file.close")
    results = await asyncio.gather(*create(pool, *(f"v{n:02}" for n in range(12))), return_exceptions=True)
    good = [f"v{n:02}" for n, result in enumerate(results) if not isinstance(result, BaseException)]
    bad = [result for result in results if isinstance(result, BaseException)]
    assert 0 < len(bad) <= 6
    assert all(isinstance(error, StorageError) and error.errno == errno.EIO and error.pool == "p" for error in bad)
    faults.clear(call)
    assert sorted(os.listdir(folder)) == good == [volume.name for volume in pool.volumes]


async def test_one_is_cancelled(manager: Manager, pool: Pool, folder: Path, faults: Faults) -> None:
    """Who is cancelled gets no volume, whether it was waiting or being made; the others get theirs."""
    before = open_files()
    gate = faults.hang("file.sync")
    tasks = create(pool, *(f"v{n:02}" for n in range(COUNT)))
    await eventually(lambda: gate.inside)
    gone = tasks[0], tasks[1], tasks[-1], tasks[-2]
    for task in gone:
        task.cancel()
    await asyncio.sleep(0)
    gate.open()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(
        isinstance(result, asyncio.CancelledError) == (task in gone)
        for task, result in zip(tasks, results, strict=True)
    )
    await eventually(lambda: quiet(manager) and not open_files() - before)
    assert sorted(os.listdir(folder)) == [f"v{n:02}" for n in range(2, COUNT - 2)]
    assert [volume.name for volume in pool.volumes] == sorted(os.listdir(folder))


async def test_all_are_cancelled(manager: Manager, pool: Pool, folder: Path, faults: Faults) -> None:
    """When all are, and the storage comes back, nothing is there and nobody holds anything."""
    before = open_files()
    gate = faults.hang("tree.link")
    tasks = create(pool, *(f"v{n:02}" for n in range(COUNT)))
    await eventually(lambda: gate.inside)
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    gate.open()
    await eventually(lambda: quiet(manager) and not open_files() - before and not os.listdir(folder))
    faults.clear("tree.link")
    await asyncio.gather(*create(pool, "v00", "v01"))
    assert sorted(os.listdir(folder)) == ["v00", "v01"]


async def test_company_that_has_left(pool: Pool, faults: Faults, monkeypatch: pytest.MonkeyPatch) -> None:
    """While others refresh one call at a time makes volumes; if that one lasts, more begin once the others have gone."""
    company = True
    monkeypatch.setattr(PoolLane, "in_company", property(lambda _: company))
    gate = faults.hang("file.truncate")
    tasks = create(pool, *(f"v{n:02}" for n in range(COUNT)))
    await eventually(lambda: gate.inside)
    await asyncio.sleep(COMPANY * 2)
    assert gate.most == 1
    company = False
    await eventually(lambda: gate.inside == 2)
    gate.open()
    await asyncio.gather(*tasks)
    assert len(pool.volumes) == COUNT


async def test_overdue(manager: Manager, pool: Pool, folder: Path, faults: Faults) -> None:
    """Where storage does not answer in time, all are told, each by an error of its own, and what comes after all is removed."""
    before = open_files()
    lane = pool.parts.record.life.lane
    gate = faults.hang("file.truncate")
    sound, lane.timeout = lane.timeout, 0.25  # only for what hangs
    results = await asyncio.gather(*create(pool, *(f"v{n}" for n in range(8))), return_exceptions=True)
    lane.timeout = sound
    assert all(isinstance(result, LaneTimeoutError) for result in results)
    assert len({id(result) for result in results}) == 8
    gate.open()
    await eventually(lambda: quiet(manager) and not open_files() - before and not os.listdir(folder))


async def test_stop_meanwhile(manager: Manager, pool: Pool, folder: Path, faults: Faults) -> None:
    """A pool that is stopped makes none of those that wait; what is left of those being made, its next start removes."""
    gate = faults.hang("file.sync")
    tasks = create(pool, *(f"v{n:02}" for n in range(COUNT)))
    await eventually(lambda: gate.inside)
    files = pool.parts.record.life.session.opener.files
    stopping = asyncio.ensure_future(pool.stop(force=True))
    await eventually(lambda: files.over)
    gate.open()
    await stopping
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(result, AstoreError) for result in results)
    await eventually(lambda: quiet(manager))
    faults.clear("file.sync")
    await pool.start()
    assert (os.listdir(folder), pool.volumes) == ([], ())


async def test_prepared(pool: Pool, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is to be done to the empty file is done before it gets its size."""
    sizes: list[int] = []

    def set_nocow(self: LocalFile) -> None:
        sizes.append(self.stat().size)

    monkeypatch.setattr(LocalFile, "set_nocow", set_nocow)
    await pool.create_volume(VolumeDef("a", capacity=1 << 20, nocow=True))
    assert sizes == [0]
