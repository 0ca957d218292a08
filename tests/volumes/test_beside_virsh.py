"""virsh and qemu-img on the very pools that astore works in: each sees what the others made, during the work and after."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import re
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from core_fakes import eventually
from lxml import etree
from volumes.real_servers import MIB, PATIENCE, dir_pool, gluster_pool, names_on, netfs_pool, volume_in_memory

from astore.errors import VolumeNotFoundError
from astore.manager import Manager
from astore.model import BackingStore, VolumeDef
from astore.pools.pool import Pool
from astore.testing.faults import Faults
from astore.volume_io.volume_names import TEMPORARY
from beds import fuse
from beds.libvirt import VirshError

if TYPE_CHECKING:
    from beds.gluster import GlusterBed
    from beds.libvirt import LibvirtBed

pytestmark = [pytest.mark.libvirt, pytest.mark.qemu]

DATA = os.urandom(3 * MIB)

SIZES = ("capacity", "allocation", "physical")


@pytest.fixture
async def real(tmp_path: Path) -> AsyncIterator[Manager]:
    """A Manager with the installed backends."""
    async with Manager(tmp_path / "real") as manager, asyncio.timeout(2 * PATIENCE):
        yield manager


class Virsh:
    """virsh, on one of libvirt's pools."""

    def __init__(self, bed: LibvirtBed, pool: str) -> None:
        self._bed = bed
        self.pool = pool

    async def __call__(self, command: str, *arguments: str | os.PathLike[str]) -> str:
        """A command that names the volume first, or none; what it prints."""
        words = [os.fspath(word) for word in arguments]
        if command.startswith("pool-") or command in ("vol-create-as", "vol-list"):
            return await asyncio.to_thread(self._bed.virsh, command, self.pool, *words)
        return await asyncio.to_thread(self._bed.virsh, command, "--pool", self.pool, *words)

    async def names(self) -> list[str]:
        """What it lists."""
        out = await self("vol-list")
        return sorted(re.split(r"  +", line.strip())[0] for line in out.splitlines() if line.strip())

    async def record(self, name: str) -> dict[str, Any]:
        """What it writes of a volume."""
        return told(await self("vol-dumpxml", name))


@contextlib.asynccontextmanager
async def defined(bed: LibvirtBed, definition: str, name: str) -> AsyncIterator[Virsh]:
    """A pool of libvirt's, started."""
    virsh = Virsh(bed, name)
    await asyncio.to_thread(bed.define, definition)
    try:
        await virsh("pool-start")
        yield virsh
    finally:
        with contextlib.suppress(VirshError):  # it may not even have been started
            await virsh("pool-destroy")
        await virsh("pool-undefine")


def told(xml: str) -> dict[str, Any]:
    """What a volume's document says."""
    volume = etree.fromstring(xml.encode())
    texts = ("name", "key", "target/path", "target/permissions/mode", "target/compat", "backingStore/path")
    found: dict[str, Any] = {path: volume.findtext(path) for path in (*SIZES, *texts)}
    for path in ("target/format", "backingStore/format"):
        element = volume.find(path)
        found[path] = None if element is None else element.get("type")
    if found["target/compat"] == "0.10":  # libvirt has no word for it
        found["target/compat"] = None
    return found | {"type": volume.get("type"), "features": [one.tag for one in volume.iterfind("target/features/*")]}


def comparable(record: dict[str, Any]) -> dict[str, Any]:
    """A record without what libvirt does not tell: a directory's size, and where on Gluster a backing file's name leads."""
    backing = record["backingStore/path"]
    short = record | {"backingStore/path": backing and backing.rpartition("/")[2]}
    return short | dict.fromkeys(SIZES) if record["target/format"] == "dir" else short


