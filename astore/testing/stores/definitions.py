"""Checks of definitions and autostart marks, also with two clients at once."""

from __future__ import annotations

import asyncio
import errno
from pathlib import Path

import pytest

from astore.errors import StoreError
from astore.lanes import Lanes
from astore.store.contract import Current, OutdatedError, Store
from astore.testing.stores.base import (
    WRITERS,
    Connect,
    StoreSuiteBase,
    contents,
    definition,
    held,
    put,
    remove,
    revision,
    run,
)

NAMES = [
    "a",
    "b c",
    ".hidden",
    "a.b",
    "*",
    "UPPER",
    "upper",
    "ünï 日本",
    "'\"<&>;$(x)\\",
    "tmp.tmp",
    "x.xml",
    "y" * 200,
]


class DefinitionChecks(StoreSuiteBase):
    """Definitions, autostart marks, revisions and versions."""

    async def test_empty(self, store: Store) -> None:
        """A new store is empty."""
        assert await held(store) == ({}, {})
        assert (await store.current("a")).version is None
        assert (await store.current("a")).started_at is None

    async def test_kept(self, store: Store, other: Store) -> None:
        """Definitions are put, replaced and removed, and the other client reads the same, in name order."""
        await put(store, definition("b"))
        await put(store, definition("a"))
        await put(other, definition("b", "/y"))
        wanted = {"a": (definition("a"), False), "b": (definition("b", "/y"), False)}
        assert await held(store) == await held(other) == (wanted, {})
        await remove(store, "b")
        assert (await held(other))[0] == {"a": (definition("a"), False)}

    async def test_names(self, store: Store, other: Store) -> None:
        """A pool's name may have spaces, dots and any letters."""
        for name in NAMES:
            await put(store, definition(name))
            await store.begin_run(run(name), persistent=True)
            await store.set_autostart(name, True)
        found, runs = await held(other)
        assert found == {name: (definition(name), True) for name in NAMES}
        assert runs == {name: run(name) for name in NAMES}
        for name in NAMES:
            await other.end_run(name, 1.5)
            await remove(other, name)
        assert await held(store) == ({}, {})

    async def test_autostart(self, store: Store, other: Store) -> None:
        """A mark is set and cleared, also twice, and stays when its definition is replaced."""
        await put(store, definition("a"))
        for client in (store, other):
            await client.set_autostart("a", True)
        await put(store, definition("a", "/y"))
        assert (await held(other))[0] == {"a": (definition("a", "/y"), True)}
        for client in (store, other):
            await client.set_autostart("a", False)
        assert (await held(other))[0] == {"a": (definition("a", "/y"), False)}

    async def test_autostart_of_nothing(self, store: Store) -> None:
        """A mark needs a definition: without one it is refused, and it is removed with the definition."""
        with pytest.raises(StoreError) as caught:
            await store.set_autostart("a", True)
        assert caught.value.errno == errno.ENOENT
        await store.set_autostart("a", False)
        await put(store, definition("a"))
        await store.set_autostart("a", True)
        await remove(store, "a")
        await put(store, definition("a"))
        assert (await held(store))[0] == {"a": (definition("a"), False)}

    async def test_revisions(self, store: Store, other: Store) -> None:
        """A read since a revision returns None if nothing has changed, and everything after a change of any client."""
        seen = await revision(store)
        for client in (store, other):
            for change in (
                lambda: put(client, definition("a")),  # noqa: B023
                lambda: put(client, definition("a", "/y")),  # noqa: B023
                lambda: client.set_autostart("a", True),  # noqa: B023
                lambda: client.begin_run(run("a"), persistent=True),  # noqa: B023
                lambda: client.end_run("a", 1.5),  # noqa: B023
                lambda: remove(client, "a"),  # noqa: B023
            ):
                for _ in range(2):
                    assert await store.read(seen) is None
                await self.settle()
                await change()
                found = await store.read(seen)
                assert found is not None
                assert found.revision != seen
                assert await held(other) == await held(store)
                seen = found.revision

    async def test_versions(self, store: Store, other: Store) -> None:
        """A version is the same wherever it is read, and another one after each change of the definition."""
        versions = []
        for path in ("/x", "/y", "/x"):
            version = await put(store, definition("a", path))
            (stored,) = (await contents(other)).pools
            assert version == stored.version == (await other.current("a")).version
            assert version not in versions
            versions.append(version)
        await other.set_autostart("a", True)
        await other.begin_run(run("a"), persistent=True)
        assert await store.current("a") == Current(versions[-1], 1.5)
        await other.end_run("a", 1.5)
        await remove(other, "a")
        assert (await store.current("a")).version is None
        assert await put(other, definition("a")) not in versions

    async def test_put_by_what_was_read(self, store: Store, other: Store) -> None:
        """A definition that was checked against others is refused if any of them has changed since."""
        await put(other, definition("b"))
        for change in (
            lambda: put(other, definition("c")),
            lambda: put(other, definition("b", "/y")),
            lambda: remove(other, "c"),
        ):
            read = await revision(store)
            await self.settle()
            await change()
            with pytest.raises(OutdatedError):
                await store.put(definition("a"), read)
        assert "a" not in (await held(other))[0]
        read = await revision(store)
        await store.put(definition("a"), read)
        with pytest.raises(OutdatedError):
            await store.put(definition("a", "/y"), read)
        assert (await held(other))[0]["a"] == (definition("a"), False)

    async def test_put_over_an_active_pool(self, store: Store, other: Store) -> None:
        """An active pool can be redefined only with its own uuid."""
        await other.begin_run(run("a"), persistent=False)
        with pytest.raises(OutdatedError):
            await store.put(definition("a", uuid_of="b"), await revision(store))
        await store.put(definition("a", "/y"), await revision(store))
        assert await held(other) == ({"a": (definition("a", "/y"), False)}, {"a": run("a")})

    async def test_remove_what_is_meant(self, store: Store, other: Store) -> None:
        """A definition is removed only in the version that was read, and while its pool is inactive."""
        old = await put(store, definition("a"))
        new = await put(other, definition("a", "/y"))
        with pytest.raises(OutdatedError):
            await store.remove("a", old)
        await other.begin_run(run("a"), persistent=True)
        with pytest.raises(OutdatedError):
            await store.remove("a", new)
        await other.end_run("a", 1.5)
        await store.remove("a", new)
        with pytest.raises(OutdatedError):
            await store.remove("a", new)
        assert await held(other) == ({}, {})

    async def test_two_writers(self, store: Store, other: Store) -> None:
        """Of two writers that read the same contents one is refused, and the other's definition is kept whole."""
        for number in range(10):
            await put(store, definition(f"kept {number}"))
            read = await revision(store), await revision(other)
            name = f"p{number}"
            outcomes = await asyncio.gather(
                store.put(definition(name, "/one", uuid_of="one"), read[0]),
                other.put(definition(name, "/two", uuid_of="two"), read[1]),
                return_exceptions=True,
            )
            won = [isinstance(outcome, OutdatedError) for outcome in outcomes].index(False)
            assert isinstance(outcomes[1 - won], OutdatedError)
            wanted = definition(name, ("/one", "/two")[won], uuid_of=("one", "two")[won])
            assert (await held(store))[0][name] == (wanted, False)

    async def test_many_writers(self, connect: Connect, store: Store) -> None:
        """Clients that retry after each conflict lose no change."""
        clients = [await connect() for _ in range(WRITERS)]

        async def write(number: int) -> None:
            for count in range(5):
                await put(clients[number], definition(f"{number}-{count}"))
                await clients[number].set_autostart(f"{number}-{count}", True)

        await asyncio.gather(*(write(number) for number in range(WRITERS)))
        found, _ = await held(store)
        assert sorted(found) == [f"{number}-{count}" for number in range(WRITERS) for count in range(5)]
        assert all(on for _, on in found.values())

    async def test_damaged(self, store: Store, other: Store, tmp_path: Path) -> None:
        """An unreadable definition is reported, and can be replaced or removed; others are not affected."""
        await put(store, definition("a"))
        old = await put(store, definition("b"))
        await self.settle()
        if not await asyncio.to_thread(self.damage, tmp_path, "b"):
            pytest.skip("the store has no definitions that can be damaged")
        for client in (store, other):
            found = await contents(client)
            assert [stored.definition for stored in found.pools] == [definition("a")]
            (damaged,) = found.damaged
            assert damaged.name == "b"
            assert damaged.path
            assert damaged.error
            assert damaged.version == (await client.current("b")).version != old
            assert await client.read(found.revision) is None
        with pytest.raises(OutdatedError):
            await store.remove("b", old)
        await store.put(definition("b"), await revision(store))
        assert sorted((await held(other))[0]) == ["a", "b"]
        assert await asyncio.to_thread(self.damage, tmp_path, "b")
        await store.remove("b", (await contents(store)).damaged[0].version)
        assert (await held(other))[0] == {"a": (definition("a"), False)}

    async def test_opened_again(self, connect: Connect, store: Store, tmp_path: Path) -> None:
        """A store can be closed twice and opened again; one that persists still has its contents."""
        await put(store, definition("a"))
        await store.set_autostart("a", True)
        await store.begin_run(run("a"), persistent=True)
        before = await held(store)
        for _ in range(2):
            await store.aclose()
        lanes = Lanes()
        try:
            await store.open(lanes.lane(store.name))
            found = await held(store)
            assert found == before or not self.persists
            await put(store, definition("b"))
            assert "b" in (await held(await connect()))[0]
            await store.aclose()
        finally:
            lanes.close()
