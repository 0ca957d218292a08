"""Starting, stopping, building and deleting: what may follow what, and what is left when something fails."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from core_fakes import FakeBackend, FakeSession, cancelling, eventually, fake, fake_registry, in_use, names, steps

import astore
import astore.pools.pool
import astore.pools.refresher
from astore.backend import Context
from astore.events import PoolBuilt, PoolDeleted, PoolEvent, PoolStateChanged
from astore.model import PoolDef, PoolState


@pytest.fixture
async def pool(manager: astore.Manager) -> astore.Pool:
    """A defined pool, not started."""
    return await manager.define(fake("pool"))


def assert_nothing_left(manager: astore.Manager, backend: FakeBackend) -> None:
    """No session, no use of the backend, no lane but the state folder's, and no file of a running pool."""
    assert backend.open_sessions == []
    assert in_use(manager) == {}
    assert [lane.name for lane in manager.statistics().lanes.lanes] == [f"state folder {manager.state_dir}"]
    assert not list(manager.state_dir.glob("run/*"))


async def test_what_may_follow_what(pool: astore.Pool) -> None:
    """What does not fit the state is refused, naming pool, state and operation, and changes nothing."""
    for operation, call in (("stop", pool.stop), ("refresh", pool.refresh)):
        with pytest.raises(astore.InvalidStateError, match="'pool' is inactive: start it first") as caught:
            await call()
        assert (caught.value.pool, caught.value.state, caught.value.operation) == ("pool", "inactive", operation)
    with pytest.raises(astore.InvalidStateError):
        await pool.refresh("a")
    await pool.start()
    for call, words in (
        (pool.start, "cannot start it now$"),
        (pool.build, "cannot build it now; stop it first"),
        (pool.delete, "cannot delete it now; stop it first"),
        (pool.undefine, "cannot undefine it now; stop it first"),
    ):
        with pytest.raises(astore.InvalidStateError, match=words):
            await call()
    assert pool.state is PoolState.RUNNING
    await pool.stop()
    await pool.undefine()
    for call in (pool.start, pool.build, pool.delete, pool.undefine):
        with pytest.raises(astore.PoolNotFoundError, match="no pool 'pool' any more"):
            await call()


async def test_building_and_deleting(manager: astore.Manager, pool: astore.Pool, backend: FakeBackend) -> None:
    """A pool that is being built says so; both are told, and neither starts it."""
    async with manager.events(kinds={PoolStateChanged, PoolBuilt, PoolDeleted}) as events:
        hold = backend.hold("build")
        building = asyncio.ensure_future(pool.build())
        await hold.reached()
        assert (pool.state, pool.active) == (PoolState.BUILDING, False)
        starting = asyncio.ensure_future(pool.start())
        await steps(5)
        assert not starting.done()  # it waits for the build
        hold.release()
        await building
        await starting
        await pool.stop()
        await pool.delete()
        told = [events.receive_nowait() for _ in range(6)]
        assert [type(event).__name__ for event in told] == [
            "PoolStateChanged",
            "PoolStateChanged",
            "PoolBuilt",
            "PoolStateChanged",
            "PoolStateChanged",
            "PoolDeleted",
        ]
    assert (pool.state, pool.persistent) == (PoolState.INACTIVE, True)
    backend.fail("build", OSError(28, "No space left"))
    with pytest.raises(astore.PoolInaccessibleError, match="pool 'pool': build: No space left"):
        await pool.start(build=True)
    assert isinstance(pool.error, astore.PoolInaccessibleError)
    backend.fail("delete", astore.StorageError("not empty", errno=39, pool="pool"))
    with pytest.raises(astore.StorageError, match=r"^not empty$"):
        await pool.delete()
    assert_nothing_left(manager, backend)


