"""Completion in real shells, each with the script that ``--install-completion`` puts into a new home."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from terminals import Terminal

from astore.cli.completion_shells import in_bash, typed
from astore.cli.shell import candidates

Make = Callable[..., Path]
Complete = Callable[..., list[str]]

STARTED = {
    "bash": ("--rcfile", ".bashrc", "-i"),
    "zsh": ("-i",),
    "fish": ("--interactive",),
}
"""How each shell is started."""

SETTINGS = {
    "bash": (".bashrc", "source /usr/share/bash-completion/bash_completion\nPS1='ready> '\n"),
    "zsh": (".zshrc", "PS1='ready> '\nzstyle ':completion:*' insert-tab false\n"),
    "fish": (".config/fish/config.fish", "function fish_prompt; echo -n 'ready> '; end\nset -g fish_greeting\n"),
}
"""What a home has already, as distributions or users have it: a prompt, and for bash the package bash-completion."""


@pytest.fixture(params=list(STARTED))
def shell(request: pytest.FixtureRequest, astore: Any, tmp_path: Path) -> Iterator[Terminal]:
    """A shell on a terminal, in a home in which the completion was installed. The command is on its PATH."""
    name = request.param
    home = tmp_path / "home"
    file, text = SETTINGS[name]
    (home / file).parent.mkdir(parents=True)
    (home / file).write_text(text)
    (home / ".local/share/fish/generated_completions").mkdir(parents=True)  # or fish reads all man pages first
    command = home / "bin" / "astore"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -W error -m astore.cli "$@"\n')
    command.chmod(0o755)
    environment = {
        "HOME": str(home),
        "PATH": f"{command.parent}:{os.environ['PATH']}",
        "ASTORE_STATE_DIR": str(astore.state_dir),
        "LANG": "C.UTF-8",
    }
    subprocess.run([command, "--install-completion", name], env=environment, check=True, capture_output=True)
    program = shutil.which(name)
    assert program is not None, f"{name} is not installed: scripts/setup.sh test installs it"
    arguments = [str(home / one) if one.startswith(".") else one for one in STARTED[name]]
    opened = Terminal([program, *arguments], environment, columns=400)
    opened.until("ready> ")
    yield opened
    opened.close()


def test_completion_in_a_shell(shell: Terminal, make_pool: Make) -> None:
    """Tab names the pools that the verb can be used on, volumes, verbs and options; the commands that come out of it run."""
    make_pool("images")
    make_pool("isos", start=False)
    for keys, answer in (
        ("astore pool start i\t\r", "pool 'isos' started"),
        ("astore vol li\t --det\t im\t\r", "base.qcow2"),
        ("astore vol path web\t --pool im\t\r", "images-folder/web.qcow2"),
        ("astore pool destroy im\t\r", "pool 'images' stopped"),
        ("astore pool-sta\t im\t\r", "Pool images started"),
    ):
        shell.seen = b""
        shell.type(keys)
        shell.until(answer, "ready> ")


NAMES = [
    "two words.img",
    "it's.img",
    'say "x".img',
    "co:lo:n.img",
    "a=b,c.img",
    "$(touch ran).img",
    "`touch ran`.img",
    "star*?.img",
    "~tilde.img",
    "[;&|<>!#].img",
    "bücher {1}^%.img",
    "-option.img",
    "back\\slash.img",
]
"""Names of volumes that shells would take for something else."""

HARMFUL = ["two\x1b]0;owned\x07.img", "it\nline.img", "co\tlumn.img", "say\u202eright.img", "bü\udcff.img"]
"""Names that are not offered: a terminal, or UTF-8, cannot take them. Each begins like one of the others."""


def fill(astore: Any, folder: Path, pool: str) -> None:
    """Make volumes of all these names."""
    for name in [*NAMES, *HARMFUL]:
        (folder / name).write_bytes(bytes(512))
    astore.good("pool", "refresh", pool)


def press(shell: Terminal, *lines: tuple[str, str]) -> None:
    """Type lines, with their tabs, and wait for what the commands answer that come out of it."""
    for keys, answer in lines:
        shell.seen = b""
        shell.type(f"{keys}\r")
        shell.until(answer, "ready> ")
        assert b"owned" not in shell.seen


def test_names_that_have_to_be_quoted(shell: Terminal, make_pool: Make, astore: Any, tmp_path: Path) -> None:
    """Blanks, colons, quotes and code arrive as they are, and nothing of them runs; what a terminal cannot take is left out."""
    folder = make_pool("my pool:1")
    make_pool("other")
    fill(astore, folder, "my pool:1")
    lines = (
        ("'two w", "two words.img"),
        ("two\\ w", "two words.img"),
        ('"it', "it's.img"),
        ("co:lo:", "co:lo:n.img"),
        ("\\$", "$(touch ran).img"),
        ("'`", "`touch ran`.img"),
        ("\\~", "~tilde.img"),
        ("\\[", "[;&|<>!#].img"),
        ("my\\ pool:1/-", "-option.img"),
        ("'my pool:1/tw", "two words.img"),
        (f"{folder}/say".replace(" ", "\\ "), 'say "x".img'),
    )
    press(shell, *((f"astore vol path {keys}\t", f"{folder}/{name}\r\n") for keys, name in lines))
    assert list(tmp_path.rglob("ran*")) == []


def test_addresses(shell: Terminal, make_pool: Make) -> None:
    """A pool is offered with a slash, behind which its volumes are; also after a colon, and in one word with an option."""
    for name in "images", "isos":
        make_pool(name)
    press(
        shell,
        ("astore vol path ima\tweb\t", "images-folder/web.qcow2"),
        ("astore vol path isos:b\t", "isos-folder/base.qcow2"),
        ("astore vol path web.qcow2 --pool=is\t", "isos-folder/web.qcow2"),
        ("astore vol-path --vol=isos/b\t", "isos-folder/base.qcow2"),
        ("astore vol clone images/base.qcow2 is\tnew.qcow2", "'new.qcow2' cloned from 'base.qcow2'"),
    )


def test_secrets_files_and_help(shell: Terminal, astore: Any, tmp_path: Path) -> None:
    """Secrets are named by UUID and by use, commands after ``help``, and the shell's files where a file is asked for."""
    home = tmp_path / "home"
    (home / "the value.txt").write_text("AQBHCbtT6APDHhAA5W00cBchwkQjh3dkKsyPjw==")
    for type, name in (("iscsi", "iqn.2024-01.org:it's $x"), ("ceph", "client.a")):
        astore.good("secret", "set", type, name, "--file", str(home / "the value.txt"))
    known = {
        one["usage_type"]: one["uuid"] for one in json.loads(astore.good("secret", "list", "--json").out)["secrets"]
    }
    ceph, iscsi = known["ceph"][:6], known["iscsi"][:6]
    press(
        shell,
        (f"astore secret dumpxml {ceph}\t", "client.a</name>"),
        (f"astore secret-dumpxml --secret={iscsi}\t", "<target>iqn.2024-01.org:it's $x</target>"),
        ("cd", ""),
        (f"astore secret set-value --plain --file=the\t {ceph}\t", "its value is set"),
        (f"astore secret-set-value --plain --file the\t {ceph}\t", "Secret value set"),
        ("astore secret remove isc\t iqn.2024-01.org:\t", "is removed"),
        ("astore help vo\t inf\t", "Usage: astore vol info"),
        ("astore help vol-dumpx\t", "Usage: astore vol-dumpxml"),
    )


