"""IscsiPool: the disks of one target, as a pool of blocks."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Mapping

from astore.blocks import Block, BlockPool
from astore.model import EntryError
from astore_iscsi import scsi
from astore_iscsi.naming import PREFIX, key_of, lun_named
from astore_iscsi.portals import Portal
from astore_iscsi.target.client import Client
from astore_iscsi.target.survey import Found
from astore_iscsi.target.volume import UnitVolume


class IscsiPool(BlockPool):
    """The disks of a target. Its calls are coroutines.

    :param portal: the first one, which is in the volumes' keys.
    """

    def __init__(self, client: Client, portal: Portal) -> None:
        self.device: str = f"iscsi:{client.target}"
        self._client = client
        self._portal = portal
        self._size = 0

    def key(self, name: str) -> str:
        return key_of(self._portal, self._client.target, name)

    async def list(self, known: Mapping[str, Block]) -> list[Block | EntryError]:
        luns = await self._client.luns()
        entries: list[Block | EntryError] = []
        self._size = 0
        for lun, found in zip(luns, await self._client.survey(luns), strict=True):
            entry = _entry(lun, found)
            if isinstance(entry, Block):
                self._size += entry.size
                entry = same if (same := known.get(entry.name)) == entry else entry
            if entry is not None:
                entries.append(entry)
        return entries

    async def look(self, name: str) -> Block | EntryError | None:
        lun = lun_named(name)
        if lun is None:
            return None
        (found,) = await self._client.survey([lun])
        return _entry(lun, found)

    async def open(self, name: str, write: bool) -> UnitVolume:
        lun = lun_named(name)
        if lun is None:
            raise FileNotFoundError(errno.ENOENT, "there is no such unit", name)
        kind, id, unit = await self._client.unit(lun)
        if kind not in scsi.DISKS:
            raise FileNotFoundError(errno.ENOENT, "there is no such unit", name)
        capacity, limits = await asyncio.gather(self._client.capacity(unit), self._client.limits(unit))
        return UnitVolume(self._client, unit, id, capacity, limits)

    async def sizes(self) -> tuple[int, int]:
        """Return the sum of the units that :meth:`list` found last, and no free space: a target tells nothing of that."""
        return self._size, 0

    async def close(self) -> None:
        await self._client.close()


def _entry(lun: int, found: Found) -> Block | EntryError | None:
    """Return the entry of a unit; None: it is a part of the target, such as its controller, or there is nothing."""
    name = f"{PREFIX}{lun}"
    kind = found.kind
    if kind is not None and (kind in scsi.SILENT or kind >> 5):
        return None
    if kind is not None and kind not in scsi.DISKS:
        return EntryError(name, f"it is no disk, but has the peripheral device type {kind:02x}h", skipped=True)
    if found.wrong is not None and found.wrong.errno == errno.ENOENT:
        return None
    if found.wrong is not None:
        return EntryError(name, str(found.wrong.strerror), found.wrong.errno)
    assert found.capacity is not None
    return Block(name=name, id=found.id, size=found.capacity.size)
