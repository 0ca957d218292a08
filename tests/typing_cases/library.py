"""What type checkers make of the library; tests/test_typing.py runs mypy and pyright over it. Nothing runs it."""

from collections.abc import AsyncIterator
from typing import Any, assert_type

from astore import (
    Hole,
    Lagged,
    Manager,
    Pool,
    PoolDef,
    PoolInfo,
    RefreshOutcome,
    Volume,
    VolumeAdded,
    VolumeInfo,
)
from astore.event_bus import Subscription
from astore.events import Event


async def downloads(volume: Volume, sparse: bool) -> bytes:
    """Without ``sparse``, a download is bytes; with it, holes as well."""
    found = b""
    async with volume.download(offset=512, length=1024) as chunks:
        assert_type(chunks, AsyncIterator[bytearray])
        async for chunk in chunks:
            found += chunk
    async with volume.download(sparse=False) as chunks:
        assert_type(chunks, AsyncIterator[bytearray])
    async with volume.download(sparse=True) as pieces:
        assert_type(pieces, AsyncIterator[bytearray | Hole])
    async with volume.download(sparse=sparse) as pieces:
        assert_type(pieces, AsyncIterator[bytearray | Hole])
    return found


async def handles_and_records(manager: Manager) -> None:
    """Names, records and results have their types, also through the lazy imports of the package."""
    pool = await manager.define(PoolDef("dir", "images"))
    assert_type(pool, Pool)
    assert_type(pool.info, PoolInfo)
    assert_type(pool.info.to_dict(), dict[str, Any])
    assert_type(pool.volumes, tuple[VolumeInfo, ...])
    assert_type(await pool.refresh(), RefreshOutcome)
    async with manager.events() as events:
        async for event in events:
            assert_type(event.seq, int)


async def events_of_some_kinds(manager: Manager) -> None:
    """Events have the type that ``kinds`` asks for; a reader that is too slow gets a Lagged, whatever the type."""
    assert_type(manager.events(), Subscription[Event])
    async with manager.events(kinds=(VolumeAdded,)) as events:
        assert_type(events, Subscription[VolumeAdded])
        async for event in events:
            assert_type(event, VolumeAdded | Lagged)
            if not isinstance(event, Lagged):
                assert_type(event.volume, VolumeInfo)
