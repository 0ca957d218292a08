"""What an image is made of: what was once read, written or opened wrongly, case by case."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
import struct
from pathlib import Path

import pytest
from images.qemu_images import create
from made_of.conftest import ALL
from made_of.places import MIB, Place, json_name

from astore.errors import DefinitionError, StorageError, VolumeInUseError
from astore.images import formats
from astore.manager import Manager
from astore.model import BackingStore, Host, PoolDef, Source, Target, VolumeDef
from astore.pools.pool import Pool
from astore.pools.volume import Volume

pytestmark = pytest.mark.qemu

SECRET = b"SECRET " * 1000

everywhere = pytest.mark.parametrize("place", ALL, indirect=True)
with_links = pytest.mark.parametrize("place", ALL[:2], indirect=True)


async def evil(place: Place, size: int = MIB) -> tuple[bytes, Path]:
    """The bytes of a qcow2 image with its data in a file outside, and that file."""
    path, data = place.elsewhere / "evil", place.elsewhere / "data"
    await place.qemu_img("create", "-q", "-f", "qcow2", "-o", f"data_file={data}", path, str(size))
    return await asyncio.to_thread(path.read_bytes), data


# ---------------------------------------------------------------------------------------------- what is read


@everywhere
async def test_format_of_the_backing_file(place: Place) -> None:
    """1: A backing file is read in the format that the overlay's header gives it, whatever it looks like."""
    await place.raw("b.raw", SECRET)
    await place.overlay("a.raw", "b.raw")
    await asyncio.to_thread(os.truncate, place.folder / "a.raw", MIB)
    await place.overlay("s.qcow2", "a.raw")
    top = await place.volume("s.qcow2")
    assert await place.disk(top) == await place.bytes_of("a.raw")
    assert [link.volume and link.volume.name for link in top.backing_chain()] == ["s.qcow2", "a.raw"]
    assert [one.name for one in place.manager.dependents(place.pool.volume("a.raw"))] == ["s.qcow2"]


@everywhere
@pytest.mark.parametrize("kind", ["no backing", "offset", "offset below", "unknown", "another backing"])
async def test_nodes_with_options(place: Place, kind: str) -> None:
    """2: A node that says more than a location and a driver is not read, and what it names is protected."""
    await place.raw("base.raw", SECRET)
    await place.overlay("mid.qcow2", "base.raw")
    file = place.node("mid.qcow2")
    node = {
        "no backing": {"driver": "qcow2", "backing": None, "file": file},
        "offset": {"driver": "raw", "offset": 512, "size": 4096, "file": file},
        "offset below": {"driver": "qcow2", "file": {"driver": "raw", "offset": 0, "file": file}},
        "unknown": {"driver": "qcow2", "x-what": 1, "file": file},
        "another backing": {"driver": "qcow2", "backing": {"driver": "null-co"}, "file": file},
    }[kind]
    await place.overlay("top.qcow2", json_name(node), str(node["driver"]))
    top = await place.volume("top.qcow2")
    async with place.refused("needs"):
        await place.clone(top, "out", "raw")
    async with place.refused("needs"):
        await place.clone(top, "out", "qcow2", cluster_size=512)
    async with place.refused(error=VolumeInUseError):
        await place.pool.volume("mid.qcow2").delete()


@with_links
async def test_dots_behind_a_link(place: Place, tmp_path: Path) -> None:
    """3: ``..`` behind a link leads where the kernel says, which may be out of the pool."""
    (tmp_path / "x" / "sub").mkdir(parents=True)
    (tmp_path / "x" / "base.img").write_bytes(SECRET.ljust(MIB, b"\0"))
    await place.raw("base.img")
    (place.folder / "d").symlink_to(tmp_path / "x" / "sub")
    await place.overlay("l.qcow2", "d/../base.img")
    top = await place.volume("l.qcow2")
    async with place.refused("no volume of an active pool"):
        await place.clone(top, "out")
    assert place.manager.dependents(place.pool.volume("base.img")) == []
    other = await place.manager.create(PoolDef(type="dir", name="x", target=Target(path=str(tmp_path / "x"))))
    await place.pool.refresh()
    assert (await place.disk(top))[: len(SECRET)] == SECRET
    assert place.manager.dependents(other.volume("base.img")) == [top]


