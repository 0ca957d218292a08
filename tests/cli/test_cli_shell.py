"""``astore shell``: many commands in one process, typed or read."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from core_fakes import PATIENCE

from astore.cli.shell import candidates

Make = Callable[..., Path]


def test_a_batch(astore: Any, make_pool: Make) -> None:
    """Each line is a command; a failure does not end it, and is told by the exit code; other processes' work is seen."""
    make_pool("images")
    lines = "\n".join(
        (
            "# a comment",
            "pool list --name",
            "",
            "vol create images 'a b.raw' 1M",
            "vol path 'images/a b.raw'",
            "vol path images/none",
            "vol-list images",
            'vol path "',
            "shell",
            "pool-stop",
            "quit",
            "vol path images/web.qcow2",
        )
    )
    ran = astore.process("shell", stdin=lines.encode())
    assert ran.code == 4
    first, made, path, title, *_ = ran.out.splitlines()
    assert (first, made) == ("images", "volume 'a b.raw' created (format raw)")
    assert path.endswith("/a b.raw")
    assert title.split() == ["Name", "Path"]
    assert "web.qcow2\n" not in ran.out.partition("----")[2].replace("images-folder/web.qcow2\n", "")
    assert [line.split(": ")[:2] for line in ran.err.splitlines()] == [["astore", f"line {n}"] for n in (6, 8, 9, 10)]
    assert astore.process("shell", stdin=b"pool list\n").code == 0
    assert astore.process("shell", stdin=b"pool lust\n").code == 1


def test_no_standard_input(astore: Any, tmp_path: Path) -> None:
    """A shell whose standard input is closed says so."""
    argv = [sys.executable, "-m", "astore", "--state-dir", str(tmp_path), "shell"]
    ran = subprocess.run(["sh", "-c", 'exec "$@" <&-', "sh", *argv], capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stderr) == (1, "astore: standard input has no commands: Bad file descriptor\n")


def test_commands_do_not_read_the_batch(astore: Any, make_pool: Make) -> None:
    """A command that reads standard input is refused, and the lines after it are commands, as many as there are."""
    folder = make_pool("images")
    reading = ["vol upload images/new -", "secret set cifs files", "secret-set-value 8a9b4d8e -", "pool define -"]
    reading += ["vol upload images/new /dev/stdin --replace"]
    lines = ["vol create images new 1M", *reading, *["vol path images/new"] * 3000]
    ran = astore.process("shell", stdin=b"\xef\xbb\xbf" + "\n".join(lines).encode())
    assert ran.out.count(f"{folder}/new\n") == 3000
    assert (folder / "new").read_bytes() == bytes(1 << 20)
    refused = [line for line in ran.err.splitlines() if "has the commands of `astore shell`" in line]
    assert len(refused) == 3
    assert len(ran.err.splitlines()) == 5
    assert astore.good("secret", "list", "--json").json() == {"secrets": []}


def test_a_batch_takes_no_longer_than_a_few_processes(astore: Any, make_pool: Make) -> None:
    """Two hundred commands need one start, so that they take less than three times the processor time of one, and usually less
    than twice. The best of five pairs counts.
    """
    make_pool("images")

    def seconds(*arguments: str, stdin: bytes = b"") -> float:
        before = os.times()
        assert astore.process(*arguments, stdin=stdin).code == 0
        after = os.times()
        return after.children_user + after.children_system - before.children_user - before.children_system

    def ratio() -> float:
        return seconds("shell", stdin=b"vol path images/web.qcow2\n" * 200) / seconds("vol", "path", "images/web.qcow2")

    best = min(ratio() for _ in range(5))
    print(f"{best:.2f} times one")
    assert best < 3


def test_what_the_shell_did_is_listed(astore: Any, make_pool: Make) -> None:
    """Lists are read from the state folder, and have what commands of the same shell did."""
    make_pool("images")
    lines = "vol create images new 1M\nvol list images --name\nvol delete images/new\nvol list images --name\n"
    ran = astore.process("shell", stdin=lines.encode())
    assert ran.code == 0
    listed = ran.out.split()
    assert listed.count("new") == 1
    assert listed.count("web.qcow2") == 2


def test_what_another_process_did_is_seen(astore: Any, make_pool: Make) -> None:
    """Before each command the state folder is read again."""
    make_pool("images")
    with astore.running("shell") as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"vol path images/web.qcow2\n")
        process.stdin.flush()
        assert process.stdout.readline().endswith(b"/web.qcow2\n")
        assert astore.process("pool", "stop", "images").code == 0
        process.stdin.write(b"pool start images\npool list --name\nquit\n")
        process.stdin.flush()
        assert process.stdout.readline() == b"pool 'images' started\n"
        assert process.stdout.readline() == b"images\n"
        assert process.wait(timeout=PATIENCE) == 0


def test_candidates(astore: Any, make_pool: Make) -> None:
    """Verbs, pools and volumes, as in bash."""
    make_pool("images")
    make_pool("isos", start=False)
    assert candidates("", "po") == ["pool "]
    assert candidates("pool start ", "i") == ["isos "]
    assert candidates("pool start isos ", "i") == []
    assert candidates("vol create images new 1M --backing-vol ", "w") == ["web.qcow2 "]
    assert candidates("vol info ", "w") == ["web.qcow2 "]
    assert candidates("vol 'info ", "w") == []


def test_on_a_terminal(astore: Any, make_pool: Make, tmp_path: Path) -> None:
    """A prompt that completes; Ctrl-C drops the line, Ctrl-D ends; the history is kept."""
    make_pool("images")
    with astore.terminal("shell", HOME=str(tmp_path)) as terminal:
        type, until = terminal.type, terminal.pass_by
        until("astore> ")
        type("nonsense")
        until("nonsense")
        type("\x03")
        until("astore> ", meanwhile="\x03")  # Python's prompt overlooks one that comes just before it waits for a key
        type("vol path images/web.qc\t\n")
        type("pool inf\timages\n")
        until("running")
        until("astore> ")
        type("pool event --event lifecycle --loop; pool stop images\n")
        until("lifecycle --loop; pool stop images\r\n")
        until("astore> ", meanwhile="\x03")  # what follows on the line is dropped with it
        type("pool list --name\n")
        until("\r\nimages\r\n")
        until("astore> ")
        type("\x04")
        assert terminal.process.wait(timeout=PATIENCE) == 0
    history = tmp_path / ".local/state/astore/history"
    assert "pool info images" in history.read_text()
    assert history.stat().st_mode & 0o777 == 0o600