async def qemu_img(*arguments: str | os.PathLike[str]) -> Any:
    """Run qemu-img; what it says, as JSON."""
    process = await asyncio.create_subprocess_exec(
        "qemu-img", *arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    out, err = await process.communicate()
    assert process.returncode == 0, (arguments, err)
    return json.loads(out) if out.lstrip().startswith(b"{") else None


async def info_by_qemu(path: str) -> tuple[str, int]:
    """Format and capacity as qemu-img finds them; an image is checked."""
    info = await qemu_img("info", "-U", "--output=json", path)
    if info["format"] == "qcow2":
        await qemu_img("check", "-U", "-q", path)
    return info["format"], info["virtual-size"]


async def content_of(pool: Pool, name: str) -> bytes:
    """All that is in a volume."""
    async with pool.volume(name).download() as blocks:
        return b"".join([bytes(block) async for block in blocks])


@contextlib.asynccontextmanager
async def folder_pool(
    kind: str, gluster: Callable[[], GlusterBed], manager: Manager, bed: LibvirtBed, tmp_path: Path
) -> AsyncIterator[tuple[Pool, Virsh]]:
    """A pool of astore's of type ``dir`` or ``netfs``, and libvirt's on the same folder."""
    folder = tmp_path / "pool"
    folder.mkdir()
    with contextlib.ExitStack() as stack:
        definition = dir_pool(folder)
        if kind == "netfs":
            stack.enter_context(volume_in_memory(gluster(), "seen", 256))
            stack.callback(fuse.release, folder)
            definition = netfs_pool(gluster(), "seen", folder)
        pool = await manager.define(definition)
        await pool.start()
        async with defined(bed, dir_pool(folder, "same").to_xml(), "same") as virsh:
            yield pool, virsh
        await pool.stop()


KINDS = ["dir", pytest.param("netfs", marks=[pytest.mark.gluster, pytest.mark.fuse])]


@pytest.fixture(params=KINDS)
async def both(
    request: pytest.FixtureRequest, real: Manager, libvirt_bed: LibvirtBed, tmp_path: Path
) -> AsyncIterator[tuple[Pool, Virsh]]:
    """The same folder twice: astore's pool, and libvirt's."""

    def bed() -> GlusterBed:
        found: GlusterBed = request.getfixturevalue("gluster")
        return found

    async with folder_pool(request.param, bed, real, libvirt_bed, tmp_path) as pair:
        yield pair


async def make_all(pool: Pool) -> None:
    """One volume in each of the ways in which there can be made one."""
    raw = await pool.create_volume(VolumeDef("raw", capacity=4 * MIB))
    await raw.upload(DATA)
    await pool.create_volume(VolumeDef("full", capacity=2 * MIB, allocation=2 * MIB))
    image = VolumeDef("image", capacity=8 * MIB, format="qcow2", features=("lazy_refcounts",))
    await pool.create_volume(image)
    await pool.create_volume(VolumeDef("backed", format="qcow2", backing=BackingStore("image", "qcow2")))
    await pool.copy_volume(raw, VolumeDef("copy", capacity=6 * MIB))
    await pool.copy_volume(raw, VolumeDef("converted", format="qcow2"))
    for name in ("small", "large"):
        await pool.create_volume(VolumeDef(name, capacity=MIB, format="qcow2"))
    await pool.volume("large").resize(16 * MIB)
    await pool.volume("small").rename("renamed")
    await pool.create_volume(VolumeDef("gone", capacity=MIB))
    await pool.volume("gone").delete()
    await pool.create_volume(VolumeDef("folder", format="dir"))


async def test_they_see_what_astore_made(both: tuple[Pool, Virsh]) -> None:
    """virsh writes of each volume what astore writes; qemu-img finds images without fault, and copies equal."""
    pool, virsh = both
    await make_all(pool)
    await asyncio.gather(virsh("pool-refresh"), pool.refresh(full=True))
    names = [one.name for one in pool.volumes]
    assert await virsh.names() == names
    assert len(names) == 9
    for name in names:
        volume = pool.volume(name)
        assert comparable(told(volume.to_xml())) == comparable(await virsh.record(name))
        if name != "folder":
            assert f" {volume.info.capacity} bytes" in await virsh("vol-info", name, "--bytes")
            assert await info_by_qemu(volume.path) == (volume.info.format, volume.info.capacity)
    path = {name: pool.volume(name).path for name in names}
    await qemu_img("compare", "-q", path["raw"], path["converted"])
    await qemu_img("compare", "-q", "-f", "raw", "-F", "raw", path["raw"], path["copy"])
    backing = await qemu_img("info", "--output=json", path["backed"])
    assert (backing["full-backing-filename"], backing["backing-filename-format"]) == (path["image"], "qcow2")


async def test_astore_sees_what_they_made(both: tuple[Pool, Virsh], tmp_path: Path) -> None:
    """Whatever virsh and qemu-img did to the pool's volumes, a refresh finds it, and astore works on with it."""
    pool, virsh = both

    async def seen(name: str) -> tuple[str | None, int]:
        await asyncio.gather(virsh("pool-refresh"), pool.refresh())
        info = pool.volume(name).info
        assert told(pool.volume(name).to_xml()) == await virsh.record(name)
        return info.format, info.capacity

    data = tmp_path / "data"
    data.write_bytes(DATA)
    await virsh("vol-create-as", "raw", "4M", "--allocation", "0")
    assert await seen("raw") == ("raw", 4 * MIB)
    await virsh("vol-upload", "raw", data)
    assert await content_of(pool, "raw") == DATA.ljust(4 * MIB, b"\0")
    await virsh("vol-create-as", "image", "8M", "--format", "qcow2")
    assert await seen("image") == ("qcow2", 8 * MIB)
    await virsh(
        "vol-create-as", "backed", "8M", "--format", "qcow2", "--backing-vol", "image", "--backing-vol-format", "qcow2"
    )
    await seen("backed")
    assert [link.volume for link in pool.volume("backed").backing_chain()] == [
        pool.volume(n) for n in ("backed", "image")
    ]
    await virsh("vol-resize", "raw", "6M")
    assert await seen("raw") == ("raw", 6 * MIB)
    await virsh("vol-clone", "raw", "clone")
    assert await seen("clone") == ("raw", 6 * MIB)
    assert await content_of(pool, "clone") == DATA.ljust(6 * MIB, b"\0")
    await virsh("vol-delete", "clone")
    await pool.refresh()
    assert [one.name for one in pool.volumes] == ["backed", "image", "raw"] == await virsh.names()

    place = Path(pool.volume("raw").path).parent
    await qemu_img("create", "-q", "-f", "qcow2", place / "made", "16M")
    await qemu_img("convert", "-q", "-O", "qcow2", place / "raw", place / "converted")
    await qemu_img("resize", "-q", "-f", "qcow2", place / "image", "10M")
    assert await seen("made") == ("qcow2", 16 * MIB)
    assert await seen("converted") == ("qcow2", 6 * MIB)
    assert await seen("image") == ("qcow2", 10 * MIB)
    await qemu_img("snapshot", "-c", "before", place / "made")
    await pool.refresh()
    await pool.volume("made").resize(32 * MIB)
    back = await pool.copy_volume(pool.volume("converted"), VolumeDef("back", format="raw"))
    assert await content_of(pool, "back") == DATA.ljust(6 * MIB, b"\0")
    assert await info_by_qemu(os.fspath(place / "made")) == ("qcow2", 32 * MIB)
    snapshots = (await qemu_img("info", "--output=json", place / "made"))["snapshots"]
    assert [one["name"] for one in snapshots] == ["before"]
    await back.delete()


async def test_while_astore_works(both: tuple[Pool, Virsh]) -> None:
    """virsh refreshes, lists, makes and deletes beside astore's work; at the end both know of the same volumes."""
    pool, virsh = both
    await pool.create_volume(VolumeDef("target", capacity=4 * MIB))
    ended = asyncio.Event()
    makers = 3
    making = asyncio.Semaphore(makers)

    async def make(number: int) -> None:
        for turn in itertools.count():
            if ended.is_set():
                break
            name = f"mine{number}.{turn}"
            async with making:
                await pool.create_volume(VolumeDef(name, capacity=MIB, allocation=MIB))
                if turn % 4:
                    await pool.volume(name).delete()

    async def upload() -> None:
        while not ended.is_set():
            assert await pool.volume("target").upload(DATA) == len(DATA)
            async with making:
                copy = await pool.copy_volume(pool.volume("target"), VolumeDef("copy"))
                await copy.delete()

    async def refresh_theirs() -> None:
        async with contextlib.AsyncExitStack() as stack:
            if pool.type == "netfs":  # on a mount, libvirt's refresh fails with ESTALE if a file goes meanwhile
                for _ in range(makers):
                    await stack.enter_async_context(making)
            await virsh("pool-refresh")

    async def theirs() -> None:
        try:
            for turn in range(4):
                await refresh_theirs()
                assert "target" in await virsh.names()
                assert f" {4 * MIB} bytes" in await virsh("vol-info", "target", "--bytes")
                await virsh("vol-create-as", f"theirs{turn}", "1M", "--format", "qcow2")
                await pool.refresh()
                assert pool.volume(f"theirs{turn}").info.format == "qcow2"
                if turn % 2:
                    await virsh("vol-delete", f"theirs{turn}")
        finally:
            ended.set()

    async with asyncio.TaskGroup() as group:
        for work in (make(0), make(1), upload(), theirs()):
            group.create_task(work)
    await asyncio.gather(virsh("pool-refresh"), pool.refresh())
    names = [one.name for one in pool.volumes]
    assert await virsh.names() == names
    assert {f"theirs{turn}" for turn in range(0, 4, 2)} < set(names)
    assert not {f"theirs{turn}" for turn in range(1, 4, 2)} & set(names)
    for name in names:
        assert told(pool.volume(name).to_xml()) == await virsh.record(name)


@pytest.mark.parametrize("deleted", [False, True])
async def test_volume_in_the_making(
    pool: Pool, folder: Path, faults: Faults, libvirt_bed: LibvirtBed, deleted: bool
) -> None:
    """virsh shows a volume in the making, under its hidden name; deleted there, it never comes to be, which is said."""
    gate = faults.hang("tree.link")
    making = asyncio.ensure_future(pool.create_volume(VolumeDef("new", capacity=MIB, allocation=MIB)))
    await eventually(lambda: gate.inside)
    async with defined(libvirt_bed, dir_pool(folder, "same").to_xml(), "same") as virsh:
        (hidden,) = await virsh.names()
        assert hidden.startswith(TEMPORARY)
        assert (await virsh.record(hidden))["capacity"] == str(MIB)
        assert (await pool.refresh()).errors == ()
        assert pool.volumes == ()
        if deleted:
            await virsh("vol-delete", hidden)
        gate.open()
        if deleted:
            with pytest.raises(VolumeNotFoundError, match="not there any more"):
                await making
        else:
            await making
        await virsh("pool-refresh")
        expected = [] if deleted else ["new"]
        assert await virsh.names() == [one.name for one in pool.volumes] == os.listdir(folder) == expected


async def test_while_a_volume_is_written(pool: Pool, folder: Path, faults: Faults, libvirt_bed: LibvirtBed) -> None:
    """Half-way through an upload, which astore has locked against its like, virsh and qemu-img can look at the volume."""
    disk = await pool.create_volume(VolumeDef("a", capacity=4 * MIB))
    gate = faults.hang("file.sync")
    uploading = asyncio.ensure_future(disk.upload(DATA))
    await eventually(lambda: gate.inside)
    async with defined(libvirt_bed, dir_pool(folder, "same").to_xml(), "same") as virsh:
        assert (await virsh.record("a"))["capacity"] == str(4 * MIB)
        out = folder.parent / "out"
        await virsh("vol-download", "a", out)
        assert out.read_bytes() == DATA.ljust(4 * MIB, b"\0")
        assert await info_by_qemu(disk.path) == ("raw", 4 * MIB)
        gate.open()
        assert await uploading == len(DATA)


@pytest.mark.root
@pytest.mark.gluster
async def test_gluster(gluster: GlusterBed, real: Manager, libvirt_bed: LibvirtBed) -> None:
    """On a Gluster pool, which they reach by its URL, while astore works on it."""
    with volume_in_memory(gluster, "seen-by-url", 256) as brick:
        pool = await real.define(gluster_pool(gluster, "seen-by-url"))
        await pool.start()
        await make_all(pool)
        place = pool.volume("raw").path.removesuffix("raw")
        ended = asyncio.Event()

        async def work() -> None:
            # nothing that makes or removes: libvirt's refresh of such a pool fails when a file goes under its hands
            while not ended.is_set():
                await pool.volume("full").upload(DATA[: 2 * MIB])

        mine = [one.name for one in pool.volumes]
        xml = gluster_pool(gluster, "seen-by-url", "same").to_xml()
        async with asyncio.TaskGroup() as group:  # libvirt and qemu-img take 10 s each to let go of a Gluster volume
            group.create_task(work())
            looking = [
                group.create_task(qemu_img(*words))
                for words in (
                    ("info", "-U", "--output=json", place + "backed"),
                    ("check", "-q", place + "converted"),
                    ("compare", "-q", place + "raw", place + "copy"),
                    ("create", "-q", "-f", "qcow2", place + "made", "16M"),
                )
            ]
            async with defined(libvirt_bed, xml, "same") as virsh:
                assert set(mine) <= set(await virsh.names()) <= {*mine, "made"}
                for name in mine:
                    assert comparable(told(pool.volume(name).to_xml())) == comparable(await virsh.record(name))
            await asyncio.gather(*looking)
            ended.set()
        backed = looking[0].result()
        assert (backed["format"], backed["virtual-size"]) == ("qcow2", 8 * MIB)
        await pool.refresh()
        assert {one.name for one in pool.volumes} == {*mine, "made"} == set(names_on(brick))
        made = pool.volume("made").info
        assert (made.format, made.capacity) == ("qcow2", 16 * MIB)
        await pool.stop()
