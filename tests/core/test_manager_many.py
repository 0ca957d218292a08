"""Many pools at once, lookups, discovery, counts and events of a Manager."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
import pytest
from core_fakes import FakeBackend, counted, eventually, fake, fake_registry, steps, volume

import astore
from astore.events import BackendRegistered, BackendUnregistered, PoolAutostartChanged, PoolDefined, PoolStarted
from astore.model import PoolState


async def started(manager: astore.Manager, *names: str) -> list[astore.Pool]:
    """Pools, defined and started."""
    pools = [await manager.define(fake(name)) for name in names]
    for pool in pools:
        await pool.start()
    return pools


# ---------------------------------------------------------------------------------------------------- refresh_all


async def test_refresh_all(manager: astore.Manager, backend: FakeBackend) -> None:
    """All active pools, in name order, each with what was found; progress as they are done."""
    await started(manager, "p3", "p1", "p2")
    await manager.define(fake("inactive"))
    backend.show("a", "d", pool="p2")
    progress: list[tuple[int, int, str]] = []
    report = await manager.refresh_all(on_progress=lambda done, of, one: progress.append((done, of, one.pool)))
    assert [outcome.pool for outcome in report.pools] == ["p1", "p2", "p3"]
    assert not report.failed
    assert report.seconds > 0
    two = report.pools[1]
    assert (two.added, two.removed, two.unchanged, two.generation) == (("d",), ("b", "c"), 1, 2)
    assert two.uuid == manager.pool("p2").uuid
    assert [(done, of) for done, of, _ in progress] == [(1, 3), (2, 3), (3, 3)]
    assert {name for _, _, name in progress} == {"p1", "p2", "p3"}
    assert msgspec.json.encode(two)
    assert (await astore.Manager.refresh_all(manager, names=[])).pools == ()


async def test_refresh_all_of_some(manager: astore.Manager, backend: FakeBackend) -> None:
    """Names choose, each once; one that nobody has is an error before anything is done; inactive ones are reported."""
    await started(manager, "p1", "p2", "p3")
    await manager.define(fake("inactive"))
    before = backend.count("refresh")
    report = await manager.refresh_all(["p2", "inactive", "p2", "p1"])
    assert [outcome.pool for outcome in report.pools] == ["inactive", "p1", "p2"]
    assert [type(outcome.error) for outcome in report.failed] == [astore.InvalidStateError]
    assert backend.count("refresh") == before + 2
    with pytest.raises(astore.PoolNotFoundError, match="'nosuch'"):
        await manager.refresh_all(["p1", "nosuch"])
    with pytest.raises(ValueError, match="limit"):
        await manager.refresh_all(limit=0)
    assert backend.count("refresh") == before + 2


async def test_refresh_all_is_limited(manager: astore.Manager, backend: FakeBackend) -> None:
    """No more than ``limit`` pools are refreshed at a time, and the next begins when one is done."""
    await started(manager, *(f"p{n}" for n in range(9)))
    holds = [backend.hold("refresh", f"p{n}") for n in range(9)]
    refreshing = asyncio.ensure_future(manager.refresh_all(limit=3))
    await eventually(lambda: sum(hold.arrived for hold in holds) == 3)
    await steps(20)
    assert sum(hold.arrived for hold in holds) == 3
    next(hold for hold in holds if hold.arrived).release()
    await eventually(lambda: sum(hold.arrived for hold in holds) == 4)
    await steps(20)
    assert sum(hold.arrived for hold in holds) == 4
    backend.unhold()
    assert len((await refreshing).pools) == 9


async def test_one_bad_pool_costs_only_itself(manager: astore.Manager, backend: FakeBackend) -> None:
    """Pools that fail, in whatever way, or hang: reported; all others are refreshed."""
    await started(manager, *(f"p{n}" for n in range(10)))
    backend.fail("refresh", OSError(5, "broken"), "p1")
    backend.fail("refresh", KeyError("oops"), "p4")
    backend.hold("refresh", "p7")
    report = await manager.refresh_all(timeout=2.0)
    assert {outcome.pool: type(outcome.error) for outcome in report.failed} == {
        "p1": astore.PoolInaccessibleError,
        "p4": astore.PoolInaccessibleError,
        "p7": astore.LaneTimeoutError,
    }
    assert sum(outcome.unchanged == 3 for outcome in report.pools) == 7
    assert {pool.name for pool in manager.pools(states=["inaccessible"])} == {"p1", "p4"}, "p7 is only late"


async def test_refresh_all_twice_at_once(manager: astore.Manager, backend: FakeBackend) -> None:
    """Two at once share the refreshes; who leaves does not take the other's along."""
    await started(manager, "p1", "p2")
    hold = backend.hold("refresh")
    one, two = (asyncio.ensure_future(manager.refresh_all()) for _ in range(2))
    await hold.reached(2)
    await steps(5)
    one.cancel()
    await asyncio.wait([one])
    hold.release()
    assert [outcome.unchanged for outcome in (await two).pools] == [3, 3]
    assert hold.arrived == 2


