"""``make demo`` in this process: its Gluster, and what it says when something for that is missing or fails."""

from __future__ import annotations

import asyncio
import functools
import os
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import astore as library
from astore.cli import demo, demo_storage
from astore.cli.interruptions import SIGNALS
from beds import BedUnavailable, fuse
from beds import gluster as bed
from demo import __main__ as program
from demo import servers

SMALL = ("--pools", "2", "--images", "5")
Run = Callable[..., str]


@pytest.fixture(autouse=True)
def temporary(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder for temporary files, in which nothing may be left; and the signals are as before."""
    signals = {number: signal.getsignal(number) for number in SIGNALS}
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


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs the demonstration, which must succeed; gives what it wrote."""
    monkeypatch.setenv("COLUMNS", "200")

    def good(*arguments: str) -> str:
        capsys.readouterr()
        code = program.main(arguments)
        out, err = capsys.readouterr()
        assert (code, err) == (0, "")
        return out

    return good


def test_without_gluster(run: Run) -> None:
    """Pools of folders, of all formats."""
    out = run(*SMALL, "--no-gluster")
    assert "Gluster: left out, as asked for." in out
    assert "2 pools with 10 volumes refreshed in" in out
    assert "+new.qcow2  ~vm00001.raw  -vm00004.vdi" in out


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
def test_gluster_too(run: Run) -> None:
    """The same volumes over gfapi and over FUSE."""
    out = run("--pools", "1", "--images", "3")
    assert "A private Gluster with 2 volumes, 3 images on each" in out
    assert "5 of 5 pools started, of the types dir, gluster, netfs" in out
    assert "In vol1-gfapi and vol1-fuse, the same volume: new.qcow2 added" in out


@pytest.mark.gluster
@pytest.mark.fuse
@pytest.mark.usefixtures("elsewhere")
def test_pools_that_were_not_stopped_are_unmounted(run: Run, monkeypatch: pytest.MonkeyPatch, temporary: Path) -> None:
    """Where stopping the pools was cut short, their mounts go before the Gluster behind them does."""
    mounted: list[str] = []

    async def no_time(manager: library.Manager) -> None:
        found = await asyncio.to_thread(fuse.mounts, temporary)
        mounted.extend(mount.target for mount in found if "/mounts/" in mount.target)

    monkeypatch.setattr(demo, "stop_all", no_time)
    run("--pools", "1", "--images", "3")
    assert [path for path in mounted if "/gluster/" not in path], "the netfs pools were mounted"


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
    run: Run, missing: str, said: str, monkeypatch: pytest.MonkeyPatch
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
        patch.setattr(servers.namespace, "enter_private_namespaces", refuse)
        out = run(*SMALL)
    (line,) = [line for line in out.splitlines() if line.startswith("Gluster: ")]
    assert said in line
    assert "2 of 2 pools started" in out


def test_a_gluster_that_does_not_start(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it says is shown in one line, and the rest goes on."""

    class Broken:
        def __init__(self, folder: Path) -> None:
            pass

        def __enter__(self) -> None:
            raise bed.GlusterCommandError("gluster pool list: Connection failed.\nno good.")

        def __exit__(self, *_: object) -> None:
            raise AssertionError("it was not entered")

    monkeypatch.setattr(servers, "private_machine", lambda: None)
    monkeypatch.setattr(bed, "GlusterBed", Broken)
    out = run(*SMALL)
    assert "Gluster: gluster pool list: Connection failed.\\nno good; so dir pools alone.\n" in out


def test_without_qemu_img(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Images are qcow2 and raw then."""
    monkeypatch.setattr("shutil.which", lambda _: None)
    out = run(*SMALL, "--no-gluster")
    assert "vmdk" not in out
    assert "vm00000.qcow2" in out
