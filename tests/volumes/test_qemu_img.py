"""What qemu-img is told, what happens without it, and how QEMU and libvirt are told of a volume."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
from pathlib import Path

import pytest
from core_fakes import FakeBackend, fake, fake_registry, volume
from lxml import etree
from shelf import ShelfBackend, shelf

from astore.backend import CommandResult, Context, Limits
from astore.errors import CommandError, DefinitionError, UnsupportedOperationError
from astore.manager import Manager
from astore.model import Auth, BackingStore, VolumeDef, VolumeType
from astore.pools.pool import Pool
from astore.pools.volume import Volume
from astore.testing.conformance.source import qcow2
from astore.trees.session import WritableTreeSession
from astore.trees.writable_local import WritableLocalTree
from astore.volume_io import qemu_img

MIB = 1 << 20


def test_create_arguments() -> None:
    """Each wish is one option; the backing file is an argument of its own, whatever is in its name."""
    create = qemu_img.create_arguments
    assert create(VolumeDef("v")) == ["create", "-q", "-f", "raw"]
    assert create(VolumeDef("v", format="vmdk"), prealloc_metadata=True) == ["create", "-q", "-f", "vmdk"]
    full = VolumeDef(
        "v",
        format="qcow2",
        features=("lazy_refcounts", "extended_l2"),
        cluster_size=131072,
        backing=BackingStore("-odd,name=x", "iso"),
    )
    assert create(full, prealloc_metadata=True) == [
        *("create", "-q", "-f", "qcow2", "-u", "-b", "-odd,name=x", "-F", "raw", "-o"),
        "compat=1.1,lazy_refcounts=on,extended_l2=on,cluster_size=131072,preallocation=metadata",
    ]
    old = VolumeDef("v", format="qcow2", compat="0.10")
    assert create(old) == ["create", "-q", "-f", "qcow2", "-o", "compat=0.10"]


def test_convert_arguments() -> None:
    """Nothing is created, since what is written to is there already; a backing file is named where the copy is thin."""
    convert = qemu_img.convert_arguments
    source, target = {"driver": "raw"}, {"driver": "qcow2"}
    names = ['json:{"driver": "raw"}', 'json:{"driver": "qcow2"}']
    assert convert(VolumeDef("v"), source, target) == [
        *("convert", "-q", "-n", "--target-is-zero", "-O", "raw"),
        *names,
    ]
    wanted = VolumeDef("v", format="qcow2", cluster_size=512, backing=BackingStore("-b", "iso"))
    full = ["convert", "-q", "-n", "-O", "qcow2", *names]
    assert convert(wanted, source, target) == full
    assert convert(wanted, source, target, thin=True) == [*full[:3], "-B", "-b", "-F", "raw", *full[3:]]
    rebase = ["rebase", "-q", "-u", "-b", "-b", "-F", "raw", names[1]]
    assert qemu_img.rebase_arguments(wanted, target) == rebase


def test_nodes() -> None:
    """Formats go by QEMU's names; what can be backed is said to be backed by nothing, rather than left to its header."""
    storage = qemu_img.file_node("/a,b=c")
    assert storage == {"driver": "file", "filename": "/a,b=c"}
    assert qemu_img.file_node("/dev/x", VolumeType.BLOCK) == {"driver": "host_device", "filename": "/dev/x"}
    assert qemu_img.node("iso", storage) == {"driver": "raw", "file": storage}
    assert qemu_img.node("vhd", storage) == {"driver": "vpc", "file": storage}
    over = qemu_img.node("qcow2", storage)
    assert over == {"driver": "qcow2", "file": storage, "backing": None}
    assert qemu_img.node("qed", storage, over) == {"driver": "qed", "file": storage, "backing": over}


def test_limits() -> None:
    """An image may have worked on what it stores, and no more."""
    assert qemu_img.limits() == Limits(qemu_img.MEMORY, qemu_img.PROCESSOR_SECONDS)
    assert qemu_img.limits(qemu_img.BYTES_A_SECOND * 7).cpu == qemu_img.PROCESSOR_SECONDS + 7


def test_descriptors() -> None:
    """A program inherits the open files that are in the nodes it is told of, and no others."""
    storage = qemu_img.descriptor_node(7)
    below = qemu_img.node("raw", qemu_img.descriptor_node(8))
    assert qemu_img.descriptors(qemu_img.node("qcow2", storage, below), {}, below) == [7, 8, 8]
    assert qemu_img.descriptors(qemu_img.node("qcow2", qemu_img.file_node("/tmp/x"))) == []


