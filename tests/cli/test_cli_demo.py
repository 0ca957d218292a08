"""The demonstration, in this process: its parts, what it says when something is missing or fails, and its signals."""

from __future__ import annotations

import asyncio
import functools
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
from beds import BedUnavailable, fuse
from beds import gluster as bed

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
        assert fuse.mounts(folder) == []


def test_dir_pools_alone(astore: Any) -> None:
    """Pools are made, refreshed and shown; a change is picked up; what was made is gone."""
    out = astore.good("demo", *SMALL, "--no-gluster").out
    assert "Gluster: left out, as asked for." in out
    assert "2 of 2 pools started, of the types dir" in out
    assert "2 pools with 10 volumes refreshed in" in out
    assert "+new.qcow2  ~vm00001.raw  -vm00004" in out
    assert out.endswith("Everything that was made for this is gone again.\n")
    assert not astore.state_dir.exists(), "it has a state folder of its own"


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The demonstration's Gluster has another address than that of other tests; its connections are closed."""
    from astore_gluster.volume.connection import CONNECTIONS

    monkeypatch.setattr(bed, "GlusterBed", functools.partial(bed.GlusterBed, address_base="127.1.7."))
    yield
    CONNECTIONS.close_idle()


@pytest.mark.gluster
@pytest.mark.fuse
@pytest.mark.usefixtures("elsewhere")
def test_gluster_too(astore: Any) -> None:
    """The same volumes over gfapi and over FUSE."""
    out = astore.good("demo", "--pools", "1", "--images", "3").out
    assert "A private Gluster with 2 volumes, 3 images on each" in out
    assert "5 of 5 pools started, of the types dir, gluster, netfs" in out
    assert "In vol1-gfapi and vol1-fuse, the same volume: new.qcow2 added" in out


@pytest.mark.gluster
@pytest.mark.fuse
@pytest.mark.usefixtures("elsewhere")
def test_pools_that_were_not_stopped_are_unmounted(
    astore: Any, monkeypatch: pytest.MonkeyPatch, temporary: Path
) -> None:
    """Where stopping the pools was cut short, their mounts go before the Gluster behind them does."""
    mounted: list[str] = []

    async def no_time(manager: library.Manager) -> None:
        found = await asyncio.to_thread(fuse.mounts, temporary)
        mounted.extend(mount.target for mount in found if "/mounts/" in mount.target)

    monkeypatch.setattr(demo, "stop_all", no_time)
    astore.good("demo", "--pools", "1", "--images", "3")
    assert [path for path in mounted if "/gluster/" not in path], "the netfs pools were mounted"


def test_json_is_refused(astore: Any) -> None:
    """It is for people."""
    ran = astore("--json", "demo")
    assert (ran.code, "it has no --json" in ran.complaint) == (2, True)


# ------------------------------------------------------------------------------------------- what may be missing


