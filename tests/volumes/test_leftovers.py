"""Hidden files of unfinished work: which are removed, when, and which never."""

from __future__ import annotations

import errno
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import structlog
from core_fakes import run_python

from astore.backend import Context
from astore.commands import LaneCommandRunner
from astore.errors import PoolInaccessibleError
from astore.lanes import Lanes
from astore.model import Snapshot, VolumeDef
from astore.trees.session import WritableTreeSession
from astore.trees.writable_local import WritableLocalTree
from astore.volume_io.leftovers import EVERY
from astore.volume_io.local_file import LocalFile
from astore.volume_io.volume_names import IN_PROGRESS, TEMPORARY

OTHERS = f"{TEMPORARY}0123456789abcdef.tmp"
"""A hidden file of another process."""


FORKS = """
import os
from astore.volume_io.volume_names import new_hidden_name

print(new_hidden_name(), flush=True)
if not (child := os.fork()):
    print(new_hidden_name(), flush=True)
    os._exit(0)
os.waitpid(child, 0)
print(new_hidden_name())
"""


class Clock:
    """A clock that a test sets."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
async def session(tmp_path: Path, lanes: Lanes) -> AsyncIterator[WritableTreeSession]:
    """A session on the folder ``pool``, which was refreshed once; its clock is a :class:`Clock`."""
    folder = tmp_path / "pool"
    folder.mkdir()
    lane = lanes.lane("pool", limit=4, timeout=30)
    context = Context("pool", "", lane, LaneCommandRunner(lane, 30), structlog.get_logger(), 30)
    session = WritableTreeSession(WritableLocalTree(str(folder)), context)
    session.leftovers.suspects.clock = Clock()
    await session.refresh(Snapshot.EMPTY)
    yield session
    await session.aclose()


def hidden(folder: Path) -> list[str]:
    """The hidden names in a folder."""
    return [name for name in os.listdir(folder) if name.startswith(TEMPORARY)]


async def fail_once(session: WritableTreeSession, folder: Path, how: str) -> None:
    """Have the pool fail, and recover."""
    away = folder.with_name("away")
    folder.rename(away)
    with pytest.raises(PoolInaccessibleError):
        await (session.refresh(Snapshot.EMPTY) if how == "refresh" else session.refresh_volume("a"))
    away.rename(folder)


async def refresh(session: WritableTreeSession, at: float) -> None:
    """Refresh at a time of the test's own clock."""
    clock = session.leftovers.suspects.clock
    assert isinstance(clock, Clock)
    clock.now = at
    await session.refresh(Snapshot.EMPTY)


@pytest.mark.parametrize("how", ["refresh", "refresh of a volume"])
async def test_others_after_a_recovery(session: WritableTreeSession, tmp_path: Path, how: str) -> None:
    """What another process left is watched after a recovery, and removed once it has not changed for an hour."""
    folder = tmp_path / "pool"
    await fail_once(session, folder, how)
    (folder / OTHERS).write_bytes(b"x")
    await refresh(session, 1)
    await refresh(session, EVERY)
    assert hidden(folder) == [OTHERS], "it may be in progress, whether or not it is locked"
    (folder / OTHERS).write_bytes(b"more")
    await refresh(session, EVERY + 1)
    assert hidden(folder) == [OTHERS], "it is"
    await refresh(session, 2 * EVERY + 1)
    assert hidden(folder) == []


async def test_others_every_hour(session: WritableTreeSession, tmp_path: Path) -> None:
    """So it is without a recovery; and what is locked stays for ever."""
    folder = tmp_path / "pool"
    locked = f"{TEMPORARY}fedcba9876543210.tmp"
    for name in (OTHERS, locked, f"{TEMPORARY}notes"):
        (folder / name).write_bytes(b"x")
    file = LocalFile(os.open(folder / locked, os.O_RDWR), locked)
    assert file.lock()
    for hours in (0.5, 1, 1.5):
        await refresh(session, hours * EVERY)
        assert len(hidden(folder)) == 3
    for hours in (2, 3, 4):
        await refresh(session, hours * EVERY)
        assert sorted(hidden(folder)) == sorted([locked, f"{TEMPORARY}notes"])
    file.close()
    await refresh(session, 5 * EVERY)
    assert hidden(folder) == [f"{TEMPORARY}notes"]


async def test_own_leftovers_go_with_the_next_refresh(
    session: WritableTreeSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that could not be removed when its work failed is removed as soon as it can be."""
    folder = tmp_path / "pool"

    def refuse(self: object, name: str) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), name)

    with monkeypatch.context() as patch:
        patch.setattr(WritableLocalTree, "unlink", refuse)
        with pytest.raises(RuntimeError):
            async with session.opener.new_volume(VolumeDef("new")):
                raise RuntimeError
        await session.refresh(Snapshot.EMPTY)
        assert len(hidden(folder)) == 1
    await session.refresh(Snapshot.EMPTY)
    assert hidden(folder) == []


async def test_own_work_stays(session: WritableTreeSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What this process is working on is never removed, even if its lock was lost; not by a pool that starts now either."""
    folder = tmp_path / "pool"
    monkeypatch.setattr(LocalFile, "lock", lambda self: True)  # as of a brick that has forgotten its locks
    other = WritableTreeSession(WritableLocalTree(str(folder)), session.context)
    async with session.opener.new_volume(VolumeDef("new")) as new:
        assert len(hidden(folder)) == 1
        await fail_once(session, folder, "refresh")
        for hours in (0, 1, 2, 3):
            await refresh(session, hours * EVERY)
            await other.refresh(Snapshot.EMPTY)
        assert hidden(folder) == [new.made.hidden]
    assert os.listdir(folder) == ["new"]
    assert new.made.hidden not in IN_PROGRESS
    await other.aclose()


def test_a_child_process_has_names_of_its_own() -> None:
    """A forked process does not take its parent's files for its own."""
    done = run_python(FORKS)
    assert (done.returncode, done.stderr) == (0, "")
    parent, child, again = done.stdout.split()
    token = slice(len(TEMPORARY), len(TEMPORARY) + 8)
    assert parent[token] == again[token] != child[token]
    assert len(parent) == len(child)
