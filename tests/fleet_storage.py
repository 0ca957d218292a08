"""The storage that all hosts of a scene see: a folder, a Gluster volume, or an export of this kernel's NFS server.

Gluster and NFS are served beside the bridge, so that a host whose link is cut loses its storage as well.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import ClassVar, NamedTuple

from core_fakes import PATIENCE
from fleet_support import shared

from astore.backend import Context, PoolSession
from astore.backends.directory import DirectoryBackend
from astore.model import PoolDef, VolumeDef, VolumeInfo
from astore.trees.session import WritableTreeSession
from astore.trees.writable_local import WritableLocalTree
from beds import guest_servers
from beds.gluster import GlusterBed
from beds.hosts import SUBNET

SERVER = f"{SUBNET}.1"
"""The bridge's own address, which all hosts reach."""


class SharedStorage(NamedTuple):
    """Where the pool ``images`` of a scene is.

    :ivar definition: of the pool, which may run anywhere. :ivar folder: where this process sees its files.
    :ivar revive: starts a server that a killed client has made end.
    """

    definition: str
    folder: Path
    revive: Callable[[], object] = lambda: None


Storage = Callable[[Path], contextlib.AbstractAsyncContextManager[SharedStorage]]
"""Makes the storage, for a while; the folder is for what that takes."""


@contextlib.asynccontextmanager
async def plain_folder(folder: Path) -> AsyncIterator[SharedStorage]:
    """A folder of this machine, which all hosts see."""
    made = folder / "images"
    made.mkdir()
    yield SharedStorage(shared("images", made), made)


@contextlib.asynccontextmanager
async def gluster_volume(folder: Path) -> AsyncIterator[SharedStorage]:
    """A Gluster volume, as a pool of the type ``gluster``; this process has it mounted."""
    with GlusterBed(folder / "gluster", address_base=f"{SUBNET}.") as bed:
        await asyncio.to_thread(bed.create_volume, "images", options={"network.ping-timeout": 5})
        made = await asyncio.to_thread(bed.mount, "images")
        source = f"<host name='{SERVER}'/><name>images</name><dir path='/'/>"
        yield SharedStorage(
            f"<pool type='gluster'><name>images</name><source>{source}</source></pool>",
            made,
            lambda: bed.revive("images"),
        )


@contextlib.asynccontextmanager
async def nfs_export(folder: Path) -> AsyncIterator[SharedStorage]:
    """An export of this kernel, as a pool of the type ``netfs``: for programs in a guest (:mod:`beds.uml`)."""
    await asyncio.to_thread(guest_servers.serve_nfs)
    target = folder / "mnt"
    target.mkdir()
    source = f"<host name='{SERVER}'/><dir path='{guest_servers.EXPORT}'/><format type='nfs'/>"
    definition = (
        f"<pool type='netfs'><name>images</name><source>{source}</source><target><path>{target}</path></target></pool>"
    )
    yield SharedStorage(definition, guest_servers.EXPORT)


# ----------------------------------------------------------------------------------------------------- work that is held


class HeldTreeSession(WritableTreeSession):
    """Creates a volume once :func:`let_go` was called, and writes its name into :func:`begun_log` before."""

    def __init__(self, path: str, tree: WritableLocalTree, context: Context) -> None:
        super().__init__(tree, context)
        self._folder = Path(path)

    async def create_volume(self, definition: VolumeDef, *, prealloc_metadata: bool = False) -> VolumeInfo:
        """Write that it has begun; wait; create."""
        await asyncio.to_thread(self._note, definition.name)
        go = self._folder.with_name(f"{self._folder.name}.go-{definition.name}")
        async with asyncio.timeout(PATIENCE):
            while not await asyncio.to_thread(go.exists):
                await asyncio.sleep(0.002)
        return await super().create_volume(definition, prealloc_metadata=prealloc_metadata)

    def _note(self, name: str) -> None:
        with begun_log(self._folder).open("a") as log:
            log.write(f"{name}\n")


class HeldTreeBackend(DirectoryBackend):
    """Folders that every host sees, where creating waits until it may."""

    type: ClassVar[str] = "held-folder"

    async def open(self, definition: PoolDef, context: Context) -> PoolSession:
        """Open the folder."""
        path = definition.target.path or ""
        return HeldTreeSession(path, await context.lane.run(WritableLocalTree, path), context)


def begun_log(folder: Path) -> Path:
    """Where a :class:`HeldTreeSession` of this folder writes what it has begun."""
    return folder.with_name(f"{folder.name}.begun")


def let_go(folder: Path, name: str) -> None:
    """Let the creation of this volume go on."""
    folder.with_name(f"{folder.name}.go-{name}").touch()
