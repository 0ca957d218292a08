"""What programmers do first: ask for help, read signatures, and give a field something of another type."""

from __future__ import annotations

import importlib
import inspect
import pathlib
import pkgutil
import pydoc
from collections.abc import AsyncIterator

import msgspec
import pytest

import astore
from astore import Host, PoolDef, Source, Target, VolumeDef
from astore.errors import size, sizes

PACKAGES = (
    "astore",
    "astore.backend",
    "astore.blocks",
    "astore.errors",
    "astore.events",
    "astore.store.contract",
    "astore.testing",
    "astore.trees",
    "astore.xml",
    "astore_fleet",
    "astore_gluster",
    "astore_iscsi",
    "astore_netfs",
    "astore_rbd",
)


# ------------------------------------------------------------------------------------------ help() and signatures


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_name_has_a_signature_and_help(package: str) -> None:
    """``help()`` and ``inspect.signature()`` work for the package, and for each class and function that it shows."""
    module = importlib.import_module(package)
    assert pydoc.render_doc(module)
    names = getattr(module, "__all__", [name for name in dir(module) if not name.startswith("_")])
    for name in names:
        found = getattr(module, name)
        if inspect.isclass(found) or inspect.isfunction(found):
            assert inspect.signature(found) is not None, name
            assert name in pydoc.render_doc(found), name


def test_every_record_has_a_signature() -> None:
    """Records too that only plugins see, in all modules of the core."""
    records = 0
    for found in pkgutil.walk_packages(astore.__path__, "astore."):
        if found.name.startswith(("astore.testing", "astore.__main__", "astore.cli")):
            continue
        for value in vars(importlib.import_module(found.name)).values():
            if inspect.isclass(value) and issubclass(value, msgspec.Struct) and value is not msgspec.Struct:
                assert inspect.signature(value) is not None
                records += 1
    assert records > 50


# ---------------------------------------------------------------------------------------------- fields of a record


WRONG_POOLS = [
    (PoolDef("dir", "q", target="/tmp/x"), "target is an astore.Target, not '/tmp/x'"),  # type: ignore[arg-type]
    (PoolDef("dir", None), "name is text, not None"),  # type: ignore[arg-type]
    (PoolDef("dir", "q", target=Target(5)), "target.path is text, not 5"),  # type: ignore[arg-type]
    (PoolDef("dir", "q", features_cow=1), "features_cow is True or False, not 1"),  # type: ignore[arg-type]
    (PoolDef("netfs", "q", source=Source(hosts="h")), "source.hosts is a tuple, not 'h'"),  # type: ignore[arg-type]
    (
        PoolDef("netfs", "q", source=Source(hosts=(Host("h", "2049"),))),  # type: ignore[arg-type]
        "source.hosts.port is a whole number, not '2049'",
    ),
    (
        PoolDef("rbd", "q", config_options=(("key",),)),  # type: ignore[arg-type]
        "config_options is a tuple of pairs, not of the type tuple",
    ),
    (PoolDef("netfs", "q", mount_options="password=me"), "mount_options is a tuple, not of the type str"),  # type: ignore[arg-type]
]

WRONG_VOLUMES = [
    (VolumeDef("z", capacity="1G"), "capacity is a number of bytes, not '1G'"),  # type: ignore[arg-type]
    (VolumeDef("z", capacity=1.5), "capacity is a number of bytes, not 1.5"),  # type: ignore[arg-type]
    (VolumeDef("z", capacity=True), "capacity is a number of bytes, not True"),
    (VolumeDef(7, capacity=1), "name is text, not 7"),  # type: ignore[arg-type]
    (VolumeDef("z", capacity=1, type="file"), "type is an astore.VolumeType, not 'file'"),  # type: ignore[arg-type]
    (VolumeDef("z", backing="base.qcow2"), "backing is an astore.BackingStore, not 'base.qcow2'"),  # type: ignore[arg-type]
    (VolumeDef("z", capacity=1, features="x" * 99), "features is a tuple, not of the type str"),  # type: ignore[arg-type]
]


@pytest.mark.parametrize(("wrong", "said"), [*WRONG_POOLS, *WRONG_VOLUMES])
def test_a_record_with_a_field_of_another_type_is_no_document(wrong: PoolDef | VolumeDef, said: str) -> None:
    """The message names the field, what it takes and what it got; no message shows a password."""
    with pytest.raises(astore.DefinitionError) as caught:
        wrong.to_xml()
    assert str(caught.value) == said


