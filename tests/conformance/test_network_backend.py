"""A made-up network backend, and what others are told of its volumes: the core knows neither its type nor its protocol."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from importlib import metadata
from pathlib import Path

import pytest
from lxml import etree
from shelf import ShelfBackend, shelf

from astore.errors import BackendError, BackendLoadError, StorageError, UnsupportedOperationError, VolumeInUseError
from astore.manager import Manager
from astore.model import Auth, BackingStore, PoolDef, Target, VolumeDef
from astore.pools.pool import Pool
from astore.registry import BackendRegistry
from astore.testing.conformance import MovableFolder
from astore.testing.conformance.base import ConformanceBase
from astore.testing.conformance.contract import ContractChecks
from astore.testing.conformance.naming import NamingChecks
from astore.testing.conformance.records import RecordChecks
from astore.testing.conformance.source import qcow2, raw
from astore.testing.conformance.volumes_changed import ChangedVolumeChecks

MIB = 1 << 20


class TestShelf(ContractChecks, RecordChecks, NamingChecks, ChangedVolumeChecks, ConformanceBase):
    """The parts of the suite that have to do with what volumes are called."""

    source_class = MovableFolder

    def make_registry(self) -> BackendRegistry:
        """One with the made-up backend."""
        registry = BackendRegistry(group=None)
        registry.register(ShelfBackend)
        return registry

    def make_source(self, folder: Path) -> MovableFolder:
        """An empty folder."""
        files = folder / "files"
        files.mkdir()
        return MovableFolder(shelf(folder.name, files, rack=folder.name), files)


# --------------------------------------------------------------------------------------- beside a folder of this machine


@pytest.fixture
def racks(tmp_path: Path) -> Path:
    """The folder of the made-up server."""
    folder = tmp_path / "racks"
    folder.mkdir()
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder of a dir pool."""
    folder = tmp_path / "folder"
    folder.mkdir()
    return folder


def registry_of(*backends: type) -> BackendRegistry:
    """A registry that has, of installed backends, the one of folders."""
    registry = BackendRegistry(group=None)
    registry.add_entry_points(
        [metadata.EntryPoint("dir", "astore.backends.directory:DirectoryBackend", "astore.backends")]
    )
    for backend in backends:
        registry.register(backend)
    return registry


@pytest.fixture
async def manager(tmp_path: Path) -> AsyncIterator[Manager]:
    """A Manager with both backends."""
    async with Manager(tmp_path / "state", registry=registry_of(ShelfBackend)) as manager:
        yield manager


@pytest.fixture
async def far(manager: Manager, racks: Path) -> Pool:
    """A pool of the made-up type, with one volume."""
    (racks / "base.img").write_bytes(raw(8192))
    return await manager.create(shelf("far", racks))


async def local(manager: Manager, folder: Path) -> Pool:
    return await manager.create(PoolDef("dir", "local", target=Target(str(folder))))


NAMES = {
    "first": "nbd://one/rack/base.img",
    "second": "nbd://two:10809/rack/base.img",
    "escaped": "nbd://two/r%61ck/base%2eimg",
    "socket": "nbd+unix:///rack/base.img?socket=/run/shelf.sock",
    "node": "json:"
    + json.dumps(
        {"driver": "nbd", "server": {"type": "inet", "host": "two", "port": "10809"}, "export": "rack/base.img"}
    ),
}
ELSEWHERE = {
    "host": "nbd://three/rack/base.img",
    "rack": "nbd://one/other/base.img",
    "name": "nbd://one/rack/base",
    "protocol": "http://one/rack/base.img",
}


