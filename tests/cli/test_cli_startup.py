"""How the command starts: what it imports, what Ctrl-C does meanwhile, and that looking without a Manager shows the same."""

from __future__ import annotations

import asyncio
import importlib.metadata
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from astore.cli import standing as looking
from astore.cli.standing import Standing, standing
from astore.entry_points import installed_types
from astore.errors import PoolNotFoundError, StoreError
from astore.manager import Manager
from astore.model import EntryError, PoolDef, Snapshot, Target
from astore.store.contract import LastSeen, Run
from astore.store.definition_files import DefinitionFiles
from astore.store.local_files import LockedFolder
from astore.store.run_files import RunFiles, SnapshotFiles
from astore.testing.faults import Gate

Make = Callable[..., Path]

UUID = "d50c93cb-9a11-466f-96d1-0f4fafe977df"

WATCHER = """
import os, signal, sys

at, log, number = os.environ["AT"], os.environ["LOG"], getattr(signal, os.environ["SIGNAL"])
seen = open(log, "a") if log else None

class Watch:
    def find_spec(self, name, path=None, target=None):
        if seen:
            print(name, file=seen, flush=True)
        if name == at:
            signal.raise_signal(number)

sys.meta_path.insert(0, Watch())
"""


@pytest.fixture
def started(astore: Any, tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs the command with a signal at the import of a module; a log gets the names of all that are imported."""
    hooks = tmp_path / "hooks"
    hooks.mkdir()
    (hooks / "sitecustomize.py").write_text(WATCHER)

    def run(
        *arguments: str, at: str = "", log: str = "", number: str = "SIGINT", module: str = "astore"
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", module, *arguments],
            env=astore.environment(PYTHONPATH=str(hooks), AT=at, LOG=log, SIGNAL=number),
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
        )

    return run


def imported(started: Callable[..., Any], log: Path, *arguments: str) -> list[str]:
    """The modules that an invocation imports, in order."""
    log.unlink(missing_ok=True)
    done = started(*arguments, log=str(log))
    assert (done.returncode, done.stderr) == (0, "")
    return list(dict.fromkeys(log.read_text().split()))


# ---------------------------------------------------------------------------------------------------------- imports


def test_a_command_imports_what_it_needs(started: Callable[..., Any], make_pool: Make, tmp_path: Path) -> None:
    """A list needs no event loop, no Manager and nothing for terminals; a verb brings no other verbs."""
    make_pool()
    log = tmp_path / "log"
    for words in (("pool", "list"), ("vol", "list", "images"), ("vol", "list")):
        listed = set(imported(started, log, *words))
        assert not listed & {"asyncio", "anyio", "structlog", "rich", "logging", "importlib.metadata", "platformdirs"}
        assert not listed & {"astore.manager", "astore.backend", "astore.registry", "astore.cli.pools", "json"}
        assert not listed & {"astore.cli.volume_changes", "astore.cli.image_reports", "astore.cli.events"}
    refreshed = set(imported(started, log, "pool", "refresh", "--all"))
    assert "astore.manager" in refreshed
    assert not refreshed & {"structlog", "rich", "astore.cli.volumes", "astore.cli.volume_changes", "astore.cli.events"}


@pytest.mark.parametrize("words", ["astore pool info i", "astore pool start i", "astore vol info --pool i"])
def test_completion_imports_little(
    started: Callable[..., Any], make_pool: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: str
) -> None:
    """Names of pools are completed without reading a definition, and without an event loop."""
    make_pool()
    monkeypatch.setenv("_ASTORE_COMPLETE", "bash_complete")
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(words.count(" ")))
    found = set(imported(started, tmp_path / "log"))
    assert not found & {"asyncio", "anyio", "lxml", "rich", "astore.manager", "astore.xml.pool"}


# ----------------------------------------------------------------------------------------------------------- Ctrl-C


@pytest.mark.parametrize("part", range(8))
def test_interrupted_while_it_starts(started: Callable[..., Any], make_pool: Make, tmp_path: Path, part: int) -> None:
    """At every import from the entry point's first line on: 130 and no traceback; nothing at all before it is at work."""
    make_pool()
    names = imported(started, tmp_path / "log", "pool", "list")
    names = names[names.index("astore.cli.interruptions") :]
    work = names.index("astore.cli.standing")
    for index in range(part * 3, len(names), 24):
        done = started("pool", "list", at=names[index])
        assert (done.returncode, done.stdout) == (130, ""), names[index]
        assert done.stderr == "" if index <= work else done.stderr in ("", "astore: interrupted\n"), names[index]


@pytest.mark.parametrize(
    "at", ["asyncio", "astore.manager", "astore.lanes", "astore.cli.progress", "concurrent.futures"]
)
def test_interrupted_before_the_manager_is_there(started: Callable[..., Any], make_pool: Make, at: str) -> None:
    """The same of a command that needs a Manager, whose imports take longest."""
    make_pool()
    done = started("pool", "refresh", "images", at=at)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


@pytest.mark.parametrize("number", ["SIGINT", "SIGTERM", "SIGHUP"])
@pytest.mark.parametrize("module", ["astore", "astore.cli"])
def test_interrupted_while_it_looks(started: Callable[..., Any], make_pool: Make, number: str, module: str) -> None:
    """While the state folder is read, every signal says so in one line."""
    make_pool()
    done = started("pool", "list", at="astore.xml.pool", number=number, module=module)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "astore: interrupted\n")


