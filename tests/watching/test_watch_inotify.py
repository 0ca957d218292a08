"""The kernel's notices as they are read, lot by lot, and what changes in the table of mounts."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest
from core_fakes import PATIENCE, eventually

from astore.inotify import GONE, IGNORED, MODIFY, OVERFLOW, Instance
from astore.lanes import Lanes
from astore.notices import About, FolderNotices, FolderWatch
from beds import namespace

ALL = 0xFC6
"""IN_MODIFY, IN_ATTRIB, and all about names, moves and ends."""

T = TypeVar("T")


@pytest.fixture
def instance(tmp_path: Path) -> Instance:
    """An instance that watches ``tmp_path``."""
    instance = Instance()
    instance.add_watch(tmp_path, ALL)
    return instance


async def _on_thread(func: Callable[..., T], *args: object, discard: object = None) -> T:
    return await asyncio.to_thread(func, *args)


def test_in_small_lots(instance: Instance, tmp_path: Path) -> None:
    """However many there are, one read returns so few that the event loop's other work soon has a turn; none is lost."""
    for number in range(3000):
        (tmp_path / f"f{number}").touch()
    seen, lots, emptied = set(), 0, False
    while not emptied:
        notices, emptied = instance.read()
        assert len(notices) <= 256
        seen |= {name for _, _, name in notices}
        lots += 1
    assert seen == {f"f{number}" for number in range(3000)}
    assert lots > 10
    assert instance.read() == ([], True)
    instance.close()


def test_names_of_all_kinds(instance: Instance, tmp_path: Path) -> None:
    """The longest, those that are no text, and those that fill the padding."""
    names = [b"x" * length for length in (1, 15, 16, 17, 254, 255)] + [b"\xff\xfe", "ä".encode()]
    for name in names:
        os.close(os.open(os.fsencode(tmp_path) + b"/" + name, os.O_CREAT | os.O_WRONLY))
    seen: list[str | None] = []
    emptied = False
    while not emptied:
        notices, emptied = instance.read()
        seen += [name for _, _, name in notices]
    assert set(seen) == {os.fsdecode(name) for name in names}
    instance.close()


def test_what_ends(tmp_path: Path) -> None:
    """A folder's end is told, and the instance forgets its watch, so that none are heaped up."""
    instance = Instance()
    for number in range(20):
        folder = tmp_path / f"d{number}"
        folder.mkdir()
        instance.add_watch(folder, ALL)
        folder.rmdir()
        notices, emptied = instance.read()
        assert emptied
        assert notices[-1].mask & IGNORED
        assert notices[-1].mask & GONE
        assert notices[-1].name is None
        assert instance.watches == []
    instance.close()


