"""Two Managers that get into each other's way: cancelled half-way, started anew elsewhere, at the very same moment."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from core_fakes import FakeBackend, Hold, cancelling, fake, fake_registry, folder_locked, names, started

import astore
from astore.events import PoolUndefined
from astore.model import PoolState


@pytest.fixture
async def other(manager: astore.Manager, tmp_path: Path) -> AsyncIterator[astore.Manager]:
    """Another Manager on the same folder, with a backend of its own, which shows a and b."""
    backend = FakeBackend()
    backend.show("a", "b")
    async with astore.Manager(tmp_path / "state", registry=fake_registry(backend)) as other:
        yield other


def runs(tmp_path: Path) -> list[str]:
    """The pools that are active according to the state folder."""
    return sorted(path.stem for path in (tmp_path / "state" / "run").glob("*.run"))


async def started_halfway(pool: astore.Pool, backend: FakeBackend) -> tuple[asyncio.Future[None], Hold]:
    """A start that waits for its session until the hold is released."""
    hold = backend.hold("open")
    starting = asyncio.ensure_future(pool.start())
    await hold.reached()
    return starting, hold


async def test_a_look_that_was_given_up(manager: astore.Manager, other: astore.Manager) -> None:
    """A start that is cancelled while it reads what others have done leaves that to be read by the next."""
    pool = await manager.define(fake("pool", "/old"))
    await manager.reload()
    await other.define(fake("pool", "/new"))
    store = manager._keeper._store
    read, has_read = store.read, asyncio.Event()

    async def slowly(*args: Any) -> Any:
        found = await read(*args)
        has_read.set()
        await asyncio.Event().wait()
        return found

    with pytest.MonkeyPatch.context() as slow:
        slow.setattr(store, "read", slowly)
        starting = asyncio.ensure_future(pool.start())
        await has_read.wait()
        await cancelling(starting)
    await pool.start()
    assert pool.definition.target.path == "/new"


async def test_given_up_while_a_pool_is_let_go(
    manager: astore.Manager, other: astore.Manager, backend: FakeBackend
) -> None:
    """What others have undefined is gone, also if whoever found it out was cancelled while the session was closed."""
    pool = await started(manager, fake("pool"))
    await other.reload()
    await other.pool("pool").stop()
    await other.pool("pool").undefine()
    hold = backend.hold("aclose")
    async with manager.events(kinds={PoolUndefined}) as events:
        defining = asyncio.ensure_future(manager.define(fake("new", "/new")))
        await hold.reached()
        await cancelling(defining)
        backend.unhold()
        assert manager.pools() == []
        assert isinstance(events.receive_nowait(), PoolUndefined)
    with pytest.raises(astore.PoolNotFoundError):
        await pool.start()


async def test_started_anew_elsewhere(
    manager: astore.Manager, other: astore.Manager, backend: FakeBackend, tmp_path: Path
) -> None:
    """A pool that others have stopped, defined anew and started is here what it is there, after a new session."""
    theirs = await started(other, fake("pool", "/one"))
    await manager.reload()
    mine = manager.pool("pool")
    await mine.refresh()
    assert len(backend.open_sessions) == 1
    await theirs.stop()
    await other.define(fake("pool", "/two"))
    await theirs.start()
    await manager.reload()
    assert (mine.state, mine.definition.target.path) == (PoolState.RUNNING, "/two")
    assert backend.open_sessions == []
    await mine.refresh()
    assert backend.open_sessions[0].definition.target.path == "/two"
    await mine.stop()
    assert runs(tmp_path) == []


async def test_stopped_elsewhere(manager: astore.Manager, other: astore.Manager, backend: FakeBackend) -> None:
    """A pool that others have stopped is stopped here: it is neither stopped again nor in the way of a start."""
    mine = await manager.define(fake("pool"))
    for call in (mine.start, mine.stop, mine.delete, mine.undefine):
        if not mine.active:
            await mine.start()
        await other.reload()
        await other.pool("pool").stop()
        stops = backend.count("stop")
        if call == mine.stop:
            with pytest.raises(astore.InvalidStateError):
                await call()
        else:
            await call()
        assert backend.count("stop") == stops
    assert manager.pools() == []


async def test_both_start_it(
    manager: astore.Manager, other: astore.Manager, backend: FakeBackend, tmp_path: Path
) -> None:
    """One of them does; the other is told, and does not take the storage away from it again."""
    mine = await manager.define(fake("pool"))
    await other.reload()
    theirs = other.pool("pool")
    starting, hold = await started_halfway(mine, backend)
    await theirs.start()
    hold.release()
    with pytest.raises(astore.InvalidStateError, match="was started or undefined by another process meanwhile"):
        await starting
    assert (backend.count("stop"), backend.open_sessions) == (0, [])
    assert runs(tmp_path) == ["pool"]
    await mine.stop()
    assert runs(tmp_path) == []


async def test_a_short_visit(manager: astore.Manager, tmp_path: Path) -> None:
    """Who only looked leaves what others have found out as it is."""
    await started(manager, fake("pool"))
    visitor = astore.Manager(tmp_path / "state", registry=fake_registry(FakeBackend()))
    await visitor.__aenter__()
    assert names(visitor.pool("pool")) == []
    await manager.aclose()
    await visitor.aclose()
    async with astore.Manager(tmp_path / "state", registry=fake_registry(FakeBackend())) as next_one:
        assert names(next_one.pool("pool")) == ["a", "b", "c"]


async def test_defined_while_it_is_stopped(manager: astore.Manager, tmp_path: Path) -> None:
    """A transient pool that ends while its definition waits to be written: a pool that is defined, and can be started."""
    transient = await manager.create(fake("pool"))
    with folder_locked(tmp_path / "state"):
        defining = asyncio.ensure_future(manager.define(fake("pool")))
        await asyncio.sleep(0.1)
        await transient.stop(force=True)
    pool = await defining
    assert manager.pools() == [pool]
    assert pool.persistent
    await pool.start()


async def test_undefined_and_defined_anew_elsewhere(manager: astore.Manager, other: astore.Manager) -> None:
    """Undefining what is another pool by now: that stays."""
    mine = await manager.define(fake("pool"))
    await other.reload()
    theirs = other.pool("pool")
    check = manager._keeper.catch_up

    async def overtaken(pool: Any) -> None:
        await check(pool)
        if theirs in other.pools():
            await theirs.undefine()
            await other.define(fake("pool", "/another"))

    with pytest.MonkeyPatch.context() as late:
        late.setattr(manager._keeper, "catch_up", overtaken)
        with pytest.raises(astore.PoolNotFoundError):
            await mine.undefine()
    assert other.pool("pool").definition.target.path == "/another"
    assert manager.pool("pool").uuid == other.pool("pool").uuid


async def test_a_state_folder_that_is_gone(manager: astore.Manager, tmp_path: Path) -> None:
    """It says nothing of what is active: that goes on, and can be stopped."""
    pool = await started(manager, fake("pool"))
    (tmp_path / "state").rename(tmp_path / "elsewhere")
    await manager.reload()
    assert pool.active
    await pool.stop()
    assert not pool.active


async def test_the_last_moment_before_a_stop(
    manager: astore.Manager, backend: FakeBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between looking for writers and stopping nobody becomes one."""
    pool = await started(manager, fake("pool"))
    check = manager._keeper.check_end_run

    async def checked_late(record: Any) -> None:
        await check(record)
        writing.enter_context(pool.parts.claims.claim("a", "written"))

    with contextlib.ExitStack() as writing:
        monkeypatch.setattr(manager._keeper, "check_end_run", checked_late)
        with pytest.raises(astore.VolumeBusyError):
            await pool.stop()
    monkeypatch.undo()
    await pool.stop()


