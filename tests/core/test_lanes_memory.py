"""Threads and memory that are not to be had: an error of the call, and never a wait without end."""

from __future__ import annotations

import _thread
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest
from core_fakes import run_python

from astore.lanes import Lanes

SCRIPT = """
    import asyncio, pathlib, resource, sys
    import astore

    async def add(manager, folder):
        folder.mkdir(parents=True)
        for name in range(20):
            (folder / f"v{name}").write_bytes(b"x" * 100)
        target = astore.Target(path=str(folder))
        pool = await manager.define(astore.PoolDef(name=folder.name, type="dir", target=target))
        await pool.start(refresh=False)

    async def work(manager, base, told):
        for number in range(60):
            await add(manager, base / f"p{number}")
        for _ in range(4):
            report = await manager.refresh_all(full=True)
            told.update(type(one.error) if one.error else None for one in report.pools)

    async def main(base):
        told = set()
        async with astore.Manager(state_dir=base / "state", call_timeout=5) as manager:
            try:
                await work(manager, base, told)
            except (astore.AstoreError, MemoryError) as error:
                told.add(type(error))
            resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            if not manager.pools(active=True):
                await add(manager, base / "last")
            report = await manager.refresh_all(full=True)
            assert report.pools and not report.failed, report.failed
        assert all(one is None or issubclass(one, (astore.AstoreError, MemoryError)) for one in told), told
        print(*sorted(one.__name__ if one else "done" for one in told))

    asyncio.run(main(pathlib.Path(sys.argv[1])))
"""


@pytest.mark.parametrize("mebibytes", [140, 330])
def test_little_memory(tmp_path: Path, mebibytes: int) -> None:
    """With little address space all ends, well or with errors; with more of it, all goes on.

    With less than some 100 MiB CPython itself aborts, for example for want of a MemoryError.
    """
    limited = f'ulimit -S -v {mebibytes << 10}; exec "$0" -c "$1" "$2"'
    done = subprocess.run(
        ["sh", "-c", limited, sys.executable, textwrap.dedent(SCRIPT), str(tmp_path)],
        check=False,
        capture_output=True,
        text=True,
        timeout=160,
    )
    assert done.returncode == 0, (done.returncode, done.stdout, done.stderr)
    print(f"{mebibytes} MiB: {done.stdout}")


@pytest.mark.parametrize("comes", [True, False])
def test_a_thread_that_is_late_at_exit(comes: bool) -> None:
    """The interpreter waits until it has begun, for LOST_SECONDS at most."""
    done = run_python(textwrap.dedent(EXIT).replace("COMES", str(comes)), timeout=200.0)
    assert (done.stdout, done.stderr) == ("begun\nended\n" if comes else "ended\n", "")


EXIT = """
    import _thread, asyncio, atexit, threading, time
    from astore.lanes import Lanes, threads

    threads.LOST_SECONDS = 1.0
    atexit.register(lambda: print("ended", flush=True))  # after those that are registered by an import
    from astore.lanes import lane

    atexit.unregister(lane._let_threads_begin)
    atexit.register(lane._let_threads_begin)
    go_on, start = threading.Event(), _thread.start_new_thread

    def late(func, arguments):
        def begin():
            go_on.wait()
            time.sleep(0.2)
            print("begun", flush=True)
            func(*arguments)

        if COMES:
            start(begin, ())

    async def main():
        global lanes
        lanes = Lanes(1)
        _thread.start_new_thread = late
        asyncio.ensure_future(lanes.lane("a").run(int))
        await asyncio.sleep(0)
        go_on.set()

    asyncio.run(main())
"""


async def test_a_thread_that_never_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread that dies before it looks for work costs the call some seconds: then another is started."""
    monkeypatch.setattr("astore.lanes.threads.LOST_SECONDS", 0.01)
    monkeypatch.setattr("astore.lanes.lane.LOST_SECONDS", 0.02)
    lanes = Lanes(2)
    lane = lanes.lane("a")
    real = _thread.start_new_thread
    started = 0

    def lost(serve: Callable[[], None], arguments: tuple[()]) -> int:
        nonlocal started
        started += 1
        return 0 if started == 1 else real(serve, arguments)

    monkeypatch.setattr(_thread, "start_new_thread", lost)
    assert await lane.run(int) == 0
    assert (started, lanes.statistics().threads) == (2, 1)
    lanes.close()
