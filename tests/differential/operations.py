"""The same steps for libvirt and for astore, and what each side has to show after them.

A side does a step (``await side.do("start", "pool")``) and answers what came of it; :func:`compare` says what differs. What is
meant to differ has a name, a reason in docs/differences-from-libvirt.md, and a rule in ``meant.py``.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from differential.oracle import LibvirtRefusedError, Oracle
from lxml import etree

import astore
from astore import Manager, Pool, Volume
from astore.images import HEADER_SIZE, ImageError, probe

World = dict[str, dict[str, Any]]
"""What a side tells of its pools: by name, what is ``active``, the documents, the volumes …"""

RESIZE = {"allocate": 1, "delta": 2, "shrink": 4}
"""virStorageVolResizeFlags."""
WIPE = {"zero": 0, "trim": 9}
"""virStorageVolWipeAlgorithm; what is between needs a program of its own in libvirt."""
LISTED = {"active": (2, 1), "persistent": (4, 8), "autostart": (16, 32)}
"""virConnectListAllStoragePoolsFlags: for each of astore's filters, True and False."""


class Outcome(NamedTuple):
    """What came of a step: its ``value``, or libvirt's ``code`` for why it was refused, and what the refusal ``said``."""

    value: Any = None
    code: int | None = None
    said: str = ""
    error: Exception | None = None

    def __str__(self) -> str:
        return f"{self.value!r}" if self.code is None else f"refused, {self.code}: {self.said}"


class Side:
    """One of the two. ``root`` is the folder that its pools are in, which stands as ``@`` in what is compared."""

    def __init__(self, name: str, root: Path) -> None:
        self.name = name
        self.root = root

    async def do(self, operation: str, *arguments: Any) -> Outcome:
        """Do a step. ``@`` in its arguments is the side's own folder."""
        real = [self.real(argument) if isinstance(argument, str) else argument for argument in arguments]
        try:
            return Outcome(self.masked(await getattr(self, f"do_{operation}")(*real)))
        except LibvirtRefusedError as error:
            return Outcome(None, error.code, str(error), error)
        except astore.AstoreError as error:
            return Outcome(None, int(error.libvirt_code), f"{type(error).__name__}: {error}", error)

    def real(self, text: str) -> str:
        """With the side's folder for ``@``."""
        return text.replace("@", str(self.root))

    def masked(self, value: Any) -> Any:
        """With ``@`` for the side's folder, in documents in one form."""
        if isinstance(value, str):
            value = value.replace(str(self.root), "@")
            try:
                return plain(value) if value.startswith("<") else value
            except etree.XMLSyntaxError:
                return "<refused/>"
        if isinstance(value, list):
            return [self.masked(inner) for inner in value]
        if isinstance(value, dict):
            return {key: self.masked(inner) for key, inner in value.items()}
        return value

    async def world(self, names: Collection[str]) -> World:
        """What is told of these pools, of those that there are."""
        raise NotImplementedError

    async def events(self) -> list[list[str]]:
        """``[pool, what]`` of all that happened since this was asked last."""
        raise NotImplementedError