def test_overflow(instance: Instance, tmp_path: Path) -> None:
    """It is told once, at the end of what the queue held."""
    limit = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    for number in range(limit // 2 + 100):  # each is made and closed
        (tmp_path / f"f{number}").touch()
        (tmp_path / f"f{number}").unlink()
    masks: list[int] = []
    emptied = False
    while not emptied:
        notices, emptied = instance.read()
        masks += [notice.mask for notice in notices]
    assert masks[-1] == OVERFLOW
    assert sum(mask == OVERFLOW for mask in masks) == 1
    assert len(masks) <= limit + 1
    instance.close()


def test_equal_ones_are_one(instance: Instance, tmp_path: Path) -> None:
    """The kernel merges equal ones that wait, and so does a read."""
    with (tmp_path / "a").open("wb", buffering=0) as file:
        instance.read()
        for _ in range(100):
            file.write(b"x")
        notices, _ = instance.read()
        assert [(mask, name) for _, mask, name in notices] == [(MODIFY, "a")]
    instance.close()


@pytest.fixture
async def heard(tmp_path: Path) -> AsyncIterator[list[tuple[About, frozenset[str] | None]]]:
    """What is told of the folder ``images``."""
    folder, told = tmp_path / "images", list[tuple[About, frozenset[str] | None]]()
    folder.mkdir()
    watch: FolderWatch = await FolderNotices.of_this_loop().watch(
        lambda: os.open(folder, os.O_RDONLY | os.O_DIRECTORY), lambda *notice: told.append(notice), _on_thread
    )
    yield told
    watch.close()
    assert not FolderNotices._of_loops


async def test_told_as_sets(heard: list[tuple[About, frozenset[str] | None]], tmp_path: Path) -> None:
    """What was read at once is told at once, bytes apart from names."""
    with (tmp_path / "images" / "a").open("wb", buffering=0) as a, (tmp_path / "images" / "b").open("wb") as b:
        await eventually(lambda: heard, "the new files")
        assert {name for _, names in heard for name in names or ()} == {"a", "b"}
        heard.clear()
        for file in (a, b):
            file.write(b"x")
            file.flush()
        await eventually(lambda: heard, "the bytes")
        assert heard == [(About.CONTENT, frozenset({"a", "b"}))]


@pytest.mark.root
async def test_mounts_elsewhere_are_no_affair_of_the_folder(
    heard: list[tuple[About, frozenset[str] | None]], tmp_path: Path
) -> None:
    """Only a mount above a watched folder, or on it, is told."""
    (tmp_path / "images-2").mkdir()
    for folder, told in (("images-2", False), ("images", True), ("images-2", False)):
        namespace.mount("none", tmp_path / folder, "tmpfs")
        if told:
            await eventually(lambda: (About.PLACE, None) in heard, "the mount")
            heard.clear()
        namespace.unmount(tmp_path / folder)
        if told:
            await eventually(lambda: (About.PLACE, None) in heard, "its end")
            heard.clear()
        else:
            await asyncio.sleep(0.05)
            assert heard == []


async def test_one_ends_while_another_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two watches of one folder share what the kernel has; the end of one takes nothing from one that is being added."""

    def opened() -> int:
        return os.open(tmp_path, os.O_RDONLY)

    heard: list[frozenset[str] | None] = []
    notices = FolderNotices.of_this_loop()
    first = await notices.watch(opened, lambda *_: None, _on_thread)
    add, added, gone = Instance.add_watch, threading.Event(), threading.Event()

    def slow(instance: Instance, *arguments: Any) -> Any:
        found = add(instance, *arguments)
        added.set()
        assert gone.wait(PATIENCE)
        return found

    monkeypatch.setattr(Instance, "add_watch", slow)
    second = asyncio.ensure_future(notices.watch(opened, lambda _, names: heard.append(names), _on_thread))
    await asyncio.to_thread(added.wait, PATIENCE)
    first.close()
    gone.set()
    watch = await second
    (tmp_path / "x").touch()
    await eventually(lambda: frozenset({"x"}) in heard, "the notice")
    watch.close()


async def test_the_instance_is_replaced_while_its_notices_are_told(tmp_path: Path) -> None:
    """A listener closes the last watch, and another begins at once: the old instance's last notices are not the new one's."""

    def opened() -> int:
        return os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)

    notices = FolderNotices.of_this_loop()
    first = await notices.watch(opened, lambda *_: None, _on_thread)
    before, descriptor = notices._inotify, first.own
    assert before is not None
    first.close()
    second = await notices.watch(opened, lambda *_: None, _on_thread)
    assert second.own == descriptor
    notices._gone(before, descriptor, IGNORED)
    assert notices._watches[descriptor] == [second]
    second.close()
    assert not FolderNotices._of_loops


@pytest.mark.parametrize("step", ["_table_lines", "_begin"])
async def test_no_memory_for_a_watch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    """A watch that fails half-way leaves nothing open."""

    def fail(_: FolderNotices) -> None:
        raise MemoryError

    monkeypatch.setattr(FolderNotices, step, fail)
    notices = FolderNotices.of_this_loop()
    with pytest.raises(MemoryError):
        await notices.watch(lambda: os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY), lambda *_: None, _on_thread)
    assert (notices._inotify, notices._table, notices._polling) == (None, -1, None)
    assert not FolderNotices._of_loops


@pytest.mark.parametrize("closed", [True, False], ids=["closed", "about to be closed"])
def test_a_folder_that_answers_after_the_loop(tmp_path: Path, closed: bool) -> None:
    """A watch that comes when its event loop does nothing any more is removed, and its inotify instance is closed."""
    begun, answer, discarded = threading.Event(), threading.Event(), threading.Event()
    lanes = Lanes(2)
    made: list[FolderNotices] = []

    def slowly() -> int:
        begun.set()
        answer.wait()
        return os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)

    async def run(func: Callable[..., T], *args: object, discard: Callable[[T], object]) -> T:
        def discard_it(result: T) -> None:
            try:
                discard(result)
            finally:
                discarded.set()

        return await lanes.lane("a").run(func, *args, discard=discard_it)

    async def given_up() -> None:
        made.append(FolderNotices.of_this_loop())
        watching = asyncio.create_task(made[0].watch(slowly, lambda *_: None, run))
        await asyncio.to_thread(begun.wait)
        watching.cancel()
        await asyncio.wait([watching])
        assert watching.cancelled()

    def comes() -> None:
        answer.set()
        assert discarded.wait(PATIENCE)

    loop = asyncio.new_event_loop()
    loop.run_until_complete(given_up())
    loop.run_until_complete(loop.shutdown_default_executor())
    if not closed:
        comes()
    loop.close()
    if closed:
        comes()
    lanes.close()
    assert made[0]._inotify is None
    assert not FolderNotices._of_loops