# ------------------------------------------------------------------------------------------------------ start_all


async def test_start_all(manager: astore.Manager, backend: FakeBackend) -> None:
    """Pools marked for it are started, those that cannot be are named with the reason, active ones are left out."""
    pools = [await manager.define(fake(f"p{n}")) for n in range(5)]
    for pool in pools[:3]:
        await pool.set_autostart(True)
    await pools[0].start()
    backend.fail("open", OSError(113, "No route to host"), "p2")
    outcomes = await manager.start_all()
    assert list(outcomes) == ["p1", "p2"]
    assert outcomes["p1"] is None
    assert isinstance(outcomes["p2"], astore.PoolInaccessibleError)
    assert manager.pools(active=True) == pools[:2]
    backend.fail("check", RuntimeError("a fault of the plugin's"), "p3")
    outcomes = await manager.start_all(autostart_only=False)
    assert list(outcomes) == ["p2", "p3", "p4"]
    assert "a fault of the plugin's" in str(outcomes["p3"])
    assert outcomes["p4"] is None


async def test_autostart_is_kept(manager: astore.Manager, tmp_path: Path) -> None:
    """The mark is told, once, survives the Manager and being defined anew, and is taken off."""
    async with manager.events(kinds={PoolAutostartChanged}) as events:
        pool = await manager.define(fake("p"))
        for mark in (True, True, False, True):
            await pool.set_autostart(mark)
            assert pool.autostart is pool.info.autostart is mark
        told = [events.receive_nowait() for _ in range(4)]
        assert [event and event.autostart for event in told] == [True, False, True, None]  # type: ignore[attr-defined]
    await manager.define(fake("p", "/elsewhere"))
    assert pool.autostart
    async with astore.Manager(tmp_path / "state", registry=fake_registry()) as other:
        assert [known.name for known in other.pools(autostart=True)] == ["p"]
        assert other.pools(autostart=False) == []


# --------------------------------------------------------------------------------------------------------- lookups


async def test_filters(manager: astore.Manager, backend: FakeBackend) -> None:
    """libvirt's filters, alone and together; the order is that of names."""
    await started(manager, "run", "bad")
    await manager.define(fake("idle"))
    await manager.define("<pool type='other'><name>alien</name></pool>")
    await manager.create(fake("transient"))
    await manager.pool("idle").set_autostart(True)
    backend.fail("refresh", OSError(5, "broken"), "bad")
    await manager.refresh_all()

    def found(**filters: object) -> list[str]:
        return [pool.name for pool in manager.pools(**filters)]  # type: ignore[arg-type]

    assert found() == ["alien", "bad", "idle", "run", "transient"]
    assert found(active=True) == ["bad", "run", "transient"]
    assert found(active=False) == ["alien", "idle"]
    assert found(persistent=False) == ["transient"]
    assert found(persistent=True, active=True) == ["bad", "run"]
    assert found(autostart=True) == ["idle"]
    assert found(types={"other"}) == ["alien"]
    assert found(states=["running", PoolState.INACCESSIBLE]) == ["bad", "run", "transient"]
    assert found(states=[]) == []
    with pytest.raises(ValueError):
        found(states=["nosuch"])


async def test_pools_by_what_names_them(manager: astore.Manager) -> None:
    """By name, by uuid however it is written, and by target; what is not there is a LookupError that says so."""
    pool = await manager.define(fake("p", "/target/of/p"))
    assert manager.pool("p") is pool
    for uuid in (pool.uuid, pool.uuid.upper(), pool.uuid.replace("-", "")):
        assert manager.pool_by_uuid(uuid) is pool
    with pytest.raises(astore.PoolNotFoundError):
        manager.pool_by_target("/target/of/p")  # as libvirt: of the active ones
    await pool.start()
    assert manager.pool_by_target("/target/of/p") is manager.pool_by_target("/target//of/p/") is pool
    for call in (manager.pool, manager.pool_by_uuid, manager.pool_by_target):
        with pytest.raises(LookupError, match="nosuch") as caught:
            call("nosuch")
        assert isinstance(caught.value, astore.PoolNotFoundError)
        assert caught.value.what == "nosuch"


