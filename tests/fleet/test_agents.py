"""Agents in one process: who gets which pool, handing over, draining, reading, events and jobs."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import pytest
from core_fakes import eventually
from fleet_support import SECONDS, HeldSession, folder, host, local, registry, shared, until

import astore
from astore.store.contract import Run
from astore_fleet import Agent, Fleet
from beds.nats import NatsBed


async def test_pools_are_spread_and_read(fleet: Fleet, one_server: NatsBed, fleet_name: str, tmp_path: Path) -> None:
    """Each pool has one owner, hosts have about as many, and a client reads all without asking them."""
    async with host(one_server, fleet_name, "a") as a, host(one_server, fleet_name, "b") as b:
        for number in range(6):
            await fleet.define(shared(f"p{number}", folder(tmp_path, f"p{number}", "x.img")))
        await eventually(lambda: all(one.state == "running" and one.volumes for one in fleet.pools()), "all run")
        await eventually(lambda: sorted(one.owner or "" for one in fleet.pools()) == list("aaabbb"), "as many on each")
        await eventually(
            lambda: [len(one.manager.pools(active=True)) for one in (a, b)] == [3, 3], "active where it is"
        )
        found = await fleet.volumes()
        assert [(one.pool, one.info.name) for one in found] == [(f"p{number}", "x.img") for number in range(6)]
        assert all(one.age < 60 for one in found)
        one = await fleet.find(path=str(tmp_path / "p3" / "x.img"))
        assert one.pool == "p3"
        assert [x.pool for x in await fleet.search(name="x.", bigger_than=1000)] == [f"p{n}" for n in range(6)]
        assert await fleet.search(format="qcow2") == []
        with pytest.raises(astore.VolumeNotFoundError):
            await fleet.find(name="no")


async def test_local_pools_stay_on_their_host(
    fleet: Fleet, one_server: NatsBed, fleet_name: str, tmp_path: Path
) -> None:
    """A local pool runs on the host that defined it, or on those that are named; labels count; others do not see it."""
    async with host(one_server, fleet_name, "a", disk="ssd") as a, host(one_server, fleet_name, "b") as b:
        path = folder(tmp_path, "same")
        mine = await a.manager.define(local("mine", path))
        await mine.set_autostart(True)
        with pytest.raises(astore.DefinitionError, match="say on which hosts"):
            await fleet.define(local("other", path))
        await fleet.define(local("other", path), hosts=["b"])
        await fleet.define(shared("fast", folder(tmp_path, "fast")), labels={"disk": "ssd"})
        await eventually(lambda: [one.state for one in fleet.pools()] == ["running"] * 3, "all run")
        assert {one.name: one.owner for one in fleet.pools()} == {"mine": "a", "other": "b", "fast": "a"}
        assert [pool.name for pool in b.manager.pools()] == ["other"]
        with pytest.raises(astore.SourceConflictError, match="exists already on other hosts"):
            await b.manager.define(local("mine", tmp_path / "another"))


async def test_a_host_that_leaves_hands_over(
    fleet: Fleet, one_server: NatsBed, fleet_name: str, tmp_path: Path
) -> None:
    """Pools of a host that leaves go on elsewhere with their snapshot; local ones are unreachable; the events are exact."""
    images, own = folder(tmp_path, "images", "a.img"), folder(tmp_path, "own", "b.img")
    async with fleet.events(since=0) as events, host(one_server, fleet_name, "b") as b:
        async with host(one_server, fleet_name, "a"):
            await fleet.define(shared("images", images), hosts=["a", "b"])
            await fleet.define(local("own", own), hosts=["a"])
            await fleet.drain("b")
            await eventually(lambda: fleet.pool("images").info.owner == "a", "a has it")
            await eventually(lambda: all(one.volumes for one in fleet.pools()), "all read")
            await fleet.undrain("b")
        await eventually(lambda: b.manager.pool("images").active, "b has it")
        await eventually(lambda: fleet.pool("images").info.owner == "b", "b has it, all know")
        await eventually(lambda: not fleet.pool("own").info.reachable, "a is gone, all know")
        info = fleet.pool("own").info
        assert (info.state, info.reachable, info.volumes) == ("unreachable", False, 1)
        assert [one.name for one in await fleet.pool("own").volumes()] == ["b.img"]
        with pytest.raises(astore.PoolInaccessibleError, match="host 'a' is not there"):
            await fleet.pool("own").refresh()
        (images / "c.img").write_bytes(b"")
        await fleet.pool("images").refresh()
        seen = await until(events, astore.VolumeAdded, "c.img")
        added = [(one.event.pool, one.event.name) for one in seen if isinstance(one.event, astore.VolumeAdded)]
        assert sorted(added) == [("images", "a.img"), ("images", "c.img"), ("own", "b.img")]
        assert [one.seq for one in seen] == sorted({one.seq for one in seen})


async def test_a_drained_host_has_no_pool(fleet: Fleet, one_server: NatsBed, fleet_name: str, tmp_path: Path) -> None:
    """Draining moves what can run elsewhere; undraining lets pools come back, to even out."""
    async with host(one_server, fleet_name, "a") as a, host(one_server, fleet_name, "b") as b:
        for number in range(4):
            await fleet.define(shared(f"p{number}", folder(tmp_path, f"p{number}", "x.img")))
        await eventually(lambda: len(fleet.leases()) == 4, "all owned")
        await fleet.drain("a")
        await eventually(lambda: {one for one, _ in fleet.leases().values()} == {"b"} and len(fleet.leases()) == 4)
        await eventually(lambda: not a.manager.pools(active=True), "a has stopped them")
        await eventually(lambda: len(b.manager.pools(active=True)) == 4, "b has them")
        await eventually(lambda: fleet.drained() == {"a"}, "all know")
        await fleet.undrain("a")
        await eventually(lambda: [one for one, _ in fleet.leases().values()].count("a") == 2, "two came back")


async def test_pools_that_come_back_at_once_are_active(
    fleet: Fleet, one_server: NatsBed, fleet_name: str, tmp_path: Path
) -> None:
    """A pool that comes back to a host while that host is stopping it is active there in the end."""
    async with host(one_server, fleet_name, "a") as a, host(one_server, fleet_name, "b") as b:
        for number in range(8):
            await fleet.define(shared(f"p{number}", folder(tmp_path, f"p{number}", "x.img")))
        for number in range(6):
            await eventually(lambda: len(fleet.leases()) == 8, "all owned")
            await fleet.drain("ab"[number % 2])
            await fleet.undrain("ab"[number % 2])

        def settled() -> bool:
            owners = {pool: host for pool, (host, _) in fleet.leases().items()}
            active = [(pool.name, one.store.host) for one in (a, b) for pool in one.manager.pools(active=True)]
            return sorted(owners.items()) == sorted(active) and len(active) == 8

        await eventually(settled, "each pool is active where its owner is")


async def test_a_pool_that_comes_back_before_it_was_left_is_active(
    fleet: Fleet, one_server: NatsBed, fleet_name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A host could not stop a pool that another has taken, and looks after it again: it begins anew, and goes on."""
    tried, away = dict[str, int](), True

    def leaving(agent: Agent) -> None:
        real = agent.store.snapshots.kept_since

        async def kept_since(name: str, host: str, token: int) -> bool:
            if away:
                tried[agent.store.host] = tried.get(agent.store.host, 0) + 1
                raise astore.StoreError("no answer")
            return await real(name, host, token)

        monkeypatch.setattr(agent.store.snapshots, "kept_since", kept_since)

    async with host(one_server, fleet_name, "a") as a, host(one_server, fleet_name, "b") as b:
        leaving(a)
        leaving(b)
        pool = await fleet.define(shared("images", folder(tmp_path, "images", "x.img")), hosts=["a"])
        await eventually(lambda: pool.info.owner == "a" and pool.info.state == "running", "it runs on a")
        await pool.place(hosts=("b",))
        await eventually(lambda: tried.get("a") and b.manager.pools(active=True), "b has it, and a has not stopped it")
        await pool.place(hosts=("a",))
        await eventually(lambda: pool.info.owner == "a" and tried.get("b"), "a has it again, and b has not stopped it")
        await eventually(lambda: tried["b"] > 3, "a has had some time")
        away = False
        await eventually(lambda: not b.manager.pools(active=True), "b has stopped it")
        await pool.refresh(timeout=60)
        await eventually(lambda: list(fleet.store.table.runs.get("images", ())) == ["a"], "it runs on a alone")
        await eventually(lambda: pool.info.state == "running", "all know")


