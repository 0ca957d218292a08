"""Changes by lot: the view of a watched pool is what is there, also if notices are lost."""

from __future__ import annotations

import asyncio
import contextlib
import mmap
import os
import random
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import pytest
from core_fakes import PATIENCE, eventually
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from watching_support import dir_pool, same, true_volumes, watched

import astore
from astore.manager import pool_watch
from astore.notices import FolderNotices, FolderWatch

NAMES = st.sampled_from(("a", "b", "c", "d"))
CONTENTS = st.sampled_from((b"", b"x", b"y" * 5000, b"QFI\xfb" + b"\0" * 100))


class Folder(RuleBasedStateMachine):
    """A watched pool, whose folder others change. After every few steps the view is compared with the folder."""

    def __init__(self) -> None:
        super().__init__()
        self.base = Path(tempfile.mkdtemp())
        self.folder = self.base / "images"
        self.outside = self.base / "outside"
        self.folder.mkdir()
        self.outside.mkdir()
        self.runner = asyncio.Runner()
        self.stack = contextlib.AsyncExitStack()
        self.pool = self.runner.run(self._open())

    async def _open(self) -> astore.Pool:
        manager = await self.stack.enter_async_context(astore.Manager(self.base / "state"))
        pool = await dir_pool(manager, self.folder)
        await self.stack.enter_async_context(manager.watch())
        await watched(pool)
        return pool

    def teardown(self) -> None:
        self.runner.run(self.stack.aclose())
        self.runner.close()
        shutil.rmtree(self.base)
        deadline = time.monotonic() + PATIENCE
        while FolderNotices._of_loops and time.monotonic() < deadline:  # a thread may be adding to it
            time.sleep(0.01)
        assert not FolderNotices._of_loops

    @rule(name=NAMES, content=CONTENTS)
    def write(self, name: str, content: bytes) -> None:
        with contextlib.suppress(OSError):
            (self.folder / name).write_bytes(content)

    @rule(name=NAMES, content=CONTENTS)
    def append(self, name: str, content: bytes) -> None:
        with contextlib.suppress(OSError), (self.folder / name).open("ab") as file:
            file.write(content)

    @rule(name=NAMES, size=st.integers(0, 1 << 20))
    def truncate(self, name: str, size: int) -> None:
        with contextlib.suppress(OSError):
            os.truncate(self.folder / name, size)

    @rule(name=NAMES, mode=st.sampled_from((0o600, 0o644, 0o000)))
    def chmod(self, name: str, mode: int) -> None:
        with contextlib.suppress(OSError):
            (self.folder / name).chmod(mode)

    @rule(name=NAMES)
    def remove(self, name: str) -> None:
        with contextlib.suppress(OSError):
            (self.folder / name).unlink()

    @rule(name=NAMES, other=NAMES)
    def rename(self, name: str, other: str) -> None:
        with contextlib.suppress(OSError):
            (self.folder / name).rename(self.folder / other)

    @rule(name=NAMES, other=NAMES)
    def link(self, name: str, other: str) -> None:
        with contextlib.suppress(OSError):
            (self.folder / other).hardlink_to(self.folder / name)

    @rule(name=NAMES, content=CONTENTS)
    def replace(self, name: str, content: bytes) -> None:
        new = self.outside / "new"
        new.write_bytes(content)
        with contextlib.suppress(OSError):
            new.rename(self.folder / name)

    @rule(name=NAMES)
    def map(self, name: str) -> None:
        with contextlib.suppress(OSError, ValueError), (self.folder / name).open("r+b") as file:
            with mmap.mmap(file.fileno(), 4) as view:
                view[:4] = b"QFI\xfb"
                view.flush()

    @rule(name=NAMES, other=NAMES)
    def copy(self, name: str, other: str) -> None:
        with contextlib.suppress(subprocess.CalledProcessError):
            _run("cp", "-T", "--reflink=auto", str(self.folder / name), str(self.folder / other))

    @rule(name=NAMES, size=st.sampled_from(("1M", "1G")))
    def image(self, name: str, size: str) -> None:
        with contextlib.suppress(subprocess.CalledProcessError):
            _run("qemu-img", "create", "-q", "-f", "qcow2", str(self.folder / name), size)

    @rule(name=NAMES)
    def move_out(self, name: str) -> None:
        with contextlib.suppress(OSError):
            (self.folder / name).rename(self.outside / name)

    @rule(name=NAMES)
    def make_folder(self, name: str) -> None:
        with contextlib.suppress(OSError):
            (self.folder / name).mkdir()

    @rule()
    def exchange(self) -> None:
        away = self.folder.rename(self.base / "away")
        self.folder.mkdir()
        for entry in away.iterdir():
            entry.rename(self.folder / entry.name)
        away.rmdir()

    @rule(seconds=st.sampled_from((0.0, 0.01, 0.03)))
    def time_passes(self, seconds: float) -> None:
        self.runner.run(asyncio.sleep(seconds))

    @rule()
    def refresh(self) -> None:
        with contextlib.suppress(OSError):
            self.runner.run(self.pool.refresh())

    @invariant()
    def view_is_true(self) -> None:
        self.runner.run(self._compare())

    async def _compare(self) -> None:
        true = await true_volumes(self.folder, self.base / "oracle")
        await eventually(lambda: same(self.pool.snapshot, true), "what a full refresh finds")


def _run(*argv: str) -> None:
    """Run a program that may refuse."""
    subprocess.run(argv, check=True, capture_output=True)


Folder.TestCase.settings = settings(max_examples=8, stateful_step_count=15, deadline=None)
TestFolder = pytest.mark.qemu(Folder.TestCase)


@pytest.mark.parametrize("heard", [0.0, 0.25, 0.75])
async def test_lost_notices_do_no_harm(
    manager: astore.Manager, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, heard: float
) -> None:
    """Of what the kernel tells, some or all is lost; after the sweep the view is exact."""
    monkeypatch.setattr(pool_watch, "SWEEP", 0.5)
    lot = random.Random(heard)
    pool = await dir_pool(manager, folder)
    async with manager.watch():
        await watched(pool)
        watch = next(iter(FolderNotices._of_loops.values()))
        for one in [one for one in watch._all if one.path == str(folder)]:
            _lossy(one, lot, heard)
        for index in range(300):
            path = folder / f"f{lot.randrange(20)}"
            match lot.randrange(3):
                case 0:
                    path.write_bytes(b"x" * lot.randrange(10_000))
                case 1:
                    path.unlink(missing_ok=True)
                case _:
                    (folder / "new").write_bytes(b"y" * index)
                    (folder / "new").rename(path)
            if not index % 10:
                await asyncio.sleep(0.005)
        true = await true_volumes(folder, tmp_path / "oracle")
        await eventually(lambda: same(pool.snapshot, true), "the truth")


def _lossy(watch: FolderWatch, lot: random.Random, heard: float) -> None:
    """Lose notices. :param heard: how many are not lost, from 0 to 1."""
    hear = watch.listener
    watch.listener = lambda about, name: hear(about, name) if lot.random() < heard else None