# ---------------------------------------------------------------------------------------------- looking at the folder


async def as_managed(folder: Path) -> tuple[list[Any], list[tuple[str, str, str]]]:
    async with Manager(folder) as manager:
        pools = [(pool.info, pool.to_xml(), pool.to_xml(inactive=True)) for pool in manager.pools()]
        return pools, [(file.name, file.path, file.error) for file in manager.damaged]


def as_seen(found: Standing) -> tuple[list[Any], list[tuple[str, str, str]]]:
    pools = [(pool.info, pool.to_xml(inactive=False), pool.to_xml(inactive=True)) for pool in found.all]
    return pools, [(file.name, file.path, file.error) for file in found.damaged]


def degrade(folder: LockedFolder, name: str) -> None:
    """Let the last snapshot of an active pool have an entry that could not be read."""
    run = RunFiles(folder).find(name)
    assert run is not None
    wrong = Snapshot({}, capacity=3, allocation=2, available=1, errors=(EntryError("a", "cannot be read", 5),))
    SnapshotFiles(folder).write(name, run.started_at, LastSeen(wrong, 1.0, None))


async def test_what_is_seen_is_what_a_manager_says(tmp_path: Path) -> None:
    """Of pools that are inactive, running, degraded, inaccessible, transient, without backend, or damaged."""
    state = tmp_path / "state"
    assert await asyncio.to_thread(standing, str(state)) == Standing((), (), {})

    def definition(name: str, type_: str = "dir") -> str:
        (tmp_path / name).mkdir(exist_ok=True)
        return f"<pool type='{type_}'><name>{name}</name><target><path>{tmp_path / name}</path></target></pool>"

    async with Manager(state) as manager:
        for name in ("inactive", "running", "degraded", "inaccessible", "redefined"):
            await manager.define(definition(name))
        await manager.define(
            definition("foreign", "vstorage").replace("<target>", "<source><name>c</name></source><target>")
        )
        for name in ("running", "degraded", "inaccessible", "redefined"):
            await manager.pool(name).start()
        await manager.create(definition("transient"))
        await manager.pool("running").set_autostart(True)
        uuid = manager.pool("redefined").uuid
        other = tmp_path / "elsewhere"
        other.mkdir()
        text = definition("redefined").replace("</name>", f"</name><uuid>{uuid}</uuid>")
        await manager.define(text.replace(str(tmp_path / "redefined"), str(other)))
        (tmp_path / "inaccessible").rmdir()
        with pytest.raises(OSError):
            await manager.pool("inaccessible").refresh()
    (state / "pools" / "damaged.xml").write_text("<pool")
    await asyncio.to_thread(degrade, LockedFolder(state), "degraded")
    found = await asyncio.to_thread(standing, str(state))
    assert as_seen(found) == await as_managed(state)
    states = {pool.info.name: str(pool.info.state) for pool in found.all}
    assert states["degraded"] == "degraded"
    assert states["inaccessible"] == "inaccessible"
    assert not found.pool("foreign").info.backend
    assert found.pool(uuid.upper()).info.name == "redefined"
    with pytest.raises(PoolNotFoundError):
        found.pool("nobody")


