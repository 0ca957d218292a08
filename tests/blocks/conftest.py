"""What the tests of block sessions share."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from memory_blocks import memory

from astore.backend import Context
from astore.commands import LaneCommandRunner
from astore.lanes import Lanes
from astore.logs import get_logger


@pytest.fixture
def storage(tmp_path: Path) -> Any:
    """A storage in memory."""
    return memory.Storage(str(tmp_path))


@pytest.fixture
async def context() -> AsyncIterator[Context]:
    """What the core lends, without a core."""
    lanes = Lanes()
    lane = lanes.lane("blocks", limit=4, timeout=20.0)
    yield Context("p", "", lane, LaneCommandRunner(lane), get_logger(), 20.0)
    lanes.close()
