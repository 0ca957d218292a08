"""Threads and memory that are not to be had: an error of the call, and never a wait without end."""

from __future__ import annotations

import _thread
import asyncio
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest
from core_fakes import eventually

from astore.errors import LaneTimeoutError
from astore.lanes import Lanes
from astore.testing.faults import Gate

SCRIPT = """
    import asyncio, pathlib, resource, sys
    import astore

    async def main(base):
        async with astore.Manager(state_dir=base / "state", call_timeout=5) as manager:
            for number in range(60):
                folder = base / f"p{number}"
                folder.mkdir(parents=True)
                for name in range(20):
                    (folder / f"v{name}").write_bytes(b"x" * 100)
                pool = await manager.define(
                    astore.PoolDef(name=folder.name, type="dir", target=astore.Target(path=str(folder)))
                )
                await pool.start(refresh=False)
            for _ in range(4):
                await manager.refresh_all(full=True)

    asyncio.run(main(pathlib.Path(sys.argv[1])))
"""


@pytest.mark.parametrize("mebibytes", [200, 260, 330, 400])
def test_little_memory(tmp_path: Path, mebibytes: int) -> None:
    """With little address space (a thread takes 8 MiB of it for its stack) all ends, well or with errors."""
    limited = f'ulimit -v {mebibytes << 10}; exec "$0" -c "$1" "$2"'
    subprocess.run(
        ["sh", "-c", limited, sys.executable, textwrap.dedent(SCRIPT), str(tmp_path)],
        check=False,
        capture_output=True,
        timeout=160,
    )


async def test_a_thread_that_never_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread that dies before it looks for work costs the call its deadline; the next call has another thread."""
    lanes = Lanes(2)
    lane = lanes.lane("a", timeout=0.05)
    real = _thread.start_new_thread

    def lost(serve: Callable[[], None], arguments: tuple[()]) -> int:
        return 0

    monkeypatch.setattr(_thread, "start_new_thread", lost)
    with pytest.raises(LaneTimeoutError, match="found no free thread"):
        await lane.run(int)
    monkeypatch.setattr(_thread, "start_new_thread", real)
    assert await lane.run(int, timeout=60) == 0
    assert lanes.statistics().threads == 1
    lanes.close()


async def test_no_thread_for_a_second_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """While no thread can be started, those that run do the work; a lane without any says so at once."""
    lanes = Lanes(4)
    lane = lanes.lane("a")
    gate = Gate()
    first = asyncio.create_task(lane.run(gate))
    await eventually(lambda: gate.inside == 1)

    def refused(serve: Callable[[], None], arguments: tuple[()]) -> int:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(_thread, "start_new_thread", refused)
    second = asyncio.create_task(lane.run(int))
    await eventually(lambda: lane.statistics().queued == 1)
    gate.open()
    assert await asyncio.gather(first, second) == [None, 0]
    lanes.close()
    others = Lanes(4)
    with pytest.raises(RuntimeError, match="no thread can be started"):
        await others.lane("b").run(int)
    others.close()
