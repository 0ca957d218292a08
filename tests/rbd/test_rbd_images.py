"""Images on a real cluster: what others made, what they see of what astore makes, clones, snapshots and refusals."""

from __future__ import annotations

import asyncio
import base64
import errno
import json
import os
import re
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from lxml import etree
from secret_traces import show_nowhere

import astore
from astore.errors import StorageError, VolumeBusyError, VolumeInUseError, VolumeNotFoundError
from astore.model import VolumeDef
from astore_rbd.images import headers, listing, reading
from tests.rbd.clients import USAGE, OtherClient, definition_of

if TYPE_CHECKING:
    from beds.ceph import CephBed

pytestmark = pytest.mark.ceph

SCHEMA = Path("/usr/share/libvirt/schemas/domain.rng")
DOMAIN = """<domain type='qemu'><name>d</name><memory>65536</memory><os><type arch='x86_64'>hvm</type></os>
<devices>{}</devices></domain>"""

MIB = 1 << 20
DATA = os.urandom(5 * MIB)


def image(ceph: CephBed, where: str, name: str) -> dict[str, Any]:
    """What ``rbd info`` says."""
    found: dict[str, Any] = json.loads(ceph.rbd("info", "--format=json", f"{where}/{name}"))
    return found


async def test_rbd_sees_what_astore_made(pool: astore.Pool, ceph: CephBed, where: str) -> None:
    """``rbd`` finds sizes, names and bytes; a deleted image is gone."""
    disk = await pool.create_volume(VolumeDef("disk", capacity=8 * MIB))
    await disk.upload(DATA)
    await disk.resize(16 * MIB)
    renamed = await disk.rename("renamed")
    assert image(ceph, where, "renamed")["size"] == 16 * MIB
    assert f"{renamed.info.inode:x}" == image(ceph, where, "renamed")["id"]
    exported = await asyncio.to_thread(ceph.run_bytes, "rbd", "export", "--no-progress", f"{where}/renamed", "-")
    assert exported == DATA + bytes(11 * MIB)
    await renamed.delete()
    assert json.loads(ceph.rbd("ls", "--format=json", where)) == []


async def test_astore_sees_what_rbd_made(pool: astore.Pool, ceph: CephBed, where: str) -> None:
    """Sizes, snapshots, parents and changes of other clients are found by the next refresh; only what changed is told."""
    ceph.rbd("create", "--size", "3M", f"{where}/one")
    ceph.rbd("create", "--size", "5M", "--object-size", "64K", "--image-feature", "layering", f"{where}/two")
    outcome = await pool.refresh()
    assert outcome.added == ("one", "two")
    assert [one.capacity for one in pool.volumes] == [3 * MIB, 5 * MIB]
    kept = pool.volume("two").info
    assert pool.volume("one").info.features == tuple(
        json.loads(ceph.rbd("info", "--format=json", f"{where}/one"))["features"]
    )
    assert kept.features == ("layering",)
    ceph.rbd("resize", "--size", "4M", f"{where}/one", "--no-progress")
    ceph.rbd("snap", "create", "--no-progress", f"{where}/one@before")
    ceph.rbd("snap", "protect", f"{where}/one@before")
    ceph.rbd("clone", f"{where}/one@before", f"{where}/child")
    outcome = await pool.refresh()
    assert (outcome.added, outcome.changed, outcome.unchanged) == (("child",), ("one",), 1)
    assert pool.volume("two").info is kept
    ceph.rbd("feature", "disable", f"{where}/child", "fast-diff")
    assert (await pool.refresh()).changed == ("child",)
    assert "fast-diff" not in pool.volume("child").info.features
    assert pool.volume("one").info.extras == ("internal snapshots",)
    assert pool.volume("child").info.backing_path == f"rbd:{where}/one@before"
    assert [link.volume for link in pool.volume("child").backing_chain()] == [pool.volume("child"), pool.volume("one")]
    ceph.rbd("rename", f"{where}/one", f"{where}/renamed")
    assert (await pool.refresh()).changed == ("child",)
    assert pool.volume("child").info.backing_path == f"rbd:{where}/renamed@before"
    ceph.rbd("snap", "rename", f"{where}/renamed@before", f"{where}/renamed@earlier")
    assert "child" in (await pool.refresh()).changed
    assert pool.volume("child").info.backing_path == f"rbd:{where}/renamed@earlier"
    with pytest.raises(VolumeInUseError):
        await pool.volume("renamed").delete()
    with pytest.raises(StorageError, match=r"clones.*child"):
        await pool.volume("renamed").delete(force=True)