@pytest.mark.parametrize(
    ("missing", "said"),
    [
        ("root", "as root this demonstration also starts a private Gluster"),
        ("plugins", "pip install 'astore[gluster,netfs]' (there is no astore_gluster, no astore_netfs)"),
        ("glusterd", "there is no glusterd (Debian package glusterfs-server), so dir pools alone"),
        ("fuse", "there is no /dev/fuse, so dir pools alone"),
        ("namespaces", "not permitted here; so dir pools alone"),
        ("mounts", "Operation not permitted; so dir pools alone"),
    ],
)
def test_what_is_missing_is_said_in_one_line(
    astore: Any, missing: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the demonstration goes on with dir pools."""
    exists = os.path.exists

    def refuse() -> None:
        raise BedUnavailable("not permitted here.") if missing == "namespaces" else PermissionError(1, os.strerror(1))

    with monkeypatch.context() as patch:
        patch.setattr(os, "geteuid", lambda: 1000 if missing == "root" else 0)
        patch.setattr("importlib.util.find_spec", lambda name: None if missing == "plugins" else object())
        lacking = "there is no glusterd (Debian package glusterfs-server)" if missing == "glusterd" else None
        patch.setattr(bed, "missing", lambda: lacking)
        patch.setattr(os.path, "exists", lambda path: missing != "fuse" if path == "/dev/fuse" else exists(path))
        patch.setattr(demo_storage.namespace, "enter_private_namespaces", refuse)
        out = astore.good("demo", *SMALL).out
    (line,) = [line for line in out.splitlines() if line.startswith("Gluster: ")]
    assert said in line
    assert "2 of 2 pools started" in out


def test_a_gluster_that_does_not_start(astore: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it says is shown in one line, and the rest goes on."""

    class Broken:
        def __init__(self, folder: Path) -> None:
            pass

        def __enter__(self) -> None:
            raise bed.GlusterCommandError("gluster pool list: Connection failed.\nno good.")

        def __exit__(self, *_: object) -> None:
            raise AssertionError("it was not entered")

    monkeypatch.setattr(demo_storage, "_private_machine", lambda: None)
    monkeypatch.setattr(bed, "GlusterBed", Broken)
    out = astore.good("demo", *SMALL).out
    assert "Gluster: gluster pool list: Connection failed.\\nno good; so dir pools alone.\n" in out


def test_without_qemu_img(astore: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Images are qcow2 and raw then."""
    monkeypatch.setattr("shutil.which", lambda _: None)
    out = astore.good("demo", *SMALL, "--no-gluster").out
    assert "vmdk" not in out
    assert "vm00000.qcow2" in out


# ------------------------------------------------------------------------------------------------- what may go wrong


def test_a_pool_that_does_not_start(astore: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is named with its reason, and costs only itself; so does one that cannot be refreshed."""
    made = DemoStorage._make_dir_pools

    def spoilt(self: DemoStorage) -> None:
        made(self)
        Path(self.definitions[0].target.path or "").rename(self.folder / "elsewhere")
        del self.folders[(self.definitions[0].name,)]

    monkeypatch.setattr(DemoStorage, "_make_dir_pools", spoilt)
    out = astore.good("demo", *SMALL, "--no-gluster").out
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
    ran = astore("demo", *SMALL, "--no-gluster")
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
    with DemoStorage(Output(terminal=False), gluster=False, pools=1, images=3) as storage:
        storage.make()
        assert 0 < storage.seconds_to_settle() <= 5
        monkeypatch.setattr(demo_storage, "SETTLE_SECONDS", 0.0)
        assert storage.seconds_to_settle() == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("step", ["make", "tell"])
def test_interrupted(step: str, number: signal.Signals, monkeypatch: pytest.MonkeyPatch, temporary: Path) -> None:
    """Every one of them, at every step, is one interruption; more of them do not disturb what comes after."""
    made = DemoStorage._make_dir_pools
    close = DemoStorage.__exit__

    def interrupted(self: DemoStorage) -> None:
        made(self)
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

    monkeypatch.setattr(DemoStorage, "_make_dir_pools", interrupted)
    monkeypatch.setattr(demo, "change_something", interrupted_later)
    monkeypatch.setattr(DemoStorage, "__exit__", impatient)
    with pytest.raises(CliError, match="interrupted; everything that was made for this is gone again") as caught:
        demo.run_demo(gluster=False, pools=1, images=3, output=Output(terminal=False))
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
        demo.run_demo(gluster=False, pools=1, images=3, output=Output(terminal=False))


def test_in_another_thread(capsys: pytest.CaptureFixture[str]) -> None:
    """Where signals cannot be handled, it works without."""
    problems: list[BaseException] = []

    def work() -> None:
        try:
            demo.run_demo(gluster=False, pools=1, images=3)
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
    astore.good("demo", "--pools", "1", "--images", "3", "--no-gluster")
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] == before


# ------------------------------------------------------------------------------------------------------------- display


def test_many_pools_are_not_all_shown(astore: Any) -> None:
    """Some of them, and how many more there are."""
    out = astore.good("demo", "--pools", "20", "--images", "3", "--no-gluster").out
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
    ran = astore("demo", "--pools", "2", "--images", "3", "--no-gluster")
    assert ran.code == 0
    assert "refreshing" in ran.err
    assert "2/2" in ran.err
    assert "█" in ran.out or "░" in ran.out
