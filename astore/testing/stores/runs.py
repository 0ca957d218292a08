"""Checks of runs and their snapshots: each pool has one run at most, and ending a run names it."""

from __future__ import annotations

import asyncio
import time

import msgspec
import pytest

from astore.model import EntryError, Permissions, Place, Snapshot, VolumeInfo, VolumeType
from astore.store.contract import KeepsSnapshots, LastSeen, OutdatedError, Store
from astore.testing.stores.base import StoreSuiteBase, definition, held, put, remove, run


def seen(count: int = 3, **changed: object) -> LastSeen:
    """Make a pool's last state, with a value in every field."""
    volumes = {}
    for index in range(count):
        name = f"volume {index}"
        key = f"/pool/{name}"
        volumes[name] = VolumeInfo(
            name, VolumeType.FILE, key, key if index else "another path", index, 2, 3, "raw", 4, 5, 6, 7, 8, 9, 10
        )
    snapshot = Snapshot(
        volumes,
        generation=7,
        taken_at=1.5,
        capacity=1 << 63,
        allocation=2,
        available=3,
        errors=(EntryError("bad", "why", 5), EntryError("fifo", "it is one", None, True)),
        unsettled=frozenset({"volume 0"}),
        permissions=Permissions(0o750, 1, 2, "label"),
        folder=Place("/pool", 1, 2, ((1, 1),)),
    )
    return msgspec.structs.replace(LastSeen(snapshot, 5.0, "why it is inaccessible"), **changed)


