"""What one process made of a pool's volumes is known to the next, whatever others did to the pool meanwhile."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

import astore


@pytest.fixture
async def managers(tmp_path: Path) -> AsyncIterator[tuple[astore.Manager, astore.Manager]]:
    """Two Managers of one state folder, with one active pool that has the volume ``old``."""
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "old").write_bytes(b"x")
    async with AsyncExitStack() as opened:
        first = await opened.enter_async_context(astore.Manager(tmp_path / "state"))
        pool = await first.define(
            f"<pool type='dir'><name>p</name><target><path>{tmp_path}/images</path></target></pool>"
        )
        await pool.start()
        yield first, await opened.enter_async_context(astore.Manager(tmp_path / "state"))


async def names(tmp_path: Path) -> list[str]:
    """Return the volumes that the next process is shown without a refresh."""
    async with astore.Manager(tmp_path / "state") as manager:
        return [one.name for one in manager.pool("p").volumes]


def made(name: str) -> astore.VolumeDef:
    """Return the definition of a small volume."""
    return astore.VolumeDef(name=name, format="raw", capacity=1 << 20)


@pytest.mark.parametrize("left_first", ["the one that started it", "the one that made it"])
async def test_made_in_a_pool_that_was_started_anew(
    managers: tuple[astore.Manager, astore.Manager], tmp_path: Path, left_first: str
) -> None:
    """A volume whose making ends after another process has stopped and started the pool is on the next list."""
    starting, making = managers
    pool = making.pool("p")
    await pool.refresh()
    await starting.pool("p").stop()
    await starting.pool("p").start()
    await pool.copy_volume(pool.volume("old"), astore.VolumeDef(name="cloned"))
    for manager in (starting, making) if left_first == "the one that started it" else (making, starting):
        await manager.aclose()
    assert await names(tmp_path) == ["cloned", "old"]


@pytest.mark.parametrize("turn", [1, -1])
async def test_two_make_volumes(managers: tuple[astore.Manager, astore.Manager], tmp_path: Path, turn: int) -> None:
    """Who leaves last does not take what the other made, or removed, off the list."""
    await managers[1].pool("p").refresh()
    await managers[0].pool("p").create_volume(made("a"))
    await managers[1].pool("p").create_volume(made("b"))
    await managers[1].pool("p").volume("old").delete()
    for manager in managers[::turn]:
        await manager.aclose()
    assert await names(tmp_path) == ["a", "b"]


async def test_a_refresh_that_is_newer(managers: tuple[astore.Manager, astore.Manager], tmp_path: Path) -> None:
    """The snapshot that was taken last is kept, whoever leaves last; what is older than it counts no more."""
    await managers[1].pool("p").create_volume(made("a"))
    (tmp_path / "images" / "a").unlink()
    (tmp_path / "images" / "by hand").write_bytes(b"x")
    await managers[0].pool("p").refresh()
    for manager in managers:
        await manager.aclose()
    assert await names(tmp_path) == ["by hand", "old"]
