"""Work that outlives its pool, and a Manager that is closed beside it: nothing is lost, left behind, or untrue."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from core_fakes import FakeBackend, eventually, fake, fake_registry, in_use, started, steps, volume
from image_heads import VALID

import astore
from astore.model import PoolDef, PoolState, VolumeDef

Make = Callable[[], astore.Manager]


@pytest.fixture
def make(tmp_path: Path, backend: FakeBackend) -> Make:
    """Makes Managers on one state folder, with one registry."""
    registry = fake_registry(backend)
    return lambda: astore.Manager(tmp_path / "state", registry=registry)


class Stubborn:
    """A refresh that takes its time to be cancelled."""

    def __init__(self) -> None:
        self.cancelled = asyncio.Event()
        self.go_on = asyncio.Event()

    async def __call__(self, *_: Any, **__: Any) -> Any:
        try:
            await asyncio.Event().wait()
        finally:
            self.cancelled.set()
            await self.go_on.wait()


async def test_closed_during_the_first_refresh(make: Make, backend: FakeBackend) -> None:
    """a start whose first refresh is ended by aclose stops the storage, since it says that the pool is inactive."""
    async with make() as manager:
        pool = await manager.define(fake("pool"))
        backend.hold("refresh")
        starting = asyncio.ensure_future(pool.start())
        await eventually(lambda: backend.count("refresh"))
        await manager.aclose()
        with pytest.raises(astore.AstoreError):
            await starting
        assert backend.count("stop") == 1 or pool.active


@pytest.mark.parametrize("force", [False, True])
async def test_stop_while_the_manager_is_closed(
    manager: astore.Manager,
    pool: astore.Pool,
    make: Make,
    backend: FakeBackend,
    monkeypatch: pytest.MonkeyPatch,
    force: bool,
) -> None:
    """a stop that the Manager's end overtakes before the storage was let go leaves the pool active, or cut loose."""
    cut: list[str] = []

    async def cut_loose(_: Any, definition: PoolDef, context: Any) -> None:
        cut.append(definition.name)

    if force:
        monkeypatch.setattr(type(backend), "cut_loose", cut_loose, raising=False)
    stubborn = Stubborn()
    monkeypatch.setattr(backend.open_sessions[0], "refresh", stubborn)
    refreshing = asyncio.ensure_future(pool.refresh())
    await steps(10)
    stopping = asyncio.ensure_future(pool.stop(force=force))
    await stubborn.cancelled.wait()
    await manager.aclose()
    stubborn.go_on.set()
    found = (await asyncio.gather(stopping, refreshing, return_exceptions=True))[0]
    async with make() as other:
        assert backend.count("stop") or cut or other.pool("pool").active
    assert force or isinstance(found, astore.ManagerClosedError)


async def test_stop_outlasts_the_manager(manager: astore.Manager, pool: astore.Pool, backend: FakeBackend) -> None:
    """while a stop is under way no refresh begins, also where the Manager was closed and opened anew beside it."""
    hold = backend.hold("stop")
    stopping = asyncio.ensure_future(pool.stop())
    await hold.reached()
    await manager.aclose()
    await manager.__aenter__()
    with pytest.raises(astore.InvalidStateError, match="being stopped"):
        await pool.refresh()
    hold.release()
    await asyncio.gather(stopping, return_exceptions=True)
    await manager.aclose()


async def test_nothing_is_left_of_a_stop_that_outlasts_the_manager(
    manager: astore.Manager, pool: astore.Pool, backend: FakeBackend
) -> None:
    """the session and the use of the backend are let go."""
    hold = backend.hold("stop")
    stopping = asyncio.ensure_future(pool.stop())
    await hold.reached()
    await manager.aclose()
    await manager.__aenter__()
    await asyncio.gather(pool.refresh(), return_exceptions=True)
    hold.release()
    await asyncio.gather(stopping, return_exceptions=True)
    assert pool.state is PoolState.INACTIVE
    assert [lane.name for lane in manager.statistics().lanes.lanes] == [f"state folder {manager.state_dir}"]
    assert not backend.open_sessions
    assert in_use(manager) == {}
    await manager.aclose()
    assert not backend.open_sessions


async def test_attaching_by_two_while_the_manager_is_closed(make: Make, backend: FakeBackend) -> None:
    """everybody whose work the Manager's end ended is told that."""
    async with make() as manager:
        await (await manager.define(fake("pool"))).start()
    manager = make()
    await manager.__aenter__()
    pool = manager.pool("pool")
    hold = backend.hold("open")
    looks = [asyncio.ensure_future(pool.refresh(name)) for name in "abc"]
    await hold.reached()
    await manager.aclose()
    hold.release()
    found = await asyncio.gather(*looks, return_exceptions=True)
    assert all(isinstance(one, astore.ManagerClosedError) for one in found)


