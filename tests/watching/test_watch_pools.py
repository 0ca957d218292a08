"""Which pools are watched, how they are retried, and what ends the watch."""

from __future__ import annotations

import asyncio
import gc
import sys
import time
from pathlib import Path

import pytest
from core_fakes import FakeBackend, FakeSession, cancel_after, eventually, fake, fake_registry, names, started, volume
from watching_support import by_another_process, dir_pool, watched

import astore
from astore.backend import Tell, Told
from astore.manager import pool_watch, watching


@pytest.fixture
def backend() -> FakeBackend:
    """A backend that tells nothing; its pools have the volume a."""
    backend = FakeBackend()
    backend.show("a")
    return backend


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Polls and retries are quick."""
    for name, seconds in (("LEAST", 0.02), ("MOST", 0.05), ("FIRST_RETRY", 0.02), ("LAST_RETRY", 0.1)):
        monkeypatch.setattr(pool_watch, name, seconds)


@pytest.mark.usefixtures("quick")
async def test_polled(tmp_path: Path, backend: FakeBackend) -> None:
    """A pool whose storage tells nothing is refreshed every so often, and says so; stopped, it is not."""
    async with astore.Manager(tmp_path / "state", registry=fake_registry(backend)) as manager, manager.watch():
        pool = await started(manager, fake("pool"))
        await watched(pool, "polled")
        assert pool.info.freshness is not None
        assert pool.info.freshness.note == "its storage tells nothing"
        backend.show("a", "b")
        await eventually(lambda: names(pool) == ["a", "b"], "what was added")
        await pool.stop()
        await eventually(lambda: pool.info.freshness is None, "the end of its watch")
        before = backend.count("refresh")
        await asyncio.sleep(0.2)
        assert backend.count("refresh") == before
        await pool.start()
        backend.show("c")
        await eventually(lambda: names(pool) == ["c"], "what was added after it was started again")


async def test_slower_while_nothing_changes(
    tmp_path: Path, backend: FakeBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The time between two polls grows while nothing changes, up to what the caller said, and shrinks when something does."""
    monkeypatch.setattr(pool_watch, "LEAST", 0.01)
    monkeypatch.setattr(pool_watch, "SHARE", 0.0)  # however long a refresh takes on a busy machine
    async with astore.Manager(tmp_path / "state", registry=fake_registry(backend)) as manager:
        pool, other = await started(manager, fake("pool")), await started(manager, fake("other"))
        async with manager.watch(max_staleness={"pool": 0.4}):
            await watched(pool, "polled")
            await eventually(lambda: backend.count("refresh", "pool") >= 12, "a dozen polls")
            (one,) = (one for one in _watches(manager) if one.parts.name == "pool")
            assert one._interval == pytest.approx(0.4)
            assert pool.info.freshness is not None
            assert other.info.freshness is not None
            assert pool.info.freshness.bound < 10 < other.info.freshness.bound
            backend.put("new", volume("new"), "pool")
            await eventually(lambda: one._interval < 0.1, "quicker polls")


def _watches(manager: astore.Manager) -> list[pool_watch.PoolWatch]:
    (watch,) = (
        one for one in gc.get_objects() if isinstance(one, watching.Watch) and one.services is manager._services
    )
    return list(watch._pools.values())