@everywhere
async def test_one_file_by_several_names(place: Place) -> None:
    """4: A file is protected by whatever name, or through whatever link, it is named."""
    await place.raw("b2", SECRET)
    (place.folder / "cur").symlink_to("b2")
    os.link(place.folder / "b2", place.folder / "hard")
    await place.overlay("top.qcow2", "cur")
    await place.pool.refresh()
    for name in ("b2", "hard", "cur"):
        volume = place.pool.snapshot.get(name)
        if volume is None:  # Gluster's library lists no links
            continue
        for work in ("delete", "wipe"):
            async with place.refused("top.qcow2", error=VolumeInUseError):
                await getattr(place.pool.volume(name), work)()
    assert await place.bytes_of("b2") == SECRET.ljust(MIB, b"\0")


async def test_pool_behind_a_link(manager: Manager, tmp_path: Path) -> None:
    """4: A file is the same in a pool that is reached through a link, and when a header names it by the other path."""
    real = tmp_path / "real"
    real.mkdir()
    (tmp_path / "link").symlink_to(real)
    pool = await manager.create(PoolDef(type="dir", name="l", target=Target(path=str(tmp_path / "link"))))
    place = Place("dir", pool, real, str(tmp_path / "link"), tmp_path, manager)
    await place.raw("base", SECRET)
    await place.overlay("top.qcow2", str(real / "base"))
    top = await place.volume("top.qcow2")
    for work in ("delete", "wipe"):
        async with place.refused(error=VolumeInUseError):
            await getattr(pool.volume("base"), work)()
    assert (await place.disk(top))[: len(SECRET)] == SECRET


async def test_link_in_another_folder(place: Place, tmp_path: Path) -> None:
    """3, 4: An image that is named by a link has its own relative names seen from the link's folder, as QEMU has it."""
    (tmp_path / "links").mkdir()
    await place.raw("base", SECRET)
    await place.overlay("mid.qcow2", "base")
    (tmp_path / "links" / "mid").symlink_to(place.folder / "mid.qcow2")
    (place.folder / "mid").symlink_to("mid.qcow2")
    (tmp_path / "links" / "folder").symlink_to(place.folder)
    for name, fine in ((f"{tmp_path}/links/mid", False), ("mid", True), (f"{tmp_path}/links/folder/mid.qcow2", True)):
        await place.overlay("top.qcow2", name, "qcow2")
        top = await place.volume("top.qcow2")
        if fine:
            assert (await place.disk(top))[: len(SECRET)] == SECRET
        else:
            async with place.refused("another folder"):
                await place.clone(top, "out")
        async with place.refused("top.qcow2", error=VolumeInUseError):
            await place.pool.volume("mid.qcow2").delete()


# -------------------------------------------------------------------------------------- what is never written or opened


@everywhere
async def test_data_file_outside(place: Place) -> None:
    """5: An image with its data in another file is not resized, copied or wiped, and that file is left alone."""
    data = place.elsewhere / "v"
    await place.image("-o", f"data_file={data},data_file_raw=on", "e.qcow2", "1M")
    before = data.stat()
    volume = await place.volume("e.qcow2")
    async with place.refused(str(data)):
        await volume.resize(65536, shrink=True)
    async with place.refused(str(data)):
        await volume.resize(4 * MIB)
    async with place.refused(str(data)):
        await volume.wipe()
    async with place.refused(str(data)):
        await place.clone(volume, "out", "qcow2")
    async with place.refused(str(data)):
        await place.clone(volume, "out", "raw")
    assert (data.stat().st_size, data.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)