async def test_another_pool_of_the_name(
    manager: astore.Manager, other: astore.Manager, backend: FakeBackend, tmp_path: Path
) -> None:
    """A pool that others have undefined, or ended, and made anew with another uuid: that one it is here, too."""
    for transient in (False, True):
        make = other.create if transient else other.define
        theirs = await make(fake("pool", "/one"))
        if not transient:
            await theirs.start()
        await manager.reload()
        mine = manager.pool("pool")
        await mine.refresh()
        await theirs.stop()
        if not transient:
            await theirs.undefine()
        theirs = await make(fake("pool", "/two"))
        if not transient:
            await theirs.start()
        await manager.reload()
        await manager.reload(thoroughly=False)
        again = manager.pool("pool")
        assert (again.uuid, again.state, again.definition.target.path) == (theirs.uuid, PoolState.RUNNING, "/two")
        assert mine.uuid != again.uuid
        assert (backend.open_sessions, backend.count("stop")) == ([], 0)
        await theirs.stop()
        if not transient:
            await theirs.undefine()
        await manager.reload()
        assert manager.pools() == []


async def test_defined_here_and_created_there(manager: astore.Manager, other: astore.Manager, tmp_path: Path) -> None:
    """A transient pool and a definition of one name at the same moment: one of them is refused, or they are one."""
    for number in range(10):
        name = f"p{number}"
        found = await asyncio.gather(
            manager.define(fake(name, f"/{name}")), other.create(fake(name, f"/{name}")), return_exceptions=True
        )
        await manager.reload()
        await other.reload()
        assert manager.pool(name).uuid == other.pool(name).uuid
        for one in found:
            assert isinstance(one, (astore.Pool, astore.InvalidStateError, astore.SourceConflictError)), one
        for owner in (manager, other):
            pool = owner.pool(name)
            await owner.reload()
            if pool.active:
                await pool.stop()
        await manager.reload()
        assert runs(tmp_path) == []