class RunChecks(StoreSuiteBase):
    """Runs and their snapshots."""

    async def test_runs(self, store: Store, other: Store) -> None:
        """All clients see a run until it ends; beginning or ending it twice changes nothing."""
        await put(store, definition("a"))
        for name, persistent in (("a", True), ("transient", False)):
            for _ in range(2):
                await store.begin_run(run(name), persistent=persistent)
            assert (await other.current(name)).started_at == 1.5
        assert (await held(other))[1] == {"a": run("a"), "transient": run("transient")}
        for name in ("a", "transient"):
            await store.check_end_run(name)
            for client in (other, store):
                await client.end_run(name, 1.5)
            assert (await store.current(name)).started_at is None
            await store.check_end_run(name)
        assert (await held(store))[1] == {}

    async def test_begun_twice(self, store: Store, other: Store) -> None:
        """An active pool cannot be started again by another client."""
        await store.begin_run(run("a"), persistent=False)
        for client in (store, other):
            with pytest.raises(OutdatedError):
                await client.begin_run(run("a", 7.0), persistent=False)
        assert (await held(other))[1] == {"a": run("a")}
        await other.end_run("a", 1.5)
        await other.begin_run(run("a", 7.0), persistent=False)
        assert (await held(store))[1] == {"a": run("a", 7.0)}

    async def test_ended_by_who_knows_it(self, store: Store, other: Store) -> None:
        """A run continues when a client ends another run of the pool."""
        await store.begin_run(run("a"), persistent=False)
        for started_at in (1.0, 7.0):
            await other.end_run("a", started_at)
        assert (await held(store))[1] == {"a": run("a")}

    async def test_of_what_is_defined(self, store: Store, other: Store) -> None:
        """A run begins only while the pool has a definition with the same uuid."""
        with pytest.raises(OutdatedError):
            await store.begin_run(run("a"), persistent=True)
        await put(other, definition("a"))
        for persistent in (True, False):
            with pytest.raises(OutdatedError):
                await store.begin_run(run("a", uuid_of="b"), persistent=persistent)
        await put(other, definition("a", "/y"))
        await store.begin_run(run("a"), persistent=True)
        assert (await held(other))[1] == {"a": run("a")}

    async def test_two_start_it(self, store: Store, other: Store) -> None:
        """Of two clients that start a pool at the same moment one is refused."""
        for number in range(10):
            outcomes = await asyncio.gather(
                store.begin_run(run("a", number + 0.25), persistent=False),
                other.begin_run(run("a", number + 0.5), persistent=False),
                return_exceptions=True,
            )
            won = outcomes.index(None)
            assert isinstance(outcomes[1 - won], OutdatedError)
            assert (await held(store))[1] == {"a": run("a", number + (0.25, 0.5)[won])}
            await store.end_run("a", number + (0.25, 0.5)[won])

    async def test_started_and_undefined(self, store: Store, other: Store) -> None:
        """Of a start and a removal of a pool at the same moment one is refused."""
        for _ in range(10):
            await put(store, definition("a"))
            begin, removal = await asyncio.gather(
                store.begin_run(run("a"), persistent=True), remove(other, "a"), return_exceptions=True
            )
            assert [type(outcome) for outcome in (begin, removal)].count(OutdatedError) == 1
            found, runs = await held(store)
            assert ("a" in found, "a" in runs) == (begin is None, begin is None)
            await store.end_run("a", 1.5)

    async def test_snapshots(self, store: Store, other: Store) -> None:
        """A run's snapshot is loaded as it was saved, for that run alone, and is removed with the run."""
        self.need_snapshots(store)
        assert isinstance(store, KeepsSnapshots)
        assert isinstance(other, KeepsSnapshots)
        assert await store.load_snapshots({"a": 1.5}) == {}
        await store.save_snapshot("a", 1.5, seen())
        assert await other.load_snapshots({"a": 1.5}) == {}, "it is not active"
        for name in ("a", "b", "c"):
            await store.begin_run(run(name), persistent=False)
        await store.save_snapshot("a", 1.5, seen())
        await store.save_snapshot("b", 1.5, seen(0, error=None))
        await other.save_snapshot("a", 1.0, seen(1))
        found = await other.load_snapshots({"a": 1.5, "b": 1.5, "c": 1.5, "d": 1.5})
        assert sorted(found) == ["a", "b"]
        wanted = seen()
        assert (found["a"].since, found["a"].error) == (wanted.since, wanted.error)
        for field in ("volumes", "unsettled", "errors", "generation", "taken_at", "capacity", "permissions", "folder"):
            assert getattr(found["a"].snapshot, field) == getattr(wanted.snapshot, field)
        assert (found["b"].error, found["b"].snapshot.volumes) == (None, ())
        assert await other.load_snapshots({"a": 2.0}) == {}
        await store.end_run("a", 1.5)
        assert await other.load_snapshots({"a": 1.5}) == {}

    @staticmethod
    def need_snapshots(store: Store) -> None:
        """Skip the test of a store that keeps no snapshots."""
        if not isinstance(store, KeepsSnapshots):
            pytest.skip("the store keeps no snapshots")

    async def test_a_clock_that_was_set_back(self, store: Store, other: Store) -> None:
        """A snapshot, and changes, from before a clock was set back are not newer than what is saved now."""
        self.need_snapshots(store)
        assert isinstance(store, KeepsSnapshots)
        assert isinstance(other, KeepsSnapshots)
        ran = run("a")
        await store.begin_run(ran, persistent=False)
        now = time.time()
        gone = seen(3).snapshot.volumes[2]
        future = Snapshot(dict(seen(3).snapshot.by_name), taken_at=now + 3600)
        before = LastSeen(future, now, None, ran.definition, {gone.name: (now + 3600, gone)})
        await store.save_snapshot("a", 1.5, before)
        after = Snapshot(dict(seen(2).snapshot.by_name), taken_at=now)
        await other.save_snapshot("a", 1.5, LastSeen(after, now, None, ran.definition))
        assert (await store.load_snapshots({"a": 1.5}))["a"].snapshot.volumes == after.volumes

    async def test_snapshots_of_two(self, store: Store, other: Store) -> None:
        """Of two clients' snapshots the one taken last is kept, with the recent changes of both, and of an earlier run."""
        self.need_snapshots(store)
        assert isinstance(store, KeepsSnapshots)
        assert isinstance(other, KeepsSnapshots)
        ran = run("a")
        await store.begin_run(ran, persistent=False)
        first, second, third = seen(3).snapshot.volumes
        older = msgspec.structs.replace(seen(1), definition=ran.definition, recent={second.name: (5.0, second)})
        newer = msgspec.structs.replace(seen(1), definition=ran.definition, recent={first.name: (6.0, None)})
        await store.save_snapshot("a", 1.5, older)
        await other.save_snapshot("a", 1.5, newer)
        late = msgspec.structs.replace(older, recent={third.name: (7.0, third), first.name: (4.0, first)})
        await other.save_snapshot("a", 0.5, late)
        found = (await store.load_snapshots({"a": 1.5}))["a"]
        assert found.snapshot.volumes == (second, third)
        await other.save_snapshot("a", 0.5, msgspec.structs.replace(late, definition=run("b").definition))
        assert (await store.load_snapshots({"a": 1.5}))["a"].snapshot.volumes == (second, third)