async def test_volumes_by_key_and_path(manager: astore.Manager, backend: FakeBackend) -> None:
    """By whatever the backend says that they are: keys need not end in names, nor be paths."""
    backend.shows["files"] = {"a": volume("a", key="/files/a", path="/files/a")}
    backend.shows["urls"] = {"a b": volume("a b", key="gluster://h/v/a%20b", path="gluster://h/v/a%20b")}
    backend.shows["lvm"] = {"root": volume("root", key="Xk2-uuid-of-lvm", path="/dev/vg/root")}
    await started(manager, "files", "urls", "lvm")
    for pool, name, key, path in (
        ("files", "a", "/files/a", "/files/a"),
        ("urls", "a b", "gluster://h/v/a%20b", "gluster://h/v/a%20b"),
        ("lvm", "root", "Xk2-uuid-of-lvm", "/dev/vg/root"),
    ):
        assert manager.volume_by_key(key) == manager.volume_by_path(path) == manager.pool(pool).volume(name)
    for call in (manager.volume_by_key, manager.volume_by_path):
        with pytest.raises(astore.VolumeNotFoundError, match="/nosuch/a"):
            call("/nosuch/a")
    await manager.pool("lvm").stop()
    with pytest.raises(astore.VolumeNotFoundError):
        manager.volume_by_path("/dev/vg/root")


async def test_discovery(manager: astore.Manager, backend: FakeBackend) -> None:
    """Sources as the backend finds them; hosts that are none are refused before anything is run."""
    (found,) = await manager.discover("fake", "server.example", port=24007)
    assert (found.type, found.source.hosts) == ("fake", (astore.Host("server.example", 24007),))
    (found,) = await manager.discover("fake")
    assert found.source.hosts == ()
    for host in ("-oevil", "a b", "a\nb", "", "a/b"):
        with pytest.raises(astore.DefinitionError):
            await manager.discover("fake", host)
    assert backend.count("discover") == 2
    with pytest.raises(astore.UnknownBackendError):
        await manager.discover("nosuch", "server.example")
    backend.fail("discover", OSError(113, "No route to host"))
    with pytest.raises(OSError, match="No route"):
        await manager.discover("fake", "server.example")
    assert len(manager.statistics().lanes.lanes) == 1


async def test_statistics(manager: astore.Manager) -> None:
    """Counts of pools, volumes, events and threads, as they are."""
    await started(manager, "p1", "p2")
    await manager.define(fake("p3"))
    async with manager.events():
        statistics = manager.statistics()
    assert (statistics.pools, statistics.active, statistics.volumes) == (3, 2, 6)
    assert (statistics.events.subscribers, statistics.events.last_seq) == (1, statistics.events.kept)
    assert [lane.name for lane in statistics.lanes.lanes][1:] == ["pool 'p1'", "pool 'p2'"]
    assert (statistics.lanes.max_threads, statistics.lanes.stuck, statistics.lanes.queued) == (32, 0, 0)
    assert msgspec.json.encode(statistics)


async def test_events_of_everything(manager: astore.Manager) -> None:
    """Pools' and the registry's events have one sequence of numbers; it is replayed from any of them."""

    class Other(FakeBackend):
        type = "other"

    async with manager.events() as events:
        manager.registry.register(Other())
        (pool,) = await started(manager, "p")
        await pool.refresh()
        await manager.registry.unregister("other")
        told: list[astore.Event] = []
        while (event := events.receive_nowait()) is not None:
            told.append(event)
    assert counted(told) == {
        "BackendRegistered": 1,
        "PoolDefined": 1,
        "PoolStarted": 1,
        "PoolStateChanged": 1,
        "VolumeAdded": 3,
        "PoolRefreshed": 2,
        "BackendUnregistered": 1,
    }
    assert [type(told[0]), type(told[1]), type(told[-1])] == [BackendRegistered, PoolDefined, BackendUnregistered]
    assert [event.seq for event in told] == list(range(told[0].seq, told[0].seq + len(told)))
    async with manager.events(since=told[3].seq) as events:
        assert [events.receive_nowait() for _ in told[4:]] == told[4:]
        assert events.receive_nowait() is None
    async with manager.events(since=0, kinds={PoolStarted}, pools={"p"}) as events:
        assert isinstance(events.receive_nowait(), PoolStarted)
        assert events.receive_nowait() is None
