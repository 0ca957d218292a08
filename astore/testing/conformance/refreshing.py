"""Checks of refreshes: incremental, exact, shared, partial, and with a source that does not answer."""

from __future__ import annotations

import asyncio
import time

import pytest

from astore.errors import InvalidStateError, PoolInaccessibleError, VolumeNotFoundError
from astore.events import PoolRefreshed
from astore.manager import Manager
from astore.model import PoolState, RefreshOutcome
from astore.pools.pool import Pool
from astore.testing.conformance.base import (
    FALSE_CAPACITY,
    ConformanceBase,
    NewSource,
    broken,
    falsified,
    refresh_settled,
    refresh_until_well,
    require,
    start_with,
)
from astore.testing.conformance.source import BREAK, DIRECTORIES, IMAGES, SourceUnderTest, qcow2, raw

FIVE = {f"{name}.img": raw() for name in "abcde"}


def _counts(outcome: RefreshOutcome) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...], int]:
    return outcome.added, outcome.changed, outcome.removed, outcome.unchanged


class RefreshChecks(ConformanceBase):
    """Checks of refreshes."""

    async def test_nothing_changed(self, pool: Pool, source: SourceUnderTest) -> None:
        """A refresh without changes reports none, and keeps the same record objects."""
        await start_with(pool, source, dict(FIVE))
        assert _counts(await pool.refresh()) == ((), (), (), 5)
        await refresh_settled(pool)
        before, generation = pool.volumes, pool.snapshot.generation
        assert _counts(await pool.refresh()) == ((), (), (), 5)
        assert all(old is new for old, new in zip(before, pool.volumes, strict=True))
        assert pool.snapshot.generation == generation + 1

    async def test_changes_are_exact(self, pool: Pool, source: SourceUnderTest) -> None:
        """A refresh reports exactly the added, changed and removed volumes; the others keep their records."""
        await start_with(pool, source, dict(FIVE))
        await refresh_settled(pool)
        before = dict(pool.snapshot.by_name)
        await source.put("new.img", raw(1024))
        await source.put("b.img", raw(4096))
        await source.remove("d.img")
        await source.settle()
        assert _counts(await pool.refresh()) == (("new.img",), ("b.img",), ("d.img",), 3)
        assert list(pool.snapshot.by_name) == ["a.img", "b.img", "c.img", "e.img", "new.img"]
        assert pool.volume("b.img").info.capacity == 4096
        for name in ("a.img", "c.img", "e.img"):
            assert pool.snapshot.get(name) is before[name]
        assert before["b.img"].capacity == 8192
        assert _counts(await pool.refresh()) == ((), (), (), 5)

    async def test_replaced_by_one_of_the_same_size(self, pool: Pool, source: SourceUnderTest) -> None:
        """A file put in the place of another of the same name and size is noticed, at once and again."""
        images = IMAGES in source.can
        await start_with(pool, source, {"a.img": qcow2(1 << 30) if images else raw(512, b"0"), "b.img": raw()})
        for round_ in range(1, 6):
            await source.put("a.img", qcow2((round_ + 1) << 30) if images else raw(512, b"%d" % round_))
            await source.settle()
            assert _counts(await pool.refresh()) == ((), ("a.img",), (), 1)
            if images:
                assert pool.volume("a.img").info.capacity == (round_ + 1) << 30

    async def test_becomes_something_else(self, pool: Pool, source: SourceUnderTest) -> None:
        """A name that was a file's and is a directory's now is a changed volume of another type."""
        require(source, DIRECTORIES)
        await start_with(pool, source, {"name": raw()})
        await source.remove("name")
        await source.mkdir("name")
        await source.settle()
        assert _counts(await pool.refresh()) == ((), ("name",), (), 0)
        assert pool.volume("name").info.format == "dir"

    async def test_full(self, pool: Pool, source: SourceUnderTest) -> None:
        """``full=True`` reads all headers anew, and corrects wrong records."""
        await start_with(pool, source, dict(FIVE))
        await refresh_settled(pool)
        assert _counts(await pool.refresh(full=True)) == ((), (), (), 5)
        pool.parts.record.snapshot = falsified(pool.snapshot)
        assert _counts(await pool.refresh(full=True)) == ((), tuple(FIVE), (), 0)
        assert FALSE_CAPACITY not in {volume.capacity for volume in pool.volumes}

    async def test_everything_gone(self, pool: Pool, source: SourceUnderTest) -> None:
        """A source that was emptied is an empty pool that runs, and fills again."""
        await start_with(pool, source, dict(FIVE))
        for name in FIVE:
            await source.remove(name)
        await source.settle()
        assert _counts(await pool.refresh()) == ((), (), tuple(FIVE), 0)
        assert (pool.state, pool.volumes) == (PoolState.RUNNING, ())
        await source.put_all(FIVE)
        await source.settle()
        assert _counts(await pool.refresh()) == (tuple(FIVE), (), (), 0)

    async def test_one_volume(self, pool: Pool, source: SourceUnderTest) -> None:
        """``refresh(name)`` finds the volume new, changed or gone."""
        await start_with(pool, source, {"a.img": raw(512), "b.img": raw()})
        await source.put("a.img", raw(1024))
        await source.put("c.img", raw())
        await source.settle()
        assert (await pool.refresh("c.img")).added == ("c.img",)
        outcome = await pool.refresh("a.img")
        assert "a.img" in outcome.changed or pool.volume("a.img").info.physical == 1024
        assert list(pool.snapshot.by_name) == ["a.img", "b.img", "c.img"]
        handle = pool.volume("c.img")
        assert (await handle.refresh()).name == "c.img"
        await source.remove("c.img")
        await source.settle()
        assert (await pool.refresh("c.img")).removed == ("c.img",)
        with pytest.raises(VolumeNotFoundError):
            await handle.refresh()
        assert _counts(await pool.refresh()) == ((), (), (), 2)

    async def test_snapshots_do_not_change(self, pool: Pool, source: SourceUnderTest) -> None:
        """A reader's snapshot stays as it was over refreshes and a stop."""
        await start_with(pool, source, dict(FIVE))
        held, names, records = pool.snapshot, list(pool.snapshot.by_name), pool.volumes
        await source.put("new.img", raw())
        await source.remove("a.img")
        await source.settle()
        await pool.refresh()
        await pool.stop()
        assert list(held.by_name) == names
        assert held.volumes == records
        assert pool.volumes == ()

    async def test_readers_see_whole_snapshots(self, pool: Pool, source: SourceUnderTest) -> None:
        """A reader that polls during refreshes sees one state or another, never a mixture."""
        await start_with(pool, source, {f"{n}.img": raw(512) for n in range(30)})
        done = False
        seen: set[int] = set()

        async def poll() -> None:
            while not done:
                volumes, info = pool.volumes, pool.info
                assert len(volumes) == info.volumes == len(pool.snapshot)
                sizes = {volume.physical for volume in volumes}
                assert len(volumes) == 30
                seen.update(sizes)
                await asyncio.sleep(0)

        poller = asyncio.ensure_future(poll())
        for size in (1024, 2048):
            await source.put_all({f"{n}.img": raw(size) for n in range(30)})
            await source.settle()
            await pool.refresh()
            assert {volume.physical for volume in pool.volumes} == {size}
        done = True
        await poller
        assert seen <= {512, 1024, 2048}

    async def test_shared(self, manager: Manager, pool: Pool, source: SourceUnderTest) -> None:
        """Concurrent callers share one refresh and its outcome."""
        await start_with(pool, source, dict(FIVE))
        generation = pool.snapshot.generation
        async with manager.events(kinds={PoolRefreshed}) as events:
            outcomes = await asyncio.gather(*(pool.refresh() for _ in range(20)))
            assert all(outcome is outcomes[0] for outcome in outcomes)
            assert pool.snapshot.generation == generation + 1
            assert events.receive_nowait() is not None
            assert events.receive_nowait() is None

    async def test_full_beside_a_plain_one(self, pool: Pool, source: SourceUnderTest) -> None:
        """A caller with ``full=True`` does not share an incremental refresh."""
        await start_with(pool, source, dict(FIVE))
        await refresh_settled(pool)
        pool.parts.record.snapshot = falsified(pool.snapshot)
        plain, full = await asyncio.gather(pool.refresh(), pool.refresh(full=True))
        assert full.generation == plain.generation + 1
        assert FALSE_CAPACITY not in {volume.capacity for volume in pool.volumes}

    async def test_one_volume_beside_all(self, pool: Pool, source: SourceUnderTest) -> None:
        """A refresh of one volume and one of all, at once: neither loses what the other found."""
        await start_with(pool, source, {f"{n}.img": raw(512) for n in range(50)})
        for size in (1024, 2048, 4096):
            await source.put("7.img", raw(size))
            await source.put(f"new{size}.img", raw())
            await source.settle()
            await asyncio.gather(pool.refresh(), pool.refresh("7.img"), pool.refresh(f"new{size}.img"))
            assert pool.volume("7.img").info.physical == size
            assert pool.volume(f"new{size}.img")
        assert len(pool.volumes) == 53

    async def test_deadline(self, pool: Pool, source: SourceUnderTest) -> None:
        """A refresh that cannot end in time is a TimeoutError; the snapshot stays, and the next refresh works."""
        await start_with(pool, source, dict(FIVE))
        before = pool.snapshot
        with pytest.raises(TimeoutError):
            await pool.refresh(timeout=0.0)
        assert pool.snapshot is before
        assert pool.active
        await refresh_until_well(pool)
        assert pool.state is PoolState.RUNNING

    async def test_source_does_not_answer(self, manager: Manager, pool: Pool, source: SourceUnderTest) -> None:
        """The pool becomes inaccessible, with time and reason, keeps its last snapshot, and recovers by a refresh."""
        require(source, BREAK)
        await start_with(pool, source, dict(FIVE))
        before = pool.snapshot
        async with broken(source):
            began = time.time()
            with pytest.raises(PoolInaccessibleError) as caught:
                await pool.refresh()
            assert isinstance(caught.value, OSError)
            assert caught.value.errno
            assert caught.value.pool == pool.name
            assert pool.name in str(caught.value)
            assert pool.state is PoolState.INACCESSIBLE
            assert pool.active
            assert pool.error is caught.value
            assert pool.info.error
            assert pool.info.since >= began
            assert pool.snapshot is before
            assert pool.volume("a.img").info is before.get("a.img")
            since = pool.info.since
            with pytest.raises(OSError):
                await pool.refresh()
            assert pool.info.since == since
            with pytest.raises(OSError):
                await pool.refresh("a.img")
            assert pool.snapshot is before
            assert await pool.wait_state("inaccessible", timeout=5) is PoolState.INACCESSIBLE
        outcome = await refresh_until_well(pool)
        assert (outcome.unchanged, outcome.added, outcome.removed) == (5, (), ())
        assert (pool.state, pool.error, pool.info.error) == (PoolState.RUNNING, None, None)

    async def test_one_source_of_several_does_not_answer(
        self, manager: Manager, pool: Pool, source: SourceUnderTest, new_source: NewSource
    ) -> None:
        """A refresh of all pools reports the one that failed, and refreshes the others."""
        require(source, BREAK)
        sources = [source, *[await new_source() for _ in range(2)]]
        pools = [pool, *[await manager.define(other.definition) for other in sources[1:]]]
        for each, its in zip(pools, sources, strict=True):
            await start_with(each, its, {"a.img": raw()})
        told: list[tuple[int, int]] = []
        async with broken(source):
            report = await manager.refresh_all(on_progress=lambda done, total, _: told.append((done, total)))
            failed = {outcome.pool for outcome in report.failed}
            assert pool.name in failed
            for each in pools:
                assert len(each.volumes) == 1
                assert (each.state is PoolState.INACCESSIBLE) == (each.name in failed)
        assert told == [(1, 3), (2, 3), (3, 3)]
        for each in pools:
            await refresh_until_well(each)
        assert not (await manager.refresh_all()).failed

    async def test_stopped_while_it_does_not_answer(self, pool: Pool, source: SourceUnderTest) -> None:
        """A pool whose source is gone can be stopped, and started when the source is back."""
        require(source, BREAK)
        await start_with(pool, source, dict(FIVE))
        async with broken(source):
            with pytest.raises(OSError):
                await pool.refresh()
            await pool.stop()
            assert pool.state is PoolState.INACTIVE
            with pytest.raises(InvalidStateError):
                await pool.refresh()
        await pool.start()
        assert len(pool.volumes) == 5
