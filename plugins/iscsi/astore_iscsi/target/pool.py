"""IscsiPool: the disks of one target, as a pool of blocks."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Mapping
from typing import Final

from astore.blocks import Block, BlockPool
from astore.model import EntryError
from astore_iscsi import scsi
from astore_iscsi.naming import PREFIX, key_of, lun_named
from astore_iscsi.portals import Portal
from astore_iscsi.scsi import UnitError
from astore_iscsi.target.client import Client, Unit
from astore_iscsi.target.volume import UnitVolume

AT_ONCE: Final = 64
"""How many units are asked at once."""


class IscsiPool(BlockPool):
    """The disks of a target. Its calls are coroutines.

    :param portal: the first one, which is in the volumes' keys. :param timeout: seconds that a call has.
    """

    def __init__(self, client: Client, portal: Portal, timeout: float) -> None:
        self.device = f"iscsi:{client.target}"
        self._client = client
        self._portal = portal
        self._patience = timeout / 2
        self._size = 0

    def key(self, name: str) -> str:
        return key_of(self._portal, self._client.target, name)

    async def list(self, known: Mapping[str, Block]) -> list[Block | EntryError]:
        luns = await self._client.luns()
        room = asyncio.Semaphore(AT_ONCE)
        found = await asyncio.gather(*(self._entry(lun, room) for lun in luns))
        silent = [one for one in found if isinstance(one, TimeoutError)]
        if silent and len(silent) == len(luns):
            raise silent[0]
        entries: list[Block | EntryError] = []
        self._size = 0
        for lun, one in zip(luns, found, strict=True):
            if isinstance(one, Block):
                self._size += one.size
                entries.append(same if (same := known.get(one.name)) == one else one)
            elif isinstance(one, TimeoutError):
                why = f"the unit does not answer within {self._patience:g} s"
                entries.append(EntryError(f"{PREFIX}{lun}", why, errno.ETIMEDOUT))
            elif one is not None:
                entries.append(one)
        return entries

    async def look(self, name: str) -> Block | EntryError | None:
        lun = lun_named(name)
        if lun is None:
            return None
        found = await self._ask(lun)
        if isinstance(found, EntryError) and found.errno == errno.ENOENT:
            return None
        return found

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

    async def _entry(self, lun: int, room: asyncio.Semaphore) -> Block | EntryError | TimeoutError | None:
        async with room:
            try:
                async with asyncio.timeout(self._patience):
                    return await self._ask(lun)
            except TimeoutError as error:
                return error

    async def _ask(self, lun: int) -> Block | EntryError | None:
        """Ask a unit what it is; None: a part of the target, such as its controller, or nothing."""
        name = f"{PREFIX}{lun}"
        identified, measured = await asyncio.gather(
            self._client.unit(lun), self._client.capacity(Unit(lun)), return_exceptions=True
        )
        for one in (identified, measured):
            if isinstance(one, BaseException) and not isinstance(one, UnitError):
                raise one
        if isinstance(identified, UnitError):
            return EntryError(name, str(identified.strerror), identified.errno)
        assert not isinstance(identified, BaseException)
        kind, id, _ = identified
        if kind in scsi.SILENT or kind >> 5:
            return None
        if kind not in scsi.DISKS:
            return EntryError(
                name, f"it is no disk, but has the peripheral device type {kind:02x}h", None, skipped=True
            )
        if isinstance(measured, UnitError):
            return EntryError(name, str(measured.strerror), measured.errno)
        assert not isinstance(measured, BaseException)
        return Block(name=name, id=id, size=measured.size)