@pytest.mark.parametrize("gone", [True, False])
async def test_a_pool_that_is_not_started_automatically_goes_on(
    gone: bool, fleet: Fleet, one_server: NatsBed, fleet_name: str, tmp_path: Path
) -> None:
    """A pool that somebody started is active on its next host, with what was known of it, and on that alone."""
    async with contextlib.AsyncExitStack() as stack:
        a = await stack.enter_async_context(host(one_server, fleet_name, "a"))
        b = await stack.enter_async_context(host(one_server, fleet_name, "b"))
        pool = await fleet.define(shared("images", folder(tmp_path, "images", "x.img")), hosts=["a"], autostart=False)
        await eventually(lambda: pool.info.owner == "a", "a has it")
        await pool.start()
        await eventually(lambda: pool.info.volumes == 1, "its snapshot is kept")
        await pool.place(hosts=("b",) if not gone else ("a", "b"))
        if gone:
            await fleet.drain("a")
        await eventually(lambda: b.manager.pools(active=True), "it is active on b")
        assert [one.name for one in b.manager.pool("images").volumes] == ["x.img"]
        await eventually(lambda: not a.manager.pools(active=True), "a has stopped it")
        await eventually(lambda: list(fleet.store.table.runs.get("images", ())) == ["b"], "it runs on b alone")
        await eventually(lambda: (pool.info.state, pool.info.volumes) == ("running", 1), "all know")


