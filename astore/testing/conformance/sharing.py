"""Checks of several Managers on one state folder, in turn and at once, and of events."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from astore.errors import InvalidStateError
from astore.events import (
    Event,
    PoolDefined,
    PoolEvent,
    PoolRefreshed,
    PoolStarted,
    PoolStateChanged,
    PoolStopped,
    PoolUndefined,
    VolumeAdded,
    VolumeChanged,
    VolumeRemoved,
)
from astore.manager import Manager
from astore.model import PoolState, VolumeInfo
from astore.pools.pool import Pool
from astore.testing.conformance.base import (
    ConformanceBase,
    broken,
    refresh_until_well,
    require,
    start_with,
)
from astore.testing.conformance.source import BREAK, SourceUnderTest, raw

THREE = {f"{name}.img": raw() for name in "abc"}


class Mirror:
    """The volumes of one pool as its events alone describe them."""

    def __init__(self) -> None:
        self.volumes: dict[str, VolumeInfo] = {}
        self.state = PoolState.INACTIVE
        self.seqs: list[int] = []

    def hear(self, event: Event) -> None:
        """Take an event in; fails for one that does not fit what came before."""
        self.seqs.append(event.seq)
        match event:
            case VolumeAdded():
                assert event.name not in self.volumes, "added twice"
                self.volumes[event.name] = event.volume
            case VolumeChanged():
                assert event.name in self.volumes, "changed before it was added"
                self.volumes[event.name] = event.volume
            case VolumeRemoved():
                assert self.volumes.pop(event.name, None) is not None, "removed twice"
            case PoolStopped():
                self.volumes.clear()
            case PoolStateChanged():
                assert (event.old, event.old is event.new) == (self.state, False)
                self.state = event.new
            case _:
                pass

    def assert_like(self, pool: Pool) -> None:
        """Assert that the volumes are those of the pool."""
        assert self.state is pool.state
        assert list(self.volumes) == sorted(self.volumes) or sorted(self.volumes) == list(pool.snapshot.by_name)
        for record in pool.volumes:
            assert self.volumes[record.name].same_as(record)


class SharingChecks(ConformanceBase):
    """Detaching, attaching again, several Managers, and events."""

    async def test_detached_and_attached_again(self, tmp_path: Path, source: SourceUnderTest) -> None:
        """A pool that one Manager started is active in the next, with its volumes, and can be used and stopped there."""
        folder = tmp_path / "shared"
        async with self.make_manager(folder) as manager:
            pool = await manager.define(source.definition)
            await start_with(pool, source, dict(THREE))
            uuid, records, info = pool.uuid, pool.volumes, pool.info
        assert pool.volumes == records, "a Manager that was left takes nothing away from readers"
        await source.put("d.img", raw())
        await source.settle()
        for round_ in range(2):
            async with self.make_manager(folder) as manager:
                again = manager.pool(source.definition.name)
                assert (again.uuid, again.state, again.persistent) == (uuid, PoolState.RUNNING, True)
                assert again.info.capacity > 0
                assert abs(again.info.since - info.since) < 3600
                if round_ == 0:
                    assert again.volumes == records
                    outcome = await again.refresh()
                    assert (outcome.added, outcome.changed, outcome.removed) == (("d.img",), (), ())
                    assert outcome.unchanged == 3
                    assert outcome.generation > info.generation
                else:
                    assert [volume.name for volume in again.volumes] == ["a.img", "b.img", "c.img", "d.img"]
                    await again.stop()
        async with self.make_manager(folder) as manager:
            assert manager.pool(source.definition.name).state is PoolState.INACTIVE

    async def test_transient_pool_attached_again(self, tmp_path: Path, source: SourceUnderTest) -> None:
        """A transient pool is active in the next Manager too, and gone for all when that one stops it."""
        folder = tmp_path / "shared"
        async with self.make_manager(folder) as manager:
            await manager.create(source.definition)
        async with self.make_manager(folder) as manager:
            pool = manager.pool(source.definition.name)
            assert (pool.active, pool.persistent) == (True, False)
            await pool.stop()
            assert manager.pools() == []
        async with self.make_manager(folder) as manager:
            assert manager.pools() == []

    async def test_stopped_without_attaching(self, tmp_path: Path, source: SourceUnderTest) -> None:
        """The next Manager can stop the pool as the first thing it does, and start it again."""
        folder = tmp_path / "shared"
        async with self.make_manager(folder) as manager:
            await start_with(await manager.define(source.definition), source, dict(THREE))
        async with self.make_manager(folder) as manager:
            pool = manager.pool(source.definition.name)
            await pool.stop()
            assert (pool.state, pool.volumes) == (PoolState.INACTIVE, ())
            await pool.start()
            assert len(pool.volumes) == 3
            await pool.stop()

    async def test_attached_while_it_does_not_answer(self, tmp_path: Path, source: SourceUnderTest) -> None:
        """The next Manager has the last snapshot though the source is gone, and goes on when it is back."""
        require(source, BREAK)
        folder = tmp_path / "shared"
        async with self.make_manager(folder) as manager:
            await start_with(await manager.define(source.definition), source, dict(THREE))
        async with broken(source), self.make_manager(folder) as manager:
            pool = manager.pool(source.definition.name)
            assert len(pool.volumes) == 3
            with pytest.raises(OSError):
                await pool.refresh()
            assert pool.state is PoolState.INACCESSIBLE
            assert len(pool.volumes) == 3
        async with self.make_manager(folder) as manager:
            pool = manager.pool(source.definition.name)
            assert (await refresh_until_well(pool)).unchanged == 3
            assert pool.state is PoolState.RUNNING
            await pool.stop()

    async def test_two_managers_at_once(self, tmp_path: Path, source: SourceUnderTest) -> None:
        """A pool that one Manager starts can be refreshed by the other; a stop is seen by its next read of the state."""
        folder = tmp_path / "shared"
        async with (
            self.make_manager(folder) as one,
            self.make_manager(folder) as two,
        ):
            mine = await one.define(source.definition)
            await start_with(mine, source, dict(THREE))
            await two.reload()
            theirs = two.pool(mine.name)
            assert theirs.active
            await asyncio.gather(theirs.refresh(), mine.refresh())
            assert theirs.volumes == mine.volumes
            with pytest.raises(InvalidStateError):
                await theirs.start()
            await theirs.stop()
            await one.reload()
            assert (mine.state, mine.volumes) == (PoolState.INACTIVE, ())
            await mine.start()
            assert len(mine.volumes) == 3
            await mine.stop()

    async def test_events_of_a_life(self, manager: Manager, source: SourceUnderTest) -> None:
        """Each step of a pool's life is told once, after the fact, in order, under numbers without gaps."""
        async with manager.events(pools={source.definition.name}) as events:
            pool = await manager.define(source.definition)
            await start_with(pool, source, dict(THREE))
            await pool.refresh()
            await pool.stop()
            await pool.undefine()
            told: list[Event] = []
            while (event := events.receive_nowait()) is not None:
                told.append(event)
        assert [type(event) for event in told] == [
            PoolDefined,
            PoolStateChanged,
            PoolStarted,
            *[VolumeAdded] * 3,
            PoolRefreshed,
            PoolRefreshed,
            PoolStateChanged,
            PoolStopped,
            PoolUndefined,
        ]
        numbers = [event.seq for event in told]
        assert numbers == list(range(numbers[0], numbers[0] + len(told)))
        assert all(isinstance(event, PoolEvent) and event.uuid == pool.uuid for event in told)
        first, second = (event for event in told if isinstance(event, PoolRefreshed))
        assert (first.added, first.unchanged, second.added, second.unchanged) == (3, 0, 0, 3)

    async def test_mirror_of_events(self, manager: Manager, pool: Pool, source: SourceUnderTest) -> None:
        """All events together describe the volumes, whatever happens to them."""
        mirror = Mirror()
        async with manager.events(pools={pool.name}) as events:

            def listen() -> None:
                while (event := events.receive_nowait()) is not None:
                    mirror.hear(event)
                mirror.assert_like(pool)

            await start_with(pool, source, dict(THREE))
            listen()
            await source.put("a.img", raw(512))
            await source.put("d.img", raw())
            await source.remove("b.img")
            await source.settle()
            await pool.refresh("a.img")
            listen()
            await asyncio.gather(pool.refresh(), pool.refresh("d.img"), pool.refresh("b.img"))
            listen()
            await pool.refresh(full=True)
            await pool.refresh("d.img")
            listen()
            await source.remove("d.img")
            await source.settle()
            await pool.refresh("d.img")
            await pool.refresh()
            listen()
            if BREAK in source.can:
                async with broken(source):
                    for _ in range(2):
                        with pytest.raises(OSError):
                            await pool.refresh()
                    listen()
                    assert mirror.state is PoolState.INACCESSIBLE
                await refresh_until_well(pool)
                listen()
            await pool.stop()
            listen()
            await pool.start()
            listen()
        assert mirror.seqs == sorted(set(mirror.seqs)), "numbers that do not grow"
        assert sorted(mirror.volumes) == ["a.img", "c.img"]

    async def test_events_are_replayed(self, manager: Manager, pool: Pool, source: SourceUnderTest) -> None:
        """A late reader that asks for earlier events gets the same ones."""
        since = manager.statistics().events.last_seq
        async with manager.events(since) as early:
            await start_with(pool, source, dict(THREE))
            await pool.stop()
            async with manager.events(since) as late:
                heard: tuple[list[Event], list[Event]] = ([], [])
                for listener, told in zip((early, late), heard, strict=True):
                    while (event := listener.receive_nowait()) is not None:
                        told.append(event)
        assert heard[0] == heard[1]
        assert len(heard[0]) == 3 + 3 + 2