@pytest.mark.usefixtures("quick")
async def test_pools_that_were_not_ready(tmp_path: Path, backend: FakeBackend) -> None:
    """What start_all could not start is tried again, each failure an event; what was stopped by hand is not."""
    async with astore.Manager(tmp_path / "state", registry=fake_registry(backend)) as manager:
        pool, other = await manager.define(fake("pool")), await manager.define(fake("other"))
        for one in (pool, other):
            await one.set_autostart(True)
        async with manager.watch(), manager.events() as events:
            backend.fail("open", ConnectionRefusedError(111, "no network yet"))
            outcomes = await manager.start_all()
            assert all(outcomes.values())
            retries: list[astore.PoolRetry] = []
            failed = 0
            while len(retries) < 6:
                event = await anext(events)
                failed += isinstance(event, astore.PoolStartFailed)
                retries += [event] if isinstance(event, astore.PoolRetry) else []
            assert failed >= 4
            assert {one.pool for one in retries} == {"pool", "other"}
            first, second, *_ = (one for one in retries if one.pool == "pool")
            assert (first.attempt, second.attempt) == (1, 2)
            assert "no network yet" in first.reason
            assert first.at > first.time
            with pytest.raises(astore.InvalidStateError):
                await other.stop()  # it is not to be started any more
            backend.fail("open", None)
            await eventually(lambda: names(pool) == ["a"], "the pool and its first refresh")
            await asyncio.sleep(0.3)
            assert pool.active
            assert not other.active


@pytest.mark.usefixtures("quick")
async def test_inaccessible_pools(tmp_path: Path, backend: FakeBackend) -> None:
    """An inaccessible pool comes back by itself, unless the caller wants no retries."""
    async with astore.Manager(tmp_path / "state", registry=fake_registry(backend)) as manager:
        pool = await started(manager, fake("pool"))
        for retry in (True, False):
            async with manager.watch(retry=retry):
                await watched(pool, "polled")
                backend.fail("refresh", ConnectionResetError(104, "gone"))
                await eventually(lambda: pool.state is astore.PoolState.INACCESSIBLE, "the failure")
                backend.fail("refresh", None)
                if retry:
                    await eventually(lambda: pool.state is astore.PoolState.RUNNING, "the recovery")
                else:
                    await asyncio.sleep(0.3)
                    assert pool.state is astore.PoolState.INACCESSIBLE
                    assert pool.info.freshness is None
        await pool.refresh()
        assert pool.state is astore.PoolState.RUNNING


@pytest.mark.usefixtures("quick")
async def test_pools_that_hang_cost_only_themselves(tmp_path: Path, backend: FakeBackend) -> None:
    """Twenty pools hang; another is refreshed as before."""
    async with astore.Manager(tmp_path / "state", registry=fake_registry(backend)) as manager:
        pool = await started(manager, fake("pool"))
        hung = [await started(manager, fake(f"hung{index}")) for index in range(20)]
        for one in hung:
            backend.hold("refresh", one.name)
        async with manager.watch():
            await eventually(lambda: all(backend.count("refresh", one.name) > 1 for one in hung), "all to hang")
            backend.show("z", pool="pool")
            await eventually(lambda: names(pool) == ["z"], "a change elsewhere")


@pytest.mark.usefixtures("quick")
async def test_the_manager_is_closed(tmp_path: Path, backend: FakeBackend) -> None:
    """The watch of a Manager that is closed ends by itself."""
    before = asyncio.all_tasks()
    manager = astore.Manager(tmp_path / "state", registry=fake_registry(backend))
    async with manager:
        pool = await started(manager, fake("pool"))
        await pool.set_autostart(True)  # all folders of the store are there
        watch = manager.watch()
        await watch.__aenter__()
        await watched(pool, "polled")
    await eventually(lambda: asyncio.all_tasks() == before, "the end of its tasks")
    await watch.__aexit__()
    async with manager, manager.watch():
        await watched(manager.pool("pool"), "polled")


async def test_one_watch_at_a_time(tmp_path: Path, backend: FakeBackend) -> None:
    """A second watch is refused; after the first one another may begin. A closed Manager cannot be watched."""
    manager = astore.Manager(tmp_path / "state", registry=fake_registry(backend))
    with pytest.raises(astore.ManagerClosedError):
        await manager.watch().__aenter__()
    async with manager:
        async with manager.watch():
            with pytest.raises(astore.InvalidStateError, match="watched already"):
                await manager.watch().__aenter__()
        async with manager.watch():
            pass


