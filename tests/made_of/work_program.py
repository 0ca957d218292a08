"""Do everything that can be done to volumes, to each volume of a pool: a program that is watched from outside.

Arguments: the pool's definition, the state folder, and an image whose header names other files.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import astore
from astore import AstoreError, Manager, VolumeDef
from astore.model import BackingStore
from astore.pools.pool import Pool

MIB = 1 << 20
TEXTS = ("backing_chain", "disk_xml", "qemu_blockdev", "to_xml")


class Worker:
    """Works on one pool, and prints what became of each piece of work."""

    def __init__(self, manager: Manager, pool: Pool, hostile: bytes) -> None:
        self.manager = manager
        self.pool = pool
        self.hostile = hostile

    def told(self, name: str, work: str, error: Exception | None) -> None:
        """Print a line."""
        print(work, "done" if error is None else "refused", repr(name), error or "", sep="\t", flush=True)

    async def tried(self, name: str, work: str, call: Callable[[], Awaitable[Any]]) -> Any:
        """Have something done, or refused by astore."""
        try:
            result = await call()
        except AstoreError as error:
            self.told(name, work, error)
            return None
        self.told(name, work, None)
        return result

    def look(self, name: str) -> None:
        """All that is told of a volume."""
        volume = self.pool.volume(name)
        for text in TEXTS:
            try:
                getattr(volume, text)()
            except AstoreError as error:
                self.told(name, text, error)
            else:
                self.told(name, text, None)
        self.manager.dependents(volume)
        self.told(name, "dependents", None)

    async def copy(self, name: str) -> None:
        """All kinds of copies, and overlays; those that were made are removed."""
        volume = self.pool.volume(name)
        own = volume.info.format
        wanted = {
            "clone": VolumeDef("new", format=own),
            "clone to raw": VolumeDef("new", format="raw"),
            "clone to qcow2": VolumeDef("new", format="qcow2", cluster_size=4096),
            "clone larger": VolumeDef("new", format=own, capacity=64 * MIB),
            "clone thin": VolumeDef("new", format="qcow2", backing=BackingStore(path=name)),
        }
        for work, definition in wanted.items():
            made = await self.tried(name, work, lambda one=definition: self.pool.copy_volume(volume, one))
            if made is not None:
                await made.delete(force=True)
        over = VolumeDef("new", format="qcow2", backing=BackingStore(path=name))
        made = await self.tried(name, "overlay", lambda: self.pool.create_volume(over))
        if made is not None:
            await self.tried(name, "resize overlay", lambda: made.resize(128 * MIB))
            await self.tried(name, "clone overlay", lambda: self._cloned(made))
            await made.delete(force=True)
        for kind in ("qcow", "qed", "vmdk"):
            for path in (name, volume.info.path):
                over = VolumeDef("new", MIB, format=kind, backing=BackingStore(path))
                made = await self.tried(name, f"overlay of {kind}", lambda one=over: self.pool.create_volume(one))
                if made is not None:
                    await made.delete(force=True)

    async def _cloned(self, volume: Any) -> None:
        made = await self.pool.copy_volume(volume, VolumeDef("newer", format="raw"))
        await made.delete(force=True)

    async def change(self, name: str) -> None:
        """All that changes a volume, until it is gone."""
        volume = self.pool.volume(name)
        await self.tried(name, "download", lambda: self._download(name))
        await self.tried(name, "grow", lambda: volume.resize(32 * MIB, force=True))
        await self.tried(name, "shrink", lambda: volume.resize(65536, shrink=True, force=True))
        await self.tried(name, "wipe", lambda: volume.wipe(force=True))
        await self.tried(name, "set format", lambda: volume.set_format("raw"))
        await self.tried(name, "grow raw", lambda: volume.resize(48 * MIB, force=True))
        await self.tried(name, "upload", lambda: volume.upload(self.hostile, force=True))
        await self.tried(name, "upload meant", lambda: volume.upload(self.hostile, force=True, allow_references=True))
        await self.tried(name, "grow uploaded", lambda: volume.resize(96 * MIB, force=True))
        await self.tried(name, "clone uploaded", lambda: self._cloned(volume))
        renamed = await self.tried(name, "rename", lambda: volume.rename(f"{name}.renamed", force=True))
        volume = renamed or volume
        await self.tried(name, "delete", lambda: volume.delete(force=True))

    async def _download(self, name: str) -> None:
        async with self.pool.volume(name).download() as chunks:
            async for _ in chunks:
                pass


async def main(definition: str, state: str, hostile: bytes) -> None:
    """Work on all volumes."""
    async with astore.Manager(state) as manager:
        pool = await manager.define(definition)
        await pool.start()
        await pool.refresh(full=True)
        worker = Worker(manager, pool, hostile)
        names = [info.name for info in pool.volumes]
        for name in names:
            worker.look(name)
        for name in names:
            await worker.copy(name)
        await pool.refresh(full=True)
        for name in names:
            if pool.snapshot.get(name) is not None:
                await worker.change(name)
        await pool.refresh(full=True)


if __name__ == "__main__":
    with open(sys.argv[3], "rb") as file:
        hostile = file.read()
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(main(sys.argv[1], sys.argv[2], hostile))
