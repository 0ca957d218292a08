"""A Manager on whatever store it is given: two that share one, changes that are cancelled, and others who are faster."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from core_fakes import FakeBackend, cancel_after, fake, fake_registry, names

import astore
from astore.events import PoolDefined, PoolUndefined
from astore.manager import keeper
from astore.model import PoolState
from astore.store.contract import Contents, KeepsSnapshots, OutdatedError, Store
from astore.store.local import LocalStore
from astore.store.memory import MemoryStore

NewStore = Callable[[], Store]


@pytest.fixture(params=["local", "memory"])
def new_store(request: pytest.FixtureRequest, tmp_path: Path) -> NewStore:
    """Gives each Manager a store, all of which are one."""
    if request.param == "local":
        return lambda: LocalStore(tmp_path / "state")
    shared = MemoryStore()
    return lambda: shared


@pytest.fixture
async def manager(new_store: NewStore, backend: FakeBackend) -> AsyncIterator[astore.Manager]:
    """A Manager on the store."""
    async with astore.Manager(store=new_store(), registry=fake_registry(backend)) as manager:
        yield manager


@pytest.fixture
async def other(new_store: NewStore, manager: astore.Manager) -> AsyncIterator[astore.Manager]:
    """Another one."""
    async with astore.Manager(store=new_store(), registry=fake_registry(FakeBackend())) as other:
        yield other


async def test_two_managers(manager: astore.Manager, other: astore.Manager) -> None:
    """What one does is the other's after a reload, snapshots included."""
    assert manager.state_dir is None
    pool = await manager.define(fake("pool"))
    await pool.set_autostart(True)
    await pool.start()
    await manager.create(fake("transient", "/transient"))
    await manager.aclose()
    await other.reload()
    theirs = other.pool("pool")
    assert (theirs.uuid, theirs.state, theirs.autostart) == (pool.uuid, PoolState.RUNNING, True)
    assert names(theirs) == ["a", "b", "c"]
    assert not other.pool("transient").persistent
    await other.pool("transient").stop()
    await theirs.stop()
    await theirs.undefine()
    async with manager:
        assert manager.pools() == []


async def test_defined_at_once(manager: astore.Manager, other: astore.Manager) -> None:
    """Two who define pools of one name or one source at the same moment end with the same list."""
    for number in range(10):
        found = await asyncio.gather(
            manager.define(fake(f"a{number}", f"/{number}")),
            other.define(fake(f"b{number}", f"/{number}")),
            return_exceptions=True,
        )
        assert sorted(type(one).__name__ for one in found) == ["Pool", "SourceConflictError"]
        one, two = await asyncio.gather(
            manager.define(fake(f"c{number}", f"/c{number}")), other.define(fake(f"c{number}", f"/c{number}"))
        )
        assert one.uuid == two.uuid
    await manager.reload()
    await other.reload()
    assert [pool.definition for pool in manager.pools()] == [pool.definition for pool in other.pools()]
    assert len(manager.pools()) == 20


async def test_cancelled(manager: astore.Manager, new_store: NewStore, backend: FakeBackend) -> None:
    """Once a change that was cancelled has raised, its Manager knows what came of it, and has told so."""
    outcomes = set()
    for count in (*range(25), *(50 << more for more in range(12))):  # a busy machine takes more steps for a change
        if count >= 25 and outcomes == {True, False}:
            break
        async with manager.events(kinds={PoolDefined, PoolUndefined}) as events:
            await cancel_after(count, lambda: manager.define(fake("pool")))
            assert await defined(new_store()) == [pool.name for pool in manager.pools()]
            for _ in manager.pools():
                assert isinstance(events.receive_nowait(), PoolDefined)
        outcomes.add(bool(manager.pools()))
        pool = await manager.define(fake("pool"))
        async with manager.events(kinds={PoolUndefined}) as events:
            await cancel_after(count, pool.undefine)
            assert await defined(new_store()) == [pool.name for pool in manager.pools()]
            if not manager.pools():
                assert isinstance(events.receive_nowait(), PoolUndefined)
        for pool in manager.pools():
            await pool.undefine()
    assert outcomes == {True, False}


async def defined(store: Store) -> list[str]:
    """The definitions that a store has."""
    async with astore.Manager(store=store, registry=fake_registry(FakeBackend())) as looking:
        return [pool.name for pool in looking.pools()]