# ------------------------------------------------------------------------------------------------- without a terminal


@pytest.mark.parametrize("kept", ["", "'", '"', "pool:", "'pool:", '"pool:', "pool\\ x:", "'it'\\''s:", '"a\\"b:'])
def test_what_bash_gets(kept: str, tmp_path: Path) -> None:
    """Behind whatever was typed, in open quotes or not, bash makes of it the word that is meant."""
    _, begin, _, quote = typed(kept)
    wanted = [begin + name for name in NAMES]
    words = " ".join(f"{kept}{in_bash(one, kept)}{quote}" for one in wanted)
    done = subprocess.run(["bash", "-c", f"printf '%s\\n' {words}"], cwd=tmp_path, capture_output=True, check=True)
    assert done.stdout.decode().splitlines() == wanted
    assert list(tmp_path.iterdir()) == []
    assert in_bash("else", "pool:") is None


@pytest.mark.parametrize(
    ("line", "words", "last", "quote"),
    [
        ("astore vol ", ("astore", "vol"), "", ""),
        ('a \'b c\' d\\ e"f\\"$g"h', ("a", "b c"), 'd ef"$gh', ""),
        ("a 'b \"c", ("a",), 'b "c', "'"),
        ("a \"b 'c\\", ("a",), "b 'c\\", '"'),
        ("a ''", ("a",), "", ""),
        ("a '' ", ("a", ""), "", ""),
        ("a $(touch x) `y\\", ("a", "$(touch", "x)"), "`y", ""),
        ("a ~/x b~/ '~/'", ("a", "/home/u/x", "b~/"), "~/", ""),
        ("a b\\\nc", ("a",), "bc", ""),
    ],
)
def test_how_a_line_is_read(
    line: str, words: tuple[str, ...], last: str, quote: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Quotes are taken away as a shell does, also those that are not closed yet; nothing is run or expanded but ~/."""
    monkeypatch.setenv("HOME", "/home/u")
    found = typed(line)
    assert (found.words, found.last, found.quote) == (words, last, quote)
    assert line.endswith(found.raw)


def test_single_quotes_in_fish() -> None:
    """A backslash escapes a quote in them."""
    assert typed("a 'it\\'s \\\\ \\x' '", fish=True)[:2] == (("a", "it's \\ \\x"), "")


@pytest.fixture
def complete(astore: Any, monkeypatch: pytest.MonkeyPatch) -> Complete:
    """What fish is told for a line: texts, without their types and descriptions."""

    def answers(line: str) -> list[str]:
        monkeypatch.setenv("_ASTORE_COMPLETE", "fish_complete")
        monkeypatch.setenv("_ASTORE_LINE", line)
        ran = astore()
        monkeypatch.delenv("_ASTORE_COMPLETE")
        assert (ran.code, ran.err) == (0, "")
        return [one.split("\t")[1] for one in ran.out.splitlines()]

    return answers


def test_what_is_offered(complete: Complete, make_pool: Make, astore: Any) -> None:
    """Whatever a command takes that is known, in each of the ways to write it."""
    folder = make_pool("images")
    make_pool("isos", start=False)
    fill(astore, folder, "images")
    uuid = astore.good("pool-uuid", "images").out.strip()
    for line, words in (
        ("astore vol delete x --pool ", ["images", "isos"]),
        ("astore vol delete web.qcow2 ba", ["back\\slash.img", "base.qcow2"]),
        ("astore vol delete web.qcow2 we", []),
        ("astore vol info i", ["it's.img", "images/"]),
        ("astore vol info -- -", ["-option.img"]),
        ("astore vol info images/-", ["images/-option.img"]),
        ("astore vol info --pool=images ba", ["back\\slash.img", "base.qcow2"]),
        ("astore vol info isos/", []),
        ("astore vol info --pool images ima", []),
        (f"astore vol info {folder}/ba", [f"{folder}/back\\slash.img", f"{folder}/base.qcow2"]),
        (f"astore vol info {folder.parent}/", [f"{folder}/"]),
        (f"astore vol info {os.path.relpath(folder)}/we", [f"{os.path.relpath(folder)}/web.qcow2"]),
        ("astore vol create images n --backing-vol=ima", ["--backing-vol=images/"]),
        ("astore vol create images n --backing-vol we", ["web.qcow2"]),
        ("astore vol create isos n --backing-vol we", []),
        ("astore vol create images n --backing-vol-format qc", ["qcow", "qcow2"]),
        ("astore --json po", ["pool"]),
        ("astore pool info --json im", ["images"]),
        ("astore vol set-format web.qcow2 ra", ["raw"]),
        ("astore vol clone web.qcow2 i", ["images/"]),
        ("astore vol clone web.qcow2 --to=images i", []),
        ("astore vol-clone web.qcow2 i", []),
        (f"astore pool-name {uuid[:8]}", [uuid]),
        ("astore pool des", ["destroy"]),
        ("astore pool list --type dir,ne", ["dir,netfs"]),
        ("astore pool define-as n netfs --source-format n", ["nfs"]),
        ("astore pool define-as n rbd --auth-type c", ["chap", "ceph"]),
        ("astore --install-completion z", ["zsh"]),
        ("astore help pool sto", ["stop"]),
        ("astore help volume downl", ["download"]),
        ("astore help pool stop ", []),
        ("astore help nothing ", []),
        ("astore -c qemu+ssh://elsewhere/system pool info im", ["images"]),
        ("astore --state-dir '' pool info im", []),
    ):
        assert complete(line) == words, line
    everything = complete("astore vol info ")
    assert {*NAMES, "images/"} - {*everything} == {"-option.img"}
    assert not {*HARMFUL} & {*everything}


def test_scripts_of_earlier_versions(
    complete: Complete, make_pool: Make, astore: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one for bash inserts names as they are, so those are left out that need quotes."""
    fill(astore, make_pool("images"), "images")
    for name, value in (("_ASTORE_COMPLETE", "bash_complete"), ("COMP_WORDS", "astore vol info "), ("COMP_CWORD", "3")):
        monkeypatch.setenv(name, value)
    offered = astore.good().out.splitlines()
    assert offered == ["plain,a=b,c.img", "plain,base.qcow2", "plain,co:lo:n.img", "plain,web.qcow2", "part,images/"]


def test_completion_changes_nothing(complete: Complete, make_pool: Make, astore: Any, tmp_path: Path) -> None:
    """No file of the state folder is written or removed, and none is made where there is no folder."""
    make_pool("images")
    (astore.state_dir / "run" / "old.run").write_bytes(b"of an earlier boot")
    lines = [
        f"astore {words} " for words in ("vol info", "pool start", "pool-name", "secret dumpxml", "secret remove ceph")
    ]

    def files() -> list[tuple[Path, int]]:
        return sorted((file, file.lstat().st_mtime_ns) for file in [astore.state_dir, *astore.state_dir.rglob("*")])

    before = files()
    for line in lines:
        complete(line)
        assert complete(line.replace("astore", f"astore --state-dir {tmp_path}/none", 1)) == []
    assert files() == before
    assert not (tmp_path / "none").exists()


def test_completion_in_our_own_shell(make_pool: Make, astore: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Words are quoted there as well, and a pool's name goes on; the state folder is that of the shell."""
    fill(astore, make_pool("images"), "images")
    monkeypatch.setenv("ASTORE_STATE_DIR", "/nonexistent")

    def offered(before: str, incomplete: str) -> list[str]:
        return candidates(before, incomplete, str(astore.state_dir))

    assert offered("pool list; vol info ", "two") == ["two\\ words.img "]
    assert offered("vol info 'two ", "w") == ["words.img' "]
    assert offered("virsh vol-info ", "ima") == ["images/"]
    assert offered("vol info ", "--pool=ima") == ["--pool=images "]
    assert offered("vol info web.qcow2;", "he") == ["help "]
    assert offered("vol upload web.qcow2 ", "x") == []
