"""What the tests of iSCSI share: targets of a private tgtd, and pools on them."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from iscsi_support import TIMEOUT, NewPool, Passwords, definition_of

from astore.manager import Manager
from astore.pools.pool import Pool
from beds.iscsi import IscsiBed, Target


@pytest.fixture
def target(iscsi: IscsiBed) -> Iterator[Target]:
    """A target without LUNs but its controller."""
    made = iscsi.new_target()
    yield made
    made.delete()


@pytest.fixture
def new_bed() -> Iterator[Callable[[], IscsiBed]]:
    """Starts tgtds of the test's own, to be frozen and killed."""
    with contextlib.ExitStack() as made:
        yield lambda: made.enter_context(
            IscsiBed(made.enter_context(tempfile.TemporaryDirectory(prefix="astore-iscsi-")))
        )


@pytest.fixture
def own_bed(iscsi: IscsiBed, new_bed: Callable[[], IscsiBed]) -> IscsiBed:
    """A tgtd of the test's own."""
    return new_bed()


@pytest.fixture
async def manager(tmp_path: Path) -> AsyncIterator[Manager]:
    """A Manager whose calls have little time."""
    async with Manager(tmp_path / "state", call_timeout=TIMEOUT, secrets=Passwords()) as manager:
        yield manager
        for pool in manager.pools(active=True):
            await pool.stop(force=True)


@pytest.fixture
def new_pool(manager: Manager) -> NewPool:
    """A function that defines and starts a pool, with the arguments of ``definition_of``."""

    async def new_pool(target: Target, name: str = "luns", **source: Any) -> Pool:
        pool = await manager.define(definition_of(target, name, **source))
        await pool.start()
        return pool

    return new_pool