async def test_no_pool_and_no_volume_is_made_of_one(tmp_path: pathlib.Path) -> None:
    """Work that takes a record refuses it in the same words, and makes nothing."""
    async with astore.Manager(tmp_path / "state") as manager:
        for pool, said in WRONG_POOLS:
            for work in (manager.define, manager.create, manager.check):
                with pytest.raises(astore.DefinitionError, match=f"^{said}$"):
                    await work(pool)
        (tmp_path / "images").mkdir()
        images = await manager.define(PoolDef("dir", "images", target=Target(str(tmp_path / "images"))))
        await images.start()
        source = await images.create_volume(VolumeDef("source", capacity=1))
        for volume, said in WRONG_VOLUMES:
            with pytest.raises(astore.DefinitionError, match=f"^{said}$"):
                await images.create_volume(volume)
            with pytest.raises(astore.DefinitionError, match=f"^{said}$"):
                await images.copy_volume(source, volume)
        assert [one.name for one in manager.pools()] == ["images"]
        assert [one.name for one in images.volumes] == ["source"]


def test_fields_that_are_as_good(tmp_path: pathlib.Path) -> None:
    """A list may stand for a tuple, and a Path for the path of a pool."""
    wanted = PoolDef("dir", "q", target=Target(tmp_path), mount_options=["ro"])  # type: ignore[arg-type]
    assert f"<path>{tmp_path}</path>" in wanted.to_xml()
    assert "lazy_refcounts" in VolumeDef("z", capacity=1, features=["lazy_refcounts"]).to_xml()  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------------ sizes and formats


def test_sizes_in_messages() -> None:
    """Two sizes that differ look different."""
    assert [size(value) for value in (0, 512, 1 << 20, 10 << 30)] == ["0 B", "512 B", "1.00 MiB", "10.00 GiB"]
    assert sizes(100 << 20, 400 << 20) == ("100.00 MiB", "400.00 MiB")
    assert sizes(1 << 20, 1 << 20) == ("1.00 MiB", "1.00 MiB")
    assert sizes(1 << 20, (1 << 20) + 1) == ("1.00 MiB (1048576 bytes)", "1.00 MiB (1048577 bytes)")


@pytest.fixture
async def images(tmp_path: pathlib.Path) -> AsyncIterator[astore.Pool]:
    """An active pool without volumes."""
    (tmp_path / "images").mkdir()
    async with astore.Manager(tmp_path / "state") as manager:
        pool = await manager.define(PoolDef("dir", "images", target=Target(str(tmp_path / "images"))))
        await pool.start()
        yield pool


async def test_a_volume_shrinks_to_nothing(images: astore.Pool, tmp_path: pathlib.Path) -> None:
    """As one can be made with 0 bytes; only if shrinking is asked for."""
    disk = await images.create_volume(VolumeDef("disk", capacity=1 << 20))
    with pytest.raises(astore.DefinitionError, match=r"0 B are less than the 1\.00 MiB that volume 'disk' has"):
        await disk.resize(0)
    with pytest.raises(astore.DefinitionError, match=r"has 1\.00 MiB, and cannot become 2\.00 MiB smaller"):
        await disk.resize(2 << 20, delta=True, shrink=True)
    with pytest.raises(astore.DefinitionError, match="-1 bytes cannot be a volume's capacity"):
        await disk.resize(-1, shrink=True)
    assert (await disk.resize(0, shrink=True)).capacity == 0
    assert (tmp_path / "images" / "disk").stat().st_size == 0
    assert (await disk.resize(4096)).capacity == 4096
    assert (await disk.resize(4096, delta=True, shrink=True)).capacity == 0


@pytest.mark.qemu
async def test_an_image_does_not(images: astore.Pool) -> None:
    """qemu-img makes images of 0 bytes, but resizes none to that."""
    image = await images.create_volume(VolumeDef("image", capacity=1 << 20, format="qcow2"))
    with pytest.raises(astore.DefinitionError, match="a volume of format 'qcow2' cannot be shrunk to nothing"):
        await image.resize(0, shrink=True)
    assert image.info.capacity == 1 << 20


@pytest.mark.parametrize(
    ("format", "said"),
    [
        ("qcow3", r"there is no format 'qcow3' \(did you mean qcow2\?\); formats that can be made: raw, dir, vpc"),
        ("VMDK", r"there is no format 'VMDK' \(did you mean vmdk\?\)"),
        ("nonsense", r"there is no format 'nonsense'; formats that can be made: raw"),
        ("iso", "volumes of format 'iso' can be kept but not created; formats that can: raw, dir"),
    ],
)
async def test_a_format_that_cannot_be_made(images: astore.Pool, format: str, said: str) -> None:
    """A name that is no format's is told apart from a format that other programs make."""
    with pytest.raises(astore.DefinitionError, match=said):
        await images.create_volume(VolumeDef("z", capacity=1, format=format))
