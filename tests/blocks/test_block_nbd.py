"""The example of a block backend for a network protocol, examples/blocks/nbd.py, on a real server."""

from __future__ import annotations

import importlib.util
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from leaks import LeakCheck

from astore import Host, PoolDef, PoolInaccessibleError, Source, StorageError, Target, VolumeDef, VolumeNotFoundError
from astore.manager import Manager
from astore.testing.conformance.base import cancel_everywhere
from beds.processes import wait_until

pytestmark = pytest.mark.qemu

EXAMPLE = Path(__file__).parent.parent.parent / "examples" / "blocks" / "nbd.py"
MIB = 1 << 20


def _example() -> Any:
    spec = importlib.util.spec_from_file_location("astore_nbd_blocks", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


nbd = _example()


class Server:
    """A qemu-nbd with one export, "disk 1"."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.image = folder / "image"
        self.image.write_bytes(b"\xee" * 8 * MIB)
        argv = ["qemu-nbd", "-t", "-e", "8", "-b", "127.0.0.1", "-p", str(self.port), "-x", "disk 1", "-f", "raw"]
        self.process = subprocess.Popen([*argv, str(self.image)], stderr=subprocess.DEVNULL)
        wait_until(self._listens, 20, "qemu-nbd listens")

    def _listens(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def end(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """A server."""
    one = Server(tmp_path)
    yield one
    one.end()


async def test_nbd_server_is_a_pool(server: Server, tmp_path: Path, no_leaks: LeakCheck) -> None:
    """Exports are volumes: read, written, converted, described; a server that is gone is an error that passes."""
    (tmp_path / "folder").mkdir()
    async with Manager(tmp_path / "state", call_timeout=20.0) as manager:
        manager.registry.register(nbd.NbdBackend())
        pool = await manager.create(PoolDef("nbd", "exports", source=Source(hosts=(Host("127.0.0.1", server.port),))))
        folder = await manager.create(PoolDef("dir", "folder", target=Target(str(tmp_path / "folder"))))
        disk = pool.volume("disk 1")
        assert (disk.info.capacity, disk.key) == (8 * MIB, f"nbd://127.0.0.1:{server.port}/disk%201")
        await disk.upload(b"written" * 100_000, offset=MIB)
        image = await folder.copy_volume(disk, VolumeDef("image.qcow2", format="qcow2"))
        back = await folder.copy_volume(image, VolumeDef("back.img", format="raw"))
        assert Path(back.path).read_bytes() == server.image.read_bytes()
        assert b"written" in server.image.read_bytes()
        assert '<source protocol="nbd" name="disk 1">' in disk.disk_xml()
        await pool.refresh("another")
        with pytest.raises(VolumeNotFoundError):
            pool.volume("another")

        async def settled(_: bool) -> None:
            assert (await pool.refresh()).errors == ()

        await cancel_everywhere(lambda: disk.upload(b"x" * 4 * MIB), settled)
        server.end()
        with pytest.raises(PoolInaccessibleError):
            await pool.refresh()
        with pytest.raises(StorageError):
            await disk.upload(b"x")
        assert pool.volume("disk 1").info.capacity == 8 * MIB
        await pool.stop()
        await folder.stop()