async def test_data_file_of_a_relative_name(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """5: A data file of a relative name is not looked for in the working directory."""
    work = tmp_path / "work"
    work.mkdir()
    await place.image("-o", "data_file=v,data_file_raw=on", "e.qcow2", "1M")
    (work / "v").write_bytes(SECRET)
    monkeypatch.chdir(work)
    volume = await place.volume("e.qcow2")
    for capacity in (65536, 4 * MIB):
        async with place.refused():
            await volume.resize(capacity, shrink=capacity < MIB)
    async with place.refused():
        await place.clone(volume, "out")
    assert (work / "v").read_bytes() == SECRET


@everywhere
async def test_header_of_a_guest(place: Place) -> None:
    """6, 10: A volume that was made raw is resized and copied as raw, whatever header its guest writes."""
    header, data = await evil(place)
    before = data.stat().st_mtime_ns
    volume = await place.pool.create_volume(VolumeDef("g.raw", capacity=MIB))
    await asyncio.to_thread(_overwrite, place.folder / "g.raw", header[:MIB])
    volume = await place.volume("g.raw")
    if volume.info.made != "raw":  # a brick that keeps no notes: then it is what its header says, and refused
        async with place.refused(str(data)):
            await volume.resize(32 * MIB)
        return
    assert (volume.info.format, volume.info.header_format) == ("raw", "qcow2")
    assert (await volume.resize(32 * MIB)).capacity == 32 * MIB
    assert (await place.bytes_of("g.raw"))[: len(header)] == header[:MIB]
    copy = await place.clone(volume, "copy")
    assert (await place.volume("copy")).info.format == "raw"
    assert await place.bytes_of("copy") == await place.bytes_of("g.raw")
    await copy.delete()
    converted = await place.clone(volume, "converted.qcow2", "qcow2")
    assert await place.disk(converted) == await place.bytes_of("g.raw")
    assert 'type="raw"' in volume.disk_xml()
    assert data.stat().st_mtime_ns == before


@everywhere
async def test_header_of_somebody(place: Place) -> None:
    """6: A raw file that nobody knows to have been made raw is refused once it has a header that names others."""
    header, data = await evil(place)
    await place.raw("g.raw", header, 2 * MIB)
    volume = await place.volume("g.raw")
    for capacity in (32 * MIB, 65536):
        async with place.refused(str(data)):
            await volume.resize(capacity, shrink=capacity < MIB)
    async with place.refused(str(data)):
        await place.clone(volume, "out", "qcow2", capacity=64 * MIB)


@everywhere
async def test_header_since_the_last_look(place: Place) -> None:
    """6: A header that changed since the last refresh is noticed, whether the volume is copied, converted or resized."""
    header, data = await evil(place)
    before = data.stat().st_mtime_ns
    await place.raw("g", b"", 2 * MIB)
    await place.image("i.qcow2", "1M")
    await place.pool.refresh()
    for name in ("g", "i.qcow2"):
        await asyncio.to_thread(_overwrite, place.folder / name, header)
        volume = place.pool.volume(name)
        kind = volume.info.format or "raw"
        for other in ("qcow2", "raw"):
            async with place.refused(error=StorageError):
                await place.clone(volume, "out", other, capacity=64 * MIB)
        if kind == "qcow2":
            async with place.refused(error=StorageError):
                await volume.resize(64 * MIB)
        assert kind == volume.info.format or volume.info.references
    assert data.stat().st_mtime_ns == before


@everywhere
async def test_upload_of_a_header(place: Place) -> None:
    """6, 10: An image whose header names other files is refused before anything is written, unless that is meant."""
    header, data = await evil(place)
    volume = await place.pool.create_volume(VolumeDef("up", capacity=MIB))
    async with place.refused("names another file", error=StorageError):
        await volume.upload(header)
    assert await place.bytes_of("up") == bytes(MIB)
    await volume.upload(header, allow_references=True)
    volume = await place.volume("up")
    assert volume.info.format == "qcow2"
    async with place.refused(str(data)):
        await volume.resize(8 * MIB)


@everywhere
@pytest.mark.parametrize("kind", ["nbd", "foreign", "fifo"])
async def test_nothing_is_opened_to_resize(place: Place, kind: str) -> None:
    """7: Resizing an image opens nothing that its header names: no server, no foreign file, no FIFO."""
    fifo, foreign = place.elsewhere / "fifo", place.elsewhere / "foreign"
    os.mkfifo(fifo)
    foreign.write_bytes(SECRET)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        name = {"nbd": f"nbd://127.0.0.1:{listener.getsockname()[1]}/x", "fifo": str(fifo), "foreign": str(foreign)}[
            kind
        ]
        await place.overlay("n.qcow2", name)
        volume = await place.volume("n.qcow2")
        before = foreign.stat().st_atime_ns
        async with place.refused("is backed by"):  # what it gains would show what is there
            await volume.resize(4 * MIB)
        assert (await volume.resize(65536, shrink=True)).capacity == 65536
        async with place.refused("no volume of an active pool"):
            await place.clone(volume, "out")
        with pytest.raises(BlockingIOError):
            listener.accept()
        assert foreign.stat().st_atime_ns == before


@everywhere
async def test_made_raw_below_an_image(place: Place) -> None:
    """10: An overlay over a volume that was made raw says that it is raw, and one that does not say so is refused."""
    if await _raw_like_an_image(place) is None:
        return
    backed = VolumeDef("over.qcow2", format="qcow2", backing=BackingStore(path="g.raw"))
    over = await place.pool.create_volume(backed)
    assert [link.format for link in over.backing_chain()] == ["qcow2", "raw"]
    assert await place.disk(over) == await place.bytes_of("g.raw")
    async with place.refused("made raw", error=DefinitionError):
        wrong = VolumeDef("wrong.qcow2", format="qcow2", backing=BackingStore(path="g.raw", format="qcow2"))
        await place.pool.create_volume(wrong)
    await place.overlay("silent.qcow", "g.raw", "qcow2")
    silent = await place.volume("silent.qcow")
    async with place.refused():
        await place.clone(silent, "out")
    async with place.refused("made raw", error=DefinitionError):
        await place.pool.create_volume(VolumeDef("wrong", format="vmdk", backing=BackingStore(path="g.raw")))


@everywhere
async def test_format_that_is_said(place: Place) -> None:
    """10: Somebody who says that a volume that was made raw is what it looks like is believed."""
    volume = await _raw_like_an_image(place)
    if volume is None:
        return
    assert (await volume.set_format("qcow2")).format == "qcow2"
    assert (await place.disk(volume))[: len(SECRET)] == SECRET
    assert (await volume.set_format("raw")).format == "raw"
    assert await place.disk(volume) == await place.bytes_of("g.raw")


# ------------------------------------------------------------------------------------------------------ several files


@everywhere
@pytest.mark.parametrize("kind", ["monolithicFlat", "twoGbMaxExtentFlat", "twoGbMaxExtentSparse"])
async def test_extents(place: Place, kind: str) -> None:
    """11, 12, 13: A VMDK in several files is not copied or wiped; its extents are protected."""
    await place.image("-o", f"subformat={kind}", "m.vmdk", "1M", format="vmdk")
    volume = await place.volume("m.vmdk")
    extents = [link.volume for link in volume.backing_chain()[1:]]
    assert extents and None not in extents
    for format in ("vmdk", "raw", "qcow2"):
        async with place.refused("another file"):
            await place.clone(volume, "out", format)
    async with place.refused(extents[0].name if extents[0] else "?"):
        await volume.wipe()
    async with place.refused():
        await volume.resize(4 * MIB)
    for extent in extents:
        assert extent is not None
        for work in (
            extent.delete,
            extent.wipe,
            lambda one=extent: one.rename("zz"),
            lambda one=extent: one.resize(9 * MIB),
        ):
            async with place.refused("m.vmdk", error=VolumeInUseError):
                await work()


@with_links
async def test_data_file_is_protected(place: Place) -> None:
    """12: A data file in the pool is protected as a backing file is."""
    await place.image("-o", f"data_file={place.path('data')}", "e.qcow2", "1M")
    await place.pool.refresh()
    data = place.pool.volume("data")
    for work in (data.delete, data.wipe, lambda: data.rename("zz"), lambda: data.resize(9 * MIB)):
        async with place.refused("e.qcow2", error=VolumeInUseError):
            await work()


@everywhere
async def test_parent_without_a_descriptor_size(place: Place) -> None:
    """14: A VMDK's parent is found as QEMU finds it, whatever the header says of the descriptor's size."""
    await place.image("parent.vmdk", "1M", format="vmdk")
    argv = ["qemu-io", "-f", "vmdk", "-c", "write -P 7 0 64k", str(place.folder / "parent.vmdk")]
    done = await asyncio.create_subprocess_exec(*argv, stdout=asyncio.subprocess.DEVNULL)
    assert await done.wait() == 0
    await place.qemu_img("create", "-q", "-f", "vmdk", "-b", "parent.vmdk", "-F", "vmdk", "child.vmdk")
    await asyncio.to_thread(_overwrite, place.folder / "child.vmdk", bytes(8), 36)
    child = await place.volume("child.vmdk")
    parent = place.pool.volume("parent.vmdk")
    async with place.refused("child.vmdk", error=VolumeInUseError):
        await parent.delete()
    assert [link.volume for link in child.backing_chain()] == [child, parent]
    assert (await place.disk(child))[:65536] == bytes([7]) * 65536


# ------------------------------------------------------------------------------------------------------------- formats


async def test_differencing_vhd(place: Place) -> None:
    """15: A differencing VHD, whose parent QEMU does not look for, is refused."""
    await place.image("d.vhd", "1M", format="vpc")

    def turn() -> None:
        with open(place.folder / "d.vhd", "r+b") as file:
            data = bytearray(file.read())
            for at in (0, len(data) - 512):
                data[at + 60 : at + 64] = struct.pack(">I", 4)
                data[at + 64 : at + 68] = bytes(4)
                data[at + 64 : at + 68] = struct.pack(">I", ~sum(data[at : at + 512]) & 0xFFFFFFFF)
            file.seek(0)
            file.write(data)

    await asyncio.to_thread(turn)
    volume = await place.volume("d.vhd")
    assert [one.kind.value for one in volume.info.references] == ["parent"]
    for format in ("raw", "qcow2"):
        async with place.refused("differencing"):
            await place.clone(volume, "out", format)


async def test_vhdx(place: Place) -> None:
    """16: A VHDX is known, with its size, and converted, also as a backing file."""
    await place.image("h.vhdx", "8M", format="vhdx")
    argv = ["qemu-io", "-f", "vhdx", "-c", "write -P 7 64k 64k", str(place.folder / "h.vhdx")]
    done = await asyncio.create_subprocess_exec(*argv, stdout=asyncio.subprocess.DEVNULL)
    assert await done.wait() == 0
    await place.overlay("over.qcow2", "h.vhdx", "vhdx", "8M")
    volume = await place.volume("h.vhdx")
    assert (volume.info.format, volume.info.capacity) == ("vhdx", 8 * MIB)
    wanted = (bytes(65536) + bytes([7]) * 65536).ljust(8 * MIB, b"\0")
    assert await place.disk(volume) == wanted
    assert await place.disk(place.pool.volume("over.qcow2")) == wanted
    converted = await place.clone(volume, "h.qcow2", "qcow2")
    assert (converted.info.capacity, await place.disk(converted)) == (8 * MIB, wanted)


BOCHS = struct.pack("<32s16s16sII", b"Bochs Virtual HD Image", b"Redolog", b"Growing", 0x00020000, 512)
CLOOP = b"#!/bin/sh\n#V2.0 Format\nmodprobe cloop file=$0 && mount -r -t iso9660 /dev/cloop $1\n"
CLOOP = CLOOP.ljust(128, b"\0") + struct.pack(">II", 65536, 1)


@pytest.mark.parametrize(("format", "head"), [("bochs", BOCHS), ("cloop", CLOOP)], ids=["bochs", "cloop"])
async def test_formats_that_are_only_known(place: Place, format: str, head: bytes) -> None:
    """16: Bochs' and cloop's images are known by their magic, and refused."""
    await place.raw("x", head)
    volume = await place.volume("x")
    assert volume.info.format == format
    for wanted in ("raw", "qcow2"):
        async with place.refused(format):
            await place.clone(volume, "out", wanted)
    await place.overlay("over.qcow2", "x", format)
    over = await place.volume("over.qcow2")
    async with place.refused():
        await place.clone(over, "out")


@everywhere
@pytest.mark.parametrize("name", ["ubuntu:22.04.raw", "json:{}", "nbd:x:1", "file:x", "a b,c=d%20"])
async def test_names_with_colons(place: Place, name: str) -> None:
    """17: An overlay on a volume with a ``:`` in its name is one that QEMU opens, and the volume is protected."""
    await place.raw(name, SECRET)
    base = await place.volume(name)
    over = await place.pool.create_volume(VolumeDef("u.qcow2", format="qcow2", backing=BackingStore(path=name)))
    async with place.refused("u.qcow2", error=VolumeInUseError):
        await base.delete()
    thin = await place.clone(base, "thin.qcow2", "qcow2", backing=BackingStore(path=name))
    for one in (over, thin):
        assert [link.volume for link in one.backing_chain()] == [one, base]
        assert await place.disk(one) == SECRET.ljust(MIB, b"\0")
        raw = place.elsewhere / "by-qemu"
        await place.qemu_img("convert", "-f", "qcow2", "-O", "raw", place.folder / one.name, raw)
        assert raw.read_bytes() == SECRET.ljust(MIB, b"\0")


@everywhere
async def test_directories(place: Place, manager: Manager) -> None:
    """18: A directory that is another pool's, or has what images need, is not renamed or removed."""
    for name in ("pool", "bases"):
        (place.folder / name).mkdir()
    await place.raw("bases/base", SECRET)
    await place.overlay("top.qcow2", place.path("bases/base"))
    await place.pool.refresh()
    await _pool_below(place, manager, "pool")
    for name in ("pool", "bases"):
        volume = place.pool.volume(name)
        async with place.refused(error=VolumeInUseError):
            await volume.rename("away")
        async with place.refused(error=VolumeInUseError):
            await volume.delete()


async def _pool_below(place: Place, manager: Manager, name: str) -> Pool:
    if place.kind != "gluster":
        return await manager.create(PoolDef(type="dir", name="below", target=Target(path=place.path(name))))
    mine = place.pool.definition.source
    source = Source(hosts=(Host(mine.hosts[0].name),), directory=f"{mine.directory}/{name}", name=mine.name)
    return await manager.create(PoolDef(type="gluster", name="below", source=source))


async def test_luks(place: Place) -> None:
    """19: The capacity of a LUKS image is the disk's; a header of LUKS2 does not keep a raw disk from being resized."""
    secret = ("--object", "secret,id=s,data=x")
    path = place.folder / "l.luks"
    options = ("-f", "luks", *secret, "-o", "key-secret=s,iter-time=10")
    await asyncio.to_thread(create, path, *options, str(path), "8M")
    volume = await place.volume("l.luks")
    assert volume.info.capacity == 8 * MIB
    raw = await place.pool.create_volume(VolumeDef("r", capacity=MIB))
    await asyncio.to_thread(_overwrite, place.folder / "r", (b"LUKS\xba\xbe\0\2").ljust(4096, b"\0"))
    await place.pool.refresh()
    assert (await raw.resize(2 * MIB)).capacity == 2 * MIB


async def test_names_from_a_working_directory(place: Place) -> None:
    """20: A relative ``file:`` name is not looked up beside the image."""
    await place.raw("base.raw", SECRET)
    await place.overlay("top.qcow2", "file:base.raw")
    top = await place.volume("top.qcow2")
    async with place.refused("file:base.raw"):
        await place.clone(top, "out")
    assert top.backing_chain()[1].volume is None


async def test_names_of_formats(place: Place) -> None:
    """21: QEMU is told its own names of formats, and libvirt libvirt's."""
    for format in ("parallels", "vpc", "vdi", "qed"):
        await place.image(f"x.{format}", "1M", format=format)
    await place.pool.refresh()
    for format in ("parallels", "vpc", "vdi", "qed"):
        volume = place.pool.volume(f"x.{format}")
        assert volume.qemu_blockdev()["driver"] == format
        assert formats.driver_of(volume.info.format) == format
    assert place.pool.volume("x.parallels").info.format == "ploop"


@everywhere
@pytest.mark.root
async def test_owner_and_mode(place: Place) -> None:
    """22: A copy has its source's owner and mode, whichever way it is made, unless it is said otherwise."""
    await place.raw("a", SECRET)
    os.chown(place.folder / "a", 107, 108)
    os.chmod(place.folder / "a", 0o640)
    volume = await place.volume("a")
    for name, format in (("b", "raw"), ("c.qcow2", "qcow2")):
        await place.clone(volume, name, format)
        st = os.stat(place.folder / name)
        assert (stat.S_IMODE(st.st_mode), st.st_uid, st.st_gid) == (0o640, 107, 108)


def _overwrite(path: Path, data: bytes, at: int = 0) -> None:
    with open(path, "r+b") as file:
        file.seek(at)
        file.write(data)


async def _raw_like_an_image(place: Place) -> Volume | None:
    """A volume that was made raw and has an image's bytes; None if the pool's storage keeps no notes of that."""
    await place.raw("other", SECRET)
    header = await _header(place, "other")
    await place.pool.create_volume(VolumeDef("g.raw", capacity=MIB))
    await asyncio.to_thread(_overwrite, place.folder / "g.raw", header)
    volume = await place.volume("g.raw")
    if volume.info.made == "raw":
        return volume
    assert place.kind != "dir"  # the brick keeps no notes
    return None


async def _header(place: Place, backing: str) -> bytes:
    """The bytes of an image over a volume of the pool."""
    await place.overlay("header", backing)
    data = await place.bytes_of("header")
    (place.folder / "header").unlink()
    return data
