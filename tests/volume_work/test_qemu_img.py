"""What qemu-img is told, what happens without it, and how QEMU and libvirt are told of a volume."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from core_fakes import FakeBackend, fake, fake_registry, volume
from lxml import etree

from astore.backend import CommandResult, Context
from astore.errors import CommandError, DefinitionError, StorageError, UnsupportedOperationError
from astore.manager import Manager
from astore.model import BackingStore, Host, PoolDef, Source, Target, VolumeDef, VolumeType
from astore.pool import Pool
from astore.testing.conformance.source import qcow2
from astore.volume import Volume
from astore.volume_work import qemu_img
from astore.volume_work.local import WritableLocalTree
from astore.volume_work.session import WritableTreeSession

MIB = 1 << 20


def test_create_arguments() -> None:
    """Each wish is one option; the backing file is an argument of its own, whatever is in its name."""
    create = qemu_img.create_arguments
    assert create(VolumeDef("v"), 1) == ["create", "-q", "-f", "raw"]
    assert create(VolumeDef("v", format="vmdk"), 1, prealloc_metadata=True) == ["create", "-q", "-f", "vmdk"]
    full = VolumeDef(
        "v",
        format="qcow2",
        features=("lazy_refcounts", "extended_l2"),
        cluster_size=131072,
        backing=BackingStore("-odd,name=x", "iso"),
    )
    assert create(full, 1, prealloc_metadata=True) == [
        *("create", "-q", "-f", "qcow2", "-u", "-b", "-odd,name=x", "-F", "raw", "-o"),
        "compat=1.1,lazy_refcounts=on,extended_l2=on,cluster_size=131072,preallocation=metadata",
    ]
    old = VolumeDef("v", format="qcow2", compat="0.10")
    assert create(old, 1) == ["create", "-q", "-f", "qcow2", "-o", "compat=0.10"]


def test_convert_arguments() -> None:
    """Formats go by QEMU's names; nothing is created, since what is written to is there already."""
    convert = qemu_img.convert_arguments
    plain = ["convert", "-q", "-n", "-f", "raw", "-O", "raw", "--target-is-zero"]
    assert convert("iso", VolumeDef("v")) == plain
    wanted = VolumeDef("v", format="qcow2", cluster_size=512, backing=BackingStore("b", "qcow2"))
    assert convert("vhd", wanted) == ["convert", "-q", "-n", "-f", "vpc", "-O", "qcow2", "-B", "b", "-F", "qcow2"]
    assert [qemu_img.driver(one) for one in (None, "raw", "ploop", "qcow2")] == ["raw", "raw", "parallels", "qcow2"]
    assert [qemu_img.is_raw(one) for one in (None, "raw", "iso", "qcow2")] == [True, True, True, False]


def test_whole_vmdk() -> None:
    """An image whose data are in other files is told by its header."""
    sparse = b"KDMV" + (1).to_bytes(4, "little") * 2
    assert qemu_img.is_whole_vmdk(sparse + (8).to_bytes(8, "little"))
    assert qemu_img.is_whole_vmdk(b"COWD" + bytes(20))
    assert not qemu_img.is_whole_vmdk(sparse + bytes(8))
    assert not qemu_img.is_whole_vmdk(b"# Disk DescriptorFile")
    assert not qemu_img.is_whole_vmdk(b"")


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


class RemoteTree(WritableLocalTree):
    """A tree that programs know by a URI."""

    uri = "gluster+tcp://host/volume/{}"

    def program_path(self, name: str) -> str:
        return self.uri.format(name)