class LibvirtSide(Side):
    """libvirt, by way of the oracle."""

    def __init__(self, root: Path, oracle: Oracle) -> None:
        super().__init__("libvirt", root)
        self._ask = oracle.ask
        self._bytes = root.with_name(f"{root.name}.bytes")
        self._happened: list[list[str]] = []

    async def world(self, names: Collection[str]) -> World:
        """See :meth:`Side.world`."""
        world: World = self.masked(self._ask("world", list(names)))
        return world

    async def events(self) -> list[list[str]]:
        """See :meth:`Side.events`."""
        happened, self._happened = [*self._happened, *self._ask("events")], []
        return happened

    async def do_define(self, xml: str) -> Any:
        return self._ask("define", xml)

    async def do_create(self, xml: str, build: bool) -> Any:
        return self._ask("create_pool", xml, 1 if build else 0)

    async def do_build(self, pool: str) -> None:
        self._ask("pool_call", pool, "build", 0)

    async def do_start(self, pool: str, build: bool) -> None:
        self._ask("pool_call", pool, "create", 1 if build else 0)

    async def do_refresh(self, pool: str) -> None:
        self._ask("pool_call", pool, "refresh", 0)

    async def do_stop(self, pool: str) -> None:
        self._ask("pool_call", pool, "destroy")

    async def do_delete(self, pool: str) -> None:
        self._ask("pool_call", pool, "delete", 0)

    async def do_undefine(self, pool: str) -> None:
        self._ask("pool_call", pool, "undefine")

    async def do_autostart(self, pool: str, autostart: bool) -> None:
        self._ask("pool_call", pool, "setAutostart", int(autostart))

    async def do_by_uuid(self, uuid: str) -> Any:
        return self._ask("lookup", "storagePoolLookupByUUIDString", uuid)

    async def do_by_target(self, path: str) -> Any:
        return self._ask("lookup", "storagePoolLookupByTargetPath", path)

    async def do_by_key(self, key: str) -> Any:
        return self._ask("lookup", "storageVolLookupByKey", key)

    async def do_by_path(self, path: str) -> Any:
        return self._ask("lookup", "storageVolLookupByPath", path)

    async def do_list(self, names: list[str], **filters: bool | None) -> Any:
        flags = sum(LISTED[name][0 if wanted else 1] for name, wanted in filters.items() if wanted is not None)
        return [name for name in self._ask("pools", flags) if name in names]

    async def do_new_volume(self, pool: str, xml: str, metadata: bool) -> Any:
        return key_of(self._ask("create_volume", pool, xml, 1 if metadata else 0))

    async def do_clone(self, pool: str, xml: str, source_pool: str, source: str) -> Any:
        return key_of(self._ask("clone_volume", pool, xml, source_pool, source))

    async def do_resize(self, pool: str, volume: str, capacity: int, flags: list[str]) -> None:
        self._ask("volume_call", pool, volume, "resize", capacity, sum(RESIZE[flag] for flag in flags))

    async def do_wipe(self, pool: str, volume: str, algorithm: str) -> None:
        self._ask("volume_call", pool, volume, "wipePattern", WIPE[algorithm], 0)

    async def do_delete_volume(self, pool: str, volume: str) -> None:
        self._ask("volume_call", pool, volume, "delete", 0)

    async def do_upload(self, pool: str, volume: str, data: bytes, offset: int, length: int) -> None:
        self._bytes.write_bytes(data)
        self._happened += self._ask("events")
        self._ask("upload", pool, volume, str(self._bytes), offset, length)
        assert self._ask("events") == [[pool, "refreshed"]]  # which it does on its own

    async def do_download(self, pool: str, volume: str, offset: int, length: int) -> Any:
        self._ask("download", pool, volume, str(self._bytes), offset, length)
        return hashlib.sha256(self._bytes.read_bytes()).hexdigest()