async def test_every_name_of_a_volume(manager: Manager, far: Pool, folder: Path) -> None:
    """Images that name a volume by whichever host, as a URL or a node, are backed by it, and it is protected by them."""
    for name, backing in (NAMES | ELSEWHERE).items():
        (folder / name).write_bytes(qcow2(MIB, backing, "raw"))
    pool = await local(manager, folder)
    base = far.volume("base.img")
    assert [one.name for one in manager.dependents(base)] == sorted(NAMES)
    for name in NAMES:
        assert [link.volume for link in pool.volume(name).backing_chain()] == [pool.volume(name), base]
    for name in ELSEWHERE:
        assert [link.volume for link in pool.volume(name).backing_chain()] == [pool.volume(name), None]
    for change in (base.delete, lambda: base.rename("new"), lambda: base.resize(MIB), lambda: base.upload(b"x")):
        with pytest.raises(VolumeInUseError):
            await change()
    with pytest.raises(StorageError, match="no volume of an active pool"):
        pool.volume("host").disk_xml()
    for name in NAMES:
        await pool.volume(name).delete()
    await base.delete()


async def test_told_to_libvirt_and_qemu(manager: Manager, far: Pool, folder: Path) -> None:
    """A domain's disk and QEMU's node say what the backend says, in a chain that goes from a folder to the server too."""
    (folder / "over").write_bytes(qcow2(MIB, NAMES["second"], "raw"))
    pool = await local(manager, folder)
    source = {"protocol": "nbd", "name": "rack/base.img"}
    hosts = [{"name": "one", "port": "10809"}, {"name": "two", "port": "10809"}]
    hosts.append({"transport": "unix", "socket": "/run/shelf.sock"})
    for disk, at in ((far.volume("base.img"), "."), (pool.volume("over"), "backingStore")):
        (found,) = etree.fromstring(disk.disk_xml()).findall(f"{at}/source")
        assert dict(found.attrib) == source
        assert [dict(host.attrib) for host in found.findall("host")] == hosts
    server = {"type": "inet", "host": "one", "port": "10809"}
    node = {"driver": "raw", "file": {"driver": "nbd", "server": server, "export": "rack/base.img"}}
    assert far.volume("base.img").qemu_blockdev("n") == node | {"node-name": "n"}
    assert pool.volume("over").qemu_blockdev() == {
        "driver": "qcow2",
        "file": {"driver": "file", "filename": str(folder / "over")},
        "backing": node,
    }


@pytest.mark.parametrize("secret", [{"secret_uuid": "f65dc2f1-cf1b-4a51-b6a1-2a4c5a0b8f11"}, {"secret_usage": "key"}])
async def test_auth(manager: Manager, racks: Path, secret: dict[str, str]) -> None:
    """The disk says who may use it, as libvirt's schema has it."""
    (racks / "a.img").write_bytes(raw())
    pool = await manager.create(shelf("far", racks, auth=Auth("ceph", "someone", **secret)))
    (auth,) = etree.fromstring(pool.volume("a.img").disk_xml()).findall("source/auth")
    (told,) = auth
    assert auth.get("username") == "someone"
    assert dict(told.attrib) == {
        "type": "ceph",
        **{key.removeprefix("secret_"): value for key, value in secret.items()},
    }


async def test_new_volume_on_one_of_another_host(manager: Manager, far: Pool, folder: Path) -> None:
    """A volume that is made on a backing file, named by whichever host, is made on the volume that it means."""
    pool = await local(manager, folder)
    backing = BackingStore(NAMES["second"], "raw")
    disk = await pool.create_volume(VolumeDef("over", format="qcow2", backing=backing))
    assert disk.info.capacity == 8192
    assert [link.volume for link in disk.backing_chain()] == [disk, far.volume("base.img")]


# ------------------------------------------------------------------------------------------- a backend that is not there


@pytest.fixture
async def left_active(tmp_path: Path, racks: Path, folder: Path) -> None:
    """Pools that another process left active: a volume, and images that name it by its key and by another host."""
    (racks / "base.img").write_bytes(raw())
    for name in ("first", "second"):
        (folder / name).write_bytes(qcow2(MIB, NAMES[name], "raw"))
    async with Manager(tmp_path / "state", registry=registry_of(ShelfBackend)) as manager:
        far = await manager.define(shelf("far", racks))
        await far.start()
        near = await manager.define(PoolDef("dir", "local", target=Target(str(folder))))
        await near.start()


