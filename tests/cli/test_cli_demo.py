"""The demonstration, in this process: its parts, what it says when something is missing or fails, and its signals."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import astore as library
from astore.cli import demo, demo_show, demo_storage
from astore.cli.demo_storage import DemoStorage
from astore.cli.exits import CliError
from astore.cli.output import Output
from astore.model import RefreshOutcome, RefreshReport

SMALL = ("--pools", "2", "--images", "5")


@pytest.fixture(autouse=True)
def temporary(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder for temporary files, in which nothing may be left; and the signals are as before."""
    signals = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    tmp_path_factory.getbasetemp()  # it too is made where temporary files belong, and must not be in this folder
    # Not pytest's own folder: a socket's path has 107 bytes at most.
    with tempfile.TemporaryDirectory(prefix="astore-t-") as folder:
        monkeypatch.setattr(tempfile, "tempdir", folder)
        monkeypatch.setattr(demo_storage, "SETTLE_SECONDS", 0.0)
        yield Path(folder)
        for number, handler in signals.items():
            signal.signal(number, handler)
        assert os.listdir(folder) == []


def run_demo() -> None:
    """Run it with one small pool, without the command."""
    demo.run_demo(lambda storage: storage.make_folders(1), images=3, output=Output(terminal=False))


def test_dir_pools_alone(astore: Any) -> None:
    """Pools are made, refreshed and shown; a change is picked up; what was made is gone."""
    out = astore.good("demo", *SMALL).out
    assert "2 of 2 pools started, of the types dir" in out
    assert "2 pools with 10 volumes refreshed in" in out
    assert "+new.qcow2  ~vm00001.raw  -vm00004" in out
    assert out.endswith("Everything that was made for this is gone again.\n")
    assert not astore.state_dir.exists(), "it has a state folder of its own"


def test_json_is_refused(astore: Any) -> None:
    """It is for people."""
    ran = astore("--json", "demo")
    assert (ran.code, "it has no --json" in ran.complaint) == (2, True)


# ------------------------------------------------------------------------------------------------- what may go wrong


