"""The command as a process: closed streams, readers that go away, Ctrl-C, locales, shells, and how soon it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from beds import fuse, namespace

Make = Callable[..., Path]


def shell(astore: Any, script: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a script of bash in which ``astore`` is the command."""
    command = " ".join(astore.argv())
    return subprocess.run(
        ["bash", "-c", f'astore() {{ {command} "$@"; }}\n{script}'],
        env=astore.environment(**environment),
        cwd=astore.folder,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
        stdin=subprocess.DEVNULL,
    )


# ---------------------------------------------------------------------------------------------------------- streams


@pytest.mark.parametrize(
    ("script", "code", "said"),
    [
        ("astore pool list >&-", 1, "astore: standard output: Bad file descriptor\n"),
        ("astore pool list 2>&-", 0, ""),
        ("astore pool info nobody 2>&-", 3, ""),
        (
            "astore pool define - <&-",
            1,
            (
                "astore: standard input: cannot be read: it is closed, or has the commands of `astore shell`: "
                "name a file instead\n"
            ),
        ),
        ("astore pool list >&- 2>&- <&-", 1, ""),
    ],
)
def test_streams_that_cannot_be_used(astore: Any, make_pool: Make, script: str, code: int, said: str) -> None:
    """Output that is lost is a failure, said in one line; a lost line of stderr is none."""
    make_pool()
    done = shell(astore, script)
    assert (done.returncode, done.stderr) == (code, said)


@pytest.mark.parametrize("command", ["pool capabilities --json", "events --json --refresh 0.1 --for 30"])
def test_a_reader_that_goes_away(astore: Any, make_pool: Make, command: str) -> None:
    """Ends as SIGPIPE would have it, without a word."""
    make_pool()
    # waited for, so that it is certain that nobody reads when the command writes
    done = shell(astore, f"exec 3> >(:); wait $!; astore {command} >&3; echo $?")
    assert (done.stdout, done.stderr) == ("141\n", "")


# ------------------------------------------------------------------------------------------------------------ Ctrl-C


@pytest.mark.parametrize("command", [("events", "--refresh", "0"), ("pool", "define", "-")])
def test_interrupted(astore: Any, make_pool: Make, command: tuple[str, ...]) -> None:
    """Ctrl-C, while it waits for what may never come: one line, and 130."""
    make_pool()
    with astore.running(*command) as process:
        deadline = time.monotonic() + 120
        # its lock or its loop: by then it is past its imports
        while not _is_waiting(process.pid):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        assert process.wait(120) == 130
        assert process.stderr.read().endswith(b"astore: interrupted\n")


def _is_waiting(pid: int) -> bool:
    """Whether a loop runs in it: it has an epoll descriptor."""
    try:
        links = [os.readlink(f"/proc/{pid}/fd/{number}") for number in os.listdir(f"/proc/{pid}/fd")]
    except OSError:
        return False
    return "anon_inode:[eventpoll]" in links


# --------------------------------------------------------------------------------------------------- shells, locales


def test_completion_in_bash(astore: Any, make_pool: Make) -> None:
    """The script that --show-completion prints completes the names of pools and volumes in a real bash."""
    make_pool("images")
    make_pool("isos", start=False)
    script = """
        eval "$(_ASTORE_COMPLETE=bash_source astore)"
        complete -p astore
        ask() { COMP_WORDS=(astore "$@"); COMP_CWORD=$#; COMPREPLY=(); _astore_completion astore; echo "${COMPREPLY[@]}"; }
        ask pool start i
        ask pool stop im
        ask vol info --pool images w
        ask po
    """
    # the script calls its program through env, which knows no functions
    program = astore.folder / "programs" / "astore"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {" ".join(astore.argv())} "$@"\n')
    program.chmod(0o755)
    done = shell(astore, f"unset -f astore\n{script}", PATH=f"{program.parent}:{os.environ['PATH']}")
    assert done.stderr == ""
    assert done.stdout.splitlines()[1:] == ["isos", "images", "web.qcow2", "pool"]


def test_the_c_locale(astore: Any, tmp_path: Path) -> None:
    """Where nobody chose a locale, names beyond ASCII work all the same."""
    folder = tmp_path / "ünï"
    folder.mkdir()
    (folder / "名.raw").write_bytes(b"")
    assert astore.process("pool", "define", astore.definition("bücher", folder), LC_ALL="C").code == 0
    ran = astore.process("pool", "start", "bücher", LC_ALL="C")
    assert (ran.code, ran.out, ran.err) == (0, "pool 'bücher' started\n", "")
    assert astore.process("vol", "list", "bücher", "--name", LC_ALL="C").out == "名.raw\n"