def test_end_of_an_image() -> None:
    """It is where qemu-img says, if it says so."""
    assert qemu_img.image_end(CommandResult(("qemu-img",), 0, b'{"image-end-offset": 65536}', b"")) == 65536
    for said in (b"", b"{}", b"[]", b'{"image-end-offset": null}'):
        with pytest.raises(CommandError, match="does not say where the image ends"):
            qemu_img.image_end(CommandResult(("qemu-img",), 0, said, b""))


async def test_without_qemu_img(pool: Pool, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the program, what needs it fails, in words that say what to install; nothing else does."""
    disk = await pool.create_volume(VolumeDef("a", capacity=MIB))
    (folder / "b.qcow2").write_bytes(qcow2(MIB))
    await pool.refresh()
    monkeypatch.setenv("PATH", os.fspath(tmp_path))
    for call in (
        lambda: pool.create_volume(VolumeDef("new", capacity=MIB, format="qcow2")),
        lambda: pool.copy_volume(disk, VolumeDef("new", format="qcow2")),
        lambda: pool.volume("b.qcow2").resize(2 * MIB),
    ):
        with pytest.raises(CommandError, match=r"needs the program qemu-img \(Debian package qemu-utils\)") as caught:
            await call()
        assert caught.value.returncode is None
    assert sorted(os.listdir(folder)) == ["a", "b.qcow2"]
    await pool.copy_volume(disk, VolumeDef("raw copy", capacity=2 * MIB))
    await pool.copy_volume(pool.volume("b.qcow2"), VolumeDef("image copy"))
    await disk.resize(2 * MIB)
    assert not [name for name in os.listdir(tmp_path) if name.startswith("astore-")]


async def test_formats_that_are_not_made(folder: Path, context: Context) -> None:
    """The session itself refuses what it cannot make, for whoever uses it without the core."""
    tree = await asyncio.to_thread(WritableLocalTree, str(folder))
    session = WritableTreeSession(tree, context)
    with pytest.raises(DefinitionError):
        await session.create_volume(VolumeDef("a"))
    with pytest.raises(DefinitionError):
        await session.convert_volume({"driver": "raw"}, VolumeDef("a", format="iso", capacity=1))
    with pytest.raises(DefinitionError):
        await session.convert_volume({"driver": "raw"}, VolumeDef("a", format="qcow2"))
    with pytest.raises(DefinitionError):
        await session.create_volume(VolumeDef("a/b", capacity=1))
    with pytest.raises(DefinitionError):
        await session.wipe_volume(volume("a"), "no such")
    assert os.listdir(folder) == []
    nocow = await session.create_volume(VolumeDef("a", capacity=1, nocow=True))
    assert (await session.copy_volume(nocow, VolumeDef("b", nocow=True))).capacity == 1
    await session.aclose()


async def test_abilities_that_are_missing(manager: Manager, pool: Pool, tmp_path: Path) -> None:
    """What a backend cannot is refused by pool, type and operation."""
    disk = await pool.create_volume(VolumeDef("a", capacity=MIB))
    backend = FakeBackend()
    backend.show("x")
    manager.registry.register(backend)
    poor = await manager.define(fake("poor"))
    await poor.start()
    x = poor.volume("x")
    for operation, call in (
        ("create-volume", lambda: poor.create_volume(VolumeDef("new", capacity=1))),
        ("receive-volume", lambda: poor.copy_volume(disk, VolumeDef("new"))),
        ("copy-volume", lambda: poor.copy_volume(x, VolumeDef("new"))),
        ("open-volume", lambda: pool.copy_volume(x, VolumeDef("new"))),
        ("open-volume", lambda: x.upload(b"")),
        ("open-volume", lambda: x.download().__aenter__()),
        ("resize-volume", lambda: x.resize(1 << 30)),
        ("wipe-volume", lambda: x.wipe()),
        ("rename-volume", lambda: x.rename("y")),
        ("delete-volume", lambda: x.delete()),
    ):
        with pytest.raises(UnsupportedOperationError) as caught:
            await call()
        assert (caught.value.type, caught.value.operation) == ("fake", operation)


# --------------------------------------------------------------------------------------------- to QEMU and libvirt


@pytest.mark.qemu
@pytest.mark.parametrize("kind", ["raw", "qcow2", "vpc", "vmdk"])
async def test_blockdev_opens_it(pool: Pool, kind: str) -> None:
    """QEMU opens the volume by what it is told."""
    disk = await pool.create_volume(VolumeDef(f"a,b=c {kind}", capacity=64 * MIB, format=kind))
    node = disk.qemu_blockdev("node1")
    assert node.pop("node-name") == "node1"
    assert node == disk.qemu_blockdev()
    for name in (f"json:{json.dumps(node)}", disk.qemu_uri()):
        told = await asyncio.to_thread(
            subprocess.run, ["qemu-img", "info", "--output=json", name], stdout=subprocess.PIPE, check=True
        )
        said = json.loads(told.stdout)
        assert said["virtual-size"] == disk.info.capacity
        assert said["format"] == kind or not name.startswith("json:")


SCHEMA = Path("/usr/share/libvirt/schemas/domain.rng")

DOMAIN = """<domain type='qemu'><name>d</name><memory>65536</memory><os><type arch='x86_64'>hvm</type></os>
<devices>{}</devices></domain>"""


async def _disks(pool: Pool, folder: Path) -> list[str]:
    """Describe a file, the same on another bus, a CD, a device, a volume with several hosts, and one that needs a secret."""
    (folder / "c&d.iso").write_bytes(bytes(32_768) + b"\1CD001\1" + bytes(1000))
    await pool.refresh()
    disk = await pool.create_volume(VolumeDef("a 'b'.img", capacity=MIB))
    uuid = "f65dc2f1-cf1b-4a51-b6a1-2a4c5a0b8f11"
    return [
        disk.disk_xml(),
        disk.disk_xml("sdb", "scsi", readonly=True),
        pool.volume("c&d.iso").disk_xml("hda", "ide"),
        _network_disk("vdc"),
        _block_disk("vdd"),
        _network_disk("vde", Auth("ceph", "u", secret_uuid=uuid)),
    ]


async def test_disk_xml(pool: Pool, folder: Path) -> None:
    """The disk is described as it is: read-only, a CD, a volume with several hosts."""
    documents = await _disks(pool, folder)
    assert "<readonly/>" in documents[1]
    assert 'device="cdrom"' in documents[2]
    assert documents[3].count("<host ") == 3


@pytest.mark.libvirt
async def test_libvirts_schema_takes_the_disks(pool: Pool, folder: Path) -> None:
    """libvirt's schema (Debian package libvirt0) takes a domain with all these disks."""
    document = etree.fromstring(DOMAIN.format("".join(await _disks(pool, folder))))
    schema = await asyncio.to_thread(lambda: etree.RelaxNG(etree.parse(SCHEMA)))
    schema.assertValid(document)


def _handle(type_: VolumeType, key: str, format: str = "qcow2", auth: Auth | None = None) -> Volume:
    """A volume of a pool that is nothing but its records and a backend."""
    info = volume("v", type=type_, key=key, path=key, format=format)

    class Records:
        name = "p"
        backend = ShelfBackend("rbd")  # of which libvirt takes several hosts
        definition = shelf("p", Path("/rack"), "one", "fd00::1", "/run/shelf.sock", auth=auth)
        snapshot = {"v": info}  # noqa: RUF012
        others = staticmethod(list)
        volume = staticmethod(lambda name: info)
        parts = property(lambda self: self)

    return Volume(Records(), "v")  # type: ignore[arg-type]


def _network_disk(target: str, auth: Auth | None = None) -> str:
    return _handle(VolumeType.NETWORK, "nbd://one/rack/v", auth=auth).disk_xml(target)


def _block_disk(target: str) -> str:
    return _handle(VolumeType.BLOCK, "/dev/null", format="raw").disk_xml(target)


def test_blockdev_of_others() -> None:
    """What is on the network is told as its backend says; devices are devices; directories are no disks."""
    network = _handle(VolumeType.NETWORK, "nbd://one/rack/v")
    server = {"type": "inet", "host": "one", "port": "10809"}
    assert network.qemu_blockdev("n") == {
        "driver": "qcow2",
        "node-name": "n",
        "backing": None,
        "file": {"driver": "nbd", "export": "rack/v", "server": server},
    }
    block = _handle(VolumeType.BLOCK, "/dev/x", format="iso").qemu_blockdev()
    assert block == {"driver": "raw", "file": {"driver": "host_device", "filename": "/dev/x"}}
    for kind in (VolumeType.DIR, VolumeType.NETDIR):
        for call in (_handle(kind, "/x").disk_xml, _handle(kind, "/x").qemu_blockdev):
            with pytest.raises(DefinitionError):
                call()


async def test_registry_without_work(tmp_path: Path) -> None:
    """A Manager whose backends know nothing of volume work says so before it is asked to do any."""
    async with Manager(tmp_path / "state", registry=fake_registry()) as manager:
        pool = await manager.create(fake("f"))
        assert not [one for one in pool.abilities() if one.endswith("-volume") and one != "refresh-volume"]
        await pool.stop()