async def test_more_than_there_is_room_for(
    pool: astore.Pool, ceph: CephBed, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An image whose header does not fit into the memory for it is opened, and its record is the same."""
    ceph.rbd("create", "--size", "3M", f"{where}/base")
    for snapshot in ("one", "two"):
        ceph.rbd("snap", "create", "--no-progress", f"{where}/base@{snapshot}")
    ceph.rbd("snap", "protect", f"{where}/base@two")
    ceph.rbd("clone", f"{where}/base@two", f"{where}/clone")
    await pool.refresh()
    before = pool.volumes
    usual, opened = headers._ASKED, []

    def noted(cluster: Any, name: str) -> listing.Seen:
        opened.append(name)
        return open_(cluster, name)

    open_ = listing.opened
    monkeypatch.setattr(listing, "opened", noted)
    small = tuple(method._replace(room=20) if method.name == b"get_snapcontext" else method for method in usual)
    monkeypatch.setattr(headers, "_ASKED", small)
    assert not (await pool.refresh(full=True)).changed
    assert (opened, pool.volumes) == (["base"], before)


async def test_unchanged_images_are_not_read(
    pool: astore.Pool, other: OtherClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A refresh asks the headers of unchanged images for their versions alone, and keeps their records."""
    other.put_all({f"{n:03}": b"" for n in range(100)})
    await pool.refresh()
    asked: Counter[int] = Counter()
    prepare = reading._Asked.prepare

    def spy(self: Any, question: reading.Question) -> None:
        asked[len(question.methods)] += 1
        prepare(self, question)

    monkeypatch.setattr(reading._Asked, "prepare", spy)
    before = pool.volumes
    await pool.refresh()
    assert all(one is two for one, two in zip(before, pool.volumes, strict=True))
    assert asked == {0: 101}
    asked.clear()
    await asyncio.to_thread(other.put, "007", b"changed")
    assert (await pool.refresh()).changed == ("007",)
    assert asked == {0: 100, 6: 1, 1: 1}  # and the trash, since there are other names


async def test_headers_that_are_not_understood(
    pool: astore.Pool, ceph: CephBed, where: str, other: OtherClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Images whose headers have a feature that this plugin does not know are opened, and are the same volumes."""
    other.put_all({"one": b"x", "two": b""})
    ceph.rbd("snap", "create", "--no-progress", f"{where}/one@s")
    ceph.rbd("snap", "protect", f"{where}/one@s")
    ceph.rbd("clone", f"{where}/one@s", f"{where}/child")
    await pool.refresh()
    before = pool.volumes
    monkeypatch.setattr(headers, "KNOWN_INCOMPATIBLE", 0)
    real, opened = listing.opened, []

    def spy(cluster: Any, name: str) -> Any:
        opened.append(name)
        return real(cluster, name)

    monkeypatch.setattr(listing, "opened", spy)
    await pool.refresh(full=True)
    assert (sorted(opened), pool.info.errors) == (["child", "one", "two"], 0)
    assert pool.volumes == before


async def test_options_for_new_images(manager: astore.Manager, ceph: CephBed, where: str) -> None:
    """The definition's options of librbd give new images their features, their data pool and the size of their objects."""
    ceph.create_pool("imagedata")
    wanted = {
        "rbd_default_features": "layering,exclusive-lock",
        "rbd_default_data_pool": "imagedata",
        "rbd_default_order": "20",
    }
    pool = await manager.define(definition_of(ceph, where, **wanted))
    await pool.start()
    disk = await pool.create_volume(VolumeDef("disk", capacity=8 * MIB))
    await disk.upload(DATA)
    made = image(ceph, where, "disk")
    assert (made["data_pool"], made["object_size"]) == ("imagedata", MIB)
    assert made["features"] == ["layering", "exclusive-lock", "data-pool"]
    assert set(disk.info.features) == set(made["features"])
    assert len(ceph.run("rados", "-p", "imagedata", "--all", "ls").split()) >= 5
    changed = time.mktime(time.strptime(made["modify_timestamp"]))
    await pool.refresh()
    assert disk.info.mtime_ns // 10**9 >= changed > time.time() - 600


def test_key_is_shown_nowhere(ceph: CephBed, where: str, tmp_path: Path) -> None:
    """Not in what the command prints and logs, nor in what it keeps beside the secret."""
    ceph.rbd("create", "--size", "3M", f"{where}/one")
    show_nowhere(tmp_path, definition_of(ceph, where), "ceph", USAGE, base64.b64decode(ceph.key))


async def test_allocation(ceph: CephBed, manager: astore.Manager, where: str, other: OtherClient) -> None:
    """With <refresh><volume allocation='default'/>, object maps tell what is allocated, as written meanwhile; else all is."""
    definition = msgspec.structs.replace(definition_of(ceph, where), refresh_allocation="default")
    pool = await manager.define(definition)
    other.put("disk", bytes(1) * (20 * MIB))
    other.create("empty", 20 * MIB)
    await pool.start()
    assert [one.allocation for one in pool.volumes] == [20 * MIB, 0]
    with other.open("empty", write=True).closing() as opened:
        opened.write(b"x", 9 * MIB)
    await pool.refresh()
    assert [one.allocation for one in pool.volumes] == [20 * MIB, 4 * MIB]


async def test_clone(pool: astore.Pool, ceph: CephBed, where: str, manager: astore.Manager) -> None:
    """A copy shares the original's data, and goes its own way; the original can be written, and deleted after the copy."""
    old = await pool.create_volume(VolumeDef("old", capacity=8 * MIB))
    await old.upload(DATA)
    copy = await pool.copy_volume(old, VolumeDef("copy", capacity=12 * MIB))
    parent = image(ceph, where, "copy")["parent"]
    assert (parent["image"], parent["overlap"]) == ("old", 8 * MIB)
    assert copy.info.capacity == 12 * MIB
    assert copy.info.backing_path is not None
    assert copy.info.backing_path.startswith(f"rbd:{where}/old@astore-")
    assert manager.dependents(old) == [copy]
    await old.upload(b"changed")
    async with copy.download() as blocks:
        assert b"".join([bytes(block) async for block in blocks]) == DATA + bytes(7 * MIB)
    with pytest.raises(VolumeInUseError):
        await old.delete()
    renamed = await old.rename("renamed")
    assert manager.dependents(renamed) == [copy]
    await copy.delete()
    assert json.loads(ceph.rbd("snap", "ls", "--format=json", f"{where}/renamed")) == []
    await renamed.delete()


async def test_copy_that_is_allocated(pool: astore.Pool, ceph: CephBed, where: str) -> None:
    """A copy that is allocated in full shares nothing."""
    old = await pool.create_volume(VolumeDef("old", capacity=MIB))
    await old.upload(DATA[:MIB])
    copy = await pool.copy_volume(old, VolumeDef("copy", allocation=MIB))
    assert "parent" not in image(ceph, where, "copy")
    assert copy.info.references == ()
    await old.delete()
    async with copy.download() as blocks:
        assert b"".join([bytes(block) async for block in blocks]) == DATA[:MIB]


async def test_disk_of_a_clone(pool: astore.Pool) -> None:
    """A clone is one disk to libvirt and QEMU: the cluster reads through it to the original."""
    old = await pool.create_volume(VolumeDef("old", capacity=MIB))
    copy = await pool.copy_volume(old, VolumeDef("copy"))
    disk = etree.fromstring(copy.disk_xml())
    source = disk.find("source")
    assert (source.get("protocol"), source.get("name")) == ("rbd", copy.info.path)
    assert source.find("auth").get("username") == "admin"
    assert source.find("auth/secret").get("type") == "ceph"
    assert disk.find("backingStore") is None
    domain = etree.fromstring(DOMAIN.format(copy.disk_xml()))
    schema = await asyncio.to_thread(lambda: etree.RelaxNG(etree.parse(SCHEMA)))
    schema.assertValid(domain)
    node = copy.qemu_blockdev()
    assert node["file"]["image"] == "copy"
    assert "backing" not in node


async def test_parent_in_another_pool(
    pool: astore.Pool, ceph: CephBed, where: str, ceph_pool: str, manager: astore.Manager
) -> None:
    """A clone of an image of another namespace has its parent there, known or not."""
    ceph.rbd("create", "--size", "2M", f"{ceph_pool}/base-{pool.uuid}")
    base = f"{ceph_pool}/base-{pool.uuid}"
    ceph.rbd("snap", "create", "--no-progress", f"{base}@s")
    ceph.rbd("snap", "protect", f"{base}@s")
    ceph.rbd("clone", "--rbd-default-clone-format", "2", f"{base}@s", f"{where}/child")
    await pool.refresh()
    child = pool.volume("child")
    assert child.info.backing_path == f"rbd:{base}@s"
    assert child.backing_chain()[1].volume is None
    bases = await manager.define(definition_of(ceph, ceph_pool, "bases"))
    await bases.start()
    assert child.backing_chain()[1].volume == bases.volume(f"base-{pool.uuid}")
    with pytest.raises(VolumeInUseError):
        await bases.volume(f"base-{pool.uuid}").delete()


async def test_delete_says_why_not(pool: astore.Pool, ceph: CephBed, where: str, other: OtherClient) -> None:
    """An image with snapshots, or open elsewhere, stays, and the error says which, or where."""
    disk = await pool.create_volume(VolumeDef("disk", capacity=MIB))
    ceph.rbd("snap", "create", "--no-progress", f"{where}/disk@mine")
    with pytest.raises(StorageError, match="it has snapshots: mine"):
        await disk.delete()
    ceph.rbd("snap", "rm", "--no-progress", f"{where}/disk@mine")
    with other.open("disk", write=True).closing():
        with pytest.raises(StorageError, match=r"open elsewhere, by client \d+ at .*127\.0\.0\.1"):
            await disk.delete()
        assert "disk" in other.names()
    await disk.delete()
    assert other.names() == set()


async def test_who_has_it_open(pool: astore.Pool, other: OtherClient) -> None:
    """Other clients that have an image open for writing are told; readers and this pool's own work are not."""
    disk = await pool.create_volume(VolumeDef("disk", capacity=MIB))
    assert await disk.users() == ()
    with other.open("disk", write=False).closing():
        assert await disk.users() == ()
    async with disk.open(write=True) as file:
        await file.pwrite(b"x", 0)
        assert await disk.users() == ()
    with other.open("disk", write=True).closing():
        (user,) = await disk.users()
        assert re.fullmatch(rf"client {other.cluster.client} at .*127\.0\.0\.1:\d+/\d+", user)
    assert await disk.users() == ()
    other.remove("disk")
    with pytest.raises(VolumeNotFoundError):
        await disk.users()
    other.create("disk", MIB)  # another one
    with pytest.raises(StorageError) as caught:
        await disk.users()
    assert caught.value.errno == errno.EAGAIN


async def test_snapshots_that_only_begin_as_ours(
    pool: astore.Pool, ceph: CephBed, where: str, other: OtherClient
) -> None:
    """A snapshot of the user's whose name begins with "astore-" is told of, and stays when its image or a clone is deleted."""
    disk = await pool.create_volume(VolumeDef("disk", capacity=MIB))
    snapshot = f"{where}/disk@astore-nightly"
    ceph.rbd("snap", "create", "--no-progress", snapshot)
    await pool.refresh()
    assert disk.info.extras == ("internal snapshots",)
    with pytest.raises(StorageError, match="it has snapshots: astore-nightly"):
        await disk.delete()
    ceph.rbd("snap", "protect", snapshot)
    ceph.rbd("clone", snapshot, f"{where}/clone")
    await pool.refresh()
    await pool.volume("clone").delete()
    assert [one["name"] for one in json.loads(ceph.rbd("snap", "ls", "--format=json", f"{where}/disk"))] == [
        "astore-nightly"
    ]
    other.put("old", b"")
    assert [listing.opened(other.cluster, name).snapshots for name in ("disk", "old")] == [True, False]


async def test_written_elsewhere(pool: astore.Pool, other: OtherClient) -> None:
    """An image that another client writes is not written; one that nobody writes any more is."""
    disk = await pool.create_volume(VolumeDef("disk", capacity=MIB))
    with other.open("disk", write=True).closing() as opened:
        opened.write(b"x", 0)  # takes the lock
        with pytest.raises(VolumeBusyError, match="written by somebody else"):
            await disk.upload(b"y")
    await disk.upload(b"y")
    assert other.content("disk")[:1] == b"y"


async def test_wipe_and_holes(pool: astore.Pool, other: OtherClient) -> None:
    """A trimmed range reads as zeros up to its last byte, at any offset, and a download skips what is not there."""
    disk = await pool.create_volume(VolumeDef("disk", capacity=40 * MIB))
    await disk.upload(DATA, offset=12 * MIB)
    async with disk.open(write=True) as file:
        await file.punch(12 * MIB + 1, 4 * MIB + 77)
        assert await file.seek_data(0) == 12 * MIB
    content = other.content("disk")
    assert content[12 * MIB : 13 * MIB] == DATA[:1] + bytes(MIB - 1)
    assert content[16 * MIB + 77 : 17 * MIB] == bytes(1) + DATA[4 * MIB + 78 : 5 * MIB]
    await disk.wipe("trim")
    assert other.content("disk") == bytes(40 * MIB)
