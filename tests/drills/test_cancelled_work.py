"""Work on a mount whose server does not answer is cancelled: the caller has it back, and nothing is left when it answers."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import NamedTuple

import pytest
from core_fakes import PATIENCE, eventually, quiet
from drills.conftest import Make
from drills.test_open_files import frozen
from drills.work import MIB, started

from astore.manager import Manager
from astore.model import VolumeDef
from astore.pools.pool import Pool
from beds import fuse

pytestmark = [pytest.mark.root, pytest.mark.fuse]


class Work(NamedTuple):
    """Work, the call of the file system in which it hangs, and which names there may be afterwards."""

    call: str
    begin: Callable[[Pool], Awaitable[object]]
    after: tuple[set[str], ...]


HERE = {"a.qcow2", "a.raw"}

WORK = {
    "create": Work("create", lambda pool: pool.create_volume(VolumeDef("b", capacity=MIB)), (HERE,)),
    "create, allocated": Work(
        "write", lambda pool: pool.create_volume(VolumeDef("b", capacity=MIB, allocation=MIB)), (HERE,)
    ),
    "upload": Work("write", lambda pool: pool.volume("a.raw").upload(bytes(8 * MIB)), (HERE,)),
    "wipe": Work("write", lambda pool: pool.volume("a.raw").wipe("zero"), (HERE,)),
    "copy": Work("read", lambda pool: pool.copy_volume(pool.volume("a.raw"), VolumeDef("b")), (HERE,)),
    "rename": Work("rename", lambda pool: pool.volume("a.raw").rename("b"), (HERE, {"a.qcow2", "b"})),
    "delete": Work("unlink", lambda pool: pool.volume("a.raw").delete(), (HERE, {"a.qcow2"})),
    "resize": Work("setattr", lambda pool: pool.volume("a.raw").resize(16 * MIB), (HERE,)),
}


@pytest.mark.parametrize("what", WORK)
async def test_work_on_a_server_that_does_not_answer(manager: Manager, new_drill: Make, what: str) -> None:
    """A caller that is cancelled waits for no answer; the clean-up goes on behind it, and is counted."""
    work, drill = WORK[what], new_drill()
    pool = await started(manager, drill)
    gate = drill.fs.hold(work.call)
    task = asyncio.ensure_future(work.begin(pool))
    await asyncio.to_thread(gate.wait, timeout=120)
    await frozen(drill)
    task.cancel()
    async with asyncio.timeout(PATIENCE):
        await asyncio.wait([task])
    assert task.cancelled()
    assert not quiet(manager) or manager.statistics().cleanups, "it still hangs"
    await asyncio.to_thread(fuse.thaw, drill.target)
    gate.remove()
    await eventually(lambda: quiet(manager) and not manager.statistics().cleanups, "the end of the clean-up")
    await pool.refresh(full=True)
    names = {one.name for one in pool.volumes}
    assert names in work.after
    await eventually(lambda: {path.name for path in drill.fs.files.iterdir()} == names, "nothing hidden is left")
    assert await pool.volume("a.qcow2").upload(b"well again") == 10
