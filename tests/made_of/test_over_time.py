"""What an image is made of, while files come and go, pools restart, and processes follow one another."""

from __future__ import annotations

import asyncio
import errno
import os
from pathlib import Path

import pytest
from made_of.conftest import ALL
from made_of.places import MIB, Place

from astore.errors import AstoreError, DefinitionError, StorageError, VolumeInUseError, VolumeNotFoundError
from astore.manager import Manager
from astore.model import BackingStore, PoolDef, Target, VolumeDef
from astore.store.run_files import SnapshotFiles

pytestmark = pytest.mark.qemu

SECRET = b"another tenant's " * 1000

everywhere = pytest.mark.parametrize("place", ALL, indirect=True)


async def header(place: Place, name: str, *options: str) -> bytes:
    """The first bytes of an empty qcow2 image, made outside."""
    path = place.elsewhere / name
    await place.qemu_img("create", "-q", "-f", "qcow2", *options, path, "1M")
    return (await asyncio.to_thread(path.read_bytes))[: 192 << 10]


def write(path: Path, data: bytes) -> None:
    """What a guest writes into its disk."""
    with path.open("r+b") as file:
        file.write(data)


@everywhere
async def test_raw_after_a_restart(place: Place) -> None:
    """A volume that was made raw is raw when its pool is started again, whatever its guest wrote meanwhile."""
    disk = await place.pool.create_volume(VolumeDef("disk", capacity=4 * MIB))
    await asyncio.to_thread(write, place.folder / "disk", await header(place, "plain"))
    await place.pool.stop()
    await place.pool.start() if place.pool.persistent else None
    if not place.pool.active:  # a transient pool is gone when it is stopped
        place.pool = await place.manager.create(place.pool.definition)
    disk = place.pool.volume("disk")
    assert (disk.info.format, disk.info.header_format, disk.info.capacity) == ("raw", "qcow2", 4 * MIB)
    assert "type='raw'" in disk.disk_xml().replace('"', "'")
    copy = await place.pool.copy_volume(disk, VolumeDef("copy", format="qcow2"))
    assert await place.disk(copy) == await place.bytes_of("disk")
    await disk.set_format("qcow2")
    assert (disk.info.format, disk.info.header_format, disk.info.capacity) == ("qcow2", None, MIB)
    await disk.set_format("raw")
    assert (disk.info.format, disk.info.header_format) == ("raw", "qcow2")
    with pytest.raises(DefinitionError, match="can be raw or qcow2"):
        await disk.set_format("vmdk")


async def test_malformed_header_of_a_guest(place: Place) -> None:
    """What a guest spoils does not take its volume out of the listing."""
    await place.pool.create_volume(VolumeDef("disk", capacity=MIB))
    await asyncio.to_thread(write, place.folder / "disk", b"QFI\xfb\0\0\0\3" + b"\xff" * 100)
    outcome = await place.pool.refresh(full=True)
    assert outcome.errors == ()
    assert (place.pool.volume("disk").info.format, place.pool.volume("disk").info.header_format) == ("raw", "qcow2")
    with pytest.raises(DefinitionError, match="no good"):
        await place.pool.volume("disk").set_format("qcow2")
    assert (place.pool.volume("disk").info.format, place.pool.volume("disk").info.made) == ("raw", "raw")
    await asyncio.to_thread(write, place.folder / "disk", bytes(200))
    with pytest.raises(DefinitionError, match="it is raw by now"):
        await place.pool.volume("disk").set_format("qcow2")


async def test_raw_in_another_folder(place: Place) -> None:
    """A volume that was made raw is raw in whichever folder it is put, also where nothing else was ever made."""
    await place.pool.create_volume(VolumeDef("disk", capacity=MIB))
    await asyncio.to_thread(write, place.folder / "disk", await header(place, "plain"))
    other = place.elsewhere / "other"
    await asyncio.to_thread(other.mkdir)
    await asyncio.to_thread(os.rename, place.folder / "disk", other / "disk")
    found = await place.manager.create(PoolDef("dir", "other", target=Target(str(other))))
    info = found.volume("disk").info
    assert (info.format, info.header_format, info.made) == ("raw", "qcow2", "raw")


async def test_links_that_mean_something_else_to_each_process(place: Place) -> None:
    """A name by way of /proc leads elsewhere for whoever follows it: nothing is read by it."""
    await asyncio.to_thread((place.folder / "base.raw").write_bytes, SECRET)
    name = f"/proc/self/root{place.folder}/base.raw"
    await place.qemu_img("create", "-q", "-f", "qcow2", "-u", "-b", name, "-F", "raw", place.folder / "over", "1M")
    await place.pool.refresh()
    with pytest.raises(AstoreError):
        await place.pool.copy_volume(place.pool.volume("over"), VolumeDef("copy", format="raw"))


