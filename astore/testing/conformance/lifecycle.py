"""Checks of a pool's life from its definition to its end, and of the operations refused on the way."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec
import pytest

from astore.backend import Backend, BuildsPools, DeletesPools, DiscoversSources
from astore.errors import (
    AstoreError,
    BackendInUseError,
    InvalidStateError,
    ManagerClosedError,
    PoolNotFoundError,
    SourceConflictError,
    UnsupportedOperationError,
    VolumeNotFoundError,
)
from astore.events import PoolBuilt, PoolDeleted, PoolEvent
from astore.manager import Manager
from astore.model import Permissions, PoolDef, PoolState
from astore.pools.pool import Pool
from astore.testing.conformance.base import ConformanceBase, NewSource, broken, require, start_with
from astore.testing.conformance.source import BREAK, SourceUnderTest, raw, renamed


class LifecycleChecks(ConformanceBase):
    """define, start, stop, build, delete, undefine."""

    async def test_life_of_a_pool(self, manager: Manager, source: SourceUnderTest) -> None:
        """State and lists are right at each point: defined, started, stopped, started again, undefined."""
        name = source.definition.name
        pool = await manager.define(source.definition)
        assert (pool.state, pool.active, pool.persistent, pool.autostart) == (PoolState.INACTIVE, False, True, False)
        assert manager.pools() == manager.pools(active=False) == [pool]
        assert manager.pool(name) is manager.pool_by_uuid(pool.uuid) is pool
        for _ in range(2):
            await start_with(pool, source, {"a.img": raw()})
            assert (pool.state, pool.error) == (PoolState.RUNNING, None)
            assert [volume.name for volume in pool.volumes] == ["a.img"]
            assert manager.pools(active=True) == [pool]
            await pool.stop()
            assert (pool.state, pool.volumes) == (PoolState.INACTIVE, ())
            with pytest.raises(VolumeNotFoundError):
                pool.volume("a.img")
        await pool.undefine()
        assert manager.pools() == []
        with pytest.raises(PoolNotFoundError):
            manager.pool(name)

    async def test_refused_while_active(self, pool: Pool) -> None:
        """An active pool is not started again, built, deleted or undefined; the error names pool, state and operation."""
        await pool.start()
        calls: dict[str, Callable[[], Awaitable[None]]] = {
            "start": pool.start,
            "build": pool.build,
            "delete": pool.delete,
            "undefine": pool.undefine,
        }
        for operation, call in calls.items():
            with pytest.raises(InvalidStateError) as caught:
                await call()
            assert (caught.value.pool, caught.value.state) == (pool.name, PoolState.RUNNING)
            assert caught.value.operation == operation
            assert pool.name in str(caught.value)
        assert pool.state is PoolState.RUNNING
        await pool.refresh()

    async def test_refused_while_inactive(self, pool: Pool) -> None:
        """An inactive pool is not stopped or refreshed."""
        for operation, call in (("stop", pool.stop), ("refresh", pool.refresh)):
            with pytest.raises(InvalidStateError) as caught:
                await call()
            assert (caught.value.pool, caught.value.operation) == (pool.name, operation)
        assert pool.state is PoolState.INACTIVE

    async def test_source_belongs_to_one_pool(
        self, manager: Manager, pool: Pool, source: SourceUnderTest, new_source: NewSource
    ) -> None:
        """A second pool on the same source is refused by naming the first and the field; one on another source is not."""
        with pytest.raises(SourceConflictError) as caught:
            await manager.define(renamed(source.definition, "second"))
        assert caught.value.other == pool.name
        assert caught.value.field
        assert pool.name in str(caught.value)
        with pytest.raises(SourceConflictError):
            await manager.create(renamed(source.definition, "second"))
        assert manager.pools() == [pool]
        other = await manager.define((await new_source()).definition)
        assert {known.name for known in manager.pools()} == {pool.name, other.name}

    async def test_one_name_is_one_uuid(self, manager: Manager, pool: Pool, new_source: NewSource) -> None:
        """Neither another pool's name nor its uuid can be taken."""
        other = (await new_source()).definition
        with pytest.raises(SourceConflictError):
            await manager.define(msgspec.structs.replace(other, uuid=pool.uuid))
        taken = msgspec.structs.replace(other, name=pool.name, uuid="12345678-1234-4234-8234-123456789abc")
        with pytest.raises(SourceConflictError):
            await manager.define(taken)
        assert manager.pools() == [pool]

    async def test_defined_anew_while_active(self, manager: Manager, pool: Pool, source: SourceUnderTest) -> None:
        """A new definition of an active pool takes effect at its next start."""
        await start_with(pool, source, {"a.img": raw()})
        running = pool.definition
        permissions = Permissions(mode=0o750)
        target = msgspec.structs.replace(source.definition.target, permissions=permissions)
        again = await manager.define(msgspec.structs.replace(source.definition, target=target))
        assert again is pool
        assert pool.definition == running
        await pool.refresh()
        await pool.stop()
        await pool.start()
        assert [volume.name for volume in pool.volumes] == ["a.img"]

    async def test_transient(self, manager: Manager, source: SourceUnderTest) -> None:
        """A pool that was created and not defined is gone when it is stopped, and cannot be started automatically."""
        await source.put("a.img", raw())
        await source.settle()
        pool = await manager.create(source.definition)
        assert (pool.state, pool.persistent) == (PoolState.RUNNING, False)
        assert [volume.name for volume in pool.volumes] == ["a.img"]
        with pytest.raises(InvalidStateError):
            await pool.set_autostart(True)
        await pool.stop()
        assert manager.pools() == []
        with pytest.raises(PoolNotFoundError):
            await pool.refresh()

    async def test_autostart(self, manager: Manager, pool: Pool, new_source: NewSource) -> None:
        """``start_all`` starts the pools that are marked for it, and those alone."""
        other = await manager.define((await new_source()).definition)
        await pool.set_autostart(True)
        assert manager.pools(autostart=True) == [pool]
        assert await manager.start_all() == {pool.name: None}
        assert (pool.state, other.state) == (PoolState.RUNNING, PoolState.INACTIVE)
        assert await manager.start_all(autostart_only=False) == {other.name: None}

    async def test_build_and_delete(self, manager: Manager, pool: Pool, backend: Backend) -> None:
        """Deleted, the pool cannot be started until it is built again; a backend that cannot says so by name."""
        for operation, ability, call in (
            ("delete", DeletesPools, pool.delete),
            ("build", BuildsPools, pool.build),
        ):
            if not isinstance(backend, ability):
                with pytest.raises(UnsupportedOperationError) as caught:
                    await call()
                assert (caught.value.pool, caught.value.type) == (pool.name, pool.type)
                assert caught.value.operation == operation
        if not (isinstance(backend, DeletesPools) and isinstance(backend, BuildsPools)):
            return
        async with manager.events(pools={pool.name}, kinds={PoolBuilt, PoolDeleted}) as events:
            await pool.delete()
            assert pool.state is PoolState.INACTIVE
            with pytest.raises(OSError):
                await pool.start()
            assert pool.state is PoolState.INACTIVE
            await pool.build()
            await pool.build()
            assert pool.state is PoolState.INACTIVE
            await pool.start()
            await pool.stop()
            await pool.delete()
            await pool.start(build=True)
            told: list[type[PoolEvent]] = []
            while (event := events.receive_nowait()) is not None:
                assert isinstance(event, PoolEvent)
                told.append(type(event))
            assert told == [PoolDeleted, PoolBuilt, PoolBuilt, PoolDeleted, PoolBuilt]

    async def test_delete_spares_what_is_in_use(self, pool: Pool, source: SourceUnderTest, backend: Backend) -> None:
        """The storage of a pool is not destroyed with volumes in it."""
        if isinstance(backend, DeletesPools):
            await start_with(pool, source, {"a.img": raw()})
            await pool.stop()
            try:
                await pool.delete()  # what it destroys may be no more than the place where the storage is seen
            except (OSError, AstoreError):
                assert pool.state is PoolState.INACTIVE
            await pool.start(build=isinstance(backend, BuildsPools))
            assert [volume.name for volume in pool.volumes] == ["a.img"]

    async def test_discovery_where_there_is_none(self, manager: Manager, backend: Backend) -> None:
        """The error of a backend that cannot discover sources names its type and the operation."""
        if not isinstance(backend, DiscoversSources):
            with pytest.raises(UnsupportedOperationError) as caught:
                await manager.discover(backend.type)
            assert (caught.value.type, caught.value.operation) == (backend.type, "discover")

    async def test_start_without_an_answer(self, manager: Manager, pool: Pool, source: SourceUnderTest) -> None:
        """A pool whose source does not answer stays inactive with an error, and starts once the source answers."""
        require(source, BREAK)
        async with broken(source):
            with pytest.raises((OSError, AstoreError)) as caught:
                await pool.start()
            assert pool.name in str(caught.value)
            assert pool.state is PoolState.INACTIVE
            assert pool.error is caught.value
            assert pool.info.error
            with pytest.raises((OSError, AstoreError)):
                await manager.create(source.definition)  # its name is taken; and it does not answer either
            assert manager.pools() == [pool]
        await pool.start()
        assert (pool.state, pool.error) == (PoolState.RUNNING, None)

    async def test_create_without_an_answer(self, manager: Manager, source: SourceUnderTest) -> None:
        """A transient pool that cannot be started leaves nothing."""
        require(source, BREAK)
        async with broken(source):
            with pytest.raises((OSError, AstoreError)):
                await manager.create(source.definition)
        assert manager.pools() == []
        await manager.define(source.definition)

    async def test_backend_is_in_use(self, manager: Manager, pool: Pool) -> None:
        """A backend cannot be unregistered while a pool uses it, and is released when the pool is stopped."""
        await pool.start()
        with pytest.raises(BackendInUseError):
            await manager.registry.unregister(pool.type)
        await pool.stop()
        (info,) = [info for info in manager.registry.backends() if info.type == pool.type]
        assert info.pools == 0
        assert info.status == "ready"

    async def test_starts_and_stops_at_once(self, pool: Pool) -> None:
        """Of several starts at once one does it, and of several stops."""
        for call in (pool.start, pool.stop):
            outcomes = await asyncio.gather(*(call() for _ in range(5)), return_exceptions=True)
            assert outcomes.count(None) == 1
            assert all(outcome is None or isinstance(outcome, InvalidStateError) for outcome in outcomes), outcomes
        assert pool.state is PoolState.INACTIVE

    async def test_many_pools_at_once(self, manager: Manager, new_source: NewSource) -> None:
        """Several pools are started, refreshed and stopped at once."""
        sources = [await new_source() for _ in range(4)]
        pools = [await manager.define(source.definition) for source in sources]
        await asyncio.gather(
            *(start_with(pool, source, {"a.img": raw()}) for pool, source in zip(pools, sources, strict=True))
        )
        report = await manager.refresh_all()
        assert [outcome.pool for outcome in report.pools] == sorted(pool.name for pool in pools)
        assert not report.failed
        assert all(outcome.unchanged == 1 for outcome in report.pools)
        assert len({pool.volumes[0].key for pool in pools}) == 4, "one key, two volumes"
        for pool in pools:
            assert manager.volume_by_key(pool.volumes[0].key).pool is pool
            assert manager.volume_by_path(pool.volumes[0].path).pool is pool
        await asyncio.gather(*(pool.stop() for pool in pools))
        assert manager.pools(active=True) == []

    async def test_forced_stop(self, pool: Pool, source: SourceUnderTest) -> None:
        """Stopped by force, a healthy pool is stopped, and can be started again."""
        await start_with(pool, source, {"a.img": raw()})
        await pool.stop(force=True)
        assert pool.state is PoolState.INACTIVE
        await pool.start()
        assert [volume.name for volume in pool.volumes] == ["a.img"]

    async def test_forced_stop_without_an_answer(self, pool: Pool, source: SourceUnderTest) -> None:
        """Stopping by force also stops a pool whose source does not answer."""
        require(source, BREAK)
        await start_with(pool, source, {"a.img": raw()})
        async with broken(source):
            await pool.stop(force=True)
            assert pool.state is PoolState.INACTIVE
        await pool.start()
        assert [volume.name for volume in pool.volumes] == ["a.img"]

    async def test_closed_twice(self, tmp_path: Path, source: SourceUnderTest) -> None:
        """A Manager may be closed twice; using it or its pools afterwards raises."""
        manager = self.make_manager(tmp_path / "closed")
        async with manager:
            pool = await manager.create(source.definition)
            await manager.aclose()
            await manager.aclose()
            for call in (pool.refresh, pool.stop, pool.start):
                with pytest.raises(ManagerClosedError):
                    await call()
        async with manager:
            await manager.pool(source.definition.name).stop()

    async def test_definition_is_libvirts_xml(self, manager: Manager, pool: Pool, source: SourceUnderTest) -> None:
        """The pool's document can be read again, says what the pool has, and defines the same pool."""
        await start_with(pool, source, {"a.img": raw()})
        again = PoolDef.from_xml(pool.to_xml())
        assert (again.name, again.uuid, again.type) == (pool.name, pool.uuid, pool.type)
        assert str(pool.info.capacity) in pool.to_xml()
        assert await manager.define(pool.to_xml(inactive=True)) is pool
