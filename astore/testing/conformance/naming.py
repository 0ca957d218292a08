"""Checks of how volumes are named to libvirt, to QEMU, and in the headers of images."""

from __future__ import annotations

import json

import pytest
from lxml import etree

from astore.backend import Backend, NamesVolumes
from astore.errors import UnsupportedOperationError
from astore.manager import Manager
from astore.model import VolumeType
from astore.pools.pool import Pool
from astore.testing.conformance.base import ConformanceBase, NewSource, broken, require, start_with
from astore.testing.conformance.records import ODD_NAMES
from astore.testing.conformance.source import BREAK, IMAGES, SourceUnderTest, qcow2, raw

NOWHERE = (
    "",
    ":",
    "//",
    "x",
    "nothing:",
    "nothing://",
    "nothing://host",
    "nothing://host/a.img",
    "json:{}",
    "x" * 70_000,
)
"""Texts that no backend takes for a volume of its pools."""


class NamingChecks(ConformanceBase):
    """Checks of a volume's names in a domain, in QEMU and in an image's header."""

    async def test_named_to_libvirt_and_qemu(self, pool: Pool, source: SourceUnderTest) -> None:
        """A disk's source and QEMU's node tell every volume from all others: by its path, or as the backend names it."""
        await start_with(pool, source, {name: raw() for name in ODD_NAMES})
        if _nobody_else_reaches(pool):
            for call in (pool.volume(ODD_NAMES[0]).disk_xml, pool.volume(ODD_NAMES[0]).qemu_blockdev):
                with pytest.raises(UnsupportedOperationError):
                    call()
            return
        told: set[str] = set()
        for info in pool.volumes:
            volume = pool.volume(info.name)
            disk = etree.fromstring(volume.disk_xml())
            (found,) = disk.findall("source")
            node = volume.qemu_blockdev("node")["file"]
            told.add(json.dumps(node))
            if info.type is not VolumeType.NETWORK:
                assert found.get("file", found.get("dev")) == node["filename"] == info.path
                continue
            assert disk.get("type") == "network"
            assert found.get("protocol")
            assert not found.get("name", "/").startswith("/")
            assert all((host.get("name") is None) != (host.get("socket") is None) for host in found.findall("host"))
            assert node["driver"] not in ("file", "host_device")
        assert len(told) == len(pool.volumes) > 0

    async def test_name_leads_back(
        self, manager: Manager, backend: Backend, pool: Pool, source: SourceUnderTest, new_source: NewSource
    ) -> None:
        """The backend finds a volume by its key, whatever it is called; other texts, and other pools' keys, mean nothing."""
        await start_with(pool, source, {name: raw() for name in ODD_NAMES})
        if not isinstance(backend, NamesVolumes):
            return
        for info in pool.volumes:
            assert backend.volume_named(pool.definition, info.key) == info.name
        for text in NOWHERE:
            assert backend.volume_named(pool.definition, text) is None
        other_source = await new_source()
        other = await manager.define(other_source.definition)
        await start_with(other, other_source, {"a.img": raw()})
        assert backend.volume_named(pool.definition, other.volume("a.img").key) is None

    async def test_header_names_a_volume(
        self, manager: Manager, pool: Pool, source: SourceUnderTest, new_source: NewSource
    ) -> None:
        """A volume that a header in another pool names by its key is in the chain, and protected."""
        require(source, IMAGES)
        await start_with(pool, source, {"base.img": raw()})
        base = pool.volume("base.img")
        other_source = await new_source()
        other = await manager.define(other_source.definition)
        await start_with(other, other_source, {"over.img": qcow2(1 << 20, base.key, "raw")})
        over = other.volume("over.img")
        assert [link.volume for link in over.backing_chain()] == [over, base]
        assert manager.dependents(base) == [over]
        assert over.qemu_blockdev()["backing"]["file"] == base.qemu_blockdev()["file"]

    async def test_named_without_an_answer(self, pool: Pool, source: SourceUnderTest) -> None:
        """A volume's names come from its record, even if the source does not answer."""
        require(source, BREAK)
        await start_with(pool, source, {"a.img": raw()})
        if _nobody_else_reaches(pool):
            pytest.skip("nobody but this process reaches this storage")
        volume = pool.volume("a.img")
        before = (volume.disk_xml(), volume.qemu_blockdev())
        async with broken(source):
            assert (volume.disk_xml(), volume.qemu_blockdev()) == before


def _nobody_else_reaches(pool: Pool) -> bool:
    """Return whether the volumes have neither a local path nor a name for others."""
    return "name-volumes" not in pool.abilities() and any(one.type is VolumeType.NETWORK for one in pool.volumes)