async def test_lane_of_a_late_attach(make: Make, backend: FakeBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    """an attach that comes to its backend when the pool was stopped leaves no lane."""
    async with make() as manager:
        await (await manager.define(fake("pool"))).start()
    async with make() as manager:
        pool = manager.pool("pool")
        get, go_on = manager.registry.get, asyncio.Event()

        async def slow(type: str) -> Any:
            await go_on.wait()
            return await get(type)

        monkeypatch.setattr(manager.registry, "get", slow)
        late = asyncio.ensure_future(pool.refresh("a"))
        await steps(5)
        await pool.stop(force=True)
        go_on.set()
        await asyncio.gather(late, return_exceptions=True)
        await pool.start()
        await pool.stop()
        left = [lane.name for lane in manager.statistics().lanes.lanes]
        assert left == [one for one in left if "folder" in one], left


async def test_state_in_the_error(manager: astore.Manager, pool: astore.Pool, backend: FakeBackend) -> None:
    """the error of work that outlived the Manager says in which state the pool is."""
    backend.hold("refresh_volume")
    late = asyncio.ensure_future(pool.refresh("a"))
    await eventually(lambda: backend.count("refresh_volume"))
    await manager.aclose()
    backend.unhold()
    (found,) = await asyncio.gather(late, return_exceptions=True)
    assert found.state is pool.state


async def test_look_again_while_being_stopped(
    pool: astore.Pool, backend: FakeBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """a stop that is given up, and a job that failed meanwhile: the record is what the storage has."""
    resizing = asyncio.Event()
    entered = asyncio.Event()

    async def resize_volume(self, info, capacity, *, allocate=False, **_: Any) -> Any:
        entered.set()
        await resizing.wait()
        self.backend.put("a", volume("a", capacity=capacity))
        raise astore.StorageError("broke off", errno=5)

    monkeypatch.setattr(backend.session_class, "resize_volume", resize_volume, raising=False)
    job = asyncio.ensure_future(pool.volume("a").resize(1 << 30))
    await entered.wait()
    hold = backend.hold("stop")
    stopping = asyncio.ensure_future(pool.stop(force=True))
    await hold.reached()
    resizing.set()
    await asyncio.gather(job, return_exceptions=True)
    stopping.cancel()
    await asyncio.gather(stopping, return_exceptions=True)
    assert pool.active
    assert pool.volume("a").info.capacity == 1 << 30
    hold.release()


async def test_copy_error_order(pool: astore.Pool, backend: FakeBackend) -> None:
    """A bad definition is told before a source that is gone."""
    volume = pool.volume("a")
    backend.show("b", "c")
    backend.shows[""].pop("a", None)
    await pool.refresh()
    with pytest.raises(astore.DefinitionError):
        await pool.copy_volume(volume, VolumeDef("no/name"))


async def test_first_refresh_that_cannot_be_cancelled(make: Make, backend: FakeBackend) -> None:
    """The Manager is closed beside it and opened anew: nothing is left."""
    manager = make()
    await manager.__aenter__()
    pool = await manager.define(fake("pool"))

    backend.hold("aclose")
    rhold = backend.hold("refresh")
    starting = asyncio.ensure_future(pool.start())
    await rhold.reached()
    await manager.aclose()
    backend.unhold()
    await asyncio.gather(starting, return_exceptions=True)
    await manager.__aenter__()
    await manager.aclose()
    assert not backend.open_sessions and not in_use(manager)


async def test_inaccessible_by_a_closing(make: Make, backend: FakeBackend) -> None:
    """A refresh that attaches while the Manager closes does not make the pool inaccessible."""
    async with make() as manager:
        await (await manager.define(fake("pool"))).start()
    manager = make()
    await manager.__aenter__()
    pool = manager.pool("pool")
    hold = backend.hold("open")
    late = asyncio.ensure_future(pool.refresh())
    await hold.reached()
    closing = asyncio.ensure_future(manager.aclose())
    await steps(1)
    hold.release()
    await asyncio.gather(late, closing, return_exceptions=True)
    assert pool.state is PoolState.RUNNING


async def test_set_format_beside_a_forced_stop(
    make: Make, backend: FakeBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """a stopped pool does not come to life by work that ends late."""
    closing, go_on = asyncio.Event(), asyncio.Event()

    class File:
        async def pread(self, length, offset):
            return VALID["qcow2-3"]

        async def note_format(self, format):
            return False

    @contextlib.asynccontextmanager
    async def open_volume(self, info, *, write=False):
        yield File()
        closing.set()
        await go_on.wait()

    monkeypatch.setattr(backend.session_class, "open_volume", open_volume, raising=False)
    backend.put("a", volume("a", made="raw", header_format="qcow2"))
    async with make() as manager:
        pool = await started(manager, fake("pool"))
        job = asyncio.ensure_future(pool.volume("a").set_format("qcow2"))
        await closing.wait()
        await pool.stop(force=True)
        go_on.set()
        await asyncio.gather(job, return_exceptions=True)
        found = await asyncio.gather(pool.stop(force=True), return_exceptions=True)
        found = await asyncio.gather(pool.start(), return_exceptions=True)
        assert pool.state is PoolState.RUNNING and found == [None]
