"""Refreshes of a Gluster pool that are given up: their thread ends, and asks the brick for nothing more."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from core_fakes import eventually, quiet

from astore.errors import InvalidStateError, LaneTimeoutError
from astore.manager import Manager
from astore.model import Host, PoolDef, PoolState, Source
from astore.registry import BackendRegistry
from astore.testing.faults import Faults
from astore_gluster.backend import GlusterBackend
from beds.gluster import GlusterBed

pytestmark = [pytest.mark.root, pytest.mark.gluster]

COUNT = 400

OVERDUE = 4.0
"""Seconds within which the listing has to be over on a busy machine, too: a header is to be read when they are over."""


@pytest.mark.parametrize("how", ["cancelled", "overdue", "stopped"])
async def test_a_scan_that_is_given_up_ends(gluster: GlusterBed, new_volume: str, tmp_path: Path, how: str) -> None:
    """A header that takes long is the last that is read; the next refresh reads the others, and those before only once."""
    brick = gluster.brick(new_volume)
    mount = await asyncio.to_thread(gluster.mount, new_volume)
    for number in range(COUNT):
        (mount / f"{number:03d}.raw").write_bytes(b"x")
    assert len(list(brick.glob("*.raw"))) == COUNT
    definition = PoolDef(
        type="gluster", name="p", source=Source(hosts=(Host(gluster.host),), directory="/", name=new_volume)
    )
    with Faults() as faults:
        registry = BackendRegistry(group=None)
        await asyncio.to_thread(registry.register, faults.into(GlusterBackend()))
        async with Manager(tmp_path / "state", registry=registry) as manager:
            pool = await manager.define(definition)
            await pool.start(refresh=False)
            gate = faults.hang("reading.header")
            refresh = asyncio.ensure_future(pool.refresh(timeout=OVERDUE if how == "overdue" else None))
            await gate.reached()
            held = gate.entered
            if how == "cancelled":
                refresh.cancel()
                await asyncio.wait([refresh])
            elif how == "stopped":
                await pool.stop(force=True)
                with pytest.raises(InvalidStateError):
                    await refresh
            else:
                with pytest.raises(LaneTimeoutError):
                    await refresh
                assert pool.state is PoolState.RUNNING
                await asyncio.sleep(OVERDUE + 0.5)  # it lingers for as long again
            gate.open()
            await eventually(lambda: quiet(manager), "the end of the scan")
            assert gate.entered <= held + 8
            if how == "stopped":
                await pool.start(refresh=False)
            assert len((await pool.refresh()).added) == COUNT