@pytest.mark.parametrize("known", [True, False])
async def test_storage_that_qemu_img_must_know(folder: Path, context: Context, known: bool) -> None:
    """Where the pool is reached by a protocol, qemu-img must know it; if not, it is said what to install."""
    said: list[tuple[str, ...]] = []

    async def run(argv: Sequence[str], **options: Any) -> CommandResult:
        said.append(tuple(argv))
        words = "Supported formats: raw qcow2 gluster nbd\n" if known else "Supported formats: raw qcow2\n"
        return CommandResult(tuple(argv), 0, b"qemu-img version 7\n" + words.encode() + b"\nmore", b"")

    tree = await asyncio.to_thread(RemoteTree, str(folder))
    session = WritableTreeSession(tree, msgspec.structs.replace(context, run_command=run))
    info = volume("a", format="qcow2")
    if known:
        assert await session.volume_for_qemu(info, "converting") == "gluster+tcp://host/volume/a"
    else:
        with pytest.raises(StorageError, match="converting here needs a qemu-img that knows gluster://"):
            await session.volume_for_qemu(info, "converting")
    assert said == [("qemu-img", "--help")]
    await session.aclose()


async def test_formats_that_are_not_made(folder: Path, context: Context) -> None:
    """The session itself refuses what it cannot make, for whoever uses it without the core."""
    tree = await asyncio.to_thread(WritableLocalTree, str(folder))
    session = WritableTreeSession(tree, context)
    with pytest.raises(DefinitionError):
        await session.create_volume(VolumeDef("a"))
    with pytest.raises(DefinitionError):
        await session.convert_volume("/x", "raw", VolumeDef("a", format="iso", capacity=1))
    with pytest.raises(DefinitionError):
        await session.convert_volume("/x", "raw", VolumeDef("a", format="qcow2"))
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


async def test_disk_xml(pool: Pool, folder: Path, tmp_path: Path) -> None:
    """libvirt takes the disk, be it a file, a CD or a Gluster volume with several hosts."""
    (folder / "c&d.iso").write_bytes(bytes(32_768) + b"\1CD001\1" + bytes(1000))
    await pool.refresh()
    disk = await pool.create_volume(VolumeDef("a 'b'.img", capacity=MIB))
    documents = [
        disk.disk_xml(),
        disk.disk_xml("sdb", "scsi", readonly=True),
        pool.volume("c&d.iso").disk_xml("hda", "ide"),
    ]
    assert "<readonly/>" in documents[1]
    assert 'device="cdrom"' in documents[2]
    documents += [_gluster_disk("vdc"), _block_disk("vdd")]
    assert documents[3].count("<host ") == 3
    document = etree.fromstring(DOMAIN.format("".join(documents)))
    if SCHEMA.exists():
        schema = await asyncio.to_thread(lambda: etree.RelaxNG(etree.parse(SCHEMA)))
        schema.assertValid(document)


def _handle(type_: VolumeType, key: str, source: Source | None = None, format: str = "qcow2") -> Volume:
    """A volume of a pool that is nothing but its records."""
    info = volume("v", type=type_, key=key, path=key, format=format)

    class Records:
        name = "p"
        definition = PoolDef(type="x", name="p", source=source or Source(), target=Target())
        snapshot = {"v": info}  # noqa: RUF012

    return Volume(Records(), "v")  # type: ignore[arg-type]


HOSTS = Source(hosts=(Host("one"), Host("fd00::1", 1234), Host("/run/gluster.sock")), name="vol", directory="/")
GLUSTER = "gluster://one/vol/dir/a%20b.qcow2"


def _gluster_disk(target: str) -> str:
    return _handle(VolumeType.NETWORK, GLUSTER, HOSTS).disk_xml(target)


def _block_disk(target: str) -> str:
    return _handle(VolumeType.BLOCK, "/dev/null", format="raw").disk_xml(target)


def test_blockdev_of_others() -> None:
    """Gluster's hosts are all told, sockets too; devices are devices; directories are no disks."""
    node = _handle(VolumeType.NETWORK, GLUSTER, HOSTS).qemu_blockdev("n")
    assert node == {
        "driver": "qcow2",
        "node-name": "n",
        "file": {
            "driver": "gluster",
            "volume": "vol",
            "path": "dir/a b.qcow2",
            "server": [
                {"type": "inet", "host": "one", "port": "24007"},
                {"type": "inet", "host": "fd00::1", "port": "1234"},
                {"type": "unix", "path": "/run/gluster.sock"},
            ],
        },
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