async def test_names_that_a_descriptor_would_take_for_others(place: Place) -> None:
    """What a new VMDK image is called makes it no child of another."""
    await asyncio.to_thread((place.folder / "zeros").write_bytes, bytes(MIB))
    await place.qemu_img("create", "-q", "-f", "vmdk", place.folder / "parent.vmdk", "1M")
    await place.pool.refresh()
    for name in ('parentFileNameHint="parent.vmdk"', "parentFileNameHint="):
        copy = await place.pool.copy_volume(place.pool.volume("zeros"), VolumeDef(name, format="vmdk"))
        assert copy.info.references == ()
        assert await place.disk(copy) == bytes(MIB)


async def test_what_is_large_is_saved_in_time(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """A snapshot takes the place of an earlier one without that being read: the next process knows what was refreshed."""
    lines = b"version=1\n" + b"".join(b'RW 1 SPARSE "%x"\n' % number for number in range(1500))
    state = place.elsewhere / "state"
    folder = place.elsewhere / "many"
    await asyncio.to_thread(folder.mkdir)
    for number in range(3):
        await asyncio.to_thread((folder / f"{number}.vmdk").write_bytes, lines)
    async with Manager(state) as manager:
        await manager.create(PoolDef("dir", "many", target=Target(str(folder))))
    read = SnapshotFiles.read
    async with Manager(state) as manager:
        monkeypatch.setattr(SnapshotFiles, "read", lambda *_: pytest.fail("it was read"))
        for number in range(3):
            await asyncio.to_thread((folder / f"{number}.vmdk").unlink)
        await manager.pool("many").refresh()
    monkeypatch.setattr(SnapshotFiles, "read", read)
    async with Manager(state) as manager:
        assert manager.pool("many").volumes == ()


async def test_inode_that_was_given_to_another(place: Place) -> None:
    """A file that gets the inode of a backing file that is gone is not taken for it."""
    base = await place.pool.create_volume(VolumeDef("base", capacity=MIB))
    over = await place.pool.create_volume(VolumeDef("over", format="qcow2", backing=BackingStore("base")))
    inode = base.info.inode
    await base.delete(force=True)
    for number in range(64):
        other = await place.pool.create_volume(VolumeDef(f"tenant{number}", capacity=MIB))
        await other.upload(SECRET)
        if other.info.inode == inode:
            break
    assert [link.volume for link in over.backing_chain()] == [over, None]
    with pytest.raises(StorageError, match="no volume of an active pool"):
        await place.pool.copy_volume(over, VolumeDef("out", format="raw"))


async def test_inode_that_was_given_to_another_outside(place: Place) -> None:
    """Nor where that happened without astore: what is read is looked at anew before it is read."""
    await place.raw("base")
    await place.overlay("over", "base")
    over = await place.volume("over")
    (place.folder / "base").unlink()
    (place.folder / "tenant").write_bytes(SECRET.ljust(MIB, b"\0"))
    await place.pool.refresh("tenant")
    with pytest.raises((StorageError, VolumeNotFoundError)):
        await place.pool.copy_volume(over, VolumeDef("out", format="raw"))


async def test_backing_by_another_path(place: Place, tmp_path: Path) -> None:
    """A backing file is known however its path is spelled: one that was made raw is not made the backing of a probe."""
    (tmp_path / "link").symlink_to(place.folder)
    base = await place.pool.create_volume(VolumeDef("base", capacity=MIB))
    await asyncio.to_thread(write, place.folder / "base", await header(place, "plain"))
    await base.refresh()
    for path in ("base", str(place.folder / "base"), str(tmp_path / "link" / "base"), f"{tmp_path}/link/../pool/base"):
        with pytest.raises(DefinitionError, match="made raw"):
            await place.pool.create_volume(
                VolumeDef("no", capacity=MIB, format="qcow2", backing=BackingStore(path, "qcow2"))
            )
        over = await place.pool.create_volume(
            VolumeDef("over", capacity=MIB, format="qcow2", backing=BackingStore(path, "raw"))
        )
        assert place.manager.dependents(base) == [over]
        await over.delete()


async def test_pool_of_which_nothing_is_known(place: Place, tmp_path: Path) -> None:
    """In a process that has only just come, pools that others started are looked at before anything is changed."""
    other = tmp_path / "other"
    other.mkdir()
    await place.raw("base")
    state = tmp_path / "shared state"
    async with Manager(state) as first:
        for name, folder in (("p", place.folder), ("q", other)):
            pool = await first.define(PoolDef(type="dir", name=name, target=Target(path=str(folder))))
            await pool.start()
        backing = BackingStore(str(place.folder / "base"), "raw")
        await first.pool("q").create_volume(VolumeDef("over", capacity=MIB, format="qcow2", backing=backing))
    for cache in state.rglob("*.snapshot"):
        cache.unlink()
    async with Manager(state) as second:
        await second.pool("p").refresh()
        with pytest.raises(VolumeInUseError, match="over"):
            await second.pool("p").volume("base").wipe()


async def test_what_is_known_is_kept(place: Place, tmp_path: Path) -> None:
    """References, and where they lead, are known to the next process, also where a name on the way is no text."""
    odd = tmp_path / os.fsdecode(b"s\xff")
    odd.mkdir()
    (place.folder / "odd").symlink_to(odd)
    (odd / "base").write_bytes(bytes(MIB))
    await place.overlay("over", "odd/base")
    state = tmp_path / "shared state"
    async with Manager(state) as first:
        pool = await first.define(PoolDef(type="dir", name="p", target=Target(path=str(place.folder))))
        await pool.start()
        wanted = pool.snapshot
    async with Manager(state) as second:
        found = second.pool("p").snapshot
        assert found.volumes == wanted.volumes
        assert found.folder == wanted.folder is not None
        (reference,) = second.pool("p").volume("over").info.references
        assert reference.place is not None
        assert reference.place.inode == (odd / "base").stat().st_ino


async def test_upload_that_breaks_off(place: Place) -> None:
    """What was begun to be uploaded as a raw disk is one, also where the rest follows later."""
    path = place.folder / "disk"
    await asyncio.to_thread(path.write_bytes, await header(place, "plain"))
    disk = await place.volume("disk")

    async def breaking() -> object:
        yield b"x" * 65_536
        raise ConnectionError

    with pytest.raises(ConnectionError):
        await disk.upload(breaking())  # type: ignore[arg-type]
    await disk.upload(b"y" * 65_536, offset=65_536)
    await asyncio.to_thread(write, path, await header(place, "evil", "-u", "-b", "/etc/passwd", "-F", "raw"))
    await disk.refresh()
    assert (disk.info.format, disk.info.header_format, disk.info.references) == ("raw", "qcow2", ())


async def test_links_that_loop_meanwhile(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that leads nowhere by the time it is looked at again is that entry's error, and no more."""
    await place.raw("good")
    await place.raw("bad")
    tree = place.pool.parts.record.life.session.tree  # type: ignore[union-attr]
    listing = tree.names_changed_ns

    def changed() -> int:
        (place.folder / "bad").unlink()
        (place.folder / "bad").symlink_to("bad")
        return int(listing())

    monkeypatch.setattr(tree, "names_changed_ns", changed)
    outcome = await place.pool.refresh(full=True)
    assert [error.name for error in outcome.errors] == ["bad"]
    assert [info.name for info in place.pool.volumes] == ["good"]


async def test_never_of_two_files(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """A record has the attributes and the header of one file, also where a name was given to another between the two."""
    await place.raw("image")
    await asyncio.to_thread((place.elsewhere / "new").write_bytes, await header(place, "plain"))
    session = place.pool.parts.record.life.session
    tree = session.tree  # type: ignore[union-attr]
    reading = tree.reading

    def swapped(entry: object, **options: bool) -> object:
        new = place.elsewhere / "new"
        if new.exists():
            os.replace(new, place.folder / "image")
        return reading(entry, **options)

    monkeypatch.setattr(tree, "reading", swapped)
    await place.pool.refresh(full=True)
    info = place.pool.volume("image").info
    assert (info.format, info.inode) == ("qcow2", (place.folder / "image").stat().st_ino)


@everywhere
async def test_a_byte_makes_no_image(place: Place) -> None:
    """Only an upload's own bytes say what a volume is; what its guest wrote does not, whatever is added to it."""
    disk = await place.pool.create_volume(VolumeDef("disk", capacity=MIB))
    await asyncio.to_thread(write, place.folder / "disk", await header(place, "plain"))
    for offset in (8, 79, 20_000, 100_000):
        await disk.upload(b"x", offset=offset)
        assert (disk.info.format, disk.info.made) == ("raw", "raw")
    await asyncio.to_thread(
        write, place.folder / "disk", await header(place, "evil", "-u", "-b", "/etc/passwd", "-F", "raw")
    )
    await disk.upload(b"x", offset=30_000)
    assert (disk.info.format, disk.info.references) == ("raw", ())
    await disk.upload(await header(place, "plain"))
    assert (disk.info.format, disk.info.made) == ("qcow2", None)


async def test_storage_without_notes(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing can be noted at files, a volume is known to be raw as long as its pool is active."""

    def refused(*arguments: object) -> None:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr(os, "setxattr", refused)
    monkeypatch.setattr(os, "getxattr", refused)
    monkeypatch.setattr(os, "removexattr", refused)
    monkeypatch.setattr(os, "listxattr", lambda *arguments: [])
    disk = await place.pool.create_volume(VolumeDef("disk", capacity=MIB))
    (place.folder / "found").write_bytes(bytes(MIB))
    found = await place.volume("found")
    await found.wipe()
    evil = await header(place, "evil", "-u", "-b", "/etc/passwd", "-F", "raw")
    for volume in (disk, found):
        await asyncio.to_thread(write, place.folder / volume.name, evil)
        await place.pool.refresh()
        await place.pool.refresh(full=True)
        await volume.refresh()
        assert (volume.info.format, volume.info.made, volume.info.references) == ("raw", "raw", ())
    await disk.upload(b"y", offset=MIB // 2)
    assert disk.info.made == "raw"
    await disk.set_format("qcow2")
    assert (disk.info.format, disk.info.made) == ("qcow2", None)


async def grown(place: Place, name: str, capacity: int) -> bytes:
    """The disk of an image after it was made larger."""
    volume = await place.volume(name)
    await volume.resize(capacity)
    return await place.disk(volume)


async def test_what_growing_shows(place: Place) -> None:
    """What an image gains is zeros: over a base that is read raw and is an image itself, and over one that grew meanwhile."""
    await place.image("b.qcow2", "64K")
    await place.overlay("o.qcow2", "b.qcow2", size="64K")
    assert (await grown(place, "o.qcow2", 512 << 10))[64 << 10 :] == bytes((512 - 64) << 10)
    await place.raw("b.raw", b"A" * (64 << 10), size=64 << 10)
    await place.overlay("p.qcow2", "b.raw", size="64K")
    await place.pool.refresh()
    with (place.folder / "b.raw").open("ab") as file:
        file.write(b"old" * 100_000)
    assert (await grown(place, "p.qcow2", 256 << 10))[64 << 10 :] == bytes((256 - 64) << 10)


async def test_larger_copies_on_a_base(place: Place) -> None:
    """A copy on a backing file that is longer than the source shows nothing of it; nothing is made then."""
    await place.raw("base.raw", b"A" * MIB)
    await place.raw("src.raw", b"B" * (64 << 10), size=64 << 10)
    source = await place.volume("src.raw")
    backing = BackingStore("base.raw", "raw")
    with pytest.raises(DefinitionError, match="would show there what its backing file has"):
        await place.pool.copy_volume(source, VolumeDef("c", format="qcow2", backing=backing, capacity=MIB))
    copy = await place.pool.copy_volume(source, VolumeDef("c", format="qcow2", backing=backing))
    await copy.resize(MIB)
    assert await place.disk(copy) == (b"B" * (64 << 10)).ljust(MIB, b"\0")


async def test_names_far_from_the_beginning(place: Place) -> None:
    """A backing file is protected wherever in the first cluster its name stands; so is an upload of such a header refused."""
    await place.raw("base.raw", SECRET)
    await place.image("far", "-u", "-b", "base.raw", "-F", "raw", "-o", "cluster_size=2M", "1M")
    path = place.folder / "far"
    data = bytearray(await asyncio.to_thread(path.read_bytes))
    data[100_000:100_008] = b"base.raw"
    data[8:16] = (100_000).to_bytes(8, "big")
    await asyncio.to_thread(path.write_bytes, data)
    far = await place.volume("far")
    assert far.info.backing == "base.raw"
    with pytest.raises(VolumeInUseError):
        await place.pool.volume("base.raw").delete()
    assert (await place.disk(far))[: len(SECRET)] == SECRET
    other = await place.pool.create_volume(VolumeDef("other", capacity=4 * MIB))
    with pytest.raises(StorageError, match="may name other files"):
        await other.upload(bytes(data))
    assert await place.bytes_of("other") == bytes(4 * MIB)


@pytest.mark.parametrize("kind", ["vpc", "vdi", "qed", "vmdk"])
async def test_resize_that_is_refused(place: Place, kind: str) -> None:
    """An image that cannot be given space keeps its size."""
    await place.image("image", "4M", format=kind)
    image = await place.volume("image")
    before = await place.bytes_of("image")
    with pytest.raises(AstoreError):
        await image.resize(8 * MIB, allocate=True)
    assert await place.bytes_of("image") == before