def test_a_pool_that_does_not_start(astore: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is named with its reason, and costs only itself; so does one that cannot be refreshed."""
    made = DemoStorage.make_folders

    def spoilt(self: DemoStorage, count: int) -> None:
        made(self, count)
        Path(self.definitions[0].target.path or "").rename(self.folder / "elsewhere")
        del self.folders[(self.definitions[0].name,)]

    monkeypatch.setattr(DemoStorage, "make_folders", spoilt)
    out = astore.good("demo", *SMALL).out
    assert "1 of 2 pools started" in out
    assert "images01: pool 'images01': start: " in out


def test_a_fault_leaves_nothing(astore: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is raised half-way, pools are stopped and folders removed; the error is one line."""
    stopped: list[int] = []
    stop_all = demo.stop_all

    async def watched(manager: library.Manager) -> None:
        stopped.append(len(manager.pools(active=True)))
        await stop_all(manager)

    def broken(*_: object) -> None:
        raise RuntimeError("no more")

    monkeypatch.setattr(demo, "stop_all", watched)
    monkeypatch.setattr(demo, "show_changes", broken)
    ran = astore("demo", *SMALL)
    assert (ran.code, ran.complaint.startswith("no more")) == (1, True)
    assert stopped == [2]


async def test_pools_that_do_not_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Are given up by force; and if that fails too, the others are stopped all the same."""
    calls: list[tuple[str, bool]] = []

    class Stuck:
        def __init__(self, name: str) -> None:
            self.name = name

        async def stop(self, force: bool = False) -> None:
            calls.append((self.name, force))
            if self.name == "hangs" and not force:
                await asyncio.sleep(600)
            if self.name == "fails":
                raise library.PoolInaccessibleError("gone", pool=self.name)

    class Pools:
        def pools(self, active: bool) -> list[Stuck]:
            return [Stuck("hangs"), Stuck("fails"), Stuck("good")]

    monkeypatch.setattr(demo, "STOP_SECONDS", 0.05)
    await demo.stop_all(Pools())  # type: ignore[arg-type]
    assert sorted(calls) == [("fails", False), ("fails", True), ("good", False), ("hangs", False), ("hangs", True)]


# ------------------------------------------------------------------------------------------------------------ signals


def test_images_are_left_to_settle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Younger ones would be read again; older ones need no waiting."""
    monkeypatch.setattr(demo_storage, "SETTLE_SECONDS", 5.0)
    with DemoStorage(Output(terminal=False), images=3) as storage:
        storage.make_place()
        storage.make_folders(1)
        assert 0 < storage.seconds_to_settle() <= 5
        monkeypatch.setattr(demo_storage, "SETTLE_SECONDS", 0.0)
        assert storage.seconds_to_settle() == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("step", ["make", "tell"])
def test_interrupted(step: str, number: signal.Signals, monkeypatch: pytest.MonkeyPatch, temporary: Path) -> None:
    """Every one of them, at every step, is one interruption; more of them do not disturb what comes after."""
    made = DemoStorage.make_folders
    close = DemoStorage.__exit__

    def interrupted(self: DemoStorage, count: int) -> None:
        made(self, count)
        if step == "make":
            signal.raise_signal(number)

    async def interrupted_later(*_: object) -> list[str]:
        signal.raise_signal(number)
        await asyncio.sleep(600)
        return []

    def impatient(self: DemoStorage, *error: Any) -> None:
        for _ in range(3):
            signal.raise_signal(number)
        close(self, *error)

    monkeypatch.setattr(DemoStorage, "make_folders", interrupted)
    monkeypatch.setattr(demo, "change_something", interrupted_later)
    monkeypatch.setattr(DemoStorage, "__exit__", impatient)
    with pytest.raises(CliError, match="interrupted; everything that was made for this is gone again") as caught:
        run_demo()
    assert caught.value.code == 130
    assert os.listdir(temporary) == []


def test_ignored_interruptions_are_heard(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shell's background jobs have SIGINT ignored; SIGTERM ends the demonstration all the same."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    async def interrupted(*_: object) -> list[str]:
        signal.raise_signal(signal.SIGTERM)
        await asyncio.sleep(600)
        return []

    monkeypatch.setattr(demo, "change_something", interrupted)
    with pytest.raises(CliError, match="interrupted"):
        run_demo()


def test_in_another_thread(capsys: pytest.CaptureFixture[str]) -> None:
    """Where signals cannot be handled, it works without."""
    problems: list[BaseException] = []

    def work() -> None:
        try:
            run_demo()
        except BaseException as error:
            problems.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(60)
    assert problems == []
    assert "gone again" in capsys.readouterr().out


def test_signals_are_as_before(astore: Any) -> None:
    """After a run that ended by itself."""
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    astore.good("demo", "--pools", "1", "--images", "3")
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] == before


# ------------------------------------------------------------------------------------------------------------- display


def test_many_pools_are_not_all_shown(astore: Any) -> None:
    """Some of them, and how many more there are."""
    out = astore.good("demo", "--pools", "20", "--images", "3").out
    assert "… and 4 more" in out
    assert "images16" in out.partition("The events")[0]


def test_many_names_are_not_all_shown(capsys: pytest.CaptureFixture[str]) -> None:
    """A row has two names, and says that there are more."""
    many = RefreshOutcome("p", "u", added=("a", "b", "c"), changed=(), removed=("d",), unchanged=0)
    report = RefreshReport((many,), 1.0)
    demo_show.show_changes(Output(terminal=False), report, report, ["p"])
    assert "+a, +b …" in capsys.readouterr().out


def test_on_a_terminal(astore: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The finished progress bar of the refresh stays to be seen."""
    for stream in (sys.stdout, sys.stderr):
        monkeypatch.setattr(stream, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    ran = astore("demo", "--pools", "2", "--images", "3")
    assert ran.code == 0
    assert "refreshing" in ran.err
    assert "2/2" in ran.err
    assert "█" in ran.out or "░" in ran.out
