"""Pools are found by uuid, target and source after every change of their definitions, without a look at the others."""

from __future__ import annotations

from pathlib import Path
from uuid import uuid4

import pytest

import astore
from astore.store.local import LocalStore


def folder(name: str, path: Path | str, uuid: str | None = None) -> astore.PoolDef:
    """Make the definition of a dir pool."""
    return astore.PoolDef(type="dir", name=name, uuid=uuid, target=astore.Target(path=str(path)))


@pytest.fixture
async def manager(tmp_path: Path) -> astore.Manager:
    """A Manager that is not entered yet."""
    return astore.Manager(tmp_path / "state")


async def test_a_source_is_free_again(manager: astore.Manager, tmp_path: Path) -> None:
    """A source is taken while a pool is defined by it or runs by it, and free after it is redefined, or undefined."""
    (tmp_path / "one").mkdir()
    async with manager:
        first = await manager.define(folder("first", tmp_path / "one"))
        with pytest.raises(astore.SourceConflictError, match="first"):
            await manager.define(folder("second", tmp_path / "one"))
        await first.start()
        assert manager.pool_by_target(str(tmp_path / "one")) is first
        await manager.define(folder("first", tmp_path / "two"))
        for path in ("one", "two"):
            with pytest.raises(astore.SourceConflictError, match="first"):
                await manager.define(folder("second", tmp_path / path))
        assert manager.pool_by_target(str(tmp_path / "one")) is first
        await first.stop()
        with pytest.raises(astore.PoolNotFoundError):
            manager.pool_by_target(str(tmp_path / "one"))
        second = await manager.define(folder("second", tmp_path / "one"))
        with pytest.raises(astore.SourceConflictError, match="second"):
            await manager.define(folder("first", tmp_path / "one"))
        uuid = second.uuid
        with pytest.raises(astore.SourceConflictError, match="second"):
            await manager.define(folder("third", tmp_path / "three", uuid))
        await second.undefine()
        assert (await manager.define(folder("third", tmp_path / "one", uuid))).uuid == uuid
        assert manager.pool_by_uuid(uuid).name == "third"


async def test_what_another_process_defines(manager: astore.Manager, tmp_path: Path) -> None:
    """Definitions of another Manager are compared as well, also when it replaces or removes them."""
    async with manager, astore.Manager(tmp_path / "state") as other:
        await other.define(folder("theirs", tmp_path / "one"))
        with pytest.raises(astore.SourceConflictError, match="theirs"):
            await manager.define(folder("mine", tmp_path / "one"))
        await other.define(folder("theirs", tmp_path / "two"))
        mine = await manager.define(folder("mine", tmp_path / "one"))
        with pytest.raises(astore.SourceConflictError, match="mine"):
            await other.define(folder("theirs", tmp_path / "one"))
        await other.pool("theirs").undefine()
        with pytest.raises(astore.SourceConflictError, match="mine"):
            await manager.define(folder("more", tmp_path / "one"))
        await manager.define(folder("more", tmp_path / "two"))
        assert (manager.pool_by_uuid(mine.uuid), len(manager.pools())) == (mine, 2)


async def test_a_new_pool_is_compared_by_look_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To define one more pool takes one source, and no read of the others, however many there are."""
    reads: list[object] = []

    class Store(LocalStore):
        """Notes what is read."""

        async def read(self, since: object = None) -> object:  # type: ignore[override]
            """Note it."""
            found = await super().read(since)  # type: ignore[arg-type]
            reads.append(found)
            return found

    sources: list[str] = []
    async with astore.Manager(store=Store(tmp_path / "state")) as manager:
        for number in range(20):
            await manager.define(folder(f"p{number}", tmp_path / str(number), str(uuid4())))
        backend = manager.registry.loaded("dir")
        assert backend is not None
        told = type(backend).source_key

        def source_key(self: object, definition: astore.PoolDef) -> tuple[tuple[str, str], ...]:
            sources.append(definition.name)
            return told(self, definition)  # type: ignore[arg-type]

        monkeypatch.setattr(type(backend), "source_key", source_key)
        await manager.define(folder("last but one", tmp_path / "last but one"))
        sources.clear()
        reads.clear()
        await manager.define(folder("last", tmp_path / "last"))
        assert reads == [None]
        assert sorted(sources) == ["last", "last but one"], "the new one, and the one that had not been compared yet"
