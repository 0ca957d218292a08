"""``pool discover --define`` on real servers: what a server tells becomes a pool that starts, and has its volumes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from beds import fuse
from beds.iscsi import ADDRESS, IscsiBed, Target

if TYPE_CHECKING:
    from beds.gluster import GlusterBed

MIB = 1 << 20
INITIATOR = "iqn.2026-01.test.astore:command"
DATA = os.urandom(MIB)

NewTarget = Callable[..., Target]


@pytest.fixture
def new_target(iscsi: IscsiBed) -> Iterator[NewTarget]:
    """Makes targets, with the arguments of ``IscsiBed.new_target``; deleted afterwards."""
    made: list[Target] = []

    def make(**settings: Any) -> Target:
        made.append(iscsi.new_target(**settings))
        return made[-1]

    yield make
    for target in made:
        target.delete()


@pytest.fixture
def data(tmp_path: Path) -> str:
    """The path of a file with ``DATA``."""
    (tmp_path / "content").write_bytes(DATA)
    return str(tmp_path / "content")


@pytest.fixture
def target_folder(tmp_path: Path) -> Iterator[Path]:
    """Where a pool is mounted. It is not there yet; a mount that the test leaves is removed."""
    yield tmp_path / "mounts" / "share"
    fuse.release(tmp_path / "mounts" / "share")


@pytest.mark.iscsi
def test_an_iscsi_target(astore: Any, new_target: NewTarget, data: str) -> None:
    """The target that --source names is a pool: it starts, lists the target's disks, and writes to them."""
    target, _ = new_target(), new_target()
    backing = target.add_lun(1, 4 * MIB)
    target.add_lun(2, MIB)
    command = ("pool", "discover", "iscsi-direct", ADDRESS, str(target.bed.port), "--initiator", INITIATOR)
    several = astore(*command, "--define", "luns")
    assert (several.code, several.complaint.partition(":")[0]) == (2, "say which one to define with --source")
    assert astore.good(*command, "--define", "luns", "--source", target.iqn).out == "pool 'luns' defined\n"
    shown = astore.good("pool", "dumpxml", "luns", "--xpath", "//host/@* | //device/@path | //iqn/@name").out.split()
    assert shown == [f'name="{ADDRESS}"', f'port="{target.bed.port}"', f'path="{target.iqn}"', f'name="{INITIATOR}"']
    astore.good("pool", "start", "luns")
    assert astore.good("-q", "vol-list", "luns").out.split()[::2] == ["unit:0:0:1", "unit:0:0:2"]
    astore.good("vol", "upload", "luns/unit:0:0:1", data)
    assert backing.read_bytes() == DATA + bytes(3 * MIB)
    astore.good("pool", "stop", "luns")
    assert target.connections() == []


@pytest.mark.iscsi
def test_an_iscsi_target_for_one_initiator(astore: Any, new_target: NewTarget) -> None:
    """A target that shows itself to one initiator is found, and used, under that name only."""
    target = new_target(open=False)
    target.add_lun(1, MIB)
    target.bed.tgtadm("target", "bind", "--tid", str(target.number), "--initiator-name", INITIATOR)
    command = ("pool", "discover", "iscsi-direct", ADDRESS, str(target.bed.port), "--define", "mine")
    found = ("--source", target.iqn)
    assert astore(*command, *found, "--initiator", "iqn.2026-01.test.astore:other").code != 0
    astore.good(*command, *found, "--initiator", INITIATOR)
    astore.good("pool", "start", "mine")
    assert astore.good("-q", "vol-list", "mine").out.split()[0] == "unit:0:0:1"
    astore.good("pool", "stop", "mine")


@pytest.mark.root
@pytest.mark.gluster
@pytest.mark.fuse
def test_a_gluster_volume_to_mount(
    astore: Any, gluster: GlusterBed, volume_factory: Callable[..., str], target_folder: Path, data: str, tmp_path: Path
) -> None:
    """netfs finds a server's Gluster volumes; a pool of one is mounted, and has what the gluster pool has."""
    volume, other = volume_factory(), volume_factory()
    command = ("pool", "discover", "netfs", gluster.host)
    assert {volume, other} <= set(astore.good(*command).out.split())
    command = (*command, "--define", "share", "--target", str(target_folder))
    several = astore(*command)
    assert (several.code, several.complaint.partition(":")[0]) == (2, "say which one to define with --source")
    assert astore.good(*command, "--source", volume).out == "pool 'share' defined\n"
    assert "`astore pool build share`" in astore("pool", "start", "share").complaint
    astore.good("pool", "build", "share")
    astore.good("pool", "start", "share")
    assert target_folder.is_mount()
    astore.good("vol", "create", "share", "a.raw", "1M")
    astore.good("vol", "upload", "share/a.raw", data)
    assert astore.good("-q", "vol-list", "share").out.split() == ["a.raw", f"{target_folder}/a.raw"]
    astore.good("pool", "discover", "gluster", gluster.host, "--define", "far", "--source", volume)
    astore.good("pool", "start", "far")
    astore.good("vol", "download", "far/a.raw", str(tmp_path / "back"))
    assert (tmp_path / "back").read_bytes() == DATA
    astore.good("pool", "stop", "share", "far")
    assert not target_folder.is_mount()