async def test_cancelled_at_every_await(tmp_path: Path) -> None:
    """Wherever the one who watches is cancelled, no task, watch or descriptor is left, and the pools work."""
    folder = tmp_path / "images"
    folder.mkdir()
    async with astore.Manager(tmp_path / "state") as manager:
        pool = await dir_pool(manager, folder)
        before = asyncio.all_tasks()
        for count in range(40):

            async def watch() -> None:
                async with manager.watch():
                    await watched(pool)
                    (folder / "x").write_text("x")
                    await eventually(lambda: pool.volumes, "x")

            await cancel_after(count, watch)
            assert asyncio.all_tasks() == before
            assert pool.info.freshness is None
            (folder / "x").unlink(missing_ok=True)
            await pool.refresh()
            assert not pool.volumes


async def test_other_processes_on_the_same_folder(tmp_path: Path) -> None:
    """What another process defines, starts, makes, stops and undefines is told here, without a reload."""
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / "old").write_text("x")
    (tmp_path / "pool.xml").write_text(
        f"<pool type='dir'><name>images</name><target><path>{folder}</path></target></pool>"
    )
    astore_command = f"{sys.executable} -m astore.cli --state-dir state"
    async with astore.Manager(tmp_path / "state") as manager, manager.watch():
        async with manager.events() as events:

            async def told(kind: type[astore.Event]) -> astore.Event:
                async with asyncio.timeout(60):
                    while not isinstance(event := await anext(events), kind):
                        pass
                return event

            await by_another_process(f"{astore_command} pool define pool.xml", tmp_path)
            await told(astore.PoolDefined)
            await by_another_process(f"{astore_command} pool start images", tmp_path)
            await told(astore.PoolStarted)
            event = await told(astore.VolumeAdded)
            assert isinstance(event, astore.VolumeAdded)
            assert event.name == "old"
            await watched(manager.pool("images"))
            await by_another_process(f"{astore_command} vol create images new 1M", tmp_path)
            event = await told(astore.VolumeAdded)
            assert isinstance(event, astore.VolumeAdded)
            assert event.name == "new"
            await by_another_process(f"{astore_command} pool stop images", tmp_path)
            await told(astore.PoolStopped)
            await by_another_process(f"{astore_command} pool undefine images", tmp_path)
            await told(astore.PoolUndefined)
            assert not manager.pools()


async def test_found_on_a_miss(manager: astore.Manager, pool: astore.Pool, folder: Path) -> None:
    """find() looks for what the snapshot lacks, alone."""
    (folder / "new").write_text("x")
    with pytest.raises(astore.VolumeNotFoundError):
        pool.volume("new")
    generation = pool.snapshot.generation
    assert (await pool.find("new")).name == "new"
    assert pool.snapshot.generation == generation + 1
    assert (await pool.find("new")).name == "new"
    assert pool.snapshot.generation == generation + 1
    with pytest.raises(astore.VolumeNotFoundError):
        await pool.find("none")
    with pytest.raises(astore.VolumeNotFoundError):
        await pool.find("../images/new")


async def test_a_refresh_that_began_too_early(tmp_path: Path, backend: FakeBackend) -> None:
    """Neither a caller nor the watch is content with a refresh of the other's that began before the change."""
    async with astore.Manager(tmp_path / "state", registry=fake_registry(backend)) as manager:
        pool = await started(manager, fake("pool"))
        refresher = pool.parts.refresher
        for unasked in (True, False):
            hold = backend.hold("refresh", "pool")
            early = asyncio.ensure_future(refresher.refresh(False, None, unasked=unasked))
            await hold.reached()
            late = asyncio.ensure_future(refresher.refresh(False, None, unasked=not unasked))
            await asyncio.sleep(0)
            count = backend.count("refresh")
            backend.unhold()
            assert (await early).generation < (await late).generation
            assert backend.count("refresh") == count + 1


