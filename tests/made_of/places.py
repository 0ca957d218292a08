"""A pool, and the folder in which others put files into it, whatever kind of pool it is."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from astore.errors import AstoreError
from astore.manager import Manager
from astore.model import VolumeDef
from astore.pools.pool import Pool
from astore.pools.volume import Volume
from astore_gluster.uri import parse_uri

MIB = 1 << 20


@dataclass
class Place:
    """A pool of a Manager.

    :ivar folder: its folder, as others see it. :ivar where: what its volumes' paths begin with.
    :ivar elsewhere: a folder that is no pool's.
    """

    kind: str
    pool: Pool
    folder: Path
    where: str
    elsewhere: Path
    manager: Manager

    def path(self, name: str) -> str:
        """What QEMU calls a file of the pool."""
        return f"{self.where}/{name}"

    def node(self, name: str) -> dict[str, Any]:
        """A file of the pool as a node of QEMU's."""
        if self.kind != "gluster":
            return {"driver": "file", "filename": self.path(name)}
        found = parse_uri(self.path(name))
        assert found is not None
        server = [{"type": "inet", "host": found.server, "port": "24007"}]
        return {"driver": "gluster", "volume": found.volume, "path": "/" + "/".join(found.parts), "server": server}

    async def qemu_img(self, *arguments: str | Path) -> str:
        """Run qemu-img in the pool's folder; it must end well."""
        argv = ["qemu-img", *map(os.fspath, arguments)]
        done = await asyncio.to_thread(subprocess.run, argv, capture_output=True, text=True, cwd=self.folder)
        assert done.returncode == 0, done.stderr + done.stdout
        return done.stdout

    async def image(self, *arguments: str, format: str = "qcow2") -> None:
        """Have qemu-img make an image in the folder."""
        await self.qemu_img("create", "-q", "-f", format, *arguments)

    async def overlay(self, name: str, backing: str, format: str = "raw", size: str = "1M") -> None:
        """A qcow2 image over anything, of which nothing is looked at."""
        await self.image("-u", "-b", backing, "-F", format, name, size)

    async def raw(self, name: str, data: bytes = b"", size: int = MIB) -> None:
        """A raw file."""
        await asyncio.to_thread((self.folder / name).write_bytes, data.ljust(size, b"\0"))

    async def bytes_of(self, name: str) -> bytes:
        """The content of a file."""
        return await asyncio.to_thread((self.folder / name).read_bytes)

    async def volume(self, name: str) -> Volume:
        """A volume as it is now."""
        await self.pool.refresh()
        return self.pool.volume(name)

    async def clone(self, volume: Volume, name: str, format: str = "raw", **more: Any) -> Volume:
        """Copy it in the same pool."""
        return await self.pool.copy_volume(volume, VolumeDef(name, format=format, **more))

    async def disk(self, volume: Volume) -> bytes:
        """The disk that an image is of, as astore reads it."""
        made = await self.clone(volume, "disk.of")
        data = await self.bytes_of("disk.of")
        await made.delete()
        return data

    @contextlib.asynccontextmanager
    async def refused(self, *words: str, error: type[AstoreError] = AstoreError) -> AsyncIterator[None]:
        """What is done inside is refused, in these words, and no file is made or changed."""
        before = await asyncio.to_thread(self.state)
        with pytest.raises(error) as caught:
            yield
        for word in words:
            assert word in str(caught.value), str(caught.value)
        assert await asyncio.to_thread(self.state) == before

    def state(self) -> dict[str, tuple[int, int, int]]:
        """Which files there are, and when each was changed."""
        found = {}
        for name in os.listdir(self.folder):
            st = os.lstat(self.folder / name)
            found[name] = (st.st_ino, st.st_size, st.st_mtime_ns)
        return found


def json_name(node: dict[str, Any]) -> str:
    """A node as the name of a file."""
    return f"json:{json.dumps(node)}"
