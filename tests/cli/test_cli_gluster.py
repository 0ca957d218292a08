"""The command on a pool of a real Gluster: found and defined, addressed by key, filled, and its volumes moved."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from beds.gluster import GlusterBed

Make = Callable[..., Path]

DATA = os.urandom(3 << 20)

pytestmark = [pytest.mark.root, pytest.mark.gluster]


@pytest.fixture
def started(astore: Any, gluster: GlusterBed, volume_factory: Callable[..., str]) -> str:
    """The name of a Gluster volume that is the started pool ``far``, defined by what its server tells."""
    volumes = [volume_factory() for _ in range(2)]
    command = ("pool", "discover", "gluster", gluster.host)
    assert set(volumes) <= set(astore.good(*command).out.split())
    several = astore(*command, "--define", "far")
    assert (several.code, several.complaint.partition(":")[0]) == (2, "say which one to define with --source")
    assert astore.good(*command, "--define", "far", "--source", volumes[1]).out == "pool 'far' defined\n"
    astore.good("pool", "start", "far")
    return volumes[1]


def test_addresses(astore: Any, started: str, gluster: GlusterBed, tmp_path: Path) -> None:
    """A volume is meant by POOL/VOLUME, by POOL:VOLUME, by its name and by its key, which is a URL."""
    astore.good("vol", "create", "far", "a.raw", "1M")
    key = f"gluster://{gluster.host}/{started}/a.raw"
    for address in ("far/a.raw", "far:a.raw", "a.raw", key):
        assert astore.good("vol", "path", address).out == f"{key}\n"
        assert "a.raw" in astore.good("vol", "info", address).out
    assert astore.good("vol-key", "a.raw", "--pool", "far").out == f"{key}\n\n"
    assert astore.good("vol-pool", key).out == "far\n\n"
    assert astore.good("vol-name", key).out == "a.raw\n\n"
    (tmp_path / "content").write_bytes(DATA[: 1 << 20])
    astore.good("vol", "upload", key, str(tmp_path / "content"))
    astore.good("vol", "download", "far:a.raw", str(tmp_path / "back"))
    assert (tmp_path / "back").read_bytes() == DATA[: 1 << 20]
    astore.good("vol", "delete", key)
    assert astore("vol", "info", "far/a.raw").code == 3


def test_moving_there_and_back(astore: Any, started: str, make_pool: Make, tmp_path: Path) -> None:
    """A volume is in the other pool with the same bytes, and no longer where it was; one that others need stays."""
    folder = make_pool("images")
    (folder / "a.raw").write_bytes(DATA)
    os.truncate(folder / "a.raw", 32 << 20)
    astore.good("pool", "refresh", "images")
    assert astore.good("vol", "move", "images/a.raw", "far").out == "volume 'a.raw' moved from pool 'images' to 'far'\n"
    assert not (folder / "a.raw").exists()
    astore.good("vol", "download", "far/a.raw", str(tmp_path / "back"))
    assert (tmp_path / "back").read_bytes() == DATA + bytes((32 << 20) - len(DATA))
    astore.good("vol", "move", "far/a.raw", "images/b.raw")
    assert (folder / "b.raw").read_bytes()[: len(DATA)] == DATA
    assert astore.good("-q", "vol-list", "far").out.split() == []
    ran = astore("vol", "move", "images/base.qcow2", "far")
    assert (ran.code, "what others are backed by (web.qcow2)" in ran.complaint) == (1, True)