@pytest.mark.usefixtures("left_active")
async def test_backend_that_is_absent(tmp_path: Path) -> None:
    """Without its backend a volume is known by its key alone, and what it is called is refused in words; all else works.

    With it, names are told from the records: no session is opened.
    """
    registry = registry_of()
    async with Manager(tmp_path / "state", registry=registry) as manager:
        base = manager.pool("far").volume("base.img")
        first, second = (manager.pool("local").volume(name) for name in ("first", "second"))
        assert manager.dependents(base) == [first]
        assert second.backing_chain()[1].volume is None
        for call in (base.disk_xml, base.qemu_blockdev, first.disk_xml):
            with pytest.raises(BackendLoadError, match=re.escape("pool 'far': the backend of pool type 'shelf'")):
                call()
        registry.register(ShelfBackend)
        assert manager.dependents(base) == [first, second]
        assert first.disk_xml() == second.disk_xml().replace("second", "first")
        assert "refresh-volume" not in manager.pool("far").abilities(), "no session was opened"


@pytest.mark.usefixtures("left_active")
@pytest.mark.parametrize("work", ["delete", "create", pytest.param("copy", marks=pytest.mark.qemu)])
async def test_work_loads_what_it_needs(tmp_path: Path, work: str) -> None:
    """Work that needs to know which volume a name means loads the backend that knows it."""
    registry = registry_of()
    registry.add_entry_points([metadata.EntryPoint("shelf", "shelf:ShelfBackend", "astore.backends")])
    async with Manager(tmp_path / "state", registry=registry) as manager:
        near, base = manager.pool("local"), manager.pool("far").volume("base.img")
        assert registry.loaded("shelf") is None
        if work == "create":
            backing = BackingStore(NAMES["socket"], "raw")
            disk = await near.create_volume(VolumeDef("new", format="qcow2", backing=backing))
            assert disk.info.capacity == base.info.capacity
        elif work == "copy":
            copy = await near.copy_volume(near.volume("second"), VolumeDef("copy", format="raw"))
            assert copy.info.capacity == MIB
        else:
            with pytest.raises(VolumeInUseError) as caught:
                await base.delete()
            assert len(caught.value.dependents) == 2


class _WordlessBackend(ShelfBackend):
    """A backend that cannot say what its volumes are called."""

    disk_source = blockdev = volume_named = None  # type: ignore[assignment]


class _FaultyBackend(ShelfBackend):
    """A backend with mistakes."""

    def volume_named(self, definition: PoolDef, location: str) -> str | None:
        raise KeyError(location)

    def disk_source(self, definition: PoolDef, volume: object) -> None:  # type: ignore[override]
        """Nothing."""


async def test_backend_without_the_ability(tmp_path: Path, racks: Path) -> None:
    """A network volume whose backend cannot name it is told to nobody; the error names the ability."""
    (racks / "a.img").write_bytes(raw())
    async with Manager(tmp_path / "state", registry=registry_of(_WordlessBackend)) as manager:
        pool = await manager.create(shelf("far", racks))
        assert "name-volumes" not in pool.abilities()
        for call in (pool.volume("a.img").disk_xml, pool.volume("a.img").qemu_blockdev):
            with pytest.raises(UnsupportedOperationError) as caught:
                call()
            assert caught.value.operation == "name-volumes"
        await pool.volume("a.img").delete()


async def test_backend_that_fails(tmp_path: Path, racks: Path, folder: Path) -> None:
    """A mistake of a backend is an error that names its pool, and lets nobody change what it should have told of."""
    (racks / "a.img").write_bytes(raw())
    (folder / "over").write_bytes(qcow2(MIB, "nbd://three/rack/a.img", "raw"))
    async with Manager(tmp_path / "state", registry=registry_of(_FaultyBackend)) as manager:
        pool = await manager.create(shelf("far", racks))
        near = await local(manager, folder)
        with pytest.raises(BackendError, match="pool 'far': the backend failed with TypeError"):
            pool.volume("a.img").disk_xml()
        for failing in (near.volume("over").backing_chain, lambda: manager.dependents(pool.volume("a.img"))):
            with pytest.raises(BackendError, match="pool 'far': the backend failed with KeyError"):
                failing()
        with pytest.raises(BackendError):
            await pool.volume("a.img").delete()
        assert await asyncio.to_thread((racks / "a.img").exists)
