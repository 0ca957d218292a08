"""The same pool in astore and in libvirt, and the same disk in QEMU: the same volumes, keys and sizes, the same bytes."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import msgspec
import pytest
from lxml import etree

import astore
from astore.model import PoolDef, Target, VolumeDef
from astore_rbd.backend import RbdBackend
from tests.rbd.clients import USAGE, OtherClient, definition_of

if TYPE_CHECKING:
    from beds.ceph import CephBed
    from beds.libvirt import LibvirtBed

MIB = 1 << 20
NAMES = ["plain", "two words", "a+b&c=d?e#f;g:h,i", "Größe", "'q'(x)*!~$", '"<>[]^`{|}', ".hidden"]


class Seen(NamedTuple):
    """What both tell of a volume."""

    key: str
    path: str
    type: str
    format: str
    capacity: int
    allocation: int


def _ours(volume: astore.Volume) -> Seen:
    return Seen(volume.key, volume.path, str(volume.type), volume.format or "", volume.capacity, volume.allocation)


def _seen(bed: LibvirtBed, pool: str, volume: str) -> Seen:
    """What libvirt tells of a volume."""
    dump = etree.fromstring(bed.virsh("vol-dumpxml", "--pool", pool, "--vol", volume).encode())
    return Seen(
        dump.findtext("key"),
        dump.findtext("target/path"),
        dump.get("type"),
        dump.find("target/format").get("type"),
        int(dump.findtext("capacity")),
        int(dump.findtext("allocation")),
    )


@pytest.mark.root
@pytest.mark.ceph
@pytest.mark.libvirt
@pytest.mark.parametrize("allocation", ["", "default"])
async def test_volumes_are_libvirts(
    ceph_without_keys: CephBed, libvirt_bed: LibvirtBed, manager: astore.Manager, allocation: str
) -> None:
    """Keys, paths, types, formats, capacities and allocations are libvirt's, and so are the pool's own sizes."""
    bed = ceph_without_keys
    name = f"compared{allocation}"
    bed.create_pool(name)
    refresh = f"<refresh><volume allocation='{allocation}'/></refresh>" if allocation else ""
    xml = (
        f"<pool type='rbd'><name>{name}</name><source><host name='{bed.host}' port='{bed.port}'/>"
        f"<name>{name}</name></source>{refresh}</pool>"
    )
    pool = await manager.define(xml)
    await pool.start()
    for number, one in enumerate(NAMES):
        disk = await pool.create_volume(VolumeDef(one, capacity=number * 3 * MIB + 512))
        if number % 2:
            await disk.upload(os.urandom(MIB))
    await pool.copy_volume(pool.volume("two words"), VolumeDef("a clone"))
    await pool.refresh()
    ours = {one.name: _ours(one) for one in pool.volumes}

    def ask() -> tuple[dict[str, Seen], tuple[int, ...]]:
        libvirt_bed.define(xml)
        try:
            libvirt_bed.virsh("pool-start", name)
            found = {one: _seen(libvirt_bed, name, one) for one in ours}
            listed = libvirt_bed.virsh("vol-list", name)
            assert len(listed.splitlines()) == len(ours)
            dump = etree.fromstring(libvirt_bed.virsh("pool-dumpxml", name).encode())
            return found, tuple(int(dump.findtext(what)) for what in ("capacity", "available"))
        finally:
            libvirt_bed.virsh("pool-destroy", name)
            libvirt_bed.virsh("pool-undefine", name)

    theirs, sizes = await asyncio.to_thread(ask)
    assert theirs == ours
    assert sizes[0] == pool.info.capacity


@pytest.mark.root
@pytest.mark.ceph
@pytest.mark.libvirt
async def test_with_a_key(
    ceph: CephBed, libvirt_bed: LibvirtBed, manager: astore.Manager, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """The same document with a secret's usage starts both sides' pools on a cluster that asks for keys: the same volumes.

    The pool's document and the disk's authentication are libvirt's, too.
    """
    ceph.create_pool("with-key")
    secret = tmp_path / "secret.xml"
    uuid = "00000000-0000-4000-8000-00000000cef0"
    secret.write_text(
        f"<secret ephemeral='no' private='yes'><uuid>{uuid}</uuid><usage type='ceph'><name>{USAGE}</name></usage></secret>"
    )
    key = tmp_path / "key"
    key.write_text(ceph.key)

    def virsh(*arguments: str) -> str:
        return libvirt_bed.virsh("-c", libvirt_bed.secrets_uri, *arguments)

    virsh("secret-define", str(secret))
    request.addfinalizer(lambda: virsh("secret-undefine", uuid))
    virsh("secret-set-value", uuid, "--file", str(key))
    pool = await manager.define(definition_of(ceph, "with-key", "with-key"))
    await pool.start()
    for number, name in enumerate(NAMES):
        await pool.create_volume(VolumeDef(name, capacity=(number + 1) * MIB))
    document = pool.to_xml()

    def ask() -> tuple[dict[str, Seen], str]:
        libvirt_bed.define(document)
        try:
            libvirt_bed.virsh("pool-start", "with-key")
            found = {one.name: _seen(libvirt_bed, "with-key", one.name) for one in pool.volumes}
            assert len(libvirt_bed.virsh("vol-list", "with-key").splitlines()) == len(found)
            return found, libvirt_bed.virsh("pool-dumpxml", "with-key")
        finally:
            libvirt_bed.virsh("pool-destroy", "with-key")
            libvirt_bed.virsh("pool-undefine", "with-key")

    theirs, dumped = await asyncio.to_thread(ask)
    assert theirs == {one.name: _ours(one) for one in pool.volumes}
    assert PoolDef.from_xml(dumped).source == pool.definition.source
    mine, other = (etree.fromstring(one.encode()).find("source") for one in (document, dumped))
    assert etree.tostring(mine, method="c14n").split() == etree.tostring(other, method="c14n").split()
    auth = etree.fromstring(pool.volume("plain").disk_xml().encode()).find("source/auth")
    assert (auth.get("username"), auth.find("secret").get("usage")) == ("admin", USAGE)
    for text in (document, dumped, pool.volume("plain").disk_xml()):
        assert ceph.key not in text


@pytest.mark.root
@pytest.mark.ceph
@pytest.mark.libvirt
async def test_what_libvirt_makes(ceph_without_keys: CephBed, libvirt_bed: LibvirtBed, manager: astore.Manager) -> None:
    """astore sees libvirt's volumes and clones as they are; libvirt those that astore made after it."""
    bed = ceph_without_keys
    bed.create_pool("made")
    xml = (
        f"<pool type='rbd'><name>made</name><source><host name='{bed.host}' port='{bed.port}'/>"
        "<name>made</name></source></pool>"
    )
    pool = await manager.define(xml)

    def make() -> None:
        libvirt_bed.define(xml)
        libvirt_bed.virsh("pool-start", "made")
        libvirt_bed.virsh("vol-create-as", "made", "theirs", "5M")
        libvirt_bed.virsh("vol-clone", "theirs", "clone", "--pool", "made")

    try:
        await asyncio.to_thread(make)
        await pool.start()
        assert [(one.name, one.capacity) for one in pool.volumes] == [("clone", 5 * MIB), ("theirs", 5 * MIB)]
        assert manager.dependents(pool.volume("theirs")) == [pool.volume("clone")]
        await pool.create_volume(VolumeDef("ours", capacity=7 * MIB))
        await asyncio.to_thread(libvirt_bed.virsh, "pool-refresh", "made")
        dump = await asyncio.to_thread(libvirt_bed.virsh, "vol-dumpxml", "--pool", "made", "--vol", "ours")
        assert etree.fromstring(dump.encode()).findtext("capacity") == str(7 * MIB)
    finally:
        libvirt_bed.virsh("pool-destroy", "made")
        libvirt_bed.virsh("pool-undefine", "made")