class AstoreSide(Side):
    """astore, by way of a Manager."""

    KINDS: ClassVar[dict[type[astore.Event], str]] = {
        astore.PoolDefined: "defined",
        astore.PoolUndefined: "undefined",
        astore.PoolStarted: "started",
        astore.PoolStopped: "stopped",
        astore.PoolBuilt: "created",
        astore.PoolDeleted: "deleted",
        astore.PoolRefreshed: "refreshed",
    }
    """libvirt's words for what it has events for too."""

    def __init__(self, root: Path, manager: Manager, met: Callable[[str], None]) -> None:
        super().__init__("astore", root)
        self._manager = manager
        self._met = met
        self._seq = 0
        self._happened: list[list[str]] = []

    async def world(self, names: Collection[str]) -> World:
        """See :meth:`Side.world`."""
        pools = [pool for pool in self._manager.pools() if pool.name in names]
        for pool in pools:
            for info in pool.volumes if pool.active else ():
                if info.header_format is not None:  # libvirt believes whoever wrote that, and here it is meant
                    await Volume(pool, info.name).set_format(info.header_format)
        return {pool.name: self.masked(self._shown(pool)) for pool in pools}

    @staticmethod
    def _shown(pool: Pool) -> dict[str, Any]:
        return {
            "active": pool.active,
            "persistent": pool.persistent,
            "autostart": pool.autostart,
            "xml": pool.to_xml(),
            "inactive xml": pool.to_xml(inactive=True),
            "volumes": {info.name: Volume(pool, info.name).to_xml() for info in pool.volumes},
            "damaged": {error.name for error in pool.snapshot.errors if not error.skipped},
        }

    async def events(self) -> list[list[str]]:
        """See :meth:`Side.events`."""
        happened, self._happened = [*self._happened, *await self._news()], []
        return happened

    async def _news(self) -> list[list[str]]:
        happened = []
        async with self._manager.events(since=self._seq, kinds=tuple(self.KINDS)) as events:
            while event := events.receive_nowait():
                assert isinstance(event, astore.PoolEvent), f"events were lost: {event}"
                happened.append([event.pool, self.KINDS[type(event)]])
                self._seq = event.seq
        return happened

    @asynccontextmanager
    async def _starting(self, built: bool) -> AsyncIterator[None]:
        """Of a start libvirt tells that it is done: nothing of what was built for it, of its refresh, or of its failure."""
        self._happened += await self._news()
        try:
            yield
        except astore.AstoreError:
            if told := await self._news():
                assert [what for _, what in told] in (
                    ["created"],
                    ["started", "stopped"],
                    ["created", "started", "stopped"],
                )
                self._met("a start tells what it did before it failed")
            raise
        told = await self._news()
        assert [what for _, what in told] == [*(["created"] if built else []), "started", "refreshed"], told
        self._met("a start tells what it built, and of its refresh")
        self._happened.append([told[0][0], "started"])

    def _pool(self, name: str) -> Pool:
        return self._manager.pool(name)

    async def do_define(self, xml: str) -> Any:
        return (await self._manager.define(xml)).name

    async def do_create(self, xml: str, build: bool) -> Any:
        async with self._starting(build):
            return (await self._manager.create(xml, build=build)).name

    async def do_build(self, pool: str) -> None:
        await self._pool(pool).build()

    async def do_start(self, pool: str, build: bool) -> None:
        async with self._starting(build):
            await self._pool(pool).start(build)

    async def do_refresh(self, pool: str) -> None:
        await self._pool(pool).refresh()

    async def do_stop(self, pool: str) -> None:
        await self._pool(pool).stop()

    async def do_delete(self, pool: str) -> None:
        await self._pool(pool).delete()

    async def do_undefine(self, pool: str) -> None:
        await self._pool(pool).undefine()

    async def do_autostart(self, pool: str, autostart: bool) -> None:
        await self._pool(pool).set_autostart(autostart)

    async def do_by_uuid(self, uuid: str) -> Any:
        return [self._manager.pool_by_uuid(uuid).name]

    async def do_by_target(self, path: str) -> Any:
        return [self._manager.pool_by_target(path).name]

    async def do_by_key(self, key: str) -> Any:
        volume = self._manager.volume_by_key(key)
        return [volume.name, volume.key]

    async def do_by_path(self, path: str) -> Any:
        volume = self._manager.volume_by_path(path)
        return [volume.name, volume.key]

    async def do_list(self, names: list[str], **filters: bool | None) -> Any:
        return [pool.name for pool in self._manager.pools(**filters) if pool.name in names]

    async def do_new_volume(self, pool: str, xml: str, metadata: bool) -> Any:
        return key_of((await self._pool(pool).create_volume(xml, prealloc_metadata=metadata)).to_xml())

    async def do_clone(self, pool: str, xml: str, source_pool: str, source: str) -> Any:
        taker, giver = self._pool(pool), self._pool(source_pool)
        old = giver.volume(source)
        return key_of((await taker.copy_volume(old, astore.VolumeDef.from_xml(xml, copied=True))).to_xml())

    async def do_resize(self, pool: str, volume: str, capacity: int, flags: list[str]) -> None:
        chosen = dict.fromkeys(flags, True)
        await self._forced(pool, volume, lambda one, force: one.resize(capacity, force=force, **chosen))

    async def do_wipe(self, pool: str, volume: str, algorithm: str) -> None:
        await self._forced(pool, volume, lambda one, force: one.wipe(algorithm, force=force))

    async def do_delete_volume(self, pool: str, volume: str) -> None:
        await self._forced(pool, volume, lambda one, force: one.delete(force=force))

    async def do_upload(self, pool: str, volume: str, data: bytes, offset: int, length: int) -> None:
        await self._forced(
            pool, volume, lambda one, force: one.upload(data, offset=offset, length=length or None, force=force)
        )

    async def _forced(self, pool: str, volume: str, work: Callable[[Volume, bool], Any]) -> None:
        """Work on a volume; where others are backed by it, which libvirt does not mind, insist on it."""
        one = self._pool(pool).volume(volume)
        try:
            await work(one, False)
        except astore.VolumeInUseError:
            self._met("a volume that others are backed by is guarded")
            await work(one, True)

    async def do_download(self, pool: str, volume: str, offset: int, length: int) -> Any:
        digest = hashlib.sha256()
        async with self._pool(pool).volume(volume).download(offset=offset, length=length or None) as chunks:
            async for chunk in chunks:
                digest.update(chunk)
        return digest.hexdigest()


