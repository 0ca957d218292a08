"""``<storagepoolCapabilities>``: what both say of each pool type, element by element."""

from __future__ import annotations

from pathlib import Path

import pytest
from core_fakes import FakeBackend
from differential.counts import counting
from differential.operations import plain
from differential.oracle import Oracle
from lxml import etree

import astore
from astore.xml.known_types import POOL_TYPES

pytestmark = pytest.mark.libvirt

DRIVEN = {"dir", "netfs", "gluster", "iscsi-direct", "rbd"}
"""By astore's own distributions."""


def pools(document: str) -> dict[str | None, etree._Element]:
    root = etree.fromstring(plain(document))
    assert root.tag == "storagepoolCapabilities"
    return {pool.get("type"): pool for pool in root}


async def test_capabilities(oracle: Oracle, tmp_path: Path) -> None:
    """The same types in the same order, each with the same formats and defaults.

    What differs is which types are supported: that depends on the backends, here and there. What nobody drives is not.
    """
    theirs = pools(oracle.ask("connection_call", "getStoragePoolCapabilities", 0))
    async with astore.Manager(tmp_path / "state") as manager:
        ours = pools(await manager.capabilities())
    assert list(ours) == list(theirs) == list(POOL_TYPES)
    count = counting("capabilities")
    for name, pool in ours.items():
        assert pool.attrib.pop("supported") == ("yes" if name in DRIVEN else "no")
        supported = theirs[name].attrib.pop("supported")
        assert name not in DRIVEN or supported == "yes"
        assert etree.tostring(pool, method="c14n") == etree.tostring(theirs[name], method="c14n"), name
        count.came_out("the same")


async def test_a_backend_of_ones_own(tmp_path: Path) -> None:
    """Backends say which formats they have: libvirt's come in libvirt's order, others behind, the default is their first."""

    class Backend(FakeBackend):
        type = "netfs"
        source_formats = ("nfs", "ninep", "auto")
        volume_formats = ("qcow2", "raw")

    class Other(Backend):
        type = "other"

    registry = astore.BackendRegistry(group=None)
    registry.register(Backend())
    registry.register(Other())
    async with astore.Manager(tmp_path / "state", registry=registry) as manager:
        found = pools(await manager.capabilities())
    assert [name for name, pool in found.items() if pool.get("supported") == "yes"] == ["netfs", "other"]
    for name, sources, volumes in (
        ("netfs", ["auto", "nfs", "ninep"], ["raw", "qcow2"]),
        ("other", ["nfs", "ninep", "auto"], ["qcow2", "raw"]),
    ):
        assert [value.text for value in found[name].iterfind("poolOptions/enum/value")] == sources
        assert [value.text for value in found[name].iterfind("volOptions/enum/value")] == volumes
        assert [default.get("type") for default in found[name].iter("defaultFormat")] == ["nfs", "qcow2"]