@pytest.mark.ceph
@pytest.mark.qemu
async def test_across_pools(pool: astore.Pool, manager: astore.Manager, tmp_path: Path, other: OtherClient) -> None:
    """A volume goes from a folder into the cluster and back, raw and converted, with the same bytes."""
    folder = tmp_path / "files"
    folder.mkdir()
    files = await manager.define(PoolDef(type="dir", name="files", target=Target(path=str(folder))))
    await files.start()
    data = os.urandom(3 * MIB) + bytes(9 * MIB) + os.urandom(MIB)
    image = await files.create_volume(VolumeDef("image.qcow2", format="qcow2", capacity=len(data)))
    (folder / "raw").write_bytes(data)
    subprocess.run(["qemu-img", "convert", "-O", "qcow2", str(folder / "raw"), image.info.path], check=True)  # noqa: ASYNC221
    await files.refresh()
    there = await pool.copy_volume(files.volume("image.qcow2"), VolumeDef("there", format="raw"))
    assert other.content("there")[: len(data)] == data
    clone = await pool.copy_volume(there, VolumeDef("clone"))
    for format, name in (("raw", "back.img"), ("qcow2", "back.qcow2")):
        back = await files.copy_volume(clone, VolumeDef(name, format=format))
        compared = ["qemu-img", "compare", "-f", format, back.info.path, "-F", "raw", str(folder / "raw")]
        assert subprocess.run(compared, check=False, capture_output=True).returncode == 0  # noqa: ASYNC221
    assert (folder / "back.img").stat().st_blocks * 512 < 9 * MIB


@pytest.mark.ceph
@pytest.mark.qemu
async def test_qemu_reads_it(ceph_without_keys: CephBed, manager: astore.Manager, tmp_path: Path) -> None:
    """QEMU's own driver reads the node, and the name, that astore gives for a volume."""
    if not any(Path("/usr/lib").glob("*/qemu/block-rbd.so")):
        reason = "QEMU has no driver for rbd (Debian package qemu-block-extra)"
        if os.environ.get("ASTORE_REQUIRE_ALL") == "1":
            pytest.fail(reason, pytrace=False)
        pytest.skip(reason)
    bed = ceph_without_keys
    bed.create_pool("qemu")
    source = definition_of(bed, "qemu").source
    pool = await manager.define(PoolDef(type="rbd", name="qemu", source=msgspec.structs.replace(source, auth=None)))
    await pool.start()
    disk = await pool.create_volume(VolumeDef("a disk", capacity=2 * MIB))
    data = os.urandom(2 * MIB)
    await disk.upload(data)
    (tmp_path / "same").write_bytes(data)
    names = f"json:{json.dumps(disk.qemu_blockdev())}", disk.qemu_uri()
    program = shutil.which("qemu-img")
    assert program is not None
    for name in names:
        argv = [program, "compare", "-f", "raw", "-F", "raw", name, str(tmp_path / "same")]
        done = await asyncio.to_thread(subprocess.run, argv, capture_output=True, check=False, timeout=200)
        assert done.returncode == 0, (name, done.stderr)
    backend = RbdBackend()
    assert backend.volume_named(pool.definition, disk.qemu_uri()) == "a disk"