async def test_a_transient_pool_is_read_while_it_ends(manager: astore.Manager) -> None:
    """It is not found again by whoever reads the folder just before its file is gone."""
    pool = await manager.create(fake("pool"))
    store = manager._keeper._store
    end, asked, go_on = store.end_run, asyncio.Event(), asyncio.Event()

    async def slowly(*args: Any) -> None:
        asked.set()
        await go_on.wait()
        await end(*args)

    with pytest.MonkeyPatch.context() as slow:
        slow.setattr(store, "end_run", slowly)
        stopping = asyncio.ensure_future(pool.stop())
        await asked.wait()
        await manager.reload()
        assert manager.pools(active=True) == []
        go_on.set()
        await stopping
    await manager.reload()
    assert manager.pools() == []


async def test_undefined_while_it_is_started(
    manager: astore.Manager, other: astore.Manager, backend: FakeBackend, tmp_path: Path
) -> None:
    """A pool that others undefine while its session opens is not started; one that is active goes on as a transient one."""
    mine = await manager.define(fake("pool"))
    await other.reload()
    starting, hold = await started_halfway(mine, backend)
    await other.pool("pool").undefine()
    hold.release()
    with pytest.raises(astore.InvalidStateError, match="started or undefined by another process"):
        await starting
    with pytest.raises(astore.PoolNotFoundError):
        await mine.start()
    assert (runs(tmp_path), backend.open_sessions) == ([], [])
    mine = await started(manager, fake("pool"))
    (tmp_path / "state" / "pools" / "pool.xml").unlink()
    await manager.reload()
    assert (mine.active, mine.persistent) == (True, False)
    await mine.stop()
    assert manager.pools() == []


async def test_a_start_cancelled_beside_another(
    manager: astore.Manager, other: astore.Manager, backend: FakeBackend, tmp_path: Path
) -> None:
    """What another process has started meanwhile is not stopped by the cancelled start."""
    mine = await manager.define(fake("pool"))
    await other.reload()
    starting, hold = await started_halfway(mine, backend)
    await other.pool("pool").start()
    with folder_locked(tmp_path / "state"):
        hold.release()
        await asyncio.sleep(0.1)
        await cancelling(starting)
    assert (backend.count("stop"), backend.open_sessions, runs(tmp_path)) == (0, [], ["pool"])


async def test_a_run_that_cannot_be_read(manager: astore.Manager, other: astore.Manager, tmp_path: Path) -> None:
    """One file of another user's keeps nobody from the other pools; of its own pool nothing is believed."""
    await (await other.define(fake("theirs", "/theirs"))).start()
    await (await other.define(fake("odd", "/odd"))).start()
    path = tmp_path / "state" / "run" / "odd.run"
    path.rename(tmp_path / "kept")
    path.symlink_to(path)
    await manager.reload()
    assert manager.pool("theirs").active
    assert not manager.pool("odd").active
    path.unlink()
    (tmp_path / "kept").rename(path)
    await manager.reload()
    assert manager.pool("odd").active
