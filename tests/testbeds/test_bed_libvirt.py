"""The private libvirtd."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from beds import BedUnavailable, fuse, libvirt
from beds.gluster import GlusterBed
from beds.images import make_images
from beds.libvirt import LibvirtBed, VirshError

pytestmark = pytest.mark.libvirt

_DIR = "<pool type='dir'><name>{name}</name><target><path>{path}</path></target></pool>"
_NETFS = (
    "<pool type='netfs'><name>{name}</name><source><host name='{host}'/><dir path='{volume}'/>"
    "<format type='glusterfs'/></source><target><path>{path}</path></target></pool>"
)


def _volumes(listing: str) -> list[str]:
    return [line.split()[0] for line in listing.splitlines() if line.strip()]


@pytest.fixture
def pool(libvirt_bed: LibvirtBed) -> Iterator[str]:
    """A pool's name; the pool is gone afterwards."""
    yield "pool"
    for command in ("pool-destroy", "pool-undefine"):
        try:
            libvirt_bed.virsh(command, "pool")
        except VirshError:
            continue


def test_a_dir_pool_lives(libvirt_bed: LibvirtBed, image_folder: Path, pool: str) -> None:
    """Define, start, refresh and list."""
    libvirt_bed.define(_DIR.format(name=pool, path=image_folder))
    libvirt_bed.virsh("pool-start", pool)
    assert len(_volumes(libvirt_bed.virsh("vol-list", pool))) == 20
    make_images(image_folder, 1, prefix="more")
    libvirt_bed.virsh("pool-refresh", pool)
    assert "more00000.qcow2" in _volumes(libvirt_bed.virsh("vol-list", pool))


@pytest.mark.gluster
@pytest.mark.fuse
def test_a_netfs_pool_mounts_gluster(
    libvirt_bed: LibvirtBed, gluster: GlusterBed, new_volume: str, tmp_path: Path, pool: str
) -> None:
    """libvirt mounts the private Gluster, and unmounts it."""
    target = tmp_path / "target"
    target.mkdir()
    make_images(gluster.mount(new_volume), 2)
    libvirt_bed.define(_NETFS.format(name=pool, host=gluster.host, volume=new_volume, path=target))
    libvirt_bed.virsh("pool-start", pool)
    assert len(_volumes(libvirt_bed.virsh("vol-list", pool))) == 2
    assert fuse.is_mounted(target)
    libvirt_bed.virsh("pool-destroy", pool)
    assert not fuse.is_mounted(target)


@pytest.mark.gluster
def test_gluster_sources_are_found(libvirt_bed: LibvirtBed, gluster: GlusterBed, new_volume: str) -> None:
    """libvirt's discovery speaks to the private Gluster."""
    found = libvirt_bed.virsh("find-storage-pool-sources-as", "gluster", gluster.host)
    assert f"<name>{new_volume}</name>" in found


@pytest.mark.gluster
def test_a_gluster_pool_starts(libvirt_bed: LibvirtBed, gluster: GlusterBed, new_volume: str, pool: str) -> None:
    """The gluster backend is there (and takes its 10 s)."""
    make_images(gluster.mount(new_volume), 2)
    libvirt_bed.define(
        f"<pool type='gluster'><name>{pool}</name><source><host name='{gluster.host}'/>"
        f"<dir path='/'/><name>{new_volume}</name></source></pool>"
    )
    libvirt_bed.virsh("pool-start", pool)
    assert len(_volumes(libvirt_bed.virsh("vol-list", pool))) == 2


def test_virsh_errors_have_virshs_words(libvirt_bed: LibvirtBed) -> None:
    """What virsh refuses is raised with what it printed."""
    with pytest.raises(VirshError, match="nosuchpool"):
        libvirt_bed.virsh("pool-start", "nosuchpool")


def test_a_missing_program_is_named_with_its_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without libvirtd the bed says which package has it."""
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "libvirt-daemon" in str(libvirt.missing())
    with pytest.raises(BedUnavailable, match="libvirt-daemon"):
        LibvirtBed(tmp_path / "bed").start()
