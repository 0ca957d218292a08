"""All programs are started by the helper process: a child of this one would have copies of all its descriptors."""

from __future__ import annotations

import asyncio
import gzip
from pathlib import Path

import pytest
from core_fakes import run_python
from drills.conftest import Drill, Make
from drills.test_open_files import frozen, output_of, thawed
from drills.work import started

from astore.manager import Manager

HEAD = """
import asyncio, os, sys

def audit(event, arguments):
    if event in ("subprocess.Popen", "os.fork", "os.forkpty", "os.posix_spawn", "os.system", "os.exec"):
        print("started:", [os.fsdecode(one) for one in arguments[1]] if len(arguments) > 1 else event)

sys.addaudithook(audit)
"""

LIBRARY = (
    HEAD
    + """
import astore
from pathlib import Path

async def main(state, folder):
    async with astore.Manager(state) as manager, manager.watch():
        pool = await manager.create(astore.PoolDef("dir", "images", target=astore.Target(folder)))
        await pool.create_volume(astore.VolumeDef("a.qcow2", capacity=1 << 20, format="qcow2"))
        async with manager.events(kinds={astore.VolumeAdded}) as events:
            Path(folder, "b").touch()
            assert (await anext(events)).name == "b"

asyncio.run(main(*sys.argv[1:3]))
"""
)

GLUSTER = HEAD + "from astore_gluster.libgfapi import load; load()\n"

COMMAND = HEAD + "from astore.cli import main; sys.argv[1:3] = []; main()\n"


def started_by(code: str, *arguments: str) -> list[str]:
    """Return the programs that a process has started itself, after it has ended well."""
    ended = run_python(code, *arguments)
    assert ended.returncode == 0, ended.stderr
    return [line for line in ended.stdout.splitlines() if line.startswith("started:")]


@pytest.mark.qemu
def test_the_library_starts_the_helper_alone(tmp_path: Path) -> None:
    """Also where a package looks for a shared library."""
    (tmp_path / "images").mkdir()
    (helper,) = started_by(LIBRARY, str(tmp_path / "state"), str(tmp_path / "images"))
    assert "starter_process" in helper


@pytest.mark.gluster
def test_loading_libgfapi_starts_nothing() -> None:
    """The package gfapi looks for its library when it is loaded."""
    assert started_by(GLUSTER) == []


@pytest.mark.qemu
def test_commands_start_the_helper_alone(tmp_path: Path) -> None:
    """Also those that unpack a file or show what qemu-img says."""
    folder = tmp_path / "images"
    folder.mkdir()
    (tmp_path / "content.gz").write_bytes(gzip.compress(b"content"))
    state = ("--state-dir", str(tmp_path / "state"))
    for words in (
        ("pool", "create-as", "images", "dir", "--target", str(folder)),
        ("vol", "create", "images", "a.qcow2", "1M", "--format", "qcow2"),
        ("vol", "create", "images", "a.raw", "1M"),
        ("vol", "upload", "images/a.raw", str(tmp_path / "content.gz")),
        ("vol", "check", "images/a.qcow2"),
        ("vol", "snapshots", "images/a.qcow2"),
    ):
        found = started_by(COMMAND, "", "", *state, *words)
        assert all("starter_process" in line for line in found), found
        assert len(found) <= 1
    assert (folder / "a.raw").read_bytes()[:7] == b"content"


HUNG = """
import asyncio, sys
import astore
from pathlib import Path
from astore_gluster.libgfapi import load

async def main(state, folder):
    async with astore.Manager(state) as manager:
        await manager.pool("drill").refresh()
        work = asyncio.ensure_future(manager.pool("drill").volume("a.raw").upload(bytes(8 << 20)))
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(None, sys.stdin.readline)
        well = await manager.create(astore.PoolDef("dir", "well", target=astore.Target(folder)))
        async with manager.watch(), manager.events(kinds={astore.VolumeAdded}, pools={"well"}) as events:
            while well.info.freshness is None:
                await asyncio.sleep(0.01)
            print(well.info.freshness.way, flush=True)
            Path(folder, "b").touch()
            print((await anext(events)).name, flush=True)
            await loop.run_in_executor(None, load)
            print("loaded", flush=True)
        work.cancel()
        await manager.aclose(cut=True)

asyncio.run(main(*sys.argv[1:]))
"""


@pytest.mark.root
@pytest.mark.gluster
@pytest.mark.fuse
async def test_libraries_are_loaded_while_a_mount_hangs(manager: Manager, new_drill: Make, tmp_path: Path) -> None:
    """The first watch and the first Gluster pool of a process come while it has a file open whose FUSE client is stopped."""
    drill: Drill = new_drill()
    await started(manager, drill)
    folder = tmp_path / "well"
    folder.mkdir()
    gate = drill.fs.hold("write", names="a.raw")

    async def hang() -> None:
        await asyncio.to_thread(gate.wait, timeout=120)
        await frozen(drill)

    code, out, err = await output_of(["-c", HUNG, str(tmp_path / "state"), str(folder)], hang)
    assert (code, out) == (0, b"inotify\nb\nloaded\n"), err
    await thawed(drill)