async def test_a_failure_that_began_too_early(tmp_path: Path, backend: FakeBackend) -> None:
    """A caller is not told of the failure of the watch's refresh that began before."""
    async with astore.Manager(tmp_path / "state", registry=fake_registry(backend)) as manager:
        pool = await started(manager, fake("pool"))
        hold = backend.hold("refresh", "pool")
        early = asyncio.ensure_future(pool.parts.refresher.refresh(False, None, unasked=True))
        await hold.reached()
        backend.fail("refresh", ConnectionResetError(104, "a moment ago"))
        late = asyncio.ensure_future(pool.refresh())
        await asyncio.sleep(0)
        again = backend.hold("refresh", "pool")
        hold.release()
        with pytest.raises(astore.StorageError, match="a moment ago"):
            await early
        await again.reached()
        backend.fail("refresh", None)
        backend.unhold()
        assert (await late).unchanged == 1


class TellingSession(FakeSession):
    """Tells of what the test says that it is to tell of."""

    way, complete, bound, again, lost, note = "told", True, 0.0, None, False, ""

    async def watch(self, tell: Tell) -> Told:
        """Have the test tell."""
        self.tell = tell
        return self

    def close(self) -> None:
        """Go on."""


class TellingBackend(FakeBackend):
    """Its pools are told of changes."""

    session_class = TellingSession


async def test_changes_right_after_a_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A change that is told right after a refresh is looked at, however long that refresh took; not each one after it."""
    backend = TellingBackend()
    for name in ("SHARE", "MOST"):
        monkeypatch.setattr(pool_watch, name, 1e9)
    async with astore.Manager(tmp_path / "state", registry=fake_registry(backend)) as manager:
        pool = await started(manager, fake("pool"))
        async with manager.watch():
            await watched(pool, "told")
            session, count = backend.open_sessions[0], backend.count("refresh")
            assert isinstance(session, TellingSession)
            session.tell(None, False)
            await eventually(lambda: backend.count("refresh") > count, "the refresh after the watch's first")
            (one,) = _watches(manager)
            await eventually(lambda: not one._busy, "its end")
            session.tell(None, False)
            assert one._until_whole() > 1000


async def test_polls_are_counted_from_beginning_to_beginning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """How long a refresh takes does not make the next one later, and neither does what is told of some names meanwhile."""
    backend = TellingBackend()
    monkeypatch.setattr(pool_watch, "WRITING", 0.01)
    async with astore.Manager(tmp_path / "state", registry=fake_registry(backend)) as manager:
        pool = await started(manager, fake("pool"))
        async with manager.watch(max_staleness=1000.0):
            await watched(pool, "told")
            (one,) = _watches(manager)
            session = backend.open_sessions[0]
            assert isinstance(session, TellingSession)
            session.complete = False
            listed, hold = one._listed_at, backend.hold("refresh", "pool")
            session.tell(None, False)
            await hold.reached()
            began = one._listed_at
            assert began > listed
            await asyncio.sleep(0.05)
            backend.unhold()
            hold.release()
            await eventually(lambda: not one._busy, "the end of the refresh")
            assert one._whole_at == began + one._interval
            one._interval = 1000.0
            due = one._whole_at = time.monotonic() + 0.2
            count = backend.count("refresh")
            while backend.count("refresh") == count:
                session.tell(frozenset({"a"}), True)
                await asyncio.sleep(0.01)
            assert one._listed_at >= due


async def test_looks_at_bytes_are_counted_from_beginning_to_beginning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that is written to all the time is looked at each second; with slow storage, half of the time at most."""
    backend = TellingBackend()
    monkeypatch.setattr(pool_watch, "WRITING", 1000.0)
    async with astore.Manager(tmp_path / "state", registry=fake_registry(backend)) as manager:
        pool = await started(manager, fake("pool"))
        async with manager.watch():
            await watched(pool, "told")
            (one,) = _watches(manager)
            hold = backend.hold("refresh", "pool")
            one._hear(None, False)
            await hold.reached()
            began = one._began_at
            await asyncio.sleep(0.05)
            backend.unhold()
            hold.release()
            await eventually(lambda: not one._busy, "the end of the refresh")
            assert one._bytes_at == one._whole_bytes_at == began + 1000.0
            monkeypatch.setattr(pool_watch, "WRITING", 0.1)
            one._began_at = before = time.monotonic() - 0.08
            one._looked()
            assert before + 0.16 <= one._bytes_at <= time.monotonic() + 0.1


