"""What tests of the watch share: a Manager and a dir pool."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from core_fakes import eventually
from watching_support import dir_pool

import astore
from astore.notices import FolderNotices


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder of the watched pool."""
    folder = tmp_path / "images"
    folder.mkdir()
    return folder


@pytest.fixture
async def manager(tmp_path: Path) -> AsyncIterator[astore.Manager]:
    """A Manager. Afterwards nothing of the kernel's is held any more."""
    async with astore.Manager(tmp_path / "state") as manager:
        yield manager
    await eventually(
        lambda: not FolderNotices._of_loops, "the end of the kernel's side"
    )  # a thread may be adding to it


@pytest.fixture
async def pool(manager: astore.Manager, folder: Path) -> astore.Pool:
    """A started dir pool on ``folder``."""
    return await dir_pool(manager, folder)
