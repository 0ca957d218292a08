"""Discovery: the targets of a portal, and what comes of portals that do not tell them."""

from __future__ import annotations

import asyncio
import errno
import subprocess

import pytest
from iscsi_support import INITIATOR, MIB, TIMEOUT, NewPool

from astore.errors import DefinitionError, StorageError
from astore.manager import Manager
from astore.model import Device, Host, PoolDef
from astore_iscsi.discovery import source_of
from astore_iscsi.target.answers import Told
from beds.iscsi import ADDRESS, IscsiBed, Target

pytestmark = pytest.mark.iscsi


async def test_targets(target: Target, manager: Manager) -> None:
    """Every target of a portal is a source that a pool can be made of; its document is libvirt's."""
    other = target.bed.new_target()
    try:
        found = await manager.discover("iscsi-direct", ADDRESS, port=target.bed.port)
    finally:
        other.delete()
    mine = {one.source.devices[0].path: one for one in found}
    assert {target.iqn, other.iqn} <= set(mine)
    assert mine[target.iqn].source.hosts == (Host(ADDRESS, target.bed.port),)
    assert f"<device path='{target.iqn}'/>" in found.to_xml().replace('"', "'")


async def test_as_iscsi_ls_has_it(target: Target, manager: Manager, new_pool: NewPool) -> None:
    """The targets of a portal, and the disks of a target, are those that libiscsi's own tool lists."""
    for lun in (1, 2, 200):
        target.add_lun(lun, MIB)
    said = await asyncio.to_thread(
        subprocess.run, ["iscsi-ls", "-s", f"iscsi://{ADDRESS}:{target.bed.port}"], capture_output=True, text=True
    )
    listed: dict[str, list[int]] = {}
    for line in said.stdout.splitlines():
        if line.startswith("Target:"):
            disks = listed[line.split()[0].removeprefix("Target:")] = []
        elif "DIRECT_ACCESS" in line:
            disks.append(int(line.split()[0].removeprefix("Lun:")))
    assert listed[target.iqn] == [1, 2, 200], said
    found = await manager.discover("iscsi-direct", ADDRESS, port=target.bed.port)
    assert {one.source.devices[0].path for one in found} == listed.keys()
    pool = await new_pool(target)
    assert sorted(int(one.name.rpartition(":")[2]) for one in pool.volumes) == listed[target.iqn]


def test_told_sources() -> None:
    """The portals that a target names come after the one that was asked; impossible names are left out."""
    asked = Host("san", 3261)
    told = Told(
        "iqn.2026-01.a:x", ("10.0.0.1:3260,1", "san:3261,1", "[2001:db8::1]:860,2", "10.0.0.1:3260,2", "rubbish:x")
    )
    found = source_of(told, asked)
    assert found is not None
    assert found.source.hosts == (asked, Host("10.0.0.1"), Host("2001:db8::1", 860))
    assert found.source.devices == (Device("iqn.2026-01.a:x"),)
    assert source_of(Told("../x", ()), asked) is None


async def test_asked_as_an_initiator(target: Target, manager: Manager) -> None:
    """The sources are those that the initiator may see, and have its name: a pool can be defined of one."""
    target.add_lun(1, MIB)
    for operation, *whom in (("unbind", "--initiator-address", "ALL"), ("bind", "--initiator-name", INITIATOR)):
        target.bed.tgtadm("target", operation, "--tid", str(target.number), *whom)
    port = target.bed.port
    assert target.iqn not in str(await manager.discover("iscsi-direct", ADDRESS, port=port))
    spec = f"<source><host name='{ADDRESS}' port='{port}'/><initiator><iqn name='{INITIATOR}'/></initiator></source>"
    for found in (
        await manager.discover("iscsi-direct", ADDRESS, port=port, initiator=INITIATOR),
        await manager.discover("iscsi-direct", spec=spec),
    ):
        (mine,) = (one.source for one in found if one.source.devices[0].path == target.iqn)
        assert mine.initiator == INITIATOR
    pool = await manager.define(PoolDef("iscsi-direct", "found", source=mine))
    await pool.start()
    assert [one.name for one in pool.volumes] == ["unit:0:0:1"]
    with pytest.raises(DefinitionError, match="netfs know no initiators"):
        await manager.discover("netfs", ADDRESS, initiator=INITIATOR)
    with pytest.raises(DefinitionError, match="is not the name"):
        await manager.discover("iscsi-direct", ADDRESS, initiator="me and you")


async def test_no_answer(manager: Manager, own_bed: IscsiBed) -> None:
    """A portal that nobody listens on, or that says nothing, is told by name; without a host there is nothing to ask."""
    with pytest.raises(StorageError, match=r"portal 127\.0\.0\.1:1 cannot be listed: .*refused") as caught:
        await manager.discover("iscsi-direct", ADDRESS, port=1)
    assert caught.value.errno == errno.ECONNREFUSED
    with pytest.raises(DefinitionError):
        await manager.discover("iscsi-direct", None)
    own_bed.freeze()
    try:
        async with asyncio.timeout(3 * TIMEOUT):
            with pytest.raises(StorageError, match="cannot be listed"):
                await manager.discover("iscsi-direct", ADDRESS, port=own_bed.port)
    finally:
        own_bed.thaw()