async def test_what_a_backend_cannot(manager: astore.Manager, tmp_path: Path) -> None:
    """An operation that the backend lacks is refused, naming pool, type and operation."""

    class Little(astore.Backend):
        type = "little"

        def check(self, definition: astore.PoolDef) -> astore.PoolDef:
            return definition

        def source_key(self, definition: astore.PoolDef) -> tuple[tuple[str, str], ...]:
            return ()

        async def open(self, definition: astore.PoolDef, context: astore.Context) -> astore.PoolSession:
            raise OSError(2, "nothing there")

    manager.registry.register(Little)
    pool = await manager.define(fake("p", type="little"))
    with pytest.raises(astore.PoolInaccessibleError, match="nothing there"):
        await pool.start(build=True)  # there is nothing to build, which is no error, as in libvirt
    for operation, call in (("build", pool.build), ("delete", pool.delete)):
        with pytest.raises(astore.UnsupportedOperationError) as caught:
            await call()
        assert (caught.value.pool, caught.value.type, caught.value.operation) == ("p", "little", operation)
        assert str(caught.value) == f"pool 'p': pools of type 'little' do not support {operation!r}"
    with pytest.raises(astore.UnsupportedOperationError, match=r"^pools of type 'little' do not support 'discover'"):
        await manager.discover("little")
    assert pool.abilities() == ()


@pytest.mark.parametrize("operation", ["check", "open", "refresh"])
async def test_a_start_that_fails(
    manager: astore.Manager, pool: astore.Pool, backend: FakeBackend, operation: str
) -> None:
    """It leaves an inactive pool that says why, and nothing else; the next start may be better."""
    backend.fail(operation, KeyError("oops"), "pool")
    with pytest.raises(astore.AstoreError, match="oops") as caught:
        await pool.start()
    assert (pool.state, pool.error, pool.volumes) == (PoolState.INACTIVE, caught.value, ())
    assert "oops" in (pool.info.error or "")
    assert_nothing_left(manager, backend)
    assert await manager.start_all(autostart_only=False) == {"pool": pool.error}
    backend.fail(operation, None, "pool")
    await pool.start()
    assert (pool.error, names(pool)) == (None, ["a", "b", "c"])