def test_a_folder_that_does_not_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever looks is told in time, and nobody waits for the thread."""
    hangs, on = os.pipe()
    monkeypatch.setattr(looking, "READ_SECONDS", 0.01)
    monkeypatch.setattr(looking, "_read", lambda _: os.read(hangs, 1))
    with pytest.raises(TimeoutError, match=r"the state folder was not read within 0\.01 s"):
        standing(str(tmp_path))
    os.close(on)


def test_a_folder_that_others_can_write(tmp_path: Path) -> None:
    """It is not believed, as a Manager does not."""
    tmp_path.chmod(0o777)
    with pytest.raises(StoreError, match="may be written by other users"):
        standing(str(tmp_path))


# --------------------------------------------------------------------------------------------------- what is installed


def test_installed_types_are_those_of_importlib() -> None:
    """The files of this environment are read as importlib.metadata reads them."""
    for group in ("astore.backends", "console_scripts", "pytest11", "nobody.has.this"):
        assert installed_types(group) == {found.name for found in importlib.metadata.entry_points(group=group)}


def test_distributions_that_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first of a name counts, damaged files hide no others, and what is in no folder is left to importlib.metadata."""
    for place, name, text in (
        ("one", "plug-in", "[other]\nx = y\n[astore.backends]\n# none\n first = a:B\nsecond=a:C\n"),
        ("two", "plug_in", "[astore.backends]\nshadowed = a:B\n"),
        ("two", "bytes", "\udcff"),
        ("two", "last", "[astore.backends]\nthird = a:B\n"),
    ):
        folder = tmp_path / place / f"{name.replace('-', '_')}-1.0.dist-info"
        folder.mkdir(parents=True)
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (folder / "entry_points.txt").write_bytes(text.encode("utf-8", "surrogateescape"))
    path = [str(tmp_path / "one"), str(tmp_path / "two"), str(tmp_path / "missing")]
    monkeypatch.setattr(sys, "path", path)
    monkeypatch.setattr(
        sys, "meta_path", [finder for finder in sys.meta_path if finder.__module__.startswith("_frozen")]
    )
    assert installed_types("astore.backends") == {"first", "second", "third"}
    (tmp_path / "archive.zip").write_bytes(b"")
    monkeypatch.setattr(sys, "path", [str(tmp_path / "archive.zip"), str(tmp_path / "one")])
    assert installed_types("astore.backends") == {"first", "second"}


def test_a_run_that_cannot_be_read(tmp_path: Path) -> None:
    """A pool that may be active is told as that."""
    folder = LockedFolder(tmp_path)
    with folder.locked():
        DefinitionFiles(folder).write(PoolDef("dir", "pool", uuid=UUID, target=Target("/x")))
        RunFiles(folder).write(Run(PoolDef("dir", "pool", uuid=UUID, target=Target("/x")), UUID, 1.5))
    (folder.run / "pool.run").chmod(0o666)
    found = standing(str(tmp_path))
    assert [(one.info.name, one.info.active) for one in found.all] == [("pool", False)]
    assert "may be written by other users" in found.unknown["pool"]


def test_the_deadline_of_a_folder_that_does_not_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``--timeout`` is the deadline of reading the state folder, too."""
    gate = Gate()
    monkeypatch.setattr(looking, "_read", gate)
    with pytest.raises(TimeoutError, match=r"0\.01 s"):
        standing(str(tmp_path), 0.01)
    gate.open()
