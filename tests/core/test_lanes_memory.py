"""Threads and memory that are not to be had: an error of the call, and never a wait without end."""

from __future__ import annotations

import _thread
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from astore.lanes import Lanes

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


@pytest.mark.parametrize("mebibytes", [330, 400])
def test_little_memory(tmp_path: Path, mebibytes: int) -> None:
    """With little address space all ends, well or with errors."""
    limited = f'ulimit -v {mebibytes << 10}; exec "$0" -c "$1" "$2"'
    subprocess.run(
        ["sh", "-c", limited, sys.executable, textwrap.dedent(SCRIPT), str(tmp_path)],
        check=False,
        capture_output=True,
        timeout=160,
    )


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