async def test_a_start_whose_note_cannot_be_written(
    manager: astore.Manager, pool: astore.Pool, backend: FakeBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pool is not started if it cannot be noted that it is: stopped again, as if nothing had been."""

    async def full(*_: Any, **__: Any) -> None:
        raise astore.StoreError("no space left", errno=28)

    monkeypatch.setattr(manager._keeper._store, "begin_run", full)
    with pytest.raises(astore.StoreError, match="no space left"):
        await pool.start()
    assert (pool.state, backend.count("stop"), backend.count("refresh")) == (PoolState.INACTIVE, 1, 0)
    assert_nothing_left(manager, backend)


async def test_a_start_that_is_late(manager: astore.Manager, pool: astore.Pool, backend: FakeBackend) -> None:
    """A deadline that passes while connecting or while looking is a TimeoutError, and the pool is not started."""
    for operation in ("open", "refresh"):
        hold = backend.hold(operation)
        for timeout in (0.02, 0.2, 2.0, 20.0):  # a busy machine may be late before that
            with pytest.raises(astore.LaneTimeoutError):
                await pool.start(timeout=timeout)
            assert pool.state is PoolState.INACTIVE
            assert_nothing_left(manager, backend)
            if hold.arrived:
                break
        assert hold.arrived == 1
        backend.unhold()
    await pool.start(timeout=60)


async def test_started_without_a_look(pool: astore.Pool, backend: FakeBackend) -> None:
    """``refresh=False`` starts a pool that shows nothing until it is looked at."""
    await pool.start(refresh=False)
    assert (pool.state, pool.volumes, backend.count("refresh")) == (PoolState.RUNNING, (), 0)
    with pytest.raises(astore.VolumeNotFoundError, match="'pool' has no volume 'a'"):
        pool.volume("a")
    await pool.refresh()
    handle = pool.volume("a")
    assert handle == pool.volume("a")
    assert handle != pool.volume("b")
    assert len({handle, pool.volume("a"), pool.volume("b")}) == 2
    assert (handle.key, handle.path, handle.info.name) == ("/pool/a", "/pool/a", "a")
    await pool.stop()
    with pytest.raises(astore.VolumeNotFoundError):
        _ = handle.info


async def test_nobody_refreshes_what_is_being_given_up(
    manager: astore.Manager, pool: astore.Pool, backend: FakeBackend
) -> None:
    """While a pool whose first look failed is stopped again, no refresh begins: it would mount what is being unmounted."""
    backend.fail("refresh", OSError(5, "broken"))
    hold = backend.hold("stop")
    starting = asyncio.ensure_future(pool.start())
    await hold.reached()
    backend.fail("refresh", None)
    with pytest.raises(astore.InvalidStateError, match="is being stopped"):
        await pool.refresh()
    assert backend.count("refresh") == 1
    hold.release()
    with pytest.raises(astore.PoolInaccessibleError, match="broken"):
        await starting
    assert_nothing_left(manager, backend)


async def test_a_start_given_up_beside_another_refresh(
    manager: astore.Manager, pool: astore.Pool, backend: FakeBackend
) -> None:
    """A start that is cancelled ends the look that others joined, and they are told why."""
    hold = backend.hold("refresh")
    starting = asyncio.ensure_future(pool.start())
    await hold.reached()
    other = asyncio.ensure_future(pool.refresh())
    await steps(5)
    await cancelling(starting)
    with pytest.raises(astore.InvalidStateError, match="given up"):
        await other
    assert pool.state is PoolState.INACTIVE
    assert_nothing_left(manager, backend)


# ---------------------------------------------------------------------------------------------------- stopping


async def test_a_stop_beside_refreshes(manager: astore.Manager, pool: astore.Pool, backend: FakeBackend) -> None:
    """Refreshes under way end and are told why; none begins while it is being stopped."""
    await pool.start()
    hold, stop = backend.hold("refresh"), backend.hold("stop")
    refreshes = [asyncio.ensure_future(pool.refresh(full=full)) for full in (False, False, True)]
    await hold.reached()
    stopping = asyncio.ensure_future(pool.stop())
    await stop.reached()
    for name in (None, "a"):
        with pytest.raises(astore.InvalidStateError, match="'pool' is being stopped"):
            await pool.refresh(name)
    stop.release()
    await stopping
    for refresh in refreshes:
        with pytest.raises(astore.InvalidStateError):
            await refresh
    assert (backend.count("refresh"), pool.state, pool.volumes) == (2, PoolState.INACTIVE, ())
    assert_nothing_left(manager, backend)


async def test_a_stop_that_fails(manager: astore.Manager, pool: astore.Pool, backend: FakeBackend) -> None:
    """The pool stays active and works; by force it goes, whatever the storage says."""
    await pool.start()
    backend.fail("stop", OSError(16, "target is busy"))
    with pytest.raises(astore.PoolInaccessibleError, match="pool 'pool': stop: target is busy"):
        await pool.stop()
    assert pool.active
    assert (await pool.refresh()).unchanged == 3
    await pool.stop(force=True)
    assert pool.state is PoolState.INACTIVE
    assert_nothing_left(manager, backend)


@pytest.mark.parametrize("cuts", [False, True])
async def test_a_stop_by_force(
    manager: astore.Manager, pool: astore.Pool, backend: FakeBackend, cuts: bool, impatient: None
) -> None:
    """Storage that hangs is cut loose where the backend can, and given up after a while where it cannot."""

    class Cuts(FakeSession):
        async def cut_loose(self) -> None:
            await self.backend.at("cut_loose", self.context.name)

    if cuts:
        backend.session_class = Cuts
    await pool.start()
    if cuts:
        assert "stop-force" in pool.abilities()
        backend.fail("cut_loose", OSError(5, "no"))
    backend.hold("stop")
    backend.hold("aclose")
    refresh = asyncio.ensure_future(pool.refresh())
    await asyncio.wait_for(pool.stop(force=True), 60)
    await asyncio.wait([refresh])
    assert (backend.count("stop"), backend.count("cut_loose")) == ((0, 1) if cuts else (1, 0))
    assert pool.state is PoolState.INACTIVE
    assert_nothing_left(manager, backend)


async def test_a_session_whose_close_fails(manager: astore.Manager, pool: astore.Pool, backend: FakeBackend) -> None:
    """What goes wrong while a session is closed is nobody's problem any more."""
    await pool.start()
    backend.fail("aclose", RuntimeError("cannot even close"))
    await pool.stop()
    assert pool.state is PoolState.INACTIVE
    assert_nothing_left(manager, backend)


async def test_stopping_what_cannot_be_attached(tmp_path: Path, backend: FakeBackend, impatient: None) -> None:
    """A pool that an earlier Manager started, and whose source does not answer now, stops: nothing of it is left to be let
    go of. Where something is outside of processes, such as a mount, it is stopped by force only.
    """

    class Mounts(FakeBackend):
        async def cut_loose(self, definition: PoolDef, context: Context) -> None:
            await self.at("cut_loose", context.name)

    backend.fail("open", OSError(113, "No route to host"))
    mounts = Mounts()
    for one in (backend, mounts):
        one.fail("open", None)
        async with astore.Manager(tmp_path / "state", registry=fake_registry(one)) as manager:
            await (await manager.define(fake("pool"))).start()
        one.fail("open", OSError(113, "No route to host"))
        async with astore.Manager(tmp_path / "state", registry=fake_registry(one)) as manager:
            pool = manager.pool("pool")
            assert pool.active
            if one is mounts:
                with pytest.raises(astore.PoolInaccessibleError, match="pool 'pool': stop: No route to host"):
                    await pool.stop()
                assert pool.active
                await pool.stop(force=True)
                assert one.count("cut_loose") == 1
            else:
                await pool.stop()
            assert pool.state is PoolState.INACTIVE
            assert_nothing_left(manager, one)
    backend.fail("open", None)
    async with astore.Manager(tmp_path / "state", registry=fake_registry(backend)) as manager:
        await manager.pool("pool").start()
    async with astore.Manager(tmp_path / "state", registry=fake_registry(backend)) as manager:
        pool = manager.pool("pool")
        assert (pool.active, names(pool)) == (True, ["a", "b", "c"])
        backend.hold("open")
        await asyncio.wait_for(pool.stop(force=True), 60)
        assert pool.state is PoolState.INACTIVE
        assert_nothing_left(manager, backend)


async def test_an_attachment_that_outlives_its_pool(tmp_path: Path, backend: FakeBackend, impatient: None) -> None:
    """A connection that comes at last, when the pool was stopped by force and started again, is closed at once."""
    async with astore.Manager(tmp_path / "state", registry=fake_registry(backend)) as manager:
        await (await manager.define(fake("pool"))).start()
    async with astore.Manager(tmp_path / "state", registry=fake_registry(backend)) as manager:
        pool = manager.pool("pool")
        hold = backend.hold("open")
        late = asyncio.ensure_future(pool.refresh("a"))
        await hold.reached()
        await pool.stop(force=True)
        backend._holds.clear()
        await pool.start()
        (mine,) = backend.open_sessions
        hold.release()
        with pytest.raises(astore.InvalidStateError):
            await late
        assert backend.open_sessions == [mine]
        assert in_use(manager) == {"fake": 1}
        assert (pool.state, (await pool.refresh()).unchanged) == (PoolState.RUNNING, 3)
        await pool.stop()
        assert_nothing_left(manager, backend)


async def test_events_of_failures(manager: astore.Manager, pool: astore.Pool, backend: FakeBackend) -> None:
    """A start whose first look fails is told as it was: started, inaccessible and why, stopped."""
    backend.fail("refresh", OSError(5, "broken"))
    async with manager.events(kinds={PoolEvent}) as events:
        with pytest.raises(OSError):
            await pool.start()
        told = []
        while (event := events.receive_nowait()) is not None:
            told.append((type(event).__name__, getattr(event, "new", None), getattr(event, "reason", None)))
    why = "pool 'pool': refresh: broken"
    assert told == [
        ("PoolStateChanged", "running", None),
        ("PoolStarted", None, None),
        ("PoolStateChanged", "inaccessible", why),
        ("PoolStateChanged", "inactive", None),
        ("PoolStopped", None, None),
        ("PoolStartFailed", None, why),
    ]
    await eventually(lambda: pool.state is PoolState.INACTIVE)
