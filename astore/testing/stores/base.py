"""The fixtures of the suite for stores, and its made-up definitions and runs."""

from __future__ import annotations

import abc
import contextlib
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import ClassVar, TypeAlias

import pytest
import pytest_asyncio

from astore.lanes import Lanes
from astore.model import PoolDef, Target
from astore.store.contract import Contents, OutdatedError, Revision, Run, Store, Version

Connect = Callable[[], Awaitable[Store]]

Held: TypeAlias = tuple[dict[str, tuple[PoolDef, bool]], dict[str, Run]]
"""Definitions and autostart marks by pool, and runs by pool."""

WRITERS = 4
"""How many clients change a store at the same time."""


class StoreSuiteBase(abc.ABC):
    """The suite's fixtures, and the methods by which a subclass describes its store."""

    pytestmark: pytest.MarkDecorator = pytest.mark.asyncio

    persists: ClassVar[bool] = True
    """Whether a store keeps its contents when all its clients are closed."""

    @abc.abstractmethod
    async def make_store(self, place: Path) -> Store:
        """Make another client, not opened yet, of the one store that belongs to ``place``.

        If the store is for one process, all clients may be the same object.

        :param place: a folder, empty at first, for the store's data; its name can serve as a prefix.
        """

    def damage(self, place: Path, name: str) -> bool:
        """Make the definition of a pool unreadable, behind the store's back; False, the default: that is not possible.

        Called in a worker thread: it may block.
        """
        return False

    async def settle(self) -> None:
        """Wait until the store can tell the next change from earlier ones. By default that needs no time."""

    @pytest_asyncio.fixture
    async def connect(self, tmp_path: Path) -> AsyncIterator[Connect]:
        """A function that opens clients of one store; they are closed after the test."""
        lanes = Lanes()
        try:
            async with contextlib.AsyncExitStack() as opened:

                async def connect() -> Store:
                    store = await self.make_store(tmp_path)
                    await store.open(lanes.lane(store.name))
                    opened.push_async_callback(store.aclose)
                    return store

                yield connect
        finally:
            lanes.close()

    @pytest_asyncio.fixture
    async def store(self, connect: Connect) -> Store:
        """A client of an empty store."""
        return await connect()

    @pytest_asyncio.fixture
    async def other(self, connect: Connect, store: Store) -> Store:
        """Another client of the same store."""
        return await connect()


def definition(name: str, path: str = "/x", *, uuid_of: str | None = None) -> PoolDef:
    """Make a definition. Its uuid is derived from its name, or from ``uuid_of``."""
    made = uuid.uuid5(uuid.NAMESPACE_URL, name if uuid_of is None else uuid_of)
    return PoolDef(type="dir", name=name, uuid=str(made), target=Target(path=path))


def run(name: str, started_at: float = 1.5, *, uuid_of: str | None = None) -> Run:
    """Make a run of the pool that :func:`definition` makes."""
    made = definition(name, uuid_of=uuid_of)
    assert made.uuid is not None
    return Run(made, made.uuid, started_at)


async def contents(store: Store) -> Contents:
    """Read the whole store anew."""
    found = await store.read()
    assert found is not None
    return found


async def revision(store: Store) -> Revision:
    """Return the store's current revision."""
    return (await contents(store)).revision


async def put(store: Store, wanted: PoolDef) -> Version:
    """Put a definition, and retry as often as others are faster."""
    while True:
        try:
            return await store.put(wanted, await revision(store))
        except OutdatedError:
            continue


async def remove(store: Store, name: str) -> None:
    """Remove a definition in its current version."""
    version = (await store.current(name)).version
    assert version is not None
    await store.remove(name, version)


async def held(store: Store) -> Held:
    """Return the definitions and marks by pool, and the runs."""
    found = await contents(store)
    assert found.damaged == ()
    assert found.unknown == frozenset()
    names = [stored.definition.name for stored in found.pools]
    assert names == sorted(set(names))
    return {stored.definition.name: (stored.definition, stored.autostart) for stored in found.pools}, found.runs