def test_a_locale_without_utf_8(astore: Any, make_pool: Make) -> None:
    """Where the locale insists on ASCII, tables and help still come, and JSON is as in any locale."""
    folder = make_pool()
    (folder / "名.raw").write_bytes(b"")
    astore.good("pool", "refresh", "images")
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    for command in (("pool", "list"), ("pool", "info", "images"), ("--help",), ("pool", "list", "--help")):
        ran = astore.process(*command, **ascii_only)
        assert (ran.code, ran.err) == (0, "")
        assert ran.out.isascii()
    assert "\\u540d.raw" in astore.process("vol", "list", "images", **ascii_only).out
    assert astore.process("vol", "list", "images", "--name", **ascii_only).out.splitlines()[-1] == "名.raw"
    listed = astore.process("vol", "list", "images", "--json", **ascii_only).json()["volumes"]
    assert listed[-1]["name"] == "名.raw"
    ran = astore.process("pool", "info", "nöbody", **ascii_only)
    assert ran.code == 3
    assert ran.err.isascii()


# ---------------------------------------------------------------------------------------------------- from run to run


@pytest.fixture
def defined(astore: Any, gluster: Any, new_volume: str, tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """A Gluster volume with an image, defined as a pool over gfapi and as one over FUSE; the latter is stopped."""
    (gluster.mount(new_volume) / "a.raw").write_bytes(bytes(4096))
    target = tmp_path / "mounted"
    source = f"<source><host name='{gluster.host}'/>"
    over_gfapi = f"<pool type='gluster'><name>over-gfapi</name>{source}<name>{new_volume}</name></source></pool>"
    share = f"{source}<dir path='{new_volume}'/><format type='glusterfs'/></source>"
    over_fuse = f"<pool type='netfs'><name>over-fuse</name>{share}<target><path>{target}</path></target></pool>"
    for name, xml in (("over-gfapi", over_gfapi), ("over-fuse", over_fuse)):
        (tmp_path / f"{name}.xml").write_text(xml)
        astore.good("pool", "define", str(tmp_path / f"{name}.xml"))
    yield new_volume, target
    fuse.release(target)


@pytest.mark.gluster
@pytest.mark.fuse
def test_pools_stay_active_and_no_process_waits_for_gluster(astore: Any, defined: tuple[str, Path]) -> None:
    """What one process starts, the next ones see, refresh and stop; none of them waits for libgfapi's ten seconds."""
    _, target = defined

    def run(*command: str) -> Any:
        ran = astore.process(*command)
        assert (ran.code, ran.err) == (0, ""), ran
        return ran

    run("pool", "build", "over-fuse")
    run("pool", "start", "--all")
    assert fuse.is_mounted(target), "the mount outlives the process"
    listed = run("pool", "list", "--json").json()["pools"]
    assert [(pool["name"], pool["state"], pool["volumes"]) for pool in listed] == [
        ("over-fuse", "running", 1),
        ("over-gfapi", "running", 1),
    ]
    refreshed = run("pool", "refresh", "--all", "--json").json()["pools"]
    assert [(pool["ok"], pool["unchanged"]) for pool in refreshed] == [(True, 1), (True, 1)]
    assert run("vol", "path", "a.raw", "--pool", "over-gfapi").out.startswith("gluster://")
    assert run("vol", "path", "a.raw", "--pool", "over-fuse").out == f"{target}/a.raw\n"
    run("pool", "stop", "over-fuse", "over-gfapi")
    assert not fuse.is_mounted(target)
    assert run("pool", "list", "--name").out == ""


def test_a_state_folder_without_a_name(astore: Any) -> None:
    """As of a variable that is not set: not the folder that one happens to be in."""
    ran = astore.process("--state-dir", "", "pool", "list")
    assert (ran.code, ran.out, ran.complaint) == (2, "", "--state-dir: the folder has no name")


@pytest.mark.root
def test_unbuffered_output_is_whole(astore: Any, tmp_path: Path) -> None:
    """With PYTHONUNBUFFERED too: what the file system does not take is an error, and no document that ends half-way."""
    folder = tmp_path / "many"
    folder.mkdir()
    for number in range(600):
        (folder / f"volume{number}").touch()
    astore.good("pool", "define", astore.definition("many", folder))
    astore.good("pool", "start", "many")
    small = tmp_path / "small"
    small.mkdir()
    namespace.mount("tmpfs", small, "tmpfs", data="size=64k")
    try:
        with (small / "out").open("wb") as out:
            done = subprocess.run(
                [*astore.argv(), "vol", "list", "many", "--json"],
                env=astore.environment() | {"PYTHONUNBUFFERED": "1"},
                stdout=out,
                stderr=subprocess.PIPE,
                text=True,
                timeout=200,
                check=False,
            )
        assert (done.returncode, done.stderr) == (1, "astore: standard output: No space left on device\n")
    finally:
        namespace.unmount(small)
