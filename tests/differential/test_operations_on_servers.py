"""The same steps on real Gluster volumes: ``netfs`` pools, mounted by FUSE on both sides, and ``gluster`` pools.

Both sides have the same volume, so that all times are the same; others use the file system below it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from differential.comparing import Comparing, put_away
from differential.counts import counting
from differential.operations import LibvirtSide, astore_side
from differential.oracle import Oracle

from beds import fuse
from beds.gluster import GlusterBed
from beds.images import template

pytestmark = [pytest.mark.root, pytest.mark.gluster, pytest.mark.fuse, pytest.mark.libvirt, pytest.mark.qemu]

MOUNT_OPTIONS = (
    "<fs:mount_opts><fs:option name='attribute-timeout=0'/><fs:option name='entry-timeout=0'/></fs:mount_opts>"
)


def fill(folder: Path) -> None:
    """One of everything."""
    for kind in ("qcow2", "qcow", "qed", "vmdk", "vdi", "vpc"):
        template(kind, 10 << 20).write(folder / f"a {kind}")
    template("qcow2", 1 << 30, "a qcow2", "qcow2").write(folder / "backed")
    (folder / "raw").write_bytes(b"x" * 70_000)
    (folder / "empty").touch()
    (folder / "folder").mkdir()
    (folder / "link").symlink_to("raw")
    (folder / "dangling").symlink_to("nowhere")


@pytest.fixture
def roots(tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    """libvirt's folder and astore's; nothing stays mounted there."""
    found = tmp_path / "twin1", tmp_path / "twin2"
    for folder in found:
        folder.mkdir()
    yield found
    for folder in found:
        for mounted in fuse.mounts(folder):
            fuse.release(mounted.target)


async def test_netfs(
    oracle: Oracle, roots: tuple[Path, Path], gluster: GlusterBed, new_volume: str, tmp_path: Path
) -> None:
    """A pool's whole life on a FUSE mount: built, mounted, looked at, changed by others, defined anew, stopped, deleted."""
    source = f"<source><host name='{gluster.host}'/><dir path='{new_volume}'/><format type='glusterfs'/></source>"
    space = " xmlns:fs='http://libvirt.org/schemas/storagepool/fs/1.0'"

    def document(name: str, *, uuid: int = 1, target: str = "@/mounted") -> str:
        return (
            f"<pool type='netfs'{space}><name>{name}</name><uuid>00000000-0000-4000-8000-00000000010{uuid}</uuid>{source}"
            f"<target><path>{target}</path></target>{MOUNT_OPTIONS}</pool>"
        )

    oracle.ask("events")
    async with astore_side(roots[1], tmp_path / "state", counting("operations").met) as mine:
        theirs = LibvirtSide(roots[0], oracle)
        to = Comparing(theirs, mine, shared=("netfs", "passing"), figures=False)
        try:
            await to.both("define", document("netfs"))
            await to.both("define", document("other", uuid=2))  # the same source
            await to.both("define", document("netfs", uuid=2))
            await to.both("start", "netfs", False)  # there is no folder
            for step in ("build", "build"):
                await to.both(step, "netfs")
            await to.both("start", "netfs", False)
            await to.both("start", "netfs", False)
            await to.look("netfs")
            assert to.known["netfs"]["active"]
            fill(theirs.root / "mounted")
            os.mkfifo(
                theirs.root / "mounted" / "fifo"
            )  # which, on Gluster without a mount, is the end of libvirt's pool
            await to.look("netfs")
            assert len(to.known["netfs"]["volumes"]) == 11
            (theirs.root / "mounted" / "raw").write_bytes(b"longer" * 70_000)
            (theirs.root / "mounted" / "a vdi").unlink()
            (mine.root / "mounted" / "a qed").rename(mine.root / "mounted" / "b qed")
            await to.look("netfs")
            for step in ("build", "delete", "undefine"):
                await to.both(step, "netfs")
            await to.both("autostart", "netfs", True)
            await to.both("define", document("netfs", target="@/elsewhere"))
            for path in ("@/mounted", "@/elsewhere"):
                await to.both("by_target", path)
            await to.both("by_path", "@/mounted/backed")
            await to.both("download", "netfs", "backed", 0, 0)
            await to.both("download", "netfs", "raw", 100, 1_000)
            await to.look("netfs")
            for _ in range(2):
                await to.both("stop", "netfs")
            assert not fuse.mounts(theirs.root) and not fuse.mounts(mine.root)
            await to.look("netfs")
            await to.both("start", "netfs", True)  # by the new definition
            await to.look("netfs")
            await to.both("stop", "netfs")
            for step in ("delete", "delete", "undefine", "undefine"):
                await to.both(step, "netfs")
            await to.both("create", document("passing"), False)
            await to.look("passing")
            await to.both("autostart", "passing", True)
            await to.both("undefine", "passing")
            await to.both("stop", "passing")
            await to.both("start", "passing", False)
            await to.look_at_events()
        finally:
            put_away(oracle, ("netfs", "other", "passing"))


async def test_gluster(
    oracle: Oracle, roots: tuple[Path, Path], gluster: GlusterBed, volume_factory: Callable[..., str], tmp_path: Path
) -> None:
    """A pool on a volume, without a mount: libvirt takes ten seconds for each look, so that there are few."""
    volume = volume_factory()
    mounted = gluster.mount(volume, options=("--attribute-timeout=0", "--entry-timeout=0"))
    (mounted / "images").mkdir()
    fill(mounted / "images")

    def document(name: str, *, uuid: int = 1, folder: str = "/images") -> str:
        source = f"<host name='{gluster.host}'/><dir path='{folder}'/><name>{volume}</name>"
        uuids = f"<uuid>00000000-0000-4000-8000-00000000020{uuid}</uuid>"
        return f"<pool type='gluster'><name>{name}</name>{uuids}<source>{source}</source></pool>"

    oracle.ask("events")
    async with astore_side(roots[1], tmp_path / "state", counting("operations").met) as mine:
        to = Comparing(LibvirtSide(roots[0], oracle), mine, shared=("gluster",), figures=False)
        try:
            await to.both("define", document("gluster"))
            await to.both("define", document("other", uuid=2))  # the same source
            await to.both("autostart", "gluster", True)
            await to.both("start", "gluster", False)
            await to.both("start", "gluster", False)
            for step in ("delete", "undefine"):
                await to.both(step, "gluster")
            await to.both("define", document("gluster", folder="/"))
            (mounted / "images" / "a vdi").unlink()
            (mounted / "images" / "raw").write_bytes(b"longer" * 70_000)
            await to.look("gluster")
            assert len(to.known["gluster"]["volumes"]) == 10
            told = (await mine.world(["gluster"]))["gluster"]["volumes"]["backed"]
            assert f"<path>gluster://{gluster.host}/{volume}/images/a%20qcow2</path>" in told
            await to.both("by_key", f"gluster://{gluster.host}/{volume}/images/a%20qcow")
            await to.both("by_path", f"gluster://{gluster.host}/{volume}/images/backed")
            for side, name in ((to.libvirt, "a qed"), (to.astore, "empty")):  # each one of the volumes that they share
                done = await side.do("delete_volume", "gluster", name)
                assert (done.code, (mounted / "images" / name).exists()) == (None, False), done
            for _ in range(2):
                await to.both("stop", "gluster")
            await to.both("delete", "gluster")
            for _ in range(2):
                await to.both("undefine", "gluster")
            await to.look_at_events()
        finally:
            put_away(oracle, ("gluster", "other"))