@asynccontextmanager
async def astore_side(root: Path, state: Path, met: Callable[[str], None]) -> AsyncIterator[AstoreSide]:
    """astore on a state folder of its own. :param met: is told the names of differences that are met."""
    async with Manager(state) as manager:
        yield AstoreSide(root, manager, met)


# ------------------------------------------------------------------------------------------------------ one form for both


def plain(text: str) -> str:
    """A document in one form, whatever quotation marks, blanks between elements and order of attributes it has."""
    root = etree.fromstring(text, etree.XMLParser(remove_blank_text=True))
    for element in root.iter():
        element.text = (element.text or "").strip("\n ") or None  # <source>\n  </source>
    return str(etree.tostring(root, method="c14n").decode())


def key_of(document: str) -> str | None:
    """A new volume's key. (The rest of what libvirt says of it at once is what was asked for; a refresh finds what it is.)"""
    return etree.fromstring(document).findtext("key")


_TIMES = re.compile("<timestamps>.*?</timestamps>")
_FIGURES = re.compile(r'(<(capacity|allocation|available) unit="bytes">)[0-9]+<')


def timeless(text: str) -> str:
    """A volume's document without its times, which twins do not share."""
    return _TIMES.sub("", text)


def figureless(text: str) -> str:
    """A pool's document with its capacity, allocation and available space left open."""
    return _FIGURES.sub(r"\1<", text)


def on_disk(folder: Path) -> dict[str, tuple[Any, ...]]:
    """What is in a folder and below, by path: type, mode, owner, size, blocks, and the bytes' digest."""
    found: dict[str, tuple[Any, ...]] = {}
    for path in sorted([folder, *folder.rglob("*")]):
        st = path.lstat()
        told: tuple[Any, ...] = (oct(st.st_mode), st.st_uid, st.st_gid)
        if stat.S_ISREG(st.st_mode):
            data = path.read_bytes().replace(os.fsencode(folder), b"@")
            length = path.stat().st_size
            if is_image(data):
                data = without_chance(data)
            told += (length, st.st_blocks, hashlib.sha256(data).hexdigest()[:16])
        elif stat.S_ISLNK(st.st_mode):
            told += (os.readlink(path).replace(str(folder), "@"),)
        found[str(path.relative_to(folder))] = told
    return found


def is_image(data: bytes) -> bool:
    """Whether it is another image than a raw one."""
    try:
        return probe(data[:HEADER_SIZE]) is not None
    except ImageError:
        return True


def without_chance(data: bytes) -> bytes:
    """An image without what qemu-img draws by lot or takes from the clock."""
    if data.startswith(b"KDMV"):
        data = re.sub(rb"\nCID=[0-9a-f]+", b"\nCID=", data, count=1)
        return re.sub(rb' SPARSE "[^"]*".*?\0+', b"", data, count=1, flags=re.DOTALL)  # the name that it was made by
    if data.startswith(b"<<< QEMU"):
        return data[:392] + data[424:]  # VdiHeader in QEMU's block/vdi.c: uuid_image, uuid_last_snap
    for footer in {data.find(b"conectix"), data.rfind(b"conectix")} - {-1}:
        # VHDFooter in QEMU's block/vpc.c: timestamp at 24, checksum at 64, uuid at 68
        data = data[: footer + 24] + bytes(4) + data[footer + 28 : footer + 64] + bytes(20) + data[footer + 84 :]
    return data


def differences(ours: Any, theirs: Any, where: str = "") -> list[str]:
    """Where two worlds differ, place by place."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        found = []
        for key in sorted(ours.keys() | theirs.keys()):
            if key not in ours:
                found.append(f"{where}/{key}: only libvirt has {theirs[key]!r}")
            elif key not in theirs:
                found.append(f"{where}/{key}: only astore has {ours[key]!r}")
            else:
                found += differences(ours[key], theirs[key], f"{where}/{key}")
        return found
    return [] if ours == theirs else [f"{where}:\n  astore  {ours!r}\n  libvirt {theirs!r}"]