async def test_a_pool_is_left_once_its_work_is_done(
    fleet: Fleet, one_server: NatsBed, fleet_name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A host that is drained while it works on a pool ends the work, and then stops the pool."""
    gate = tmp_path / "gate"
    monkeypatch.setattr(HeldSession, "gate", gate, raising=False)
    async with host(one_server, fleet_name, "a") as a, host(one_server, fleet_name, "b") as b:
        pool = await fleet.define(shared("slow", tmp_path / "none", "held"), hosts=["a"])
        await eventually(lambda: (pool.info.owner, pool.info.state) == ("a", "running"), "it runs on a")
        working = asyncio.ensure_future(pool.delete_volume("a"))
        await eventually(Path(f"{gate}.log").exists, "it has begun")
        await pool.place(hosts=("b",))
        await eventually(lambda: b.manager.pools(active=True), "b has it")
        assert [one.name for one in a.manager.pools(active=True)] == ["slow"]
        gate.touch()
        await working
        await eventually(lambda: not a.manager.pools(active=True), "a has stopped it")
        await eventually(lambda: list(fleet.store.table.runs.get("slow", ())) == ["b"], "it runs on b alone")


async def test_the_end_of_a_run_that_was_not_written(
    fleet: Fleet, one_server: NatsBed, fleet_name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pool whose end could not be written is stopped again, until the engine knows."""
    async with host(one_server, fleet_name, "a") as a, host(one_server, fleet_name, "b") as b:
        pool = await fleet.define(shared("images", folder(tmp_path, "images", "x.img")), hosts=["a"])
        await eventually(lambda: (pool.info.owner, pool.info.state) == ("a", "running"), "it runs on a")
        real, failed = a.store.end_run, list[str]()

        async def end_run(name: str, started_at: float) -> None:
            if not failed:
                failed.append(name)
                raise astore.StoreError("no answer")
            await real(name, started_at)

        monkeypatch.setattr(a.store, "end_run", end_run)
        await pool.place(hosts=("b",))
        await eventually(lambda: failed and b.manager.pools(active=True), "b has it")
        await eventually(lambda: list(fleet.store.table.runs.get("images", ())) == ["b"], "it runs on b alone")
        await eventually(lambda: not a.manager.pools(active=True), "a has stopped it")


async def test_a_start_whose_answer_was_lost(
    fleet: Fleet, one_server: NatsBed, fleet_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pool that was recorded as started, and whose start and its undoing then failed, has its volumes all the same."""
    async with (
        await Fleet.connect(one_server.url, fleet_name, host="a") as client,
        client.agent(seconds=SECONDS, registry=registry(), max_staleness=1e6) as agent,
    ):
        begin_run, end_run, lost = agent.store.begin_run, agent.store.end_run, list[str]()

        async def begins(run: Run, *, persistent: bool, ours: bool = True) -> None:
            await begin_run(run, persistent=persistent, ours=ours)
            if "begin" not in lost:
                lost.append("begin")
                raise astore.StoreError("no answer")

        async def ends(name: str, started_at: float) -> None:
            if "end" not in lost:
                lost.append("end")
                raise astore.StoreError("no answer")
            await end_run(name, started_at)

        monkeypatch.setattr(agent.store, "begin_run", begins)
        monkeypatch.setattr(agent.store, "end_run", ends)
        pool = await fleet.define(shared("images", "/images", "held"))
        await eventually(lambda: pool.info.volumes == 2, "its volumes are read")
        assert lost == ["begin", "end"]


async def test_a_pool_that_is_lost_while_it_begins_anew(
    fleet: Fleet, one_server: NatsBed, fleet_name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pool that comes back, and goes again while it is being stopped here, is active on its owner's host alone."""
    async with host(one_server, fleet_name, "a") as a, host(one_server, fleet_name, "b") as b:
        pool = await fleet.define(shared("images", folder(tmp_path, "images", "x.img")), hosts=["a"])
        await eventually(lambda: (pool.info.owner, pool.info.state) == ("a", "running"), "it runs on a")
        leaving, held, go = a._handover._leave, asyncio.Event(), asyncio.Event()

        async def not_yet(name: str) -> None:
            if go.is_set():
                await leaving(name)

        async def slowly(self: astore.Pool, **_: bool) -> None:
            held.set()
            await go.wait()
            await real(self)

        real = astore.Pool.stop
        monkeypatch.setattr(a._handover, "_leave", not_yet)
        await pool.place(hosts=("b",))
        await eventually(lambda: b.manager.pools(active=True), "b has it, and a has not stopped it")
        await eventually(lambda: "b" in fleet.store.table.runs.get("images", ()), "all know")
        run = fleet.store.table.runs["images"]["b"]
        monkeypatch.setattr(astore.Pool, "stop", slowly)
        await pool.place(hosts=("a",))
        await held.wait()
        await pool.place(hosts=("b",))
        await eventually(lambda: pool.info.owner == "b", "b has it again")
        go.set()
        await eventually(lambda: list(fleet.store.table.runs.get("images", ())) == ["b"], "it runs on b alone")
        await eventually(lambda: not a.manager.pools(active=True), "a has stopped it")
        await eventually(lambda: pool.info.state == "running", "it goes on")
        assert fleet.store.table.runs["images"]["b"].started_at == run.started_at


async def test_an_old_run_does_not_end_the_present_one(
    fleet: Fleet, one_server: NatsBed, fleet_name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a pool that has come back finds in its old run does not have the host that has it active stop it: a run goes on."""
    images = folder(tmp_path, "images", "x.img")
    async with host(one_server, fleet_name, "a") as a, host(one_server, fleet_name, "b") as b:
        pool = await fleet.define(shared("images", images), hosts=["a"])
        await eventually(lambda: (pool.info.owner, pool.info.state) == ("a", "running"), "it runs on a")
        leaving, held, go, asked = a._handover._leave, asyncio.Event(), asyncio.Event(), [0]

        async def not_yet(name: str) -> None:
            if go.is_set():
                await leaving(name)

        async def slowly(self: astore.Pool, **_: bool) -> None:
            if self is a.manager.pool("images"):
                held.set()
                await go.wait()
            await real(self)

        async def kept_since(name: str, host: str, token: int) -> bool:
            found = await kept(name, host, token)
            asked[0] += 1
            return found

        real, kept = astore.Pool.stop, b.store.snapshots.kept_since
        monkeypatch.setattr(a._handover, "_leave", not_yet)
        monkeypatch.setattr(astore.Pool, "stop", slowly)
        monkeypatch.setattr(b.store.snapshots, "kept_since", kept_since)
        await pool.place(hosts=("b",))
        await eventually(lambda: b.manager.pools(active=True), "b has it, and a has not stopped it")
        await eventually(lambda: "b" in fleet.store.table.runs.get("images", ()), "all know")
        run = fleet.store.table.runs["images"]["b"]
        await pool.place(hosts=("a",))
        await held.wait()
        (images / "y.img").touch()
        await a.manager.pool("images").refresh()
        asked[0] = 0
        await eventually(lambda: asked[0] > 20, "b asks whether it has been taken over")
        assert b.manager.pools(active=True)
        go.set()
        await eventually(lambda: list(fleet.store.table.runs.get("images", ())) == ["a"], "it runs on a alone")
        assert fleet.store.table.runs["images"]["a"].started_at == run.started_at
        await eventually(lambda: (pool.info.state, pool.info.volumes) == ("running", 2), "it goes on")


@pytest.mark.parametrize("taken", [True, False])
async def test_events_of_a_pool_that_comes_back(
    taken: bool, fleet: Fleet, one_server: NatsBed, fleet_name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a run saw while its pool was another host's is told once: by that host, or by this one if that host never had it."""
    images = folder(tmp_path, "images", "x.img")
    async with (
        fleet.events(since=0) as events,
        host(one_server, fleet_name, "a") as a,
        host(one_server, fleet_name, "b") as b,
    ):
        pool = await fleet.define(shared("images", images), hosts=["a"])
        other = await fleet.define(shared("other", folder(tmp_path, "other")), hosts=["a"])
        await eventually(lambda: {pool.info.owner, other.info.owner} == {"a"}, "a has them")
        await eventually(lambda: (pool.info.state, pool.info.volumes) == ("running", 1), "it runs on a")
        leaving, beginning, go = a._handover._leave, b._handover._begin, asyncio.Event()

        async def not_yet(name: str) -> None:
            if go.is_set():
                await leaving(name)

        async def perhaps(name: str) -> None:
            if taken or name != "images":
                await beginning(name)

        monkeypatch.setattr(a._handover, "_leave", not_yet)
        monkeypatch.setattr(b._handover, "_begin", perhaps)
        await pool.place(hosts=("b",))
        await eventually(lambda: a._handover.outdated("images") and pool.info.owner == "b", "b has it")
        if taken:
            await eventually(lambda: "b" in fleet.store.table.runs.get("images", ()), "b has it active")
            await eventually(lambda: b.manager.pools(active=True) and b._ready("images"), "it has begun on b")
        (images / "y.img").touch()
        await a.manager.pool("images").refresh()
        if taken:
            await b.manager.pool("images").refresh()
        (tmp_path / "other" / "z.img").touch()
        await a.manager.pool("other").refresh()
        seen = await until(events, astore.VolumeAdded, "z.img")
        assert ("y.img" in [getattr(one.event, "name", "") for one in seen]) <= taken, "no other pool waits"
        await pool.place(hosts=("a",))
        go.set()
        await eventually(lambda: a._ready("images"), "it has begun on a")
        await a.manager.pool("images").refresh()
        (images / "last.img").touch()
        await pool.refresh(timeout=60)
        seen += await until(events, astore.VolumeAdded, "last.img")
        told = [
            (type(one.event).__name__, one.event.name)
            for one in seen
            if isinstance(one.event, astore.events.VolumeEvent)
        ]
        assert told.count(("VolumeAdded", "y.img")) == 1
        assert told.count(("VolumeAdded", "x.img")) == 1
        assert [kind for kind, _ in told if kind == "VolumeRemoved"] == []


async def test_jobs(fleet: Fleet, one_server: NatsBed, fleet_name: str, tmp_path: Path) -> None:
    """Verbs are done on the pool's host, with results and errors as locally."""
    async with host(one_server, fleet_name, "a"):
        pool = await fleet.define(shared("images", folder(tmp_path, "images")))
        await eventually(lambda: pool.info.state == "running", "it runs")
        made = await pool.create_volume(astore.VolumeDef(name="a.raw", capacity=1 << 20))
        assert (made.name, made.capacity, (tmp_path / "images" / "a.raw").stat().st_size) == ("a.raw", 1 << 20, 1 << 20)
        assert (await pool.resize_volume("a.raw", 2 << 20)).capacity == 2 << 20
        copied = await pool.copy_volume("a.raw", astore.VolumeDef(name="b.raw"))
        assert copied.capacity == 2 << 20
        told: list[int] = []
        (tmp_path / "images" / "b.raw").write_bytes(b"x" * (16 << 20))
        await pool.refresh()
        await pool.wipe_volume("b.raw", on_progress=lambda done, total: told.append(done))
        assert told, "the last progress is told although the work takes less time than lies between two reports"
        assert told == sorted(told)
        assert 0 < told[-1] <= 16 << 20
        await pool.delete_volume("b.raw")
        with pytest.raises(astore.VolumeNotFoundError) as gone:
            await pool.delete_volume("b.raw")
        assert "b.raw" in str(gone.value)
        with pytest.raises(astore.VolumeExistsError) as there:
            await pool.create_volume(astore.VolumeDef(name="a.raw", capacity=1))
        assert there.value.pool == "images"
        with pytest.raises(astore.DefinitionError):
            await pool.resize_volume("a.raw", 1)
        (tmp_path / "images" / "c").write_bytes(b"")
        assert (await pool.refresh()).added in (("c",), ())  # where the watch has seen it before
        await eventually(lambda: pool.info.volumes == 2, "the snapshot")
        await pool.stop()
        with pytest.raises(astore.InvalidStateError):
            await pool.refresh()
        await pool.start()
        report = await fleet.refresh_all()
        assert [one.pool for one in report.pools] == ["images"]
        assert not report.failed
