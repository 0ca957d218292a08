"""Processes that end, whatever their connections, threads and objects are at: with code 0, and without a wait."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from beds.gluster import GlusterBed
    from tests.gluster.conftest import Folder

pytestmark = [pytest.mark.root, pytest.mark.gluster, pytest.mark.fuse]

BEGIN = """
import gc, os, socket, sys, threading, time
from astore_gluster.volume.connection import CONNECTIONS, ConnectionCache, Key
from astore_gluster.servers import Server
from astore_gluster.volume.tree import GlusterTree
host, volume, name = sys.argv[1:]
key = Key(volume, (Server("tcp", host, 24007),))
def tree():
    return GlusterTree(CONNECTIONS.acquire(key), name, ("", ""))
def everything(name, found):
    return True
def read():
    mine = tree()
    while True:
        for entry in mine.scan(everything):
            mine.read_header(entry, bool)
"""

STATES = {
    "connected": "held = tree(); held.statvfs()",
    "connected and collected": "tree().statvfs(); gc.collect()",
    "given back": "held = tree(); held.statvfs(); held.close()",
    "being closed": "held = tree(); held.statvfs(); held.close(); CONNECTIONS.close_idle()",
    "failed": """
try:
    CONNECTIONS.acquire(Key("nosuchvolume", key.servers))
except FileNotFoundError:
    pass""",
    "connecting": """
listener = socket.create_server(("127.0.0.1", 0))
silent = Key("v", (Server("tcp", "127.0.0.1", listener.getsockname()[1]),))
threading.Thread(target=CONNECTIONS.acquire, args=(silent,), daemon=True).start()
taken = [listener.accept()[0].detach() for _ in range(2)], listener.detach()  # one to ask, one to stay""",
    "files, listings and handles open": """
held = tree()
file = held.open("0.img", write=True)
file.pwrite(b"y" * 100_000, 0)
listing = held.scan(everything)
entries = [next(listing) for _ in range(3)]
cycle = [held, file, listing, entries]
cycle.append(cycle)""",
    "threads that list and read": """
for _ in range(6):
    threading.Thread(target=read, daemon=True).start()
time.sleep(0.3)""",
    "a forked child at work": """
held = tree()
held.statvfs()
pid = os.fork()
if pid == 0:
    own = ConnectionCache()
    other = GlusterTree(own.acquire(key), name, ("", ""))
    assert len([other.read_header(entry, bool) for entry in other.scan(everything)]) == 50
    try:
        held.statvfs()
    except OSError as error:
        assert "parent process" in str(error)
    else:
        raise AssertionError("the parent's connection was used")
    held.close()
    other.close()
    sys.exit(0)
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
held.statvfs()""",
    "the loop of a Manager": """
import asyncio, astore, tempfile
from astore.model import Host, PoolDef, Source
async def main():
    with tempfile.TemporaryDirectory() as folder:
        async with astore.Manager(folder) as manager:
            source = Source(hosts=(Host(host),), directory=name, name=volume)
            pool = await manager.create(PoolDef(type="gluster", name="p", source=source))
            assert len(pool.volumes) == 50
            await pool.refresh(full=True)
asyncio.run(main())""",
}


LIBGFAPI_SECONDS = 10.0
"""Seconds that libgfapi takes to close a connection."""


async def ended(code: str, *arguments: str) -> None:
    """Run code in a process of its own; it must end well, silently, and before libgfapi could close a connection."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-X",
        "faulthandler",
        "-W",
        "error",
        "-c",
        f"{BEGIN}{code}\nprint('left', flush=True)\n",
        *arguments,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        assert process.stderr is not None
        async with asyncio.timeout(60):
            line = await process.stdout.readline()
        left = time.monotonic()
        async with asyncio.timeout(60):
            said = await process.stderr.read()
            returncode = await process.wait()
        took = time.monotonic() - left
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGKILL)
            await process.wait()
    assert (line, returncode, said.decode()) == (b"left\n", 0, "")
    assert took < LIBGFAPI_SECONDS


@pytest.mark.parametrize("state", STATES)
async def test_a_process_ends(gluster: GlusterBed, folder: Folder, volume: str, state: str) -> None:
    """No wait for libgfapi's 10 s, no crash of what is collected at the end; again and again, since crashes are chance."""
    for n in range(50):
        (folder.path / f"{n}.img").write_bytes(b"x" * 50_000)
    for _ in range(2):
        await ended(STATES[state], gluster.host, volume, folder.name)


HUNG = """
held = tree()
held.statvfs()
CONNECTIONS.acquire(key).drop()
file = held.open("0.img", write=True)
listing = held.scan(everything)
entry = next(listing)
print("ready", flush=True)
sys.stdin.readline()
def hang(call, *arguments):
    thread = threading.Thread(target=call, args=arguments, daemon=True)
    thread.start()
hang(held.read_header, entry, bool)
for _ in range(3):
    hang(lambda: list(held.scan(everything)))
    hang(held.statvfs)
    hang(file.pread, 1000, 0)
hang(file.sync)
time.sleep(0.3)
CONNECTIONS.close_idle()
assert threading.active_count() > 5
"""


async def test_a_process_with_a_hung_brick_ends(gluster: GlusterBed, volume_factory: Callable[..., str]) -> None:
    """However many of its threads hang in the library."""
    name = await asyncio.to_thread(lambda: volume_factory(options={"network.ping-timeout": 60}))
    await asyncio.to_thread(lambda: (gluster.mount(name) / "0.img").write_bytes(b"x" * 50_000))
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-X",
        "faulthandler",
        "-c",
        f"{BEGIN}{HUNG}\nprint('left', flush=True)\n",
        gluster.host,
        name,
        "/",
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        async with asyncio.timeout(60):
            assert await process.stdout.readline() == b"ready\n"
            await asyncio.to_thread(gluster.stop_brick, name)
            process.stdin.write(b"\n")
            assert await process.stdout.readline() == b"left\n"
        async with asyncio.timeout(30):  # the brick hangs longer than that
            said = await process.stderr.read()
            returncode = await process.wait()
        assert (returncode, said.decode()) == (0, "")
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        await asyncio.to_thread(gluster.continue_brick, name)


MODULES = """
def modules():
    with open("/proc/self/maps") as maps:
        return {line.split()[-1] for line in maps if "/xlator/" in line}
held = tree(); held.statvfs()
loaded = modules()
held.close(); CONNECTIONS.close_idle()
while CONNECTIONS.statistics()["closing"]:
    time.sleep(0.05)
assert loaded and loaded <= modules(), loaded - modules()
"""


def test_modules_outlive_their_connection(gluster: GlusterBed, folder: Folder, volume: str) -> None:
    """The code of a volume's translators stays in memory: a thread of theirs may be about to return when it is closed."""
    done = subprocess.run(
        [sys.executable, "-c", BEGIN + MODULES, gluster.host, volume, folder.name],
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert done.returncode == 0, done.stderr