async def test_many_names_right_after_a_few(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pool of which much is told is refreshed for its share of the time, whatever was to be looked at before that."""
    backend = TellingBackend()
    for name in ("SHARE", "MOST"):
        monkeypatch.setattr(pool_watch, name, 1e9)
    async with astore.Manager(tmp_path / "state", registry=fake_registry(backend)) as manager:
        pool = await started(manager, fake("pool"))
        async with manager.watch():
            await watched(pool, "told")
            (one,) = _watches(manager)
            session = backend.open_sessions[0]
            assert isinstance(session, TellingSession)
            session.tell(None, False)  # its two refreshes that are free
            await eventually(lambda: one._until_whole() > 1000 and not one._busy, "the end of the free ones")
            count = backend.count("refresh")
            session.tell(frozenset({"a", "b"}), False)
            session.tell(frozenset(f"v{number}" for number in range(100)), False)
            assert one._timer is not None
            due = one._due
            await eventually(lambda: one._due > due + 100 and not one._busy, "the look")
            assert backend.count("refresh") == count


async def test_the_wait_for_anothers_refresh_is_not_its_own(tmp_path: Path, backend: FakeBackend) -> None:
    """A poll that waited for somebody's long refresh is not made rare by that."""
    async with astore.Manager(tmp_path / "state", registry=fake_registry(backend)) as manager:
        pool = await started(manager, fake("pool"))
        async with manager.watch(max_staleness=0.1):
            await watched(pool, "polled")
            (one,) = _watches(manager)
            hold = backend.hold("refresh", "pool")
            full = asyncio.ensure_future(pool.refresh(full=True))
            await hold.reached()
            await eventually(lambda: one._busy, "the poll")
            began = time.monotonic()
            await asyncio.sleep(3.0)
            backend.unhold()
            hold.release()
            await full
            await eventually(lambda: one._listed_at >= began - 0.2 and not one._busy, "the end of the poll")
            assert one._took < 2


async def test_listing_anew_takes_its_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pool that must be listed every so often is not listed all the time because that takes long; its bound says so."""
    backend = TellingBackend()
    monkeypatch.setattr(pool_watch, "LISTING_SHARE", 1e6)
    async with astore.Manager(tmp_path / "state", registry=fake_registry(backend)) as manager:
        pool = await started(manager, fake("pool"))
        session = backend.open_sessions[0]
        assert isinstance(session, TellingSession)
        monkeypatch.setattr(session, "again", 0.001)
        async with manager.watch():
            await watched(pool, "told")
            (one,) = _watches(manager)
            assert one._whole_at - one._listed_at >= (one._took - one._listened) * 1e6 * 0.9
            assert pool.info.freshness is not None
            assert pool.info.freshness.bound >= (one._took - one._listened) * 1e6 * 0.9


async def test_started_again_while_something_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first look after a start is at the whole pool, whatever is told meanwhile."""
    backend = TellingBackend()
    async with astore.Manager(tmp_path / "state", registry=fake_registry(backend)) as manager:
        pool = await started(manager, fake("pool"))
        async with manager.watch():
            await watched(pool, "told")
            (one,) = _watches(manager)
            await pool.stop()
            await eventually(lambda: pool.info.freshness is None, "the end of its watch")
            one._free_at = time.monotonic() + 1000
            watch = TellingSession.watch

            async def tells(session: TellingSession, tell: Tell) -> Told:
                told = await watch(session, tell)
                tell(frozenset({"a"}), False)
                return told

            monkeypatch.setattr(TellingSession, "watch", tells)
            listed = one._listed_at
            await pool.start()
            await watched(pool, "told")
            assert one._listed_at > listed
