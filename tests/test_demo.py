"""``make demo`` and ``astore demo`` as processes: what they show, and that nothing of them is left, however they end."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from beds import fuse, processes
from beds.namespace import _MARK

ROOT = Path(__file__).parent.parent
NOBODY = 65534
SMALL = ("--pools", "2", "--images", "6")
EVERYTHING_GONE = "everything that was made for this is gone again"


class Demo:
    """One run, in the folder of a test.

    :param program: the module to run. :param ordinary: as an ordinary user. :param path: folders in front of PATH.
    :param interrupted: the test will do that to it, and Python breaks off anywhere then, before it knows what it opened.
    """

    def __init__(
        self,
        folder: Path,
        *arguments: str,
        program: str = "demo",
        ordinary: bool = False,
        path: str = "",
        interrupted: bool = False,
    ) -> None:
        self.home, self.temporary = folder / "home", folder / "temporary"
        for place in (self.home, self.temporary):
            place.mkdir()
        warnings = ("-W", "error", *(("-W", "ignore::ResourceWarning") if interrupted else ()))
        argv = [sys.executable, *warnings, "-m", *program.split(), *arguments]
        if ordinary and os.geteuid() == 0:
            folder.chmod(0o755)
            for place in (self.home, self.temporary):
                os.chown(place, NOBODY, NOBODY)
            # may read the sources and the interpreter wherever they are, and no more than that
            reading = ("--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search")
            argv = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", *reading, *argv]
        environment = {key: value for key, value in os.environ.items() if not key.startswith(("COV_", "XDG_"))}
        # Not in the namespaces of the tests, whose Gluster has the same address: it is to make its own.
        environment.pop(_MARK, None)
        environment |= {"HOME": str(self.home), "TMPDIR": str(self.temporary), "PYTHONDONTWRITEBYTECODE": "1"}
        environment |= {"PYTHONPATH": str(ROOT)}
        environment |= {"PATH": f"{path}{os.pathsep}{os.environ['PATH']}" if path else os.environ["PATH"]}
        self.process = subprocess.Popen(
            argv,
            cwd=self.home,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            bufsize=0,  # read_until() keeps nothing back from finish()
        )
        self.namespaces: set[int] = set()

    def read_until(self, text: str) -> None:
        """Wait for a line with this text, and look into which mount namespace the process went."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if text in line.decode():
                self.namespaces.add(os.stat(f"/proc/{self.process.pid}/ns/mnt").st_ino)
                return
        raise AssertionError(f"it never said {text!r}: {self.process.communicate()[1].decode()}")

    def finish(self) -> tuple[int, str, str]:
        """Its exit code and what (else) it wrote, when it has ended."""
        out, err = self.process.communicate(timeout=400)
        return self.process.returncode, out.decode(), err.decode()

    def left(self) -> list[str]:
        """Processes, mounts and folders of it that are there yet."""
        own = os.stat("/proc/self/ns/mnt").st_ino
        found = [f"folder: {name}" for place in (self.home, self.temporary) for name in os.listdir(place)]
        found += [f"mount: {mount.target}" for mount in fuse.mounts(self.temporary)]
        for name in os.listdir("/proc"):
            with contextlib.suppress(OSError):
                words = Path(f"/proc/{name}/cmdline").read_bytes() if name.isdigit() else b""
                space = os.stat(f"/proc/{name}/ns/mnt").st_ino if words else own
                # a namespace, and with it its mounts, is there for as long as anything runs in it
                if os.fsencode(self.temporary) in words or space in self.namespaces - {own}:
                    found.append(f"process {name}: {words!r}")
        return found

    def leaves_nothing(self) -> bool:
        """Whether all of it is gone. (What serves a mount ends by itself after it.)"""
        deadline = time.monotonic() + 200
        while left := self.left():
            assert time.monotonic() < deadline, left
            time.sleep(0.05)
        return True

    def end(self) -> None:
        """Whatever the test did: nothing goes on."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.communicate()
        programs = {"glusterd", "glusterfsd", "glusterfs", "gluster", "ceph-mon", "ceph-osd", "ceph-mgr"}
        processes.end(lambda: processes.mentioning(self.temporary, programs))


Start = Callable[..., Demo]


@pytest.fixture
def demo() -> Iterator[Start]:
    """Starts a demonstration, and ends it after the test."""
    # Not pytest's own folder: a socket's path has 107 bytes at most.
    with tempfile.TemporaryDirectory(prefix="astore-t-") as folder, contextlib.ExitStack() as ends:

        def start(*arguments: str, **settings: Any) -> Demo:
            run = Demo(Path(folder), *arguments, **settings)
            ends.callback(run.end)
            return run

        yield start


def rows(out: str, heading: str) -> dict[str, list[str]]:
    """The rows of the table under a heading, by their first word."""
    part = out.partition(heading)[2].partition("\n──")[0]
    lines = part.split("Pool  ", 1)[1].partition("\n\n")[0].splitlines()[1:]
    return {line.split()[0]: line.split() for line in lines}


@pytest.mark.qemu
def test_as_an_ordinary_user(demo: Start) -> None:
    """Dir pools alone, and one line that says what more there is as root."""
    run = demo(*SMALL, ordinary=True)
    code, out, err = run.finish()
    assert (code, err) == (0, "")
    assert out.count("as root this demonstration also starts a private Gluster") == 1
    assert "2 of 2 pools started, of the types dir" in out
    found = rows(out, "Refreshing all of them at once")
    assert {name: row[1:4] for name, row in found.items()} == {
        "images01": ["dir", "running", "6"],
        "images02": ["dir", "running", "6"],
    }
    assert all("░" in row[6] and row[7].endswith("%") for row in found.values())
    assert "vm00002.qcow2  qcow2   10.00 GiB" in out
    assert "vm00000.qcow2\n" in out, "a backing file"
    assert re.search(r"images0[12]: volume vm00000.qcow2 added \(qcow2, 10.00 GiB\)", out)
    changes = rows(out, "Something changes")
    assert changes["images01"][1:5] == ["+new.qcow2", "~vm00001.raw", "-vm00005.qcow2", "4"]
    assert out.lower().rstrip().endswith(f"{EVERYTHING_GONE}.")
    assert run.leaves_nothing()


@pytest.mark.root
@pytest.mark.gluster
@pytest.mark.fuse
@pytest.mark.qemu
def test_as_root(demo: Start) -> None:
    """The same Gluster volumes over gfapi and over FUSE too; both see what changes; nothing is left."""
    run = demo(*SMALL)
    run.read_until("pools started")
    code, out, err = run.finish()
    assert (code, err) == (0, "")
    found = rows(out, "Refreshing all of them at once")
    assert {name: row[1:4] for name, row in found.items()} == {
        "images01": ["dir", "running", "6"],
        "images02": ["dir", "running", "6"],
        "vol1-gfapi": ["gluster", "running", "6"],
        "vol1-fuse": ["netfs", "running", "6"],
        "vol2-gfapi": ["gluster", "running", "6"],
        "vol2-fuse": ["netfs", "running", "6"],
    }
    changes = rows(out, "Something changes")
    for pool in ("images01", "vol1-gfapi", "vol1-fuse"):
        assert changes[pool][1:5] == ["+new.qcow2", "~vm00001.raw", "-vm00005.qcow2", "4"]
    assert run.namespaces != {os.stat("/proc/self/ns/mnt").st_ino}
    assert run.leaves_nothing()


def test_a_fleet(demo: Start) -> None:
    """``make demo FLEET=yes``: the pools of a host that was killed go on, on other hosts; nothing of it is left."""
    run = demo(program="demo.fleet")
    code, out, err = run.finish()
    assert (code, err) == (0, "")
    before, words, after = out.partition("is killed (-9)")
    victim = before.split()[-1]
    assert words, out

    def owners(shown: str) -> dict[str, str]:
        return {
            row[1]: row[2] for row in re.finditer(r"^   (shared\d) +(\w+) +running +3 volumes$", shown, re.MULTILINE)
        }

    assert owners(before).keys() == owners(after).keys() == {f"shared{number}" for number in range(6)}, out
    lost = {name for name, owner in owners(before).items() if owner == victim}
    assert lost, out
    assert victim not in owners(after).values(), out
    assert re.search(r"^A volume made on its host: /.*/shared0/new, found in", after, re.MULTILINE), out
    assert run.leaves_nothing()


def test_make_runs_the_demonstration_of_a_fleet() -> None:
    """``make demo FLEET=yes`` is ``python -m demo.fleet``, and without it the other one."""
    for given, program in (([], "demo"), (["FLEET=yes"], "demo.fleet")):
        argv = ["make", "-n", "-C", str(ROOT), "demo", *given]
        shown = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
        assert re.search(rf"bin/python -m {re.escape(program)}\s", shown), shown


@pytest.mark.ceph
def test_with_ceph(demo: Start) -> None:
    """If asked for, a pool of images on a private Ceph, with a clone; nothing of it is left."""
    run = demo(*SMALL, "--no-gluster", "--ceph")
    code, out, err = run.finish()
    assert (code, err) == (0, "")
    found = rows(out, "Refreshing all of them at once")
    assert found["ceph-images"][1:4] == ["rbd", "running", "6"]
    assert "3 of 3 pools started, of the types dir, rbd" in out
    assert run.leaves_nothing()


@pytest.mark.parametrize(
    ("program", "moment", "number"),
    [
        ("demo", "Making storage", signal.SIGINT),
        ("demo", "pools started", signal.SIGTERM),
        ("astore.cli demo", "Making storage", signal.SIGTERM),
        ("astore.cli demo", "pools started", signal.SIGINT),
    ],
)
def test_interrupted_as_an_ordinary_user(demo: Start, program: str, moment: str, number: signal.Signals) -> None:
    """Ctrl-C or SIGTERM half-way: one line, exit code 130, and nothing is left."""
    run = demo("--pools", "5", "--images", "1000", program=program, ordinary=True, interrupted=True)
    run.read_until(moment)
    os.killpg(run.process.pid, number)
    code, _, err = run.finish()
    assert (code, err) == (130, f"astore: interrupted; {EVERYTHING_GONE}\n")
    assert run.leaves_nothing()


@pytest.mark.root
@pytest.mark.gluster
@pytest.mark.fuse
@pytest.mark.parametrize(
    "moment", ["2 folders with", "A private Gluster", "Something changes"], ids=lambda moment: moment
)
def test_interrupted_as_root(demo: Start, moment: str) -> None:
    """Wherever Ctrl-C comes, and if the impatient press it twice: bricks, mounts and folders go."""
    run = demo(*SMALL, interrupted=True)
    run.read_until(moment)
    time.sleep(0.1)
    os.killpg(run.process.pid, signal.SIGINT)  # as a terminal does: all of the group, the private glusterd too
    time.sleep(0.2)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(run.process.pid, signal.SIGINT)
    code, _, err = run.finish()
    assert (code, err) == (130, f"astore: interrupted; {EVERYTHING_GONE}\n")
    assert run.leaves_nothing()


def test_make_does_not_pass_python_on() -> None:
    """glusterd runs what the variable PYTHON names: an empty one keeps it from starting under ``make demo``."""
    rule = "show-environment: ; @env"
    argv = ["make", "-s", "-C", str(ROOT), f"--eval={rule}", "show-environment"]
    for given in ({}, {"PYTHON": ""}, {"PYTHON": "python3"}):
        shown = subprocess.run(argv, env={**os.environ, **given}, capture_output=True, text=True, check=True).stdout
        assert "VENV=.venv\n" in shown
        assert "\nPYTHON=" not in f"\n{shown}"


@pytest.mark.parametrize(("program", "more"), [("demo", ("--no-gluster",)), ("astore.cli demo", ())])
def test_a_reader_that_goes_away(demo: Start, program: str, more: tuple[str, ...]) -> None:
    """``astore demo | head -3`` ends as programs do that nobody reads, and leaves nothing."""
    run = demo(*SMALL, *more, program=program)
    run.read_until("Making storage")
    assert run.process.stdout is not None
    run.process.stdout.close()
    run.process.wait(400)
    assert run.process.stderr is not None
    assert (run.process.returncode, run.process.stderr.read()) == (141, b"")
    assert run.leaves_nothing()


@pytest.mark.root
@pytest.mark.gluster
@pytest.mark.fuse
def test_a_gluster_that_does_not_start(demo: Start, tmp_path: Path) -> None:
    """The reason is said, and the demonstration goes on without."""
    programs = tmp_path / "programs"
    programs.mkdir()
    for name in ("glusterd", "gluster"):
        program = programs / name
        program.write_text("#!/bin/sh\necho 'no such luck' >&2\nexit 1\n")
        program.chmod(0o755)
    run = demo(*SMALL, path=str(programs))
    code, out, err = run.finish()
    assert (code, err) == (0, "")
    assert "Gluster: gluster pool list: no such luck; so dir pools alone.\n" in out
    assert "2 of 2 pools started, of the types dir" in out
    assert run.leaves_nothing()