async def test_others_are_faster(manager: astore.Manager, monkeypatch: pytest.MonkeyPatch) -> None:
    """A change is decided anew each time others were faster, and given up after a while."""
    store: Any = manager._keeper._store
    put, refused = store.put, 0

    async def outdated(*args: Any) -> Any:
        nonlocal refused
        refused += 1
        if refused < 4:
            raise OutdatedError("others were faster", errno=11)
        return await put(*args)

    with monkeypatch.context() as busy:
        busy.setattr(store, "put", outdated)
        pool = await manager.define(fake("pool"))
        assert refused == 4
        busy.setattr(keeper, "RETRY_SECONDS", -1.0)
        refused = 0
        with pytest.raises(OutdatedError):
            await manager.define(fake("another", "/another"))
        assert refused == 1
    assert manager.pools() == [pool]


async def test_without_snapshots(backend: FakeBackend) -> None:
    """A store need not keep snapshots: the next Manager looks for itself."""
    inner = MemoryStore()

    class Bare(Store):
        """Hands on what every store can do."""

        name = "bare store"
        open, aclose, read, current = inner.open, inner.aclose, inner.read, inner.current  # type: ignore[assignment]
        put, remove, set_autostart = inner.put, inner.remove, inner.set_autostart  # type: ignore[assignment]
        begin_run, end_run, check_end_run = inner.begin_run, inner.end_run, inner.check_end_run  # type: ignore[assignment]

    store = Bare()
    assert not isinstance(store, KeepsSnapshots)
    async with astore.Manager(store=store, registry=fake_registry(backend)) as manager:
        await (await manager.define(fake("pool"))).start()
    async with astore.Manager(store=store, registry=fake_registry(backend)) as manager:
        pool = manager.pool("pool")
        assert (pool.state, pool.volumes) == (PoolState.RUNNING, ())
        await pool.refresh()
        assert names(pool) == ["a", "b", "c"]
        await pool.stop()


async def test_opened_and_closed(backend: FakeBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Manager opens its store before it reads, closes it when it is left, and when it cannot be entered."""
    calls: list[str] = []

    class Recorded(MemoryStore):
        """Notes its first and its last call."""

        async def open(self, lane: Any) -> None:
            """Note it."""
            calls.append("open")

        async def aclose(self) -> None:
            """Note it."""
            calls.append("aclose")

        async def read(self, since: Any = None) -> Contents | None:
            """Note it."""
            calls.append("read")
            return await super().read(since)

    manager = astore.Manager(store=Recorded(), registry=fake_registry(backend))
    async with manager:
        assert calls == ["open", "read"]
    assert calls == ["open", "read", "aclose"]
    calls.clear()

    async def fail(*_: Any) -> None:
        raise astore.StoreError("it does not answer", errno=5)

    with monkeypatch.context() as failing:
        failing.setattr(Recorded, "read", fail)
        with pytest.raises(astore.StoreError, match="does not answer"):
            await manager.__aenter__()
    assert calls == ["open", "aclose"]
    async with manager:
        assert manager.pools() == []


def test_one_or_the_other(tmp_path: Path) -> None:
    """A folder and a store are too much."""
    with pytest.raises(TypeError, match="a state folder or a store"):
        astore.Manager(tmp_path, store=MemoryStore())


@pytest.fixture
async def building(manager: astore.Manager, other: astore.Manager, backend: FakeBackend) -> AsyncIterator[astore.Pool]:
    """A pool that is being built here, and that the other Manager has undefined and defined anew."""
    pool = await manager.define(fake("pool"))
    await other.reload()
    hold = backend.hold("build")
    busy = asyncio.ensure_future(pool.build())
    await hold.reached()
    await other.pool("pool").undefine()
    await other.define(fake("pool", "/theirs"))
    yield pool
    hold.release()
    await asyncio.gather(busy, return_exceptions=True)


async def test_undefined_while_it_is_busy(
    manager: astore.Manager, other: astore.Manager, building: astore.Pool, backend: FakeBackend
) -> None:
    """Undefining a pool whose name is another one's by now leaves that one alone."""
    await manager.reload()
    backend.unhold()
    with pytest.raises(astore.PoolNotFoundError):
        await building.undefine()
    await other.reload()
    assert other.pool("pool").definition.target.path == "/theirs"
    assert manager.pool("pool").uuid == other.pool("pool").uuid != building.uuid


async def test_defined_while_it_is_busy(
    manager: astore.Manager, other: astore.Manager, building: astore.Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A definition of a pool that another Manager has replaced meanwhile does not replace its own in turn."""
    monkeypatch.setattr(keeper, "RETRY_SECONDS", 0.05)
    theirs = other.pool("pool").uuid
    with pytest.raises(OutdatedError):
        await manager.define(fake("pool", "/mine"))
    await other.reload()
    assert other.pool("pool").uuid == theirs
    assert other.pool("pool").definition.target.path == "/theirs"
